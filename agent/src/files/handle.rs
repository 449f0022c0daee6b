//! How the rest of the agent talks to the thread that owns the files.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    Progress, Readings, Tailer,
    checkpoint::Checkpoint,
    checkpoint::Entry,
    event::FileEvents,
    tailer::{Deliver, Pending},
};
use crate::{
    config::{Lines, Server},
    ledger::Account,
    policy::Verdicts,
    record::Resource,
};

/// How much later than asked the thread may come to its end: a read or a look-up that is under way is not cut short.
const GRACE: Duration = Duration::from_millis(200);

/// What the thread has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where positions are kept.
    pub state_dir: PathBuf,
    /// Where the node's root directory is mounted.
    pub host_root: PathBuf,
    /// Where the cgroup v2 hierarchy is mounted; for finding a process of a container.
    pub cgroup_mount: PathBuf,
    /// The node's own log files.
    pub server: Server,
    /// How their lines are cut.
    pub server_lines: Lines,
    /// The node.
    pub node: Arc<Resource>,
    /// The node's account.
    pub node_account: Arc<Account>,
    /// Descriptors that are held of log files; the least recently written are closed and opened again on demand.
    pub max_open: usize,
}

/// What the thread is told besides events.
pub(super) enum Command {
    Reload { server: Box<Server>, lines: Lines },
    Stop { deadline: Instant },
}

/// The running thread. Dropping it without [`Handle::stop`] ends the thread without reading what is there.
#[derive(Debug)]
pub struct Handle {
    commands: Commands,
    ended: Receiver<Ended>,
    progress: Arc<Progress>,
    readings: Arc<Readings>,
}

/// Tells the running thread of a new configuration.
#[derive(Clone, Debug)]
pub struct Commands(Sender<Command>);

/// What the thread leaves behind.
pub(super) struct Ended {
    pub(super) leftover: Leftover,
    pub(super) checkpoint: Checkpoint,
    pub(super) positions: Vec<Pending>,
    pub(super) complete_until: u64,
}

/// What was not read or not handed on when the thread ended. It stays in the files, and the next agent reads it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Leftover {
    /// Bytes known to be in files and not read.
    pub unread: u64,
    /// Bytes read of lines that have no end yet, and booked as pending.
    pub unfinished: u64,
}

/// The end of the thread; positions still move with what the sinks acknowledge.
pub struct Stopped {
    /// What was left.
    pub leftover: Leftover,
    checkpoint: Checkpoint,
    positions: Vec<Pending>,
    complete_until: u64,
    progress: Arc<Progress>,
}

impl Handle {
    pub(super) fn spawn(
        settings: Settings,
        events: Receiver<FileEvents>,
        verdicts: Box<dyn Verdicts>,
        deliver: Deliver,
    ) -> io::Result<Self> {
        let (sender, commands) = mpsc::channel();
        let progress = Arc::new(Progress::default());
        let readings = Arc::new(Readings::default());
        let tailer = Tailer::new(settings, verdicts, deliver, &progress, &readings);
        let (end, ended) = mpsc::sync_channel(1);
        thread::Builder::new().name("files".to_owned()).spawn(move || {
            // Who waits for it may have gone.
            let _ = end.send(tailer.run(&events, &commands));
        })?;
        Ok(Self { commands: Commands(sender), ended, progress, readings })
    }

    /// For who takes over new configurations.
    #[must_use]
    pub fn commands(&self) -> Commands {
        self.commands.clone()
    }

    /// What the sinks have acknowledged, for a thread that settles without the handle.
    #[must_use]
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Counters and streams for telemetry.
    #[must_use]
    pub fn readings(&self) -> &Arc<Readings> {
        &self.readings
    }

    /// Takes the events that are queued, reads what the files hold until `deadline`, and ends the thread. Unfinished
    /// lines of files that remain are left to the next agent. Call [`Stopped::save`] when the sinks are done.
    ///
    /// # Errors
    /// When the thread had panicked, or is stuck: then the positions that it saved last are in force.
    pub fn stop(self, deadline: Instant) -> io::Result<Stopped> {
        self.commands.tell(Command::Stop { deadline });
        let limit = deadline.saturating_duration_since(Instant::now()) + GRACE;
        match self.ended.recv_timeout(limit) {
            Ok(Ended { leftover, checkpoint, positions, complete_until }) => {
                Ok(Stopped { leftover, checkpoint, positions, complete_until, progress: self.progress })
            }
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the thread that reads files panicked")),
            Err(RecvTimeoutError::Timeout) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the thread that reads files did not end in time"))
            }
        }
    }
}

impl Commands {
    /// Takes another configuration for the node's own files. Those that match no more are read to their end.
    pub fn reload(&self, server: Server, lines: Lines) {
        self.tell(Command::Reload { server: Box::new(server), lines });
    }

    fn tell(&self, command: Command) {
        // A thread that is gone has panicked; `stop` says so.
        let _ = self.0.send(command);
    }
}

impl Stopped {
    /// What the sinks have acknowledged, to be told of the last settled batches.
    #[must_use]
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Writes the final positions.
    pub fn save(mut self) {
        let entries: Vec<Entry> = self.positions.iter().map(|pending| pending.entry(&self.progress)).collect();
        self.checkpoint.write(entries, self.complete_until);
    }
}
