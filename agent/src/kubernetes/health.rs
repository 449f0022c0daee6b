//! How fresh what is known is, and what it costs the API server.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use super::peer_pods::PEERS;
use crate::events::Event;

/// A watch that fails is logged, and counted, at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Shared by all that speaks with the API server.
#[derive(Debug, Default)]
pub struct Health {
    watches: Mutex<BTreeMap<&'static str, Watch>>,
    requests: Mutex<BTreeMap<Request, u64>>,
    /// Until when the API server wants no request, by its `Retry-After`.
    not_before: Mutex<Option<Instant>>,
    /// Labels and annotations that were left out as there was too much of them.
    left_out: AtomicU64,
}

/// What was asked, and how it went.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Request {
    /// `get`, `list`, `watch`, `create`, `patch`, ...
    pub verb: &'static str,
    /// `pods`, `jobs`, ...
    pub resource: String,
    /// How it went.
    pub outcome: &'static str,
}

/// Values of [`Request::outcome`].
pub mod outcome {
    /// It was answered as asked.
    pub const OK: &str = "ok";
    /// 401 or 403.
    pub const FORBIDDEN: &str = "forbidden";
    /// 404.
    pub const NOT_FOUND: &str = "not_found";
    /// 410.
    pub const GONE: &str = "gone";
    /// 429.
    pub const THROTTLED: &str = "throttled";
    /// Another answer below 500.
    pub const REFUSED: &str = "refused";
    /// 500 or above.
    pub const SERVER_ERROR: &str = "server_error";
    /// There was no answer.
    pub const UNREACHABLE: &str = "unreachable";
}

#[derive(Debug, Default)]
struct Watch {
    live: bool,
    /// When it became live, or stopped being that; `None` before its first answer.
    since: Option<Instant>,
    last_event: Option<Instant>,
    lists: u64,
    error: Option<String>,
    logged: Option<Instant>,
    saved: Option<SystemTime>,
}

/// One watch, as it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WatchReading {
    /// `pods`, `namespaces`.
    pub resource: &'static str,
    /// How fresh it is.
    pub freshness: Freshness,
    /// Time since the API server has last told of something.
    pub last_event: Option<Duration>,
    /// How often everything was listed, since the start.
    pub lists: u64,
    /// Why it is not live.
    pub error: Option<String>,
    /// Before its first answer: when an agent before has saved what is known.
    pub saved: Option<SystemTime>,
}

/// How fresh what is known is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Freshness {
    /// Changes come as they happen.
    Live,
    /// No change has come for so long.
    Stale(Duration),
    /// The API server has not answered since the start: what is known is what an agent before has saved.
    Never,
}

impl Freshness {
    /// Its name in the status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Stale(_) => "stale",
            Self::Never => "never",
        }
    }
}

impl Health {
    /// A watch is to be there; `saved` is when an agent before has saved what is known until then.
    pub(super) fn expect(&self, resource: &'static str, saved: Option<SystemTime>) {
        self.watches().entry(resource).or_default().saved = saved;
    }

    /// A watch is there no more.
    pub(super) fn forget(&self, resource: &str) {
        self.watches().remove(resource);
    }

    /// The API server has begun to tell of changes.
    pub(super) fn live(&self, resource: &'static str, now: Instant) {
        let mut watches = self.watches();
        let Some(watch) = watches.get_mut(resource).filter(|watch| !watch.live && watch.lists > 0) else { return };
        // One that never was has failed since it was told of last, at least.
        let failed_for = watch.logged.take().map(|logged| now.saturating_duration_since(watch.since.unwrap_or(logged)));
        (watch.live, watch.since, watch.error) = (true, Some(now), None);
        if let Some(after) = failed_for {
            Event::KubernetesWatchRecovered { resource, after }.report();
        }
    }

    /// A watch was accepted.
    pub(super) fn watch_began(&self, resource: &str, now: Instant) {
        let known = self.watches().keys().find(|known| **known == resource).copied();
        if let Some(known) = known {
            self.live(known, now);
        }
    }

    /// It tells of none, for this reason.
    pub(super) fn failed(
        &self,
        resource: &'static str,
        verb: &'static str,
        forbidden: bool,
        error: &str,
        now: Instant,
    ) {
        let mut watches = self.watches();
        let watch = watches.entry(resource).or_default();
        if watch.live || (watch.since.is_none() && watch.logged.is_none()) {
            watch.since = watch.live.then_some(now);
        }
        watch.live = false;
        watch.error = Some(error.to_owned());
        let is_due = watch.logged.is_none_or(|logged| now.saturating_duration_since(logged) >= LOG_INTERVAL);
        if is_due {
            watch.logged = Some(now);
            if forbidden {
                Event::KubernetesForbidden { verb, resource, error }.report();
            } else {
                Event::KubernetesUnreachable { resource, error }.report();
            }
        }
    }

    /// No watch can begin.
    pub(super) fn all_failed(&self, error: &str, now: Instant) {
        let resources: Vec<_> = self.watches().keys().copied().collect();
        resources.into_iter().for_each(|resource| self.failed(resource, "list", false, error, now));
    }

