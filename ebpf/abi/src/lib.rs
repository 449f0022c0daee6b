#![no_std]
//! What the kernel programs and the agent share: `repr(C)` data and constants, one event family per file.
//!
//! The kernel owns this format. Integers and named padding only: no `bool`, no `enum`, nothing whose bytes could be
//! invalid; the reading side turns codes into types and refuses what it does not know. Layouts are asserted at
//! compile time, because the two sides are compiled by different compilers.

pub mod container;
pub mod event;
pub mod file;
pub mod govern;
pub mod http;
pub mod kernel;
pub mod layout;
pub mod log;
pub mod stdio;

pub use event::Header;

/// Asserts the size and alignment of a wire type at compile time.
macro_rules! assert_layout {
    ($type:ty, size $size:expr) => {
        const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() == 8);
    };
}
pub(crate) use assert_layout;

/// Declares map keys and values as plain data for aya on the agent's side.
macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        $(
            #[cfg(feature = "aya")]
            // SAFETY: the type is `repr(C)`, `Copy`, made of integers only and has no implicit padding.
            unsafe impl aya::Pod for $type {}
        )+
    };
}
pub(crate) use pod;
