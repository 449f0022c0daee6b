//! The time that a line says it is from.

use serde_json::Value;

/// Nanoseconds since the Unix epoch from RFC 3339 (a space or `T` between date and time), or from a number since the
/// epoch, given as a number or as text. A time without an offset is not one: nobody knows the writer's time zone.
pub(super) fn of(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => of_text(text.trim()),
        Value::Number(number) => match number.as_u64() {
            Some(whole) => of_epoch(whole, ""),
            // The shortest text of a float has the digits that were written.
            None => of_text(&number.to_string()),
        },
        _ => None,
    }
}

fn of_text(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if let Ok(whole) = whole.parse() {
        return of_epoch(whole, fraction);
    }
    let timestamp = text.parse::<jiff::Timestamp>().ok()?;
    u64::try_from(timestamp.as_nanosecond()).ok()
}

/// `whole.fraction` units since the epoch. The unit follows from the magnitude: as seconds, 100 billion is in the year
/// 5138, as milliseconds in 1973, so each unit covers the years 1973 to 5138 and none overlaps.
fn of_epoch(whole: u64, fraction: &str) -> Option<u64> {
    let digits: u32 = match whole {
        // The first of 1970: a counter or an uptime, more likely than a time.
        0..100_000_000 => return None,
        100_000_000..100_000_000_000 => 9,
        100_000_000_000..100_000_000_000_000 => 6,
        100_000_000_000_000..100_000_000_000_000_000 => 3,
        _ => 0,
    };
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut nanos = whole.checked_mul(10_u64.pow(digits))?;
    for (place, digit) in (0..digits).rev().zip(fraction.bytes()) {
        nanos = nanos.checked_add(u64::from(digit - b'0') * 10_u64.pow(place))?;
    }
    Some(nanos)
}
