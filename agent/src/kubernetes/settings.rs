//! The configuration of `kubernetes`.

use std::{fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::config::units;

/// What is asked of the API server, and what of its answers goes where.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether the API server is asked.
    pub enabled: Enabled,
    /// How it is reached; `None` when as a Pod reaches it.
    pub kubeconfig: Option<PathBuf>,
    /// Globs over the keys of labels of Pods that go into records.
    pub labels: Vec<String>,
    /// The same for annotations.
    pub annotations: Vec<String>,
    /// The same for labels of namespaces.
    pub namespace_labels: Vec<String>,
    /// Globs over the keys of labels of Pods that the metrics of their containers get.
    pub metric_labels: Vec<String>,
    /// How long the records of a new container wait for its Pod's labels where a rule needs them.
    #[serde(with = "units::duration")]
    pub wait: Duration,
}

/// Whether the API server is asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Enabled {
    /// If there is a kubeconfig, or the agent runs as a Pod.
    #[default]
    Auto,
    /// It has to be.
    Yes,
    /// It is not.
    No,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: Enabled::Auto,
            kubeconfig: None,
            labels: vec!["*".to_owned()],
            annotations: Vec::new(),
            namespace_labels: Vec::new(),
            metric_labels: Vec::new(),
            wait: Duration::from_secs(2),
        }
    }
}

impl Serialize for Enabled {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Yes => serializer.serialize_bool(true),
            Self::No => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for Enabled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Enabled;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`auto`, `true` or `false`")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Enabled, E> {
                Ok(if value { Enabled::Yes } else { Enabled::No })
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Enabled, E> {
                match value {
                    "auto" => Ok(Enabled::Auto),
                    "true" => Ok(Enabled::Yes),
                    "false" => Ok(Enabled::No),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
