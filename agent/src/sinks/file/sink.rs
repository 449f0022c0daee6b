//! The sink itself: takes deliveries, finds their files, appends and rotates.

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::io::Errno;

use super::{
    appender::{Appended, Appender},
    config::{Format, Settings, Sync},
    keeper::Keeper,
    names::Names,
    path::{Hour, Target},
    sync::Syncer,
    tree::Tree,
};
use crate::{
    record::{Batch, Stream},
    sinks::{Delivery, Outcome, Sink, SinkError, json, stream_cache::StreamCache},
};

/// Deliveries of one stream are gathered up to this before they are written.
const RUN: usize = 256 * 1024;
/// A buffer that a large batch has made larger than this is given back.
const LARGEST_BUFFER: usize = 2 * 1024 * 1024;
/// How many streams' targets are kept.
const TARGETS: usize = 4096;
/// The tree is looked through at least this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Nanoseconds since the Unix epoch; tests pass their own.
type Clock = Box<dyn Fn() -> u64 + Send>;

/// The file sink.
pub struct FileSink {
    settings: Settings,
    clock: Clock,
    tree: Arc<Tree>,
    names: Arc<Names>,
    keeper: Keeper,
    syncer: Option<Syncer>,
    encoder: json::Encoder,
    /// Records of the current run, and the end of each delivery in them.
    buffer: Vec<u8>,
    ends: Vec<usize>,
    targets: StreamCache<Arc<Target>, TARGETS>,
    pub(super) files: HashMap<Arc<Target>, Appender>,
    /// Counts writes; the file with the lowest [`Appender::last_used`] is closed first.
    writes: u64,
    /// The hour now, and when it began.
    hour: (Hour, u64),
    pub(super) last_sweep: Option<(Instant, Hour)>,
    written_since_sweep: u64,
}

impl fmt::Debug for FileSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.files.len();
        f.debug_struct("FileSink").field("settings", &self.settings).field("files", &files).finish_non_exhaustive()
    }
}

impl FileSink {
    /// Opens the tree and starts the threads that look after it.
    ///
    /// # Errors
    /// When the root cannot be made or opened, when another sink writes there, or when there is no thread to have.
    pub fn new(settings: Settings) -> Result<Self, SinkError> {
        let now = || {
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
        };
        Self::with_clock(settings, Box::new(now))
    }

    pub(super) fn with_clock(settings: Settings, clock: Clock) -> Result<Self, SinkError> {
        let failed = |source| explain_start(&settings.path.display().to_string(), source);
        let tree = Arc::new(Tree::open(&settings.path).map_err(failed)?);
        let names = Arc::new(Names::default());
        let keeper = Keeper::start(Arc::clone(&tree), Arc::clone(&names), settings.clone()).map_err(failed)?;
        let syncer = match settings.sync {
            Sync::Interval(interval) => Some(Syncer::start(interval).map_err(failed)?),
            Sync::Never | Sync::Always => None,
        };
        let now = clock();
        Ok(Self {
            settings,
            clock,
            tree,
            names,
            keeper,
            syncer,
            encoder: json::Encoder::default(),
            buffer: Vec::with_capacity(RUN),
            ends: Vec::new(),
            targets: StreamCache::default(),
            files: HashMap::new(),
            writes: 0,
            hour: (Hour::of(now), now - now % Hour::NANOS),
            last_sweep: None,
            written_since_sweep: 0,
        })
    }

    fn target(&mut self, stream: &Arc<Stream>) -> Arc<Target> {
        Arc::clone(self.targets.get_or_insert_with(stream, |stream| Arc::new(Target::of(stream))))
    }

    /// Encodes the deliveries at the front of the queue that go to the same file as the first one.
    fn gather(&mut self, queue: &VecDeque<Delivery>) -> Option<Arc<Target>> {
        let target = self.target(&queue.front()?.batch.stream);
        self.buffer.clear();
        self.buffer.shrink_to(LARGEST_BUFFER);
        self.ends.clear();
        for delivery in queue {
            if self.buffer.len() >= RUN || self.target(&delivery.batch.stream) != target {
                break;
            }
            self.encode(&delivery.batch);
            self.ends.push(self.buffer.len());
        }
        Some(target)
    }

    fn encode(&mut self, batch: &Batch) {
        match self.settings.format {
            Format::Json => self.encoder.append_batch(batch, &mut self.buffer),
            Format::Text => {
                for line in &batch.lines {
                    self.buffer.extend_from_slice(batch.body(line));
                    self.buffer.push(b'\n');
                }
            }
        }
    }

