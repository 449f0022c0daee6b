//! Positions of file streams over restarts of the agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sidestep_abi::stdio::InodeKey;

use super::log_file::Standing;
use crate::{
    events::Event,
    record::Class,
    state_file::{self, StateFileError},
};

const VERSION: u32 = 2;
/// Without a checksum; read, and no longer written.
const PLAIN_VERSION: u32 = 1;
const NAME: &str = "positions.json";
/// A clock may have been set back by so much between two agents.
const TOLERANCE_NANOS: u64 = 60_000_000_000;

/// Where one file stood.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Entry {
    /// Inode number.
    pub(super) ino: u64,
    /// Device number as the kernel has it.
    pub(super) dev: u32,
    /// `business` or `server`.
    pub(super) class: Class,
    /// The path as first seen.
    pub(super) path: String,
    /// Which container's it is: its id, or its cgroup; empty for the node.
    pub(super) owner: String,
    /// See [`Standing::birth`].
    pub(super) birth: u64,
    /// See [`Standing::incarnation`].
    pub(super) incarnation: u64,
    /// Everything before is acknowledged.
    pub(super) position: u64,
    /// See [`Standing::head_len`].
    pub(super) head_len: usize,
    /// See [`Standing::head_digest`].
    pub(super) head_digest: String,
}

impl Known {
    /// When nothing is known of what agents before have read: every log is new, and read from its beginning.
    const fn nothing() -> Self {
        Self { files: Vec::new(), complete_until: Some(0) }
    }
}

impl Entry {
    /// The file's key.
    #[must_use]
    pub(super) const fn key(&self) -> InodeKey {
        InodeKey { ino: self.ino, dev: self.dev, _pad: 0 }
    }

    /// Where it stood.
    #[must_use]
    pub(super) fn standing(&self) -> Standing {
        Standing {
            birth: self.birth,
            incarnation: self.incarnation,
            position: self.position,
            head_len: self.head_len,
            head_digest: self.head_digest.clone(),
        }
    }
}

#[derive(Serialize)]
struct Content<'a> {
    complete_until: u64,
    files: &'a [Entry],
}

/// What the agents before have left.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
pub(super) struct Known {
    /// Where files stood.
    pub(super) files: Vec<Entry>,
    /// A log that was made before this time (nanoseconds since the Unix epoch) is in `files`, or was not to be read
    /// whole; one that was made later may be new. `None` when there was no agent before, or one that did not say.
    #[serde(default)]
    pub(super) complete_until: Option<u64>,
}

/// The file that positions are kept in.
#[derive(Debug)]
pub(super) struct Checkpoint {
    path: PathBuf,
    /// `None` until the first time: an agent without any log leaves its time too.
    written: Option<Vec<Entry>>,
    failing: bool,
}

impl Checkpoint {
    /// Reads the positions in `state_dir`, at `now` (nanoseconds since the Unix epoch). What can't be understood is kept aside
    /// as `positions.json.bad`, with a warning, and every log is read from its beginning: lines come again, and none is lost.
    #[must_use]
    pub(super) fn open(state_dir: &Path, now: u64) -> (Self, Known) {
        let path = state_dir.join(NAME);
        let known = match read(&path) {
            Ok(Known { files, complete_until: Some(until) }) if until > now.saturating_add(TOLERANCE_NANOS) => {
                let seconds = (until - now) / 1_000_000_000;
                Event::PositionsFromFuture { path: &path, seconds }.report();
                // The positions hold by what the files are; what was made since can't be told.
                Known { files, complete_until: Some(0) }
            }
            Ok(known) => known,
            Err(error) if error.is_absent() => Known::default(),
            Err(error) => {
                let aside = path.with_extension("json.bad");
                let kept = fs::rename(&path, &aside).is_ok();
                let kept_as = kept.then_some(aside.as_path());
                Event::PositionsUnreadable { path: &path, error: &error, kept_as }.report();
                Known::nothing()
            }
        };
        (Self { path, written: None, failing: false }, known)
    }

    /// Writes the positions, when they have changed: after a crash there are the old ones or the new ones. See
    /// [`Known::complete_until`]; as long as no position changes, no log has become known, and an older time holds too.
    pub(super) fn write(&mut self, mut entries: Vec<Entry>, complete_until: u64) {
        entries.sort_by_key(|entry| (entry.dev, entry.ino, entry.class));
        if self.written.as_ref() == Some(&entries) && !self.failing {
            return;
        }
        match state_file::replace(&self.path, VERSION, &Content { complete_until, files: &entries }) {
            Ok(()) => {
                self.written = Some(entries);
                self.failing = false;
            }
            Err(error) => {
                if !self.failing {
                    Event::PositionsUnwritable { path: &self.path, error: &error }.report();
                }
                self.failing = true;
            }
        }
    }
}

