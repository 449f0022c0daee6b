//! The stages behind the ring, on the thread that drains it: each event finds its container, bytes of standard
//! streams become lines, files go on to their own thread.

mod files;
mod kernel;
mod search;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, mpsc::SyncSender},
    time::{Duration, Instant},
};

use sidestep_abi::{
    Header,
    container::ContainerEvent,
    file::FileSeen,
    log::{FLAG_TERMINAL, LogEvent},
    stdio::{InodeKey, STDERR, STDOUT},
};

use self::files::ToFiles;
pub use self::kernel::{Kernel, Loaded};
use super::{
    container::Container,
    journal::{Saved, Standing, State, StreamId},
    readings::Readings,
    refusals::Refusals,
    registry::Registry,
    rounds::Effects,
    streams::{Streams, Taken, Written},
};
use crate::{
    clock::{self, Clock},
    config::Config,
    decode::Event,
    events::Event as Reported,
    files::event::{FileEvent, FileEvents},
    ledger::Reason,
    sinks::Hold,
};

/// Pause between looks at what time alone brings: identities, unfinished lines, ended containers.
const TICK: Duration = Duration::from_millis(200);
/// Pause between comparisons of each stream with the kernel's count, and looks for roots that came or went.
const RECONCILE: Duration = Duration::from_secs(1);
/// A writer whose time is taken, and that has no space in the ring yet, needs microseconds, if nothing is in its way.
const UNDER_WAY_NANOS: u64 = 50_000_000;

/// The state of the stages behind the ring.
pub struct Engine<K> {
    kernel: K,
    registry: Registry,
    readings: Arc<Readings>,
    files: ToFiles,
    streams: Streams,
    refusals: Refusals,
    /// Guard of the round that is under way.
    hold: Option<Hold>,
    terminals: bool,
    /// The cgroup that nothing is taken of.
    own: Option<u64>,
    clock: Clock,
    /// Containers that ran before the agent, until they are settled and their files can go on.
    resuming: Vec<(Arc<Container>, Vec<u32>)>,
    next_tick: Instant,
    next_reconcile: Instant,
    /// The ring is at what was in it when the agent started: the kernel's counts are ahead of it.
    catching_up: bool,
    /// Announcements that the ring, or a map, has not taken so far.
    lost: u64,
    /// Those of files among them.
    lost_files: u64,
    /// Whether a map of the kernel programs was full at the last look, so that not every container could be entered.
    full: bool,
    /// Cgroups that were gone at the last look, and not announced as such.
    vanished: HashSet<u64>,
    /// Cgroups of containers that are gone, and of which missing bytes are looked for still.
    leaving: HashSet<u64>,
    /// Containers that have ended while their records wait for what the API server tells; whether they are gone.
    postponed: HashMap<u64, bool>,
}

/// How far a round has come.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    /// All that was written before has been taken: nanoseconds since the Unix epoch.
    pub taken: u64,
    /// What was in the ring when the agent started has been taken.
    pub caught_up: bool,
    /// So much is held back that the ring may be full soon.
    pub is_crowded: bool,
}

impl<K: Kernel> Engine<K> {
    /// An engine that has seen nothing yet.
    pub fn new(
        kernel: K,
        registry: Registry,
        (streams, refusals): (Streams, Refusals),
        readings: Arc<Readings>,
        files: SyncSender<FileEvents>,
        terminals: bool,
    ) -> Self {
        Self {
            kernel,
            registry,
            readings,
            files: ToFiles::new(files),
            streams,
            refusals,
            hold: None,
            terminals,
            own: None,
            clock: Clock::now(),
            resuming: Vec::new(),
            next_tick: Instant::now(),
            next_reconcile: Instant::now(),
            catching_up: true,
            lost: 0,
            lost_files: 0,
            full: false,
            vanished: HashSet::new(),
            leaving: HashSet::new(),
            postponed: HashMap::new(),
        }
    }

    /// Takes nothing of this cgroup: the agent's own. Until it has taken over, the programs know that of the agent before.
    #[must_use]
    pub const fn without(mut self, own: Option<u64>) -> Self {
        self.own = own;
        self
    }

