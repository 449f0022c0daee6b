//! What a sink was given and has not settled, and how old that is.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    receipt::{Amount, Loss},
    stats::Counters,
};
use crate::{clock, record::Batch};

/// The batches on their way to one sink, in its queue, its memory or its hands. What its buffer has on disk only is not
/// here.
#[derive(Debug, Default)]
pub(super) struct Backlog(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When the first line of each batch was written, and a number that tells batches apart.
    batches: BTreeSet<(u64, u64)>,
    next: u64,
    records: u64,
    bytes: u64,
    settled_up_to: u64,
    /// When a batch was last settled, or the first one came.
    moved: Option<Instant>,
}

/// One reading. Times are when lines were written, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct BacklogReading {
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Of the oldest line; `None` when there is none.
    pub(super) oldest: Option<u64>,
    /// Of the newest line that was settled; 0 when none was.
    pub(super) settled_up_to: u64,
    /// For how long something has waited and nothing was settled.
    pub(super) still_for: Option<Duration>,
}

impl Backlog {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read(&self) -> BacklogReading {
        let state = self.lock();
        BacklogReading {
            records: state.records,
            bytes: state.bytes,
            oldest: state.batches.first().map(|(oldest, _)| *oldest),
            settled_up_to: state.settled_up_to,
            still_for: state.moved.filter(|_| !state.batches.is_empty()).map(|moved| moved.elapsed()),
        }
    }
}

/// A batch's place in the backlog of one sink, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    counters: Arc<Counters>,
    key: (u64, u64),
    /// When its last line was written.
    newest: u64,
    amount: Amount,
    is_settled: bool,
}

impl Ticket {
    /// The sink is given `amount` of this batch.
    pub(super) fn new(counters: &Arc<Counters>, batch: &Batch, amount: Amount) -> Self {
        let time =
            |line: Option<&crate::record::Line>| line.map_or_else(clock::unix_nano, |l| l.observed_time_unix_nano);
        let (oldest, newest) = (time(batch.lines.first()), time(batch.lines.last()));
        let mut state = counters.backlog.lock();
        let key = (oldest, state.next);
        state.next += 1;
        if state.batches.is_empty() {
            state.moved = Some(Instant::now());
        }
        state.batches.insert(key);
        state.records += amount.lines;
        state.bytes += amount.span;
        drop(state);
        Self { counters: Arc::clone(counters), key, newest, amount, is_settled: false }
    }

    /// The sink is done with it.
    pub(super) fn settle(mut self, lost: Option<Loss>) {
        self.is_settled = true;
        self.counters.note_settled(self.amount, lost);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.counters.backlog.lock();
        state.batches.remove(&self.key);
        state.records -= self.amount.lines;
        state.bytes -= self.amount.span;
        if self.is_settled {
            state.moved = Some(Instant::now());
            state.settled_up_to = state.settled_up_to.max(self.newest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::Line,
        sinks::testing::{batch, pod_stream},
    };

    #[test]
    fn the_oldest_is_the_one_that_was_written_first() {
        let stream = pod_stream("a", "b", "c");
        let counters = Arc::new(Counters::default());
        let mut given = [30, 10, 20].map(|time| {
            let mut batch = batch(&stream, 0, &[b"0123456789", b"0"]);
            let times = batch.lines.iter_mut().map(|line: &mut Line| &mut line.observed_time_unix_nano);
            times.zip([time, time + 5]).for_each(|(place, time)| *place = time);
            Some(Ticket::new(&counters, &batch, Amount::of(&batch)))
        });
        let mut settle = |index: usize| given[index].take().expect("not settled").settle(None);
        let read = || {
            let reading = counters.backlog.read();
            (reading.records, reading.bytes, reading.oldest, reading.settled_up_to)
        };
        assert_eq!(read(), (6, 39, Some(10), 0));
        let still = counters.backlog.read().still_for.expect("they wait");
        settle(0);
        assert!(counters.backlog.read().still_for.expect("the others wait") < still + Duration::from_secs(1));
        assert_eq!(read(), (4, 26, Some(10), 35));
        settle(1);
        assert_eq!(read(), (2, 13, Some(20), 35));
        // Kept on disk, it is not settled.
        drop(given);
        assert_eq!(read(), (0, 0, None, 35));
        assert_eq!(counters.backlog.read().still_for, None, "nothing waits");
    }
}
