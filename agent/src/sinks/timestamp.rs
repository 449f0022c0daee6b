//! UTC calendar time from nanoseconds since the Unix epoch, fast enough for two of them in each record.

/// Nanoseconds in a second.
pub(crate) const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A date and time of day in UTC, on the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Utc {
    /// 1970 to 2554, which is where 64 bits of nanoseconds end.
    pub(crate) year: u16,
    /// 1 to 12.
    pub(crate) month: u8,
    /// 1 to 31.
    pub(crate) day: u8,
    /// 0 to 23.
    pub(crate) hour: u8,
    /// 0 to 59.
    pub(crate) minute: u8,
    /// 0 to 59; Unix time has no leap seconds.
    pub(crate) second: u8,
}

impl Utc {
    /// The moment `unix_nano` nanoseconds after the Unix epoch.
    pub(crate) fn from_unix_nano(unix_nano: u64) -> Self {
        let seconds = unix_nano / NANOS_PER_SECOND;
        let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
        // Days are counted from 0000-03-01, so that the leap day is the last day of a year; a full cycle of the
        // calendar is 400 years or 146,097 days.
        let days = days + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        Self {
            year: year as u16,
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            hour: (second_of_day / 3_600) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            second: (second_of_day % 60) as u8,
        }
    }
}

/// Writes RFC 3339 time stamps with nanoseconds, and keeps the text of the last second: neighbouring records share
/// it nearly always.
#[derive(Debug)]
pub(crate) struct Rfc3339 {
    second: u64,
    /// `2026-11-21T05:00:00.`
    text: [u8; 20],
}

impl Default for Rfc3339 {
    fn default() -> Self {
        Self { second: 0, text: *b"1970-01-01T00:00:00." }
    }
}

impl Rfc3339 {
    /// Appends `unix_nano` as, for example, `2026-11-21T05:00:00.000000001Z`.
    pub(crate) fn append(&mut self, unix_nano: u64, out: &mut Vec<u8>) {
        let (second, nano) = (unix_nano / NANOS_PER_SECOND, unix_nano % NANOS_PER_SECOND);
        if second != self.second {
            self.text = render_second(unix_nano);
            self.second = second;
        }
        let mut text = [b'Z'; 30];
        text[..20].copy_from_slice(&self.text);
        let mut rest = nano as u32;
        for digit in text[20..29].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&text);
    }
}

fn render_second(unix_nano: u64) -> [u8; 20] {
    let utc = Utc::from_unix_nano(unix_nano);
    let mut text = *b"0000-00-00T00:00:00.";
    let two = |value: u8| [b'0' + value / 10 % 10, b'0' + value % 10];
    text[0..2].copy_from_slice(&two((utc.year / 100) as u8));
    text[2..4].copy_from_slice(&two((utc.year % 100) as u8));
    text[5..7].copy_from_slice(&two(utc.month));
    text[8..10].copy_from_slice(&two(utc.day));
    text[11..13].copy_from_slice(&two(utc.hour));
    text[14..16].copy_from_slice(&two(utc.minute));
    text[17..19].copy_from_slice(&two(utc.second));
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn knows_leap_years_and_the_ends_of_the_range() {
        let text = |unix_nano| {
            let mut out = Vec::new();
            Rfc3339::default().append(unix_nano, &mut out);
            String::from_utf8(out).expect("ASCII")
        };
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_399 * NANOS_PER_SECOND + 999_999_999), "2000-02-28T23:59:59.999999999Z");
        assert_eq!(text(951_782_400 * NANOS_PER_SECOND + 7), "2000-02-29T00:00:00.000000007Z");
        assert_eq!(text(u64::MAX), "2554-07-21T23:34:33.709551615Z");
    }

    proptest! {
        #[test]
        fn agrees_with_another_implementation(times in prop::collection::vec(any::<u64>(), 1..5)) {
            let mut clock = Rfc3339::default();
            for unix_nano in times {
                let mut out = Vec::new();
                clock.append(unix_nano, &mut out);
                let expected = humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(unix_nano));
                prop_assert_eq!(String::from_utf8(out).expect("ASCII"), expected.to_string());
            }
        }
    }
}
