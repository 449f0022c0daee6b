//! The thread that drives a sink: offers it what is queued, flushes, ticks, and tries again after an error.

use std::{
    collections::VecDeque,
    io,
    sync::PoisonError,
    time::{Duration, Instant},
};

use super::{
    Delivery, Sink, SinkError,
    worker::{Shared, Size, settle_leftover},
};
use crate::events::Event;

/// How often a sink's housekeeping is called.
const TICK: Duration = Duration::from_secs(1);
/// First and longest pause after an error.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Errors in a row are logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// The sink's thread.
pub(super) struct Driver<'shared> {
    shared: &'shared Shared,
    /// Its number among the threads that the queue has had.
    number: u64,
    sink: Box<dyn Sink>,
    /// Fetched, and not taken by the sink yet.
    fetched: VecDeque<Delivery>,
    sizes: VecDeque<Size>,
    /// The sink may hold what is not flushed.
    unflushed: bool,
    next_tick: Instant,
    /// The pause after the last error, and when it is over.
    pause: Option<(Duration, Instant)>,
    last_log: Option<Instant>,
    unlogged: u64,
}

/// What the thread is asked for besides writing.
enum Asked {
    Nothing,
    /// To come to its end, with all that is queued.
    Close(Instant),
    /// To leave what is queued to another thread.
    HandOver(Instant),
}

impl<'shared> Driver<'shared> {
    pub(super) fn new(shared: &'shared Shared, number: u64, sink: Box<dyn Sink>) -> Self {
        Self {
            shared,
            number,
            sink,
            fetched: VecDeque::new(),
            sizes: VecDeque::new(),
            unflushed: false,
            next_tick: Instant::now() + TICK,
            pause: None,
            last_log: None,
            unlogged: 0,
        }
    }

    pub(super) fn run(mut self) {
        let mut hurried = false;
        self.shared.counters.sample(Instant::now());
        loop {
            let deadline = match self.fetch() {
                Asked::Nothing => None,
                Asked::Close(deadline) => Some(deadline),
                Asked::HandOver(deadline) => return self.end(deadline),
            };
            if deadline.is_some() && !hurried {
                // The end is near: what failed a moment ago is tried once more at once.
                hurried = true;
                self.pause = None;
            }
            let now = Instant::now();
            if now >= self.next_tick {
                self.next_tick = now + TICK;
                self.tick();
                self.shared.counters.note_figures(self.sink.figures());
                self.shared.counters.sample(now);
            }
            if self.sink.next_call().is_some_and(|at| now >= at)
                && let Err(error) = self.sink.call()
            {
                self.note_error(&error);
            }
            if self.pause.is_none_or(|(_, until)| now >= until) {
                self.work();
            }
            if let Some(deadline) = deadline {
                let done = self.fetched.is_empty() && !self.unflushed && self.shared.lock().deliveries.is_empty();
                if done || Instant::now() >= deadline {
                    return self.end(deadline);
                }
            }
        }
    }

    fn tick(&mut self) {
        match self.sink.tick() {
            Err(error) => self.note_error(&error),
            // A sink that sends on its own may have failed between two calls, and works again.
            Ok(()) if self.pause.is_none() && !self.unflushed => {
                if self.shared.counters.note_well() {
                    self.note_recovery();
                }
            }
            Ok(()) => {}
        }
    }

    /// Closes the sink and puts back what it has not taken, and what it has taken and not settled.
    fn end(mut self, deadline: Instant) {
        if let Err(error) = self.sink.close(deadline.saturating_duration_since(Instant::now())) {
            self.note_error(&error);
        }
        let held = self.sink.give_back();
        let mut fetched = Size::default();
        self.sizes.drain(..).for_each(|size| fetched += size);
        let mut queue = self.shared.lock();
        queue.forget(self.number, self.fetched.len(), fetched);
        queue.put_back(std::mem::take(&mut self.fetched));
        queue.put_back(held);
        // Who waits for the end has gone already when the thread was stuck for long.
        let leftover = queue.take_leftover();
        drop(queue);
        self.shared.work.notify_all();
        settle_leftover(leftover);
    }

