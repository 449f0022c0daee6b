//! The thread that owns all log files.

mod account;
mod admit;
mod events;
mod guards;
mod look;
mod node;
mod positions;
mod resume;
mod unannounced;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use sidestep_abi::stdio::InodeKey;

use self::{
    account::go_on,
    guards::Guards,
    look::{look, reopen},
    positions::pending,
    unannounced::Search,
};
use super::{
    Progress, Readings,
    checkpoint::Checkpoint,
    event::FileEvents,
    handle::{Command, Ended, Handle, Leftover, Settings},
    judge::{Announced, Candidates},
    log_file::LogFile,
};
use crate::{
    clock::unix_nano,
    pipeline::container::Container,
    policy::Verdicts,
    record::{Batch, Class},
    sinks::Hold,
};

pub(super) use self::positions::Pending;

/// Takes batches of all streams, and what keeps their bytes in the ring when the file can't. May wait: that holds up the
/// files, and what the ring brings meanwhile is read later.
pub type Deliver = Box<dyn Fn(Arc<Batch>, Option<&Hold>) + Send>;

/// How often everything is looked after.
const TICK: Duration = Duration::from_millis(100);
/// How soon a file without records is looked at, at first and at last.
const LOOK_NANOS: std::ops::Range<u64> = 500_000_000..5_000_000_000;
/// How often the node's own files are searched for.
const SCAN_NANOS: u64 = 10_000_000_000;
/// Shortest and longest pause before positions are written again and readings are made. An agent that is killed begins
/// where they stood, so they are written often, but for no more than a twentieth of the time.
const SAVE_NANOS: (u64, u64) = (200_000_000, 1_000_000_000);
/// The pause is so many times as long as writing has taken.
const SAVE_SHARE: u64 = 20;
/// Pause between such for files that are new.
const SAVE_NEW_NANOS: u64 = 100_000_000;
/// Bytes read from one file before the others have their turn.
const TURN_BYTES: usize = 1024 * 1024;
/// Files that are read between two rounds of events.
const TURNS: usize = 8;
/// Bytes of finished lines of a file that wait for what the API server tells of its Pod.
const MAX_AWAITING: usize = 4 * 1024 * 1024;

/// A file of one class.
type Id = (Class, InodeKey);

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
    /// The checkpoint has it: before that no line of it goes out, or an agent that is killed would leave the next one
    /// without a place to go on.
    saved: bool,
    /// Read to its end, then closed.
    ending: bool,
}

impl Open {
    /// Takes over what is known of its writer by now; whether its lines wait for more.
    fn awaits(&mut self) -> bool {
        let Some(settled) = self.users.first().and_then(|user| user.settled()) else { return false };
        // The one whose stream it is may have ended, and another one goes on.
        if !Arc::ptr_eq(&settled.account, &self.log.about.account) {
            return false;
        }
        self.log.renew(&settled);
        settled.awaits && self.log.ready_bytes() <= MAX_AWAITING
    }

