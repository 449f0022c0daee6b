//! Producer, ring, streams, rounds, journal and sinks, with an agent that is killed at any step.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::prelude::*;
use sidestep_abi::{
    event,
    stdio::{DROP_REASONS, DROP_RING_FULL, STDOUT},
};

use super::*;
use crate::{
    assemble::{Assembler, Compiled, Language, Multiline, Settings},
    attribute::Identity,
    clock,
    config::Lines,
    decode::{Event, decode},
    drain::ring::{Ring, tests::Model},
    ledger::{Account, Reason, Stage},
    pipeline::{
        container::Profile,
        journal::Journal,
        rounds::{Place, Rounds},
    },
    policy::Effective,
    record::{Class, IoStream, LineFlags, Metadata, Origin, Resource, Stream},
};

const CGROUP: u64 = 7;
const STREAMS: u64 = 3;
/// Nanoseconds since the Unix epoch; the kernel's clock is the same one here.
const START: u64 = 1_000_000_000;

/// The kernel's map of streams.
#[derive(Default)]
struct Map(BTreeMap<u64, Stdio>);

impl Counts for Map {
    fn stdio(&self, key: &InodeKey) -> Option<Stdio> {
        self.0.get(&key.ino).copied()
    }
}

fn id(ino: u64) -> StreamId {
    StreamId { ino, dev: 1, registered: 100 + ino }
}

/// A record as the kernel programs write it.
fn record(ino: u64, position: u64, time: u64, bytes: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    record.extend(event::STDIO_DATA.to_ne_bytes());
    record.extend(0u16.to_ne_bytes());
    record.extend((bytes.len() as u32).to_ne_bytes());
    record.extend(time.to_ne_bytes());
    record.extend(CGROUP.to_ne_bytes());
    record.extend([0; 8]);
    record.extend(ino.to_ne_bytes());
    record.extend(1u32.to_ne_bytes());
    record.extend(STDOUT.to_ne_bytes());
    record.extend(position.to_ne_bytes());
    record.extend(id(ino).registered.to_ne_bytes());
    record.extend(bytes);
    record
}

/// What identifies a record, and what it says.
type Key = (Arc<str>, u64);
type Said = (Vec<u8>, u64, LineFlags);

type Queue = Arc<Mutex<VecDeque<(Arc<Batch>, Option<Hold>)>>>;

/// What one agent has in memory.
struct Agent {
    ring: Ring<Model>,
    streams: Streams,
    rounds: Rounds,
    container: Arc<Container>,
    account: Arc<Account>,
    /// Batches that no sink has made safe.
    queue: Queue,
    delivered: u64,
}

impl Agent {
    fn start(memory: Model, directory: &Path) -> Self {
        let (journal, restored) = Journal::open(directory, "boot");
        let queue = Queue::default();
        let to = Arc::clone(&queue);
        let deliver: Deliver =
            Box::new(move |batch, hold| to.lock().expect("no panic").push_back((batch, hold.cloned())));
        let mut streams = Streams::new(deliver, 0);
        let container = Container::new(CGROUP);
        for (id, saved) in restored.state.streams {
            streams.restore(id, &container, saved);
        }
        let rounds = Rounds::new(Some(journal));
        streams.begin_round(rounds.hold());
        let account = Arc::new(Account::default());
        Self { ring: Ring::new(memory), streams, rounds, container, account, queue, delivered: 0 }
    }

    fn settle(&self, lines: &Lines) {
        let resource = Arc::new(Resource { container_id: Some("c0ffee".into()), ..Resource::default() });
        let identity = Arc::new(Identity { resource, ..Identity::default() });
        let account = Arc::clone(&self.account);
        self.container.settle(settled(identity, account, lines.clone()));
    }

