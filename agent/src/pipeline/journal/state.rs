//! What the journal holds: where every standard stream stands, and who its container is.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sidestep_abi::{
    log::LogEvent,
    stdio::{DROP_REASONS, InodeKey, Stdio},
};

use crate::{
    assemble::{Unfinished, Update},
    attribute::Identity,
};

/// Names a standard stream for as long as the machine runs, however often a number of an inode is used again.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct StreamId {
    /// Inode number of the pipe or terminal.
    pub ino: u64,
    /// Its device number as the kernel has it.
    pub dev: u32,
    /// When the kernel registered it: `CLOCK_MONOTONIC`, nanoseconds.
    pub registered: u64,
}

impl StreamId {
    /// The stream of a record.
    #[must_use]
    pub const fn of(event: &LogEvent) -> Self {
        Self { ino: event.ino, dev: event.dev, registered: event.description }
    }

    /// Of a key of the kernel's map and the time that it has there.
    #[must_use]
    pub const fn new(key: &InodeKey, registered: u64) -> Self {
        Self { ino: key.ino, dev: key.dev, registered }
    }

    /// The kernel's key.
    #[must_use]
    pub const fn key(&self) -> InodeKey {
        InodeKey { ino: self.ino, dev: self.dev, _pad: 0 }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ino, dev, registered } = self;
        write!(f, "inode {ino} of device {dev:x}, registered at {registered}")
    }
}

/// Bytes that wait for those before them, or for the container's identity.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Piece {
    /// When they were written: nanoseconds since the Unix epoch.
    pub time_unix_nano: u64,
    /// The bytes.
    pub bytes: Bytes,
}

/// Where a stream stands, without what it has not finished.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Standing {
    /// The cgroup that the kernel has registered it for.
    pub cgroup: u64,
    /// The container's own cgroup.
    pub container: u64,
    /// `STDOUT` or `STDERR` of the kernel programs.
    pub iostream: u32,
    /// The key in its records; `None` until its container is known.
    pub key: Option<Arc<str>>,
    /// Position of the next byte that is taken.
    pub next: u64,
    /// Losses that are booked, by the kernel's reasons.
    pub booked: [u64; DROP_REASONS],
    /// Not wanted at present.
    pub unwanted: bool,
}

/// One stream.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Saved {
    /// Where it stands.
    pub standing: Standing,
    /// Bytes before its position that are in no line yet.
    pub unfinished: Unfinished,
    /// Bytes behind its position, by their positions.
    pub pieces: BTreeMap<u64, Piece>,
}

impl Saved {
    /// What of it can't be, by what the kernel has counted since it registered the stream: its counts never sink, and come
    /// before anything that an agent could take or book.
    #[must_use]
    pub fn contradiction(&self, kernel: &Stdio) -> Option<String> {
        let end = |(position, piece): (&u64, &Piece)| position.saturating_add(piece.bytes.len() as u64);
        let known = self.pieces.last_key_value().map_or(0, end).max(self.standing.next);
        if known > kernel.written {
            return Some(format!("it knows {known} bytes, and {} were written", kernel.written));
        }
        let booked = self.standing.booked.iter().zip(kernel.dropped).find(|(booked, dropped)| *booked > dropped);
        booked.map(|(booked, dropped)| format!("it has booked a loss of {booked} bytes, and {dropped} were lost"))
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.unfinished.len() + self.pieces.values().map(|piece| piece.bytes.len()).sum::<usize>()) as u64
    }
}

/// One change. A change of a stream says what is new since the one before.
#[expect(clippy::large_enum_variant, reason = "nearly all changes are of streams")]
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Change {
    /// A stream has moved.
    Stream {
        /// Which.
        id: StreamId,
        /// Where to.
        standing: Standing,
        /// Of what it has not finished.
        unfinished: Update,
        /// New pieces.
        pieces: Vec<(u64, Piece)>,
    },
    /// A stream has ended, and all of it is out.
    StreamEnded(StreamId),
    /// A container, and who it is as far as that is known: what its runtime tells may be gone before the next agent looks.
    Container {
        /// Its cgroup.
        cgroup: u64,
        /// The cgroup's path in the v2 hierarchy. The ring tells it once, so it is noted before the ring lets go of that.
        path: Arc<str>,
        /// Who it is; `None` before that is found out, and then it does not take away what was.
        identity: Option<Box<Identity>>,
    },
    /// A container is gone, and all of its records are out.
    ContainerGone(u64),
}

/// All that the journal holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct State {
    /// The streams.
    pub streams: HashMap<StreamId, Saved>,
    /// The containers: path, and identity if that was found out, by cgroup.
    pub containers: HashMap<u64, (Arc<str>, Option<Box<Identity>>)>,
}

impl State {
    /// Applies one change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Stream { id, standing, unfinished, pieces } => {
                let saved = self.streams.entry(id).or_default();
                saved.standing = standing;
                saved.unfinished.update(unfinished);
                saved.pieces.extend(pieces);
                // What lies before was taken, or given up.
                saved.pieces = saved.pieces.split_off(&saved.standing.next);
            }
            Change::StreamEnded(id) => {
                self.streams.remove(&id);
            }
            Change::Container { cgroup, path, identity } => {
                let known = self.containers.entry(cgroup).or_default();
                *known = (path, identity.or(known.1.take()));
            }
            Change::ContainerGone(cgroup) => {
                self.containers.remove(&cgroup);
            }
        }
    }

    /// All of it, as changes of nothing.
    pub fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        let container = |(cgroup, (path, identity)): (&u64, &(Arc<str>, Option<Box<Identity>>))| Change::Container {
            cgroup: *cgroup,
            path: Arc::clone(path),
            identity: identity.clone(),
        };
        let stream = |(id, saved): (&StreamId, &Saved)| Change::Stream {
            id: *id,
            standing: saved.standing.clone(),
            unfinished: saved.unfinished.clone().into_update(),
            pieces: saved.pieces.iter().map(|(position, piece)| (*position, piece.clone())).collect(),
        };
        self.containers.iter().map(container).chain(self.streams.iter().map(stream))
    }
}