    /// Whether the next agent finds all of it: the file has a name, and its container runs.
    fn can_be_left(&self) -> bool {
        let runs = self.users.iter().any(|user| !user.has_ended());
        runs && self.log.file().is_some() && !self.log.is_deleted()
    }
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
    guards: Guards,
    /// Where files stood that were closed, or that the checkpoint knows; with the time of the entry.
    remembered: HashMap<Id, (u64, Pending)>,
    /// Logs by their name in its directory, and the search for files of such names that were not announced.
    search: Search,
    /// Files with something to read or to hand on.
    queue: VecDeque<Id>,
    /// Files of `files` with a descriptor, as of the last tick, and those that came since.
    opened: usize,
    checkpoint: Checkpoint,
    /// A file that was made later is new: since then every log that agents have seen is in the checkpoint.
    new_since: u64,
    /// What happened before has been heard of.
    caught_up: u64,
    next_scan: u64,
    scanned: bool,
    next_save: u64,
    /// A file was entered that the checkpoint does not know.
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
        let started = unix_nano();
        let (checkpoint, known) = Checkpoint::open(&settings.state_dir, started);
        let remembered = known
            .files
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
            guards: Guards::default(),
            remembered,
            search: Search::default(),
            queue: VecDeque::new(),
            opened: 0,
            checkpoint,
            // A clock that was set back meanwhile makes no file old that is still to come.
            new_since: known.complete_until.map_or(started, |until| until.min(started)),
            caught_up: started,
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
                    Err(RecvTimeoutError::Timeout) => self.caught_up = unix_nano(),
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
            self.guards.let_go(!self.candidates.is_empty(), Instant::now());
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
        }
    }

    /// Gives at most `turns` files of the queue their turn.
    fn turns(&mut self, turns: usize) {
        let now = unix_nano();
        if self.unsaved && now >= self.last_save + SAVE_NEW_NANOS {
            self.save();
        }
        for _ in 0..turns.min(self.queue.len()) {
            let Some(id) = self.queue.pop_front() else { break };
            let Some(open) = self.files.get_mut(&id) else { continue };
            open.queued = false;
            if !open.saved || open.awaits() {
                // Its turn comes with the next tick.
                continue;
            }
            if open.log.read(TURN_BYTES, now) > 0 {
                open.grown = now;
            }
            let behind = open.log.is_behind() && open.log.file().is_some();
            if open.ending && !behind {
                open.log.finish();
            }
            let (progress, deliver) = (&self.progress, &self.deliver);
            let hold = self.guards.oldest().filter(|_| open.log.is_deleted());
            open.log.take_batches(|batch| {
                progress.delivering(&batch);
                deliver(batch, hold);
            });
            open.log.take_ended_streams().for_each(|key| progress.close(&key));
            if behind {
                enqueue(&mut self.queue, id, open);
            } else if open.ending {
                self.opened = self.opened.saturating_sub(usize::from(open.log.file().is_some()));
                self.close(&id, now);
            } else if self.opened > self.settings.max_open && open.log.file().is_some() && !open.log.is_deleted() {
                open.log.close();
                self.opened -= 1;
            }
        }
    }

    /// All times here are by the clock of the day, as they meet those of files; waits must not last until a clock that
    /// was set back is where it was.
    fn forget_times(&mut self, now: u64) {
        (self.next_scan, self.next_save, self.last_save) = (0, 0, 0);
        self.new_since = self.new_since.min(now);
        self.caught_up = self.caught_up.min(now);
        self.candidates.forget_times(now);
        for open in self.files.values_mut() {
            open.log.forget_times();
            (open.next_look, open.grown) = (0, now);
        }
    }

    fn tick(&mut self) {
        let now = unix_nano();
        if now < self.last_tick {
            self.forget_times(now);
        }
        self.last_tick = now;
        self.judge(now, false);
        self.find_unannounced(now);
        if now >= self.next_scan {
            self.next_scan = now + SCAN_NANOS;
            self.scan(now);
        }
        self.opened = self.files.values().filter(|open| open.log.file().is_some()).count();
        for (id, open) in &mut self.files {
            open.log.idle(now);
            let was_open = open.log.file().is_some();
            if now >= open.next_look && (was_open || self.opened < self.settings.max_open) {
                // No record has come that would tell; as long as the file is held, nothing else has its inode number.
                if let Some(announced) = open.announced.take_if(|_| open.log.file().is_some()) {
                    go_on(&mut *self.verdicts, &id.1, open, announced.announced);
                }
                look(&self.settings, id, open, now);
                if !was_open && !open.log.is_behind() {
                    open.log.close();
                }
                self.opened += usize::from(!was_open && open.log.file().is_some());
            }
            enqueue(&mut self.queue, *id, open);
        }
        let all = self.queue.len();
        if self.opened > self.settings.max_open {
            self.close_least_recent(self.opened - self.settings.max_open);
        }
        // Those that are behind come again at their turn; the others have nothing but finished lines to hand on.
        self.turns(all);
        if now >= self.next_save {
            let begin = Instant::now();
            self.save();
            let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.next_save = now + took.saturating_mul(SAVE_SHARE).clamp(SAVE_NANOS.0, SAVE_NANOS.1);
        }
    }

    fn stop(mut self, events: &Receiver<FileEvents>, deadline: Instant) -> Ended {
        while Instant::now() < deadline
            && let Ok(round) = events.try_recv()
        {
            self.round(&round);
        }
        let now = unix_nano();
        self.judge(now, true);
        self.save();
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
        let complete_until = self.complete_until();
        let mut leftover = Leftover::default();
        for open in self.files.values_mut() {
            if open.awaits() && open.can_be_left() {
                leftover.unread += open.log.ready_bytes() as u64;
            } else {
                let (progress, deliver) = (&self.progress, &self.deliver);
                let hold = self.guards.oldest().filter(|_| open.log.is_deleted());
                open.log.take_batches(|batch| {
                    progress.delivering(&batch);
                    deliver(batch, hold);
                });
            }
            leftover.unfinished += open.log.pending();
            leftover.unread += open.log.reading().pending - open.log.pending();
        }
        let mut positions: Vec<_> = self.files.values().map(pending).collect();
        positions.extend(self.remembered.into_values().map(|(_, pending)| pending).filter(|pending| !pending.replaced));
        let entries = positions.iter().map(|pending| pending.entry(&self.progress)).collect();
        self.checkpoint.write(entries, complete_until);
        Ended { leftover, checkpoint: self.checkpoint, positions, complete_until }
    }
}

fn enqueue(queue: &mut VecDeque<Id>, id: Id, open: &mut Open) {
    if !open.queued {
        open.queued = true;
        queue.push_back(id);
    }
}

#[cfg(test)]
mod tests;
