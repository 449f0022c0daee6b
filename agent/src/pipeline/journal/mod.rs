//! The journal of standard streams: how far each of them is safe, and what of it is unfinished, so that the next agent
//! goes on exactly there. Files have a checkpoint of their own.
//!
//! One file, to which a frame is appended when rounds of draining have become safe, before the ring lets go of their
//! records. A frame is complete or not there: its length and checksum stand before it. It is never forced to the disk,
//! since it has to survive the process only: with the machine go the streams. It is written anew, and renamed, when most
//! of it is out of date.
//!
//! What is torn off at the end had not been answered for: the ring still holds its records. Anything else that can't be
//! read makes the whole journal useless, as the ring may have let go of what it said; it is kept aside with a warning.

mod state;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

pub use self::state::{Change, Piece, Saved, Standing, State, StreamId};
use crate::events::Event;

const NAME: &str = "streams.journal";
const MAGIC: &[u8; 8] = b"sidestrm";
/// Raised with every change of what a [`Change`] is made of.
const VERSION: u32 = 2;
/// Magic, version, and the boot that it belongs to.
const HEAD: usize = 8 + 4 + 36;
/// Before each frame: its length, the checksum of that, and the checksum of the frame.
const FRAME_HEAD: usize = 12;
/// It is not written anew while it is smaller.
const LEAST_COMPACTED: u64 = 4 * 1024 * 1024;
/// A file of this size is larger than any that was ever written: streams hold 4 MiB and an unfinished line at most.
const MAX_BYTES: u64 = 16 * 1024 * 1024 * 1024;

/// Why the journal can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refuses.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// Its content makes no sense.
    #[error("{path} is damaged: {what} at byte {at}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// A later agent has written it.
    #[error("{path} is of version {version}, which this agent does not know")]
    Version {
        /// The file.
        path: String,
        /// What it says.
        version: u32,
    },
}

/// What the agent before has left.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Restored {
    /// Where streams stand.
    pub state: State,
    /// Whether the journal was whole: a stream that it does not know then has all its bytes in the ring still.
    pub complete: bool,
}

/// The file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    boot: [u8; 36],
    /// What the file says, or is to say once it can be written.
    state: State,
    /// `None` when there is none that holds `state`: it has to be written anew.
    file: Option<File>,
    discarded: bool,
    length: u64,
    /// Length when it was last written anew.
    compacted: u64,
}

impl Journal {
    /// Opens the journal in `state_dir` for the time until the machine starts again, by `boot` (`/proc/sys/kernel/random/boot_id`).
    /// What can't be understood is kept aside as `streams.journal.bad`, with a warning, and the start is as without.
    #[must_use]
    pub fn open(state_dir: &Path, boot: &str) -> (Self, Restored) {
        let path = state_dir.join(NAME);
        let boot = boot_bytes(boot);
        let restored = match read(&path, &boot) {
            Ok(restored) => restored,
            Err(error) => {
                let aside = path.with_extension("journal.bad");
                let kept = fs::rename(&path, &aside).is_ok();
                Event::JournalUnreadable { error: &error, kept_as: kept.then_some(aside.as_path()) }.report();
                Restored::default()
            }
        };
        let state = restored.state.clone();
        (Self { path, boot, state, file: None, discarded: false, length: 0, compacted: 0 }, restored)
    }

    /// What it holds.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Takes note of changes, and writes them. When it fails they are noted all the same, and the next call writes
    /// everything anew: until one succeeds, nothing may be let go of.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn append(&mut self, changes: Vec<Change>) -> Result<(), JournalError> {
        let frame = if self.file.is_some() && !changes.is_empty() { Some(frame(&changes)) } else { None };
        changes.into_iter().for_each(|change| self.state.apply(change));
        let Some(file) = &self.file else { return self.write_anew() };
        let Some(frame) = frame else { return Ok(()) };
        if let Err(source) = file.write_all_at(&frame, self.length) {
            // A part of it may be there; the file is replaced as a whole.
            self.file = None;
            return self.write_anew().map_err(|_| self.failed("writing", source));
        }
        self.length += frame.len() as u64;
        if self.length > LEAST_COMPACTED.max(4 * self.compacted) {
            return self.write_anew();
        }
        Ok(())
    }

    /// Takes note of changes without writing them.
    pub fn note(&mut self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.file = None;
        }
        changes.into_iter().for_each(|change| self.state.apply(change));
    }

    /// Whether there is no file by now, so that no agent will go by what it said.
    #[must_use]
    pub const fn is_discarded(&self) -> bool {
        self.discarded
    }

    /// Takes the file away: the ring has let go, or has to, of what it can't tell.
    ///
    /// # Errors
    /// When the file system refuses even that.
    pub fn discard(&mut self) -> Result<(), JournalError> {
        self.file = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("removing", error)),
            _ => {
                self.discarded = true;
                Ok(())
            }
        }
    }

    fn write_anew(&mut self) -> Result<(), JournalError> {
        self.file = None;
        let temporary = self.path.with_extension("journal.new");
        let written = (|| {
            if let Some(directory) = self.path.parent() {
                fs::create_dir_all(directory)?;
            }
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temporary)?;
            let mut bytes = head(&self.boot);
            for change in self.state.changes() {
                bytes.extend(frame(std::slice::from_ref(&change)));
                if bytes.len() > 1024 * 1024 {
                    file.write_all(&bytes)?;
                    bytes.clear();
                }
            }
            file.write_all(&bytes)?;
            let length = file.metadata()?.len();
            fs::rename(&temporary, &self.path)?;
            Ok((file, length))
        })();
        match written {
            Ok((file, length)) => {
                self.file = Some(file);
                self.discarded = false;
                self.length = length;
                self.compacted = length;
                Ok(())
            }
            Err(source) => {
                // It takes space that there may not be.
                let _ = fs::remove_file(&temporary);
                Err(self.failed("writing", source))
            }
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> JournalError {
        JournalError::Io { action, path: self.path.display().to_string(), source }
    }
}

