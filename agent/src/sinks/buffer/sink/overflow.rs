//! When the buffer, or its disk, is full.

use std::{collections::VecDeque, io};

use bytesize::ByteSize;

use super::Buffered;
use crate::{
    events::Event,
    ledger::Reason,
    sinks::{
        Delivery, Outcome, SinkError,
        buffer::{config::WhenFull, log::AppendError},
        worker::Size,
    },
};

/// The most batches that are fetched from files before new ones have their turn.
const BACK: usize = 64;

impl Buffered {
    /// Takes deliveries; what there is no room for stays in its file if it has one, else the rule decides.
    pub(super) fn accept(&mut self, queue: &mut VecDeque<Delivery>) -> Result<(), SinkError> {
        let mut result = Ok(());
        while let Some(delivery) = queue.pop_front() {
            // Behind what is owed of its stream it keeps its place.
            let is_behind = self.owed.has(&delivery.batch.stream);
            // A file can wait, and leaves the room there is to pipes, which can't.
            let delivery = if is_behind || self.owed.is_empty() {
                delivery
            } else {
                let Err(delivery) = self.owed.owe(delivery, self.home.processors().redo()) else { continue };
                delivery
            };
            let mut is_full = false;
            let delivery = if is_behind {
                delivery
            } else {
                let Err(refused) = self.put(delivery) else { continue };
                // Other troubles of the disk would not end with less on it.
                is_full =
                    has_no_space(&refused.error.source) && refused.delivery.batch.memory() < self.settings.at_once();
                self.why_full = refused.error.to_string();
                result = Err(refused.error);
                refused.delivery
            };
            let Err(delivery) = self.owed.owe(delivery, self.home.processors().redo()) else { continue };
            let when_full = self.settings.when_full;
            let delivery = match when_full {
                WhenFull::Block => {
                    queue.push_front(delivery);
                    break;
                }
                WhenFull::DropOldest if is_full && self.drop_oldest() => match self.put(delivery) {
                    Ok(()) => continue,
                    Err(refused) => refused.delivery,
                },
                WhenFull::DropOldest | WhenFull::DropNewest => delivery,
            };
            delivery.receipt.settle(Outcome::Dropped(Reason::BufferFull));
        }
        result
    }

    /// Goes back for what was left in files, once there is room.
    pub(super) fn go_back(&mut self) -> Result<(), SinkError> {
        for _ in 0..BACK {
            let has_room = self.has_room(Size::default()) && !self.log.has_unread();
            if !has_room && self.log.size() > self.room / 4 * 3 {
                break;
            }
            let Some((places, receipt)) = self.owed.take() else {
                self.room = self.settings.max_bytes.as_u64();
                break;
            };
            match places.read() {
                Ok(batch) => {
                    if let Err(refused) = self.put(Delivery { batch, receipt }) {
                        self.owed.put_back(places, refused.delivery.receipt);
                        return Err(refused.error);
                    }
                }
                Err(reason) => {
                    let error = "it was cut off, written anew or can't be read, before a sink had all of it";
                    Event::FileUnreadable { path: places.path(), error: &error }.report();
                    receipt.settle(Outcome::Dropped(reason));
                }
            }
        }
        Ok(())
    }

    /// As long as it is owed something, a sink does not work well.
    pub(super) fn check(&self) -> Result<(), SinkError> {
        if self.owed.is_empty() {
            return Ok(());
        }
        let left = ByteSize::b(self.owed.bytes());
        Err(SinkError {
            action: self.why_full.clone(),
            source: io::Error::other(format!("{left} wait in their files")),
        })
    }

    /// Drops the oldest segment that the sink has nothing of; false when there is none.
    pub(super) fn drop_oldest(&mut self) -> bool {
        let before = self.log.size();
        let mut is_readable = true;
        while is_readable && self.log.has_unread() {
            let segment = self.log.reading();
            self.log.close_segment();
            let mut dropped = 0;
            while self.log.has_unread() && self.log.reading() == segment {
                let read = self.log.read();
                is_readable = matches!(read, Ok(Some(_)));
                let Ok(Some(read)) = read else { break };
                if let Some((_, Delivery { batch, receipt })) = self.revive(read) {
                    dropped += batch.lines.len() as u64;
                    receipt.settle(Outcome::Dropped(Reason::BufferFull));
                }
            }
            self.log.forget(dropped);
            if let Err(error) = self.retire() {
                tracing::warn!(buffer = %self.path.display(), %error, "making room in the buffer");
            }
            if self.log.size() < before {
                return true;
            }
        }
        false
    }

    pub(super) fn full(&self, error: AppendError) -> SinkError {
        let rule = match self.settings.when_full {
            WhenFull::Block => {
                "new lines stay in their files; those of pipes stay in the kernel's ring as far as it holds them, and \
                 all sinks wait"
            }
            WhenFull::DropNewest => "new lines stay in their files, those of pipes are dropped",
            WhenFull::DropOldest => "new lines stay in their files, and for those of pipes the oldest are dropped",
        };
        match error {
            AppendError::Full => self.error(
                &format!(
                    "the buffer has its {}: {rule}; mend the sink, or raise buffer.max_bytes",
                    self.settings.max_bytes
                ),
                None,
            ),
            AppendError::Io(source) if has_no_space(&source) => {
                self.error(&format!("{rule}; free the disk of state_dir"), Some(source))
            }
            AppendError::Io(source) => self.error(&format!("{rule}; check the disk of state_dir"), Some(source)),
        }
    }
}

/// Whether it is the disk that is full.
pub(super) fn has_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
