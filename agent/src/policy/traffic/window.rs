//! From when until when a policy says something of traffic: by the wall clock, which is given.

use jiff::Timestamp;

/// A time with a beginning and an end, as far as it has them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Window {
    /// The first moment that is in it.
    pub not_before: Option<Timestamp>,
    /// The first moment that is not in it any more.
    pub not_after: Option<Timestamp>,
}

/// Where a moment is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Before the beginning.
    Ahead,
    /// In it.
    Open,
    /// Behind the end.
    Over,
}

impl Window {
    /// Whether it has neither beginning nor end.
    #[must_use]
    pub fn is_always(&self) -> bool {
        *self == Self::default()
    }

    /// Where `now` is.
    #[must_use]
    pub fn phase(&self, now: Timestamp) -> Phase {
        match (self.not_before, self.not_after) {
            (_, Some(end)) if now >= end => Phase::Over,
            (Some(begin), _) if now < begin => Phase::Ahead,
            _ => Phase::Open,
        }
    }

    /// Whether `now` is in it.
    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.phase(now) == Phase::Open
    }

    /// When the phase is another one, if it ever is.
    #[must_use]
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        [self.not_before, self.not_after].into_iter().flatten().filter(|date| *date > now).min()
    }

    /// What is to be known of it; `None` when it has neither beginning nor end.
    #[must_use]
    pub fn in_words(&self, now: Timestamp) -> Option<String> {
        let until = self.not_after.map(|end| format!("until {end}"));
        let from = match (self.phase(now), self.not_before, self.not_after) {
            (Phase::Over, _, Some(end)) => return Some(format!("ended at {end}")),
            (Phase::Ahead, Some(begin), _) => Some(format!("begins at {begin}")),
            (_, begin, _) => begin.map(|begin| format!("holds from {begin}")),
        };
        match (from, until) {
            (None, until) => until.map(|until| format!("holds {until}")),
            (Some(from), None) => Some(from),
            (Some(from), Some(until)) => Some(format!("{from}, {until}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn the_beginning_is_in_it_and_the_end_is_not() {
        let (begin, end) = (at("2026-03-01T00:00:00Z"), at("2026-04-01T00:00:00+02:00"));
        let both = Window { not_before: Some(begin), not_after: Some(end) };
        let words = |window: Window, now: &str| window.in_words(at(now)).unwrap_or_default();
        for (now, phase, next, told) in [
            (
                "2026-02-28T23:59:59.999Z",
                Phase::Ahead,
                Some(begin),
                "begins at 2026-03-01T00:00:00Z, until 2026-03-31T22:00:00Z",
            ),
            (
                "2026-03-01T00:00:00Z",
                Phase::Open,
                Some(end),
                "holds from 2026-03-01T00:00:00Z, until 2026-03-31T22:00:00Z",
            ),
            (
                "2026-03-31T21:59:59.999Z",
                Phase::Open,
                Some(end),
                "holds from 2026-03-01T00:00:00Z, until 2026-03-31T22:00:00Z",
            ),
            ("2026-03-31T22:00:00Z", Phase::Over, None, "ended at 2026-03-31T22:00:00Z"),
        ] {
            assert_eq!((both.phase(at(now)), both.next_change(at(now))), (phase, next), "{now}");
            assert_eq!(words(both, now), told);
        }
        let now = "2026-03-15T00:00:00Z";
        assert_eq!(words(Window { not_before: None, ..both }, now), "holds until 2026-03-31T22:00:00Z");
        assert_eq!(words(Window { not_after: None, ..both }, now), "holds from 2026-03-01T00:00:00Z");
        assert!(Window::default().is_always() && Window::default().in_words(at(now)).is_none());
        assert!(Window::default().is_open(at(now)) && Window::default().next_change(at(now)).is_none());
    }
}