    /// Takes over what a new configuration says of capture and lines.
    pub fn reload(&mut self, config: &Config) {
        self.terminals = config.capture.terminals;
        self.registry.reload(config);
        self.files.push(FileEvent::RulesChanged);
    }

    /// Begins a round: what goes on from here has its guard.
    pub fn begin_round(&mut self, hold: Option<Hold>) {
        self.streams.begin_round(hold.clone());
        self.hold = hold;
    }

    /// Takes one event.
    pub fn take(&mut self, event: Event<'_>) {
        if self.own.is_some() && event.writer() == self.own {
            return;
        }
        match event {
            Event::Stdio(event, bytes) => self.stdio(&event, bytes),
            Event::FileData(event, bytes) => self.file_data(&event, bytes),
            Event::FileSeen(seen, path) => self.file_seen(&seen, path),
            Event::ContainerStarted(event) => self.started(&event),
            Event::CgroupMade(header, path) => self.registry.made(header.cgroup, path),
            Event::CgroupEmpty(header) => self.empty(&header),
            Event::CgroupRemoved(header) => self.removed(header.cgroup),
            Event::Refused(refusal, request) => {
                let time = self.clock.unix_nano(refusal.header.time);
                self.refusals.take(&refusal, request, time, self.hold.as_ref());
            }
        }
    }

    fn stdio(&mut self, event: &LogEvent, bytes: &[u8]) {
        let id = StreamId::of(event);
        if !self.streams.contains(&id) {
            let container = self.registry.container(event.header.cgroup);
            self.streams.open(id, &container, event.header.cgroup, event.iostream, &self.kernel);
        }
        let written = Written {
            position: event.position,
            time_unix_nano: self.clock.unix_nano(event.header.time),
            bytes,
            unwanted: event.header.flags & FLAG_TERMINAL != 0 && !self.terminals,
        };
        if self.streams.take(id, written) == Taken::Overdue
            && let Some(container) = self.streams.container(&id)
        {
            let now = Instant::now();
            self.registry.go_on(&container, now);
            self.streams.settle(&id, now, &self.kernel);
        }
    }

    fn file_data(&mut self, event: &LogEvent, bytes: &[u8]) {
        if self.files.has_room_for(bytes.len()) {
            let container = self.registry.container(event.header.cgroup);
            self.files.data(event, bytes, self.clock.unix_nano(event.header.time), container);
        }
    }

    fn file_seen(&mut self, seen: &FileSeen, path: Option<Arc<str>>) {
        if self.files.has_room_to_announce(InodeKey { ino: seen.ino, dev: seen.dev, _pad: 0 }) {
            let container = self.registry.container(seen.header.cgroup);
            self.files.seen(seen, path, container);
        }
    }

    fn started(&mut self, event: &ContainerEvent) {
        let cgroup = event.header.cgroup;
        let container = self.registry.started(cgroup, event.header.tgid);
        container.set_ended(false);
        for (key, iostream) in event.stdio.into_iter().zip([STDOUT, STDERR]) {
            let again = iostream == STDERR && key == event.stdio[0];
            // A stream of which the kernel knows nothing any more is entered with its first record.
            let known = self.kernel.stdio(&key).filter(|stdio| stdio.cgroup == cgroup && key.ino != 0 && !again);
            if let Some(stdio) = known {
                self.streams.open(StreamId::new(&key, stdio.registered), &container, cgroup, iostream, &self.kernel);
            }
        }
    }

    /// The last process of a cgroup has ended: of a container's own, all that its streams will ever hold is here.
    fn empty(&mut self, header: &Header) {
        let Some(container) = self.registry.own(header.cgroup) else { return };
        container.set_ended(true);
        self.end(container, false);
    }