fn read(path: &Path) -> Result<Known, StateFileError> {
    state_file::read(path, VERSION, Some(PLAIN_VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000_000_000;

    fn entry(ino: u64, position: u64) -> Entry {
        Entry {
            ino,
            dev: 8 << 20,
            class: Class::Business,
            path: "/var/log/a.log".into(),
            owner: "c1".into(),
            birth: 1,
            incarnation: 0,
            position,
            head_len: 2,
            head_digest: "00".into(),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().expect("directory");
        let state = directory.path().join("state");
        let (mut checkpoint, known) = Checkpoint::open(&state, NOW);
        assert_eq!(known, Known::default());
        checkpoint.write(Vec::new(), 5);
        assert_eq!(Checkpoint::open(&state, NOW).1, Known { files: Vec::new(), complete_until: Some(5) });
        checkpoint.write(vec![entry(2, 10), entry(1, 20)], 6);
        checkpoint.write(vec![entry(2, 30), entry(1, 20)], 7);
        let (_, known) = Checkpoint::open(&state, NOW);
        assert_eq!(known, Known { files: vec![entry(1, 20), entry(2, 30)], complete_until: Some(7) });
        assert_eq!(fs::read_dir(&state).expect("directory").count(), 1);
    }

    #[test]
    fn positions_without_a_time_are_read() {
        let directory = tempfile::tempdir().expect("directory");
        let text = serde_json::json!({ "version": 1, "files": [entry(1, 20)] }).to_string();
        fs::write(directory.path().join(NAME), text).expect("written");
        let (_, known) = Checkpoint::open(directory.path(), NOW);
        assert_eq!(known, Known { files: vec![entry(1, 20)], complete_until: None });
    }

    #[test]
    fn what_can_not_be_understood_is_kept_aside() {
        for (text, reason) in [
            ("{\"version\":1,\"files\":[", "damaged"),
            ("{\"version\":7,\"files\":{\"new\":1}}", "of version 7"),
            ("", "damaged"),
        ] {
            let directory = tempfile::tempdir().expect("directory");
            let path = directory.path().join(NAME);
            fs::write(&path, text).expect("written");
            let error = read(&path).expect_err("refused").to_string();
            assert!(error.starts_with(reason), "{error}");
            let (mut checkpoint, known) = Checkpoint::open(directory.path(), NOW);
            assert_eq!(known, Known::nothing(), "every log is read from its beginning");
            assert_eq!(fs::read_to_string(directory.path().join("positions.json.bad")).expect("kept"), text);
            checkpoint.write(vec![entry(1, 1)], 1);
            assert_eq!(Checkpoint::open(directory.path(), NOW).1.files, [entry(1, 1)]);
        }
    }

    #[test]
    fn a_disk_that_refuses_is_tried_again() {
        let directory = tempfile::tempdir().expect("directory");
        let state = directory.path().join("state");
        fs::write(&state, "a file").expect("written");
        let (mut checkpoint, _) = Checkpoint::open(&state, NOW);
        checkpoint.write(vec![entry(1, 1)], 1);
        fs::remove_file(&state).expect("removed");
        checkpoint.write(vec![entry(1, 1)], 1);
        assert_eq!(Checkpoint::open(&state, NOW).1.files, [entry(1, 1)]);
    }

    #[test]
    fn cut_or_changed_at_any_byte_it_is_damaged() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(NAME);
        let (mut checkpoint, _) = Checkpoint::open(directory.path(), NOW);
        checkpoint.write(vec![entry(2, 1234), entry(1, 20)], 6);
        let whole = fs::read(&path).expect("written");
        for at in 0..whole.len() {
            fs::write(&path, &whole[..at]).expect("written");
            assert!(read(&path).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                fs::write(&path, &changed).expect("written");
                assert!(read(&path).is_err(), "bit {bit} of byte {at} changed");
            }
        }
    }

    #[test]
    fn a_time_ahead_of_the_clock_is_not_believed_and_the_positions_are() {
        let directory = tempfile::tempdir().expect("directory");
        for (ahead, expected) in [(TOLERANCE_NANOS, Some(NOW + TOLERANCE_NANOS)), (TOLERANCE_NANOS + 1, Some(0))] {
            let mut checkpoint = Checkpoint::open(directory.path(), NOW).0;
            checkpoint.write(vec![entry(1, ahead)], NOW + ahead);
            let (_, known) = Checkpoint::open(directory.path(), NOW);
            assert_eq!(known, Known { files: vec![entry(1, ahead)], complete_until: expected });
        }
    }
}
