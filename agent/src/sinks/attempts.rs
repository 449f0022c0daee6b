//! How attempts to get through went, why nothing does, and when the next one is due; for sinks that send by HTTP.

use std::time::{Duration, Instant};

/// First and longest pause after an attempt that went wrong.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A server that wants to be left alone for longer is asked again after this.
const LONGEST_WISH: Duration = Duration::from_secs(300);
/// How often it is looked whether an answer has come, while all goes well and while something is wrong.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// The attempts of one sink.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    pause: Pause,
    /// Why nothing gets through.
    failing: Option<String>,
    /// What was given up last and why, until it is told.
    given_up: Option<String>,
    /// When the sink is to be called again.
    next_call: Option<Instant>,
}

impl Attempts {
    /// One went wrong: there is a pause, as long as the server wishes where it says so.
    pub(super) fn fail(&mut self, why: String, wish: Option<Duration>, now: Instant) {
        self.pause.begin(now, wish);
        self.failing = Some(why);
    }

    /// One went wrong, and another server is to be asked at once.
    pub(super) fn fail_over(&mut self, why: String) {
        self.failing = Some(why);
    }

    /// One went well.
    pub(super) fn succeed(&mut self) {
        self.pause.end();
        self.failing = None;
    }

    /// Something is given up for good, which is told once.
    pub(super) fn give_up(&mut self, why: String) {
        self.given_up = Some(why);
    }

    /// The end is near: it is tried once more at once, unless the server wants to be left alone.
    pub(super) fn hurry(&mut self) {
        self.pause.hurry();
    }

    /// Nothing is to be sent before this.
    pub(super) fn pause(&self, now: Instant) -> Option<Instant> {
        self.pause.until(now)
    }

    /// Whether one more may begin while so many requests are under way: while nothing gets through, one at a time finds out
    /// whether something does.
    pub(super) fn may_send(&self, under_way: usize, now: Instant) -> bool {
        self.pause.until(now).is_none() && !(self.pause.is_trying() && under_way > 0)
    }

    /// Whether nothing gets through.
    pub(super) const fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// What there is to tell: first what was given up, once.
    pub(super) fn tell(&mut self) -> Option<String> {
        self.given_up.take().or_else(|| self.failing.clone())
    }

    /// Decides when the sink is to be called again: to look for answers while requests are `under_way`, to send what waits
    /// for the end of the pause, or for a reason of its own (`others`).
    pub(super) fn plan(&mut self, under_way: usize, waits: bool, others: [Option<Instant>; 2], now: Instant) {
        let look = now + if self.failing.is_some() { LOOK.1 } else { LOOK.0 };
        let answer = (under_way > 0).then_some(look);
        let attempt = waits.then(|| self.pause.until(now).unwrap_or(look));
        self.next_call = [answer, attempt].into_iter().chain(others).flatten().min();
    }

    /// When the sink is to be called again.
    pub(super) const fn next_call(&self) -> Option<Instant> {
        self.next_call
    }
}

/// The pause after attempts that went wrong: longer each time, and as long as the server wants where it says so.
#[derive(Debug, Default)]
pub(super) struct Pause {
    last: Option<Duration>,
    until: Option<Instant>,
    /// The server wants it so.
    is_wished: bool,
}

impl Pause {
    /// An attempt went wrong. Several that were under way at once count as one.
    pub(super) fn begin(&mut self, now: Instant, wish: Option<Duration>) {
        if self.until.is_none_or(|until| until <= now) {
            let length = self.last.map_or(PAUSE.0, |last| (last * 2).min(PAUSE.1));
            self.last = Some(length);
            self.until = Some(now + length);
            self.is_wished = false;
        }
        if let Some(wish) = wish {
            self.is_wished = true;
            let wish = now + wish.min(LONGEST_WISH);
            self.until = Some(self.until.map_or(wish, |until| until.max(wish)));
        }
    }

    /// An attempt went well.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// The end is near: it is tried once more at once, unless the server wants to be left alone.
    pub(super) fn hurry(&mut self) {
        if !self.is_wished {
            self.until = None;
        }
    }

    /// Nothing is to be sent before this.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// Whether nothing has gone well since something went wrong: one attempt at a time is enough then.
    pub(super) const fn is_trying(&self) -> bool {
        self.last.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_follow_the_servers_wish() {
        let start = Instant::now();
        let mut pause = Pause::default();
        assert!(!pause.is_trying() && pause.until(start).is_none());
        pause.begin(start, None);
        pause.begin(start, None);
        assert_eq!(pause.until(start), Some(start + PAUSE.0), "both were under way at once");
        let mut now = start;
        for _ in 0..20 {
            now = pause.until(now).expect("a pause");
            assert!(pause.until(now).is_none() && pause.is_trying());
            pause.begin(now, None);
        }
        assert_eq!(pause.until(now), Some(now + PAUSE.1));
        pause.end();
        pause.begin(now, Some(Duration::from_secs(7)));
        assert_eq!(pause.until(now), Some(now + Duration::from_secs(7)));
        pause.begin(now, Some(Duration::MAX));
        pause.hurry();
        assert_eq!(pause.until(now), Some(now + LONGEST_WISH));
        pause.end();
        pause.begin(now, None);
        pause.hurry();
        assert!(pause.until(now).is_none() && pause.is_trying());
    }

    #[test]
    fn the_next_call_is_for_what_comes_first() {
        let (now, mut attempts) = (Instant::now(), Attempts::default());
        attempts.plan(0, false, [None; 2], now);
        assert_eq!(attempts.next_call(), None, "nothing to do");
        attempts.plan(1, false, [Some(now + LOOK.1), None], now);
        assert_eq!(attempts.next_call(), Some(now + LOOK.0), "an answer");
        attempts.fail("no".to_owned(), Some(Duration::from_secs(7)), now);
        attempts.plan(0, true, [None; 2], now);
        assert_eq!((attempts.next_call(), attempts.may_send(0, now)), (Some(now + Duration::from_secs(7)), false));
        attempts.succeed();
        assert!(attempts.may_send(1, now) && attempts.tell().is_none());
    }
}
