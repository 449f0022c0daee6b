//! One batch goes to several sinks; its receipt tells the pipeline when the last of them is done with it.

use std::sync::{Arc, Mutex, PoisonError, mpsc::Sender};

use super::stats::Counters;
use crate::{
    ledger::Reason,
    record::{Batch, Line, Stream},
};

/// What one sink did with a batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// All of it is acknowledged.
    Delivered,
    /// All of it is given up.
    Dropped(Reason),
    /// Some lines are given up, all others are acknowledged.
    Partly(Loss),
}

/// Lines that were given up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Loss {
    /// Why: the first reason where there are several, but [`Reason::Shutdown`] before all others, since what is lost by
    /// that can still be read again from a file.
    pub reason: Reason,
    /// How many.
    pub lines: u64,
    /// Bytes of the stream that they account for.
    pub span: u64,
}

impl Loss {
    /// Both, but not more than there is in a batch of `lines` and `span`.
    fn with(self, other: Self, lines: u64, span: u64) -> Self {
        Self {
            reason: if other.reason == Reason::Shutdown { other.reason } else { self.reason },
            lines: self.lines.saturating_add(other.lines).min(lines),
            span: self.span.saturating_add(other.span).min(span),
        }
    }
}

/// A settled batch: the ledger books it, and positions of files move on.
#[derive(Debug)]
pub struct Settled {
    /// The batch's stream.
    pub stream: Arc<Stream>,
    /// Position of its first byte.
    pub start: u64,
    /// Position after its last byte.
    pub end: u64,
    /// Bytes of the stream that the batch accounts for.
    pub span: u64,
    /// Lines in it.
    pub lines: u64,
    /// What at least one sink that wanted it gave up; every sink has acknowledged the rest.
    pub lost: Option<Loss>,
}

impl Settled {
    /// Why something was given up; `None` when all was delivered.
    #[must_use]
    pub fn lost_for(&self) -> Option<Reason> {
        self.lost.map(|lost| lost.reason)
    }
}

#[derive(Debug)]
struct Shared {
    batch: Arc<Batch>,
    lines: u64,
    span: u64,
    lost: Mutex<Option<Loss>>,
    settled: Sender<Settled>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The receiver is gone only when the pipeline itself is being taken down.
        let _ = self.settled.send(Settled {
            stream: Arc::clone(&self.batch.stream),
            start: self.batch.lines.first().map_or(0, |line| line.position),
            end: self.batch.end(),
            span: self.span,
            lines: self.lines,
            lost,
        });
    }
}

/// One sink's promise for one batch. Dropping it without [`Receipt::settle`] counts as dropped at shutdown, so
/// that a forgotten batch is never taken for a delivered one.
#[derive(Debug)]
pub struct Receipt {
    shared: Option<Arc<Shared>>,
    counters: Option<Arc<Counters>>,
}

impl Receipt {
    /// Receipts for `count` sinks that take the same batch.
    #[must_use]
    pub fn for_sinks(batch: &Arc<Batch>, count: usize, settled: &Sender<Settled>) -> Vec<Self> {
        let shared = Arc::new(Shared {
            batch: Arc::clone(batch),
            lines: batch.lines.len() as u64,
            span: batch.span(),
            lost: Mutex::default(),
            settled: settled.clone(),
        });
        (0..count).map(|_| Self { shared: Some(Arc::clone(&shared)), counters: None }).collect()
    }

    /// Counts what becomes of the batch for one sink.
    pub(super) fn count_for(&mut self, counters: &Arc<Counters>) {
        self.counters = Some(Arc::clone(counters));
    }

    /// Says what this sink did with the batch.
    pub fn settle(mut self, outcome: Outcome) {
        self.note(outcome);
    }

    fn note(&mut self, outcome: Outcome) {
        let Some(shared) = self.shared.take() else { return };
        let (lines, span) = (shared.lines, shared.span);
        let lost = match outcome {
            Outcome::Delivered => None,
            Outcome::Dropped(reason) => Some(Loss { reason, lines, span }),
            Outcome::Partly(loss) => Some(loss),
        };
        if let Some(counters) = &self.counters {
            counters.note_settled(lines, span, lost);
        }
        if let Some(loss) = lost {
            let mut all = shared.lost.lock().unwrap_or_else(PoisonError::into_inner);
            // Which lines they are is not kept, so what two sinks gave up is taken for different lines.
            *all = Some(all.map_or(loss, |before| before.with(loss, lines, span)));
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.note(Outcome::Dropped(Reason::Shutdown));
    }
}

/// A receipt that is settled line by line, for sinks that send lines one by one: when the last [`LineReceipt`] is
/// settled or dropped, the batch is.
#[derive(Debug)]
pub struct Lines {
    batch: Arc<Batch>,
    receipt: Option<Receipt>,
    lost: Mutex<Option<Loss>>,
}

impl Lines {
    /// Takes the receipt of `batch` apart. A batch without lines is delivered by that.
    #[must_use]
    pub fn new(batch: &Arc<Batch>, receipt: Receipt) -> Arc<Self> {
        Arc::new(Self { batch: Arc::clone(batch), receipt: Some(receipt), lost: Mutex::default() })
    }

