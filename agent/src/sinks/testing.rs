//! What the tests of several sinks share.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, mpsc::Receiver},
    time::Duration,
};

use super::{Delivery, Outcome, Settled, Settlement, Sink, SinkError, Sinks};
use crate::ledger::Reason;
use crate::record::{Batch, Class, IoStream, Line, Origin, Resource, Stream};

/// A test that passes needs a fraction of it.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// 2026-11-21T05:00:00Z.
pub(crate) const FIVE_O_CLOCK: u64 = 1_795_237_200_000_000_000;

/// The stdout of a container.
pub(crate) fn pod_stream(namespace: &str, pod: &str, container: &str) -> Arc<Stream> {
    stream(Class::Pod, Origin::Stdio(IoStream::Stdout), namespace, pod, container)
}

/// A stream of a container.
pub(crate) fn stream(class: Class, origin: Origin, namespace: &str, pod: &str, container: &str) -> Arc<Stream> {
    let resource = Resource {
        namespace: Some(namespace.into()),
        pod: Some(pod.into()),
        container_name: Some(container.into()),
        ..Resource::default()
    };
    Arc::new(Stream {
        key: "test/stream".into(),
        class,
        origin,
        resource: Arc::new(resource),
        account: Arc::default(),
        source: None,
    })
}

/// A batch of lines, the first at `position`.
pub(crate) fn batch(stream: &Arc<Stream>, position: u64, bodies: &[&[u8]]) -> Batch {
    let mut data = Vec::new();
    let mut lines = Vec::new();
    for body in bodies {
        let start = data.len();
        data.extend_from_slice(body);
        lines.push(Line {
            time_unix_nano: FIVE_O_CLOCK,
            observed_time_unix_nano: FIVE_O_CLOCK,
            body: start..data.len(),
            position: position + start as u64,
            span: body.len() as u64 + 1,
            ..Line::default()
        });
        data.push(b'\n');
    }
    Batch { stream: Arc::clone(stream), data: data.into(), lines }
}

/// What a scripted sink shall do, and what it did.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) blocked: bool,
    /// It is blocked again once it has taken so many.
    pub(crate) blocked_after: Option<usize>,
    /// A call of the sink is held up by that.
    pub(crate) stuck: bool,
    pub(crate) failing: bool,
    /// What is taken stays unsettled.
    pub(crate) unacknowledged: bool,
    pub(crate) positions: Vec<u64>,
    pub(crate) flushed: usize,
    pub(crate) ticks: usize,
    pub(crate) closed: bool,
    pub(crate) calls: usize,
}

/// Decides every move of a sink.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<(Mutex<State>, Condvar)>);

impl Script {
    /// A sink of the name `scripted`.
    pub(crate) fn sink(&self) -> Box<dyn Sink> {
        Box::new(Scripted { script: self.clone(), held: VecDeque::new() })
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.0.0.lock().expect("not poisoned"));
        self.0.1.notify_all();
        result
    }

    /// Holds up a call of the sink as long as the test says so.
    fn hold(&self) {
        let mut guard = self.0.0.lock().expect("not poisoned");
        guard.stuck = guard.blocked;
        self.0.1.notify_all();
        let held = self.0.1.wait_timeout_while(guard, LONG, |state| {
            state.stuck = state.blocked;
            state.blocked
        });
        let (guard, timeout) = held.expect("not poisoned");
        drop(guard);
        assert!(!timeout.timed_out(), "waited in vain: the test lets the sink go on");
    }

    pub(crate) fn wait(&self, what: &str, reached: impl Fn(&State) -> bool) {
        let guard = self.0.0.lock().expect("not poisoned");
        let (guard, timeout) = self.0.1.wait_timeout_while(guard, LONG, |state| !reached(state)).expect("not poisoned");
        drop(guard);
        assert!(!timeout.timed_out(), "waited in vain: {what}");
    }
}

/// Holds its receipts until it is flushed, as a sink with acknowledgements does.
struct Scripted {
    script: Script,
    held: VecDeque<Delivery>,
}

impl Sink for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn write(&mut self, queue: &mut VecDeque<Delivery>) -> Result<(), SinkError> {
        self.script.with(|state| state.calls += 1);
        self.script.hold();
        while let Some(delivery) = queue.pop_front() {
            if self.script.with(|state| state.failing) {
                queue.push_front(delivery);
                return Err(SinkError { action: "writing".to_owned(), source: io::ErrorKind::StorageFull.into() });
            }
            self.script.with(|state| {
                state.positions.push(delivery.batch.lines[0].position);
                state.blocked |= state.blocked_after == Some(state.positions.len());
            });
            self.held.push_back(delivery);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        if self.script.with(|state| state.unacknowledged) {
            return Err(SinkError { action: "flushing".to_owned(), source: io::ErrorKind::TimedOut.into() });
        }
        for delivery in self.held.drain(..) {
            delivery.receipt.settle(Outcome::Delivered);
        }
        self.script.with(|state| state.flushed += 1);
        Ok(())
    }

    fn tick(&mut self) -> Result<(), SinkError> {
        self.script.with(|state| state.ticks += 1);
        Ok(())
    }

    fn close(&mut self, _limit: Duration) -> Result<(), SinkError> {
        self.flush()?;
        self.script.with(|state| state.closed = true);
        Ok(())
    }
    fn give_back(&mut self) -> VecDeque<Delivery> {
        std::mem::take(&mut self.held)
    }
}

/// Delivers one line at each of these positions.
pub(crate) fn deliver(sinks: &Sinks, positions: std::ops::Range<u64>) {
    let stream = pod_stream("a", "b", "c");
    for position in positions {
        sinks.deliver(&Arc::new(batch(&stream, position, &[b"0123456789"])), None);
    }
}

/// The next batch that is settled.
pub(crate) fn next_settled(settled: &Receiver<Settlement>) -> Settled {
    loop {
        if let Settlement::Settled(settled) = settled.recv_timeout(LONG).expect("settled") {
            return settled;
        }
    }
}

/// The batches that are settled.
pub(crate) fn all_settled(settled: &Receiver<Settlement>) -> Vec<Settled> {
    let settled = settled.try_iter().filter_map(|settlement| match settlement {
        Settlement::Settled(settled) => Some(settled),
        Settlement::Stored(_) => None,
    });
    settled.collect()
}

/// What became of `count` batches, by position.
pub(crate) fn outcomes(settled: &Receiver<Settlement>, count: usize) -> Vec<(u64, Option<Reason>)> {
    let mut outcomes: Vec<_> =
        (0..count).map(|_| next_settled(settled)).map(|settled| (settled.start, settled.lost_for())).collect();
    outcomes.sort_by_key(|(start, _)| *start);
    outcomes
}
