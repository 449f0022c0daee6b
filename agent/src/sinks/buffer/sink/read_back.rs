//! What is on disk only goes to the sink.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Buffered;
use crate::{
    ledger::{Account, Reason, Stage},
    sinks::{
        Delivery, Receipt, SinkError,
        buffer::{
            frame::{Meta, Totals},
            log::Read,
        },
        receipt::Loss,
        worker::Size,
    },
};

/// How long the sink is given from disk at a time: meanwhile new lines wait, and nothing is noted as acknowledged. An agent
/// that is killed before that begins where the one before it did.
const TURN: Duration = Duration::from_millis(20);

impl Buffered {
    /// Gives the sink what waits on disk, as far as it has room, for one turn; whether it has room for more.
    pub(super) fn feed(&mut self) -> Result<bool, SinkError> {
        let end = Instant::now() + TURN;
        while self.log.has_unread() && self.has_room(Size::default()) {
            if Instant::now() >= end {
                return Ok(true);
            }
            let read = self.log.read().map_err(|error| self.error("reading back", Some(error)))?;
            let Some(read) = read else { break };
            if let Some((sequence, Delivery { batch, receipt })) = self.revive(read) {
                self.send(sequence, batch, receipt, true);
            }
        }
        Ok(false)
    }

    /// A delivery of what was read from disk; what can't be understood is booked as lost.
    pub(super) fn revive(&mut self, read: Read) -> Option<(u64, Delivery)> {
        let (meta, batch) = match read {
            Read::Frame(meta, payload) => match self.reviver.batch(payload, &self.home) {
                Ok(batch) => (meta, batch),
                Err(error) => {
                    tracing::error!(
                        buffer = %self.path.display(), sequence = meta.sequence, records = meta.records, %error,
                        "a batch in the buffer can't be read and is dropped"
                    );
                    self.log.note_damaged();
                    self.lose(meta, &self.home.account_by_id(meta.cgroup));
                    return None;
                }
            },
            Read::Damaged(meta, payload) => match self.reviver.rest(payload, &self.home) {
                Ok(batch) if !batch.lines.is_empty() => {
                    let records = u32::try_from(batch.lines.len()).unwrap_or(u32::MAX);
                    let lost = Meta {
                        records: meta.records.saturating_sub(records),
                        span: meta.span.saturating_sub(batch.span()),
                        ..meta
                    };
                    self.lose(lost, &batch.stream.account);
                    (meta, batch)
                }
                Ok(_) | Err(_) => {
                    self.lose(meta, &self.home.account_by_id(meta.cgroup));
                    return None;
                }
            },
            Read::Missing(Totals { records, span }) => {
                // Whose it was went with it.
                let account = self.home.node_account();
                account.produce(span);
                self.drop_damaged(records, span, &account);
                return None;
            }
        };
        let batch = Arc::new(batch);
        if self.unbooked.contains(&meta.sequence) {
            batch.stream.account.produce(batch.span());
        }
        let mut receipt = Receipt::read_back(&batch, self.home.settled());
        receipt.count_for(&self.counters, &batch);
        Some((meta.sequence, Delivery { batch, receipt }))
    }

    /// Books what can't be read.
    fn lose(&mut self, lost: Meta, account: &Account) {
        if self.unbooked.contains(&lost.sequence) {
            account.produce(lost.span);
        }
        self.drop_damaged(u64::from(lost.records), lost.span, account);
    }

    fn drop_damaged(&mut self, lines: u64, span: u64, account: &Account) {
        account.drop_bytes(Stage::Sink, Reason::Damaged, span);
        self.counters.note_lost(Loss { reason: Reason::Damaged, lines, span });
        self.log.forget(lines);
    }
}
