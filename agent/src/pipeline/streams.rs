//! All standard streams, from the records of the ring to batches of lines.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use rustc_hash::FxBuildHasher;
use sidestep_abi::stdio::{InodeKey, Stdio};

use super::{
    container::Container,
    journal::{Change, Saved, Standing, StreamId},
    readings::StreamReading,
    rounds::Effects,
    stdio::StdioStream,
};
use crate::{record::Batch, runtime_log::Repairs, sinks::Hold};

/// Ready bytes of one stream above which its lines go out before the round is over.
const FULL_BATCH: usize = 1024 * 1024;

/// Takes batches; may wait.
pub type Deliver = Box<dyn Fn(Arc<Batch>, Option<&Hold>) + Send>;

/// What the kernel knows of standard streams.
pub trait Counts {
    /// A registered stream and its counters.
    fn stdio(&self, key: &InodeKey) -> Option<Stdio>;

    /// The same, as long as its number was not used again.
    fn of_stream(&self, id: &StreamId) -> Option<Stdio> {
        self.stdio(&id.key()).filter(|stdio| stdio.registered == id.registered)
    }
}

/// What one piece has brought about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Taken {
    /// It is taken.
    Yes,
    /// So much waits that the container's identity can't be waited for: settle it, then call [`Streams::settle`].
    Overdue,
}

/// A piece of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// Place of the first byte.
    pub position: u64,
    /// Nanoseconds since the Unix epoch.
    pub time_unix_nano: u64,
    /// The bytes.
    pub bytes: &'a [u8],
    /// Whether the configuration leaves it out.
    pub unwanted: bool,
}

/// The streams.
pub struct Streams {
    deliver: Deliver,
    /// Guard of the round that is under way.
    hold: Option<Hold>,
    streams: HashMap<StreamId, StdioStream, FxBuildHasher>,
    /// Streams with something new in this round.
    dirty: Vec<StreamId>,
    /// Streams with something that the journal does not know.
    unsaved: Vec<StreamId>,
    /// Streams by the container's cgroup.
    of_container: HashMap<u64, Vec<StreamId>>,
    /// Of streams that have ended.
    ended: Effects,
    /// A stream that was registered before this time and that nobody has told of was taken in part by an agent that has
    /// left no journal: nanoseconds of `CLOCK_MONOTONIC`.
    known_since: u64,
    /// Of a stream that was registered before this time another agent may have taken more than its journal says.
    inherited_before: u64,
    /// `None` when nothing is looked for in the runtimes' logs.
    repairs: Option<Repairs>,
    /// Streams whose container has ended, and that missing bytes are looked for; whether the container is gone, and whether
    /// the kernel's count is certain.
    ending: HashMap<StreamId, Ending>,
}

#[derive(Clone, Copy, Debug)]
struct Ending {
    gone: bool,
    certain: bool,
}

impl Streams {
    /// No streams yet. `known_since`: of a stream that was registered before, a part may have been taken by an agent that
    /// has not told of it.
    #[must_use]
    pub fn new(deliver: Deliver, known_since: u64) -> Self {
        Self {
            deliver,
            hold: None,
            streams: HashMap::default(),
            dirty: Vec::new(),
            unsaved: Vec::new(),
            of_container: HashMap::new(),
            ended: Effects::default(),
            known_since,
            inherited_before: 0,
            repairs: None,
            ending: HashMap::new(),
        }
    }

    /// Streams that were registered before this time (nanoseconds of `CLOCK_MONOTONIC`) were another agent's, whose journal
    /// may be older than the ring.
    #[must_use]
    pub const fn inheriting(mut self, before: u64) -> Self {
        self.inherited_before = before;
        self
    }

    /// Looks for what the ring could not hold in the runtimes' logs.
    #[must_use]
    pub fn with_repairs(mut self, repairs: Option<Repairs>) -> Self {
        self.repairs = repairs;
        self
    }

    /// Begins a round: what goes out from here on has its guard.
    pub fn begin_round(&mut self, hold: Option<Hold>) {
        self.hold = hold;
    }

    /// Whether a stream is known.
    #[must_use]
    pub fn contains(&self, id: &StreamId) -> bool {
        self.streams.contains_key(id)
    }

