//! Takes attributes, severity and time out of structured bodies. The body stays as it was written, and one that is
//! not well formed, or over the limits, is text.

mod json;
mod logfmt;
mod severity;
mod time;

use serde_json::Value;

use super::settings::{Format, Parse};
use crate::record::{Attributes, Line, LineFlags};

/// Objects and arrays nested deeper than this are not parsed.
const MAX_DEPTH: usize = 16;

/// A body with more keys and array elements than this, over all depths, is not parsed.
const MAX_VALUES: usize = 512;

/// Parses the bodies of a stream.
#[derive(Debug)]
pub(super) struct Parser {
    format: Format,
    severity_keys: Vec<String>,
    time_keys: Vec<String>,
}

impl Parser {
    /// `None` when nothing is to be parsed.
    pub(super) fn new(settings: &Parse) -> Option<Self> {
        (settings.format != Format::None).then(|| Self {
            format: settings.format,
            severity_keys: settings.severity_keys.clone(),
            time_keys: settings.time_keys.clone(),
        })
    }

    /// Adds to `line` what its body says.
    pub(super) fn parse(&self, body: &[u8], line: &mut Line) {
        // A piece of a line is not what its writer meant.
        if line.flags.contains(LineFlags::CUT) || line.flags.contains(LineFlags::CONTINUATION) {
            return;
        }
        // A JSON object without its beginning is none, but pairs without the first ones would pass.
        let logfmt =
            |strict| if line.flags.contains(LineFlags::AFTER_GAP) { None } else { logfmt::parse(body, strict) };
        let attributes = match self.format {
            Format::None => None,
            Format::Json => json::parse(body),
            Format::Logfmt => logfmt(logfmt::Words::True),
            Format::Auto if body.first() == Some(&b'{') => json::parse(body),
            Format::Auto => logfmt(logfmt::Words::Refuse),
        };
        let Some(attributes) = attributes else { return };
        let severity = |key: &String| severity::of(look_up(&attributes, key)?);
        line.severity = self.severity_keys.iter().find_map(severity);
        let time = |key: &String| time::of(look_up(&attributes, key)?);
        if let Some(time) = self.time_keys.iter().find_map(time) {
            line.time_unix_nano = time;
        }
        line.attributes = Some(Box::new(attributes));
    }
}

/// The value of a key as it stands, or of its parts in nested objects.
fn look_up<'a>(attributes: &'a Attributes, key: &str) -> Option<&'a Value> {
    if let Some(value) = attributes.get(key) {
        return Some(value);
    }
    let (first, rest) = key.split_once('.')?;
    look_up(attributes.get(first)?.as_object()?, rest)
}
