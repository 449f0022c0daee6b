//! A container as the stages know it: shared between the thread that drains the ring and the one that reads files.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use crate::{
    attribute::Identity,
    config::{Capture, Files, Lines},
    ledger::Account,
    record::Resource,
};

/// What is known of a container once its identity is settled; only other rules, and what the API server tells, change it.
#[derive(Debug)]
pub struct Settled {
    /// Who it is.
    pub identity: Arc<Identity>,
    /// What goes into its records: the identity's, with what the API server tells of the Pod.
    pub resource: Arc<Resource>,
    /// Whether its records wait for what the API server tells of the Pod, as a rule needs that.
    pub awaits: bool,
    /// Its account in the ledger.
    pub account: Arc<Account>,
    /// Which of its files are logs; `None` when nothing of it is captured (its rule, or a Pod's sandbox).
    pub files: Option<Files>,
    /// How its lines are cut.
    pub lines: Lines,
}

impl Settled {
    /// Applies the rule that the configuration has for the container.
    #[must_use]
    pub fn new(identity: Arc<Identity>, told: Told, account: Arc<Account>, capture: &Capture, lines: &Lines) -> Self {
        let rule = capture.rule(&identity.resource);
        let logs = !identity.sandbox && rule.is_none_or(|rule| rule.logs);
        let files = rule.map_or(&capture.files, |rule| &rule.files);
        Self {
            files: logs.then(|| files.clone()),
            lines: rule.map_or(lines, |rule| &rule.lines).clone(),
            resource: told.resource.unwrap_or_else(|| Arc::clone(&identity.resource)),
            awaits: told.awaits,
            identity,
            account,
        }
    }
}

/// What the API server tells of a container's Pod.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The identity's resource with it; `None` when there is nothing to add.
    pub resource: Option<Arc<Resource>>,
    /// See [`Settled::awaits`].
    pub awaits: bool,
}

/// One container. The cgroups that it makes below its own are the same container.
#[derive(Debug)]
pub struct Container {
    /// Id of its own cgroup; the key of its account.
    pub cgroup: u64,
    settled: RwLock<Option<Arc<Settled>>>,
    ended: AtomicBool,
}

impl Container {
    /// A container of which only the cgroup is known yet.
    #[must_use]
    pub fn new(cgroup: u64) -> Arc<Self> {
        Arc::new(Self { cgroup, settled: RwLock::new(None), ended: AtomicBool::new(false) })
    }

    /// What is known; `None` while its identity is still looked for (two seconds at most). Until then its streams
    /// keep their lines back.
    #[must_use]
    pub fn settled(&self) -> Option<Arc<Settled>> {
        self.settled.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is known, once no record waits for more of it.
    #[must_use]
    pub fn ready(&self) -> Option<Arc<Settled>> {
        self.settled().filter(|settled| !settled.awaits)
    }

    /// Whether its identity is settled, and its records wait for what the API server tells.
    #[must_use]
    pub fn awaits(&self) -> bool {
        self.settled().is_some_and(|settled| settled.awaits)
    }

    /// Says what is known, or applies other rules to it. Streams that are open keep the rules that they began with, and
    /// take over what records say of the container.
    pub fn settle(&self, settled: Settled) {
        *self.settled.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(settled));
    }

    /// Whether its last process has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// Notes whether its last process has ended: a cgroup may be empty between two processes.
    pub fn set_ended(&self, ended: bool) {
        self.ended.store(ended, Relaxed);
    }
}
