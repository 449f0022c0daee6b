//! Severity from the words and numbers that loggers use, in the ranges of the OpenTelemetry log data model.

use serde_json::Value;

use crate::record::Severity;

/// The severity that a value names.
pub(super) fn of(value: &Value) -> Option<Severity> {
    match value {
        Value::String(text) => of_text(text),
        Value::Number(number) => of_number(number.as_u64()?),
        _ => None,
    }
}

fn of_text(text: &str) -> Option<Severity> {
    let text = text.trim();
    if let Ok(number) = text.parse() {
        return of_number(number);
    }
    // The longest word below has 13 letters; whatever is longer is prose.
    let mut lower = [0; 13];
    let lower = lower.get_mut(..text.len())?;
    lower.copy_from_slice(text.as_bytes());
    lower.make_ascii_lowercase();
    let severity = match &*lower {
        b"trace" | b"trce" | b"trc" | b"t" | b"verbose" | b"vrb" | b"v" | b"silly" | b"finest" | b"finer" => {
            Severity::Trace
        }
        b"debug" | b"dbug" | b"dbg" | b"d" | b"fine" => Severity::Debug,
        b"info" | b"inf" | b"information" | b"informational" | b"i" | b"notice" | b"config" | b"http" | b"log" => {
            Severity::Info
        }
        b"warn" | b"warning" | b"wrn" | b"w" => Severity::Warn,
        b"error" | b"err" | b"eror" | b"e" | b"fail" | b"severe" => Severity::Error,
        // Syslog has three words for what every other logger calls fatal.
        b"fatal" | b"ftl" | b"f" | b"critical" | b"crit" | b"c" | b"alert" | b"emerg" | b"emergency" | b"panic"
        | b"dpanic" => Severity::Fatal,
        _ => return None,
    };
    Some(severity)
}

/// 0 to 7 as in syslog (RFC 5424), 10 to 60 and between as in pino and bunyan; Python's `levelno` is left out, since
/// its 10 to 50 mean something else.
fn of_number(number: u64) -> Option<Severity> {
    let severity = match number {
        0..=2 => Severity::Fatal,
        3 => Severity::Error,
        4 => Severity::Warn,
        5 | 6 => Severity::Info,
        7 => Severity::Debug,
        10..=19 => Severity::Trace,
        20..=29 => Severity::Debug,
        30..=39 => Severity::Info,
        40..=49 => Severity::Warn,
        50..=59 => Severity::Error,
        60..=69 => Severity::Fatal,
        _ => return None,
    };
    Some(severity)
}
