//! The name of a record's topic.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::record::Stream;

/// A topic's name with placeholders: `{class}`, `{namespace}`, `{pod}`, `{container}`, `{node}`.
///
/// What a Pod chose (its names) can't lead out of the template: a character that topics may not have becomes `_`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicTemplate {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Part {
    Text(String),
    Field(Field),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Field {
    Class,
    Namespace,
    Pod,
    Container,
    Node,
}

const FIELDS: [(&str, Field); 5] = [
    ("class", Field::Class),
    ("namespace", Field::Namespace),
    ("pod", Field::Pod),
    ("container", Field::Container),
    ("node", Field::Node),
];

/// The most characters of a topic's name (`org.apache.kafka.common.internals.Topic`).
const MAX_LENGTH: usize = 249;

/// Stands for what is not known, such as the namespace of the node's own files.
const UNKNOWN: &str = "none";

impl Field {
    fn of(self, stream: &Stream) -> &str {
        let resource = &stream.resource;
        let value = match self {
            Self::Class => return stream.class.as_str(),
            Self::Namespace => &resource.namespace,
            Self::Pod => &resource.pod,
            Self::Container => &resource.container_name,
            Self::Node => &resource.host_name,
        };
        value.as_deref().filter(|value| !value.is_empty()).unwrap_or(UNKNOWN)
    }
}

impl TopicTemplate {
    /// The topic for the records of `stream`: always a name that Kafka takes.
    pub(super) fn topic(&self, stream: &Stream) -> String {
        let mut topic = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => topic.push_str(text),
                Part::Field(field) => {
                    topic.extend(field.of(stream).chars().map(|char| if is_allowed(char) { char } else { '_' }));
                }
            }
        }
        topic.truncate(MAX_LENGTH);
        // These two are no names.
        if topic == "." || topic == ".." { topic.replace('.', "_") } else { topic }
    }
}

const fn is_allowed(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-')
}

impl FromStr for TopicTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (before, after) = rest.split_once('{').map_or((rest, None), |(before, after)| (before, Some(after)));
            if let Some(char) = before.chars().find(|char| !is_allowed(*char)) {
                return Err(format!(
                    "a topic may not have the character {char:?}, only letters, digits, `.`, `_` and `-`"
                ));
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let Some(after) = after else { break };
            let (name, after) = after.split_once('}').ok_or("a `{` without its `}`")?;
            let Some((_, field)) = FIELDS.iter().find(|(known, _)| *known == name) else {
                let known: Vec<_> = FIELDS.iter().map(|(name, _)| format!("`{{{name}}}`")).collect();
                return Err(format!("`{{{name}}}` is not known; there are {}", known.join(", ")));
            };
            parts.push(Part::Field(*field));
            rest = after;
        }
        if parts.is_empty() {
            return Err("a topic needs a name".to_owned());
        }
        Ok(Self { text: text.to_owned(), parts })
    }
}

impl TryFrom<String> for TopicTemplate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TopicTemplate> for String {
    fn from(template: TopicTemplate) -> Self {
        template.text
    }
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Default for TopicTemplate {
    fn default() -> Self {
        let parts = vec![Part::Text("logs.".to_owned()), Part::Field(Field::Class)];
        Self { text: "logs.{class}".to_owned(), parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::testing::pod_stream;

    #[test]
    fn placeholders_are_filled_with_what_kafka_takes() {
        let template: TopicTemplate = "logs.{class}.{namespace}-{pod}.{node}".parse().expect("valid");
        assert_eq!(template.topic(&pod_stream("shop", "cart/../é", "app")), "logs.pod.shop-cart_..__.none");
        assert_eq!("logs.{class}".parse(), Ok(TopicTemplate::default()));
        let dots: TopicTemplate = "{pod}".parse().expect("valid");
        assert_eq!(dots.topic(&pod_stream("shop", "..", "app")), "__");
        assert_eq!(dots.topic(&pod_stream("shop", &"x".repeat(300), "app")).len(), MAX_LENGTH);
    }

    #[test]
    fn what_is_no_template_is_told() {
        for (text, problem) in [
            ("logs {class}", "may not have the character ' '"),
            ("logs.{klass}", "`{klass}` is not known; there are `{class}`"),
            ("logs.{class", "without its `}`"),
            ("", "needs a name"),
        ] {
            let error = text.parse::<TopicTemplate>().expect_err(text);
            assert!(error.contains(problem), "{error}");
        }
    }
}
