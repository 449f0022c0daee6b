//! Standard streams of containers: which pipe or terminal is one.

use crate::{assert_layout, pod};

/// `iostream` of file descriptor 1.
pub const STDOUT: u32 = 1;
/// `iostream` of file descriptor 2.
pub const STDERR: u32 = 2;

/// Index of each reason in [`Stdio::dropped`].
pub const DROP_QUOTA: usize = 0;
/// The ring was full.
pub const DROP_RING_FULL: usize = 1;
/// The writer's memory could not be read.
pub const DROP_FAULT: usize = 2;
/// The bytes never were in the writer's memory (`splice`, `sendfile`, `vmsplice`, `tee`, io_uring).
pub const DROP_UNREADABLE: usize = 3;
/// The write was larger than all chunks that one write may become.
pub const DROP_OVERSIZE: usize = 4;
/// The map of containers was full, so nothing tells the container's share of the ring.
pub const DROP_MAP_FULL: usize = 5;
/// Number of reasons.
pub const DROP_REASONS: usize = 6;

/// Key of a pipe, terminal or file: device and inode number.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct InodeKey {
    /// Inode number.
    pub ino: u64,
    /// Device number as the kernel has it.
    pub dev: u32,
    /// Zero.
    pub _pad: u32,
}
assert_layout!(InodeKey, size 16);

/// A registered standard stream and the count of what was written to it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Stdio {
    /// Cgroup of the container whose stream it is.
    pub cgroup: u64,
    /// When it was registered: `CLOCK_MONOTONIC`, nanoseconds. With the inode it names the stream, however often the
    /// inode's number is used again.
    pub registered: u64,
    /// Bytes written so far by finished writes, captured or not: the position of the next write.
    pub written: u64,
    /// Bytes that no record holds, by reason.
    pub dropped: [u64; DROP_REASONS],
    /// [`STDOUT`] or [`STDERR`].
    pub iostream: u32,
    /// Zero.
    pub _pad: u32,
}
assert_layout!(Stdio, size 80);

pod!(InodeKey, Stdio);
