//! Files that are not judged yet: what the ring brings of them is kept until it is known whether they are logs.

use std::{collections::HashMap, fs, fs::File, sync::Arc};

use sidestep_abi::{file::PENDING_BUDGET, stdio::InodeKey};

use super::{
    open::{self, Whereabouts},
    position::Record,
};
use crate::pipeline::container::Container;

/// Bytes that are kept of all files together.
const MAX_BYTES: usize = 32 * 1024 * 1024;
/// Bytes that are kept of one file; the kernel sends its budget and the write that exceeds it.
const MAX_FILE_BYTES: usize = 2 * PENDING_BUDGET as usize;
/// Files of unknown containers that are kept at once. What can be judged is, in a moment, and is not counted here: else
/// files of which nobody knows whether they are logs would push out those that are.
const MAX_FILES: usize = 16 * 1024;
/// Records that are kept of one file: the kernel's budget in writes of 64 bytes, shorter than lines of logs are. What
/// comes after them is read from the file.
const MAX_RECORDS: usize = PENDING_BUDGET as usize / 64;
/// Descriptors that are held of files that may turn out to be no logs.
const MAX_OPEN: usize = 512;
/// Announcements of one file that are kept.
const MAX_EARLIER: usize = 1024;
/// How long the record of the write that announced a file may take; it tells where that write began.
const FIRST_RECORD_NANOS: u64 = 200_000_000;
/// How long bytes are kept of a file that nothing announces, or whose container nobody knows.
const PATIENCE_NANOS: u64 = 30_000_000_000;

/// The announcement of a file.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    /// To be given back with the verdict.
    pub(super) announced: u64,
    /// What leads to the file.
    pub(super) whereabouts: Whereabouts,
    /// Offset after the write that announced it.
    pub(super) position: u64,
    /// Hash of the name in its directory.
    pub(super) name_hash: u32,
}

/// A kept record.
#[derive(Debug)]
pub(super) struct Kept {
    /// What the kernel said.
    pub(super) record: Record,
    /// The bytes; none when there was no room for them.
    pub(super) bytes: Box<[u8]>,
    /// When they were written.
    pub(super) time_unix_nano: u64,
}

impl Kept {
    /// Takes in a record that follows on this one, when neither has its bytes and one thread has written both: who
    /// writes tells whether positions can be trusted.
    fn extend(&mut self, next: &Record) -> bool {
        let Record { position, len, append, positioned, tid, description } = self.record;
        let follows = self.bytes.is_empty()
            && next.position == position.saturating_add(len)
            && (next.append, next.positioned, next.tid, next.description) == (append, positioned, tid, description);
        if follows {
            self.record.len = len.saturating_add(next.len);
        }
        follows
    }
}

/// A file that is not judged yet.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Whose it is.
    pub(super) container: Arc<Container>,
    /// `None` while only bytes have come.
    pub(super) announced: Option<Announced>,
    /// The file was announced again under another name: it was renamed, or another file has its inode number now.
    /// The place of the next record tells.
    pub(super) renamed: Option<Announced>,
    /// Announcements before, of this file or of others that had the inode number: what was written is counted for each.
    pub(super) earlier: Vec<Announced>,
    /// What the ring brought, in order.
    pub(super) kept: Vec<Kept>,
    /// Opened in advance: the container may be gone when its identity is known.
    pub(super) file: Option<File>,
    /// The container has ended.
    pub(super) ended: bool,
    /// Another file has its inode number: what was kept is all there will ever be of it.
    pub(super) gone: bool,
    /// Bytes of records that were not kept, not even their place.
    pub(super) left_out: u64,
    since: u64,
    bytes: usize,
}

impl Candidate {
    /// Another announcement has come.
    fn supersede(&mut self, before: Option<Announced>) {
        if self.earlier.len() < MAX_EARLIER {
            self.earlier.extend(before);
        }
    }

    /// What has been written to it, as far as records have come.
    pub(super) fn written(&self) -> u64 {
        self.left_out + self.kept.iter().map(|kept| kept.record.len).sum::<u64>()
    }
}

