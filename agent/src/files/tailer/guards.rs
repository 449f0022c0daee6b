//! What keeps records of files in the kernel's ring while they are nowhere else.
//!
//! Nearly all that the ring tells of files can be found again: bytes in the file, from the position that the checkpoint
//! has, and files by their announcement, which the next agent asks for. What can't are bytes of a file that is gone by
//! then. So a round is held until its events are processed, a little longer while files are not judged yet, and until
//! the sinks have them for lines of files that are deleted.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::sinks::Hold;

/// How long files that are not judged may hold the ring, which standard streams need too.
const LONGEST: Duration = Duration::from_millis(250);

/// The guards of rounds, oldest first.
#[derive(Default)]
pub(super) struct Guards(VecDeque<(Instant, Hold)>);

impl Guards {
    /// Takes those of a round whose events are processed now.
    pub(super) fn take(&mut self, holds: &[Hold], now: Instant) {
        self.0.extend(holds.iter().map(|hold| (now, Hold::clone(hold))));
    }

    /// The one that holds everything which came since: rounds are let go of in order.
    pub(super) fn oldest(&self) -> Option<&Hold> {
        self.0.front().map(|(_, hold)| hold)
    }

    /// Lets go of what is processed, or of what is too old while something `waits`.
    pub(super) fn let_go(&mut self, waits: bool, now: Instant) {
        self.0.retain(|(since, _)| waits && now.saturating_duration_since(*since) < LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_round_is_held_while_something_waits_and_not_for_long() {
        let hold: Hold = Arc::new(());
        let mut guards = Guards::default();
        let now = Instant::now();
        guards.take(std::slice::from_ref(&hold), now);
        guards.let_go(true, now);
        assert_eq!((Arc::strong_count(&hold), guards.oldest().is_some()), (2, true));
        guards.let_go(true, now + LONGEST);
        assert_eq!((Arc::strong_count(&hold), guards.oldest().is_some()), (1, false));
        guards.take(std::slice::from_ref(&hold), now);
        guards.let_go(false, now);
        assert_eq!(Arc::strong_count(&hold), 1);
    }
}
