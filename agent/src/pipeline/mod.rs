//! Wiring of the stages: threads, queues and their bounds, what happens when one is full, order of shutdown.
//!
//! Two threads make batches: one drains the ring and cuts standard streams into lines, one owns the log files. Both
//! hand them to the [`outlet::Outlet`], where each sink has a thread and a queue of its own. A sink settles what it
//! has made safe, and one more thread books that in the ledger. Shutdown follows the data: the ring is drained, the
//! files are read to their ends, the sinks write out, the ledger is closed.

pub mod container;
pub mod engine;
pub mod governed;
pub mod governor;
pub mod journal;
pub mod known;
mod lists;
pub mod outlet;
pub mod pod_join;
pub mod policies_in_force;
pub mod readings;
pub mod refusals;
pub mod registry;
pub mod rounds;
pub(crate) mod settle;

pub mod stdio;
pub mod streams;

use std::{
    io,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use self::{
    engine::{Engine, Loaded},
    governor::Governor,
    journal::{Journal, Restored},
    known::Known,
    outlet::Outlet,
    pod_join::PodJoin,
    readings::Readings,
    refusals::Refusals,
    registry::Registry,
    rounds::Rounds,
    streams::Streams,
};
use crate::{
    attribute::{HostFiles, Identities},
    clock,
    config::{Config, Part},
    drain::{Drain, Remains, Source, Stop, Wakeup, ring::Ring},
    files::{self, Tailer},
    kubernetes::Kubernetes,
    ledger::Ledger,
    load::{Governors, KernelMaps, Roots, cgroups},
    policy::{KernelVerdicts, Policies},
    record::Resource,
    runtime_log::Repairs,
    sinks::{Settlement, SinkError, buffer::Home},
};

/// Rounds of file events that may wait for the file thread.
const FILE_QUEUE: usize = 64;
/// Descriptors that are left for everything but log files: sinks, sockets, look-ups.
const OTHER_DESCRIPTORS: u64 = 1024;
/// Log files of which a descriptor is held, at least and at most.
const OPEN_FILES: std::ops::RangeInclusive<u64> = 256..=65_536;
/// What a thread gets to come to its end, however little time is left.
const LEAST: Duration = Duration::from_millis(100);
/// How long after the sinks' end the last of what they settled is booked.
const SETTLE: Duration = Duration::from_millis(500);
/// How long a reload waits for the stages behind the ring to go by it.
const TAKEN: Duration = Duration::from_secs(2);
/// Another one each time that the machine starts, `random(4)`.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The node's own account in the ledger.
const NODE: u64 = 0;

/// Why the pipeline can't run.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A sink can't be started.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The node's files can't be read.
    #[error("identity.host_root {path}: {source}")]
    HostRoot {
        /// The folder.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The system has no thread, or no descriptor, to give.
    #[error("starting the pipeline: {0}")]
    System(#[from] io::Error),
    /// A map that has one user is in use already.
    #[error("the ring or the verdicts on files are in use already")]
    MapTaken,
}

/// Hands new configurations to the stages.
#[derive(Debug)]
pub struct Reloader {
    outlet: Arc<Outlet>,
    files: files::Commands,
    governor: governor::Handle,
    engine: mpsc::Sender<Reload>,
}

/// A configuration that the stages behind the ring are to take over.
#[derive(Debug)]
pub struct Reload {
    /// What is new.
    pub config: Arc<Config>,
    /// Dropped when it is taken over.
    pub done: mpsc::Sender<()>,
}

/// The sinks, started before anything is attached: what they need, such as the lock of a directory, is claimed by then.
#[derive(Debug)]
pub struct StartedSinks {
    outlet: Arc<Outlet>,
    settlements: mpsc::Receiver<Settlement>,
    /// Opened with the sinks: what an earlier agent has left in their buffers is booked there.
    ledger: Arc<Ledger>,
}

impl StartedSinks {
    /// Starts the sinks of a configuration.
    ///
    /// # Errors
    /// The first sink that can't be started.
    pub fn start(config: &Config, watch: Arc<dyn outlet::Watch>) -> Result<Self, SinkError> {
        let (settled, settlements) = mpsc::channel();
        let ledger = Arc::new(Ledger::default());
        let home = Home::new(&config.state_dir, Arc::clone(&ledger), settled);
        let outlet = Outlet::start(&config.sinks, home, watch)?;
        outlet.process_with(&config.processors)?;
        Ok(Self { outlet: Arc::new(outlet), settlements, ledger })
    }
}

/// The running stages.
pub struct Pipeline {
    ledger: Arc<Ledger>,
    containers: Arc<Known>,
    readings: Arc<Readings>,
    outlet: Arc<Outlet>,
    stop: Arc<Stop>,
    reloads: mpsc::Sender<Reload>,
    /// Told when the stages behind the ring have come to their end.
    drain: mpsc::Receiver<Remains>,
    files: files::Handle,
    governor: governor::Handle,
    /// Closed when everything is booked.
    settle: mpsc::Receiver<()>,
}

impl Pipeline {
    /// Starts all threads behind the sinks. `kept` says that the ring and the map of streams outlive the agent: then it
    /// goes on where the one before has stopped, and leaves what is not safe to the next one.
    ///
    /// # Errors
    /// What keeps a stage from starting.
    pub fn start(
        config: &Config,
        mut maps: KernelMaps,
        roots: Roots,
        sinks: StartedSinks,
        kubernetes: &Kubernetes,
        (governors, policies): (Result<Governors, String>, Option<Arc<Policies>>),
        kept: bool,
    ) -> Result<Self, PipelineError> {
        let StartedSinks { outlet, settlements, ledger } = sinks;
        let readings = Arc::new(Readings::default());
        let (file_events, events) = mpsc::sync_channel(FILE_QUEUE);
        let verdicts = maps.take_files().ok_or(PipelineError::MapTaken)?;
        let deliver_to = Arc::clone(&outlet);
        let files = Tailer::spawn(
            file_settings(config, &roots, &ledger),
            events,
            Box::new(KernelVerdicts::new(verdicts)),
            Box::new(move |batch, hold| deliver_to.deliver(&batch, hold)),
        )?;
        let settle = settle::spawn(settlements, Arc::clone(files.progress()))?;

        let host_files = HostFiles::new(&config.identity.host_root).map_err(|source| PipelineError::HostRoot {
            path: config.identity.host_root.display().to_string(),
            source,
        })?;
        let identities = Identities::new(host_files, config.identity.clone(), Some(Arc::clone(&config.node_name)));
        let pod_join = PodJoin::new(config, kubernetes.clone());
        let containers = Arc::<Known>::default();
        let registry = Registry::new(
            &roots,
            identities,
            Arc::clone(&ledger),
            config.capture.clone(),
            config.lines.clone(),
            pod_join,
            Arc::clone(&containers),
        );
        let governor = Governor::spawn(
            governors,
            maps.take_govern().ok_or(PipelineError::MapTaken)?,
            Arc::clone(&containers),
            kubernetes,
            (&roots.mount, roots.patterns()),
            policies,
        )?;
        let (ring, reader) = maps.take_ring().ok_or(PipelineError::MapTaken)?;
        let ring = Ring::open(ring)?;
        let wakeup = Wakeup::new(&ring)?;
        let older = maps.take_older_rings().into_iter().map(Source::older).collect::<io::Result<Vec<_>>>()?;
        let mut sources: Vec<_> = older.into_iter().chain([Source::new(ring)]).collect();
        let (journal, restored) = if kept { open_journal(config) } else { (None, Restored::default()) };
        // Of a stream that a journal does not know nothing was ever let go of; without one, nobody knows.
        let known = sources.iter_mut().map(Source::known_since).max().unwrap_or_default();
        let known_since = if restored.complete { 0 } else { known };
        let inherited_before = if maps.takes_over() { clock::monotonic_nano() } else { 0 };
        let deliver_to = Arc::clone(&outlet);
        let repairs = match config.capture.runtime_logs {
            true => Some(Repairs::start(&config.identity.host_root)?),
            false => None,
        };
        readings.set_repairs(repairs.as_ref().map(|repairs| Arc::clone(repairs.statistics())));
        let streams = Streams::new(Box::new(move |batch, hold| deliver_to.deliver(&batch, hold)), known_since)
            .inheriting(inherited_before)
            .with_repairs(repairs);
        let deliver_to = Arc::clone(&outlet);
        let node = node(config);
        let refusals = Refusals::new(
            Box::new(move |batch, hold| deliver_to.deliver(&batch, hold)),
            governor.clone(),
            (Arc::clone(&node), ledger.open(NODE, &node)),
        );
        readings.set_ring_capacity(u64::from(config.capture.ring_size.get()));
        let own = cgroups::of_process(&roots.mount, std::process::id());
        let mut engine = Engine::new(
            Loaded { maps, roots },
            registry,
            (streams, refusals),
            Arc::clone(&readings),
            file_events,
            config.capture.terminals,
        )
        .without(own);
        engine.start(restored.state);
        let (reloads, new_configurations) = mpsc::channel();
        let stop = Arc::new(Stop::default());
        let drain = Drain {
            sources,
            reader,
            wakeup,
            engine,
            rounds: Rounds::new(journal),
            outlet: Arc::clone(&outlet),
            readings: Arc::clone(&readings),
            stop: Arc::clone(&stop),
            reloads: new_configurations,
        };
        drain.measure();
        let (ended, drained) = mpsc::sync_channel(1);
        std::thread::Builder::new().name("drain".to_owned()).spawn(move || {
            // Nobody waits for it when the agent could not start.
            let _ = ended.send(drain.run());
        })?;
        Ok(Self { ledger, containers, readings, outlet, stop, reloads, drain: drained, files, governor, settle })
    }

    /// The accounts of all containers.
    #[must_use]
    pub fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }

    /// The containers that are known.
    #[must_use]
    pub fn containers(&self) -> Arc<Known> {
        Arc::clone(&self.containers)
    }

    /// What the stages tell about themselves.
    #[must_use]
    pub fn readings(&self) -> Arc<Readings> {
        Arc::clone(&self.readings)
    }

    /// What the reader of files tells about itself.
    #[must_use]
    pub fn file_readings(&self) -> Arc<files::Readings> {
        Arc::clone(self.files.readings())
    }

    /// What governs.
    #[must_use]
    pub fn governor(&self) -> governor::Handle {
        self.governor.clone()
    }

    /// The sinks.
    #[must_use]
    pub fn outlet(&self) -> Arc<Outlet> {
        Arc::clone(&self.outlet)
    }

    /// For who takes over new configurations, on a thread of its own.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        Reloader {
            outlet: Arc::clone(&self.outlet),
            files: self.files.commands(),
            governor: self.governor.clone(),
            engine: self.reloads.clone(),
        }
    }

    /// Ends all stages in the order of the data, within `limit` in all; returns the bytes that were not delivered.
    /// When the programs go on (`leaves`), the ring is the next agent's, and nothing more is taken from it.
    /// `detach` is called when nothing is taken from the kernel any more: the kernel takes its time to let go of
    /// programs, so that is done on the side.
    #[must_use]
    pub fn stop(self, limit: Duration, leaves: bool, detach: impl FnOnce() + Send + 'static) -> u64 {
        let start = Instant::now();
        let deadline = start + limit;
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        // A sink that takes nothing holds the threads: after half of the time nobody waits for it any more, and what it
        // has no room for is dropped, and counted, or stays in the files.
        self.outlet.limit_waits(start + limit / 2);
        self.governor.end();
        if leaves {
            self.stop.leave();
        } else {
            self.stop.after_draining();
        }
        let drained = self.drain.recv_timeout(limit / 2).or_else(|_| {
            self.stop.at_once();
            self.drain.recv_timeout(left(start + limit * 3 / 4).max(LEAST))
        });
        let mut complete = true;
        if let Err(error) = &drained {
            tracing::error!(%error, "the draining thread did not come to its end");
            complete = false;
        }
        let (detaching, detached) = mpsc::channel::<()>();
        let detach = move || {
            detach();
            drop(detaching);
        };
        // Without a thread the programs go at once, or with the process.
        let _ = std::thread::Builder::new().name("detach".to_owned()).spawn(detach);
        // Half of what is left is for the files, half for the sinks.
        let stopped = self.files.stop(Instant::now() + left(deadline) / 2);
        let mut bytes = self.outlet.close(left(deadline));
        // Nothing is ever sent: it returns when the thread has ended. A sink that is stuck keeps it from that.
        let _ = self.settle.recv_timeout(left(deadline + SETTLE).max(LEAST));
        if let Ok(remains) = drained {
            remains.release();
        }
        match stopped {
            Ok(stopped) => {
                let unread = stopped.leftover.unread + stopped.leftover.unfinished;
                if unread > 0 {
                    tracing::info!(bytes = unread, "left in log files for the next agent");
                }
                stopped.save();
            }
            Err(error) => {
                tracing::error!(%error, "positions in files could not be saved");
                complete = false;
            }
        }
        let _ = detached.recv_timeout(left(deadline + SETTLE).max(LEAST));
        if !complete {
            bytes = bytes.max(1);
        }
        bytes
    }
}

