//! What the kernel has counted of a file's writes, against what is booked of it: when nobody can read the file any more,
//! the difference is lost.

/// The two sums over all incarnations of a file that this agent has seen.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The announcement whose count still runs.
    announced: Option<u64>,
    /// Of announcements before.
    written: u64,
    /// What the ledger knows.
    booked: u64,
    /// The end came while others write: what they have written since it was looked at would pass for lost.
    void: bool,
}

impl Tally {
    /// Notes bytes that the ledger knows, whatever became of them. Those that were there before the count began are
    /// among them, so the difference may be too small, and never too large.
    pub(super) fn book(&mut self, bytes: u64) {
        self.booked = self.booked.saturating_add(bytes);
    }

    /// The file goes on under a new announcement. Gives the one before, whose count is final: it is to be
    /// [added](Tally::add).
    #[must_use]
    pub(super) fn announce(&mut self, announced: u64) -> Option<u64> {
        self.announced.replace(announced).filter(|before| *before != announced)
    }

    /// Adds a final count.
    pub(super) fn add(&mut self, written: u64) {
        self.written = self.written.saturating_add(written);
    }

    /// Nothing is known to be lost at the end.
    pub(super) fn void(&mut self) {
        self.void = true;
    }

    /// The announcement whose count still runs.
    #[must_use]
    pub(super) const fn announced(&self) -> Option<u64> {
        self.announced
    }

    /// What was written and is in no account, when the running count is final as well. It counts as booked then.
    #[must_use]
    pub(super) fn settle(&mut self, last: u64) -> u64 {
        self.add(last);
        self.announced = None;
        let missing = if self.void { 0 } else { self.written.saturating_sub(self.booked) };
        self.book(missing);
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_and_not_booked_is_missing_once() {
        let mut tally = Tally::default();
        assert_eq!(tally.announce(1), None);
        tally.book(256);
        assert_eq!(tally.settle(1000), 744);
        assert_eq!(tally.settle(0), 0);
    }

    #[test]
    fn counts_of_all_announcements_are_one_sum() {
        let mut tally = Tally::default();
        assert_eq!(tally.announce(1), None);
        assert_eq!(tally.announce(1), None, "the same one again");
        assert_eq!(tally.announce(2), Some(1));
        tally.add(300);
        tally.book(100);
        assert_eq!(tally.announced(), Some(2));
        assert_eq!(tally.settle(50), 250);
    }

    #[test]
    fn bytes_that_no_call_shows_never_become_a_loss() {
        // Mapped memory, or what the file held before: more is booked than was counted.
        let mut tally = Tally::default();
        tally.book(5000);
        assert_eq!(tally.settle(1000), 0);
    }

    #[test]
    fn an_end_under_way_shows_no_loss() {
        let mut tally = Tally::default();
        tally.void();
        assert_eq!(tally.settle(1000), 0);
    }
}
