//! The only reader of the ring: a thread that drains it in rounds and sleeps in between.
//!
//! Waking a reader for every record costs more than the record. So while records come, it naps for a few milliseconds
//! between rounds, and the kernel wakes it only when the ring fills; when nothing has come for a while it sleeps until
//! the kernel wakes it for the next record.

mod older;

pub use older::Older;

use std::{
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use aya::maps::{Array, MapData, RingBuf};
use rustix::{event::epoll, mm};
use sidestep_abi::kernel::{READER_BUSY, READER_IDLE, READER_NAPPING};

use crate::{
    clock,
    config::Config,
    decode::decode,
    events::Event,
    pipeline::{engine::Engine, readings::Readings},
};

/// Bytes of one round, after which ready lines go out.
const ROUND_BYTES: usize = 4 * 1024 * 1024;
/// Sleep between rounds while records come.
const NAP: Duration = Duration::from_millis(8);
/// Longest sleep: time alone brings unfinished lines and late identities.
const SLEEP: Duration = Duration::from_millis(200);
/// Empty rounds after which the reader sleeps until it is woken.
const EMPTY_ROUNDS: u32 = 12;

/// Nice value of the thread. It uses little time, but what it comes late for is lost, and a container that floods is
/// just what keeps the processors busy.
const NICE: i32 = -10;

/// Tells the draining thread to come to its end.
#[derive(Debug, Default)]
pub struct Stop(AtomicU8);

impl Stop {
    /// Asks to drain what is in the ring and then to stop.
    pub fn after_draining(&self) {
        self.0.store(1, Relaxed);
    }

    /// Asks to stop at once.
    pub fn at_once(&self) {
        self.0.store(2, Relaxed);
    }

    /// Asks to stop after this round: the programs go on, and what is in the ring is the next agent's.
    pub fn leave(&self) {
        self.0.store(3, Relaxed);
    }

    /// Whether it is asked to stop at once.
    #[must_use]
    pub fn is_at_once(&self) -> bool {
        self.0.load(Relaxed) == 2
    }
}

/// What the draining thread owns.
pub struct Drain {
    /// The ring.
    pub ring: RingBuf<MapData>,
    /// Rings of programs that the agent has replaced.
    pub older: Older,
    /// The word that tells the kernel what this thread does.
    pub reader: Array<MapData, u32>,
    /// Its wake-ups.
    pub wakeup: Wakeup,
    /// The stages behind the ring.
    pub engine: Engine,
    /// How full the ring is.
    pub fill: Fill,
    /// Where to count.
    pub readings: Arc<Readings>,
    /// Asked after each round.
    pub stop: Arc<Stop>,
    /// New configurations.
    pub reloads: Receiver<Arc<Config>>,
}

impl Drain {
    /// Drains until it is stopped, then brings the stages behind the ring to their end.
    pub fn run(mut self) {
        // Process 0 is the calling thread, `setpriority(2)`.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::info!(%error, "the thread that drains the ring runs with normal priority; CAP_SYS_NICE lets it go first");
        }
        let mut empty_rounds = 0;
        loop {
            let bytes = self.round();
            let now = Instant::now();
            while let Ok(config) = self.reloads.try_recv() {
                self.engine.reload(&config);
            }
            self.engine.end_round(now);
            match self.stop.0.load(Relaxed) {
                0 => {}
                1 if bytes > 0 || self.engine.is_waiting() => continue,
                state => return self.finish(state == 3),
            }
            if bytes > ROUND_BYTES {
                continue;
            }
            empty_rounds = if bytes == 0 && !self.engine.is_waiting() { empty_rounds + 1 } else { 0 };
            self.sleep(empty_rounds > EMPTY_ROUNDS);
        }
    }

    fn finish(mut self, leaves: bool) {
        self.engine.finish(leaves);
        // The file thread may be held up by a sink; what it is not told it finds in the files.
        while self.engine.is_waiting() && !self.stop.is_at_once() {
            std::thread::sleep(NAP);
            self.engine.send_files();
        }
    }

    /// Takes records until the ring is empty or the round is full; returns the bytes taken.
    fn round(&mut self) -> usize {
        self.readings.ring_fill.store(self.fill.bytes(), Relaxed);
        let mut bytes = 0;
        let mut records = 0;
        let mut newest = None;
        if !self.older.is_done() {
            let engine = &mut self.engine;
            let mut undecoded = 0;
            let taken = self.older.round(ROUND_BYTES, |record| match decode(record) {
                Ok(event) => engine.take(event),
                Err(_) => undecoded += 1,
            });
            self.readings.undecoded.fetch_add(undecoded + taken.undecoded, Relaxed);
            self.readings.records.fetch_add(taken.records, Relaxed);
            if taken.unreadable > 0 {
                engine.lose_unreadable(taken.unreadable);
            }
            if taken.bytes > 0 {
                // What is newer comes after.
                return taken.bytes;
            }
        }
        while let Some(record) = self.ring.next() {
            bytes += record.len();
            records += 1;
            match decode(&record) {
                Ok(event) => self.engine.take(event),
                Err(error) => {
                    if self.readings.undecoded.fetch_add(1, Relaxed) == 0 {
                        Event::RecordUnreadable { error: &error }.report();
                    }
                }
            }
            if record.len() >= 16 {
                newest = Some(u64::from_ne_bytes(record[8..16].try_into().unwrap_or_default()));
            }
            if bytes > ROUND_BYTES {
                break;
            }
        }
        self.readings.records.fetch_add(records, Relaxed);
        if let Some(newest) = newest {
            self.readings.lag_nano.store(clock::monotonic_nano().saturating_sub(newest), Relaxed);
        }
        bytes
    }

    /// Naps, or sleeps until the kernel wakes it.
    fn sleep(&mut self, idle: bool) {
        let (state, limit) = if idle { (READER_IDLE, SLEEP) } else { (READER_NAPPING, NAP) };
        if let Err(error) = self.reader.set(0, state, 0) {
            tracing::warn!(%error, "the kernel can't be told that the reader sleeps");
        }
        // A record that came before the word was set woke nobody.
        if idle && self.round() > 0 {
            return;
        }
        match self.wakeup.wait(limit) {
            Ok(true) => {
                self.readings.wakeups.fetch_add(1, Relaxed);
            }
            Ok(false) => {
                // Nobody woke it, so the word still asks for it; while this thread works it should not.
                let _ = self.reader.set(0, READER_BUSY, 0);
            }
            Err(error) => {
                tracing::warn!(%error, "waiting for the ring failed");
                std::thread::sleep(limit);
            }
        }
    }
}