    /// Appends the buffer to the target's file. Returns how many deliveries are written, and the error that kept
    /// the others from it.
    fn append(&mut self, target: &Arc<Target>) -> (usize, Result<(), SinkError>) {
        if self.buffer.is_empty() {
            return (self.ends.len(), Ok(()));
        }
        // A file or directory that was deleted is made again; one that vanishes time and again is an error.
        for _ in 0..3 {
            if let Err(error) = self.prepare(target) {
                return (0, Err(error));
            }
            self.writes += 1;
            let Some(file) = self.files.get_mut(target) else { break };
            file.last_used = self.writes;
            let appended = file.append(&self.buffer, &self.ends);
            let path = format!("{}/{}", self.tree.path().display(), file.place.path());
            let (deliveries, mut result) = match appended {
                Appended::Vanished => {
                    self.forget(target);
                    continue;
                }
                Appended::All => (self.ends.len(), Ok(())),
                Appended::Partly { kept, torn, error } => {
                    let deliveries = self.ends.iter().take_while(|end| **end <= kept).count();
                    // Whether the file is still there or not, the next write opens it again and cuts it back.
                    if torn {
                        self.forget(target);
                    }
                    (deliveries, Err(explain("writing", &path, error)))
                }
            };
            self.written_since_sweep += self.ends[..deliveries].last().copied().unwrap_or(0) as u64;
            if let (Some(file), true) = (self.files.get(target), deliveries > 0) {
                match (&self.syncer, self.settings.sync) {
                    (Some(syncer), _) => syncer.note(&file.file),
                    (None, Sync::Always) => {
                        if let Err(error) = rustix::fs::fdatasync(&file.file) {
                            // What of it is on the disk is unknown: it is all written again, to another descriptor.
                            result = Err(explain("syncing", &path, error.into()));
                            self.forget(target);
                            return (0, result);
                        }
                    }
                    (None, _) => {}
                }
            }
            return (deliveries, result);
        }
        let error = io::Error::new(io::ErrorKind::NotFound, "the file is deleted as soon as it is made");
        (0, Err(explain("writing below", &self.tree.path().display().to_string(), error)))
    }

    /// Sees to it that the target has an open file of this hour with room for the buffer.
    fn prepare(&mut self, target: &Arc<Target>) -> Result<(), SinkError> {
        self.update_hour();
        let max_length = self.settings.max_file_bytes.as_u64();
        let mut number = 0;
        if let Some(file) = self.files.get(target) {
            let full = file.length > 0 && file.length + self.buffer.len() as u64 > max_length;
            if file.place.name.hour == self.hour.0 && !full {
                return Ok(());
            }
            if file.place.name.hour == self.hour.0 {
                number = file.place.name.number + 1;
            }
            self.retire(target);
        }
        while self.files.len() >= self.settings.max_open_files {
            let oldest = self.files.iter().min_by_key(|(_, file)| file.last_used).map(|(target, _)| Arc::clone(target));
            let Some(oldest) = oldest else { break };
            // Closed for now, not for good: it goes on when its stream does, or is compressed when its hour is over.
            self.forget(&oldest);
        }
        let mut changed = Vec::new();
        let opened = Appender::open(
            &self.tree,
            &self.names,
            target,
            (self.hour.0, number),
            (self.settings.format.extension(), max_length),
            &mut changed,
        );
        for directory in &changed {
            match (&self.syncer, self.settings.sync) {
                (Some(syncer), _) => syncer.note(directory),
                (None, Sync::Always) => {
                    // A directory that cannot be synced shows in the file's own sync.
                    let _ = rustix::fs::fsync(directory);
                }
                (None, _) => {}
            }
        }
        let file = opened.map_err(|error| {
            let path = format!("{}/{}", self.tree.path().display(), target.directories.join("/"));
            explain("opening a file in", &path, error)
        })?;
        self.files.insert(Arc::clone(target), file);
        Ok(())
    }

    fn update_hour(&mut self) {
        let now = (self.clock)();
        if now.wrapping_sub(self.hour.1) >= Hour::NANOS {
            self.hour = (Hour::of(now), now - now % Hour::NANOS);
        }
    }

    /// Closes a file for good and hands it to the keeper.
    fn retire(&mut self, target: &Arc<Target>) {
        if let Some(file) = self.files.remove(target) {
            self.keeper.close(file.place);
        }
    }

    /// Closes a file without further ado.
    fn forget(&mut self, target: &Arc<Target>) {
        if let Some(file) = self.files.remove(target) {
            self.names.leave_open(&file.place);
        }
    }

