//! `sidestep logs`

use std::{
    io,
    process::ExitCode,
    str::FromStr,
    time::{Duration, SystemTime},
};

use clap::{
    Args, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use regex::bytes::Regex;

use super::{ask_agent, socket::SocketArgs};
use crate::{
    control::{
        LogsOptions,
        client::{
            logs::{LogsOutput, logs},
            terminal::{Color, Screen},
        },
        filter::Filter,
    },
    record::Class,
};

/// Print the lines that pass through the running agent
///
/// Asks the agent over its socket. The conditions are taken together: a line is printed when all of them hold.
/// Names may be globs.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sidestep logs                                     the last lines that the agent still has
  sidestep logs -f --namespace shop --pod 'cart-*'  follow some Pods
  sidestep logs --class business --since 10m        log files of containers, the last ten minutes
  sidestep logs -f --grep '(?i)error|panic'         lines that match a regular expression
  sidestep logs --output json | jq .                whole records, in OpenTelemetry's names")]
pub struct LogsArgs {
    /// Go on with new lines until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Only from Pods of this name
    #[arg(short, long, value_name = "GLOB")]
    pub pod: Option<String>,
    /// Only from Pods in this namespace
    #[arg(short, long, value_name = "GLOB")]
    pub namespace: Option<String>,
    /// Only from containers of this name or id
    #[arg(short, long, value_name = "GLOB")]
    pub container: Option<String>,
    /// Only of this class: `pod` is stdout and stderr, `business` log files of containers, `server` those of the node
    #[arg(long, value_parser = class_parser())]
    pub class: Option<Class>,
    /// Only from this time on: how long ago (`10m`, `1h 30m`), or when (`2025-01-31T12:00:00Z`)
    #[arg(long, value_name = "TIME")]
    pub since: Option<Since>,
    /// Only lines in which this regular expression is found
    #[arg(short, long, value_name = "REGEX")]
    pub grep: Option<Regex>,
    /// How to print a line
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: LogsFormat,
    /// Where the agent answers.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// How lines are printed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum LogsFormat {
    /// Time, Pod and line, in colours on a terminal
    #[default]
    Text,
    /// A JSON object a line, with everything that is known
    Json,
    /// The bytes of the lines alone
    Raw,
}

/// A point in time, absolute or before now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Since {
    /// So long before the command is run.
    Ago(Duration),
    /// Then.
    At(SystemTime),
}

impl Since {
    /// The point in time, when it is `now`.
    #[must_use]
    pub fn resolve(self, now: SystemTime) -> SystemTime {
        match self {
            Self::Ago(duration) => {
                now.checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH).max(SystemTime::UNIX_EPOCH)
            }
            Self::At(time) => time,
        }
    }
}

/// What is no time.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("neither a duration with its unit, such as `10m`, nor a time, such as `2025-01-31T12:00:00Z`")]
pub struct SinceError;

impl FromStr for Since {
    type Err = SinceError;

    fn from_str(text: &str) -> Result<Self, SinceError> {
        let ago = humantime::parse_duration(text).map(Self::Ago);
        ago.or_else(|_| humantime::parse_rfc3339_weak(text).map(Self::At)).map_err(|_| SinceError)
    }
}

fn class_parser() -> impl TypedValueParser<Value = Class> {
    const CLASSES: [Class; 3] = [Class::Pod, Class::Business, Class::Server];
    PossibleValuesParser::new(CLASSES.map(Class::as_str)).map(|name| match name.as_str() {
        "pod" => Class::Pod,
        "business" => Class::Business,
        // The parser lets no other name through.
        _ => Class::Server,
    })
}

impl LogsArgs {
    /// Prints the lines; returns the exit code: 0, 2 for a bad filter or configuration, 3 when no agent runs, 4 without permission.
    #[must_use]
    pub fn execute(self) -> ExitCode {
        let options = LogsOptions {
            follow: self.follow,
            since: self.since.map(|since| since.resolve(SystemTime::now())),
            filter: Filter {
                pods: self.pod.into_iter().collect(),
                namespaces: self.namespace.into_iter().collect(),
                containers: self.container.into_iter().collect(),
                classes: self.class.into_iter().collect(),
                grep: self.grep.map(|grep| grep.as_str().to_owned()),
            },
            output: match self.output {
                LogsFormat::Text => LogsOutput::Pretty,
                LogsFormat::Json => LogsOutput::Json,
                LogsFormat::Raw => LogsOutput::Raw,
            },
        };
        let screen = Screen::stdout(Color::Auto);
        ask_agent(&self.socket, |socket| logs(socket, &options, screen, &mut io::stdout(), &mut io::stderr()))
    }
}
