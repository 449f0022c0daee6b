//! Requests that are under way at once, what each of them carries, and pauses after one that went wrong; for sinks that
//! send by HTTP.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::http_client::{Answer, Failure, HttpClient, Request};

/// First and longest pause after an attempt that went wrong.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A server that wants to be left alone for longer is asked again after this.
const LONGEST_WISH: Duration = Duration::from_secs(300);

/// How a request went.
pub(super) type Landing = Result<Answer, Failure>;

/// Requests under way. What they carry stays here, so that nothing is lost with a request that is given up.
pub(super) struct Flights<Load> {
    client: HttpClient,
    /// The most that are under way at once.
    most: usize,
    /// In the order in which they began.
    loads: BTreeMap<u64, Load>,
    next: u64,
    landed: Arc<Landed>,
}

/// What the client's thread tells the sink's.
#[derive(Default)]
struct Landed {
    results: Mutex<Vec<(u64, Landing)>>,
    arrived: Condvar,
}

impl<Load> fmt::Debug for Flights<Load> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("under_way", &self.loads.len()).finish_non_exhaustive()
    }
}

impl<Load> Flights<Load> {
    /// None yet, and never more than `most` at once.
    pub(super) fn new(client: HttpClient, most: usize) -> Self {
        Self { client, most, loads: BTreeMap::new(), next: 0, landed: Arc::default() }
    }

    /// How many are under way.
    pub(super) fn len(&self) -> usize {
        self.loads.len()
    }

    /// Whether one more may begin.
    pub(super) fn has_room(&self) -> bool {
        self.loads.len() < self.most
    }

    /// Begins one.
    pub(super) fn start(&mut self, request: Request, load: Load) {
        let number = self.next;
        self.next += 1;
        self.loads.insert(number, load);
        let landed = Arc::clone(&self.landed);
        self.client.start(request, move |result| {
            landed.results.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
            landed.arrived.notify_one();
        });
    }

    /// Takes out those that have landed, in the order in which they began.
    pub(super) fn land(&mut self) -> Vec<(Load, Landing)> {
        let mut results = std::mem::take(&mut *self.landed.results.lock().unwrap_or_else(PoisonError::into_inner));
        results.sort_by_key(|(number, _)| *number);
        let with_load = |(number, result)| self.loads.remove(&number).map(|load| (load, result));
        results.into_iter().filter_map(with_load).collect()
    }

    /// Waits until one has landed; not when none is under way, and not after `until`.
    pub(super) fn wait(&self, until: Instant) {
        if self.loads.is_empty() {
            return;
        }
        let results = self.landed.results.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.saturating_duration_since(Instant::now());
        drop(self.landed.arrived.wait_timeout_while(results, left, |results| results.is_empty()));
    }

    /// Gives up all that are under way, and gives back what they carry. What a server has of them it may keep.
    pub(super) fn cancel(&mut self) -> Vec<Load> {
        std::mem::take(&mut self.loads).into_values().collect()
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
}
