//! Bytes that were written to logs and that nobody can read any more: what the kernel has counted and no stage has seen.

use std::{collections::HashMap, path::Path, sync::Arc};

use sidestep_abi::stdio::InodeKey;

use super::{Open, Tailer, look::pids};
use crate::{
    clock::unix_nano,
    files::{
        find,
        judge::{Announced, Candidate},
        open::Whereabouts,
    },
    ledger::{Reason, Stage},
    pipeline::container::{Container, Settled},
    policy::{Unannounced, Verdicts},
    record::Class,
};

/// Names of logs that are remembered.
const MAX_NAMES: usize = 8192;
/// Pause before a search: writers announce their files themselves as soon as there is room.
const SEARCH_NANOS: u64 = 2_000_000_000;

/// Files that were not announced, and what they can be known by.
#[derive(Default)]
pub(super) struct Search {
    /// By device and by the hash of name and directory, which holds for as long as the directory is in use.
    names: HashMap<(u32, u32), Name>,
    /// When to search.
    due: Option<u64>,
}

/// The name of a log.
struct Name {
    path: Arc<str>,
    container: Arc<Container>,
}

impl Tailer {
    /// What was written under earlier announcements of a candidate, as far as those were of logs.
    pub(super) fn written_earlier(&mut self, key: &InodeKey, candidate: &Candidate) -> u64 {
        let Some(settled) = candidate.container.settled() else { return 0 };
        let logs = candidate.earlier.iter().filter(|earlier| is_log(&settled, earlier));
        logs.map(|earlier| self.verdicts.written(key, earlier.announced)).fold(0, u64::saturating_add)
    }

    /// Remembers by what name a file is a log.
    pub(super) fn remember_name(&mut self, key: &InodeKey, candidate: &Candidate, path: &Arc<str>) {
        let Some(announced) = &candidate.announced else { return };
        if self.search.names.len() >= MAX_NAMES {
            self.search.names.clear();
        }
        let name = Name { path: Arc::clone(path), container: Arc::clone(&candidate.container) };
        self.search.names.insert((key.dev, announced.name_hash), name);
    }

    /// Files were not announced: they are searched for in a moment.
    pub(super) fn search_unannounced(&mut self, now: u64) {
        self.search.due.get_or_insert(now + SEARCH_NANOS);
    }

    /// Finds files that were not announced and that have the name of a log in its directory: such a file takes its way
    /// as if it had been announced, or what was written to it is lost.
    pub(super) fn find_unannounced(&mut self, now: u64) {
        if self.search.due.is_none_or(|due| now < due && due - now <= SEARCH_NANOS) {
            return;
        }
        self.search.due = None;
        let mut waiting = false;
        for file in self.verdicts.unannounced() {
            let Some(name) = self.search.names.get(&(file.key.dev, file.name_hash)) else {
                if file.gone {
                    // Nobody can tell what it was.
                    self.readings.count_unjudged(file.written);
                    self.verdicts.settle(&file);
                }
                continue;
            };
            let (path, container) = (Arc::clone(&name.path), Arc::clone(&name.container));
            if let Some(open) = self.files.get_mut(&(Class::Business, file.key)) {
                if file.gone {
                    self.verdicts.settle(&file);
                    open.log.tally.add(file.written);
                } else {
                    // It is announced when it is written next, and counted at its end in any case.
                    waiting = true;
                }
                continue;
            }
            if !file.gone && self.is_found(&file, &path, &container) {
                continue;
            }
            if !file.gone && is_held(&self.settings, &file, &container) {
                waiting = true;
                continue;
            }
            self.verdicts.settle(&file);
            book_lost(&container, file.written);
        }
        if waiting {
            self.search_unannounced(unix_nano());
        }
    }

    /// Whether a file is at its path, or under another name beside it; then it is announced.
    fn is_found(&mut self, file: &Unannounced, path: &Arc<str>, container: &Arc<Container>) -> bool {
        let Some(settled) = container.settled() else { return false };
        let found = pids(&self.settings, &settled).into_iter().take(1).find_map(|pid| {
            let root = format!("/proc/{pid}/root");
            Some((pid, find::again(Path::new(&root), path, &file.key, Some(pid))?))
        });
        let Some((pid, found)) = found else { return false };
        let size = found.metadata().map_or(0, |metadata| metadata.len());
        let whereabouts = Whereabouts { tgid: pid, fd: -1, path: Some(Arc::clone(path)) };
        let position = size.saturating_sub(file.written);
        let announced = Announced { announced: file.announced, whereabouts, position, name_hash: file.name_hash };
        self.announce(&file.key, announced, container, unix_nano());
        true
    }
}

/// Whether the path by which a file was announced is that of a log.
fn is_log(settled: &Settled, announced: &Announced) -> bool {
    let path = announced.whereabouts.path.as_deref();
    settled.files.as_ref().is_some_and(|files| path.is_some_and(|path| files.matches(path)))
}

/// Whether a process of the container has the file open: it may be deleted, and is announced when it is written next.
fn is_held(settings: &crate::files::Settings, file: &Unannounced, container: &Container) -> bool {
    let Some(settled) = container.settled() else { return false };
    // The device may be another one than the kernel has.
    find::held_for_writing(&pids(settings, &settled)).iter().any(|(_, ino)| *ino == file.key.ino)
}

/// An open log goes on under another announcement.
pub(super) fn go_on(verdicts: &mut dyn Verdicts, key: &InodeKey, open: &mut Open, announced: u64) {
    verdicts.set(key, announced, true);
    if let Some(before) = open.log.tally.announce(announced) {
        open.log.tally.add(verdicts.written(key, before));
    }
}

/// Books what was written to a log and never came, at the end of its life.
pub(super) fn settle(verdicts: &mut dyn Verdicts, key: &InodeKey, open: &mut Open) {
    let last = open.log.tally.announced().map_or(0, |announced| verdicts.written(key, announced));
    open.log.settle(last);
}

/// An announcement under the inode number of an open log has no record, and another one has followed: what was written
/// is counted, when it was a log.
pub(super) fn count_passed_over(
    verdicts: &mut dyn Verdicts,
    key: &InodeKey,
    open: &mut Open,
    announced: Option<&Announced>,
) {
    let Some(announced) = announced else { return };
    let is_log = |user: &Arc<Container>| user.settled().is_some_and(|settled| is_log(&settled, announced));
    if open.users.iter().any(is_log) {
        open.log.tally.add(verdicts.written(key, announced.announced));
    }
}

/// Books bytes of a log of which nothing has come.
pub(super) fn book_lost(container: &Container, bytes: u64) {
    if bytes > 0
        && let Some(settled) = container.settled()
    {
        settled.account.produce(bytes);
        settled.account.drop_bytes(Stage::Repair, Reason::Unavailable, bytes);
    }
}
