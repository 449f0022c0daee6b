//! The value of `--since`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Neither a duration nor a time.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is neither a duration (90s, 5m, 1h 30m) nor an RFC 3339 time (2026-01-31T08:00:00Z)")]
pub struct SinceError(String);

/// Reads a duration before `now`, or an RFC 3339 time.
///
/// # Errors
/// It is neither.
pub fn parse(text: &str, now: SystemTime) -> Result<SystemTime, SinceError> {
    if let Ok(duration) = humantime::parse_duration(text) {
        return Ok(now.checked_sub(duration).unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH));
    }
    let time: jiff::Timestamp = text.parse().map_err(|_| SinceError(text.to_owned()))?;
    Ok(UNIX_EPOCH + Duration::try_from(time.duration_since(jiff::Timestamp::UNIX_EPOCH)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_durations_and_times() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let seconds =
            |text| parse(text, now).expect(text).duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        assert!((seconds("90s") - 999_999_910.0).abs() < 1e-6);
        assert!((seconds("1h 30m") - 999_994_600.0).abs() < 1e-6);
        assert!(seconds("900years").abs() < 1e-6);
        assert!((seconds("2001-09-09T01:46:40.5Z") - 1_000_000_000.5).abs() < 1e-6);
        assert!((seconds("2001-09-09T03:46:40+02:00") - 1_000_000_000.0).abs() < 1e-6);
        assert!(seconds("1950-01-01T00:00:00Z").abs() < 1e-6);
    }

    #[test]
    fn refuses_everything_else() {
        for text in ["", "yesterday", "5", "-5m", "2001-09-09", "2001-13-09T00:00:00Z"] {
            let error = parse(text, UNIX_EPOCH).expect_err(text);
            assert!(error.to_string().contains("RFC 3339"), "{error}");
        }
    }
}