/// The boot's id, as the kernel names it; shorter ones are filled up.
fn boot_bytes(boot: &str) -> [u8; 36] {
    let mut bytes = [b' '; 36];
    bytes.iter_mut().zip(boot.trim().bytes()).for_each(|(to, from)| *to = from);
    bytes
}

fn head(boot: &[u8; 36]) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD);
    head.extend(MAGIC);
    head.extend(VERSION.to_le_bytes());
    head.extend(boot);
    head
}

fn frame(changes: &[Change]) -> Vec<u8> {
    let mut frame = vec![0; FRAME_HEAD];
    // Writing to memory fails only for types without a known length, of which there are none.
    frame = postcard::to_extend(changes, frame).unwrap_or_default();
    let Some((place, payload)) = frame.split_at_mut_checked(FRAME_HEAD) else { return Vec::new() };
    let length = (payload.len() as u32).to_le_bytes();
    place[..4].copy_from_slice(&length);
    place[4..8].copy_from_slice(&crc32fast::hash(&length).to_le_bytes());
    place[8..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    frame
}

fn read(path: &Path, boot: &[u8; 36]) -> Result<Restored, JournalError> {
    let failed = |source| JournalError::Io { action: "reading", path: path.display().to_string(), source };
    let bytes = match fs::metadata(path).map(|metadata| metadata.len()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Restored::default()),
        Err(error) => return Err(failed(error)),
        Ok(length) if length > MAX_BYTES => {
            let what = "it is larger than any that was ever written";
            return Err(JournalError::Damaged { path: path.display().to_string(), what, at: 0 });
        }
        Ok(_) => fs::read(path).map_err(failed)?,
    };
    parse(&bytes, path, boot)
}

fn parse(bytes: &[u8], path: &Path, boot: &[u8; 36]) -> Result<Restored, JournalError> {
    let damaged = |what, at| JournalError::Damaged { path: path.display().to_string(), what, at };
    let word = |at: usize| {
        let word = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes(word.try_into().ok()?))
    };
    if bytes.get(..8) != Some(MAGIC) {
        return Err(damaged("no journal begins so", 0));
    }
    match word(8) {
        Some(VERSION) => {}
        Some(version) => return Err(JournalError::Version { path: path.display().to_string(), version }),
        None => return Err(damaged("it ends in its head", 8)),
    }
    let written_by = bytes.get(12..HEAD).ok_or_else(|| damaged("it ends in its head", 12))?;
    if written_by != boot {
        tracing::info!(path = %path.display(), "the machine was started since the positions in streams were written");
        return Ok(Restored::default());
    }
    let mut restored = Restored { state: State::default(), complete: true };
    let mut at = HEAD;
    while let (Some(length), Some(of_length), Some(checksum)) = (word(at), word(at + 4), word(at + 8)) {
        if crc32fast::hash(&length.to_le_bytes()) != of_length {
            return Err(damaged("a checksum does not match", at));
        }
        // Cut off before it was answered for.
        let Some(payload) = bytes.get(at + FRAME_HEAD..at + FRAME_HEAD + length as usize) else { break };
        if crc32fast::hash(payload) != checksum {
            return Err(damaged("a checksum does not match", at));
        }
        let changes: Vec<Change> = postcard::from_bytes(payload).map_err(|_| damaged("a frame makes no sense", at))?;
        changes.into_iter().for_each(|change| restored.state.apply(change));
        at += FRAME_HEAD + payload.len();
    }
    Ok(restored)
}
