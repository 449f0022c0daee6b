//! When the bytes were written that are read from the file: their records came, only their bytes were not taken.

use std::collections::VecDeque;

/// Records of which the time is kept until their bytes are read.
const MAX_RECORDS: usize = 4096;

/// Ends of records in the file, rising, and when each was written.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(VecDeque<(u64, u64)>);

impl Times {
    /// Notes a record whose bytes are to be read. Where there are too many, bytes get the time of a later one.
    pub(super) fn note(&mut self, end: u64, time_unix_nano: u64) {
        let full = self.0.len() >= MAX_RECORDS;
        match self.0.back_mut() {
            // Its place is behind that of a later one, or was too high.
            Some((last, _)) if *last >= end => {}
            Some(last) if full => *last = (end, time_unix_nano),
            _ => self.0.push_back((end, time_unix_nano)),
        }
    }

    /// Up to where the byte at `from` and those behind it were written at one time, and when; `None` when no record
    /// tells.
    pub(super) fn at(&mut self, from: u64) -> Option<(u64, u64)> {
        while self.0.front().is_some_and(|(end, _)| *end <= from) {
            self.0.pop_front();
        }
        self.0.front().copied()
    }

    /// The file begins anew.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_the_time_of_its_record() {
        let mut times = Times::default();
        times.note(10, 1);
        times.note(20, 2);
        // Came late.
        times.note(15, 3);
        assert_eq!(times.at(0), Some((10, 1)));
        assert_eq!(times.at(9), Some((10, 1)));
        assert_eq!(times.at(10), Some((20, 2)));
        assert_eq!(times.at(20), None);
    }

    #[test]
    fn it_is_bounded_and_the_last_is_kept() {
        let mut times = Times::default();
        for end in 1..=2 * MAX_RECORDS as u64 {
            times.note(end, end);
        }
        assert_eq!(times.0.len(), MAX_RECORDS);
        assert_eq!(times.at(MAX_RECORDS as u64), Some((2 * MAX_RECORDS as u64, 2 * MAX_RECORDS as u64)));
    }
}
