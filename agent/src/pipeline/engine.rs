//! The stages behind the ring, on the thread that drains it: each event finds its container, bytes of standard
//! streams become lines, files go on to their own thread.

mod search;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use rustc_hash::FxBuildHasher;
use sidestep_abi::{
    Header,
    container::ContainerEvent,
    file::FileSeen,
    log::{FLAG_TERMINAL, LogEvent},
    stdio::{InodeKey, STDERR, STDOUT},
};

use super::{
    container::Container,
    outlet::Outlet,
    readings::{Readings, StreamReading},
    registry::Registry,
    stdio::StdioStream,
};
use crate::{
    clock::{self, Clock},
    config::Config,
    decode::Event,
    files::event::{FileEvent, FileEvents},
    ledger::Reason,
    load::{KernelMaps, Roots},
};

/// Ready bytes of one stream above which its lines go out before the round is over.
const FULL_BATCH: usize = 1024 * 1024;
/// What may wait to be handed to the file thread, in bytes; above it the files themselves hold the data.
const MAX_UNSENT: usize = 8 * 1024 * 1024;
/// Announcements that may wait in any case: the file may be gone when it is written next, and it would be in no account.
const MAX_UNSENT_ANNOUNCEMENTS: usize = 16_384;
/// Files that could not be announced to the file thread; above it they are found when their container ends.
const MAX_FORGOTTEN: usize = 65_536;
/// Pause between looks at what time alone brings: identities, unfinished lines, ended containers.
const TICK: Duration = Duration::from_millis(200);
/// Pause between comparisons of each stream with the kernel's count, and looks for roots that came or went.
const RECONCILE: Duration = Duration::from_secs(1);

/// The state of the stages behind the ring.
pub struct Engine {
    maps: KernelMaps,
    roots: Roots,
    registry: Registry,
    outlet: Arc<Outlet>,
    readings: Arc<Readings>,
    files: SyncSender<FileEvents>,
    file_events: FileEvents,
    /// Announcements among `file_events`.
    unsent_announcements: usize,
    /// Files whose announcement did not fit: their verdicts are forgotten, so that they are announced again.
    forgotten: HashSet<InodeKey>,
    streams: HashMap<InodeKey, StdioStream, FxBuildHasher>,
    /// Streams with something new in this round.
    dirty: Vec<InodeKey>,
    /// Streams by the container's cgroup.
    of_container: HashMap<u64, Vec<InodeKey>>,
    epoch: u64,
    terminals: bool,
    clock: Clock,
    /// Containers that ran before the agent, until they are settled and their files can go on.
    resuming: Vec<(Arc<Container>, Vec<u32>)>,
    next_tick: Instant,
    next_reconcile: Instant,
    /// Announcements that the ring, or a map, has not taken so far.
    lost: u64,
    /// Those of files among them.
    lost_files: u64,
    /// Whether a map of the kernel programs was full at the last look, so that not every container could be entered.
    full: bool,
    /// Cgroups that were gone at the last look, and not announced as such.
    vanished: HashSet<u64>,
}

impl Engine {
    /// An engine that has seen nothing yet.
    pub fn new(
        maps: KernelMaps,
        roots: Roots,
        registry: Registry,
        outlet: Arc<Outlet>,
        readings: Arc<Readings>,
        files: SyncSender<FileEvents>,
        terminals: bool,
    ) -> Self {
        Self {
            maps,
            roots,
            registry,
            outlet,
            readings,
            files,
            file_events: FileEvents::default(),
            unsent_announcements: 0,
            forgotten: HashSet::new(),
            streams: HashMap::default(),
            dirty: Vec::new(),
            of_container: HashMap::new(),
            epoch: clock::unix_nano() / 1_000_000,
            terminals,
            clock: Clock::now(),
            resuming: Vec::new(),
            next_tick: Instant::now(),
            next_reconcile: Instant::now(),
            lost: 0,
            lost_files: 0,
            full: false,
            vanished: HashSet::new(),
        }
    }

