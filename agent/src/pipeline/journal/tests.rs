//! The file: what was written is read, whatever happens to it.

use std::sync::Arc;

use sidestep_abi::stdio::DROP_REASONS;

use super::*;
use crate::assemble::Update;

fn id(ino: u64) -> StreamId {
    StreamId { ino, dev: 13, registered: 1_000 + ino }
}

fn stream(ino: u64, next: u64, pieces: &[(u64, &'static str)]) -> Change {
    let piece = |(position, bytes): &(u64, &'static str)| {
        (*position, Piece { time_unix_nano: *position, bytes: bytes.as_bytes().into() })
    };
    Change::Stream {
        id: id(ino),
        standing: Standing {
            cgroup: 7,
            container: 7,
            iostream: 1,
            key: Some("c/stdout/1.2".into()),
            next,
            booked: [1; DROP_REASONS],
            unwanted: false,
        },
        unfinished: Update::default(),
        pieces: pieces.iter().map(piece).collect(),
    }
}

fn container(cgroup: u64) -> Change {
    Change::Container { cgroup, path: Arc::from("/kubepods/c"), identity: Some(Box::default()) }
}

fn open(directory: &tempfile::TempDir) -> (Journal, Restored) {
    Journal::open(directory.path(), "0f0e")
}

fn path(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join(NAME)
}

#[test]
fn what_was_written_is_read() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut journal, restored) = open(&directory);
    assert_eq!(restored, Restored::default());
    journal.append(vec![container(7), container(8), stream(1, 10, &[(12, "ab"), (20, "cd")])]).expect("written");
    journal.append(vec![stream(2, 5, &[]), Change::ContainerGone(8)]).expect("written");
    journal.append(vec![stream(1, 14, &[(30, "ef")]), Change::StreamEnded(id(2))]).expect("written");
    let (_, restored) = open(&directory);
    assert!(restored.complete);
    assert_eq!(&restored.state, journal.state());
    let state = restored.state;
    assert_eq!((state.streams.len(), state.containers.len()), (1, 1));
    let pieces: Vec<_> = state.streams[&id(1)].pieces.keys().copied().collect();
    assert_eq!((state.streams[&id(1)].standing.next, pieces), (14, vec![20, 30]), "what lies before is passed");
}

#[test]
fn cut_at_every_byte_it_says_what_was_complete() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut journal, _) = open(&directory);
    let mut states = Vec::new();
    journal.append(Vec::new()).expect("written");
    states.push((fs::metadata(path(&directory)).expect("there").len() as usize, State::default()));
    for next in 1..6 {
        journal.append(vec![stream(next % 2, next, &[(next + 1, "piece")])]).expect("written");
        states.push((fs::metadata(path(&directory)).expect("there").len() as usize, journal.state().clone()));
    }
    let whole = fs::read(path(&directory)).expect("read");
    for length in 0..=whole.len() {
        fs::write(path(&directory), &whole[..length]).expect("written");
        let (mut journal, restored) = open(&directory);
        let Some((_, expected)) = states.iter().rev().find(|(end, _)| *end <= length) else {
            assert!(!restored.complete && directory.path().join("streams.journal.bad").exists(), "{length}");
            continue;
        };
        assert!(restored.complete, "{length}");
        assert_eq!(&restored.state, expected, "{length}");
        // It goes on from there.
        journal.append(vec![container(9)]).expect("written");
        assert_eq!(&open(&directory).1.state, journal.state());
    }
}

#[test]
fn a_flipped_bit_is_damage() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut journal, _) = open(&directory);
    journal.append(vec![stream(1, 10, &[(12, "ab")])]).expect("written");
    journal.append(vec![stream(2, 10, &[])]).expect("written");
    let whole = fs::read(path(&directory)).expect("read");
    for at in HEAD..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let error = parse(&bytes, Path::new("j"), &boot_bytes("0f0e")).expect_err("damaged").to_string();
        assert!(error.starts_with("j is damaged: a checksum does not match at byte"), "{error}");
    }
}