    /// Brings the streams of a container to their ends, as soon as its records wait for nothing.
    fn end(&mut self, container: Arc<Container>, gone: bool) {
        self.registry.settle_now(&container, Instant::now());
        if container.awaits() {
            *self.postponed.entry(container.cgroup).or_default() |= gone;
            return;
        }
        self.finish_streams(&container, gone);
        let cgroup = container.cgroup;
        self.files.push(FileEvent::Ended { container });
        if gone {
            self.leaving.insert(cgroup);
            self.leave(Instant::now());
        }
    }

    /// Brings those to their ends whose records wait no longer.
    fn end_postponed(&mut self) {
        let registry = &self.registry;
        let awaits = |cgroup: &u64| registry.own(*cgroup).is_some_and(|container| container.awaits());
        let due: Vec<_> = self.postponed.extract_if(|cgroup, _| !awaits(cgroup)).collect();
        for (cgroup, gone) in due {
            if let Some(container) = self.registry.own(cgroup).filter(|container| gone || container.has_ended()) {
                self.end(container, gone);
            }
        }
    }

    fn removed(&mut self, cgroup: u64) {
        if let Some(container) = self.registry.own(cgroup)
            && !self.leaving.contains(&cgroup)
        {
            container.set_ended(true);
            self.end(container, true);
        } else if !self.leaving.contains(&cgroup) {
            self.registry.removed(cgroup, Instant::now());
            self.kernel.remove_container(cgroup);
        }
    }

    /// Forgets containers that are gone. While bytes of one are looked for its name must not be forgotten: an agent that goes
    /// on in the place of this one would not know it.
    fn leave(&mut self, now: Instant) {
        let left: Vec<_> = self.leaving.extract_if(|cgroup| !self.streams.has_container(*cgroup)).collect();
        for cgroup in left {
            self.registry.removed(cgroup, now);
            self.kernel.remove_container(cgroup);
        }
    }

    fn finish_streams(&mut self, container: &Arc<Container>, gone: bool) {
        // Processes may have entered it since, and what they wrote is in the ring.
        let certain = gone || !self.catching_up;
        self.streams.finish(container.cgroup, gone, certain, &self.kernel);
    }

    /// Enters the containers that run already.
    fn scan(&mut self) {
        self.enter_containers();
        self.enter_streams();
    }

    fn enter_containers(&mut self) {
        for (cgroup, pids) in self.registry.scan() {
            let container = self.registry.started(cgroup, pids[0]);
            self.resuming.push((container, pids));
        }
    }

    fn enter_streams(&mut self) {
        for (key, stdio) in self.kernel.all_stdio() {
            if self.registry.owner(stdio.cgroup).is_some() && self.own != Some(stdio.cgroup) {
                // Nothing may have come of it yet that had its identity looked for.
                let container = self.registry.container(stdio.cgroup);
                let id = StreamId::new(&key, stdio.registered);
                self.streams.open(id, &container, stdio.cgroup, stdio.iostream, &self.kernel);
            }
        }
    }

    /// Enters the containers that run already, and what the agent before has left.
    pub fn start(&mut self, left: State) {
        self.enter_containers();
        if self.kernel.takes_over() {
            // The agent before may have heard of files and not come to tell anybody.
            self.files.set_incomplete();
        }
        let left = if self.kernel.takes_over() { left } else { self.give_up(left) };
        // Before all streams that the kernel knows, since these begin where they are left.
        self.restore(left);
        self.enter_streams();
    }

    /// The programs and their maps are new: what the agent before has not finished will never be.
    fn give_up(&mut self, left: State) -> State {
        let bytes: u64 = left.streams.values().map(Saved::bytes).sum();
        if bytes > 0 {
            tracing::warn!(
                bytes,
                "the agent before has left unfinished lines, and its kernel programs are gone: they are lost"
            );
            self.registry.lose_of_node(Reason::Shutdown, bytes);
        }
        self.streams.forget(left.streams.into_keys().collect());
        State::default()
    }

