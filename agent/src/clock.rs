//! The kernel programs stamp events with `CLOCK_MONOTONIC`; records carry the time of day.

use std::time::{SystemTime, UNIX_EPOCH};

/// The distance between the two clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: i128,
}

/// Nanoseconds since the Unix epoch, by the node's clock, which may be set at any time.
#[must_use]
pub fn unix_nano() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which the kernel programs use.
#[must_use]
pub fn monotonic_nano() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

impl Clock {
    /// Compares the clocks. Done anew for each round of draining, so that a clock that is set shows in the next lines.
    #[must_use]
    pub fn now() -> Self {
        Self { offset: i128::from(unix_nano()) - i128::from(monotonic_nano()) }
    }

    /// The time of day of a kernel event, in nanoseconds since the Unix epoch.
    #[must_use]
    pub fn unix_nano(self, monotonic: u64) -> u64 {
        u64::try_from((i128::from(monotonic) + self.offset).max(0)).unwrap_or(u64::MAX)
    }
}