#[test]
fn what_can_not_be_understood_is_kept_aside() {
    let mut future = head(&boot_bytes("0f0e"));
    future[8] = 99;
    for (text, reason) in [(future, "is of version 99"), (b"{\"version\":1}".to_vec(), "no journal begins so")] {
        let directory = tempfile::tempdir().expect("directory");
        fs::write(path(&directory), &text).expect("written");
        let error = read(&path(&directory), &boot_bytes("0f0e")).expect_err("refused").to_string();
        assert!(error.contains(reason), "{error}");
        let (mut journal, restored) = open(&directory);
        assert_eq!(restored, Restored::default());
        assert_eq!(fs::read(directory.path().join("streams.journal.bad")).expect("kept"), text);
        journal.append(vec![stream(1, 1, &[])]).expect("written");
        assert_eq!(&open(&directory).1.state, journal.state());
    }
}

#[test]
fn another_boot_has_other_streams() {
    let directory = tempfile::tempdir().expect("directory");
    open(&directory).0.append(vec![stream(1, 10, &[])]).expect("written");
    assert_eq!(Journal::open(directory.path(), "another").1, Restored::default());
    assert!(!directory.path().join("streams.journal.bad").exists());
}

#[test]
fn it_is_written_anew_when_most_of_it_is_out_of_date() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut journal, _) = open(&directory);
    let large: &'static str = "x".repeat(64 * 1024).leak();
    for round in 0..200 {
        journal.append(vec![stream(1, round * 100, &[(round * 100, large)])]).expect("written");
    }
    assert!(fs::metadata(path(&directory)).expect("there").len() < 2 * LEAST_COMPACTED);
    assert_eq!(&open(&directory).1.state, journal.state());
    assert_eq!(fs::read_dir(directory.path()).expect("directory").count(), 1);
}

#[test]
fn a_disk_that_refuses_is_tried_again_with_everything() {
    let directory = tempfile::tempdir().expect("directory");
    let state = directory.path().join("state");
    fs::write(&state, "a file").expect("written");
    let mut journal = Journal::open(&state, "0f0e").0;
    let error = journal.append(vec![stream(1, 10, &[])]).expect_err("refused").to_string();
    assert!(error.starts_with("writing ") && error.contains("streams.journal"), "{error}");
    fs::remove_file(&state).expect("removed");
    journal.append(vec![stream(2, 20, &[])]).expect("written");
    assert_eq!(Journal::open(&state, "0f0e").1.state.streams.len(), 2);
    journal.discard().expect("removed");
    assert!(journal.is_discarded() && !Journal::open(&state, "0f0e").1.complete);
    journal.append(Vec::new()).expect("written");
    assert!(!journal.is_discarded());
    assert_eq!(Journal::open(&state, "0f0e").1.state.streams.len(), 2);
}

/// A write error after the file was made: the device is full.
#[test]
fn a_full_disk_is_an_error_and_the_file_stays_whole() {
    let Ok(full) = OpenOptions::new().write(true).open("/dev/full") else { return };
    let directory = tempfile::tempdir().expect("directory");
    let (mut journal, _) = open(&directory);
    journal.append(vec![stream(1, 10, &[])]).expect("written");
    journal.file = Some(full);
    // What was there is replaced as a whole.
    journal.append(vec![stream(2, 20, &[])]).expect("written anew");
    assert_eq!(&open(&directory).1.state, journal.state());
}

#[test]
fn what_can_not_be_by_the_kernels_counts_is_told() {
    let saved = |next, pieces: &[(u64, &'static str)]| {
        let mut state = State::default();
        state.apply(stream(1, next, pieces));
        state.streams.remove(&id(1)).expect("the stream")
    };
    let counts = |written, dropped| sidestep_abi::stdio::Stdio {
        cgroup: 7,
        registered: 1_001,
        written,
        dropped: [dropped; DROP_REASONS],
        iostream: 1,
        _pad: 0,
    };
    assert_eq!(saved(10, &[(12, "ab")]).contradiction(&counts(14, 1)), None);
    let beyond = saved(10, &[(12, "ab")]).contradiction(&counts(13, 1)).expect("a piece");
    assert_eq!(beyond, "it knows 14 bytes, and 13 were written");
    assert!(saved(15, &[]).contradiction(&counts(14, 1)).is_some());
    assert!(saved(10, &[]).contradiction(&counts(14, 0)).expect("losses").contains("booked a loss of 1 bytes"));
}
