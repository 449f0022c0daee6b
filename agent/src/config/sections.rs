//! The sections whose options belong to other stages, until those stages are here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;

/// How streams are cut into lines.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lines {
    /// A longer line is cut.
    #[serde(with = "units::byte_size")]
    pub max_line_bytes: u64,
    /// How long a last line without a newline is held back.
    #[serde(with = "units::duration")]
    pub idle_flush: Duration,
    /// Which lines are joined.
    pub multiline: Multiline,
    /// Whether bodies are parsed.
    pub parse: Parse,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            max_line_bytes: 1 << 20,
            idle_flush: Duration::from_secs(5),
            multiline: Multiline::default(),
            parse: Parse::default(),
        }
    }
}

/// Which lines are joined.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Multiline {
    /// Built-in rules.
    pub rules: Vec<String>,
}

/// Whether bodies are parsed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parse {
    /// What the bodies are.
    pub format: Option<String>,
}

/// Where identity comes from.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {}

/// Where records go.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Sink {
    /// To standard output.
    Console {
        /// The name in metrics and logs.
        #[serde(default)]
        name: Option<String>,
    },
}