/// What was found on a file.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is a log, by this path.
    Log(Arc<str>),
    /// It is none.
    NoLog,
    /// Nobody can tell any more.
    Unknown,
}

/// All files that are not judged yet.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    files: HashMap<InodeKey, Candidate>,
    /// Files whose inode number another file has now: all of them that will ever come is here.
    gone: Vec<(InodeKey, Candidate)>,
    bytes: usize,
    open: usize,
}

impl Candidates {
    /// Takes the announcement of a file. It is opened now if it may be a log: its writer may be gone soon. `false` when
    /// there is no room: let it be announced again.
    #[must_use]
    pub(super) fn announce(
        &mut self,
        key: InodeKey,
        mut announced: Announced,
        container: &Arc<Container>,
        now: u64,
    ) -> bool {
        if announced.whereabouts.path.is_none() {
            announced.whereabouts.path = linked_path(&announced.whereabouts);
        }
        let path = announced.whereabouts.path.as_deref();
        let may_be_log = match container.ready() {
            None => true,
            Some(settled) => settled.files.as_ref().is_some_and(|files| path.is_none_or(|path| files.matches(path))),
        };
        let open = self.open < MAX_OPEN && may_be_log;
        let Some(candidate) = self.candidate(key, container, now) else { return false };
        let known =
            candidate.announced.as_ref().is_some_and(|known| known.whereabouts.path != announced.whereabouts.path);
        if known && !candidate.kept.is_empty() {
            let before = candidate.renamed.replace(announced);
            candidate.supersede(before);
            return true;
        }
        let before = candidate.announced.take();
        candidate.supersede(before);
        if open && candidate.file.is_none() {
            candidate.file = open::open(&key, &announced.whereabouts, Vec::new, None);
            let opened = usize::from(candidate.file.is_some());
            candidate.announced = Some(announced);
            self.open += opened;
        } else {
            candidate.announced = Some(announced);
        }
        true
    }

    /// Keeps a record. What is left out here is read from the file. `false` when there is no room even for its place.
    #[must_use]
    pub(super) fn keep(
        &mut self,
        key: InodeKey,
        record: Record,
        bytes: &[u8],
        time_unix_nano: u64,
        container: &Arc<Container>,
        now: u64,
    ) -> bool {
        let announced = self.tell_renamed(&key, &record, container, now);
        let used = self.bytes;
        let Some(candidate) = self.candidate(key, container, now) else { return false };
        let size = size_of::<Kept>() + bytes.len();
        let records = candidate.kept.len();
        let fits = |size: usize| used + size <= MAX_BYTES && records < MAX_RECORDS;
        let bytes = if fits(size) && candidate.bytes + size <= MAX_FILE_BYTES { bytes } else { &[] };
        let size = size_of::<Kept>() + bytes.len();
        // The place of the first record is kept in any case, and so is how far the file reached by those that follow
        // on each other.
        if bytes.is_empty() && candidate.kept.last_mut().is_some_and(|last| last.extend(&record)) {
            return announced;
        }
        if records > 0 && !fits(size) {
            candidate.left_out = candidate.left_out.saturating_add(record.len);
            return announced;
        }
        candidate.bytes += size;
        candidate.kept.push(Kept { record, bytes: bytes.into(), time_unix_nano });
        self.bytes += size;
        announced
    }

    /// After an announcement under another name: a file that begins at 0 is another file, and the one before is gone.
    /// `false` when there is no room for that one.
    fn tell_renamed(&mut self, key: &InodeKey, record: &Record, container: &Arc<Container>, now: u64) -> bool {
        let Some(announced) = self.files.get_mut(key).and_then(|candidate| candidate.renamed.take()) else {
            return true;
        };
        if record.position > 0 {
            if let Some(candidate) = self.files.get_mut(key) {
                // It keeps the name by which it is judged; the verdict has to name the last announcement.
                let Announced { announced, name_hash, .. } = announced;
                let before = candidate.announced.clone();
                candidate.announced =
                    candidate.announced.take().map(|known| Announced { announced, name_hash, ..known });
                candidate.supersede(before);
            }
            return true;
        }
        if let Some(mut before) = self.files.remove(key) {
            // What was opened may be the new file as well as the old one.
            self.open -= usize::from(before.file.take().is_some());
            before.gone = true;
            self.gone.push((*key, before));
        }
        self.announce(*key, announced, container, now)
    }

