//! What the thread does with each event.

use std::{sync::Arc, time::Instant};

use sidestep_abi::{
    log::{FLAG_APPEND, FLAG_POSITIONED},
    stdio::InodeKey,
};

use super::{
    LOOK_NANOS, Open, Tailer,
    account::{book_lost, count_passed_over, go_on},
    enqueue,
    look::reopen,
};
use crate::{
    clock::unix_nano,
    files::{
        event::{FileEvent, FileEvents},
        judge::{Announced, Verdict},
        open::Whereabouts,
        position::Record,
    },
    pipeline::container::Container,
    record::Class,
};

impl Open {
    /// Another container has written it. When it has ended, and nobody else writes, the file ends too.
    pub(super) fn join(&mut self, container: &Arc<Container>, ended: bool, now: u64) {
        let other = |user: &Arc<Container>| user.cgroup != container.cgroup;
        if !ended {
            if self.users.iter().all(other) {
                self.users.push(Arc::clone(container));
            }
        } else if self.users.len() > 1 {
            self.users.retain(other);
        } else if !self.users.iter().any(other) {
            self.log.look_finally(now);
            self.ending = true;
        }
    }
}

impl Tailer {
    /// Takes the events of one round, then reads what they leave to be read.
    pub(super) fn round(&mut self, round: &FileEvents) {
        let now = unix_nano();
        self.guards.take(&round.holds, Instant::now());
        for event in &round.events {
            match event {
                FileEvent::Seen { key, announced, path, tgid, fd, position, name_hash, container } => {
                    let whereabouts = Whereabouts { tgid: *tgid, fd: *fd, path: path.clone() };
                    let (announced, position, name_hash) = (*announced, *position, *name_hash);
                    let announced = Announced { announced, whereabouts, position, name_hash };
                    if let Some(open) = self.files.get_mut(&(Class::Business, *key)) {
                        // Renamed, or its verdict had fallen out of the kernel's map, or another file has its inode
                        // number now: the place of the next record tells.
                        let before = open.announced.replace(announced);
                        count_passed_over(&mut *self.verdicts, key, open, before.as_ref());
                        continue;
                    }
                    self.announce(key, announced, container, now);
                }
                FileEvent::Data { key, position, bytes, time_unix_nano, tid, description, flags, container } => {
                    let record = Record {
                        position: *position,
                        len: bytes.len() as u64,
                        append: flags & FLAG_APPEND != 0,
                        positioned: flags & FLAG_POSITIONED != 0,
                        tid: *tid,
                        description: *description,
                    };
                    let bytes = round.bytes.get(bytes.clone()).unwrap_or_default();
                    self.caught_up = self.caught_up.max((*time_unix_nano).min(now));
                    self.data(key, &record, bytes, *time_unix_nano, container, now);
                }
                FileEvent::Forgotten { key } => self.verdicts.announce_again(key),
                FileEvent::Unannounced { containers } => self.search_unannounced(containers, now),
                FileEvent::Resume { container, pids } => self.resume(container, pids),
                FileEvent::RulesChanged => self.rules_changed(now),
                FileEvent::Ended { container } => self.ended(container),
            }
        }
        self.judge(now, false);
        let touched = self.queue.len();
        self.turns(touched);
    }

    /// What was no log may be one now, and the other way round: such a file ends with what it holds.
    fn rules_changed(&mut self, now: u64) {
        self.verdicts.forget_ignored();
        for (id, open) in self.files.iter_mut().filter(|(id, _)| id.0 == Class::Business) {
            let path = &open.log.about.path;
            let is_log = |user: &Arc<Container>| {
                user.settled().is_none_or(|settled| settled.files.as_ref().is_some_and(|files| files.matches(path)))
            };
            if !open.users.iter().any(is_log) {
                open.log.look_finally(now);
                open.log.tally.void();
                open.ending = true;
                enqueue(&mut self.queue, *id, open);
            }
        }
    }

    fn data(
        &mut self,
        key: &InodeKey,
        record: &Record,
        bytes: &[u8],
        time_unix_nano: u64,
        container: &Arc<Container>,
        now: u64,
    ) {
        let id = (Class::Business, *key);
        if let Some(open) = self.files.get_mut(&id)
            && let Some(announced) = open.announced.take()
        {
            let other_name = announced.whereabouts.path.as_deref().is_some_and(|path| *path != *open.log.about.path);
            if other_name && record.position == 0 {
                self.replace(&id, announced, container, now);
            } else {
                go_on(&mut *self.verdicts, key, open, announced.announced);
            }
        }
        let Some(open) = self.files.get_mut(&id) else {
            if !self.candidates.keep(*key, *record, bytes, time_unix_nano, container, now) {
                self.readings.count_unjudged(record.len);
                self.verdicts.forget(key);
            }
            return;
        };
        if open.log.file().is_none() {
            reopen(&self.settings, open);
            self.opened += usize::from(open.log.file().is_some());
        }
        open.log.record(record, bytes, time_unix_nano);
        open.grown = now;
        open.look_interval = LOOK_NANOS.start;
        open.next_look = now + LOOK_NANOS.start;
        open.join(container, false, now);
        enqueue(&mut self.queue, id, open);
    }

    pub(super) fn announce(&mut self, key: &InodeKey, announced: Announced, container: &Arc<Container>, now: u64) {
        if !self.candidates.announce(*key, announced, container, now) {
            self.verdicts.forget(key);
        }
    }

    /// Judges the files whose container is known by now.
    pub(super) fn judge(&mut self, now: u64, finally: bool) {
        if self.candidates.is_empty() {
            return;
        }
        for (key, candidate, verdict) in self.candidates.judge(now, finally) {
            let announced = candidate.announced.as_ref().map_or(0, |announced| announced.announced);
            let earlier = self.written_earlier(&key, &candidate);
            match verdict {
                // The verdict is on what has the inode number now.
                Verdict::Log(path) if candidate.gone => self.admit_gone(key, &candidate, path, earlier),
                Verdict::NoLog if candidate.gone => book_lost(&candidate.container, earlier),
                Verdict::Log(path) => {
                    self.verdicts.set(&key, announced, true);
                    self.remember_name(&key, &candidate, &path);
                    self.admit(key, candidate, path, earlier, now);
                }
                Verdict::NoLog => {
                    self.verdicts.set(&key, announced, false);
                    book_lost(&candidate.container, earlier);
                    if let Some(other) = candidate.renamed {
                        // By this name it may be one, or another file that is.
                        self.announce(&key, other, &candidate.container, now);
                    }
                }
                Verdict::Unknown => {
                    // What is not known to be a log is in no account.
                    let written = self.verdicts.written(&key, announced).saturating_add(earlier);
                    self.readings.count_unjudged(candidate.written().max(written));
                    if !candidate.gone {
                        self.verdicts.forget(&key);
                    }
                }
            }
        }
    }

    fn ended(&mut self, container: &Arc<Container>) {
        self.candidates.end(container);
        let now = unix_nano();
        for (id, open) in &mut self.files {
            let Some(index) = open.users.iter().position(|user| user.cgroup == container.cgroup) else { continue };
            if open.users.len() > 1 {
                open.users.swap_remove(index);
                continue;
            }
            if open.log.file().is_none() {
                reopen(&self.settings, open);
                self.opened += usize::from(open.log.file().is_some());
            }
            open.log.look_finally(now);
            open.ending = true;
            enqueue(&mut self.queue, *id, open);
        }
    }
}
