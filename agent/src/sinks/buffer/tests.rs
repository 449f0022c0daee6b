//! Tests of the buffer before a sink whose every move the test decides.

use std::{
    collections::VecDeque,
    fs,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use tempfile::TempDir;

use super::*;
use crate::{
    ledger::{Account, Ledger, Reason},
    record::{Class, IoStream, Origin, Resource, Stream},
    sinks::{
        Delivery, Hold, Outcome, Receipt, Settlement, Sink, SinkError, SinkStats,
        config::QueueSettings,
        handover::Seat,
        testing::{LONG, Script, all_settled, batch, next_settled},
        worker::Worker,
    },
};

/// An agent with one sink behind a buffer.
struct Node {
    home: Home,
    ledger: Arc<Ledger>,
    settled: Receiver<Settlement>,
    script: Script,
    worker: Worker,
    stream: Arc<Stream>,
}

fn settings() -> BufferSettings {
    BufferSettings {
        max_bytes: ByteSize::mib(8),
        max_unacknowledged: ByteSize::kib(64),
        spill_after: Duration::from_millis(20),
        sync_interval: Duration::from_millis(10),
        ..BufferSettings::default()
    }
}

fn stream(ledger: &Ledger, origin: Origin) -> Arc<Stream> {
    let resource = Arc::new(Resource { container_id: Some("c0ffee".into()), ..Resource::default() });
    let account = ledger.open(42, &resource);
    Arc::new(Stream { key: "c0ffee/stdout".into(), class: Class::Pod, origin, resource, account, source: None })
}

impl Node {
    fn start(state_dir: &Path, settings: &BufferSettings, prepare: impl FnOnce(&Script)) -> Result<Self, SinkError> {
        let (sender, settled) = mpsc::channel();
        let ledger = Arc::new(Ledger::default());
        let home = Home::new(state_dir, Arc::clone(&ledger), sender);
        let script = Script::default();
        prepare(&script);
        let worker = Worker::idle("scripted");
        let sink = Buffered::open("scripted", settings, &home, worker.counters(), || Ok(script.sink()))?;
        Seat::new(&worker)?.take(Box::new(sink), &QueueSettings::default());
        let stream = stream(&ledger, Origin::Stdio(IoStream::Stdout));
        Ok(Self { home, ledger, settled, script, worker, stream })
    }

    /// Delivers one line of 1000 bytes at each of these positions.
    fn deliver(&self, positions: Range<u64>, hold: Option<&Hold>) {
        for position in positions {
            self.deliver_to(&self.stream, position, hold);
        }
    }

    fn deliver_to(&self, stream: &Arc<Stream>, position: u64, hold: Option<&Hold>) {
        let batch = Arc::new(batch(stream, position, &[&[b'x'; 999]]));
        stream.account.produce(batch.span());
        let mut receipt = Receipt::for_sinks(&batch, 1, self.home.settled(), hold).remove(0);
        receipt.count_for(self.worker.counters(), &batch);
        self.worker.offer(Delivery { batch, receipt });
    }

    fn buffer(&self) -> BufferStats {
        self.stats().buffer.expect("it has a buffer")
    }

    fn stats(&self) -> SinkStats {
        self.worker.stats()
    }

    /// Books what is settled, until `done`.
    fn settle_until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + LONG;
        while !done(self) {
            assert!(Instant::now() < end, "waited in vain: {what}: {:?}", self.stats());
            match self.settled.recv_timeout(Duration::from_millis(10)) {
                Ok(Settlement::Settled(settled)) => crate::pipeline::settle::book(&settled),
                Ok(Settlement::Stored(_)) | Err(_) => {}
            }
        }
    }

    fn account(&self) -> Arc<Account> {
        self.ledger.account(42).expect("an account")
    }

    fn positions(&self) -> Vec<u64> {
        self.script.with(|state| state.positions.clone())
    }

    fn close(self) -> (Vec<u64>, Receiver<Settlement>) {
        self.worker.begin_close(Instant::now() + Duration::from_secs(3), Reason::Shutdown);
        let left = self.worker.finish_close();
        assert!(left.finished && left.batches == 0, "{left:?}");
        (self.script.with(|state| state.positions.clone()), self.settled)
    }
}

