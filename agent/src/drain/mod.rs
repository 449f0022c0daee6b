//! The only reader of the ring: a thread that drains it in rounds and sleeps in between.
//!
//! Waking a reader for every record costs more than the record. So while records come, it naps for a few milliseconds
//! between rounds, and the kernel wakes it only when the ring fills; when nothing has come for a while it sleeps until
//! the kernel wakes it for the next record.

pub mod ring;
mod source;
mod wakeup;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use aya::maps::{Array, MapData};
use sidestep_abi::kernel::{READER_BUSY, READER_IDLE, READER_NAPPING, Reader};

use self::source::Taken;
pub use self::{source::Source, wakeup::Wakeup};
use crate::{
    clock::{self, Clock},
    pipeline::{
        Reload,
        engine::{Engine, Kernel, Reached},
        outlet::Outlet,
        readings::Readings,
        rounds::{Place, Rounds},
    },
};

/// Bytes of one round, after which ready lines go out.
const ROUND_BYTES: usize = 4 * 1024 * 1024;
/// Sleep between rounds while records come.
const NAP: Duration = Duration::from_millis(8);
/// Longest sleep: time alone brings unfinished lines and late identities.
const SLEEP: Duration = Duration::from_millis(200);
/// Pause between reminders of the outlet.
const TICK: Duration = Duration::from_millis(200);
/// Empty rounds after which the reader sleeps until it is woken.
const EMPTY_ROUNDS: u32 = 12;

/// Nice value of the thread. It uses little time, but what it comes late for is lost, and a container that floods is
/// just what keeps the processors busy.
const NICE: i32 = -10;

/// Tells the draining thread to come to its end.
#[derive(Debug, Default)]
pub struct Stop {
    state: AtomicU8,
    leaves: AtomicBool,
}

impl Stop {
    /// Asks to drain what is in the ring and then to stop.
    pub fn after_draining(&self) {
        self.state.store(1, Relaxed);
    }

    /// Asks to stop at once.
    pub fn at_once(&self) {
        self.state.store(2, Relaxed);
    }

    /// Asks to stop after this round: the programs go on, and what is in the ring, or unfinished, is the next agent's.
    pub fn leave(&self) {
        self.leaves.store(true, Relaxed);
        self.state.store(3, Relaxed);
    }

    /// Whether it is asked to stop at once.
    #[must_use]
    pub fn is_at_once(&self) -> bool {
        self.state.load(Relaxed) == 2
    }
}

/// What the draining thread owns.
pub struct Drain<K> {
    /// The rings, oldest first: a ring of programs that are detached is emptied before the next one is read, and stays
    /// empty. The last one is that of the running programs.
    pub sources: Vec<Source>,
    /// Tells the kernel what this thread does, and how far it has come in the last ring.
    pub reader: Array<MapData, Reader>,
    /// Wake-ups of the last ring.
    pub wakeup: Wakeup,
    /// The stages behind the ring.
    pub engine: Engine<K>,
    /// What the rings can't let go of yet.
    pub rounds: Rounds,
    /// Reminded of the time.
    pub outlet: Arc<Outlet>,
    /// Where to count.
    pub readings: Arc<Readings>,
    /// Asked after each round.
    pub stop: Arc<Stop>,
    /// New configurations.
    pub reloads: Receiver<Reload>,
}

/// What is left when the thread has ended: rounds become safe until the sinks are closed.
pub struct Remains {
    sources: Vec<Source>,
    rounds: Rounds,
}

impl Remains {
    /// Lets go of what is safe; the rest is for the next agent. To be called when the sinks are closed.
    pub fn release(mut self) {
        while let Some(released) = self.rounds.release(Instant::now(), false) {
            release(&mut self.sources, &released.places);
        }
        let held: u64 = self.sources.iter().map(|source| source.ring.held() + source.ring.waiting()).sum();
        if self.rounds.are_held() && held > 0 {
            tracing::info!(bytes = held, "left in the kernel's ring for the next agent");
        }
    }
}

fn release(sources: &mut [Source], places: &[Place]) {
    for place in places {
        if let Some(source) = sources.get_mut(place.ring) {
            source.ring.release(place.position);
        }
    }
}