    /// Waits until there is something to do, and fetches what is queued.
    fn fetch(&mut self) -> Asked {
        let next_call = self.sink.next_call();
        let mut queue = self.shared.lock();
        loop {
            if queue.driver != self.number || queue.released.is_some() {
                queue.noticed = queue.noticed.max(self.number);
                return Asked::HandOver(queue.released.unwrap_or_else(Instant::now));
            }
            let now = Instant::now();
            let ready = self.pause.is_none_or(|(_, until)| now >= until);
            let has_work = !queue.deliveries.is_empty() || !self.fetched.is_empty() || self.unflushed;
            let closing = queue.deadline.is_some_and(|deadline| ready || now >= deadline);
            if (ready && has_work) || closing || now >= self.next_tick || next_call.is_some_and(|at| now >= at) {
                break;
            }
            let mut until = next_call.map_or(self.next_tick, |at| at.min(self.next_tick));
            if let (false, Some((_, retry))) = (ready, self.pause) {
                until = until.min(retry);
            }
            until = queue.deadline.map_or(until, |deadline| until.min(deadline));
            queue.idle = ready;
            queue = self
                .shared
                .work
                .wait_timeout(queue, until.saturating_duration_since(now))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            queue.idle = false;
            if queue.deadline.is_some() {
                break;
            }
        }
        self.sizes.extend(queue.deliveries.iter().map(|delivery| Size::of(&delivery.batch)));
        if self.fetched.is_empty() {
            std::mem::swap(&mut self.fetched, &mut queue.deliveries);
        } else {
            self.fetched.append(&mut queue.deliveries);
        }
        queue.deadline.map_or(Asked::Nothing, Asked::Close)
    }

    /// Offers the sink what is fetched, and flushes when that is all there is.
    fn work(&mut self) {
        if !self.fetched.is_empty() {
            self.unflushed = true;
            let before = self.fetched.len();
            let result = self.sink.write(&mut self.fetched);
            self.note_taken(before - self.fetched.len());
            let result = match result {
                // A sink that takes nothing and names no reason must not keep the thread spinning.
                Ok(()) if self.fetched.len() == before => Err(SinkError {
                    action: "waiting for the sink to take records again".to_owned(),
                    source: io::ErrorKind::WouldBlock.into(),
                }),
                other => other,
            };
            if !self.note(result) {
                return;
            }
        }
        if self.unflushed && self.fetched.is_empty() && self.shared.lock().deliveries.is_empty() {
            let result = self.sink.flush();
            if self.note(result) {
                self.unflushed = false;
            }
        }
    }

    fn note_taken(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let mut taken = Size::default();
        self.sizes.drain(..count).for_each(|size| taken += size);
        self.shared.lock().forget(self.number, count, taken);
        self.shared.room.notify_all();
    }

    /// Books how a write or flush went; true when it went well. After an error there is a pause.
    fn note(&mut self, result: Result<(), SinkError>) -> bool {
        let Err(error) = result else {
            if self.pause.take().is_some() {
                self.note_recovery();
            }
            self.shared.counters.note_success();
            return true;
        };
        let length = self.pause.map_or(BACK_OFF.0, |(length, _)| (length * 2).min(BACK_OFF.1));
        let now = Instant::now();
        // A sink that says when it is to be called again may then have room.
        let until = self.sink.next_call().map_or(now + length, |at| at.clamp(now + BACK_OFF.0, now + length));
        self.pause = Some((length, until));
        self.note_error(&error);
        false
    }

    fn note_recovery(&mut self) {
        Event::SinkRecovered { sink: self.sink.name() }.report();
        self.last_log = None;
    }

    /// Counts an error, and logs it unless one has just been logged.
    fn note_error(&mut self, error: &SinkError) {
        let now = Instant::now();
        self.shared.counters.note_error(error.to_string());
        if self.last_log.is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL) {
            let suppressed = std::mem::take(&mut self.unlogged);
            Event::SinkFailing { sink: self.sink.name(), suppressed, error }.report();
            self.last_log = Some(now);
        } else {
            self.unlogged += 1;
        }
    }
}
