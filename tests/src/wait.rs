//! Waiting for a condition with a deadline: no test sleeps and hopes.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Long enough for a loaded machine with two emulated cores; a test that passes needs a fraction of it.
pub const DEADLINE: Duration = Duration::from_secs(30);

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Calls `condition` until it gives a value, with pauses that grow, and returns that value.
///
/// # Errors
/// `condition`'s own error at once, or "deadline passed" with `what` after `limit`.
pub fn wait_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        // The condition is looked at once more after the deadline: the machine may have been away in between.
        let late = Instant::now() >= deadline;
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if late {
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
