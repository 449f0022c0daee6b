//! One batch goes to several sinks; its receipt tells the pipeline how safe it is, and when the last of them is done
//! with it.
//!
//! A batch becomes safer in steps. *Secured*: it survives this process (in the page cache of a buffer on disk), so the
//! kernel's ring lets go of it. *Stored*: it survives the machine, so the position in its file moves. *Settled*: the
//! sink has acknowledged it or given it up, which is what the ledger books. A sink without a buffer on disk only settles,
//! which is all three at once.

mod lines;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::Sender,
    },
};

pub use lines::{LineReceipt, Lines, rejoin};

use super::{backlog::Ticket, stats::Counters};
use crate::{
    ledger::Reason,
    record::{Batch, Origin, Stream},
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

/// What the pipeline is told of a batch that went to sinks.
#[derive(Debug)]
pub enum Settlement {
    /// Lines of a file are as safe as in the file itself: its position moves on.
    Stored(Span),
    /// Every sink is done with the batch: the ledger books it.
    Settled(Settled),
}

/// A part of a stream.
#[derive(Clone, Debug)]
pub struct Span {
    /// The stream.
    pub stream: Arc<Stream>,
    /// Position of the first byte.
    pub start: u64,
    /// Position after the last byte.
    pub end: u64,
}

impl Span {
    fn of(batch: &Batch) -> Self {
        Span { stream: Arc::clone(&batch.stream), start: batch.start(), end: batch.end() }
    }
}

/// A settled batch.
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
    /// At least one sink has it in its buffer on disk and has let go of it: it is pending still, and booked when it is
    /// read back, by this agent or the next one.
    pub kept: bool,
    /// Bytes of it in all such buffers together, each of which books its own.
    pub kept_span: u64,
}

impl Settled {
    /// Why something was given up; `None` when all was delivered.
    #[must_use]
    pub fn lost_for(&self) -> Option<Reason> {
        self.lost.map(|lost| lost.reason)
    }
}

/// Keeps what a batch was made of where it can be read again, after the process was killed: a part of the kernel's ring.
/// It is let go of when every batch that has a clone of it is safe in every sink.
pub type Hold = Arc<dyn std::any::Any + Send + Sync>;

/// How much of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Amount {
    /// Lines.
    pub lines: u64,
    /// Bytes of the stream that they account for.
    pub span: u64,
}

impl Amount {
    /// All of a batch.
    #[must_use]
    pub fn of(batch: &Batch) -> Self {
        Self { lines: batch.lines.len() as u64, span: batch.span() }
    }
}

/// What all receipts of a batch share. It does not keep the batch's bytes: a sink may have it on disk only.
#[derive(Debug)]
struct Shared {
    covers: Span,
    /// What at least one sink wants of that.
    amount: Amount,
    lost: Mutex<Option<Loss>>,
    /// A sink has let go of it with a copy on disk.
    kept: AtomicBool,
    /// Bytes in all such copies.
    kept_span: AtomicU64,
    settled: Sender<Settlement>,
}

