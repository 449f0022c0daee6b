//! The thread that owns all log files.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sidestep_abi::{
    log::{FLAG_APPEND, FLAG_POSITIONED},
    stdio::InodeKey,
};

use super::{
    Progress, Readings,
    checkpoint::{Checkpoint, Entry},
    event::{FileEvent, FileEvents},
    find,
    handle::{Command, Ended, Handle, Leftover, Settings},
    judge::{Announced, Candidate, Candidates, Verdict},
    log_file::{About, LogFile, Standing},
    open::{self, Whereabouts, birth},
    position::Record,
    server,
};
use crate::{
    config::StartAt,
    load::{cgroups, running::inode_key},
    pipeline::container::{Container, Settled},
    policy::Verdicts,
    record::{Batch, Class},
};

/// Takes batches of all streams. May wait: that holds up the files, and what the ring brings meanwhile is read later.
pub type Deliver = Box<dyn Fn(Arc<Batch>) + Send>;

/// How often everything is looked after.
const TICK: Duration = Duration::from_millis(100);
/// How soon a file without records is looked at, at first and at last.
const LOOK_NANOS: std::ops::Range<u64> = 500_000_000..5_000_000_000;
/// A file that has not grown for so long, and that no name leads to, is done with.
const RETIRE_NANOS: u64 = 60_000_000_000;
/// How often the node's own files are searched for.
const SCAN_NANOS: u64 = 10_000_000_000;
/// How often positions are written and readings are made.
const SAVE_NANOS: u64 = 1_000_000_000;
/// Pause between such for files that are new.
const SAVE_NEW_NANOS: u64 = 100_000_000;
/// Bytes read from one file before the others have their turn.
const TURN_BYTES: usize = 1024 * 1024;
/// Files that are read between two rounds of events.
const TURNS: usize = 8;
/// File systems take the time of birth from a clock that moves with the timer's tick: 10 ms at most.
const BIRTH_GRAIN_NANOS: u64 = 10_000_000;
/// Files that are remembered after they were closed.
const MAX_REMEMBERED: usize = 8192;

/// A file of one class.
type Id = (Class, InodeKey);

/// A position that is about to move.
pub(super) struct Pending {
    entry: Entry,
    stream: Option<Arc<str>>,
    /// Another file has the inode number, and what was held may have been that one: nobody goes on here.
    replaced: bool,
}

impl Pending {
    /// The entry with what is acknowledged now. A stream that nobody knows has nothing on its way.
    pub(super) fn entry(&self, progress: &Progress) -> Entry {
        let acknowledged = self.stream.as_ref().and_then(|key| progress.acknowledged(key));
        Entry { position: acknowledged.unwrap_or(self.entry.position), ..self.entry.clone() }
    }
}

/// An open log and when it is looked at.
struct Open {
    log: LogFile,
    /// Containers that have written it; the first one's stream it is.
    users: Vec<Arc<Container>>,
    /// Its last announcement under another name, until the place of the next record tells what it means.
    announced: Option<Announced>,
    next_look: u64,
    look_interval: u64,
    grown: u64,
    queued: bool,
    /// Read to its end, then closed.
    ending: bool,
}

/// All log files of the node.
pub struct Tailer {
    settings: Settings,
    verdicts: Box<dyn Verdicts>,
    deliver: Deliver,
    progress: Arc<Progress>,
    readings: Arc<Readings>,
    files: HashMap<Id, Open>,
    candidates: Candidates,
    /// Where files stood that were closed, or that the checkpoint knows; with the time of the entry.
    remembered: HashMap<Id, (u64, Pending)>,
    /// Files with something to read or to hand on.
    queue: VecDeque<Id>,
    checkpoint: Checkpoint,
    started: u64,
    next_scan: u64,
    scanned: bool,
    next_save: u64,
    /// A file was entered that the checkpoint does not know: it has to, before the first line of it goes out, or an
    /// agent that is killed would leave the next one without a place to go on.
    unsaved: bool,
    last_save: u64,
    last_tick: u64,
}