fn segments(state_dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(state_dir.join("buffers/scripted")).expect("readable");
    entries.map(|entry| entry.expect("an entry").path()).filter(|path| segment::first_of(path).is_some()).collect()
}

/// What a process that is killed now leaves behind.
fn killed(state_dir: &Path) -> TempDir {
    let copy = TempDir::new().expect("a directory");
    let target = copy.path().join("buffers/scripted");
    fs::create_dir_all(&target).expect("made");
    for entry in fs::read_dir(state_dir.join("buffers/scripted")).expect("readable") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, target.join(path.file_name().expect("a name"))).expect("copied");
    }
    copy
}

fn blocked(script: &Script) {
    script.with(|state| state.blocked = true);
}

#[test]
fn a_sink_that_keeps_up_costs_no_write() {
    let directory = TempDir::new().expect("a directory");
    let settings = BufferSettings { spill_after: Duration::from_secs(60), ..settings() };
    let node = Node::start(directory.path(), &settings, |_| {}).expect("starts");
    for position in 0..200 {
        node.deliver(position..position + 1, None);
        let settled = next_settled(&node.settled);
        assert_eq!((settled.start, settled.lost, settled.kept), (position, None, false));
    }
    assert_eq!(node.buffer().bytes, 0);
    assert_eq!(node.stats().delivered_records, 200);
    assert!(segments(directory.path()).is_empty());
    assert_eq!(node.close().0, (0..200).collect::<Vec<_>>());
}

#[test]
fn what_a_sink_has_had_for_long_lets_go_of_the_ring_and_is_settled_once() {
    let directory = TempDir::new().expect("a directory");
    let node = Node::start(directory.path(), &settings(), blocked).expect("starts");
    let hold: Hold = Arc::new(());
    node.deliver(0..5, Some(&hold));
    node.settle_until("the ring's release", |node| Arc::strong_count(&hold) == 1 && node.buffer().records == 5);
    assert_eq!(node.account().balance().pending, 5000);
    node.script.with(|state| state.blocked = false);
    node.settle_until("an empty buffer", |node| node.account().balance().pending == 0 && node.buffer().bytes == 0);
    assert_eq!(node.account().balance().delivered, 5000);
    assert_eq!(node.positions(), [0, 1, 2, 3, 4]);
    assert!(segments(directory.path()).is_empty());
}

#[test]
fn a_frozen_sink_holds_nobody_and_gets_everything_in_order() {
    let directory = TempDir::new().expect("a directory");
    let node = Node::start(directory.path(), &settings(), blocked).expect("starts");
    let hold: Hold = Arc::new(());
    node.deliver(0..1000, Some(&hold));
    node.settle_until("everything on disk", |node| node.stats().queued_batches == 0 && node.buffer().records == 1000);
    assert_eq!(Arc::strong_count(&hold), 1);
    assert_eq!(node.account().balance().pending, 1_000_000);
    // What is killed now is not lost.
    let copy = killed(directory.path());
    let next = Node::start(copy.path(), &settings(), |_| {}).expect("starts");
    next.deliver(1000..1010, None);
    next.settle_until("all of it", |node| node.account().balance().delivered == 1_010_000);
    assert_eq!(next.positions(), (0..1010).collect::<Vec<_>>());
    let balance = next.account().balance();
    assert_eq!((balance.pending, balance.produced, balance.difference()), (0, 1_010_000, 0));
    next.settle_until("an empty buffer", |node| node.buffer().bytes == 0 && node.stats().behind_records == 0);
    assert_eq!(next.stats().delivered_records, 1010);
    // The sink thaws.
    node.script.with(|state| state.blocked = false);
    node.deliver(1000..1010, None);
    node.settle_until("all of it", |node| node.account().balance().pending == 0);
    assert_eq!(node.positions(), (0..1010).collect::<Vec<_>>());
    assert_eq!(node.account().balance().delivered, 1_010_000);
    assert_eq!(node.stats().delivered_records, 1010);
    drop((node.close(), next.close()));
}