impl Shared {
    fn new(covers: Span, amount: Amount, settled: &Sender<Settlement>) -> Arc<Self> {
        Arc::new(Self {
            covers,
            amount,
            lost: Mutex::default(),
            kept: AtomicBool::default(),
            kept_span: AtomicU64::default(),
            settled: settled.clone(),
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The receiver is gone only when the pipeline itself is being taken down.
        let _ = self.settled.send(Settlement::Settled(Settled {
            stream: Arc::clone(&self.covers.stream),
            start: self.covers.start,
            end: self.covers.end,
            span: self.amount.span,
            lines: self.amount.lines,
            lost,
            kept: self.kept.load(Relaxed),
            kept_span: self.kept_span.load(Relaxed),
        }));
    }
}

/// Shared by the promises of one batch of a file; the last one tells that it is stored.
#[derive(Debug)]
struct Store {
    covers: Span,
    settled: Sender<Settlement>,
    /// It is to be read again: the agent stops.
    void: AtomicBool,
}

impl Drop for Store {
    fn drop(&mut self) {
        if !self.void.load(Relaxed) {
            let _ = self.settled.send(Settlement::Stored(self.covers.clone()));
        }
    }
}

/// How safe one sink has made one batch. Who keeps a copy of the batch on disk has this beside the [`Receipt`], which
/// goes on with the batch; whatever is left to say is said when that is settled.
#[derive(Debug, Default)]
pub struct Promise {
    hold: Mutex<Option<HoldGuard>>,
    store: Mutex<Option<Arc<Store>>>,
    /// Survives this process.
    secured: AtomicBool,
    /// The receipt has been settled, or given up for good.
    settled: AtomicBool,
}

struct HoldGuard(#[expect(dead_code, reason = "it is there to be dropped")] Hold);

impl fmt::Debug for HoldGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HoldGuard")
    }
}

impl Promise {
    /// The batch survives this process, as it is in the page cache of a buffer on disk: the ring may let go of it.
    pub fn secure(&self) {
        self.secured.store(true, Relaxed);
        self.let_go();
    }

    /// The batch survives the machine too, as the buffer is synced: the position in its file may move on.
    pub fn store(&self) {
        self.secure();
        drop(self.store.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Whether the ring keeps the bytes that the batch was made of.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether [`Promise::secure`] was called.
    #[must_use]
    pub fn is_secured(&self) -> bool {
        self.secured.load(Relaxed)
    }

    /// Whether the receipt was settled, other than by leaving the batch to the next agent.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled.load(Relaxed)
    }

    /// The ring may let go of the batch although nothing else has it: it would keep it from others.
    pub fn let_go(&self) {
        drop(self.hold.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The agent stops, and what the batch was made of is read again by the next one.
    fn leave(&self) {
        if let Some(hold) = self.hold.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Never let go of, on purpose.
            std::mem::forget(hold);
        }
        self.stay();
    }

    /// The position in its file stays where it is, unless the batch is stored.
    fn stay(&self) {
        if let Some(store) = self.store.lock().unwrap_or_else(PoisonError::into_inner).take() {
            store.void.store(true, Relaxed);
        }
    }
}

/// Tells a buffer what the sink behind it did.
struct Report(Box<dyn FnOnce(Outcome) + Send + Sync>);

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Report")
    }
}

/// Where it is booked what becomes of a batch.
#[derive(Debug)]
enum Books {
    /// With all sinks that have it.
    Batch(Arc<Shared>),
    /// With the other lines of the batch that it was a part of.
    Rest(lines::Rest),
    /// The buffer on disk in front of the sink.
    Buffer(Report),
}

/// One sink's promise for one batch. Dropping it without [`Receipt::settle`] counts as dropped at shutdown, so
/// that a forgotten batch is never taken for a delivered one; unless it is secured in a buffer on disk, where the next
/// agent finds it.
#[derive(Debug)]
pub struct Receipt {
    books: Option<Books>,
    /// What this sink gets: it may want fewer lines than another.
    amount: Amount,
    promise: Arc<Promise>,
    /// Where it is counted for one sink.
    ticket: Option<Ticket>,
}

impl Receipt {
    /// Receipts for `count` sinks that take the same batch. `hold` is let go of when all of them have secured it.
    #[must_use]
    pub fn for_sinks(batch: &Arc<Batch>, count: usize, settled: &Sender<Settlement>, hold: Option<&Hold>) -> Vec<Self> {
        let amount = Amount::of(batch);
        Self::for_parts(&Span::of(batch), amount, &vec![amount; count], settled, hold)
    }

