//! The way back: what a reader of records needs to get a line's exact bytes.

use serde_json::Value;

use super::BODY_BASE64;

/// The exact bytes of the line that `record` was made from, or `None` when it is not a record.
#[must_use]
pub fn exact_body(record: &Value) -> Option<Vec<u8>> {
    let text = record.get("body")?.as_str()?;
    match record.get("attributes")?.get(BODY_BASE64) {
        Some(encoded) => data_encoding::BASE64.decode(encoded.as_str()?.as_bytes()).ok(),
        None => Some(text.as_bytes().to_vec()),
    }
}