    /// The receipt of the line at `index`.
    #[must_use]
    pub fn line(self: &Arc<Self>, index: usize) -> LineReceipt {
        LineReceipt { lines: Arc::clone(self), index, settled: false }
    }

    /// The lines.
    #[must_use]
    pub fn batch(&self) -> &Arc<Batch> {
        &self.batch
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(receipt) = self.receipt.take() {
            receipt.settle(lost.map_or(Outcome::Delivered, Outcome::Partly));
        }
    }
}

/// One sink's promise for one line. Dropping it without settling counts as dropped at shutdown.
#[derive(Debug)]
pub struct LineReceipt {
    lines: Arc<Lines>,
    index: usize,
    settled: bool,
}

impl LineReceipt {
    /// The line's batch.
    #[must_use]
    pub fn batch(&self) -> &Arc<Batch> {
        &self.lines.batch
    }

    /// The line.
    #[must_use]
    pub fn line(&self) -> &Line {
        &self.lines.batch.lines[self.index]
    }

    /// The line is acknowledged.
    pub fn deliver(mut self) {
        self.settled = true;
    }

    /// The line is given up.
    pub fn give_up(mut self, reason: Reason) {
        self.lose(reason);
    }

    fn lose(&mut self, reason: Reason) {
        self.settled = true;
        let loss = Loss { reason, lines: 1, span: self.line().span };
        let mut all = self.lines.lost.lock().unwrap_or_else(PoisonError::into_inner);
        *all = Some(all.map_or(loss, |before| before.with(loss, u64::MAX, u64::MAX)));
    }
}

impl Drop for LineReceipt {
    fn drop(&mut self) {
        if !self.settled {
            self.lose(Reason::Shutdown);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::record::{Class, IoStream, Line, Origin};

    fn batch() -> Arc<Batch> {
        let stream = Arc::new(Stream {
            key: "c/stdout".into(),
            class: Class::Pod,
            origin: Origin::Stdio(IoStream::Stdout),
            resource: Arc::default(),
            account: Arc::default(),
        });
        let line = Line { body: 0..2, position: 7, span: 3, ..Line::default() };
        Arc::new(Batch { stream, data: "hi\n".into(), lines: vec![line] })
    }

    #[test]
    fn settles_once_after_the_last_sink() {
        let (sender, settled) = channel();
        let mut receipts = Receipt::for_sinks(&batch(), 2, &sender);
        receipts.pop().expect("two receipts").settle(Outcome::Delivered);
        assert!(settled.try_recv().is_err());
        receipts.pop().expect("one receipt").settle(Outcome::Delivered);
        let got = settled.try_recv().expect("settled");
        assert_eq!((got.start, got.end, got.span, got.lines, got.lost), (7, 10, 3, 1, None));
        assert!(settled.try_recv().is_err());
    }

    #[test]
    fn a_forgotten_receipt_is_a_drop() {
        let (sender, settled) = channel();
        let mut receipts = Receipt::for_sinks(&batch(), 2, &sender);
        drop(receipts.pop());
        receipts.pop().expect("one receipt").settle(Outcome::Delivered);
        let lost = settled.try_recv().expect("settled").lost;
        assert_eq!(lost, Some(Loss { reason: Reason::Shutdown, lines: 1, span: 3 }));
    }

    #[test]
    fn lines_are_settled_one_by_one() {
        let (sender, settled) = channel();
        let stream = Arc::clone(&batch().stream);
        let lines = (0..3).map(|index| Line { position: index * 10, span: 10, ..Line::default() }).collect();
        let batch = Arc::new(Batch { stream, data: bytes::Bytes::new(), lines });
        let receipt = Receipt::for_sinks(&batch, 1, &sender).pop().expect("one receipt");
        let lines = Lines::new(&batch, receipt);
        let [first, second, third] = [0, 1, 2].map(|index| lines.line(index));
        drop(lines);
        second.give_up(Reason::Rejected);
        first.deliver();
        assert!(settled.try_recv().is_err());
        third.deliver();
        let lost = settled.try_recv().expect("settled").lost;
        assert_eq!(lost, Some(Loss { reason: Reason::Rejected, lines: 1, span: 10 }));
    }
}