impl<K: Kernel> Drain<K> {
    /// Drains until it is stopped, then brings the stages behind the ring to their end.
    #[must_use]
    pub fn run(mut self) -> Remains {
        // Process 0 is the calling thread, `setpriority(2)`.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::info!(%error, "the thread that drains the ring runs with normal priority; CAP_SYS_NICE lets it go first");
        }
        let mut empty_rounds = 0;
        let mut next_tick = Instant::now();
        self.engine.begin_round(self.rounds.hold());
        loop {
            let bytes = self.round();
            while let Ok(Reload { config, done }) = self.reloads.try_recv() {
                self.engine.reload(&config);
                drop(done);
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.outlet.tick(clock::unix_nano());
            }
            match self.stop.state.load(Relaxed) {
                0 => {}
                1 if bytes > 0 || self.engine.is_waiting() => continue,
                _ => return self.finish(),
            }
            if bytes > ROUND_BYTES {
                continue;
            }
            empty_rounds = if bytes == 0 && !self.engine.is_waiting() { empty_rounds + 1 } else { 0 };
            self.sleep(empty_rounds > EMPTY_ROUNDS);
        }
    }

    fn finish(mut self) -> Remains {
        self.engine.finish(self.rounds.are_held() && self.stop.leaves.load(Relaxed));
        self.end_round();
        // The file thread may be held up by a sink; what it is not told it finds in the files.
        while self.engine.is_waiting() && !self.stop.is_at_once() {
            std::thread::sleep(NAP);
            self.engine.send_files();
        }
        Remains { sources: self.sources, rounds: self.rounds }
    }

    /// One round: records until the ring is empty or the round is full, then what they have become. Returns the bytes.
    fn round(&mut self) -> usize {
        let before = clock::unix_nano();
        let index = self.source();
        let is_last = index + 1 == self.sources.len();
        self.measure();
        let Some(source) = self.sources.get_mut(index) else { return 0 };
        let mut bytes = 0;
        let mut records = 0;
        let mut newest = None;
        loop {
            let record = match source.read() {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(error) => {
                    self.readings.undecoded.fetch_add(1, Relaxed);
                    tracing::error!(%error, "the ring can't be read");
                    continue;
                }
            };
            bytes += record.length;
            records += 1;
            newest = record.time.or(newest);
            match record.taken {
                Taken::Event(event) => self.engine.take(event),
                Taken::Unreadable(bytes) => self.engine.lose_unreadable(bytes),
                Taken::Undecoded(error) => {
                    if self.readings.undecoded.fetch_add(1, Relaxed) == 0 {
                        tracing::error!(%error, "a record of the kernel programs can't be read");
                    }
                }
            }
            if bytes > ROUND_BYTES {
                break;
            }
        }
        self.readings.records.fetch_add(records, Relaxed);
        if let Some(newest) = newest {
            self.readings.lag_nano.store(clock::monotonic_nano().saturating_sub(newest), Relaxed);
        }
        let caught_up = is_last && source.ring.position() >= source.start;
        // What is left in the ring is newer than the newest that was taken.
        let full = newest.filter(|_| bytes > ROUND_BYTES).map(|newest| Clock::now().unix_nano(newest));
        let taken = full.map_or(before, |newest| newest.min(before));
        let is_crowded = self.sources.iter().any(|source| source.ring.held() > source.ring.size() / 4);
        self.engine.end_round(Instant::now(), Reached { taken, caught_up, is_crowded });
        self.end_round();
        bytes
    }

    /// Says how much waits in the rings; also before the thread runs, or a full ring would pass for an empty one.
    pub fn measure(&self) {
        self.readings.ring_fill.store(self.sources.iter().map(|source| source.ring.waiting()).sum(), Relaxed);
    }

    /// The ring that is read: the oldest that is not empty.
    fn source(&self) -> usize {
        let holds_something = |source: &Source| source.ring.waiting() > 0;
        self.sources.iter().position(holds_something).unwrap_or(self.sources.len().saturating_sub(1))
    }

    /// Ends the round under way if it has done anything, and lets go of those that are safe.
    fn end_round(&mut self) {
        if self.rounds.may_end() {
            let effects = self.engine.effects();
            let end = self.places();
            if self.rounds.has_moved(&end) || !effects.is_empty() {
                self.rounds.end(end, effects);
                self.engine.begin_round(self.rounds.hold());
            }
        }
        let crowded = self.sources.iter().any(|source| source.ring.held() > source.ring.size() / 2);
        if let Some(released) = self.rounds.release(Instant::now(), crowded) {
            release(&mut self.sources, &released.places);
            self.engine.forget(&released.ended);
        }
        self.sources.iter_mut().for_each(Source::remove_if_done);
        self.readings.ring_held.store(self.sources.iter().map(|source| source.ring.held()).sum(), Relaxed);
    }

    fn places(&self) -> Vec<Place> {
        let place = |(ring, source): (usize, &Source)| Place { ring, position: source.ring.position() };
        self.sources.iter().enumerate().map(place).collect()
    }

    /// Naps, or sleeps until the kernel wakes it.
    fn sleep(&mut self, idle: bool) {
        let (state, limit) = if idle { (READER_IDLE, SLEEP) } else { (READER_NAPPING, NAP) };
        self.tell(state);
        // A record that came before the word was set woke nobody.
        if idle && self.round() > 0 {
            return;
        }
        match self.wakeup.wait(limit) {
            Ok(true) => {
                self.readings.wakeups.fetch_add(1, Relaxed);
            }
            // Nobody woke it, so the word still asks for it; while this thread works it should not.
            Ok(false) => self.tell(READER_BUSY),
            Err(error) => {
                tracing::warn!(%error, "waiting for the ring failed");
                std::thread::sleep(limit);
            }
        }
    }

    /// Tells the kernel programs what this thread does.
    fn tell(&mut self, state: u32) {
        let read = self.sources.last().map_or(0, |source| source.ring.position());
        if let Err(error) = self.reader.set(0, Reader { state, _pad: 0, read }, 0) {
            tracing::warn!(%error, "the kernel can't be told what the reader does");
        }
    }
}