#[test]
fn what_is_left_at_the_end_is_kept_and_delivered_by_the_next_agent() {
    let directory = TempDir::new().expect("a directory");
    let node =
        Node::start(directory.path(), &settings(), |script| script.with(|state| state.failing = true)).expect("starts");
    node.deliver(0..100, None);
    node.settle_until("a look at the sink", |node| node.stats().failing_for.is_some());
    assert!(node.stats().last_error.is_some_and(|error| error.starts_with("writing: ")));
    let account = node.account();
    let (positions, settled) = node.close();
    assert!(positions.is_empty());
    let settled = all_settled(&settled);
    assert!(settled.iter().all(|settled| settled.kept && settled.lost.is_none()));
    assert_eq!(account.balance().pending, 100_000);
    let next = Node::start(directory.path(), &settings(), |_| {}).expect("starts");
    next.settle_until("all of it", |node| node.account().balance().delivered == 100_000);
    assert_eq!(next.close().0, (0..100).collect::<Vec<_>>());
    let third = Node::start(directory.path(), &settings(), |_| {}).expect("starts");
    assert!(third.close().0.is_empty(), "nothing comes twice");
}

#[test]
fn a_file_moves_on_when_its_lines_are_synced() {
    let directory = TempDir::new().expect("a directory");
    let node = Node::start(directory.path(), &settings(), blocked).expect("starts");
    let file = stream(&node.ledger, Origin::File { path: "/var/log/a".into() });
    (0..200).for_each(|position| node.deliver_to(&file, position, None));
    let mut stored = 0;
    while stored < 200 {
        if let Settlement::Stored(span) = node.settled.recv_timeout(LONG).expect("stored") {
            assert_eq!((span.start, span.end), (stored, stored + 1000));
            stored += 1;
        }
    }
    node.script.with(|state| state.blocked = false);
    drop(node.close());
}

/// A buffer of 1 MiB before a sink that takes nothing, and 3000 lines, which are more.
fn overfull(when_full: WhenFull) -> (TempDir, Node) {
    let directory = TempDir::new().expect("a directory");
    let settings = BufferSettings { max_bytes: ByteSize::mib(1), when_full, ..settings() };
    let node = Node::start(directory.path(), &settings, blocked).expect("starts");
    node.deliver(0..3000, None);
    (directory, node)
}

#[test]
fn a_full_buffer_drops_the_newest_where_the_rule_says_so() {
    let (_directory, node) = overfull(WhenFull::DropNewest);
    node.settle_until("an end of the queue", |node| node.stats().queued_batches == 0);
    assert!(node.stats().last_error.is_some_and(|error| error.contains("buffer.max_bytes")));
    node.script.with(|state| state.blocked = false);
    node.settle_until("all of it", |node| node.account().balance().pending == 0);
    let positions = node.positions();
    let count = positions.len() as u64;
    assert!((600..1100).contains(&count), "{count}");
    assert_eq!(positions, (0..count).collect::<Vec<_>>());
    let balance = node.account().balance();
    assert_eq!(balance.dropped, [(crate::ledger::Stage::Sink, Reason::BufferFull, (3000 - count) * 1000)]);
    assert_eq!((balance.delivered, balance.difference()), (count * 1000, 0));
    assert_eq!(node.stats().dropped_records(), 3000 - count);
}

