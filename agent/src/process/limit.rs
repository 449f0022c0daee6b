//! Limits how many lines a workload may send, and remembers what was suppressed until it is told.
//!
//! The clock is that of the lines: when the kernel saw them written. So a backlog that comes at once, after an upgrade of
//! the agent or from a slow disk, is judged as it was written, and lines that come again are judged nearly the same way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::record::{Line, Origin, Stream};

/// What shares one limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Each container for itself; of the node's own files, each file.
    #[default]
    Container,
    /// All containers of a Pod together.
    Pod,
    /// All Pods of a namespace together.
    Namespace,
}

/// Times further ahead than the limit can have set them show that the clock was put back: beyond this they are forgotten.
const CLOCK_SKEW: u64 = 10_000_000_000;
/// Workloads that are kept before those that have been quiet are looked for.
const SWEEP_AT: usize = 1024;

/// A limit with all its workloads. Several threads deliver, and each holds the lock for one batch.
#[derive(Debug)]
pub(super) struct Limiter {
    /// Nanoseconds that one line takes.
    per_line: u64,
    /// How far ahead a workload may be, in nanoseconds: its burst.
    window: u64,
    per: Workload,
    /// How often the suppressed lines of a stream are told of, in nanoseconds.
    interval: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// When each workload would have been done with what it wrote, at the rate it may have: the generic cell rate
    /// algorithm (ITU-T I.371).
    ready_at: HashMap<Key, u64>,
    sweep_at: usize,
    /// What was suppressed of each stream, and not told yet.
    suppressed: HashMap<Arc<str>, Suppressed>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key(Arc<str>, Arc<str>);

/// Lines of one stream that were suppressed.
#[derive(Clone, Debug)]
pub(super) struct Suppressed {
    pub(super) stream: Arc<Stream>,
    pub(super) lines: u64,
    /// Bytes of the stream that they account for.
    pub(super) span: u64,
    /// When the first and the last of them were written; nanoseconds since the Unix epoch.
    pub(super) since: u64,
    pub(super) until: u64,
    /// Position of the last of them.
    pub(super) position: u64,
}

impl Limiter {
    /// `rate` lines a second and at most `burst` at once, both above zero.
    pub(super) fn new(rate: u64, burst: u64, per: Workload, interval: Duration) -> Self {
        let per_line = 1_000_000_000 / rate.max(1);
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        Self { per_line, window: per_line.saturating_mul(burst), per, interval, state: Arc::default() }
    }

    /// Goes on where the limiter of the configuration before was.
    pub(super) fn adopt(&mut self, before: &Self) {
        self.state = Arc::clone(&before.state);
    }