    /// Reads at most `records`; whether the ring was empty then.
    fn read(&mut self, records: usize, map: &Map) -> bool {
        for _ in 0..records {
            let Some(record) = self.ring.read().expect("intact") else { return true };
            let Ok(Event::Stdio(event, bytes)) = decode(record) else { panic!("a piece") };
            let id = StreamId::of(&event);
            self.streams.open(id, &self.container, event.header.cgroup, event.iostream, map);
            let written =
                Written { position: event.position, time_unix_nano: event.header.time, bytes, unwanted: false };
            assert_eq!(self.streams.take(id, written), Taken::Yes);
        }
        self.ring.waiting() == 0
    }

    fn end_round(&mut self) {
        if self.rounds.may_end() {
            let effects = self.streams.effects();
            let end = vec![Place { ring: 0, position: self.ring.position() }];
            if self.rounds.has_moved(&end) || !effects.is_empty() {
                self.rounds.end(end, effects);
                self.streams.begin_round(self.rounds.hold());
            }
        }
    }

    /// A sink makes the oldest batches safe.
    fn secure(&mut self, batches: usize, secured: &mut BTreeMap<Key, Said>) {
        for _ in 0..batches {
            let Some((batch, _hold)) = self.queue.lock().expect("no panic").pop_front() else { return };
            self.delivered += batch.span();
            for line in &batch.lines {
                let said = (batch.body(line).to_vec(), line.span, line.flags);
                let before = secured.insert((Arc::clone(&batch.stream.key), line.position), said.clone());
                assert!(before.is_none_or(|before| before == said), "a repeat says the same");
            }
        }
    }
}