    /// Receipts for sinks that each take a part of what is in a span, `amount` in all.
    #[must_use]
    pub fn for_parts(
        covers: &Span,
        amount: Amount,
        parts: &[Amount],
        settled: &Sender<Settlement>,
        hold: Option<&Hold>,
    ) -> Vec<Self> {
        let shared = Shared::new(covers.clone(), amount, settled);
        let is_file = matches!(covers.stream.origin, Origin::File { .. });
        let store = is_file
            .then(|| Arc::new(Store { covers: covers.clone(), settled: settled.clone(), void: AtomicBool::default() }));
        let receipt = |part: &Amount| Self {
            books: Some(Books::Batch(Arc::clone(&shared))),
            amount: *part,
            promise: Arc::new(Promise {
                hold: Mutex::new(hold.map(|hold| HoldGuard(Arc::clone(hold)))),
                store: Mutex::new(store.clone()),
                ..Promise::default()
            }),
            ticket: None,
        };
        parts.iter().map(receipt).collect()
    }

    /// A receipt for a batch that a sink has read back from its buffer on disk. It says nothing of positions in files: who
    /// put the batch there has said it for this sink, and other sinks may not have theirs.
    pub(super) fn read_back(batch: &Arc<Batch>, settled: &Sender<Settlement>) -> Self {
        let amount = Amount::of(batch);
        let promise = Arc::new(Promise { secured: AtomicBool::new(true), ..Promise::default() });
        Self { books: Some(Books::Batch(Shared::new(Span::of(batch), amount, settled))), amount, promise, ticket: None }
    }

    /// A receipt for the sink behind a buffer: `report` is called once, on whatever thread settles or drops it. The
    /// buffer itself answers to the pipeline.
    pub(super) fn for_buffer(report: impl FnOnce(Outcome) + Send + Sync + 'static) -> Self {
        Self {
            books: Some(Books::Buffer(Report(Box::new(report)))),
            amount: Amount { lines: 0, span: 0 },
            promise: Arc::default(),
            ticket: None,
        }
    }

    /// How safe the batch is, for who keeps a copy of it on disk.
    #[must_use]
    pub fn promise(&self) -> &Arc<Promise> {
        &self.promise
    }

    /// Counts for one sink that it has this batch, and what becomes of it.
    pub(super) fn count_for(&mut self, counters: &Arc<Counters>, batch: &Batch) {
        self.ticket = Some(Ticket::new(counters, batch, self.amount));
    }

    /// From now on the batch is on disk only, and counted by the buffer.
    pub(super) fn shelve(&mut self) {
        self.ticket = None;
    }

    /// Says what this sink did with the batch.
    pub fn settle(mut self, outcome: Outcome) {
        self.note(outcome);
    }

    fn note(&mut self, outcome: Outcome) {
        let shared = match self.books.take() {
            None => return,
            Some(Books::Rest(rest)) => return rest.note(outcome),
            Some(Books::Buffer(report)) => return report.0(outcome),
            Some(Books::Batch(shared)) => shared,
        };
        let Amount { lines, span } = self.amount;
        let lost = match outcome {
            Outcome::Delivered => None,
            Outcome::Dropped(reason) => Some(Loss { reason, lines, span }),
            Outcome::Partly(loss) => Some(loss),
        };
        if lost.is_some_and(|lost| lost.reason == Reason::Shutdown) {
            if self.promise.is_secured() {
                shared.kept.store(true, Relaxed);
                shared.kept_span.fetch_add(span, Relaxed);
                // A disk that could not be synced in time may not have it.
                self.promise.stay();
                return;
            }
            self.promise.leave();
        }
        if let Some(ticket) = self.ticket.take() {
            ticket.settle(lost);
        }
        if let Some(loss) = lost {
            let mut all = shared.lost.lock().unwrap_or_else(PoisonError::into_inner);
            // Which lines they are is not kept, so what two sinks gave up is taken for different lines.
            let Amount { lines, span } = shared.amount;
            *all = Some(all.map_or(loss, |before| before.with(loss, lines, span)));
        }
        self.promise.settled.store(true, Relaxed);
        self.promise.store();
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.note(Outcome::Dropped(Reason::Shutdown));
    }
}

#[cfg(test)]
mod tests;
