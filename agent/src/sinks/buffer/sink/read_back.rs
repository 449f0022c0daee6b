//! What is on disk only goes to the sink.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Buffered;
use crate::{
    ledger::{Reason, Stage},
    sinks::{
        Delivery, Receipt, SinkError,
        buffer::{frame::Meta, log::Read},
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
        let (meta, payload) = match read {
            Read::Frame(meta, payload) => (meta, payload),
            Read::Damaged(meta) => {
                self.lose(meta);
                return None;
            }
        };
        let batch = match self.reviver.batch(payload, &self.home) {
            Ok(batch) => Arc::new(batch),
            Err(error) => {
                tracing::error!(
                    buffer = %self.path.display(), sequence = meta.sequence, records = meta.records, %error,
                    "a batch in the buffer can't be read and is dropped"
                );
                self.log.note_damaged();
                self.lose(Some(meta));
                return None;
            }
        };
        if self.unbooked.contains(&meta.sequence) {
            batch.stream.account.produce(batch.span());
        }
        let mut receipt = Receipt::read_back(&batch, self.home.settled());
        receipt.count_for(&self.counters, &batch);
        Some((meta.sequence, Delivery { batch, receipt }))
    }

    /// Books a frame that can't be read, where its header says what it was.
    pub(super) fn lose(&mut self, meta: Option<Meta>) {
        let Some(meta) = meta else { return };
        let records = u64::from(meta.records);
        let account = self.home.account_by_id(meta.cgroup);
        if self.unbooked.contains(&meta.sequence) {
            account.produce(meta.span);
        }
        account.drop_bytes(Stage::Sink, Reason::Damaged, meta.span);
        self.counters.note_lost(Loss { reason: Reason::Damaged, lines: records, span: meta.span });
        self.log.forget(records);
    }
}
