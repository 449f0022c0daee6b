//! Requests that are under way at once, and what each of them carries; for sinks that send by HTTP.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Instant,
};

use super::http_client::{Answer, Failure, HttpClient, Request};

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
