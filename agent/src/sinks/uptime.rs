//! A clock for giving up: it runs only while a server answers.

use std::time::{Duration, Instant};

/// The time in which a server has answered: from one answer to the next, where nothing failed between them. So an outage
/// never uses up the patience with what the server turns away.
#[derive(Debug, Default)]
pub(super) struct Uptime {
    counted: Duration,
    last: Option<Instant>,
}

impl Uptime {
    /// The server has answered.
    pub(super) fn answered(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            self.counted += now.saturating_duration_since(last);
        }
    }

    /// The server has not answered, or had no time.
    pub(super) fn failed(&mut self) {
        self.last = None;
    }

    /// All of that time so far.
    pub(super) const fn reading(&self) -> Duration {
        self.counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_does_not_count() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut uptime = Uptime::default();
        uptime.answered(start);
        uptime.answered(start + second);
        uptime.answered(start + 3 * second);
        assert_eq!(uptime.reading(), 3 * second);
        uptime.failed();
        uptime.answered(start + 1000 * second);
        assert_eq!(uptime.reading(), 3 * second);
        uptime.answered(start + 1001 * second);
        assert_eq!(uptime.reading(), 4 * second);
    }
}