/// How many bytes wait in the ring. Its first page holds the consumer's position, its second the producer's:
/// `kernel/bpf/ringbuf.c`.
#[derive(Debug)]
pub struct Fill {
    pages: *const u8,
    page_size: usize,
}

// SAFETY: the mapping belongs to this value alone and is only read, whatever thread that happens on.
unsafe impl Send for Fill {}

impl Fill {
    /// Of a ring.
    ///
    /// # Errors
    /// When the ring can't be mapped.
    pub fn new(ring: &RingBuf<MapData>) -> io::Result<Self> {
        let page_size = rustix::param::page_size();
        // SAFETY: a new mapping at an address of the kernel's choice; both pages are part of every ring.
        let pages = unsafe {
            mm::mmap(std::ptr::null_mut(), 2 * page_size, mm::ProtFlags::READ, mm::MapFlags::SHARED, ring, 0)?
        };
        Ok(Self { pages: pages.cast(), page_size })
    }

    fn bytes(&self) -> u64 {
        let position = |page: usize| {
            // SAFETY: inside the mapping, which lives as long as this value; a page is aligned, and the kernel writes
            // whole words.
            unsafe { AtomicU64::from_ptr(self.pages.add(page * self.page_size).cast_mut().cast()) }.load(Relaxed)
        };
        let consumer = position(0);
        position(1).saturating_sub(consumer)
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing else refers to.
        let result = unsafe { mm::munmap(self.pages.cast_mut().cast(), 2 * self.page_size) };
        if let Err(error) = result {
            tracing::debug!(%error, "unmapping the ring's positions failed");
        }
    }
}

/// The kernel's wake-ups, and only these: `poll` would return at once whenever the ring holds anything, and a reader
/// under load would never nap. An edge-triggered `epoll` returns when it is told to.
pub struct Wakeup(OwnedFd);

impl Wakeup {
    /// Listens to a ring.
    ///
    /// # Errors
    /// When the system has no `epoll` to give.
    pub fn new(ring: &RingBuf<MapData>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, ring, epoll::EventData::new_u64(0), flags)?;
        Ok(Self(epoll))
    }

    fn wait(&self, limit: Duration) -> io::Result<bool> {
        let timeout =
            rustix::event::Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: i64::from(limit.subsec_nanos()) };
        let mut events = [MaybeUninit::uninit(); 1];
        match epoll::wait(&self.0, &mut events, Some(&timeout)) {
            Ok((ready, _)) => Ok(!ready.is_empty()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
