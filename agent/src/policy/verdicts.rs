//! Verdicts on files, which the kernel programs carry out.

use sidestep_abi::{
    file::{FileState, IGNORED, LOG, RetiredKey, UNANNOUNCED, Verdict},
    stdio::InodeKey,
};

use crate::load::FileMaps;

/// For an update of a map: only an entry that is there, `bpf(2)`.
const BPF_EXIST: u64 = 2;

/// Verdicts on files: whether what is written to them is captured.
pub trait Verdicts: Send {
    /// Judges a file. `announced` is the time of its announcement: a verdict that comes late, when another file has
    /// the inode number, has no effect.
    fn set(&mut self, key: &InodeKey, announced: u64, is_log: bool);

    /// Takes back every verdict that a file is no log, because the rules have changed.
    fn forget_ignored(&mut self);

    /// Takes the verdict back: the next write announces the file again.
    fn forget(&mut self, key: &InodeKey);

    /// As [`Verdicts::forget`], and what was written to the file stays counted: nothing of it has been heard of.
    fn announce_again(&mut self, key: &InodeKey);

    /// How many bytes were written to the file of this announcement. When another one has taken its place, the count is
    /// taken out: it is told once.
    fn written(&mut self, key: &InodeKey, announced: u64) -> u64;

    /// Files that were written and that the ring had no room to announce.
    fn unannounced(&mut self) -> Vec<Unannounced>;

    /// Takes an unannounced file out.
    fn settle(&mut self, file: &Unannounced);
}

/// A file that was written, and of which the ring could not tell.
#[derive(Clone, Debug)]
pub struct Unannounced {
    /// Device and inode number.
    pub key: InodeKey,
    /// Names the announcement that failed.
    pub announced: u64,
    /// Hash of its name and directory.
    pub name_hash: u32,
    /// Bytes that were written to it.
    pub written: u64,
    /// Another name has its inode number by now.
    pub gone: bool,
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

    fn announce_again(&mut self, key: &InodeKey) {
        let _ = self.maps.verdicts.remove(key);
        if let Ok(state) = self.maps.states.get(key, 0) {
            // What is written in between is counted too little. It may be gone already.
            let state = FileState { verdict: UNANNOUNCED, captured: 0, ..state };
            let _ = self.maps.states.insert(key, state, BPF_EXIST);
        }
    }

    fn written(&mut self, key: &InodeKey, announced: u64) -> u64 {
        let retired = retired(key, announced);
        if let Ok(state) = self.maps.retired.get(&retired, 0) {
            // It may have been dropped for others meanwhile.
            let _ = self.maps.retired.remove(&retired);
            return state.written;
        }
        let state = self.maps.states.get(key, 0).ok().filter(|state| state.announced == announced);
        state.map_or(0, |state| state.written)
    }

    fn unannounced(&mut self) -> Vec<Unannounced> {
        let entry = |key: InodeKey, state: FileState, gone: bool| {
            let FileState { announced, name_hash, written, .. } = state;
            (state.verdict == UNANNOUNCED).then_some(Unannounced { key, announced, name_hash, written, gone })
        };
        let present = self.maps.states.iter().flatten().filter_map(|(key, state)| entry(key, state, false));
        let gone = self.maps.retired.iter().flatten().filter_map(|(key, state)| {
            let RetiredKey { ino, dev, .. } = key;
            entry(InodeKey { ino, dev, _pad: 0 }, state, true)
        });
        present.chain(gone).collect()
    }

    fn settle(&mut self, file: &Unannounced) {
        // Either may be gone already.
        if file.gone {
            let _ = self.maps.retired.remove(&retired(&file.key, file.announced));
        } else {
            let _ = self.maps.states.remove(&file.key);
        }
    }
}

const fn retired(key: &InodeKey, announced: u64) -> RetiredKey {
    RetiredKey { ino: key.ino, dev: key.dev, _pad: 0, announced }
}