    /// Whether both have the same memory.
    pub(super) fn is_adopted_by(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// For the lines of one batch.
    pub(super) fn open<'a>(&'a self, stream: &'a Arc<Stream>) -> Gate<'a> {
        let mut state = self.lock();
        let key = key(self.per, stream);
        let ready_at = state.ready_at.get(&key).copied().unwrap_or(0);
        let suppressed = state.suppressed.remove(&stream.key);
        Gate { limiter: self, state, stream, key: Some(key), ready_at, now: 0, suppressed }
    }

    /// What has been waiting to be told for as long as it may at `now`; all of it for `None`.
    pub(super) fn due(&self, now: Option<u64>) -> Vec<Suppressed> {
        let mut state = self.lock();
        let is_due = |suppressed: &Suppressed| now.is_none_or(|now| self.is_due(suppressed, now));
        state.suppressed.extract_if(|_, suppressed| is_due(suppressed)).map(|(_, suppressed)| suppressed).collect()
    }

    fn is_due(&self, suppressed: &Suppressed, now: u64) -> bool {
        // By a clock that was put back nothing would ever be due.
        now >= suppressed.since.saturating_add(self.interval) || now.saturating_add(CLOCK_SKEW) < suppressed.since
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets lines of one batch through, or not.
pub(super) struct Gate<'a> {
    limiter: &'a Limiter,
    state: MutexGuard<'a, State>,
    stream: &'a Arc<Stream>,
    key: Option<Key>,
    ready_at: u64,
    /// When the last line was written.
    now: u64,
    suppressed: Option<Suppressed>,
}

impl Gate<'_> {
    /// Whether the line may pass; one that may not is noted.
    pub(super) fn admits(&mut self, line: &Line) -> bool {
        let Limiter { per_line, window, .. } = *self.limiter;
        let now = line.observed_time_unix_nano;
        self.now = now;
        if self.ready_at > now.saturating_add(window).saturating_add(CLOCK_SKEW) {
            self.ready_at = now;
        }
        let next = self.ready_at.max(now).saturating_add(per_line);
        if next <= now.saturating_add(window) {
            self.ready_at = next;
            return true;
        }
        let suppressed = self.suppressed.get_or_insert_with(|| Suppressed {
            stream: Arc::clone(self.stream),
            lines: 0,
            span: 0,
            since: now,
            until: now,
            position: line.position,
        });
        suppressed.lines += 1;
        suppressed.span += line.span;
        suppressed.until = suppressed.until.max(now);
        suppressed.position = line.position;
        false
    }

    /// What is to be told before this line.
    pub(super) fn due(&mut self, line: &Line) -> Option<Suppressed> {
        self.suppressed.take_if(|suppressed| self.limiter.is_due(suppressed, line.observed_time_unix_nano))
    }
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        if let Some(suppressed) = self.suppressed.take() {
            self.state.suppressed.insert(Arc::clone(&self.stream.key), suppressed);
        }
        let (ready_at, now) = (self.ready_at, self.now);
        self.state.ready_at.insert(key, ready_at);
        if self.state.ready_at.len() > self.state.sweep_at.max(SWEEP_AT) {
            // One that is not behind is as good as a new one.
            self.state.ready_at.retain(|_, ready_at| *ready_at > now);
            self.state.sweep_at = self.state.ready_at.len() * 2;
        }
    }
}

/// What shares a limit with the stream. Where the wanted name is unknown, the next smaller one counts.
fn key(per: Workload, stream: &Stream) -> Key {
    let resource = &stream.resource;
    let nothing = || Arc::<str>::from("");
    let namespace = || resource.namespace.clone();
    let pod = || Some(Key(namespace()?, resource.pod.clone()?));
    let container = || {
        let name = resource.container_id.clone().or_else(|| resource.cgroup.clone());
        name.map(|name| Key(name, nothing())).or_else(|| {
            let Key(namespace, pod) = pod()?;
            Some(Key(format!("{namespace}/{pod}").into(), resource.container_name.clone()?))
        })
    };
    let found = match per {
        Workload::Container => container(),
        Workload::Pod => pod().or_else(container),
        Workload::Namespace => namespace().map(|namespace| Key(namespace, nothing())).or_else(container),
    };
    found.unwrap_or_else(|| {
        let name = match &stream.origin {
            Origin::File { path } => path,
            Origin::Stdio(_) | Origin::Refusals => &stream.key,
        };
        Key(Arc::clone(name), nothing())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::testing::pod_stream;

    const SECOND: u64 = 1_000_000_000;

    fn line(position: u64, time: u64) -> Line {
        Line { position, span: 10, observed_time_unix_nano: time, ..Line::default() }
    }

    fn limiter(rate: u64, burst: u64, per: Workload) -> Limiter {
        Limiter::new(rate, burst, per, Duration::from_secs(10))
    }

    /// How many of `lines` pass that are written at `time`.
    fn passed(limiter: &Limiter, stream: &Arc<Stream>, time: u64, lines: u64) -> u64 {
        let mut gate = limiter.open(stream);
        (0..lines).filter(|index| gate.admits(&line(index * 10, time))).count() as u64
    }

    #[test]
    fn burst_and_rate_hold() {
        let limiter = limiter(100, 50, Workload::Container);
        let stream = pod_stream("a", "b", "c");
        assert_eq!(passed(&limiter, &stream, 100 * SECOND, 80), 50);
        assert_eq!(passed(&limiter, &stream, 100 * SECOND + SECOND / 10, 80), 10);
        assert_eq!(passed(&limiter, &stream, 200 * SECOND, 80), 50);
        let told = limiter.due(None);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].lines, told[0].span, told[0].position), (130, 1300, 790));
        assert!(limiter.due(None).is_empty(), "told once");
    }

    #[test]
    fn a_clock_that_is_put_back_does_not_stop_a_workload() {
        let limiter = limiter(100, 50, Workload::Container);
        let stream = pod_stream("a", "b", "c");
        assert_eq!(passed(&limiter, &stream, 10_000 * SECOND, 60), 50);
        assert_eq!(passed(&limiter, &stream, 5_000 * SECOND, 60), 50);
        assert_eq!(limiter.due(Some(5_000 * SECOND)).len(), 1, "what is noted comes out");
    }

    #[test]
    fn workloads_share_a_limit_as_configured() {
        let web = [pod_stream("shop", "web", "a"), pod_stream("shop", "web", "b")];
        let api = pod_stream("shop", "api", "a");
        for (per, expected) in
            [(Workload::Container, [5, 5, 5]), (Workload::Pod, [5, 0, 5]), (Workload::Namespace, [5, 0, 0])]
        {
            let limiter = limiter(1, 5, per);
            let passed = [&web[0], &web[1], &api].map(|stream| passed(&limiter, stream, SECOND, 9));
            assert_eq!(passed, expected, "{per:?}");
        }
    }

    #[test]
    fn what_is_suppressed_is_told_after_the_interval() {
        let limiter = limiter(1, 1, Workload::Container);
        let stream = pod_stream("a", "b", "c");
        assert_eq!(passed(&limiter, &stream, SECOND, 5), 1);
        assert!(limiter.due(Some(10 * SECOND)).is_empty());
        let mut gate = limiter.open(&stream);
        let told = gate.due(&line(100, 11 * SECOND)).expect("due");
        assert_eq!((told.lines, told.since, told.until, told.position), (4, SECOND, SECOND, 40));
        assert!(gate.due(&line(100, 11 * SECOND)).is_none());
    }

    #[test]
    fn workloads_that_are_gone_are_forgotten() {
        let limiter = limiter(10, 10, Workload::Pod);
        for number in 0..20_000 {
            passed(&limiter, &pod_stream("a", &format!("pod-{number}"), "c"), number * SECOND, 1);
        }
        assert!(limiter.lock().ready_at.len() <= SWEEP_AT + 1);
    }
}