    /// Enters a stream that the kernel has registered for `cgroup`, which is the container's own or below that.
    pub fn open(&mut self, id: StreamId, container: &Arc<Container>, cgroup: u64, iostream: u32, kernel: &impl Counts) {
        if self.contains(&id) {
            return;
        }
        let mut stream = StdioStream::new(id, Arc::clone(container), cgroup, iostream);
        if id.registered < self.known_since {
            stream.begin_anywhere(kernel.of_stream(&id).as_ref());
        }
        self.enter(stream);
    }

    /// Enters a stream where the agent before has left it.
    pub fn restore(&mut self, id: StreamId, container: &Arc<Container>, saved: Saved) {
        if !self.contains(&id) {
            self.enter(StdioStream::restore(id, Arc::clone(container), saved));
            self.note(id);
        }
    }

    /// Enters a stream of which the agent before has left what can't be: it begins with the first piece that comes.
    pub fn open_anywhere(
        &mut self,
        id: StreamId,
        container: &Arc<Container>,
        standing: &Standing,
        kernel: Option<&Stdio>,
    ) {
        if !self.contains(&id) {
            let mut stream = StdioStream::new(id, Arc::clone(container), standing.cgroup, standing.iostream);
            stream.begin_anywhere(kernel);
            self.enter(stream);
        }
    }

    fn enter(&mut self, mut stream: StdioStream) {
        if stream.id.registered < self.inherited_before {
            stream.inherit();
        }
        if let Some(repairs) = &self.repairs {
            stream.repair_with(repairs.clone());
        }
        self.of_container.entry(stream.container.cgroup).or_default().push(stream.id);
        self.streams.insert(stream.id, stream);
    }

    /// The container of a stream.
    #[must_use]
    pub fn container(&self, id: &StreamId) -> Option<Arc<Container>> {
        self.streams.get(id).map(|stream| Arc::clone(&stream.container))
    }

    /// The stream is looked at when the round ends, and told to the journal.
    fn note(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !std::mem::replace(&mut stream.dirty, true) {
            self.dirty.push(id);
        }
        if !std::mem::replace(&mut stream.unsaved, true) {
            self.unsaved.push(id);
        }
    }

    /// Takes a piece of a stream that is known.
    pub fn take(&mut self, id: StreamId, written: Written<'_>) -> Taken {
        let Some(stream) = self.streams.get_mut(&id) else { return Taken::Yes };
        let is_new = !(stream.dirty && stream.unsaved);
        let mut taken = Taken::Yes;
        if written.unwanted {
            stream.pass_over(written.position, written.bytes.len() as u64);
        } else {
            stream.take(written.position, written.time_unix_nano, written.bytes);
            if stream.ready_bytes() > FULL_BATCH {
                if let Some(batch) = stream.take_batch() {
                    (self.deliver)(Arc::new(batch), self.hold.as_ref());
                }
            } else if stream.is_overdue() {
                taken = Taken::Overdue;
            }
        }
        if is_new {
            self.note(id);
        }
        taken
    }

