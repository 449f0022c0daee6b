//! Events that go on to the file thread.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError},
    },
};

use sidestep_abi::{file::FileSeen, log::LogEvent, stdio::InodeKey};

use crate::{
    files::event::{FileEvent, FileEvents},
    pipeline::container::Container,
    sinks::Hold,
};

/// What may wait to be handed to the file thread, in bytes; above it the files themselves hold the data.
const MAX_UNSENT: usize = 8 * 1024 * 1024;
/// Announcements that may wait in any case: the file may be gone when it is written next, and it would be in no account.
const MAX_UNSENT_ANNOUNCEMENTS: usize = 16_384;
/// Files that could not be announced to the file thread; above it they are found when their container ends.
const MAX_FORGOTTEN: usize = 65_536;

/// The way to the file thread.
pub(super) struct ToFiles {
    sender: SyncSender<FileEvents>,
    events: FileEvents,
    /// Announcements among `events`.
    announcements: usize,
    /// Files whose announcement did not fit: their verdicts are forgotten, so that they are announced again.
    forgotten: HashSet<InodeKey>,
    /// Files are to be searched for that were not announced.
    is_incomplete: bool,
}

impl ToFiles {
    pub(super) fn new(sender: SyncSender<FileEvents>) -> Self {
        Self {
            sender,
            events: FileEvents::default(),
            announcements: 0,
            forgotten: HashSet::new(),
            is_incomplete: false,
        }
    }

    /// Whether there is room for bytes of a file.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.events.weight() + bytes <= MAX_UNSENT
    }

    pub(super) fn data(&mut self, event: &LogEvent, bytes: &[u8], time_unix_nano: u64, container: Arc<Container>) {
        let start = self.events.bytes.len();
        self.events.bytes.extend_from_slice(bytes);
        self.push(FileEvent::Data {
            key: InodeKey { ino: event.ino, dev: event.dev, _pad: 0 },
            position: event.position,
            bytes: start..self.events.bytes.len(),
            time_unix_nano,
            tid: event.header.tid,
            description: event.description,
            flags: event.header.flags,
            container,
        });
    }

    /// Whether there is room for an announcement; when there is none, the file is announced again later.
    pub(super) fn has_room_to_announce(&mut self, key: InodeKey) -> bool {
        let full = self.events.weight() > MAX_UNSENT && self.announcements >= MAX_UNSENT_ANNOUNCEMENTS;
        if full && self.forgotten.len() < MAX_FORGOTTEN {
            self.forgotten.insert(key);
        }
        !full
    }

    pub(super) fn seen(&mut self, seen: &FileSeen, path: Option<Arc<str>>, container: Arc<Container>) {
        self.announcements += 1;
        self.push(FileEvent::Seen {
            key: InodeKey { ino: seen.ino, dev: seen.dev, _pad: 0 },
            announced: seen.header.time,
            path,
            tgid: seen.header.tgid,
            fd: seen.fd,
            position: seen.position,
            name_hash: seen.name_hash,
            container,
        });
    }

    /// Files may be there that nobody has announced.
    pub(super) const fn set_incomplete(&mut self) {
        self.is_incomplete = true;
    }

    /// Lets the files be searched for that were not announced, if there may be any.
    pub(super) fn search_unannounced(&mut self, containers: impl FnOnce() -> Vec<Arc<Container>>) {
        if std::mem::take(&mut self.is_incomplete) {
            self.push(FileEvent::Unannounced { containers: containers() });
        }
    }

    pub(super) fn push(&mut self, event: FileEvent) {
        self.events.events.push(event);
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.events.events.is_empty()
    }

    /// Hands the events over if the queue has room. They carry the guards of the rounds that they came in.
    pub(super) fn send(&mut self, hold: Option<&Hold>) {
        if self.events.weight() < MAX_UNSENT / 2 && !self.forgotten.is_empty() {
            self.events.events.extend(self.forgotten.drain().map(|key| FileEvent::Forgotten { key }));
            self.is_incomplete = true;
        }
        if !self.is_waiting() {
            return;
        }
        if let Some(hold) = hold
            && self.events.holds.last().is_none_or(|last| !Arc::ptr_eq(last, hold))
        {
            self.events.holds.push(Arc::clone(hold));
        }
        match self.sender.try_send(std::mem::take(&mut self.events)) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => self.announcements = 0,
            // Kept for the next round; data beyond the bound is left to the file.
            Err(TrySendError::Full(events)) => self.events = events,
        }
    }
}
