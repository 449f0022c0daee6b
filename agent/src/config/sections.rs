//! The section whose options belong to the sinks, until they are here.

use serde::{Deserialize, Serialize};

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
