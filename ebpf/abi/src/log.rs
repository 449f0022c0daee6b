//! Finished writes.

use crate::{Header, assert_layout};

/// The file was open with `O_APPEND`: the position is the end of the file at that write.
pub const FLAG_APPEND: u16 = 1;
/// The position was an argument of the call (`pwrite64`, `pwritev`, `pwritev2`) and is exact.
pub const FLAG_POSITIONED: u16 = 1 << 1;
/// The standard stream is a terminal.
pub const FLAG_TERMINAL: u16 = 1 << 2;

/// Payload sizes for which space is reserved in the ring. The helper takes only constants.
pub const CLASSES: [usize; 6] = [256, 512, 1024, 4096, 16384, 65536];
/// Payload of the largest record; longer writes become several.
pub const MAX_CHUNK: usize = CLASSES[CLASSES.len() - 1];
/// Chunks that one write may become; what lies behind is counted as oversize.
pub const MAX_CHUNKS: usize = 256;
/// `UIO_MAXIOV` of the kernel.
pub const MAX_IOVECS: usize = 1024;

/// One finished write, or one part of it; the bytes follow.
#[cfg(not(feature = "next-layout"))]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct LogEvent {
    /// `kind` is [`crate::event::STDIO_DATA`] or [`crate::event::FILE_DATA`].
    pub header: Header,
    /// Inode number of the pipe, terminal or file.
    pub ino: u64,
    /// Device number as the kernel has it (`MKDEV`: 12 bits major, 20 bits minor).
    pub dev: u32,
    /// [`crate::stdio::STDOUT`] or [`crate::stdio::STDERR`]; 0 for files.
    pub iostream: u32,
    /// Place of the first byte: in the stream as counted by the kernel, or the offset in the file.
    pub position: u64,
    /// Names the open file description (its kernel address). Of a standard stream: [`crate::stdio::Stdio::registered`].
    pub description: u64,
}
#[cfg(not(feature = "next-layout"))]
assert_layout!(LogEvent, size 64);

/// As above, in another order and with one field more: what the test of an upgrade takes for the next version.
#[cfg(feature = "next-layout")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct LogEvent {
    /// `kind` is [`crate::event::STDIO_DATA`] or [`crate::event::FILE_DATA`].
    pub header: Header,
    /// Place of the first byte: in the stream as counted by the kernel, or the offset in the file.
    pub position: u64,
    /// All ones.
    pub added: u64,
    /// Names the open file description (its kernel address); 0 for standard streams.
    pub description: u64,
    /// [`crate::stdio::STDOUT`] or [`crate::stdio::STDERR`]; 0 for files.
    pub iostream: u32,
    /// Device number as the kernel has it.
    pub dev: u32,
    /// Inode number of the pipe, terminal or file.
    pub ino: u64,
}
#[cfg(feature = "next-layout")]
assert_layout!(LogEvent, size 72);