    /// Asks for a sweep at the start, at each full hour, once a minute, and when much has been written.
    fn sweep_if_due(&mut self) {
        let share = self.settings.quota.as_u64() / 64;
        let due = self.written_since_sweep > share
            || self.last_sweep.is_none_or(|(at, hour)| at.elapsed() >= SWEEP_INTERVAL || hour != self.hour.0);
        if due && !self.keeper.is_sweeping() {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        let retention = u64::try_from(self.settings.retention.as_nanos()).unwrap_or(u64::MAX);
        let oldest = Hour::of((self.clock)().saturating_sub(retention));
        self.keeper.sweep(self.hour.0, oldest);
        self.last_sweep = Some((Instant::now(), self.hour.0));
        self.written_since_sweep = 0;
    }
}

impl Sink for FileSink {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn write(&mut self, queue: &mut VecDeque<Delivery>) -> Result<(), SinkError> {
        while let Some(target) = self.gather(queue) {
            let (written, result) = self.append(&target);
            for delivery in queue.drain(..written) {
                delivery.receipt.settle(Outcome::Delivered);
            }
            if let Err(error) = result {
                // Whatever is too old or too much goes now rather than at the next full minute.
                if error.source.kind() == io::ErrorKind::StorageFull && !self.keeper.is_sweeping() {
                    self.sweep();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        // Each write has already settled what it wrote.
        Ok(())
    }

    fn tick(&mut self) -> Result<(), SinkError> {
        self.update_hour();
        let hour = self.hour.0;
        let past = self.files.iter().filter(|(_, file)| file.place.name.hour != hour);
        for target in past.map(|(target, _)| Arc::clone(target)).collect::<Vec<_>>() {
            self.retire(&target);
        }
        if self.keeper.is_over_quota() && !self.keeper.is_sweeping() {
            // Only open files are left: the largest is closed, so that it can go.
            let largest = self.files.iter().max_by_key(|(_, file)| file.length).map(|(target, _)| Arc::clone(target));
            if let Some(target) = largest {
                self.retire(&target);
                self.sweep();
            }
        }
        self.sweep_if_due();
        if let Some(error) = self.keeper.take_error() {
            return Err(error);
        }
        match self.syncer.as_ref().and_then(Syncer::take_error) {
            Some(error) => Err(explain("syncing files below", &self.tree.path().display().to_string(), error)),
            None => Ok(()),
        }
    }

    fn close(&mut self, limit: Duration) -> Result<(), SinkError> {
        let deadline = Instant::now() + limit;
        // Files of this hour stay as they are: the next agent goes on with them.
        for target in self.files.keys().cloned().collect::<Vec<_>>() {
            self.forget(&target);
        }
        let error = self.syncer.as_mut().and_then(|syncer| {
            syncer.stop(deadline.saturating_duration_since(Instant::now()));
            syncer.take_error()
        });
        self.keeper.stop(deadline.saturating_duration_since(Instant::now()));
        match error {
            Some(error) => Err(explain("syncing files below", &self.tree.path().display().to_string(), error)),
            None => Ok(()),
        }
    }
}

/// An error of a running sink with the path concerned and what the operator can do.
fn explain(action: &str, path: &str, source: io::Error) -> SinkError {
    let remedy = remedy(&source).map_or_else(String::new, |remedy| format!("{remedy}; "));
    SinkError { action: format!("{action} {path} ({remedy}records stay queued and are tried again)"), source }
}

/// An error of a sink that does not come to run.
fn explain_start(path: &str, source: io::Error) -> SinkError {
    let remedy = match source.kind() {
        io::ErrorKind::ResourceBusy => {
            Some("another agent is running, or holds it still: stop it, or set another `path`")
        }
        _ => remedy(&source),
    };
    let remedy = remedy.map_or_else(String::new, |remedy| format!(" ({remedy})"));
    SinkError { action: format!("opening {path}{remedy}"), source }
}

fn remedy(source: &io::Error) -> Option<&'static str> {
    match source.raw_os_error().map(Errno::from_raw_os_error)? {
        Errno::NOSPC | Errno::DQUOT => Some("free space on its file system or lower the sink's `quota`"),
        Errno::ROFS => Some("mount its file system writable or set another `path`"),
        Errno::ACCESS | Errno::PERM => Some("give the agent permission to write there, or set another `path`"),
        Errno::NOTDIR | Errno::LOOP => Some("a file or link stands where a directory should; move it away"),
        Errno::MFILE | Errno::NFILE => Some("raise the limit of open files or lower the sink's `max_open_files`"),
        Errno::NAMETOOLONG => Some("set a shorter `path`"),
        Errno::IO => Some("the disk reports a fault; see the kernel's log"),
        _ => None,
    }
}
