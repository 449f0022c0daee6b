//! One cluster for all tests of a process: started by the first, removed with the last.

use std::{
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
};

use anyhow::{Context, Result, ensure};

use super::{
    Cluster,
    remove::{remove, sweep},
    start,
};

/// Clusters of tests are named with this and the number of the process.
const PREFIX: &str = "test-";

/// The cluster, while a test uses or waits for it.
static CURRENT: Mutex<Weak<Shared>> = Mutex::new(Weak::new());

/// The cluster of this process. One test has it at a time: an agent on a node is alone there.
#[derive(Debug)]
struct Shared {
    cluster: Cluster,
    turn: Mutex<()>,
}

impl Shared {
    /// The cluster of this process, started if no other test has it.
    fn get(nodes: u8) -> Result<Arc<Self>> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = current.upgrade() {
            let has = shared.cluster.nodes().len();
            ensure!(has == usize::from(nodes), "tests of one file share a cluster, and this one has {has} node(s)");
            return Ok(shared);
        }
        if let Err(error) = sweep(PREFIX) {
            eprintln!("removing the clusters of earlier runs: {error:#}");
        }
        let started = start::up(&format!("{PREFIX}{}", process::id()), nodes, &|_| ())?;
        let shared = Arc::new(Self { cluster: started.cluster, turn: Mutex::new(()) });
        *current = Arc::downgrade(&shared);
        Ok(shared)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        // A test that failed leaves its objects to be removed by its own guard, not by this lock.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = remove(self.cluster.place().name()) {
            eprintln!("clean-up of the cluster: {error:#}");
        }
    }
}

/// Shows what the components said when a test panics.
struct Shown<'a>(&'a Cluster);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.show_logs();
        }
    }
}

/// Runs `test` on the cluster of this process, alone; it has one node. When the test fails the ends of the components'
/// logs are shown.
///
/// Tests that use it stand in a module `on_cluster`, by whose name `cargo xtask test --no-cluster` leaves them out.
///
/// # Panics
/// When there is no cluster, when the test gives an error or panics itself.
pub fn on_cluster(test: impl FnOnce(&Cluster) -> Result<()>) {
    on_cluster_of(1, test);
}

/// As [`on_cluster`], with so many nodes; all tests of a file have the same number.
///
/// # Panics
/// As [`on_cluster`].
pub fn on_cluster_of(nodes: u8, test: impl FnOnce(&Cluster) -> Result<()>) {
    let shared = Shared::get(nodes).context("starting a cluster").unwrap_or_else(|error| panic!("{error:#}"));
    let _turn = shared.turn();
    let _shown = Shown(&shared.cluster);
    if let Err(error) = test(&shared.cluster) {
        panic!("{error:#}");
    }
}
