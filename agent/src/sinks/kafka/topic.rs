//! The name of a record's topic.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    record::Stream,
    sinks::template::{Part, Rules, STREAM_FIELDS, StreamField, label, labels},
};

/// A topic's name with placeholders: `{class}`, `{namespace}`, `{pod}`, `{container}`, `{node}`, `{workload}`, and
/// `{label:KEY}` for a label of the Pod.
///
/// What a Pod chose (its names) can't lead out of the template: a character that topics may not have becomes `_`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicTemplate {
    text: String,
    parts: Vec<Part<StreamField>>,
}

/// What is in a template, and what a topic may be.
const RULES: Rules<'_, StreamField> =
    Rules { what: "a topic", fields: &STREAM_FIELDS, is_allowed, allowed: "letters, digits, `.`, `_` and `-`" };

/// The most characters of a topic's name (`org.apache.kafka.common.internals.Topic`).
const MAX_LENGTH: usize = 249;

impl TopicTemplate {
    /// Labels of Pods that it is made of.
    pub(in crate::sinks) fn labels(&self) -> impl Iterator<Item = &str> {
        labels(&self.parts)
    }

    /// Whether it is made of what the API server tells of a Pod.
    pub(in crate::sinks) fn needs_metadata(&self) -> bool {
        self.labels().next().is_some() || self.parts.contains(&Part::Field(StreamField::Workload))
    }

    /// The topic for the records of `stream`: always a name that Kafka takes.
    pub(super) fn topic(&self, stream: &Stream) -> String {
        let mut topic = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => topic.push_str(text),
                Part::Field(field) => topic.extend(field.of(stream).chars().map(allowed)),
                Part::Label(key) => topic.extend(label(stream, key).chars().map(allowed)),
            }
        }
        topic.truncate(MAX_LENGTH);
        // These two are no names.
        if topic == "." || topic == ".." { topic.replace('.', "_") } else { topic }
    }
}

const fn allowed(char: char) -> char {
    if is_allowed(char) { char } else { '_' }
}

const fn is_allowed(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-')
}

impl FromStr for TopicTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = RULES.parse(text)?;
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
        let parts = vec![Part::Text("logs.".to_owned()), Part::Field(StreamField::Class)];
        Self { text: "logs.{class}".to_owned(), parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{Metadata, Resource},
        sinks::testing::pod_stream,
    };

    #[test]
    fn placeholders_are_filled_with_what_kafka_takes() {
        let template: TopicTemplate = "logs.{class}.{namespace}-{pod}.{node}".parse().expect("valid");
        assert_eq!(template.topic(&pod_stream("shop", "cart/../é", "app")), "logs.pod.shop-cart_..__.none");
        assert_eq!("logs.{class}".parse(), Ok(TopicTemplate::default()));
        let told: TopicTemplate = "{workload}.{label:app.kubernetes.io/name}.{label:tier}".parse().expect("valid");
        let stream = pod_stream("shop", "cart", "app");
        assert_eq!((told.topic(&stream).as_str(), told.needs_metadata()), ("none.none.none", true));
        let metadata = Metadata {
            workload: Some("cart/x".into()),
            attributes: vec![("k8s.pod.label.app.kubernetes.io/name".into(), "shop{é}".into())],
            pod: None,
        };
        let resource = Resource { metadata: Some(metadata.into()), ..Resource::clone(&stream.resource) };
        assert_eq!(told.topic(&stream.with_resource(resource.into())), "cart_x.shop___.none");
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
            ("{label:a b}", "`a b` is not the key of a label"),
        ] {
            let error = text.parse::<TopicTemplate>().expect_err(text);
            assert!(error.contains(problem), "{error}");
        }
    }
}
