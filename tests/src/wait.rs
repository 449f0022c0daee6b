//! Waiting for a condition with a deadline: no test sleeps and hopes.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Long enough for a loaded machine with two emulated cores; a test that passes needs a fraction of it.
pub const DEADLINE: Duration = Duration::from_secs(30);

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// By what every limit is multiplied.
static PATIENCE: AtomicU32 = AtomicU32::new(1);

/// Multiplies every limit of [`wait_until`] from now on: for an emulated machine, which is much slower.
pub fn set_patience(factor: u32) {
    PATIENCE.store(factor.max(1), Ordering::Relaxed);
}

/// Calls `condition` until it gives a value, with pauses that grow, and returns that value.
///
/// # Errors
/// `condition`'s own error at once, or "not within" with `what` after `limit` (times [`set_patience`]).
pub fn wait_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let limit = limit * PATIENCE.load(Ordering::Relaxed);
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
