//! From a file that is a log to its stream: where it begins, and who it belongs to.

use std::sync::Arc;

use sidestep_abi::stdio::InodeKey;

use super::{
    Id, LOOK_NANOS, Open, Tailer,
    account::{book_lost, go_on},
    enqueue,
    look::{open_of, reopen},
};
use crate::{
    config::StartAt,
    events::Event,
    files::{
        judge::{Announced, Candidate},
        log_file::{About, LogFile},
        open::{Whereabouts, birth},
    },
    pipeline::container::{Container, Profile},
    record::Class,
};

/// File systems take the time of birth from a clock that moves with the timer's tick: 10 ms at most.
pub(super) const BIRTH_GRAIN_NANOS: u64 = 10_000_000;

impl Tailer {
    /// Ends a file whose inode number another file has now.
    pub(super) fn replace(&mut self, id: &Id, announced: Announced, container: &Arc<Container>, now: u64) {
        if let Some(open) = self.files.get_mut(id) {
            open.log.finish();
            let (progress, deliver, hold) = (&self.progress, &self.deliver, self.guards.oldest());
            open.log.take_batches(|batch| {
                progress.delivering(&batch);
                deliver(batch, hold);
            });
        }
        self.close_replaced(id, now);
        if let Some((_, pending)) = self.remembered.get_mut(id) {
            pending.replaced = true;
        }
        self.announce(&id.1, announced, container, now);
    }

    /// Makes a stream of a file that is a log.
    pub(super) fn admit(&mut self, key: InodeKey, mut candidate: Candidate, path: Arc<str>, earlier: u64, now: u64) {
        let Some(settled) = candidate.container.settled() else { return };
        let announced = candidate.announced.take();
        let name = announced.as_ref().map(|announced| announced.announced);
        let position = announced.as_ref().map(|announced| announced.position);
        let whereabouts = announced.map(|announced| announced.whereabouts).unwrap_or_default();
        let whereabouts = Whereabouts { path: Some(Arc::clone(&path)), ..whereabouts };
        let id = (Class::Business, key);
        if let Some(open) = self.files.get_mut(&id) {
            // It was found by the checkpoint meanwhile.
            if open.log.file().is_none() {
                reopen(&self.settings, open);
            }
            open.log.tally.add(earlier);
            if let Some(name) = name {
                go_on(&mut *self.verdicts, &key, open, name);
            }
            give(&mut open.log, &candidate);
            open.announced = candidate.renamed.take();
            open.join(&candidate.container, candidate.ended, now);
            enqueue(&mut self.queue, id, open);
            return;
        }
        let file = candidate.file.take().or_else(|| open_of(&self.settings, &key, &whereabouts, &settled));
        let start_at = settled.files.as_ref().map(|files| files.start_at);
        let first = candidate.kept.first().map(|kept| kept.record.position).into_iter().chain(position).min();
        let (position, incarnation) = match &file {
            Some(file) => self.start_of(&id, file, start_at, first.unwrap_or(0), now),
            // Without the file its time of birth is unknown too: the time of the first record stands for it.
            None => (first.unwrap_or(0), candidate.kept.first().map_or(now, |kept| kept.time_unix_nano)),
        };
        let about = about(Class::Business, key, path, &settled);
        let mut log = LogFile::new(about, file, position, incarnation, &self.readings);
        // Before anything of it is taken: that is not safe yet.
        self.progress.open(&log.stream().key, position);
        log.whereabouts = whereabouts;
        log.tally.add(earlier);
        if let Some(name) = name {
            // There is none before.
            let _ = log.tally.announce(name);
        }
        give(&mut log, &candidate);
        let ended = candidate.ended;
        if ended {
            // Nobody will look again.
            log.look_finally(now);
        } else {
            log.look(now);
        }
        let open = self.enter(id, log, vec![candidate.container], now, ended);
        open.announced = candidate.renamed;
    }