#[test]
fn a_full_buffer_drops_the_oldest_where_the_rule_says_so() {
    let (directory, node) = overfull(WhenFull::DropOldest);
    node.settle_until("an end of the queue", |node| node.stats().queued_batches == 0);
    let size: u64 = segments(directory.path()).iter().map(|path| fs::metadata(path).expect("there").len()).sum();
    assert!(size <= 1 << 20, "{size}");
    node.script.with(|state| state.blocked = false);
    node.settle_until("all of it", |node| node.account().balance().pending == 0);
    let positions = node.positions();
    assert!(positions.is_sorted());
    assert_eq!(positions.last(), Some(&2999));
    let count = positions.len() as u64;
    assert!((600..1100).contains(&count), "{count}");
    let balance = node.account().balance();
    assert_eq!((balance.dropped_total(), balance.delivered), ((3000 - count) * 1000, count * 1000));
    assert_eq!(node.stats().dropped_records(), 3000 - count);
}

#[test]
fn a_full_buffer_waits_where_the_rule_says_so() {
    let (_directory, node) = overfull(WhenFull::Block);
    node.settle_until("a full buffer", |node| node.stats().last_error.is_some_and(|error| error.contains("max_bytes")));
    assert!(node.stats().queued_batches > 1000);
    assert!(node.stats().failing_for.is_some());
    node.script.with(|state| state.blocked = false);
    node.settle_until("all of it", |node| node.account().balance().pending == 0);
    assert_eq!(node.positions(), (0..3000).collect::<Vec<_>>());
    assert_eq!(node.account().balance().dropped_total(), 0);
    node.settle_until("a working sink", |node| node.stats().failing_for.is_none());
}

/// The stream of a log file of 3000 lines of 1000 bytes.
fn log_file(node: &Node, directory: &Path, name: &str) -> Arc<Stream> {
    let path = directory.join(name);
    let line = [&[b'x'; 999][..], b"\n"].concat();
    fs::write(&path, line.repeat(3000)).expect("a log");
    let lines = crate::assemble::Settings::default().compile().expect("compiles");
    let file = Some(Arc::new(fs::File::open(&path).expect("opens")));
    let source = Some(Arc::new(crate::files::Source::new(file, &lines)));
    let origin = Origin::File { path: format!("/{name}").into() };
    let Stream { class, resource, account, .. } = Arc::into_inner(stream(&node.ledger, origin.clone())).expect("one");
    Arc::new(Stream { key: format!("c0ffee/{name}").into(), class, origin, resource, account, source })
}

#[test]
fn files_that_wait_leave_room_for_pipes() {
    let directory = TempDir::new().expect("a directory");
    let settings = BufferSettings { max_bytes: ByteSize::mib(1), ..settings() };
    let node = Node::start(directory.path(), &settings, blocked).expect("starts");
    let [first, second] = ["first.log", "second.log"].map(|name| log_file(&node, directory.path(), name));
    (0..3000).for_each(|line| node.deliver_to(&first, line * 1000, None));
    node.settle_until("lines left in the file", |node| node.buffer().in_files > 1_500_000);
    // The sink takes half of what the buffer has, and no more.
    node.script.with(|state| (state.blocked, state.blocked_after) = (false, Some(500)));
    node.script.wait("a sink that is blocked again", |state| state.stuck && state.positions.len() >= 500);
    (0..1000).for_each(|line| node.deliver_to(&second, line * 1000, None));
    node.deliver(0..150, None);
    node.settle_until("an end of the queue", |node| node.stats().queued_batches == 0);
    assert_eq!(node.account().balance().dropped_total(), 0);
    node.script.with(|state| state.blocked = false);
    node.settle_until("all of it", |node| node.account().balance().pending == 0);
    assert_eq!(node.account().balance().dropped_total(), 0);
    assert_eq!(node.positions().len(), 3000 + 1000 + 150);
}

