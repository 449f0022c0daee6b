//! Settings of the buffer on disk, the same for every sink that has one.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::{config::units, sinks::config::InvalidSetting};

/// The buffer on disk of one sink: `<state_dir>/buffers/<name of the sink>`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BufferSettings {
    /// Whether there is one; default yes. Without it the queue is all there is, and what is in it is lost with the
    /// process unless the kernel's ring or a file still has it.
    pub enabled: bool,
    /// The most bytes on disk; default 1 GiB.
    #[serde(with = "units::size")]
    pub max_bytes: ByteSize,
    /// The most bytes of lines that the sink has at once and has not acknowledged; what is beyond waits on disk. Default
    /// 32 MiB. One batch is given to it however large it is.
    #[serde(with = "units::size")]
    pub max_unacknowledged: ByteSize,
    /// What happens to lines of pipes when the buffer, or its disk, is full; default `drop_newest`. Lines of files stay in
    /// their files, and the sink goes back for them.
    pub when_full: WhenFull,
    /// How long a batch may wait for its acknowledgement before it is written to disk as well; default 200 ms.
    #[serde(with = "units::duration")]
    pub spill_after: Duration,
    /// The longest that something written stays in the page cache alone; default 500 ms.
    #[serde(with = "units::duration")]
    pub sync_interval: Duration,
}

/// The rule of a full buffer.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The new batch is dropped, with reason `buffer_full`.
    #[default]
    DropNewest,
    /// The sink's queue fills, then by its own rule everyone waits: files wait unread, the ring holds what it can.
    Block,
    /// The oldest part of the buffer, about a sixteenth, is dropped, with reason `buffer_full`.
    DropOldest,
}

impl Default for BufferSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            max_bytes: ByteSize::gib(1),
            max_unacknowledged: ByteSize::mib(32),
            when_full: WhenFull::default(),
            spill_after: Duration::from_millis(200),
            sync_interval: Duration::from_millis(500),
        }
    }
}

impl BufferSettings {
    /// The most bytes of lines that the sink has at once: all of them have to go to the disk when it is late.
    pub(in crate::sinks) fn at_once(&self) -> usize {
        let most = self.max_unacknowledged.as_u64().min(self.max_bytes.as_u64() / 2);
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Every option that makes no sense.
    pub(in crate::sinks) fn problems(&self) -> Vec<InvalidSetting> {
        let milliseconds = Duration::from_millis(1)..=Duration::from_secs(60);
        let checks = [
            (self.max_bytes >= ByteSize::mib(1), "buffer.max_bytes", "must be at least 1MiB"),
            (
                (ByteSize::kib(64)..=ByteSize::gib(1)).contains(&self.max_unacknowledged),
                "buffer.max_unacknowledged",
                "must be from 64KiB to 1GiB",
            ),
            (milliseconds.contains(&self.spill_after), "buffer.spill_after", "must be from 1ms to 1m"),
            (milliseconds.contains(&self.sync_interval), "buffer.sync_interval", "must be from 1ms to 1m"),
        ];
        let wrong = checks.into_iter().filter(|(holds, ..)| !holds);
        wrong.map(|(_, option, problem)| InvalidSetting { option, problem: problem.to_owned() }).collect()
    }
}