    /// Gives out what was kept of a log that is gone already: nothing else of it will ever be there.
    pub(super) fn admit_gone(&mut self, key: InodeKey, candidate: &Candidate, path: Arc<str>, earlier: u64) {
        let Some(settled) = candidate.container.settled() else { return };
        let announced = candidate.announced.as_ref().map(|announced| announced.announced);
        let written = announced.map_or(0, |announced| self.verdicts.written(&key, announced)).saturating_add(earlier);
        let Some(first) = candidate.kept.first() else { return book_lost(&candidate.container, written) };
        let about = about(Class::Business, key, path, &settled);
        // The time tells it from others that had the same inode number.
        let mut log = LogFile::new(about, None, first.record.position, first.time_unix_nano, &self.readings);
        give(&mut log, candidate);
        log.finish();
        log.settle(written);
        let (deliver, hold) = (&self.deliver, self.guards.oldest());
        log.take_batches(|batch| deliver(batch, hold));
    }

    /// Where to begin in a file that is seen for the first time by this agent, and in which incarnation.
    pub(super) fn start_of(
        &self,
        id: &Id,
        file: &std::fs::File,
        start_at: Option<StartAt>,
        first: u64,
        now: u64,
    ) -> (u64, u64) {
        let known = self.remembered.get(id).map(|(_, pending)| pending);
        if known.is_some_and(|pending| pending.replaced) {
            // The time tells them apart: files that were made within a tick of the clock have the same time of birth.
            return (first, now);
        }
        if let Some(pending) = known
            && pending.entry.birth == birth(file)
        {
            let standing = pending.entry.standing();
            if standing.holds_for(file) {
                return (standing.position, standing.incarnation);
            }
            if let Some(size) = standing.is_beyond(file) {
                let (path, position) = (&*pending.entry.path, standing.position);
                Event::PositionImplausible { path, position, size }.report();
            }
            // Known, but truncated meanwhile: it begins anew.
            return (0, now);
        }
        let born = birth(file);
        let is_new = self.is_new(born) || born == 0 && first == 0;
        if is_new || start_at == Some(StartAt::Beginning) { (0, 0) } else { (first, 0) }
    }

    /// Whether a file that no checkpoint knows was made when an agent ran, or since: then nobody has read any of it.
    pub(super) const fn is_new(&self, born: u64) -> bool {
        born.saturating_add(BIRTH_GRAIN_NANOS) >= self.new_since
    }

    pub(super) fn enter(
        &mut self,
        id: Id,
        mut log: LogFile,
        users: Vec<Arc<Container>>,
        now: u64,
        ending: bool,
    ) -> &mut Open {
        self.remembered.remove(&id);
        self.unsaved = true;
        if self.opened >= self.settings.max_open && !log.is_behind() && !ending {
            // Looked at like the others that were closed for want of descriptors.
            log.close();
        }
        self.opened += usize::from(log.file().is_some());
        let look_interval = match id.0 {
            Class::Server => self.settings.server.poll_interval.as_nanos().try_into().unwrap_or(u64::MAX),
            _ => LOOK_NANOS.start,
        };
        let next_look = now + look_interval;
        let (queued, saved) = (false, false);
        let open = Open { log, users, announced: None, next_look, look_interval, grown: now, queued, saved, ending };
        let open = self.files.entry(id).insert_entry(open).into_mut();
        enqueue(&mut self.queue, id, open);
        open
    }
}

/// Gives a log what was kept of it. Of what was not, the file tells; without one it is booked as lost.
fn give(log: &mut LogFile, candidate: &Candidate) {
    for kept in &candidate.kept {
        log.record(&kept.record, &kept.bytes, kept.time_unix_nano);
    }
    if log.file().is_none() {
        log.lose_elsewhere(candidate.left_out);
    }
}

pub(super) fn about(class: Class, key: InodeKey, path: Arc<str>, settled: &Profile) -> About {
    About {
        key,
        class,
        declared_class: settled.class,
        path,
        resource: Arc::clone(&settled.resource),
        account: Arc::clone(&settled.account),
        lines: Arc::clone(settled.lines.compiled()),
    }
}

/// What names a container over restarts of the agent.
pub(super) fn owner(settled: &Profile) -> &str {
    settled.identity.resource.container_id.as_deref().unwrap_or(&settled.identity.container_cgroup)
}
