//! One batch goes to several sinks; its receipt tells the pipeline when the last of them is done with it.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
    mpsc::Sender,
};

use crate::{
    ledger::Reason,
    record::{Batch, Stream},
};

/// What became of a batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Every sink that wants it has acknowledged it.
    Delivered,
    /// At least one sink has given it up.
    Dropped(Reason),
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
    /// What became of it.
    pub outcome: Outcome,
}

#[derive(Debug)]
struct Shared {
    batch: Arc<Batch>,
    /// 0, or 1 + the index of the reason in [`Reason::ALL`] that a sink gave.
    dropped: AtomicU8,
    settled: Sender<Settled>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let outcome = match self.dropped.load(Ordering::Acquire) {
            0 => Outcome::Delivered,
            index => Outcome::Dropped(Reason::ALL[usize::from(index) - 1]),
        };
        // The receiver is gone only when the pipeline itself is being taken down.
        let _ = self.settled.send(Settled {
            stream: Arc::clone(&self.batch.stream),
            start: self.batch.lines.first().map_or(0, |line| line.position),
            end: self.batch.end(),
            span: self.batch.span(),
            lines: self.batch.lines.len() as u64,
            outcome,
        });
    }
}

/// One sink's promise for one batch. Dropping it without [`Receipt::settle`] counts as dropped at shutdown, so
/// that a forgotten batch is never taken for a delivered one.
#[derive(Debug)]
pub struct Receipt {
    shared: Option<Arc<Shared>>,
}

impl Receipt {
    /// Receipts for `count` sinks that take the same batch.
    #[must_use]
    pub fn for_sinks(batch: &Arc<Batch>, count: usize, settled: &Sender<Settled>) -> Vec<Self> {
        let shared = Arc::new(Shared { batch: Arc::clone(batch), dropped: AtomicU8::new(0), settled: settled.clone() });
        (0..count).map(|_| Self { shared: Some(Arc::clone(&shared)) }).collect()
    }

    /// Says what this sink did with the batch.
    pub fn settle(mut self, outcome: Outcome) {
        if let Some(shared) = self.shared.take() {
            Self::note(&shared, outcome);
        }
    }

    fn note(shared: &Shared, outcome: Outcome) {
        if let Outcome::Dropped(reason) = outcome {
            // The first reason stands; the order of the sinks does not matter.
            let _ = shared.dropped.compare_exchange(0, reason as u8 + 1, Ordering::AcqRel, Ordering::Acquire);
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            Self::note(&shared, Outcome::Dropped(Reason::Shutdown));
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
        assert_eq!((got.start, got.end, got.span, got.lines, got.outcome), (7, 10, 3, 1, Outcome::Delivered));
        assert!(settled.try_recv().is_err());
    }

    #[test]
    fn a_forgotten_receipt_is_a_drop() {
        let (sender, settled) = channel();
        let mut receipts = Receipt::for_sinks(&batch(), 2, &sender);
        drop(receipts.pop());
        receipts.pop().expect("one receipt").settle(Outcome::Delivered);
        assert_eq!(settled.try_recv().expect("settled").outcome, Outcome::Dropped(Reason::Shutdown));
    }
}
