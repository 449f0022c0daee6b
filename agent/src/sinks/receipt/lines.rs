//! A batch that is settled line by line, and what of it goes back to the queue.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Amount, Books, Loss, Outcome, Promise, Receipt};
use crate::{
    ledger::Reason,
    record::{Batch, Line, Stream},
    sinks::Delivery,
};

/// A receipt that is settled line by line, for sinks that send lines one by one or a few at a time: when the last
/// [`LineReceipt`] is settled or dropped, the batch is.
#[derive(Debug)]
pub struct Lines {
    batch: Arc<Batch>,
    promise: Arc<Promise>,
    receipt: Option<Receipt>,
    lost: Mutex<Option<Loss>>,
}

impl Lines {
    /// Takes the receipt of `batch` apart. A batch without lines is delivered by that.
    #[must_use]
    pub fn new(batch: &Arc<Batch>, receipt: Receipt) -> Arc<Self> {
        let promise = Arc::clone(receipt.promise());
        Arc::new(Self { batch: Arc::clone(batch), promise, receipt: Some(receipt), lost: Mutex::default() })
    }

    /// The receipt of the line at `index`.
    #[must_use]
    pub fn line(self: &Arc<Self>, index: usize) -> LineReceipt {
        self.part(index..index + 1)
    }

    /// The receipt of several lines that are sent together; at least one.
    #[must_use]
    pub fn part(self: &Arc<Self>, range: Range<usize>) -> LineReceipt {
        LineReceipt { lines: Arc::clone(self), range, settled: false }
    }

    /// The lines.
    #[must_use]
    pub fn batch(&self) -> &Arc<Batch> {
        &self.batch
    }

