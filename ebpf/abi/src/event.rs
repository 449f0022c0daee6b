//! The header that every record in the ring starts with.

use crate::assert_layout;

/// Bytes of a registered standard stream, [`crate::log::LogEvent`] and the bytes.
pub const STDIO_DATA: u16 = 1;
/// Bytes written to a log file, or to a file that the agent has not judged yet; [`crate::log::LogEvent`] and the bytes.
pub const FILE_DATA: u16 = 2;
/// A file that the agent has not judged yet was written; [`crate::file::FileSeen`] and its path.
pub const FILE_SEEN: u16 = 3;
/// A container's first process was executed and its standard streams are registered; [`crate::container::ContainerEvent`].
pub const CONTAINER_STARTED: u16 = 4;
/// A cgroup below a governed root was made; [`crate::container::ContainerEvent`] and its path.
pub const CGROUP_MADE: u16 = 5;
/// The last process of a cgroup below a governed root has ended; [`crate::container::ContainerEvent`].
pub const CGROUP_EMPTY: u16 = 6;
/// A cgroup below a governed root was removed; [`crate::container::ContainerEvent`].
pub const CGROUP_REMOVED: u16 = 7;

/// Something of a Pod was refused, or would have been; [`crate::govern::Refusal`] and the beginning of the request.
pub const REFUSED: u16 = 8;

/// First part of every record in the ring. A record is longer than its contents, since space in the ring is reserved
/// in fixed sizes: `len` says how much of the variable part is valid.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Header {
    /// One of the constants of this module.
    pub kind: u16,
    /// Meaning by kind.
    pub flags: u16,
    /// Valid bytes after the fixed part.
    pub len: u32,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time: u64,
    /// Id of the cgroup (v2) that the record is about.
    pub cgroup: u64,
    /// Process id in the initial PID namespace; 0 where there is none.
    pub tgid: u32,
    /// Thread id in the initial PID namespace; 0 where there is none.
    pub tid: u32,
}
assert_layout!(Header, size 32);