    /// The API server does not know the resource.
    pub(super) fn absent(&self, resource: &'static str, now: Instant) {
        let mut watches = self.watches();
        let watch = watches.entry(resource).or_default();
        (watch.live, watch.since) = (false, Some(now));
        watch.error = Some("the API server does not know the resource: its definition is not installed".to_owned());
    }

    /// Everything was listed.
    pub(super) fn listed(&self, resource: &'static str, now: Instant) {
        let mut watches = self.watches();
        let watch = watches.entry(resource).or_default();
        watch.lists += 1;
        watch.last_event = Some(now);
        drop(watches);
        self.live(resource, now);
    }

    /// A change has come.
    pub(super) fn event(&self, resource: &'static str, now: Instant) {
        if let Some(watch) = self.watches().get_mut(resource) {
            watch.last_event = Some(now);
        }
    }

    /// Whether changes of a resource come as they happen.
    #[must_use]
    pub fn is_live(&self, resource: &str) -> bool {
        self.watches().get(resource).is_some_and(|watch| watch.live)
    }

    /// Whether something is known of everything that is watched: the API server has answered once, if only that there is no such
    /// resource, or an agent before has saved it. Pods of other nodes are not meant: what needs them waits for itself.
    #[must_use]
    pub fn has_told_all(&self) -> bool {
        let is_told = |watch: &Watch| watch.since.is_some() || watch.saved.is_some();
        self.watches().iter().all(|(resource, watch)| *resource == PEERS || is_told(watch))
    }

    /// Whether everything was listed once at least.
    #[must_use]
    pub fn has_listed(&self, resource: &str) -> bool {
        self.watches().get(resource).is_some_and(|watch| watch.lists > 0)
    }

    /// Whether a watch that is to be there has neither answered nor failed yet.
    #[must_use]
    pub fn is_starting(&self, resource: &str) -> bool {
        self.watches().get(resource).is_some_and(|watch| watch.since.is_none() && watch.logged.is_none())
    }

    /// Every watch.
    #[must_use]
    pub fn readings(&self, now: Instant) -> Vec<WatchReading> {
        let reading = |(resource, watch): (&&'static str, &Watch)| WatchReading {
            resource,
            freshness: match watch.since {
                Some(_) if watch.live => Freshness::Live,
                Some(since) => Freshness::Stale(now.saturating_duration_since(since)),
                None => Freshness::Never,
            },
            last_event: watch.last_event.map(|last| now.saturating_duration_since(last)),
            lists: watch.lists,
            error: watch.error.clone(),
            saved: watch.saved.filter(|_| watch.since.is_none()),
        };
        self.watches().iter().map(reading).collect()
    }

    /// Counts a request.
    pub(super) fn count(&self, request: Request) {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry(request).or_default() += 1;
    }

    /// Requests since the start.
    #[must_use]
    pub fn requests(&self) -> Vec<(Request, u64)> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().map(|(request, count)| (request.clone(), *count)).collect()
    }

    /// The API server wants no request before this time.
    pub(super) fn pause(&self, until: Instant) {
        let mut not_before = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        *not_before = (*not_before).max(Some(until));
    }

    /// How long to wait before the next request because the API server has said so.
    pub(super) fn pause_left(&self, now: Instant) -> Duration {
        let not_before = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        not_before.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Counts labels and annotations that were left out.
    pub(super) fn count_left_out(&self, count: usize) {
        self.left_out.fetch_add(count as u64, Relaxed);
    }

    /// Labels and annotations that were left out, since the start.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Relaxed)
    }

    fn watches(&self) -> MutexGuard<'_, BTreeMap<&'static str, Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_never_then_live_then_stale_then_live_again() {
        let health = Health::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let freshness = |seconds| health.readings(after(seconds))[0].freshness;
        health.expect("pods", Some(SystemTime::UNIX_EPOCH));
        assert_eq!(health.readings(start)[0].saved, Some(SystemTime::UNIX_EPOCH));
        assert!(health.is_starting("pods"));
        health.failed("pods", "list", false, "refused", start);
        assert_eq!((freshness(1), health.is_starting("pods")), (Freshness::Never, false));
        // A watch that begins before there was a list says nothing.
        health.live("pods", after(2));
        assert_eq!(freshness(2), Freshness::Never);
        health.listed("pods", after(3));
        assert!(health.is_live("pods") && health.readings(after(3))[0].saved.is_none());
        health.failed("pods", "watch", false, "reset", after(10));
        health.failed("pods", "watch", false, "refused", after(20));
        assert_eq!(freshness(30), Freshness::Stale(Duration::from_secs(20)));
        let reading = &health.readings(after(30))[0];
        assert_eq!((reading.error.as_deref(), reading.last_event), (Some("refused"), Some(Duration::from_secs(27))));
        health.live("pods", after(40));
        assert_eq!((freshness(41), health.readings(after(41))[0].lists), (Freshness::Live, 1));
        assert!(!health.is_live("namespaces"));
    }

    #[test]
    fn the_longest_pause_holds() {
        let health = Health::default();
        let now = Instant::now();
        health.pause(now + Duration::from_secs(5));
        health.pause(now + Duration::from_secs(1));
        assert_eq!(health.pause_left(now + Duration::from_secs(2)), Duration::from_secs(3));
        assert_eq!(health.pause_left(now + Duration::from_secs(6)), Duration::ZERO);
    }
}
