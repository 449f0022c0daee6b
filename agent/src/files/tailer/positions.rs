//! Where files stand: remembered when they are closed, and written to the checkpoint.

use std::sync::Arc;

use super::{
    Id, Open, Tailer,
    account::{count_passed_over, settle},
    admit::owner,
};
use crate::{
    clock::unix_nano,
    files::{Progress, checkpoint::Entry, log_file::Standing},
    record::Class,
};

/// A log that was made so long ago is known, or will never be: records and announcements are on their way for less
/// than a second, candidates wait for half a minute, and the node's files are searched for each ten seconds. Too long
/// does no harm: a file of that age that this agent does not know would be new to it too.
const FOUND_NANOS: u64 = 60_000_000_000;
/// Files that are remembered after they were closed.
const MAX_REMEMBERED: usize = 8192;

/// When all containers that run were found, after the start.
const RESUMED_NANOS: u64 = 600_000_000_000;

/// A position that is about to move.
pub(in crate::files) struct Pending {
    pub(super) entry: Entry,
    pub(super) stream: Option<Arc<str>>,
    /// Another file has the inode number, and what was held may have been that one: nobody goes on here.
    pub(super) replaced: bool,
}

impl Pending {
    /// The entry with what is acknowledged now. A stream that nobody knows has nothing on its way.
    pub(in crate::files) fn entry(&self, progress: &Progress) -> Entry {
        let acknowledged = self.stream.as_ref().and_then(|key| progress.acknowledged(key));
        Entry { position: acknowledged.unwrap_or(self.entry.position), ..self.entry.clone() }
    }
}

impl Tailer {
    pub(super) fn close(&mut self, id: &Id, now: u64) {
        if let Some(open) = self.files.get_mut(id)
            && id.0 == Class::Business
        {
            let passed_over = open.announced.take();
            count_passed_over(&mut *self.verdicts, &id.1, open, passed_over.as_ref());
            settle(&mut *self.verdicts, &id.1, open);
            self.verdicts.forget(&id.1);
        }
        self.remember(id, now);
    }

    /// As [`Tailer::close`], for a file whose inode number another one has: what the kernel knows is of that one.
    pub(super) fn close_replaced(&mut self, id: &Id, now: u64) {
        if let Some(open) = self.files.get_mut(id) {
            settle(&mut *self.verdicts, &id.1, open);
        }
        self.remember(id, now);
    }

    fn remember(&mut self, id: &Id, now: u64) {
        let Some(open) = self.files.remove(id) else { return };
        let pending = pending(&open);
        if let Some(key) = &pending.stream {
            self.progress.close(key);
        }
        self.remembered.insert(*id, (now, pending));
        if self.remembered.len() > MAX_REMEMBERED {
            self.forget_oldest(now);
        }
    }

    /// Forgets the older half of those that may be forgotten, if these are too many.
    fn forget_oldest(&mut self, now: u64) {
        // What an agent before has left waits for its containers, which are found one after the other.
        let may_go =
            |(time, pending): &(u64, Pending)| pending.stream.is_some() || now.saturating_sub(*time) >= RESUMED_NANOS;
        let closed = self.remembered.iter().filter(|(_, entry)| may_go(entry));
        let mut closed: Vec<_> = closed.map(|(id, (time, _))| (*time, *id)).collect();
        if closed.len() <= MAX_REMEMBERED {
            return;
        }
        closed.sort_unstable_by_key(|(time, _)| *time);
        for (_, id) in &closed[..closed.len() / 2] {
            self.remembered.remove(id);
        }
    }

    /// See [`Known::complete_until`](crate::files::checkpoint::Known::complete_until).
    pub(super) fn complete_until(&self) -> u64 {
        self.caught_up.saturating_sub(FOUND_NANOS).max(self.new_since)
    }

    pub(super) fn save(&mut self) {
        self.unsaved = false;
        self.last_save = unix_nano();
        let mut entries: Vec<_> = self.files.values().map(|open| pending(open).entry(&self.progress)).collect();
        let known = self.remembered.values().map(|(_, pending)| pending).filter(|pending| !pending.replaced);
        entries.extend(known.map(|pending| pending.entry(&self.progress)));
        self.checkpoint.write(entries, self.complete_until());
        self.files.values_mut().for_each(|open| open.saved = true);
        self.readings.set_streams(self.files.values().map(|open| open.log.reading()).collect());
    }
}

pub(super) fn pending(open: &Open) -> Pending {
    let about = &open.log.about;
    let Standing { birth, incarnation, position, head_len, head_digest } =
        open.log.standing(open.log.unfinished_position());
    let owner = open.users.first().and_then(|user| user.settled()).map(|settled| owner(&settled).to_owned());
    let owner = owner.unwrap_or_default();
    let entry = Entry {
        ino: about.key.ino,
        dev: about.key.dev,
        class: about.class,
        path: about.path.as_ref().to_owned(),
        owner,
        birth,
        incarnation,
        position,
        head_len,
        head_digest,
    };
    Pending { entry, stream: Some(Arc::clone(&open.log.stream().key)), replaced: false }
}
