//! `docs/metrics.md` against a real scrape.

use std::sync::Arc;

use prometheus::proto::MetricType;

use super::Endpoint;
use crate::telemetry::names;

/// Name, type and labels of a metric.
type Described = (String, String, Vec<String>);

/// The families of the text format, each with the labels that its samples have.
fn families(text: &str) -> Vec<Described> {
    let mut families: Vec<Described> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("name and type");
            families.push((name.to_owned(), kind.to_owned(), Vec::new()));
        } else if !line.starts_with('#') {
            let family = families.last_mut().expect("a type before the samples");
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').expect("a closing brace").0);
            let names = labels.split("\",").filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
            let mut names: Vec<_> = names.collect();
            names.sort_unstable();
            assert!(family.2.is_empty() || family.2 == names, "labels differ within {}", family.0);
            family.2 = names;
        }
    }
    families.sort_unstable();
    families
}

/// The rows of `docs/metrics.md`, and the meaning that each gives.
fn documented() -> Vec<(Described, String)> {
    let reference = include_str!("../../../../docs/metrics.md");
    let mut rows = Vec::new();
    for row in reference.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else { panic!("not four cells: {row}") };
        let mut labels: Vec<_> = labels
            .split(',')
            .map(|label| label.trim().trim_matches('`').to_owned())
            .filter(|label| !label.is_empty())
            .collect();
        labels.sort_unstable();
        rows.push(((name.trim_matches('`').to_owned(), kind.to_owned(), labels), meaning.to_owned()));
    }
    rows.sort_unstable();
    rows
}

#[test]
fn the_reference_says_what_the_endpoint_gives() {
    let endpoint = Endpoint::start(|_| {});
    let given = families(&endpoint.get("/metrics").1);
    let documented = documented();
    let names: Vec<_> = documented.iter().map(|(described, _)| described.clone()).collect();
    assert_eq!(given, names, "docs/metrics.md and the endpoint differ");
    assert_eq!(given.len(), names::ALL.len(), "a definition is given by no scrape of a full agent");
    for ((name, ..), meaning) in &documented {
        let definition = names::ALL.iter().find(|definition| definition.name == name).expect("a definition");
        assert_eq!(definition.help, meaning, "{name}");
    }
}

#[test]
fn names_follow_the_conventions() {
    for definition in names::ALL {
        let name = definition.name;
        assert!(name.starts_with("sidestep_") || name.starts_with("process_"), "{name}");
        assert_eq!(name.ends_with("_total"), definition.kind == MetricType::COUNTER, "{name}");
        assert!(definition.help.ends_with('.'), "{name}");
    }
}

#[test]
fn hostile_names_do_not_break_the_text_format() {
    let endpoint = Endpoint::start(|_| {});
    {
        let mut snapshot = endpoint.agent.snapshot.lock().expect("no panic");
        let pod = "../..\n# TYPE evil counter\nevil{a=\"b\"} 1\n\\\"\u{1b}[2J".repeat(100);
        snapshot.accounts[1].resource =
            Arc::new(crate::record::Resource { pod: Some(pod.into()), ..Default::default() });
    }
    let (_, text) = endpoint.get("/metrics");
    assert_eq!(families(&text), families(&Endpoint::start(|_| {}).get("/metrics").1));
    assert!(!text.contains('\u{1b}') && !text.lines().any(|line| line.starts_with("evil")));
    assert!(text.lines().all(|line| line.len() < 1000));
}
