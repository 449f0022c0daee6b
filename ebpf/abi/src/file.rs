//! Regular files: which of them are logs.

use crate::{Header, assert_layout, pod};

/// The agent has not judged the file yet: its bytes are captured up to a budget, in case it is a log.
pub const PENDING: u32 = 0;
/// The file is a log.
pub const LOG: u32 = 1;
/// The file is no log.
pub const IGNORED: u32 = 2;

/// The ring had no room for the file's announcement: the next write tries again.
pub const UNANNOUNCED: u32 = 3;

/// Bytes captured of a file that is not judged yet. What a judgement in favour finds missing is read from the file.
pub const PENDING_BUDGET: u64 = 256 * 1024;
/// Space for a path in [`FileSeen`].
pub const PATH_SPACE: usize = 1024;
/// Longest component that is copied, its NUL included.
pub const NAME_SPACE: usize = 256;
/// Components of a path that are walked.
pub const MAX_DEPTH: usize = 32;

/// The path is longer or deeper than the record: ask `/proc/<tgid>/fd/<fd>`.
pub const FLAG_PATH_CUT: u16 = 1;

/// What the kernel knows of a file that a governed process has written; the agent only removes it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FileState {
    /// [`PENDING`], [`UNANNOUNCED`], or [`LOG`] or [`IGNORED`], taken over from the agent's [`Verdict`].
    pub verdict: u32,
    /// Hash of the name when the file was announced: another name under the same inode number may be another file.
    pub name_hash: u32,
    /// Time of the announcement: what a verdict has to name.
    pub announced: u64,
    /// Bytes captured while pending.
    pub captured: u64,
    /// Bytes that finished writes have added since it was entered, captured or not; none once it is [`IGNORED`].
    pub written: u64,
    /// Up to where the file was written: what lies before was there already, unless the file began anew.
    pub reach: u64,
}
assert_layout!(FileState, size 40);

/// Names a file whose place in the map another one has taken: an inode number alone does not.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct RetiredKey {
    /// Inode number.
    pub ino: u64,
    /// Device number as the kernel has it.
    pub dev: u32,
    /// Zero.
    pub _pad: u32,
    /// [`FileState::announced`]
    pub announced: u64,
}
assert_layout!(RetiredKey, size 24);

/// What the agent has found on a file.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Verdict {
    /// `time` of the announcement that it answers. Inode numbers are used again at once on some file systems, so a
    /// verdict that comes late may be about another file than the one that has the number by now.
    pub announced: u64,
    /// [`LOG`] or [`IGNORED`].
    pub verdict: u32,
    /// Zero.
    pub _pad: u32,
}
assert_layout!(Verdict, size 16);

/// A file that is not judged yet was written. The components of its path follow, leaf first, each ended by a NUL.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FileSeen {
    /// `kind` is [`crate::event::FILE_SEEN`]; its time names the announcement.
    pub header: Header,
    /// Inode number.
    pub ino: u64,
    /// Device number as the kernel has it.
    pub dev: u32,
    /// The descriptor that was written.
    pub fd: i32,
    /// Offset after the write.
    pub position: u64,
    /// [`FileState::name_hash`]
    pub name_hash: u32,
    /// Zero.
    pub _pad: u32,
}
assert_layout!(FileSeen, size 64);

pod!(FileState, RetiredKey, Verdict);