impl Tailer {
    /// Starts the thread: it takes events from `events`, judges files by `verdicts` and gives batches to `deliver`.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn spawn(
        settings: Settings,
        events: Receiver<FileEvents>,
        verdicts: Box<dyn Verdicts>,
        deliver: Deliver,
    ) -> std::io::Result<Handle> {
        Handle::spawn(settings, events, verdicts, deliver)
    }

    pub(super) fn new(
        settings: Settings,
        verdicts: Box<dyn Verdicts>,
        deliver: Deliver,
        progress: &Arc<Progress>,
        readings: &Arc<Readings>,
    ) -> Self {
        let (checkpoint, entries) = Checkpoint::open(&settings.state_dir);
        let started = now_unix_nano();
        let remembered = entries
            .into_iter()
            .map(|entry| ((entry.class, entry.key()), (started, Pending { entry, stream: None, replaced: false })))
            .collect();
        Self {
            settings,
            verdicts,
            deliver,
            progress: Arc::clone(progress),
            readings: Arc::clone(readings),
            files: HashMap::new(),
            candidates: Candidates::default(),
            remembered,
            queue: VecDeque::new(),
            checkpoint,
            started,
            next_scan: 0,
            scanned: false,
            next_save: 0,
            unsaved: false,
            last_save: 0,
            last_tick: started,
        }
    }

    pub(super) fn run(mut self, events: &Receiver<FileEvents>, commands: &Receiver<Command>) -> Ended {
        let mut next_tick = Instant::now();
        let mut connected = true;
        loop {
            let wait = if self.queue.is_empty() {
                next_tick.saturating_duration_since(Instant::now())
            } else {
                Duration::ZERO
            };
            if connected {
                match events.recv_timeout(wait) {
                    Ok(round) => self.round(&round),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => connected = false,
                }
            } else if !wait.is_zero() {
                std::thread::sleep(wait);
            }
            loop {
                match commands.try_recv() {
                    Ok(Command::Reload { server, lines }) => self.reload(*server, lines),
                    Ok(Command::Stop { deadline }) => return self.stop(events, deadline),
                    Err(TryRecvError::Empty) => break,
                    // Nobody waits for what is left.
                    Err(TryRecvError::Disconnected) => return self.end(),
                }
            }
            self.turns(TURNS);
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
        }
    }

    /// Takes the events of one round, then reads what they leave to be read.
    fn round(&mut self, round: &FileEvents) {
        let now = now_unix_nano();
        for event in &round.events {
            match event {
                FileEvent::Seen { key, announced, path, tgid, fd, position, container } => {
                    let whereabouts = Whereabouts { tgid: *tgid, fd: *fd, path: path.clone() };
                    let announced = Announced { announced: *announced, whereabouts, position: *position };
                    if let Some(open) = self.files.get_mut(&(Class::Business, *key)) {
                        // Renamed, or its verdict had fallen out of the kernel's map, or another file has its inode
                        // number now: the place of the next record tells.
                        open.announced = Some(announced);
                        continue;
                    }
                    self.candidates.announce(*key, announced, container, now);
                }
                FileEvent::Data { key, position, bytes, time_unix_nano, tid, description, flags, container } => {
                    let record = Record {
                        position: *position,
                        len: bytes.len() as u64,
                        append: flags & FLAG_APPEND != 0,
                        positioned: flags & FLAG_POSITIONED != 0,
                        tid: *tid,
                        description: *description,
                    };
                    let bytes = round.bytes.get(bytes.clone()).unwrap_or_default();
                    self.data(key, &record, bytes, *time_unix_nano, container, now);
                }
                FileEvent::Resume { container, pids } => self.resume(container, pids),
                FileEvent::RulesChanged => self.rules_changed(now),
                FileEvent::Ended { container } => self.ended(container),
            }
        }
        self.judge(now);
        let touched = self.queue.len();
        self.turns(touched);
    }

    /// What was no log may be one now, and the other way round: such a file ends with what it holds.
    fn rules_changed(&mut self, now: u64) {
        self.verdicts.forget_ignored();
        for (id, open) in self.files.iter_mut().filter(|(id, _)| id.0 == Class::Business) {
            let path = &open.log.about.path;
            let is_log = |user: &Arc<Container>| {
                user.settled().is_none_or(|settled| settled.files.as_ref().is_some_and(|files| files.matches(path)))
            };
            if !open.users.iter().any(is_log) {
                open.log.look_finally(now);
                open.ending = true;
                enqueue(&mut self.queue, *id, open);
            }
        }
    }

    /// Ends a file whose inode number another file has now.
    fn replace(&mut self, id: &Id, announced: Announced, container: &Arc<Container>, now: u64) {
        if let Some(open) = self.files.get_mut(id) {
            open.log.finish();
            let (progress, deliver) = (&self.progress, &self.deliver);
            open.log.take_batches(|batch| {
                progress.delivering(&batch);
                deliver(batch);
            });
        }
        self.close(id, now);
        if let Some((_, pending)) = self.remembered.get_mut(id) {
            pending.replaced = true;
        }
        self.candidates.announce(id.1, announced, container, now);
    }

    fn data(
        &mut self,
        key: &InodeKey,
        record: &Record,
        bytes: &[u8],
        time_unix_nano: u64,
        container: &Arc<Container>,
        now: u64,
    ) {
        let id = (Class::Business, *key);
        if let Some(open) = self.files.get_mut(&id)
            && let Some(announced) = open.announced.take()
        {
            let other_name = announced.whereabouts.path.as_deref().is_some_and(|path| *path != *open.log.about.path);
            if other_name && record.position == 0 {
                self.replace(&id, announced, container, now);
            } else {
                self.verdicts.set(key, announced.announced, true);
            }
        }
        let Some(open) = self.files.get_mut(&id) else {
            self.candidates.keep(*key, *record, bytes, time_unix_nano, container, now);
            return;
        };
        if open.log.file().is_none() {
            reopen(&self.settings, open);
        }
        open.log.record(record, bytes, time_unix_nano);
        open.grown = now;
        open.look_interval = LOOK_NANOS.start;
        open.next_look = now + LOOK_NANOS.start;
        if open.users.iter().all(|user| user.cgroup != container.cgroup) {
            open.users.push(Arc::clone(container));
        }
        enqueue(&mut self.queue, id, open);
    }

    /// Judges the files whose container is known by now.
    fn judge(&mut self, now: u64) {
        if self.candidates.is_empty() {
            return;
        }
        for (key, candidate, verdict) in self.candidates.judge(now) {
            let announced = candidate.announced.as_ref().map_or(0, |announced| announced.announced);
            match verdict {
                // The verdict is on what has the inode number now.
                Verdict::Log(path) if candidate.gone => self.admit_gone(key, &candidate, path),
                _ if candidate.gone => {}
                Verdict::Log(path) => {
                    self.verdicts.set(&key, announced, true);
                    self.admit(key, candidate, path, now);
                }
                Verdict::NoLog => self.verdicts.set(&key, announced, false),
                Verdict::Unknown => self.verdicts.forget(&key),
            }
        }
    }

    /// Makes a stream of a file that is a log.
    fn admit(&mut self, key: InodeKey, mut candidate: Candidate, path: Arc<str>, now: u64) {
        let Some(settled) = candidate.container.settled() else { return };
        let announced = candidate.announced.take();
        let position = announced.as_ref().map(|announced| announced.position);
        let whereabouts = announced.map(|announced| announced.whereabouts).unwrap_or_default();
        let whereabouts = Whereabouts { path: Some(Arc::clone(&path)), ..whereabouts };
        let id = (Class::Business, key);
        if let Some(open) = self.files.get_mut(&id) {
            // It was found by the checkpoint meanwhile.
            for kept in candidate.kept.iter().filter(|kept| kept.bytes.len() as u64 == kept.record.len) {
                open.log.record(&kept.record, &kept.bytes, kept.time_unix_nano);
            }
            open.announced = candidate.renamed.take();
            enqueue(&mut self.queue, id, open);
            return;
        }
        let file = candidate.file.take().or_else(|| open_of(&self.settings, &key, &whereabouts, &settled));
        let start_at = settled.files.as_ref().map(|files| files.start_at);
        let first = candidate.kept.first().map(|kept| kept.record.position).into_iter().chain(position).min();
        let (position, incarnation) = match &file {
            Some(file) => self.start_of(&id, file, start_at, first.unwrap_or(0), now),
            // Without the file its time of birth is unknown too: the time of the first record stands for it.
            None => (first.unwrap_or(0), candidate.kept.first().map_or(now, |kept| kept.time_unix_nano)),
        };
        let about = about(Class::Business, key, path, &settled);
        let mut log = LogFile::new(about, file, position, incarnation, &self.readings);
        log.whereabouts = whereabouts;
        for kept in &candidate.kept {
            // Where only the place was kept, the file has to tell.
            let short = kept.bytes.len() as u64 != kept.record.len;
            if short && log.file().is_some() {
                log.look(now);
            } else {
                log.record(&kept.record, &kept.bytes, kept.time_unix_nano);
            }
        }
        log.look(now);
        let ended = candidate.ended;
        let open = self.enter(id, log, vec![candidate.container], now, ended);
        open.announced = candidate.renamed;
    }

    /// Gives out what was kept of a log that is gone already: nothing else of it will ever be there.
    fn admit_gone(&mut self, key: InodeKey, candidate: &Candidate, path: Arc<str>) {
        let (Some(settled), Some(first)) = (candidate.container.settled(), candidate.kept.first()) else { return };
        let about = about(Class::Business, key, path, &settled);
        // The time tells it from others that had the same inode number.
        let mut log = LogFile::new(about, None, first.record.position, first.time_unix_nano, &self.readings);
        for kept in &candidate.kept {
            log.record(&kept.record, &kept.bytes, kept.time_unix_nano);
        }
        log.finish();
        let deliver = &self.deliver;
        log.take_batches(deliver);
    }

    /// Where to begin in a file that is seen for the first time by this agent, and in which incarnation.
    fn start_of(&self, id: &Id, file: &std::fs::File, start_at: Option<StartAt>, first: u64, now: u64) -> (u64, u64) {
        let known = self.remembered.get(id).map(|(_, pending)| pending);
        if known.is_some_and(|pending| pending.replaced) {
            // The time tells them apart: files that were made within a tick of the clock have the same time of birth.
            return (first, now);
        }
        if let Some(pending) = known
            && pending.entry.birth == birth(file)
        {
            let standing = pending.entry.standing();
            // Known, but truncated meanwhile: it begins anew.
            return if standing.holds_for(file) { (standing.position, standing.incarnation) } else { (0, now) };
        }
        let born = birth(file);
        let is_new = born.saturating_add(BIRTH_GRAIN_NANOS) >= self.started || born == 0 && first == 0;
        if is_new || start_at == Some(StartAt::Beginning) { (0, 0) } else { (first, 0) }
    }

    fn enter(&mut self, id: Id, log: LogFile, users: Vec<Arc<Container>>, now: u64, ending: bool) -> &mut Open {
        self.progress.open(&log.stream().key, log.unfinished_position());
        self.remembered.remove(&id);
        self.unsaved = true;
        let look_interval = match id.0 {
            Class::Server => self.settings.server.poll_interval.as_nanos().try_into().unwrap_or(u64::MAX),
            Class::Pod | Class::Business => LOOK_NANOS.start,
        };
        let next_look = now + look_interval;
        let open = Open { log, users, announced: None, next_look, look_interval, grown: now, queued: false, ending };
        let open = self.files.entry(id).insert_entry(open).into_mut();
        enqueue(&mut self.queue, id, open);
        open
    }

    fn ended(&mut self, container: &Arc<Container>) {
        self.candidates.end(container);
        let now = now_unix_nano();
        for (id, open) in &mut self.files {
            let Some(index) = open.users.iter().position(|user| user.cgroup == container.cgroup) else { continue };
            if open.users.len() > 1 {
                open.users.swap_remove(index);
                continue;
            }
            if open.log.file().is_none() {
                reopen(&self.settings, open);
            }
            open.log.look_finally(now);
            open.ending = true;
            enqueue(&mut self.queue, *id, open);
        }
    }

    /// Gives at most `turns` files of the queue their turn.
    fn turns(&mut self, turns: usize) {
        let now = now_unix_nano();
        if self.unsaved && now >= self.last_save + SAVE_NEW_NANOS {
            self.save();
        }
        for _ in 0..turns.min(self.queue.len()) {
            let Some(id) = self.queue.pop_front() else { break };
            let Some(open) = self.files.get_mut(&id) else { continue };
            open.queued = false;
            if open.log.read(TURN_BYTES, now) > 0 {
                open.grown = now;
            }
            let behind = open.log.is_behind() && open.log.file().is_some();
            if open.ending && !behind {
                open.log.finish();
            }
            let (progress, deliver) = (&self.progress, &self.deliver);
            open.log.take_batches(|batch| {
                progress.delivering(&batch);
                deliver(batch);
            });
            open.log.take_ended_streams().for_each(|key| progress.close(&key));
            if behind {
                enqueue(&mut self.queue, id, open);
            } else if open.ending {
                self.close(&id, now);
            }
        }
    }

    fn close(&mut self, id: &Id, now: u64) {
        let Some(open) = self.files.remove(id) else { return };
        if id.0 == Class::Business {
            self.verdicts.forget(&id.1);
        }
        let pending = pending(&open);
        if let Some(key) = &pending.stream {
            self.progress.close(key);
        }
        self.remembered.insert(*id, (now, pending));
        if self.remembered.len() > MAX_REMEMBERED {
            let mut times: Vec<_> = self.remembered.values().map(|(time, _)| *time).collect();
            times.sort_unstable();
            let middle = times[times.len() / 2];
            self.remembered.retain(|_, (time, _)| *time > middle);
        }
    }

    /// All times here are by the clock of the day, as they meet those of files; waits must not last until a clock that
    /// was set back is where it was.
    fn forget_times(&mut self, now: u64) {
        (self.next_scan, self.next_save, self.last_save) = (0, 0, 0);
        self.candidates.forget_times(now);
        for open in self.files.values_mut() {
            open.log.forget_times();
            (open.next_look, open.grown) = (0, now);
        }
    }

    fn tick(&mut self) {
        let now = now_unix_nano();
        if now < self.last_tick {
            self.forget_times(now);
        }
        self.last_tick = now;
        self.judge(now);
        if now >= self.next_scan {
            self.next_scan = now + SCAN_NANOS;
            self.scan(now);
        }
        let mut opened = 0;
        for (id, open) in &mut self.files {
            open.log.idle(now);
            if now >= open.next_look {
                // No record has come that would tell; as long as the file is held, nothing else has its inode number.
                if let Some(announced) = open.announced.take_if(|_| open.log.file().is_some()) {
                    self.verdicts.set(&id.1, announced.announced, true);
                }
                look(&self.settings, id, open, now);
            }
            opened += usize::from(open.log.file().is_some());
            enqueue(&mut self.queue, *id, open);
        }
        let all = self.queue.len();
        if opened > self.settings.max_open {
            self.close_least_recent(opened - self.settings.max_open);
        }
        // Those that are behind come again at their turn; the others have nothing but finished lines to hand on.
        self.turns(all);
        if now >= self.next_save {
            self.next_save = now + SAVE_NANOS;
            self.save();
        }
    }

    fn close_least_recent(&mut self, count: usize) {
        let mut idle: Vec<_> = self
            .files
            .values_mut()
            .filter(|open| open.log.file().is_some() && !open.log.is_behind() && !open.log.is_deleted())
            .collect();
        idle.sort_by_key(|open| open.grown);
        idle.into_iter().take(count).for_each(|open| open.log.close());
    }

    fn save(&mut self) {
        self.unsaved = false;
        self.last_save = now_unix_nano();
        let mut entries: Vec<_> = self.files.values().map(|open| pending(open).entry(&self.progress)).collect();
        let known = self.remembered.values().map(|(_, pending)| pending).filter(|pending| !pending.replaced);
        entries.extend(known.map(|pending| pending.entry(&self.progress)));
        self.checkpoint.write(entries);
        self.readings.set_streams(self.files.values().map(|open| open.log.reading()).collect());
    }

    /// Looks for the node's own files.
    fn scan(&mut self, now: u64) {
        let root = self.settings.host_root.clone();
        for path in server::find(&self.settings.server.files, &root) {
            let Ok(file) = open::open_below(&root, &path) else { continue };
            self.enter_server(path.into(), file, now);
        }
        if !self.scanned {
            self.scanned = true;
            self.find_renamed(&root, now);
        }
    }

    fn enter_server(&mut self, path: Arc<str>, file: std::fs::File, now: u64) {
        let Ok(metadata) = file.metadata() else { return };
        let id = (Class::Server, inode_key(&metadata));
        if self.files.contains_key(&id) {
            return;
        }
        // What appears later is new, where the file system does not know when it was made.
        let first = if self.scanned && birth(&file) == 0 { 0 } else { metadata.len() };
        let (position, incarnation) = self.start_of(&id, &file, Some(self.settings.server.files.start_at), first, now);
        let about = About {
            key: id.1,
            class: Class::Server,
            path,
            resource: Arc::clone(&self.settings.node),
            account: Arc::clone(&self.settings.node_account),
            lines: Arc::clone(self.settings.server_lines.compiled()),
        };
        let mut log = LogFile::new(about, Some(file), position, incarnation, &self.readings);
        log.look(now);
        self.enter(id, log, Vec::new(), now, false);
    }

    /// Goes on in files of the node that were renamed while no agent ran.
    fn find_renamed(&mut self, root: &Path, now: u64) {
        let missing: Vec<_> = self
            .remembered
            .iter()
            .filter(|(id, _)| id.0 == Class::Server && !self.files.contains_key(id))
            .map(|(id, (_, pending))| (*id, pending.entry.path.clone()))
            .collect();
        for (id, path) in missing {
            if self.settings.server.files.matches(&path)
                && let Some(file) = find::again(root, &path, &id.1, None)
            {
                self.enter_server(path.into(), file, now);
            }
        }
    }

    fn resume(&mut self, container: &Arc<Container>, pids: &[u32]) {
        let Some(settled) = container.settled() else { return };
        let Some(files) = &settled.files else { return };
        let now = now_unix_nano();
        let owner = owner(&settled);
        let known: Vec<_> = self
            .remembered
            .iter()
            .filter(|(id, (_, pending))| id.0 == Class::Business && pending.entry.owner == owner)
            .map(|(id, (_, pending))| (*id, pending.entry.path.clone(), pending.entry.standing()))
            .collect();
        for (id, path, standing) in known {
            if self.files.contains_key(&id) || !files.matches(&path) {
                continue;
            }
            let found = pids.iter().take(8).find_map(|pid| {
                let root = PathBuf::from(format!("/proc/{pid}/root"));
                find::again(&root, &path, &id.1, Some(*pid)).map(|file| (*pid, file))
            });
            let Some((pid, file)) = found.filter(|(_, file)| birth(file) == standing.birth) else { continue };
            let (position, incarnation) = self.start_of(&id, &file, None, standing.position, now);
            let path: Arc<str> = path.into();
            let about = about(Class::Business, id.1, Arc::clone(&path), &settled);
            let mut log = LogFile::new(about, Some(file), position, incarnation, &self.readings);
            log.whereabouts = Whereabouts { tgid: pid, fd: -1, path: Some(path) };
            log.look(now);
            self.enter(id, log, vec![Arc::clone(container)], now, false);
        }
    }

    fn reload(&mut self, server: crate::config::Server, lines: crate::config::Lines) {
        let now = now_unix_nano();
        for (id, open) in self.files.iter_mut().filter(|(id, _)| id.0 == Class::Server) {
            // Lines that are cut in another way begin after the ones that are under way.
            let other = !server.files.matches(&open.log.about.path) || lines != self.settings.server_lines;
            if other {
                open.log.look(now);
                open.ending = true;
                enqueue(&mut self.queue, *id, open);
            }
        }
        self.settings.server = server;
        self.settings.server_lines = lines;
        self.next_scan = 0;
    }

    fn stop(mut self, events: &Receiver<FileEvents>, deadline: Instant) -> Ended {
        while Instant::now() < deadline
            && let Ok(round) = events.try_recv()
        {
            self.round(&round);
        }
        let now = now_unix_nano();
        self.judge(now);
        for (id, open) in &mut self.files {
            if open.log.file().is_none() {
                reopen(&self.settings, open);
            }
            open.log.look_finally(now);
            open.log.idle(now);
            // Nobody finds it again.
            open.ending |= open.log.file().is_none() || open.log.is_deleted();
            enqueue(&mut self.queue, *id, open);
        }
        while Instant::now() < deadline && !self.queue.is_empty() {
            self.turns(TURNS);
        }
        self.end()
    }

    fn end(mut self) -> Ended {
        let mut leftover = Leftover::default();
        for open in self.files.values_mut() {
            let (progress, deliver) = (&self.progress, &self.deliver);
            open.log.take_batches(|batch| {
                progress.delivering(&batch);
                deliver(batch);
            });
            leftover.unfinished += open.log.pending();
            leftover.unread += open.log.reading().pending - open.log.pending();
        }
        let mut positions: Vec<_> = self.files.values().map(pending).collect();
        positions.extend(self.remembered.into_values().map(|(_, pending)| pending).filter(|pending| !pending.replaced));
        self.checkpoint.write(positions.iter().map(|pending| pending.entry(&self.progress)).collect());
        Ended { leftover, checkpoint: self.checkpoint, positions }
    }
}

