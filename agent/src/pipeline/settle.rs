//! Books what the sinks have settled, in the ledger and in the positions of files.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
};

use crate::{
    events::Event,
    files::Progress,
    ledger::{Reason, Stage},
    sinks::{Settled, Settlement},
};

/// Starts the thread; it ends when every sink and every batch is gone, and closes what it returns.
pub(super) fn spawn(settlements: Receiver<Settlement>, files: Arc<Progress>) -> io::Result<Receiver<()>> {
    let (running, ended) = mpsc::channel();
    std::thread::Builder::new().name("settle".to_owned()).spawn(move || {
        let _running = running;
        for settlement in settlements {
            let settled = match settlement {
                Settlement::Stored(span) => {
                    files.stored(&span);
                    continue;
                }
                Settlement::Settled(settled) => settled,
            };
            book(&settled);
        }
    })?;
    Ok(ended)
}

/// Books one batch.
pub(crate) fn book(settled: &Settled) {
    let account = &settled.stream.account;
    if settled.kept {
        // What buffers on disk have is pending still, and booked when it is read back: by each of them.
        let lost = settled.lost.map_or(0, |lost| lost.span);
        if let Some(lost) = settled.lost {
            account.drop_bytes(Stage::Sink, lost.reason, lost.span);
        }
        let later = settled.kept_span + lost;
        account.overbook(later.saturating_sub(settled.span));
        account.deliver(settled.span.saturating_sub(later), 0);
        return;
    }
    let elsewhere = account.take_overbooked(settled.span);
    let (mut span, mut lines) = (settled.span - elsewhere, settled.lines);
    if let Some(lost) = settled.lost {
        if matches!(lost.reason, Reason::Rejected | Reason::Oversize) {
            let (reason, stream) = (lost.reason.as_str(), &*settled.stream.key);
            Event::RecordsRejected { reason, lines: lost.lines, stream }.report();
        }
        let lost_span = lost.span.min(span);
        account.drop_bytes(Stage::Sink, lost.reason, lost_span);
        (span, lines) = (span - lost_span, lines - lost.lines);
    }
    if elsewhere > 0 && span == 0 {
        lines = 0;
    }
    account.deliver(span, lines);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        ledger::Reason,
        sinks::{Outcome, Receipt, Settlement, testing},
    };

    #[test]
    fn a_batch_in_the_buffers_of_two_sinks_is_booked_once() {
        let stream = testing::pod_stream("a", "b", "c");
        let account = &stream.account;
        let batch = Arc::new(testing::batch(&stream, 0, &[b"0123456789"]));
        account.produce(11);
        let (sender, settlements) = mpsc::channel();
        let mut receipts = Receipt::for_sinks(&batch, 3, &sender, None);
        receipts.pop().expect("a receipt").settle(Outcome::Delivered);
        for receipt in receipts {
            receipt.promise().secure();
            drop(receipt);
        }
        // Each buffer reads it back.
        let read_back = || Receipt::for_sinks(&batch, 1, &sender, None).remove(0);
        let book_all = || {
            for settlement in settlements.try_iter() {
                if let Settlement::Settled(settled) = settlement {
                    book(&settled);
                }
            }
        };
        book_all();
        assert_eq!(account.balance().pending, 11);
        read_back().settle(Outcome::Delivered);
        book_all();
        assert_eq!(account.balance().pending, 11, "one of two");
        read_back().settle(Outcome::Dropped(Reason::Rejected));
        book_all();
        let balance = account.balance();
        assert_eq!((balance.pending, balance.dropped_total(), balance.difference()), (0, 11, 0));
    }
}