#[test]
fn a_full_buffer_leaves_files_where_they_are_and_goes_back_for_them() {
    for when_full in [WhenFull::DropNewest, WhenFull::Block] {
        let directory = TempDir::new().expect("a directory");
        let settings = BufferSettings { max_bytes: ByteSize::mib(1), when_full, ..settings() };
        let node = Node::start(directory.path(), &settings, blocked).expect("starts");
        let stream = log_file(&node, directory.path(), "app.log");
        let positions = || (0..3000).map(|line| line * 1000);
        positions().for_each(|position| node.deliver_to(&stream, position, None));
        node.settle_until("an end of the queue", |node| node.stats().queued_batches == 0);
        node.settle_until("lines left in the file", |node| {
            let tells = node.stats().last_error.is_some_and(|error| error.contains("stay in their files"));
            tells && node.buffer().in_files > 1_500_000
        });
        // What is left there goes over to the next sink of that name.
        let seat = Seat::new(&node.worker).expect("a thread");
        node.worker.release(Instant::now() + LONG);
        assert!(node.worker.wait_released(Instant::now() + LONG));
        node.script.with(|state| state.blocked = false);
        let build = || Ok(node.script.sink());
        let next = Buffered::open("scripted", &settings, &node.home, node.worker.counters(), build).expect("opens");
        seat.take(Box::new(next), &QueueSettings::default());
        node.settle_until("all of it", |node| node.account().balance().pending == 0);
        assert_eq!(node.account().balance().dropped_total(), 0);
        // The sink before was stuck with some, and takes them now as well.
        let mut seen = std::collections::HashSet::new();
        let first = node.positions().into_iter().filter(|position| seen.insert(*position));
        assert!(first.eq(positions()), "all of them, in order");
        assert_eq!(node.buffer().in_files, 0);
    }
}

#[test]
fn what_neither_the_sink_nor_the_disk_has_goes_back_to_the_queue() {
    let directory = TempDir::new().expect("a directory");
    let settings = BufferSettings { max_bytes: ByteSize::mib(1), when_full: WhenFull::Block, ..settings() };
    let node = Node::start(directory.path(), &settings, blocked).expect("starts");
    // No file can be made there any more.
    let buffer = directory.path().join("buffers/scripted");
    fs::rename(&buffer, directory.path().join("away")).expect("renamed");
    let hold: Hold = Arc::new(());
    node.deliver(0..20, Some(&hold));
    node.script.wait("a sink that has something", |state| state.stuck);
    node.worker.release(Instant::now() + Duration::from_millis(50));
    node.worker.wait_released(Instant::now() + LONG);
    assert_eq!(node.stats().queued_batches, 20);
    assert_eq!(Arc::strong_count(&hold), 21);
    node.worker.begin_close(Instant::now(), Reason::SinkRemoved);
    let _ = node.worker.finish_close();
    assert_eq!(Arc::strong_count(&hold), 1, "the ring goes on");
    node.script.with(|state| state.blocked = false);
}

/// A sink that keeps all that it gets, for the test to settle.
struct Keeper(Arc<std::sync::Mutex<VecDeque<Delivery>>>);

impl Sink for Keeper {
    fn name(&self) -> &str {
        "scripted"
    }

