//! What the agent decides and the kernel programs carry out.

use sidestep_abi::{
    file::{IGNORED, LOG, Verdict},
    stdio::InodeKey,
};

use crate::load::FileMaps;

/// Verdicts on files: whether what is written to them is captured.
pub trait Verdicts: Send {
    /// Judges a file. `announced` is the time of its announcement: a verdict that comes late, when another file has
    /// the inode number, has no effect.
    fn set(&mut self, key: &InodeKey, announced: u64, is_log: bool);

    /// Takes back every verdict that a file is no log, because the rules have changed.
    fn forget_ignored(&mut self);

    /// Takes the verdict back: the next write announces the file again.
    fn forget(&mut self, key: &InodeKey);
}

/// The verdicts that the kernel programs read.
pub struct KernelVerdicts {
    maps: FileMaps,
}

impl KernelVerdicts {
    /// Judges by the maps that `KernelMaps::take_files` gives.
    #[must_use]
    pub const fn new(maps: FileMaps) -> Self {
        Self { maps }
    }
}

impl Verdicts for KernelVerdicts {
    fn set(&mut self, key: &InodeKey, announced: u64, is_log: bool) {
        let verdict = Verdict { announced, verdict: if is_log { LOG } else { IGNORED }, _pad: 0 };
        // The map drops its least recently used entries, so it takes new ones.
        if let Err(error) = self.maps.verdicts.insert(key, verdict, 0) {
            tracing::warn!(%error, "the verdict on a file can't be written");
        }
    }

    fn forget_ignored(&mut self) {
        let carried_out = self.maps.states.iter().flatten().filter(|(_, state)| state.verdict == IGNORED);
        let to_come = self.maps.verdicts.iter().flatten().filter(|(_, verdict)| verdict.verdict == IGNORED);
        let ignored: Vec<_> = carried_out.map(|(key, _)| key).chain(to_come.map(|(key, _)| key)).collect();
        ignored.iter().for_each(|key| self.forget(key));
    }

    fn forget(&mut self, key: &InodeKey) {
        // Either may be gone already.
        let _ = self.maps.verdicts.remove(key);
        let _ = self.maps.states.remove(key);
    }
}
