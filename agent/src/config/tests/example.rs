//! The example names every option, with its default, and what is shown is what is read.

use std::collections::BTreeSet;

use super::environment;
use crate::config::{
    EXAMPLE, Environment, Raw, raw,
    tree::{Node, Value},
};
use crate::sinks::{SinkSettings, console, elasticsearch, file, http, kafka};

/// The options of a file as paths, lists as `[]`.
fn option_paths(text: &str) -> BTreeSet<String> {
    fn walk(node: &Node, path: &str, into: &mut BTreeSet<String>) {
        match &node.value {
            Value::Mapping(entries) => {
                for entry in entries {
                    let path = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                    into.insert(path.clone());
                    walk(&entry.node, &path, into);
                }
            }
            Value::Sequence(items) => items.iter().for_each(|item| walk(item, &format!("{path}[]"), into)),
            _ => {}
        }
    }
    let mut paths = BTreeSet::new();
    walk(&Node::parse(text).unwrap_or_else(|problem| panic!("{problem:?}")), "", &mut paths);
    paths
}

/// The example with what it shows in the place of empty lists.
fn example_in_full() -> String {
    let shown = |line: &'static str| line.strip_prefix('#').filter(|rest| rest.starts_with("  "));
    let mut lines = EXAMPLE.lines().peekable();
    let mut full = Vec::new();
    while let Some(line) = lines.next() {
        let is_replaced = lines.peek().and_then(|next| shown(next)).is_some_and(|next| line == format!("{next} []"));
        // At the left edge there is no room to show the option again: only its entries are.
        let has_entries = lines.peek().and_then(|next| shown(next)).is_some_and(|next| next.starts_with("  # "));
        match line.strip_suffix(" []").filter(|line| has_entries && !line.starts_with(' ')) {
            Some(option) => full.push(option),
            None if is_replaced => {}
            None => full.push(shown(line).unwrap_or(line)),
        }
    }
    full.join("\n")
}

#[test]
fn the_example_is_the_defaults_and_names_every_option() {
    let (raw, _) = Raw::parse("example.yaml", EXAMPLE, &environment()).expect("valid");
    assert_eq!(raw, Raw { node_name: Some("node-1".to_owned()), ..Raw::default() });
    let defaults = serde_saphyr::to_string(&Raw::default()).expect("serializes");
    let missing: Vec<_> = option_paths(&defaults).difference(&option_paths(EXAMPLE)).cloned().collect();
    assert!(missing.is_empty(), "the example does not name {missing:?}");
}

#[test]
fn what_the_example_shows_in_the_place_of_lists_is_valid_and_names_every_option() {
    let text = example_in_full();
    let (raw, _) = Raw::parse("example.yaml", &text, &environment()).unwrap_or_else(|error| panic!("{error}"));
    let rule = &raw.capture.rules[0];
    let mut full = Raw { capture: raw::Capture { rules: vec![rule.clone()], ..Default::default() }, ..Raw::default() };
    // Where the example leaves an option of a rule out, its key is in the serialized form only.
    full.sinks.clone_from(&raw.sinks);
    full.processors.clone_from(&raw.processors);
    full.lines.multiline.patterns.clone_from(&raw.lines.multiline.patterns);
    let serialized = serde_saphyr::to_string(&full).expect("serializes");
    let inherited = |path: &String| {
        ["capture.rules[].multiline.", "capture.rules[].parse."].iter().any(|section| path.starts_with(section))
    };
    let missing: Vec<_> =
        option_paths(&serialized).difference(&option_paths(&text)).filter(|path| !inherited(path)).cloned().collect();
    assert!(missing.is_empty(), "the example does not name {missing:?}");
    let url = "https://collector:4318/v1/logs".to_owned();
    let brokers = vec!["kafka-0.kafka.example:9092".to_owned()];
    let elasticsearch = elasticsearch::Settings {
        // It has no default.
        urls: vec!["https://logs.example.com:9200".to_owned()],
        ..elasticsearch::Settings::default()
    };
    let defaults = [
        SinkSettings::Console(console::Settings::default()),
        SinkSettings::File(file::Settings::default()),
        SinkSettings::Http(http::Settings { url, ..http::Settings::default() }),
        SinkSettings::Kafka(kafka::Settings { brokers, ..kafka::Settings::default() }),
        SinkSettings::Elasticsearch(elasticsearch),
    ];
    assert_eq!(raw.sinks, defaults);
    let pattern = &raw.lines.multiline.patterns[0];
    assert!(pattern.start.is_some() && pattern.continuation.is_some());
}

#[test]
fn what_is_shown_is_read_back_as_the_same() {
    for text in [EXAMPLE.to_owned(), example_in_full()] {
        let (raw, config) = Raw::parse("a", &text, &environment()).unwrap_or_else(|error| panic!("{error}"));
        let (again, config_again) = Raw::parse("b", &raw.to_yaml(), &Environment::default()).expect("valid");
        assert_eq!((raw, config), (again, config_again));
    }
}