fn enqueue(queue: &mut VecDeque<Id>, id: Id, open: &mut Open) {
    if !open.queued {
        open.queued = true;
        queue.push_back(id);
    }
}

/// Looks at a file's size, and whether it is still of use.
fn look(settings: &Settings, id: &Id, open: &mut Open, now: u64) {
    let behind = open.log.is_behind();
    if open.log.file().is_none() {
        // It was closed because others are more lively: looked at seldom.
        reopen(settings, open);
    }
    open.log.look(now);
    if open.log.is_behind() && !behind {
        open.grown = now;
        open.look_interval = LOOK_NANOS.start;
    } else if id.0 == Class::Business {
        open.look_interval = (open.look_interval * 2).min(LOOK_NANOS.end);
    }
    if id.0 == Class::Server {
        open.look_interval = settings.server.poll_interval.as_nanos().try_into().unwrap_or(u64::MAX);
    }
    open.next_look = now.saturating_add(open.look_interval);
    let idle = now.saturating_sub(open.grown);
    if idle > RETIRE_NANOS && !open.log.is_behind() {
        if open.log.is_deleted() || is_renamed(settings, id, open) {
            open.ending = true;
        } else {
            // Asked again after as long a time.
            open.grown = now;
        }
    }
}

/// Whether the path leads to another file, or to none. A path that can't be followed tells nothing.
fn is_renamed(settings: &Settings, id: &Id, open: &Open) -> bool {
    let path = &open.log.about.path;
    let (root, pid) = match id.0 {
        Class::Server => (settings.host_root.clone(), None),
        Class::Pod | Class::Business => {
            let Some(pid) = open.users.first().and_then(|user| pids(settings, &*user.settled()?).into_iter().next())
            else {
                return false;
            };
            (PathBuf::from(format!("/proc/{pid}/root")), Some(pid))
        }
    };
    match open::open_below(&root, path) {
        Ok(file) => !open::is(&file, &id.1, pid),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Opens a file again that was closed for others. One that is found no more goes on with what the ring brings.
fn reopen(settings: &Settings, open: &mut Open) {
    let about = &open.log.about;
    let file = match open.users.first().and_then(|user| user.settled()) {
        Some(settled) => open_of(settings, &about.key, &open.log.whereabouts, &settled),
        None => find::again(&settings.host_root, &about.path, &about.key, None),
    };
    open.log.reopened(file);
}

fn open_of(settings: &Settings, key: &InodeKey, whereabouts: &Whereabouts, settled: &Settled) -> Option<std::fs::File> {
    let rootfs = settled
        .identity
        .rootfs
        .as_ref()
        .map(|rootfs| settings.host_root.join(rootfs.strip_prefix("/").unwrap_or(rootfs)));
    open::open(key, whereabouts, || pids(settings, settled), rootfs.as_deref())
}

fn pids(settings: &Settings, settled: &Settled) -> Vec<u32> {
    cgroups::processes(&settings.cgroup_mount, &settled.identity.container_cgroup)
}

fn about(class: Class, key: InodeKey, path: Arc<str>, settled: &Settled) -> About {
    About {
        key,
        class,
        path,
        resource: Arc::clone(&settled.identity.resource),
        account: Arc::clone(&settled.account),
        lines: Arc::clone(settled.lines.compiled()),
    }
}

/// What names a container over restarts of the agent.
fn owner(settled: &Settled) -> &str {
    settled.identity.resource.container_id.as_deref().unwrap_or(&settled.identity.container_cgroup)
}

fn pending(open: &Open) -> Pending {
    let about = &open.log.about;
    let Standing { birth, incarnation, position, head_len, head_digest } =
        open.log.standing(open.log.unfinished_position());
    let owner = open.users.first().and_then(|user| user.settled()).map(|settled| owner(&settled).to_owned());
    let owner = owner.unwrap_or_default();
    let entry = Entry {
        ino: about.key.ino,
        dev: about.key.dev,
        class: about.class,
        path: about.path.as_ref().to_owned(),
        owner,
        birth,
        incarnation,
        position,
        head_len,
        head_digest,
    };
    Pending { entry, stream: Some(Arc::clone(&open.log.stream().key)), replaced: false }
}

fn now_unix_nano() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos().try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "tailer_tests.rs"]
mod tests;
