//! From bytes to lines. No I/O: time is passed in.
//!
//! One [`Assembler`] a stream takes the bytes as they were written and gives batches of lines. Its invariants, which
//! `tests.rs` checks with any cutting of any bytes:
//!
//! 1. The lines do not depend on how the bytes were cut into writes.
//! 2. The spans of the lines given out, plus [`Assembler::pending`], are the bytes pushed: none twice, none lost.
//! 3. Each line's position is the end of the line before it, except after a gap, which no span covers.
//! 4. What is held back is bounded: by `max_line_bytes` for an unfinished line, and by `multiline.max_bytes` for an
//!    unfinished trace.

mod lines;
mod multiline;
mod parse;
mod settings;
#[cfg(test)]
mod tests;
mod unfinished;

pub use lines::Assembler;
pub(crate) use multiline::declared_problem;
pub use multiline::{Budget, Language};
pub use settings::{Compiled, Format, Multiline, Parse, Pattern, Settings, SettingsError};
pub use unfinished::{Mark, Unfinished, Update};
