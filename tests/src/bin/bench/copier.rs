//! What the container runtime does with a container's stdout, for tools that read the runtime's files: each line
//! with time, stream and a tag in front (the CRI log format), and one `write` for each, as containerd's shim has it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::Path,
};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// Copies stdin to its end.
pub(crate) fn run(file: &Path) -> Result<()> {
    let mut output =
        File::options().create(true).append(true).open(file).with_context(|| format!("opening {}", file.display()))?;
    let mut input = BufReader::with_capacity(64 << 10, io::stdin().lock());
    let mut line = Vec::new();
    loop {
        line.clear();
        write_prefix(&mut line)?;
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        output.write_all(&line)?;
    }
}

/// `2026-11-21T05:00:00.000000901Z stdout F `.
fn write_prefix(line: &mut Vec<u8>) -> io::Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let second = now.tv_sec.rem_euclid(86_400);
    let (year, month, day) = civil(now.tv_sec.div_euclid(86_400));
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    write!(line, "{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z stdout F ", now.tv_nsec)
}

/// The Gregorian date of a day since 1970-01-01, after 1970 (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_453), (2025, 12, 31));
    }
}
