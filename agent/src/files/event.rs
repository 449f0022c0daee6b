//! What the thread that drains the ring hands to the one that reads files.
//!
//! The queue between them is bounded. When it is full, [`FileEvent::Data`] is left out: the bytes are in the file,
//! and the next event or the next look at its size shows the gap. The other events are always handed over.

use std::{ops::Range, sync::Arc};

use sidestep_abi::stdio::InodeKey;

use crate::{pipeline::container::Container, sinks::Hold};

/// Events of one round of draining, in order, and the bytes that they carry.
#[derive(Default)]
pub struct FileEvents {
    /// Bytes of all [`FileEvent::Data`].
    pub bytes: Vec<u8>,
    /// The events.
    pub events: Vec<FileEvent>,
    /// Keep their records in the kernel's ring, for as long as they are nowhere else.
    pub holds: Vec<Hold>,
}

impl FileEvents {
    /// Bytes that they hold, as far as a file's writer decides on it.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.bytes.len() + self.events.len() * size_of::<FileEvent>()
    }
}

/// One event of a file or of a container.
#[derive(Debug)]
pub enum FileEvent {
    /// A process of a container wrote a regular file that is not judged yet.
    Seen {
        /// Device and inode number, as the kernel has them.
        key: InodeKey,
        /// Names the announcement, to be given back with the verdict.
        announced: u64,
        /// The path that the writer sees; `None` when it is too long: `/proc/<tgid>/fd/<fd>` tells.
        path: Option<Arc<str>>,
        /// The writer, in the node's PID namespace; it may be gone.
        tgid: u32,
        /// Its descriptor; it may be closed.
        fd: i32,
        /// Offset after the write.
        position: u64,
        /// Hash of the name in its directory.
        name_hash: u32,
        /// Whose file it is.
        container: Arc<Container>,
    },
    /// A file was announced, and nothing is known of the announcement any more.
    Forgotten {
        /// Device and inode number.
        key: InodeKey,
    },
    /// Files were not announced, since the ring or a queue had no room: see `Verdicts::unannounced`.
    Unannounced {
        /// Whose they may be.
        containers: Vec<Arc<Container>>,
    },
    /// Bytes written to a log file, or to one that is not judged yet.
    Data {
        /// Device and inode number.
        key: InodeKey,
        /// Offset of the first byte, by the file position at the end of the call (exact for one writer only).
        position: u64,
        /// The bytes, in [`FileEvents::bytes`].
        bytes: Range<usize>,
        /// When the write ended: nanoseconds since the Unix epoch.
        time_unix_nano: u64,
        /// The writing thread.
        tid: u32,
        /// Names the open file description.
        description: u64,
        /// `sidestep_abi::log::FLAG_APPEND` and `FLAG_POSITIONED`.
        flags: u16,
        /// Whose file it is.
        container: Arc<Container>,
    },
    /// A container that ran before the agent: its files go on where the checkpoint says.
    Resume {
        /// The container; settled.
        container: Arc<Container>,
        /// Processes of it, through which its files are reached.
        pids: Vec<u32>,
    },
    /// The rules of what is a log have changed: what was judged not to be one may be one now.
    RulesChanged,
    /// The container's last process has ended: what its files hold now is all there will be.
    Ended {
        /// The container.
        container: Arc<Container>,
    },
}