    /// Closes the holes of a stream that are known to be losses.
    pub fn settle(&mut self, id: &StreamId, now: Instant, kernel: &impl Counts) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.settle(now, kernel.of_stream(id).as_ref());
        }
    }

    /// The end of a round: lines that are ready go out.
    pub fn end_round(&mut self, now: Instant, kernel: &impl Counts) {
        let mut waiting = Vec::new();
        for id in std::mem::take(&mut self.dirty) {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.dirty = false;
            let (waited, position) = (stream.is_waiting(), stream.position());
            if waited && !self.ending.contains_key(&id) {
                stream.settle(now, kernel.of_stream(&id).as_ref());
            }
            if stream.is_waiting() {
                stream.dirty = true;
                waiting.push(id);
            }
            let has_moved = position != stream.position() || (waited && !stream.is_waiting());
            if has_moved && !std::mem::replace(&mut stream.unsaved, true) {
                self.unsaved.push(id);
            }
            if let Some(batch) = stream.take_batch() {
                (self.deliver)(Arc::new(batch), self.hold.as_ref());
            }
        }
        self.dirty = waiting;
        let ending: Vec<_> = self.ending.iter().map(|(id, ending)| (*id, *ending)).collect();
        ending.into_iter().for_each(|(id, ending)| self.finish_stream(id, ending, kernel));
    }

    /// Whether a stream waits for what time alone brings.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Lines and losses that time alone brings. All that was written before `taken` (nanoseconds since the Unix epoch)
    /// has been taken; it is `unix` by the clock of the day. With `reconcile`, streams are compared with what the kernel
    /// has counted.
    pub fn tick(
        &mut self,
        now: Instant,
        unix: u64,
        taken: u64,
        reconcile: bool,
        kernel: &impl Counts,
    ) -> Vec<StreamReading> {
        let mut readings = Vec::with_capacity(self.streams.len());
        let mut moved = Vec::new();
        for (id, stream) in &mut self.streams {
            let mut has_moved = false;
            if reconcile && let Some(kernel) = kernel.of_stream(id) {
                has_moved = stream.reconcile(now, &kernel);
            }
            if let Some(batch) = stream.renew() {
                has_moved = true;
                (self.deliver)(Arc::new(batch), self.hold.as_ref());
            }
            has_moved |= stream.idle(taken, unix, || kernel.of_stream(id));
            if let Some(batch) = stream.take_batch() {
                has_moved = true;
                (self.deliver)(Arc::new(batch), self.hold.as_ref());
            }
            if has_moved {
                moved.push(*id);
            }
            if let Some((shared, position, pending)) = stream.reading() {
                readings.push(StreamReading {
                    cgroup_id: stream.container.cgroup,
                    key: Arc::clone(&shared.key),
                    class: shared.class,
                    origin: shared.origin.clone(),
                    position,
                    pending,
                });
            }
        }
        moved.into_iter().for_each(|id| self.note(id));
        readings
    }

    /// Whether a container has streams.
    #[must_use]
    pub fn has_container(&self, cgroup: u64) -> bool {
        self.of_container.contains_key(&cgroup)
    }

    /// The end of a container: all that waits comes out. When it is `gone`, its streams are forgotten, as soon as what is
    /// missing of them was found or given up. `certain` says that what the kernel has counted and no record holds is lost;
    /// else it may be in the ring still.
    pub fn finish(&mut self, cgroup: u64, gone: bool, certain: bool, kernel: &impl Counts) {
        for id in self.of_container.get(&cgroup).cloned().unwrap_or_default() {
            self.finish_stream(id, Ending { gone, certain }, kernel);
        }
    }

    fn finish_stream(&mut self, id: StreamId, ending: Ending, kernel: &impl Counts) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let finished = stream.finish(kernel.of_stream(&id).as_ref(), ending.certain);
        if let Some(batch) = stream.take_batch() {
            (self.deliver)(Arc::new(batch), self.hold.as_ref());
        }
        if !finished {
            self.ending.insert(id, ending);
            self.note(id);
            return;
        }
        self.ending.remove(&id);
        if !ending.gone {
            self.note(id);
            return;
        }
        let cgroup = stream.container.cgroup;
        self.streams.remove(&id);
        self.ended.changes.push(Change::StreamEnded(id));
        self.ended.ended.push(id);
        if let Some(streams) = self.of_container.get_mut(&cgroup) {
            streams.retain(|stream| *stream != id);
            if streams.is_empty() {
                self.of_container.remove(&cgroup);
            }
        }
    }

    /// The agent stops: unfinished lines come out, unless the next agent goes on with them.
    pub fn stop(&mut self, leave: bool, kernel: &impl Counts) {
        for (id, stream) in &mut self.streams {
            if !leave {
                stream.give_up(kernel.of_stream(id).as_ref());
            }
            if let Some(batch) = stream.take_batch() {
                (self.deliver)(Arc::new(batch), self.hold.as_ref());
            }
        }
        self.dirty.clear();
    }

    /// Streams that the journal knows and that will never come again.
    pub fn forget(&mut self, ids: Vec<StreamId>) {
        self.ended.changes.extend(ids.into_iter().map(Change::StreamEnded));
    }

    /// Containers of all streams.
    #[must_use]
    pub fn containers(&self) -> HashSet<u64> {
        self.of_container.keys().copied().collect()
    }

    /// What the journal has to know when the round is safe. To be asked when no line is ready: after
    /// [`Streams::end_round`] and [`Streams::tick`].
    pub fn effects(&mut self) -> Effects {
        let mut effects = std::mem::take(&mut self.ended);
        let mut changes = Vec::with_capacity(self.unsaved.len());
        for id in std::mem::take(&mut self.unsaved) {
            if let Some(stream) = self.streams.get_mut(&id) {
                changes.extend(stream.save());
            }
        }
        // A stream never comes again once it has ended, so their order does not matter.
        effects.changes.extend(changes);
        effects
    }
}

#[cfg(test)]
mod tests;