    /// The clock was set back to `now`: waits begin anew.
    pub(super) fn forget_times(&mut self, now: u64) {
        for candidate in self.files.values_mut().chain(self.gone.iter_mut().map(|(_, candidate)| candidate)) {
            candidate.since = candidate.since.min(now);
        }
    }

    /// Notes that a container has ended.
    pub(super) fn end(&mut self, container: &Arc<Container>) {
        for candidate in self.files.values_mut().filter(|candidate| candidate.container.cgroup == container.cgroup) {
            candidate.ended = true;
        }
    }

    /// Whether any file waits.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.gone.is_empty()
    }

    /// Takes out the files that can be judged now; `finally` when there is no time to wait for their first record.
    pub(super) fn judge(&mut self, now: u64, finally: bool) -> Vec<(InodeKey, Candidate, Verdict)> {
        let mut judged = Vec::new();
        for (key, candidate) in std::mem::take(&mut self.gone) {
            match verdict(&candidate, now, finally) {
                Some(verdict) => {
                    self.bytes -= candidate.bytes;
                    judged.push((key, candidate, verdict));
                }
                None => self.gone.push((key, candidate)),
            }
        }
        let ready: Vec<_> =
            self.files.iter().filter_map(|(key, candidate)| Some((*key, verdict(candidate, now, finally)?))).collect();
        judged.extend(ready.into_iter().filter_map(|(key, verdict)| {
            let candidate = self.files.remove(&key)?;
            self.bytes -= candidate.bytes;
            self.open -= usize::from(candidate.file.is_some());
            Some((key, candidate, verdict))
        }));
        judged
    }

    fn candidate(&mut self, key: InodeKey, container: &Arc<Container>, now: u64) -> Option<&mut Candidate> {
        let no_room = self.files.len() >= MAX_FILES && container.settled().is_none();
        if no_room && !self.files.contains_key(&key) {
            return None;
        }
        Some(self.files.entry(key).or_insert_with(|| Candidate {
            container: Arc::clone(container),
            announced: None,
            renamed: None,
            earlier: Vec::new(),
            kept: Vec::new(),
            file: None,
            ended: false,
            gone: false,
            left_out: 0,
            since: now,
            bytes: 0,
        }))
    }
}

fn verdict(candidate: &Candidate, now: u64, finally: bool) -> Option<Verdict> {
    let overdue = now.saturating_sub(candidate.since) > PATIENCE_NANOS;
    let (Some(settled), Some(announced)) = (candidate.container.ready(), &candidate.announced) else {
        return overdue.then_some(Verdict::Unknown);
    };
    let Some(files) = &settled.files else { return Some(Verdict::NoLog) };
    let waited = finally || now.saturating_sub(candidate.since) > FIRST_RECORD_NANOS;
    if candidate.kept.is_empty() && !candidate.ended && !candidate.gone && !waited {
        return None;
    }
    let path = announced.whereabouts.path.clone().or_else(|| linked_path(&announced.whereabouts));
    Some(match path {
        Some(path) if files.matches(&path) => Verdict::Log(path),
        Some(_) => Verdict::NoLog,
        None => Verdict::Unknown,
    })
}

/// The path by the writer's descriptor, for one that is too long for a record.
fn linked_path(whereabouts: &Whereabouts) -> Option<Arc<str>> {
    let link = fs::read_link(format!("/proc/{}/fd/{}", whereabouts.tgid, whereabouts.fd)).ok()?;
    let path = link.to_string_lossy();
    Some(path.strip_suffix(" (deleted)").unwrap_or(&path).into())
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
