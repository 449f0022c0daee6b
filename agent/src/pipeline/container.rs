//! A container as the stages know it: shared between the thread that drains the ring and the one that reads files.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use crate::{
    attribute::Identity,
    config::{Capture, Files, Globs, Lines, Slash},
    ledger::Account,
    policy::{Effective, Field, annotations::Problem},
    record::{Class, Resource},
};

/// What is known of a container once its identity is settled; only other rules, and what the API server tells, change it.
#[derive(Debug)]
pub struct Profile {
    /// Who it is.
    pub identity: Arc<Identity>,
    /// What goes into its records: the identity's, with what the API server tells of the Pod.
    pub resource: Arc<Resource>,
    /// Whether its records wait for what the API server tells of the Pod, as a rule needs that.
    pub awaits: bool,
    /// Its account in the ledger.
    pub account: Arc<Account>,
    /// Whether anything of it is captured: it is not turned off, and no Pod's sandbox.
    pub is_captured: bool,
    /// Which of its files are logs; `None` when nothing of it is captured.
    pub files: Option<Files>,
    /// The class of all of its records, where one is declared.
    pub class: Option<Class>,
    /// How its lines are cut.
    pub lines: Lines,
    /// What was declared, and by whom.
    pub effective: Effective,
    /// What was declared and does not hold.
    pub problems: Vec<Problem>,
}

impl Profile {
    /// Applies the rule that the configuration has for the container, and over it what is declared. Rules for lines that are
    /// as they were `before` stay the same ones, so that no stream begins anew with them.
    #[must_use]
    pub fn new(
        identity: Arc<Identity>,
        joined: Joined,
        account: Arc<Account>,
        capture: &Capture,
        lines: &Lines,
        before: Option<&Self>,
    ) -> Self {
        let rule = capture.rule(&identity.resource);
        let declared = &joined.effective.settings;
        let logs = !identity.sandbox && declared.enabled.unwrap_or_else(|| rule.is_none_or(|rule| rule.logs));
        let before = before.map(|before| &before.lines);
        let lines = declared_lines(rule.map_or(lines, |rule| &rule.lines), &joined.effective, before);
        Self {
            is_captured: logs,
            files: logs.then(|| declared_files(rule.map_or(&capture.files, |rule| &rule.files), &joined.effective)),
            class: declared.class.map(Class::from),
            lines,
            resource: joined.resource.unwrap_or_else(|| Arc::clone(&identity.resource)),
            awaits: joined.awaits,
            effective: joined.effective,
            problems: joined.problems,
            identity,
            account,
        }
    }
}

/// Whether anybody but the configuration's rule, which is in the base already, has declared one of the fields.
fn is_declared(effective: &Effective, fields: &[Field]) -> bool {
    fields.iter().any(|field| effective.decision(*field).is_some_and(|decision| !decision.origin.is_rule()))
}

fn declared_files(base: &Files, effective: &Effective) -> Files {
    if !is_declared(effective, &[Field::Include, Field::Exclude, Field::StartAt]) {
        return base.clone();
    }
    let declared = &effective.settings.files;
    // They were checked when they were read.
    let globs = |globs: &Option<Vec<String>>| globs.as_ref().and_then(|globs| Globs::new(globs, Slash::Separates).ok());
    Files {
        include: globs(&declared.include).unwrap_or_else(|| base.include.clone()),
        exclude: globs(&declared.exclude).unwrap_or_else(|| base.exclude.clone()),
        start_at: declared.start_at.unwrap_or(base.start_at),
    }
}

/// Rules that are as they were `before` are the same ones: nothing is compiled, and nothing is cut anew.
fn declared_lines(base: &Lines, effective: &Effective, before: Option<&Lines>) -> Lines {
    let mut settings = base.settings().clone();
    if let Some(multiline) =
        effective.settings.multiline.as_ref().filter(|_| is_declared(effective, &[Field::Multiline]))
    {
        settings.multiline = multiline.over(&settings.multiline);
    }
    if let Some(format) = effective.settings.parse.filter(|_| is_declared(effective, &[Field::Parse])) {
        settings.parse.format = format;
    }
    if let Some(known) = before.into_iter().chain([base]).find(|known| settings == *known.settings()) {
        return known.clone();
    }
    // They were checked when they were read.
    Lines::new(settings).unwrap_or_else(|_| base.clone())
}

/// What the API server tells of a container's Pod.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    /// The identity's resource with it; `None` when there is nothing to add.
    pub resource: Option<Arc<Resource>>,
    /// See [`Profile::awaits`].
    pub awaits: bool,
    /// What was declared for it, and by whom; the configuration's rule is in it.
    pub effective: Effective,
    /// What was declared and does not hold.
    pub problems: Vec<Problem>,
}

/// One container. The cgroups that it makes below its own are the same container.
#[derive(Debug)]
pub struct Container {
    /// Id of its own cgroup; the key of its account.
    pub cgroup: u64,
    settled: RwLock<Option<Arc<Profile>>>,
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
    pub fn settled(&self) -> Option<Arc<Profile>> {
        self.settled.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is known, once no record waits for more of it.
    #[must_use]
    pub fn ready(&self) -> Option<Arc<Profile>> {
        self.settled().filter(|settled| !settled.awaits)
    }

    /// Whether its identity is settled, and its records wait for what the API server tells.
    #[must_use]
    pub fn awaits(&self) -> bool {
        self.settled().is_some_and(|settled| settled.awaits)
    }

    /// Says what is known, or applies other rules to it. Streams that are open take that over with their next line.
    pub fn settle(&self, settled: Profile) {
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
