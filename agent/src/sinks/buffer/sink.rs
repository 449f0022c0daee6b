//! The buffer in front of a sink: a sink itself, which never waits for the one behind it.

mod overflow;
mod read_back;

use std::{
    collections::VecDeque,
    fmt, io,
    ops::Range,
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytesize::ByteSize;

use super::{
    config::{BufferSettings, WhenFull},
    figures::Figures,
    frame::{HEADER, Meta},
    home::Home,
    log::{AppendError, Log},
    owed::Owed,
    revive::Reviver,
    sync::{Syncer, Waiting},
    table::{Progress, Table},
};
use crate::{
    ledger::Reason,
    record::{Batch, Origin},
    sinks::{
        Delivery, Figure, Receipt, Sink, SinkError,
        config::QueueSettings,
        stats::Counters,
        worker::{Size, Worker},
    },
};

/// First and longest pause between two looks at a sink that has all that it may have, while more waits on disk.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// How often what is acknowledged is noted on disk.
const NOTES: Duration = Duration::from_millis(100);
/// What a sink that fails gets to come to its end: all that it has is on disk.
const FAILING_LIMIT: Duration = Duration::from_millis(500);
/// What the disk gets at least for the last of it.
const LAST_SYNC: Duration = Duration::from_millis(200);

/// A buffer on disk, and the sink behind it on a thread of its own.
pub struct Buffered {
    path: PathBuf,
    settings: BufferSettings,
    log: Log,
    syncer: Syncer,
    inner: Worker,
    table: Arc<Table>,
    home: Home,
    counters: Arc<Counters>,
    figures: Arc<Figures>,
    reviver: Reviver,
    /// Sequences that an earlier agent has left and that are in no account yet.
    unbooked: Range<u64>,
    frame: Vec<u8>,
    next_call: Option<Instant>,
    /// The last turn ended before the sink had all that it may have.
    more: bool,
    pause: Duration,
    seen: Progress,
    /// What came when the buffer was full, and is in its files still.
    owed: Owed,
    /// How large the buffer can be, as far as it is known: less than it may be where the disk had no more, until
    /// nothing is owed any more.
    room: u64,
    /// Why there was no room, the last time.
    why_full: String,
    /// What neither the sink nor the disk had taken when the buffer was closed.
    returned: VecDeque<Delivery>,
}

impl fmt::Debug for Buffered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffered").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Why a delivery could not be appended.
struct Refused {
    delivery: Delivery,
    error: SinkError,
}

impl Buffered {
    /// Opens the buffer of the sink of this name, and starts the sink that `build` makes behind it.
    ///
    /// # Errors
    /// The buffer can't be used; `ResourceBusy` while another one has it. What `build` says.
    pub(in crate::sinks) fn open(
        name: &str,
        settings: &BufferSettings,
        home: &Home,
        counters: &Arc<Counters>,
        build: impl FnOnce() -> Result<Box<dyn Sink>, SinkError>,
    ) -> Result<Self, SinkError> {
        let path = home.of_sink(name).ok_or_else(|| SinkError {
            action: format!("opening the buffer of sink `{name}`"),
            source: io::Error::new(io::ErrorKind::NotFound, "there is no state_dir"),
        })?;
        let log = Log::open(&path, settings.max_bytes.as_u64())?;
        let syncer = Syncer::start(settings.sync_interval)
            .map_err(|source| SinkError { action: "starting the thread that syncs the buffer".to_owned(), source })?;
        // It never has more than the table lets through.
        let unlimited =
            QueueSettings { max_bytes: ByteSize::b(u64::MAX), max_batches: usize::MAX, ..QueueSettings::default() };
        let inner = Worker::start(build()?, &unlimited)?;
        let unbooked = home.take_unbooked(&path).unwrap_or_else(|| log.inherited());
        if log.size() > 0 {
            tracing::info!(sink = name, buffer = %path.display(), bytes = log.size(), "what is in the buffer is delivered first");
        }
        let figures = Arc::new(Figures::new(settings.max_bytes.as_u64(), inner.counters()));
        let mut buffered = Self {
            path: path.clone(),
            settings: settings.clone(),
            log,
            syncer,
            inner,
            table: Arc::default(),
            home: home.clone(),
            counters: Arc::clone(counters),
            figures,
            reviver: Reviver::default(),
            unbooked,
            frame: Vec::new(),
            next_call: None,
            more: false,
            pause: LOOKS.0,
            seen: Progress::default(),
            owed: home.take_owed(&path),
            room: settings.max_bytes.as_u64(),
            why_full: String::new(),
            returned: VecDeque::new(),
        };
        buffered.publish();
        buffered.next_call = buffered.log.has_unread().then(Instant::now);
        Ok(buffered)
    }

    /// Whether the sink may have one more batch now.
    fn has_room(&self, size: Size) -> bool {
        self.table.has_room(self.settings.at_once(), size) && !self.inner.is_finished()
    }

    /// Hands a batch to the sink behind.
    fn send(&self, sequence: u64, batch: Arc<Batch>, receipt: Receipt, on_disk: bool) {
        self.table.insert(sequence, &batch, receipt, on_disk);
        let table = Arc::clone(&self.table);
        let receipt = Receipt::for_buffer(move |outcome| table.report(sequence, outcome));
        // Its queue has no limit: what it does not take, it has settled.
        drop(self.inner.try_offer(Delivery { batch, receipt }));
    }

    /// Takes a delivery: straight to the sink if it has room and nothing waits before it, else to the disk.
    fn put(&mut self, delivery: Delivery) -> Result<(), Box<Refused>> {
        if self.log.has_unread() || !self.has_room(Size::of(&delivery.batch)) {
            return self.store(delivery);
        }
        let sequence = self.log.take_sequence();
        self.send(sequence, delivery.batch, delivery.receipt, false);
        Ok(())
    }

    /// Puts a delivery on disk only, and lets go of it.
    fn store(&mut self, delivery: Delivery) -> Result<(), Box<Refused>> {
        let refused = |delivery, error| Err(Box::new(Refused { delivery, error }));
        // What comes before it in the log has to be there before it.
        if let Err(error) = self.spill(Duration::ZERO, false) {
            return refused(delivery, error);
        }
        let sequence = self.log.take_sequence();
        if let Err(error) = self.append(sequence, &delivery.batch, false) {
            return refused(delivery, self.full(error));
        }
        let Delivery { batch, mut receipt } = delivery;
        receipt.promise().secure();
        receipt.shelve();
        let waits = matches!(batch.stream.origin, Origin::File { .. });
        // Without it the receipt is let go of now, and says that the batch is kept.
        let waiting = waits.then(|| Waiting::Receipt(receipt));
        self.note_dirty(waiting);
        Ok(())
    }

    fn append(&mut self, sequence: u64, batch: &Batch, force: bool) -> Result<(), AppendError> {
        self.frame.clear();
        self.frame.resize(HEADER, 0);
        super::codec::encode(batch, &mut self.frame);
        let meta = Meta {
            sequence,
            records: u32::try_from(batch.lines.len()).unwrap_or(u32::MAX),
            cgroup: batch.stream.account.cgroup,
            span: batch.span(),
        };
        let appended = self.log.append(&mut self.frame, meta, force);
        if let Err(AppendError::Io(error)) = &appended
            && overflow::has_no_space(error)
        {
            self.room = self.room.min(self.log.size());
        }
        if self.frame.capacity() > 4 * 1024 * 1024 {
            self.frame = Vec::new();
        }
        appended
    }

    fn note_dirty(&self, waiting: Option<Waiting>) {
        if let Some(file) = self.log.newest() {
            self.syncer.note(file, self.log.directory(), waiting);
        }
    }

    /// Puts on disk what the sink has had for longer than `age`, and all that came after that.
    fn spill(&mut self, age: Duration, force: bool) -> Result<(), SinkError> {
        if !force && self.syncer.is_behind() {
            return Err(self
                .error("the disk does not keep up: batches wait to be synced", Some(io::ErrorKind::TimedOut.into())));
        }
        for late in self.table.unsecured(age) {
            let is_read = !self.log.has_unread();
            self.append(late.sequence, &late.batch, force).map_err(|error| self.full(error))?;
            if is_read {
                // Nobody reads it in this process: the sink has it.
                self.log.skip_to_end();
            }
            if self.table.note_on_disk(late.sequence) {
                late.promise.secure();
                self.note_dirty(Some(Waiting::Promise(late.promise)));
            } else {
                self.log.forget(late.batch.lines.len() as u64);
            }
        }
        Ok(())
    }

    /// Notes what is acknowledged, and deletes what is done with.
    fn retire(&mut self) -> Result<(), SinkError> {
        let progress = self.table.progress();
        self.log.forget(progress.records_on_disk - self.seen.records_on_disk);
        self.seen.records_on_disk = progress.records_on_disk;
        let table = &self.table;
        let retired = self.log.retire(table.oldest(), |sequences| table.has_on_disk(sequences));
        retired.map_err(|source| self.error("noting what is acknowledged", Some(source)))
    }

    /// All that is to be done besides taking deliveries.
    fn maintain(&mut self) -> Result<(), SinkError> {
        let retired = self.retire();
        let spilled = self.spill(self.settings.spill_after, false);
        if spilled.is_err() && self.settings.when_full != WhenFull::Block {
            // Who drops lines of its own rather than hold others holds no ring either.
            self.table.unsecured(self.settings.spill_after).iter().for_each(|late| late.promise.let_go());
        }
        let fed = self.feed();
        self.more = matches!(fed, Ok(true));
        let fed = fed.and_then(|_| self.go_back());
        if let Some(source) = self.syncer.take_error() {
            return Err(self.error("forcing to the disk", Some(source)));
        }
        retired.and(spilled).and(fed)
    }

    /// When to look again, and the figures.
    fn plan(&mut self) {
        let now = Instant::now();
        let settled = self.table.progress().settled;
        self.pause = if settled == self.seen.settled { (self.pause * 2).min(LOOKS.1) } else { LOOKS.0 };
        self.seen.settled = settled;
        let looks = [
            self.log.has_unread().then(|| if self.more { now } else { now + self.pause }),
            self.table.oldest_unsecured().map(|since| (since + self.settings.spill_after).max(now + LOOKS.0)),
            (self.log.size() > 0).then(|| now + NOTES),
            (!self.owed.is_empty()).then(|| now + self.pause),
        ];
        self.next_call = looks.into_iter().flatten().min();
        self.publish();
    }

    fn publish(&self) {
        let figures = &self.figures;
        let unread = if self.log.has_unread() { self.log.unread_bytes() } else { 0 };
        let read = self.table.on_disk(self.seen.records_on_disk);
        let unread_records = if unread > 0 { self.log.records().saturating_sub(read) } else { 0 };
        figures.unread_bytes.store(unread, Relaxed);
        figures.unread_records.store(unread_records, Relaxed);
        figures.bytes.store(self.log.size(), Relaxed);
        figures.records.store(self.log.records(), Relaxed);
        figures.damaged.store(self.log.damaged(), Relaxed);
        figures.in_files.store(self.owed.bytes(), Relaxed);
        figures.oldest.store(self.log.oldest().unwrap_or(0), Relaxed);
        self.counters.set_buffer(Some(&self.figures));
    }

    fn error(&self, text: &str, source: Option<io::Error>) -> SinkError {
        let source = source.unwrap_or_else(|| io::ErrorKind::StorageFull.into());
        SinkError { action: format!("buffer {}: {text}", self.path.display()), source }
    }

    /// Lets the sink come to its end; what it has meanwhile is put on disk when it is late.
    fn end_inner(&mut self, limit: Duration) {
        let failing = self.inner.stats().failing_for.is_some();
        let limit = if failing { limit.min(FAILING_LIMIT) } else { limit };
        let deadline = Instant::now() + limit;
        self.inner.begin_close(deadline, Reason::Shutdown);
        let look = self.settings.spill_after.min(LOOKS.1);
        while !self.inner.wait_finished(deadline.min(Instant::now() + look)) && Instant::now() < deadline {
            if let Err(error) = self.spill(self.settings.spill_after, true) {
                tracing::warn!(%error, "at the end");
            }
        }
        // What it has not taken comes back to the table.
        let _ = self.inner.finish_close();
    }
}

impl Sink for Buffered {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn write(&mut self, queue: &mut VecDeque<Delivery>) -> Result<(), SinkError> {
        let maintained = self.maintain();
        let accepted = self.accept(queue);
        self.plan();
        accepted.and(maintained).and_then(|()| self.check())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        // The sink behind flushes when its own queue is empty, and nobody waits for that.
        Ok(())
    }

    fn figures(&self) -> Vec<Figure> {
        self.inner.counters().figures()
    }

    fn next_call(&self) -> Option<Instant> {
        self.next_call
    }

    fn call(&mut self) -> Result<(), SinkError> {
        let maintained = self.maintain();
        self.plan();
        maintained.and_then(|()| self.check())
    }

    fn tick(&mut self) -> Result<(), SinkError> {
        self.call()?;
        if self.inner.is_finished() {
            return Err(self
                .error("the thread of the sink has ended; restart the agent", Some(io::ErrorKind::BrokenPipe.into())));
        }
        Ok(())
    }

    fn close(&mut self, limit: Duration) -> Result<(), SinkError> {
        let deadline = Instant::now() + limit;
        let reserve = (limit / 4).min(Duration::from_secs(1));
        self.end_inner(limit - reserve);
        let spilled = self.spill(Duration::ZERO, true);
        self.syncer.stop(deadline.saturating_duration_since(Instant::now()).max(LAST_SYNC));
        let retired = self.retire();
        self.publish();
        let left = self.unbooked.start.max(self.log.read_up_to())..self.unbooked.end;
        self.home.leave_unbooked(&self.path, left);
        self.home.leave_owed(&self.path, std::mem::take(&mut self.owed));
        self.returned = self.table.clear();
        if self.log.size() > 0 {
            tracing::info!(
                buffer = %self.path.display(), bytes = self.log.size(), records = self.log.records(),
                "left in the buffer for the next agent"
            );
        }
        if !self.returned.is_empty() {
            tracing::error!(
                buffer = %self.path.display(), batches = self.returned.len(),
                "the buffer could not take what the sink has not acknowledged"
            );
        }
        spilled.and(retired)
    }

    fn give_back(&mut self) -> VecDeque<Delivery> {
        std::mem::take(&mut self.returned)
    }
}
