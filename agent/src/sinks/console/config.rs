//! Settings of the console sink.

use serde::{Deserialize, Serialize};

use crate::{
    process::Selector,
    record::Class,
    sinks::config::{Common, QueueSettings, all_classes},
};

/// Settings of the console sink.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The name in metrics and logs; default `console`.
    pub name: String,
    /// The classes of records to write; default all.
    pub classes: Vec<Class>,
    /// Which lines of these classes; default all.
    pub filter: Selector,
    /// The queue in front of the sink.
    pub queue: QueueSettings,
    /// What a line looks like; default `text`.
    pub format: Format,
    /// Whether the fields of the `text` format have colours; default `auto`.
    pub color: Color,
    /// Whether bodies are written as they are in the `text` format, control characters included; default no. A Pod
    /// can then drive the terminal: only for output that no terminal shows.
    pub raw: bool,
}

/// What a line of output looks like.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// For people: time, namespace/Pod/container, stream, body.
    #[default]
    Text,
    /// A record in JSON.
    Json,
}

/// When there are colours.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Color {
    /// On a terminal, unless the environment variable `NO_COLOR` is set and not empty.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "console".to_owned(),
            classes: all_classes(),
            filter: Selector::default(),
            queue: QueueSettings::default(),
            format: Format::default(),
            color: Color::default(),
            raw: false,
        }
    }
}

impl Settings {
    /// What it has as every sink.
    pub(in crate::sinks) const fn common(&self) -> Common<'_> {
        Common { name: &self.name, classes: &self.classes, filter: &self.filter, queue: &self.queue, buffer: None }
    }
}
