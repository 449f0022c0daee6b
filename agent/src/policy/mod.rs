//! What the agent decides and the kernel programs carry out.

use aya::maps::{HashMap, MapData};
use sidestep_abi::{
    file::{FileState, IGNORED, LOG},
    stdio::InodeKey,
};

/// Verdicts on files: whether what is written to them is captured.
pub trait Verdicts: Send {
    /// Judges a file. `name_hash` is what its announcement gave: under another name it is another file.
    fn set(&mut self, key: &InodeKey, name_hash: u32, is_log: bool);

    /// Takes the verdict back: the next write announces the file again.
    fn forget(&mut self, key: &InodeKey);
}

/// The verdicts that the kernel programs read.
pub struct KernelVerdicts {
    files: HashMap<MapData, InodeKey, FileState>,
}

impl KernelVerdicts {
    /// Judges by the map that `KernelMaps::take_files` gives.
    #[must_use]
    pub const fn new(files: HashMap<MapData, InodeKey, FileState>) -> Self {
        Self { files }
    }
}

impl Verdicts for KernelVerdicts {
    fn set(&mut self, key: &InodeKey, name_hash: u32, is_log: bool) {
        let verdict = if is_log { LOG } else { IGNORED };
        // The map drops its least recently used entries, so it takes new ones; and a file without a verdict is
        // announced again, so a failure costs time and no bytes.
        if let Err(error) = self.files.insert(key, FileState { verdict, name_hash, captured: 0 }, 0) {
            tracing::warn!(%error, "the verdict on a file can't be written");
        }
    }

    fn forget(&mut self, key: &InodeKey) {
        // It may be gone already.
        let _ = self.files.remove(key);
    }
}
