//! Where buffers are, and what they need of the agent.

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc::Sender},
};

use super::owed::Owed;
use crate::{
    ledger::{Account, Ledger, Reason},
    process::InForce,
    record::Resource,
    sinks::Settlement,
};

/// The node's own account.
const NODE: u64 = 0;

/// What all sinks of an agent share for their buffers.
#[derive(Clone, Debug)]
pub struct Home {
    /// `None` where no sink can have a buffer.
    directory: Option<PathBuf>,
    ledger: Arc<Ledger>,
    settled: Sender<Settlement>,
    /// Of each buffer that this process had open: the sequences that it has found there and not booked yet.
    unbooked: Arc<Mutex<HashMap<PathBuf, Range<u64>>>>,
    /// Of each buffer that this process had open: what its sink is owed.
    owed: Arc<Mutex<HashMap<PathBuf, Owed>>>,
    processors: InForce,
}

impl Home {
    /// No buffers; what becomes of batches is told to `settled`.
    #[must_use]
    pub fn none(settled: Sender<Settlement>) -> Self {
        Self {
            directory: None,
            ledger: Arc::default(),
            settled,
            unbooked: Arc::default(),
            owed: Arc::default(),
            processors: InForce::default(),
        }
    }

    /// Buffers below `state_dir`. What is found there is booked in `ledger`.
    #[must_use]
    pub fn new(state_dir: &Path, ledger: Arc<Ledger>, settled: Sender<Settlement>) -> Self {
        Self { directory: Some(state_dir.join("buffers")), ledger, ..Self::none(settled) }
    }

    /// The directory of a sink's buffer.
    pub(super) fn of_sink(&self, name: &str) -> Option<PathBuf> {
        self.directory.as_ref().map(|directory| directory.join(name))
    }

    /// Who is told what becomes of batches.
    pub(in crate::sinks) fn settled(&self) -> &Sender<Settlement> {
        &self.settled
    }

    /// The account that a record from a buffer is booked on. A cgroup id is used again after a restart of the machine:
    /// what another container has left is booked on the node.
    pub(super) fn account(&self, cgroup: u64, resource: &Arc<Resource>) -> Arc<Account> {
        let account = self.ledger.open(cgroup, resource);
        let known = (&account.resource.container_id, &resource.container_id);
        match known {
            (Some(running), Some(gone)) if running != gone => self.node(resource),
            _ => account,
        }
    }

    /// The account of which only the number is known.
    pub(super) fn account_by_id(&self, cgroup: u64) -> Arc<Account> {
        self.ledger.account(cgroup).unwrap_or_else(|| self.node(&Arc::default()))
    }

    /// The account of what nobody can be named for.
    pub(super) fn node_account(&self) -> Arc<Account> {
        self.node(&Arc::default())
    }

    fn node(&self, resource: &Arc<Resource>) -> Arc<Account> {
        let node = Resource { host_name: resource.host_name.clone(), ..Resource::default() };
        self.ledger.open(NODE, &Arc::new(node))
    }

    /// What this process has not booked of a buffer that it had open before.
    pub(super) fn take_unbooked(&self, path: &Path) -> Option<Range<u64>> {
        self.unbooked.lock().unwrap_or_else(PoisonError::into_inner).remove(path)
    }

    /// Notes that for the next sink that opens it.
    pub(super) fn leave_unbooked(&self, path: &Path, sequences: Range<u64>) {
        self.unbooked.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), sequences);
    }

    /// What the sink before was owed.
    pub(super) fn take_owed(&self, path: &Path) -> Owed {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).remove(path).unwrap_or_default()
    }

    /// Leaves that to the next sink that opens the buffer.
    pub(super) fn leave_owed(&self, path: &Path, owed: Owed) {
        if !owed.is_empty() {
            self.owed.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), owed);
        }
    }

    /// Gives up what a sink is owed that has no buffer any more.
    pub(in crate::sinks) fn forget_owed(&self, name: &str) {
        if let Some(path) = self.of_sink(name) {
            self.take_owed(&path).drop_for(Reason::SinkRemoved);
        }
    }

    /// The processors that all sinks are behind.
    #[must_use]
    pub const fn processors(&self) -> &InForce {
        &self.processors
    }

    /// Says what lies in buffers of sinks that are not configured any more.
    pub(in crate::sinks) fn warn_of_strangers(&self, sinks: &[&str]) {
        let Some(directory) = &self.directory else { return };
        // A directory that can't be read has no buffers, or those who need one say so.
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            let is_known = entry.file_name().to_str().is_some_and(|name| sinks.contains(&name));
            let files = std::fs::read_dir(entry.path()).into_iter().flatten().flatten();
            let bytes: u64 = files
                .filter(|file| super::segment::first_of(&file.path()).is_some())
                .filter_map(|file| file.metadata().ok())
                .map(|metadata| metadata.len())
                .sum();
            if !is_known && bytes > 0 {
                tracing::warn!(
                    buffer = %entry.path().display(), bytes,
                    "the buffer of a sink that is not configured: configure a sink of that name to have it delivered, \
                     or delete the directory"
                );
            }
        }
    }
}