/// What one step of a round is.
#[derive(Clone, Debug)]
enum Act {
    Write(u64, &'static str),
    /// Nothing happens for a while.
    Pass(u64),
    /// The container's identity is found.
    Settle,
    Read(usize),
    EndRound,
    Tick,
    Secure(usize),
    /// The journal is written, and the ring lets go; or the agent is killed in between.
    Release(bool),
    Kill,
}

fn act() -> impl Strategy<Value = Act> {
    let text = prop::sample::select(vec![
        "one\n",
        "two three\nfour\n",
        "part",
        " of a line",
        "end\n",
        "\n",
        "java.lang.Error: bad\n",
        "\tat a.b.C.d(C.java:1)\n",
        "\tat a.b",
        "a line that is longer than what one line may have, so that it is cut\n",
    ]);
    prop_oneof![
        12 => (0..STREAMS, text).prop_map(|(stream, text)| Act::Write(stream, text)),
        3 => prop::sample::select(vec![1_000_000, 600_000_000, 1_500_000_000, 7_000_000_000]).prop_map(Act::Pass),
        2 => Just(Act::Settle),
        6 => (1..6usize).prop_map(Act::Read),
        6 => Just(Act::EndRound),
        2 => Just(Act::Tick),
        5 => (1..4usize).prop_map(Act::Secure),
        5 => prop::bool::weighted(0.2).prop_map(Act::Release),
        2 => Just(Act::Kill),
    ]
}

fn lines(multiline: bool) -> Lines {
    let rules = if multiline { vec![Language::Java] } else { Vec::new() };
    let multiline = Multiline { rules, ..Multiline::default() };
    let settings = Settings { max_line_bytes: bytesize::ByteSize::b(64), multiline, ..Settings::default() };
    Lines::new(settings).expect("valid")
}

/// What the kernel did with one write.
struct Truth {
    position: u64,
    time: u64,
    bytes: &'static str,
    lost: bool,
}

/// The lines of one stream, cut by an assembler that nothing happens to.
fn expected(truth: &[Truth], settings: &Arc<Compiled>) -> BTreeMap<u64, Said> {
    let mut assembler = Assembler::new(settings);
    for write in truth {
        let length = write.bytes.len() as u64;
        if write.lost {
            assembler.gap(write.position, length);
            continue;
        }
        if assembler.next_deadline().is_some_and(|deadline| deadline <= write.time) {
            assembler.idle(write.time);
        }
        assembler.push(write.time, write.time, write.position, write.bytes.as_bytes());
    }
    assembler.finish();
    let stream = Arc::new(Stream {
        key: "s".into(),
        class: Class::Pod,
        origin: Origin::Stdio(IoStream::Stdout),
        resource: Arc::default(),
        account: Arc::default(),
        source: None,
    });
    let Some(batch) = assembler.take_batch(&stream) else { return BTreeMap::new() };
    batch.lines.iter().map(|line| (line.position, (batch.body(line).to_vec(), line.span, line.flags))).collect()
}

fn run(acts: Vec<Act>, multiline: bool, ring_size: usize) {
    let directory = tempfile::tempdir().expect("directory");
    let lines = lines(multiline);
    let mut map = Map::default();
    for ino in 0..STREAMS {
        let (registered, dropped) = (id(ino).registered, [0; DROP_REASONS]);
        map.0.insert(ino, Stdio { cgroup: CGROUP, registered, written: 0, dropped, iostream: STDOUT, _pad: 0 });
    }
    let mut truth: BTreeMap<u64, Vec<Truth>> = BTreeMap::new();
    let mut secured = BTreeMap::new();
    let mut agent = Agent::start(Model::new(ring_size), directory.path());
    let (base, mut time, mut taken) = (Instant::now(), START, START);
    let later = |time: u64| base + Duration::from_nanos(time - START);
    for act in acts {
        time += 1_000;
        match act {
            Act::Write(ino, text) => {
                let stream = map.0.get_mut(&ino).expect("registered");
                let position = stream.written;
                stream.written += text.len() as u64;
                let bytes = record(ino, position, time, text.as_bytes());
                let place = agent.ring.memory().reserve(bytes.len());
                match place {
                    Some(place) => agent.ring.memory().commit(place, &bytes),
                    None => stream.dropped[DROP_RING_FULL] += text.len() as u64,
                }
                let lost = place.is_none();
                truth.entry(ino).or_default().push(Truth { position, time, bytes: text, lost });
            }
            Act::Pass(nanos) => time += nanos,
            Act::Settle => agent.settle(&lines),
            Act::Read(records) => {
                if agent.read(records, &map) {
                    taken = time;
                }
            }
            Act::EndRound => {
                agent.streams.end_round(later(time), &map);
                agent.end_round();
            }
            Act::Tick => {
                agent.streams.end_round(later(time), &map);
                agent.streams.tick(later(time), time, taken, true, &map);
                agent.end_round();
            }
            Act::Secure(batches) => agent.secure(batches, &mut secured),
            Act::Release(killed) => {
                let released = agent.rounds.release(later(time), false);
                if killed {
                    agent = Agent::start(agent.ring.into_memory(), directory.path());
                    taken = START;
                } else if let Some(released) = released {
                    agent.ring.release(released.places[0].position);
                }
            }
            Act::Kill => {
                agent = Agent::start(agent.ring.into_memory(), directory.path());
                taken = START;
            }
        }
    }
    // All comes to its end.
    agent.settle(&lines);
    agent.read(usize::MAX, &map);
    for _ in 0..3 {
        time += 1_000_000_000;
        agent.streams.end_round(later(time), &map);
    }
    agent.streams.finish(CGROUP, true, true, &map);
    agent.end_round();
    agent.secure(usize::MAX, &mut secured);
    let released = agent.rounds.release(later(time), false);
    if let Some(released) = released {
        assert_eq!(released.places[0].position, agent.ring.produced());
    }
    assert_eq!(Journal::open(directory.path(), "boot").1.state.streams.len(), 0, "all streams have ended");

    let balance = agent.account.balance();
    assert_eq!((balance.difference(), balance.pending), (0, agent.delivered.cast_signed()), "the last agent's account");
    for (ino, writes) in &truth {
        let key: Arc<str> = format!("c0ffee/stdout/{:x}.{ino}", id(*ino).registered).into();
        let range = (Arc::clone(&key), 0)..(key, u64::MAX);
        let seen: BTreeMap<_, _> = secured.range(range).map(|((_, at), said)| (*at, said.clone())).collect();
        assert_eq!(seen, expected(writes, lines.compiled()), "stream {ino}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_line_is_secured_once_or_repeated_as_it_was(
        acts in prop::collection::vec(act(), 1..150), multiline: bool, small: bool,
    ) {
        run(acts, multiline, if small { 1024 } else { 64 * 1024 });
    }
}

/// Two CPUs took their numbers in one order and their space in the other; the agent is killed in between.
#[test]
fn a_piece_that_waits_survives() {
    let directory = tempfile::tempdir().expect("directory");
    let lines = lines(false);
    let map = Map::default();
    let mut agent = Agent::start(Model::new(4096), directory.path());
    let mut secured = BTreeMap::new();
    agent.settle(&lines);
    let put = |agent: &mut Agent, position, bytes: &[u8]| {
        let record = record(1, position, START, bytes);
        let place = agent.ring.memory().reserve(record.len()).expect("room");
        agent.ring.memory().commit(place, &record);
    };
    put(&mut agent, 4, b"two\n");
    agent.read(1, &map);
    agent.streams.end_round(Instant::now(), &map);
    agent.end_round();
    let released = agent.rounds.release(Instant::now(), false).expect("nothing holds it: the journal has the piece");
    agent.ring.release(released.places[0].position);
    assert_eq!(agent.ring.held(), 0);

    let mut agent = Agent::start(agent.ring.into_memory(), directory.path());
    agent.settle(&lines);
    put(&mut agent, 0, b"one\n");
    agent.read(1, &map);
    agent.streams.end_round(Instant::now(), &map);
    agent.secure(1, &mut secured);
    let bodies: Vec<_> = secured.values().map(|(body, ..)| body.clone()).collect();
    assert_eq!(bodies, [b"one".to_vec(), b"two".to_vec()]);
}

/// Without a journal nobody knows what was taken of a stream that is older than what the ring holds.
#[test]
fn an_unknown_stream_begins_with_what_comes() {
    let deliver: Deliver = Box::new(|_, _| ());
    let mut streams = Streams::new(deliver, id(1).registered + 1);
    let container = Container::new(CGROUP);
    let mut map = Map::default();
    let (registered, dropped) = (id(1).registered, [5; DROP_REASONS]);
    map.0.insert(1, Stdio { cgroup: CGROUP, registered, written: 500, dropped, iostream: STDOUT, _pad: 0 });
    streams.open(id(1), &container, CGROUP, STDOUT, &map);
    assert!(streams.effects().is_empty());
    let account = Arc::new(Account::default());
    container.settle(settled(Arc::default(), Arc::clone(&account), lines(false)));
    let written = Written { position: 400, time_unix_nano: START, bytes: b"line\n", unwanted: false };
    streams.take(id(1), written);
    streams.end_round(Instant::now(), &map);
    let balance = account.balance();
    assert_eq!((balance.produced, balance.dropped_total()), (5, 0), "what was before is in no account");
    map.0.get_mut(&1).expect("there").dropped[DROP_RING_FULL] += 95;
    for seconds in 0..2 {
        streams.tick(Instant::now() + Duration::from_secs(seconds), START, START, true, &map);
    }
    assert_eq!(account.balance().dropped_total(), 95, "what is lost since is booked");
}

/// A stream of another agent whose journal knows less than that agent has taken.
#[test]
fn what_an_agent_before_has_taken_is_not_missed() {
    for (inheriting, lost) in [(id(1).registered + 1, 100), (0, 500)] {
        let mut streams = Streams::new(Box::new(|_, _| ()), 0).inheriting(inheriting);
        let container = Container::new(CGROUP);
        let mut map = Map::default();
        let registered = id(1).registered;
        let mut dropped = [0; DROP_REASONS];
        dropped[DROP_RING_FULL] = 100;
        map.0.insert(1, Stdio { cgroup: CGROUP, registered, written: 510, dropped, iostream: STDOUT, _pad: 0 });
        streams.restore(id(1), &container, Saved::default());
        let account = Arc::new(Account::default());
        let identity = Arc::default();
        container.settle(settled(identity, Arc::clone(&account), lines(false)));
        for position in [500, 505] {
            let written = Written { position, time_unix_nano: START, bytes: b"line\n", unwanted: false };
            streams.take(id(1), written);
        }
        for seconds in 0..2 {
            streams.end_round(Instant::now() + Duration::from_secs(seconds), &map);
        }
        let balance = account.balance();
        assert_eq!((balance.produced, balance.dropped_total()), (lost + 10, lost), "{inheriting}");
    }
}

/// The end of a container, while the ring may hold more of it: a hole before what has come is booked by the kernel's reason.
#[test]
fn a_hole_at_an_uncertain_end_has_a_reason() {
    let mut streams = Streams::new(Box::new(|_, _| ()), 0);
    let container = Container::new(CGROUP);
    let mut map = Map::default();
    let registered = id(1).registered;
    let mut dropped = [0; DROP_REASONS];
    dropped[DROP_RING_FULL] = 50;
    map.0.insert(1, Stdio { cgroup: CGROUP, registered, written: 55, dropped, iostream: STDOUT, _pad: 0 });
    streams.open(id(1), &container, CGROUP, STDOUT, &map);
    let account = Arc::new(Account::default());
    let identity = Arc::default();
    container.settle(settled(identity, Arc::clone(&account), lines(false)));
    streams.take(id(1), Written { position: 20, time_unix_nano: START, bytes: b"line\n", unwanted: false });
    streams.finish(CGROUP, false, false, &map);
    let expected = vec![(Stage::Capture, Reason::RingFull, 20)];
    assert_eq!((account.balance().produced, account.balance().dropped), (25, expected), "the rest may come");
    // It does not.
    streams.finish(CGROUP, true, true, &map);
    assert_eq!(
        (account.balance().produced, account.balance().dropped),
        (55, vec![(Stage::Capture, Reason::RingFull, 50)])
    );
}

fn settled(identity: Arc<Identity>, account: Arc<Account>, lines: Lines) -> Profile {
    Profile {
        resource: Arc::clone(&identity.resource),
        awaits: false,
        identity,
        account,
        is_captured: true,
        files: None,
        class: None,
        lines,
        effective: Effective::default(),
        problems: Vec::new(),
    }
}

/// What is declared later holds from the line under way on; what is written while the logs are off is in the ledger.
#[test]
fn rules_that_change_hold_from_the_next_line_and_turned_off_logs_balance() {
    let container = Container::new(CGROUP);
    let batches = Arc::new(Mutex::new(Vec::new()));
    let delivered = Arc::clone(&batches);
    let deliver = move |batch: Arc<Batch>, _: Option<&Hold>| delivered.lock().expect("batches").push(batch);
    let mut streams = Streams::new(Box::new(deliver), 0);
    let map = Map::default();
    streams.open(id(1), &container, CGROUP, STDOUT, &map);
    let account = Arc::new(Account::default());
    let (now, unix) = (Instant::now(), clock::unix_nano());
    let mut position = 0;
    let mut write = |streams: &mut Streams, bytes: &[u8]| {
        streams.take(id(1), Written { position, time_unix_nano: START, bytes, unwanted: false });
        position += bytes.len() as u64;
        streams.end_round(now, &map);
        streams.tick(now, unix, 0, false, &map);
    };
    let change = |streams: &mut Streams, settled: Profile| {
        container.settle(settled);
        streams.tick(now, unix, 0, false, &map);
    };
    let base = |parse: &str| {
        let settings = serde_json::from_value(serde_json::json!({ "parse": { "format": parse } })).expect("settings");
        settled(Arc::default(), Arc::clone(&account), Lines::new(settings).expect("they compile"))
    };
    container.settle(base("none"));
    write(&mut streams, b"{\"a\":1}\n{\"a\"");
    change(&mut streams, Profile { class: Some(Class::Business), ..base("json") });
    write(&mut streams, b":2}\nhalf");
    change(&mut streams, Profile { is_captured: false, ..base("json") });
    write(&mut streams, b" of it\nnothing\n");
    change(&mut streams, base("none"));
    write(&mut streams, b"again\n");
    let batches = batches.lock().expect("batches");
    let told = |batch: &Arc<Batch>| {
        let lines = batch.lines.iter();
        let text = |line: &crate::record::Line| String::from_utf8_lossy(batch.body(line)).into_owned();
        lines.map(|line| (text(line), batch.stream.class, line.attributes.is_some())).collect::<Vec<_>>()
    };
    let told: Vec<_> = batches.iter().flat_map(told).collect();
    let line = |text: &str, class, is_parsed| (text.to_owned(), class, is_parsed);
    assert_eq!(
        told,
        [
            line("{\"a\":1}", Class::Pod, false),
            line("{\"a\":2}", Class::Business, true),
            line("half", Class::Business, false),
            line("again", Class::Pod, false),
        ]
    );
    let balance = account.balance();
    assert_eq!(balance.dropped, [(Stage::Capture, Reason::Filtered, 15)]);
    assert_eq!(balance.produced, position);
    let captured: u64 = batches.iter().map(|batch| batch.span()).sum();
    assert_eq!(captured + 15, balance.produced, "every byte is a line or left out");
}

/// What the API server tells later: the lines that are there keep what was known of them, and those that come have it.
#[test]
fn a_stream_takes_over_what_is_told_of_its_container_and_waits_for_it_when_it_must() {
    let container = Container::new(CGROUP);
    let batches = Arc::new(Mutex::new(Vec::new()));
    let delivered = Arc::clone(&batches);
    let deliver = move |batch: Arc<Batch>, _: Option<&Hold>| delivered.lock().expect("batches").push(batch);
    let mut streams = Streams::new(Box::new(deliver), 0);
    let map = Map::default();
    streams.open(id(1), &container, CGROUP, STDOUT, &map);
    let account = Arc::new(Account::default());
    let (now, unix) = (Instant::now(), clock::unix_nano());
    let mut position = 0;
    let mut write = |streams: &mut Streams| {
        streams.take(id(1), Written { position, time_unix_nano: START, bytes: b"line\n", unwanted: false });
        position += 5;
        streams.end_round(now, &map);
        streams.tick(now, unix, 0, false, &map);
    };
    let base = || settled(Arc::default(), Arc::clone(&account), lines(false));
    let with = |workload: &str| {
        let metadata = Metadata { workload: Some(workload.into()), ..Metadata::default() };
        Arc::new(Resource { metadata: Some(Arc::new(metadata)), ..Resource::default() })
    };
    container.settle(Profile { awaits: true, ..base() });
    write(&mut streams);
    assert!(batches.lock().expect("batches").is_empty(), "it waits");
    container.settle(base());
    write(&mut streams);
    container.settle(Profile { resource: with("web"), ..base() });
    streams.tick(now, unix, 0, false, &map);
    write(&mut streams);
    container.settle(Profile { resource: with("other"), ..base() });
    streams.tick(now, unix, 0, false, &map);
    write(&mut streams);
    let batches = batches.lock().expect("batches");
    let told = |batch: &Arc<Batch>| {
        batch.stream.resource.metadata.as_ref().and_then(|metadata| metadata.workload.as_deref().map(str::to_owned))
    };
    let told: Vec<_> = batches.iter().map(told).collect();
    assert_eq!(told, [None, Some("web".to_owned()), Some("other".to_owned())]);
    assert_eq!(batches.iter().map(|batch| batch.lines.len()).collect::<Vec<_>>(), [2, 1, 1]);
    let (first, last) = (&batches[0], &batches[2]);
    assert_eq!((&first.stream.key, last.start()), (&last.stream.key, 15));
    assert!(Arc::ptr_eq(&first.stream.account, &last.stream.account) && !Arc::ptr_eq(&first.stream, &last.stream));
}