    /// Takes over what a new configuration says of capture and lines.
    pub fn reload(&mut self, config: &Config) {
        self.terminals = config.capture.terminals;
        self.registry.reload(config.capture.clone(), config.lines.clone());
        self.file_events.events.push(FileEvent::RulesChanged);
    }

    /// Takes one event.
    pub fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Stdio(event, bytes) => self.stdio(&event, bytes),
            Event::FileData(event, bytes) => self.file_data(&event, bytes),
            Event::FileSeen(seen, path) => self.file_seen(&seen, path),
            Event::ContainerStarted(event) => self.started(&event),
            Event::CgroupMade(header, path) => self.registry.made(header.cgroup, path),
            Event::CgroupEmpty(header) => self.empty(&header),
            Event::CgroupRemoved(header) => self.removed(header.cgroup),
        }
    }

    fn stdio(&mut self, event: &LogEvent, bytes: &[u8]) {
        let unwanted = event.header.flags & FLAG_TERMINAL != 0 && !self.terminals;
        let key = InodeKey { ino: event.ino, dev: event.dev, _pad: 0 };
        let cgroup = event.header.cgroup;
        let known = self.streams.get_mut(&key).filter(|stream| stream.cgroup == cgroup);
        let stream = match known {
            Some(stream) => stream,
            None => {
                let container = self.registry.container(cgroup);
                self.open_stream(key, &container, cgroup, event.iostream);
                let Some(stream) = self.streams.get_mut(&key) else { return };
                stream
            }
        };
        if unwanted {
            return stream.pass_over(event.position, bytes.len() as u64);
        }
        stream.take(event.position, self.clock.unix_nano(event.header.time), bytes);
        if !std::mem::replace(&mut stream.dirty, true) {
            self.dirty.push(key);
        }
        if stream.ready_bytes() > FULL_BATCH {
            if let Some(batch) = stream.take_batch() {
                self.outlet.deliver(&Arc::new(batch), None);
            }
        } else if stream.is_overdue() {
            let container = Arc::clone(&stream.container);
            let now = Instant::now();
            self.registry.settle_now(&container, now);
            let kernel = self.maps.stdio(&key);
            stream.settle(now, kernel.as_ref());
        }
    }

    /// Enters a stream that the kernel has registered for `cgroup`, which is the container's own or below that.
    fn open_stream(&mut self, key: InodeKey, container: &Arc<Container>, cgroup: u64, iostream: u32) {
        if let Some(before) = self.streams.get_mut(&key) {
            if before.container.cgroup == container.cgroup {
                // The same stream under the same container: it keeps what it has.
                before.cgroup = cgroup;
                return;
            }
            // Its number is used again: what the one before holds is all there will be of it.
            let owner = Arc::clone(&before.container);
            self.registry.settle_now(&owner, Instant::now());
            if let Some(mut before) = self.streams.remove(&key) {
                before.finish(None);
                if let Some(batch) = before.take_batch() {
                    self.outlet.deliver(&Arc::new(batch), None);
                }
            }
        }
        self.streams.insert(key, StdioStream::new(key, Arc::clone(container), cgroup, iostream, self.epoch));
        let keys = self.of_container.entry(container.cgroup).or_default();
        if !keys.contains(&key) {
            keys.push(key);
        }
    }

    fn file_data(&mut self, event: &LogEvent, bytes: &[u8]) {
        if self.file_events.weight() + bytes.len() > MAX_UNSENT {
            return;
        }
        let container = self.registry.container(event.header.cgroup);
        let start = self.file_events.bytes.len();
        self.file_events.bytes.extend_from_slice(bytes);
        self.file_events.events.push(FileEvent::Data {
            key: InodeKey { ino: event.ino, dev: event.dev, _pad: 0 },
            position: event.position,
            bytes: start..self.file_events.bytes.len(),
            time_unix_nano: self.clock.unix_nano(event.header.time),
            tid: event.header.tid,
            description: event.description,
            flags: event.header.flags,
            container,
        });
    }

    fn file_seen(&mut self, seen: &FileSeen, path: Option<Arc<str>>) {
        let key = InodeKey { ino: seen.ino, dev: seen.dev, _pad: 0 };
        if self.file_events.weight() > MAX_UNSENT && self.unsent_announcements >= MAX_UNSENT_ANNOUNCEMENTS {
            if self.forgotten.len() < MAX_FORGOTTEN {
                self.forgotten.insert(key);
            }
            return;
        }
        let container = self.registry.container(seen.header.cgroup);
        self.unsent_announcements += 1;
        self.file_events.events.push(FileEvent::Seen {
            key,
            announced: seen.header.time,
            path,
            tgid: seen.header.tgid,
            fd: seen.fd,
            position: seen.position,
            name_hash: seen.name_hash,
            container,
        });
    }

    fn started(&mut self, event: &ContainerEvent) {
        let container = self.registry.started(event.header.cgroup, event.header.tgid);
        container.set_ended(false);
        for (key, iostream) in event.stdio.into_iter().zip([STDOUT, STDERR]) {
            let again = iostream == STDERR && key == event.stdio[0];
            if key.ino != 0 && !again {
                self.open_stream(key, &container, event.header.cgroup, iostream);
            }
        }
    }

    /// The last process of a cgroup has ended: of a container's own, all that its streams will ever hold is here.
    fn empty(&mut self, header: &Header) {
        let Some(container) = self.registry.own(header.cgroup) else { return };
        container.set_ended(true);
        self.finish_streams(&container, false);
        self.file_events.events.push(FileEvent::Ended { container });
    }

    fn removed(&mut self, cgroup: u64) {
        let now = Instant::now();
        if let Some(container) = self.registry.own(cgroup) {
            container.set_ended(true);
            self.registry.removed(cgroup, now);
            self.finish_streams(&container, true);
            self.file_events.events.push(FileEvent::Ended { container });
        } else {
            self.registry.removed(cgroup, now);
        }
        self.maps.remove_container(cgroup);
    }

    fn finish_streams(&mut self, container: &Arc<Container>, gone: bool) {
        let keys = self.of_container.get(&container.cgroup).cloned().unwrap_or_default();
        if !keys.is_empty() {
            self.registry.settle_now(container, Instant::now());
        }
        for key in keys {
            let kernel = self.maps.stdio(&key);
            // A pipe that several containers have is the stream of the one that wrote it last.
            if let Some(stream) =
                self.streams.get_mut(&key).filter(|stream| stream.container.cgroup == container.cgroup)
            {
                stream.finish(kernel.as_ref().filter(|kernel| kernel.cgroup == stream.cgroup));
                if let Some(batch) = stream.take_batch() {
                    self.outlet.deliver(&Arc::new(batch), None);
                }
                if gone {
                    self.streams.remove(&key);
                }
            }
            // Registered for a cgroup that is gone.
            if gone && kernel.is_some_and(|kernel| self.registry.owner(kernel.cgroup).is_none()) {
                self.maps.remove_stdio(&key);
            }
        }
        if gone {
            self.of_container.remove(&container.cgroup);
        }
    }

    /// Enters the containers that run already.
    pub fn scan(&mut self) {
        for (cgroup, pids) in self.registry.scan() {
            let container = self.registry.started(cgroup, pids[0]);
            self.resuming.push((container, pids));
        }
        let registered: Vec<_> = self.maps.all_stdio().collect();
        for (key, stdio) in registered {
            if self.registry.owner(stdio.cgroup).is_some() {
                // Nothing may have come of it yet that had its identity looked for.
                let container = self.registry.container(stdio.cgroup);
                self.open_stream(key, &container, stdio.cgroup, stdio.iostream);
                if self.maps.takes_over()
                    && stdio.written > 0
                    && let Some(stream) = self.streams.get_mut(&key)
                {
                    stream.begin_with_next();
                }
            }
        }
    }

    /// The end of a round of draining: lines that are ready go out.
    pub fn end_round(&mut self, now: Instant) {
        self.clock = Clock::now();
        let mut waiting = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            stream.dirty = false;
            if stream.is_waiting() {
                let kernel = self.maps.stdio(&key);
                stream.settle(now, kernel.as_ref());
            }
            if stream.is_waiting() {
                stream.dirty = true;
                waiting.push(key);
            }
            if let Some(batch) = stream.take_batch() {
                self.outlet.deliver(&Arc::new(batch), None);
            }
        }
        self.dirty.extend(waiting);
        self.send_files();
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick(now);
        }
    }

    /// Whether something waits that time alone brings on, so that the next round must not be far.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.dirty.is_empty() || !self.file_events.events.is_empty()
    }

    fn tick(&mut self, now: Instant) {
        let reconcile = now >= self.next_reconcile;
        if reconcile {
            self.next_reconcile = now + RECONCILE;
            self.refresh_roots();
            self.find_lost();
        }
        self.registry.tick(now);
        let (settled, waiting) =
            std::mem::take(&mut self.resuming).into_iter().partition(|(container, _)| container.settled().is_some());
        self.resuming = waiting;
        let resumed = Vec::into_iter(settled).map(|(container, pids)| FileEvent::Resume { container, pids });
        self.file_events.events.extend(resumed);
        let unix = clock::unix_nano();
        let mut streams = Vec::with_capacity(self.streams.len());
        for (key, stream) in &mut self.streams {
            if reconcile && let Some(kernel) = self.maps.stdio(key) {
                stream.reconcile(now, &kernel);
            }
            stream.idle(unix);
            if let Some(batch) = stream.take_batch() {
                self.outlet.deliver(&Arc::new(batch), None);
            }
            if let Some((shared, position, pending)) = stream.reading() {
                streams.push(StreamReading {
                    cgroup_id: stream.container.cgroup,
                    key: Arc::clone(&shared.key),
                    class: shared.class,
                    origin: shared.origin.clone(),
                    position,
                    pending,
                });
            }
        }
        self.readings.set_streams(streams);
        self.readings.set_identities(self.registry.statistics());
        self.outlet.tick(unix);
    }

    /// Hands events to the file thread if its queue has room.
    pub fn send_files(&mut self) {
        if self.file_events.weight() < MAX_UNSENT / 2 && !self.forgotten.is_empty() {
            self.file_events.events.extend(self.forgotten.drain().map(|key| FileEvent::Forgotten { key }));
            self.file_events.events.push(FileEvent::Unannounced);
        }
        if self.file_events.events.is_empty() {
            return;
        }
        match self.files.try_send(std::mem::take(&mut self.file_events)) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => self.unsent_announcements = 0,
            // Kept for the next round; data beyond the bound is left to the file.
            Err(TrySendError::Full(events)) => self.file_events = events,
        }
    }

    /// Counts bytes of records that an agent of another build has left, and that this one can't read, on the node's
    /// account: nothing tells whose they are.
    pub fn lose_unreadable(&mut self, bytes: u64) {
        self.registry.lose_of_node(Reason::Layout, bytes);
    }

    /// The end: unfinished lines come out. [`Engine::send_files`] brings the file thread what is left for it. When the
    /// programs go on (`leaves`), what is not here yet is in the ring, and the next agent's.
    pub fn finish(&mut self, leaves: bool) {
        let now = Instant::now();
        self.registry.settle_all(now);
        for (key, stream) in &mut self.streams {
            let container = Arc::clone(&stream.container);
            if container.settled().is_none() {
                self.registry.settle_now(&container, now);
            }
            let kernel = if leaves { None } else { self.maps.stdio(key) };
            stream.finish(kernel.as_ref());
            if let Some(batch) = stream.take_batch() {
                self.outlet.deliver(&Arc::new(batch), None);
            }
        }
        self.dirty.clear();
        self.send_files();
    }
}
