//! Which machine the figures are of.

use std::{fmt, fs, thread};

use serde::Serialize;

/// What a figure can't be judged without.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    cores: usize,
    memory_bytes: u64,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Self {
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let info = rustix::system::sysinfo();
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            processor: model.map_or("unknown", |(_, model)| model).to_owned(),
            cores: thread::available_parallelism().map_or(0, Into::into),
            memory_bytes: info.totalram * u64::from(info.mem_unit),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.memory_bytes >> 30;
        write!(f, "Linux {}, {}, {} cores, {memory} GiB", self.kernel, self.processor, self.cores)
    }
}
