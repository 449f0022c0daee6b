//! What is kept of files, and what is left out, before anybody knows whether they are logs.

use super::*;
use crate::{
    attribute::Identity,
    config::{Config, Environment},
    pipeline::container::{Joined, Profile},
};

const KEY: InodeKey = InodeKey { ino: 7, dev: 1, _pad: 0 };

fn record(position: u64, len: u64) -> Record {
    Record { position, len, append: true, positioned: false, tid: 1, description: 1 }
}

fn announced(path: &str) -> Announced {
    let whereabouts = Whereabouts { path: Some(path.into()), ..Whereabouts::default() };
    Announced { announced: 1, whereabouts, position: 0, name_hash: 0 }
}

fn settled(cgroup: u64) -> Arc<Container> {
    let container = Container::new(cgroup);
    let config = Config::defaults(&Environment::current()).expect("defaults");
    let identity = Arc::new(Identity::default());
    container.settle(Profile::new(identity, Joined::default(), Arc::default(), &config.capture, &config.lines, None));
    container
}

#[test]
fn what_is_not_kept_is_still_known_to_be_written() {
    let container = Container::new(1);
    let mut candidates = Candidates::default();
    let chunk = vec![b'x'; 64 * 1024];
    let records = 20;
    for number in 0..records {
        let record = record(number * chunk.len() as u64, chunk.len() as u64);
        assert!(candidates.keep(KEY, record, &chunk, 1, &container, 0));
    }
    let candidate = &candidates.files[&KEY];
    let whole: usize = candidate.kept.iter().map(|kept| kept.bytes.len()).sum();
    assert!(whole <= MAX_FILE_BYTES && whole > MAX_FILE_BYTES - 2 * chunk.len(), "{whole}");
    let last = candidate.kept.last().expect("records");
    assert!(last.bytes.is_empty(), "the places that follow on each other are kept as one");
    assert_eq!(last.record.end(), records * chunk.len() as u64);
    assert_eq!(candidate.written(), records * chunk.len() as u64);
    assert_eq!(candidates.bytes, candidate.bytes);
}

#[test]
fn records_are_bounded_by_number_too() {
    let container = Container::new(1);
    let mut candidates = Candidates::default();
    let count = 2 * MAX_RECORDS as u64;
    for number in 0..count {
        // None of them follows on the one before.
        assert!(candidates.keep(KEY, record(number * 10, 1), b"x", 1, &container, 0));
    }
    let candidate = &candidates.files[&KEY];
    assert_eq!((candidate.kept.len(), candidate.left_out), (MAX_RECORDS, count - MAX_RECORDS as u64));
    assert_eq!(candidate.written(), count);
}

#[test]
fn files_of_unknown_containers_take_no_room_from_those_that_can_be_judged() {
    let unknown = Container::new(1);
    let known = settled(2);
    let mut candidates = Candidates::default();
    for ino in 0..MAX_FILES as u64 {
        assert!(candidates.keep(InodeKey { ino, ..KEY }, record(0, 1), b"x", 1, &unknown, 0));
    }
    let key = InodeKey { ino: u64::MAX, ..KEY };
    assert!(!candidates.announce(key, announced("/var/log/a.log"), &unknown, 0), "it has to be announced again");
    assert!(!candidates.keep(key, record(0, 1), b"x", 1, &unknown, 0));
    assert!(candidates.announce(key, announced("/var/log/a.log"), &known, 0));
    assert!(candidates.keep(key, record(0, 1), b"x", 1, &known, 0));
    let judged = candidates.judge(1, false);
    assert!(matches!(&judged[..], [(judged, _, Verdict::Log(_))] if *judged == key), "{judged:?}");
}

#[test]
fn who_is_never_announced_is_unknown_with_all_that_it_wrote() {
    let container = settled(1);
    let mut candidates = Candidates::default();
    assert!(candidates.keep(KEY, record(0, 3), b"abc", 1, &container, 0));
    assert!(candidates.judge(PATIENCE_NANOS, false).is_empty());
    let judged = candidates.judge(PATIENCE_NANOS + 1, false);
    let [(_, candidate, Verdict::Unknown)] = &judged[..] else { panic!("{judged:?}") };
    assert_eq!(candidate.written(), 3);
    assert_eq!((candidates.bytes, candidates.is_empty()), (0, true));
}

#[test]
fn an_agent_that_stops_does_not_wait_for_the_first_record() {
    let mut candidates = Candidates::default();
    assert!(candidates.announce(KEY, announced("/var/log/a.log"), &settled(1), 0));
    assert!(candidates.judge(0, false).is_empty());
    assert!(matches!(&candidates.judge(0, true)[..], [(_, _, Verdict::Log(_))]));
}
