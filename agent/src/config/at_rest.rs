//! What others write is read when nobody is writing it.

use std::{thread, time::Duration};

/// Pause between two looks, and how many there are at most.
pub const LOOKS: (Duration, u32) = (Duration::from_millis(100), 20);

/// What is read twice the same, and may be all; `None` when it does not come to rest.
///
/// # Errors
/// It can't be read.
pub fn at_rest<T: PartialEq>(
    read: impl Fn() -> Result<T, String>,
    may_be_all: impl Fn(&T) -> bool,
) -> Result<Option<T>, String> {
    let mut before = read()?;
    for _ in 0..LOOKS.1 {
        thread::sleep(LOOKS.0);
        let now = read()?;
        if now == before && may_be_all(&now) {
            return Ok(Some(now));
        }
        before = now;
    }
    Ok(None)
}