impl Reloader {
    /// Who takes over the policies of files.
    #[must_use]
    pub const fn governor(&self) -> &governor::Handle {
        &self.governor
    }

    /// Takes over what changed and can be changed under way. Waits for sinks that are replaced.
    ///
    /// # Errors
    /// A new sink that can't be started: then nothing has changed.
    pub fn reload(&self, old: &Config, new: &Config) -> Result<(), PipelineError> {
        let changes = old.diff(new);
        if changes.contains(Part::Sinks) {
            self.outlet.replace(&new.sinks, old.shutdown_timeout)?;
        }
        if changes.contains(Part::Processors) {
            self.outlet.process_with(&new.processors)?;
        }
        self.files.reload(new.server.clone(), new.lines.clone());
        let (done, taken) = mpsc::channel();
        // The thread ends only with the pipeline. It may wait for a sink just now.
        let _ = self.engine.send(Reload { config: Arc::new(new.clone()), done });
        let _ = taken.recv_timeout(TAKEN);
        Ok(())
    }
}

fn open_journal(config: &Config) -> (Option<Journal>, Restored) {
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let (journal, restored) = Journal::open(&config.state_dir, &boot);
    (Some(journal), restored)
}

/// As many as the process may have, which is asked for: 1,024 are given to a process by default.
fn max_open_files() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let files = allowed.unwrap_or(u64::MAX).saturating_sub(OTHER_DESCRIPTORS);
    // A quarter is for those that are opened to be judged, or in the time between two looks at how many there are.
    let files = files - files / 4;
    files.clamp(*OPEN_FILES.start(), *OPEN_FILES.end()).try_into().unwrap_or(usize::MAX)
}

/// The node itself, as the resource of records.
fn node(config: &Config) -> Arc<Resource> {
    Arc::new(Resource { host_name: Some(Arc::clone(&config.node_name)), ..Resource::default() })
}

fn file_settings(config: &Config, roots: &Roots, ledger: &Ledger) -> files::Settings {
    let node = node(config);
    files::Settings {
        state_dir: config.state_dir.clone(),
        host_root: config.identity.host_root.clone(),
        cgroup_mount: roots.mount.clone(),
        server: config.server.clone(),
        server_lines: config.lines.clone(),
        node_account: ledger.open(NODE, &node),
        node,
        max_open: max_open_files(),
    }
}