    /// Enters what the agent before has left, after what runs now: containers that have ended since are named by it.
    fn restore(&mut self, state: State) {
        let gone = self.registry.restore(state.containers);
        for (id, saved) in state.streams {
            let Standing { container, cgroup, .. } = saved.standing;
            let is_known = self.registry.owner(container).is_some();
            let container = self.registry.container(if is_known { container } else { cgroup });
            let kernel = self.kernel.of_stream(&id);
            match kernel.as_ref().and_then(|kernel| saved.contradiction(kernel)) {
                None => self.streams.restore(id, &container, saved),
                Some(what) => {
                    let bytes = saved.bytes();
                    let what = format!(
                        "{what}; the stream begins with the first record that the ring has, and {bytes} bytes of \
                         unfinished lines are dropped"
                    );
                    Reported::JournalImplausible { stream: &id, what: &what }.report();
                    self.registry.lose_of_node(Reason::Damaged, bytes);
                    self.streams.open_anywhere(id, &container, &saved.standing, kernel.as_ref());
                }
            }
        }
        // Their end is in the ring, or will not be told.
        self.vanished.extend(gone);
    }

    /// The end of a round of draining: lines that are ready go out.
    pub fn end_round(&mut self, now: Instant, reached: Reached) {
        self.clock = Clock::now();
        self.catching_up &= !reached.caught_up;
        self.streams.end_round(now, &self.kernel);
        self.refusals.end_round(now, reached.is_crowded);
        if !self.leaving.is_empty() {
            self.leave(now);
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick(now, reached.taken.saturating_sub(UNDER_WAY_NANOS));
        }
        self.files.send(self.hold.as_ref());
    }

    /// What the journal has to know of the rounds since it was asked last, when these are safe.
    pub fn effects(&mut self) -> Effects {
        let mut effects = self.streams.effects();
        let (facts, forgotten) = self.registry.changes();
        effects.facts = facts;
        effects.changes.extend(forgotten);
        effects
    }

    /// The kernel may forget these streams.
    pub fn forget(&mut self, ended: &[StreamId]) {
        for id in ended {
            if self.kernel.of_stream(id).is_some_and(|stdio| self.registry.owner(stdio.cgroup).is_none()) {
                self.kernel.remove_stdio(&id.key());
            }
        }
    }

    /// Whether something waits that time alone brings on, so that the next round must not be far.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.streams.is_waiting() || self.files.is_waiting()
    }

    fn tick(&mut self, now: Instant, taken: u64) {
        let reconcile = now >= self.next_reconcile;
        if reconcile {
            self.next_reconcile = now + RECONCILE;
            self.refresh_roots();
            if !self.catching_up {
                self.find_lost();
            }
        }
        if self.registry.tick(now) {
            self.files.push(FileEvent::RulesChanged);
        }
        self.end_postponed();
        // By rules that hold: what is declared decides which files are logs.
        let goes_on =
            |container: &Container| container.settled().is_some_and(|known| !known.awaits || container.has_ended());
        let (settled, waiting) =
            std::mem::take(&mut self.resuming).into_iter().partition(|(container, _)| goes_on(container));
        self.resuming = waiting;
        for (container, pids) in Vec::into_iter(settled) {
            self.files.push(FileEvent::Resume { container, pids });
        }
        let readings = self.streams.tick(now, clock::unix_nano(), taken, reconcile, &self.kernel);
        self.readings.set_streams(readings);
        self.readings.set_identities(self.registry.statistics());
    }

    /// Hands events to the file thread if its queue has room.
    pub fn send_files(&mut self) {
        self.files.send(self.hold.as_ref());
    }

    /// Counts bytes of records that an agent of another build has left, and that this one can't read, on the node's
    /// account: nothing tells whose they are.
    pub fn lose_unreadable(&mut self, bytes: u64) {
        self.registry.lose_of_node(Reason::Layout, bytes);
    }

    /// The end: unfinished lines come out, or are left to the next agent. [`Engine::send_files`] brings the file thread
    /// what is left for it.
    pub fn finish(&mut self, leave: bool) {
        let now = Instant::now();
        if leave {
            // What they wait for the next agent may be told.
            self.registry.settle_all(now);
        } else {
            self.registry.all_go_on(now);
        }
        self.streams.stop(leave, &self.kernel);
        self.refusals.finish(leave);
        self.send_files();
    }
}