    fn lose(&self, loss: Loss) {
        let mut all = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        *all = Some(all.map_or(loss, |before| before.with(loss, u64::MAX, u64::MAX)));
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

/// One sink's promise for one line, or for several that are sent together. Dropping it without settling counts as dropped
/// at shutdown.
#[derive(Debug)]
pub struct LineReceipt {
    lines: Arc<Lines>,
    range: Range<usize>,
    settled: bool,
}

impl LineReceipt {
    /// The batch of its lines.
    #[must_use]
    pub fn batch(&self) -> &Arc<Batch> {
        &self.lines.batch
    }

    /// The line, or the first of several.
    #[must_use]
    pub fn line(&self) -> &Line {
        &self.lines.batch.lines[self.range.start]
    }

    /// All its lines.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines.batch.lines[self.range.clone()]
    }

    /// Its lines in two halves.
    ///
    /// # Errors
    /// It is one line: the receipt itself.
    pub fn split(mut self) -> Result<[Self; 2], Self> {
        if self.range.len() < 2 {
            return Err(self);
        }
        let middle = self.range.start + self.range.len() / 2;
        let halves = [self.range.start..middle, middle..self.range.end].map(|range| self.lines.part(range));
        self.settled = true;
        Ok(halves)
    }

    /// The lines are acknowledged.
    pub fn deliver(mut self) {
        self.settled = true;
    }

    /// The lines are given up.
    pub fn give_up(mut self, reason: Reason) {
        self.lose(reason);
    }

    fn lose(&mut self, reason: Reason) {
        self.settled = true;
        let span = self.lines().iter().map(|line| line.span).sum();
        let loss = Loss { reason, lines: self.range.len() as u64, span };
        self.lines.lose(loss);
    }
}

impl Drop for LineReceipt {
    fn drop(&mut self) {
        if !self.settled {
            self.lose(Reason::Shutdown);
        }
    }
}

/// Keeps the books of a batch open for those of its lines that went back to the queue as a batch of their own.
#[derive(Debug)]
pub(super) struct Rest {
    lines: Arc<Lines>,
    amount: Amount,
}

impl Rest {
    /// Books what became of them.
    pub(super) fn note(self, outcome: Outcome) {
        match outcome {
            Outcome::Delivered => {}
            Outcome::Dropped(reason) => {
                self.lines.lose(Loss { reason, lines: self.amount.lines, span: self.amount.span });
            }
            Outcome::Partly(loss) => self.lines.lose(loss),
        }
    }
}

/// Puts lines that were not settled together again, in whatever order they come: for each batch that they are of, a
/// delivery with these lines and no others. Deliveries of one stream are in the stream's order.
#[must_use]
pub fn rejoin(receipts: impl IntoIterator<Item = LineReceipt>) -> VecDeque<Delivery> {
    let mut batches: HashMap<*const Lines, Vec<LineReceipt>> = HashMap::new();
    // Streams in the order in which they come.
    let mut streams: HashMap<*const Stream, usize> = HashMap::new();
    for receipt in receipts {
        let next = streams.len();
        streams.entry(Arc::as_ptr(&receipt.batch().stream)).or_insert(next);
        batches.entry(Arc::as_ptr(&receipt.lines)).or_default().push(receipt);
    }
    let mut deliveries: Vec<_> = batches.into_values().filter_map(rejoin_batch).collect();
    deliveries.sort_by_key(|Delivery { batch, .. }| {
        (streams.get(&Arc::as_ptr(&batch.stream)).copied(), batch.lines.first().map(|line| line.position))
    });
    deliveries.into()
}

/// The delivery of lines that are all of one batch.
fn rejoin_batch(mut receipts: Vec<LineReceipt>) -> Option<Delivery> {
    receipts.sort_by_key(|receipt| receipt.range.start);
    let lines = Arc::clone(&receipts.first()?.lines);
    let count: usize = receipts.iter().map(|receipt| receipt.range.len()).sum();
    let batch = if count == lines.batch.lines.len() {
        Arc::clone(&lines.batch)
    } else {
        let Batch { stream, data, .. } = &*lines.batch;
        let left = receipts.iter().flat_map(LineReceipt::lines).cloned().collect();
        Arc::new(Batch { stream: Arc::clone(stream), data: data.clone(), lines: left })
    };
    let promise = Arc::clone(&lines.promise);
    let amount = Amount::of(&batch);
    let rest = Rest { lines, amount };
    // From here on the rest answers for them.
    receipts.into_iter().for_each(LineReceipt::deliver);
    // What becomes of them is counted with the batch that they are of.
    Some(Delivery { batch, receipt: Receipt { books: Some(Books::Rest(rest)), amount, promise, ticket: None } })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::sinks::{
        Settlement,
        testing::{next_settled, pod_stream},
    };

    /// A batch of `count` lines of ten bytes, taken apart.
    fn taken_apart(stream: &Arc<Stream>, position: u64, count: u64) -> (Vec<LineReceipt>, Receiver<Settlement>) {
        let line = |index| Line { position: position + index * 10, span: 10, ..Line::default() };
        let lines = (0..count).map(line).collect();
        let batch = Arc::new(Batch { stream: Arc::clone(stream), data: bytes::Bytes::new(), lines });
        let (sender, settled) = channel();
        let receipt = Receipt::for_sinks(&batch, 1, &sender, None).pop().expect("one receipt");
        let lines = Lines::new(&batch, receipt);
        ((0..batch.lines.len()).map(|index| lines.line(index)).collect(), settled)
    }

    fn stream() -> Arc<Stream> {
        pod_stream("a", "b", "c")
    }

    fn positions(delivery: &Delivery) -> Vec<u64> {
        delivery.batch.lines.iter().map(|line| line.position).collect()
    }

    #[test]
    fn lines_are_settled_one_by_one() {
        let (mut lines, settled) = taken_apart(&stream(), 0, 3);
        lines.remove(1).give_up(Reason::Rejected);
        lines.remove(0).deliver();
        assert!(settled.try_recv().is_err());
        lines.remove(0).deliver();
        let lost = next_settled(&settled).lost;
        assert_eq!(lost, Some(Loss { reason: Reason::Rejected, lines: 1, span: 10 }));
    }

    #[test]
    fn lines_that_are_sent_together_are_settled_together_or_in_halves() {
        let (lines, settled) = taken_apart(&stream(), 0, 5);
        let all = Arc::clone(&lines[0].lines);
        lines.into_iter().for_each(LineReceipt::deliver);
        let [first, second] = all.part(0..5).split().expect("halves");
        drop(all);
        assert_eq!((first.lines().len(), second.lines().len(), second.line().position), (2, 3, 20));
        let [third, rest] = second.split().expect("halves");
        third.split().expect_err("it is one line").give_up(Reason::Oversize);
        let delivery = rejoin([rest, first]).pop_front().expect("one delivery");
        assert_eq!(positions(&delivery), [0, 10, 30, 40]);
        assert!(settled.try_recv().is_err());
        delivery.receipt.settle(Outcome::Delivered);
        let lost = next_settled(&settled).lost;
        assert_eq!(lost, Some(Loss { reason: Reason::Oversize, lines: 1, span: 10 }));
    }

    #[test]
    fn what_is_left_of_a_batch_goes_on_with_its_books() {
        let (mut lines, settled) = taken_apart(&stream(), 100, 5);
        lines.remove(4).give_up(Reason::Oversize);
        lines.remove(1).deliver();
        let mut back = rejoin(lines.into_iter().rev());
        assert!(settled.try_recv().is_err());
        let delivery = back.pop_front().expect("one delivery");
        assert_eq!((positions(&delivery), back.len()), (vec![100, 120, 130], 0));
        // The next sink takes it apart too, and gives back again.
        let again = Lines::new(&delivery.batch, delivery.receipt);
        let [first, second, third] = [0, 1, 2].map(|index| again.line(index));
        drop(again);
        first.deliver();
        let delivery = rejoin([third, second]).pop_front().expect("one delivery");
        assert_eq!(positions(&delivery), [120, 130]);
        assert!(settled.try_recv().is_err() && !delivery.receipt.promise().is_settled());
        delivery.receipt.settle(Outcome::Delivered);
        let got = next_settled(&settled);
        let lost = Some(Loss { reason: Reason::Oversize, lines: 1, span: 10 });
        assert_eq!((got.start, got.end, got.lines, got.span, got.lost), (100, 150, 5, 50, lost));
    }

    #[test]
    fn what_is_given_back_and_dropped_is_lost_once() {
        for (lost, settle) in [
            (2, (|receipt: Receipt| drop(receipt)) as fn(Receipt)),
            (2, |receipt| receipt.settle(Outcome::Dropped(Reason::Shutdown))),
            (1, |receipt| {
                receipt.settle(Outcome::Partly(Loss { reason: Reason::Shutdown, lines: 1, span: 10 }));
            }),
        ] {
            let (mut lines, settled) = taken_apart(&stream(), 0, 3);
            lines.remove(0).deliver();
            settle(rejoin(lines).pop_front().expect("one delivery").receipt);
            let loss = Loss { reason: Reason::Shutdown, lines: lost, span: lost * 10 };
            assert_eq!(next_settled(&settled).lost, Some(loss));
        }
    }

    #[test]
    fn deliveries_are_in_the_order_of_their_stream() {
        let [one, other] = [stream(), stream()];
        let batches = [(&one, 500, 2), (&other, 0, 1), (&one, 0, 2), (&one, 100, 2)];
        let (receipts, settled): (Vec<_>, Vec<_>) =
            batches.into_iter().map(|(stream, position, count)| taken_apart(stream, position, count)).unzip();
        let back = rejoin(receipts.into_iter().flatten());
        let found: Vec<_> = back.iter().map(positions).collect();
        assert_eq!(found, [vec![0, 10], vec![100, 110], vec![500, 510], vec![0]]);
        back.into_iter().for_each(|delivery| delivery.receipt.settle(Outcome::Delivered));
        assert!(settled.iter().all(|settled| next_settled(settled).lost.is_none()));
    }
}
