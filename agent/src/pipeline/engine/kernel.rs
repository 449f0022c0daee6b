//! What the engine asks of the kernel's maps, so that it does without a kernel in tests.

use sidestep_abi::stdio::{InodeKey, Stdio};

use crate::{
    load::{KernelMaps, LoadError, Roots},
    pipeline::streams::Counts,
};

/// The kernel's side of streams and containers.
pub trait Kernel: Counts + Send {
    /// Whether another agent has filled the maps so far.
    fn takes_over(&self) -> bool;
    /// Every registered stream.
    fn all_stdio(&self) -> Vec<(InodeKey, Stdio)>;
    /// Forgets a stream whose container is gone.
    fn remove_stdio(&mut self, key: &InodeKey);
    /// Forgets a cgroup that is gone.
    fn remove_container(&mut self, cgroup: u64);
    /// Announcements that the ring, or a map, did not take, by name.
    fn lost_events(&self) -> Vec<(&'static str, u64)>;
    /// Those of files among them.
    fn lost_files(&self) -> u64;
    /// Records of refusals that the ring did not take.
    fn lost_refusals(&self) -> u64;
    /// Tells the kernel programs of governed roots that came or went; returns whether there were any.
    ///
    /// # Errors
    /// When the maps can't be written.
    fn refresh_roots(&mut self) -> Result<bool, LoadError>;
    /// Registers containers that run and that the kernel programs have not registered.
    ///
    /// # Errors
    /// When a map is full, so that not all could be.
    fn register(&mut self) -> Result<(), LoadError>;
}

/// The maps of the running programs.
pub struct Loaded {
    /// All but those that one thread alone has.
    pub maps: KernelMaps,
    /// Which cgroups are governed.
    pub roots: Roots,
}

impl Counts for Loaded {
    fn stdio(&self, key: &InodeKey) -> Option<Stdio> {
        self.maps.stdio(key)
    }
}

impl Kernel for Loaded {
    fn takes_over(&self) -> bool {
        self.maps.takes_over()
    }

    fn all_stdio(&self) -> Vec<(InodeKey, Stdio)> {
        self.maps.all_stdio().collect()
    }

    fn remove_stdio(&mut self, key: &InodeKey) {
        self.maps.remove_stdio(key);
    }

    fn remove_container(&mut self, cgroup: u64) {
        self.maps.remove_container(cgroup);
    }

    fn lost_events(&self) -> Vec<(&'static str, u64)> {
        self.maps.lost_events()
    }

    fn lost_files(&self) -> u64 {
        self.maps.lost_files()
    }

    fn lost_refusals(&self) -> u64 {
        self.maps.lost_refusals()
    }

    fn refresh_roots(&mut self) -> Result<bool, LoadError> {
        self.roots.refresh(&mut self.maps)
    }

    fn register(&mut self) -> Result<(), LoadError> {
        self.roots.register(&mut self.maps)
    }
}
