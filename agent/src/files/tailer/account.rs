//! Bytes that were written to logs and that nobody can read any more: what the kernel has counted and no stage has seen.

use std::sync::Arc;

use sidestep_abi::stdio::InodeKey;

use super::{Open, Tailer};
use crate::{
    files::judge::{Announced, Candidate},
    ledger::{Reason, Stage},
    pipeline::container::{Container, Profile},
    policy::Verdicts,
};

impl Tailer {
    /// What was written under earlier announcements of a candidate, as far as those were of logs.
    pub(super) fn written_earlier(&mut self, key: &InodeKey, candidate: &Candidate) -> u64 {
        let Some(settled) = candidate.container.settled() else { return 0 };
        let logs = candidate.earlier.iter().filter(|earlier| is_log(&settled, earlier));
        logs.map(|earlier| self.verdicts.written(key, earlier.announced)).fold(0, u64::saturating_add)
    }
}

/// Whether the path by which a file was announced is that of a log.
fn is_log(settled: &Profile, announced: &Announced) -> bool {
    let path = announced.whereabouts.path.as_deref();
    settled.files.as_ref().is_some_and(|files| path.is_some_and(|path| files.matches(path)))
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