    fn write(&mut self, queue: &mut VecDeque<Delivery>) -> Result<(), SinkError> {
        self.0.lock().expect("not poisoned").append(queue);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

#[test]
fn what_is_in_memory_while_others_are_acknowledged_is_read_back_too() {
    let directory = TempDir::new().expect("a directory");
    let settings = BufferSettings { spill_after: Duration::from_millis(300), ..settings() };
    let mut node = Node::start(directory.path(), &settings, |_| {}).expect("starts");
    let kept = Arc::default();
    node.worker = Worker::idle("other");
    let other = directory.path().join("other");
    node.home = Home::new(&other, Arc::clone(&node.ledger), node.home.settled().clone());
    let build = || Ok(Box::new(Keeper(Arc::clone(&kept))) as Box<dyn Sink>);
    let sink = Buffered::open("scripted", &settings, &node.home, node.worker.counters(), build).expect("opens");
    Seat::new(&node.worker).expect("a thread").take(Box::new(sink), &QueueSettings::default());
    let take = || kept.lock().expect("not poisoned").pop_front();
    node.deliver(0..1, None);
    node.settle_until("the first on disk", |node| node.buffer().records == 1);
    let first = take().expect("the sink has it");
    node.deliver(1..2, None);
    node.settle_until("the second with the sink", |_| !kept.lock().expect("not poisoned").is_empty());
    first.receipt.settle(Outcome::Delivered);
    node.settle_until("an empty buffer", |node| node.buffer().bytes == 0);
    node.settle_until("the second on disk", |node| node.buffer().records == 1);
    let copy = killed(&other);
    let next = Node::start(copy.path(), &settings, |_| {}).expect("starts");
    next.settle_until("the second", |node| node.positions() == [1]);
    drop(take());
}

#[test]
fn a_damaged_record_is_booked_and_costs_no_other() {
    let directory = TempDir::new().expect("a directory");
    let node = Node::start(directory.path(), &settings(), blocked).expect("starts");
    node.deliver(0..10, None);
    node.settle_until("everything on disk", |node| node.buffer().records == 10);
    let copy = killed(directory.path());
    let path = segments(copy.path()).pop().expect("one");
    let mut bytes = fs::read(&path).expect("readable");
    let at = bytes.len() - 10;
    bytes[at] ^= 4;
    fs::write(&path, bytes).expect("written");
    let next = Node::start(copy.path(), &settings(), |_| {}).expect("starts");
    next.settle_until("all others", |node| node.account().balance().delivered == 9000);
    next.settle_until("an empty buffer", |node| node.buffer().bytes == 0);
    let balance = next.account().balance();
    assert_eq!(balance.dropped, [(crate::ledger::Stage::Sink, Reason::Damaged, 1000)]);
    assert_eq!((balance.pending, balance.difference()), (0, 0));
    assert_eq!((next.buffer().damaged, next.stats().dropped_records()), (1, 1));
    node.script.with(|state| state.blocked = false);
}

#[test]
fn a_damaged_batch_gives_its_other_lines() {
    let directory = TempDir::new().expect("a directory");
    let node = Node::start(directory.path(), &settings(), blocked).expect("starts");
    let lines = Arc::new(batch(&node.stream, 0, &[&[b'a'; 99], &[b'b'; 199], &[b'c'; 299]]));
    node.stream.account.produce(lines.span());
    let receipt = Receipt::for_sinks(&lines, 1, node.home.settled(), None).remove(0);
    node.worker.offer(Delivery { batch: lines, receipt });
    node.settle_until("everything on disk", |node| node.buffer().records == 3);
    let copy = killed(directory.path());
    let path = segments(copy.path()).pop().expect("one");
    let mut bytes = fs::read(&path).expect("readable");
    let at = bytes.len() - 310;
    assert_eq!(bytes[at], b'b');
    bytes[at] ^= 4;
    fs::write(&path, bytes).expect("written");
    let next = Node::start(copy.path(), &settings(), |_| {}).expect("starts");
    next.settle_until("an empty buffer", |node| node.account().balance().delivered == 400 && node.buffer().bytes == 0);
    assert_eq!(next.account().balance().dropped, [(crate::ledger::Stage::Sink, Reason::Damaged, 200)]);
    let balance = next.account().balance();
    assert_eq!((balance.produced, balance.pending, balance.difference()), (600, 0, 0));
    assert_eq!((next.buffer().damaged, next.stats().dropped_records(), next.stats().delivered_records), (1, 1, 2));
    node.script.with(|state| state.blocked = false);
}

#[test]
fn a_buffer_that_is_gone_is_booked_on_the_node() {
    let directory = TempDir::new().expect("a directory");
    let node = Node::start(directory.path(), &settings(), blocked).expect("starts");
    node.deliver(0..10, None);
    node.settle_until("everything on disk", |node| node.buffer().records == 10);
    // What is appended is noted at the next look.
    node.settle_until("a mark", |_| {
        let mark = mark::MarkFile::open(&directory.path().join("buffers/scripted")).expect("a mark").1;
        mark.is_ok_and(|mark| mark.is_some_and(|mark| mark.tail.records == 10))
    });
    let copy = killed(directory.path());
    segments(copy.path()).iter().for_each(|path| fs::remove_file(path).expect("deleted"));
    for dropped in [10, 0] {
        let next = Node::start(copy.path(), &settings(), |_| {}).expect("starts");
        next.deliver(10..11, None);
        next.settle_until("a new line", |node| node.account().balance().delivered == 1000);
        let lost = next.ledger.account(0).map_or(0, |node| {
            assert_eq!(node.balance().difference(), 0);
            node.balance().dropped_total()
        });
        assert_eq!((next.stats().dropped_records(), lost), (dropped, dropped * 1000));
        drop(next.close());
    }
    node.script.with(|state| state.blocked = false);
}

#[test]
fn two_agents_on_one_directory_are_told() {
    let directory = TempDir::new().expect("a directory");
    let node = Node::start(directory.path(), &settings(), |_| {}).expect("starts");
    let error = Node::start(directory.path(), &settings(), |_| {}).err().expect("locked").to_string();
    assert!(error.contains("another agent") && error.contains("buffers/scripted"), "{error}");
    drop(node.close());
    Node::start(directory.path(), &settings(), |_| {}).expect("it is free");
}

#[test]
fn a_sink_that_is_replaced_hands_its_buffer_over() {
    use crate::sinks::{SinkSettings, Sinks, kafka};

    let directory = TempDir::new().expect("a directory");
    let (sender, settled) = mpsc::channel();
    let ledger = Arc::new(Ledger::default());
    let kafka = |linger| {
        // Nobody answers there.
        let brokers = vec!["127.0.0.1:1".to_owned()];
        let linger = Duration::from_millis(linger);
        [SinkSettings::Kafka(kafka::Settings { brokers, linger, buffer: settings(), ..Default::default() })]
    };
    let home = Home::new(directory.path(), Arc::clone(&ledger), sender);
    let sinks = Arc::new(Sinks::start(&kafka(5), home).expect("starts"));
    let stream = stream(&ledger, Origin::Stdio(IoStream::Stdout));
    for position in 0..50 {
        let batch = Arc::new(batch(&stream, position, &[b"0123456789"]));
        stream.account.produce(batch.span());
        sinks.deliver(&batch, None);
    }
    let buffered = |sinks: &Sinks| sinks.stats()[0].buffer.map_or(0, |buffer| buffer.records);
    let wait = |sinks: &Sinks, what: &str, done: &dyn Fn(&Sinks) -> bool| {
        let end = Instant::now() + LONG;
        while !done(sinks) {
            assert!(Instant::now() < end, "waited in vain: {what}: {:?}", sinks.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait(&sinks, "everything on disk", &|sinks| buffered(sinks) == 50);
    let (new, removed) = sinks.replace(&kafka(6), Instant::now() + Duration::from_secs(5)).expect("replaced");
    assert!(removed.close(&sinks, LONG).is_empty());
    wait(&new, "the same in the new one", &|new| buffered(new) == 50 && new.stats()[0].behind_records == 50);
    let balance = stream.account.balance();
    assert_eq!((balance.produced, balance.pending), (550, 550), "nothing is booked again");
    // A name of its own is another buffer.
    let [SinkSettings::Kafka(renamed)] = kafka(6) else { panic!("a Kafka sink") };
    let renamed = [SinkSettings::Kafka(kafka::Settings { name: "other".to_owned(), ..renamed })];
    let new = Arc::new(new);
    let (other, removed) = new.replace(&renamed, Instant::now() + Duration::from_secs(5)).expect("replaced");
    assert_eq!(removed.close(&new, Duration::from_secs(2))[0].1.batches, 0);
    assert_eq!(buffered(&other), 0);
    assert!(directory.path().join("buffers/kafka").read_dir().expect("kept").count() >= 2);
    drop(other.close(Duration::from_secs(2)));
    assert!(all_settled(&settled).iter().all(|settled| settled.kept && settled.lost.is_none()));
}
