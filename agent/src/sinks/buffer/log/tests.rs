use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    path::Path,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::sinks::buffer::{mark::Mark, segment::first_of};

const MAX: u64 = 1 << 20;

fn payload(sequence: u64, length: usize) -> Vec<u8> {
    (0..length).map(|at| (sequence as usize * 31 + at * 7) as u8).collect()
}

fn meta(sequence: u64) -> Meta {
    Meta { sequence, records: 1, cgroup: 42, span: sequence * 10 }
}

fn append(log: &mut Log, length: usize) -> Result<u64, AppendError> {
    let sequence = log.take_sequence();
    let mut frame = vec![0; HEADER];
    frame.extend(payload(sequence, length));
    log.append(&mut frame, meta(sequence), false).map(|()| sequence)
}

fn open(directory: &Path) -> Log {
    Log::open(directory, MAX).expect("opens")
}

/// What can be read, and how many frames can't.
fn read_all(log: &mut Log) -> (Vec<(Meta, Vec<u8>)>, usize) {
    let (mut frames, mut damaged) = (Vec::new(), 0);
    while log.has_unread() {
        match log.read().expect("readable") {
            None => {}
            Some(Read::Frame(meta, payload)) => frames.push((meta, payload)),
            Some(Read::Damaged(..)) => damaged += 1,
            Some(Read::Missing(totals)) => damaged += usize::try_from(totals.records).expect("few"),
        }
    }
    (frames, damaged)
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("readable").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<_> = entries.filter(|path| first_of(path).is_some()).collect();
    found.sort();
    found
}

/// Of the payloads of [`one_segment`].
const LENGTHS: [usize; 5] = [0, 1, 30, 70, 5];

/// A log of a few frames in one segment: its bytes, its name, and where each frame ends.
fn one_segment() -> (Vec<u8>, std::ffi::OsString, Vec<usize>) {
    let directory = TempDir::new().expect("a directory");
    let mut log = open(directory.path());
    let mut ends = Vec::new();
    for length in LENGTHS {
        append(&mut log, length).expect("appended");
        ends.push(usize::try_from(log.size()).expect("small"));
    }
    let path = segments(directory.path()).pop().expect("one");
    (fs::read(&path).expect("readable"), path.file_name().expect("a name").to_owned(), ends)
}

#[test]
fn a_log_cut_at_any_byte_gives_every_frame_before_the_cut() {
    let (whole, name, ends) = one_segment();
    for length in 0..=whole.len() {
        let directory = TempDir::new().expect("a directory");
        fs::write(directory.path().join(&name), &whole[..length]).expect("written");
        let mut log = open(directory.path());
        let (frames, damaged) = read_all(&mut log);
        let expected = ends.iter().filter(|end| **end <= length).count();
        assert_eq!((frames.len(), damaged), (expected, 0), "cut at {length}");
        for (sequence, (meta_read, payload_read)) in (1..).zip(frames) {
            assert_eq!(meta_read, meta(sequence));
            assert_eq!(payload_read, payload(sequence, payload_read.len()));
        }
        // It goes on with a sequence that was never used.
        let next = append(&mut log, 10).expect("appended");
        assert!(next > expected as u64);
        assert_eq!(read_all(&mut log), (vec![(meta(next), payload(next, 10))], 0));
    }
}

#[test]
fn a_log_with_any_byte_flipped_gives_every_other_frame_and_invents_none() {
    let (whole, name, ends) = one_segment();
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let directory = TempDir::new().expect("a directory");
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            fs::write(directory.path().join(&name), &bytes).expect("written");
            let mut log = open(directory.path());
            let (frames, damaged) = read_all(&mut log);
            // Heads are there twice.
            let hit = (ends.iter().zip(LENGTHS)).position(|(end, length)| (end - length..*end).contains(&at));
            let expected: Vec<u64> =
                (0..ends.len()).filter(|index| Some(*index) != hit).map(|index| index as u64 + 1).collect();
            let read: Vec<u64> = frames.iter().map(|(meta, _)| meta.sequence).collect();
            assert_eq!((read, damaged), (expected, usize::from(hit.is_some())), "byte {at} by {flip:#x}");
            for (meta_read, payload_read) in frames {
                assert_eq!(meta_read, meta(meta_read.sequence));
                assert_eq!(payload_read, payload(meta_read.sequence, payload_read.len()));
            }
            assert_eq!(log.damaged(), damaged as u64);
        }
    }
}

#[test]
fn a_head_that_is_gone_altogether_costs_no_frame() {
    let (mut whole, name, ends) = one_segment();
    whole[..HEAD as usize].fill(0xaa);
    let directory = TempDir::new().expect("a directory");
    fs::write(directory.path().join(&name), &whole).expect("written");
    assert_eq!(read_all(&mut open(directory.path())).0.len(), ends.len());
}

#[test]
fn a_payload_that_looks_like_a_frame_is_none() {
    let (whole, ..) = one_segment();
    let directory = TempDir::new().expect("a directory");
    let mut log = open(directory.path());
    let sequence = log.take_sequence();
    let mut frame = vec![0; HEADER];
    // A Pod writes what it has read from another segment.
    frame.extend_from_slice(&whole);
    log.append(&mut frame, meta(sequence), false).expect("appended");
    append(&mut log, 10).expect("appended");
    drop(log);
    let path = segments(directory.path()).pop().expect("one");
    let mut bytes = fs::read(&path).expect("readable");
    // Both copies of the first header.
    bytes[HEAD as usize + 20] ^= 1;
    bytes[HEAD as usize + HEADER - 20] ^= 1;
    fs::write(&path, bytes).expect("written");
    let mut log = open(directory.path());
    let (frames, damaged) = read_all(&mut log);
    assert_eq!((frames.len(), damaged, log.damaged()), (1, 1, 1));
    assert_eq!(frames[0].0, meta(2));
}

#[test]
fn a_segment_of_another_form_is_set_aside_and_told() {
    let (mut whole, name, _) = one_segment();
    for copy in [0, 48] {
        whole[copy + 8] = 7;
        let checksum = crc32fast::hash(&whole[copy..copy + 44]).to_le_bytes();
        whole[copy + 44..copy + 48].copy_from_slice(&checksum);
    }
    let directory = TempDir::new().expect("a directory");
    fs::write(directory.path().join(&name), &whole).expect("written");
    let mut log = open(directory.path());
    assert_eq!((read_all(&mut log).0.len(), log.damaged(), log.size()), (0, 1, 0));
    assert!(segments(directory.path()).is_empty());
    let aside = directory.path().join(&name).with_extension("segment.unreadable");
    assert_eq!(fs::read(aside).expect("it is kept"), whole);
    append(&mut log, 1).expect("goes on");
}

#[test]
fn a_mark_from_the_future_and_a_damaged_one_begin_with_the_oldest_frame() {
    let directory = TempDir::new().expect("a directory");
    let mut log = open(directory.path());
    for _ in 0..3 {
        append(&mut log, 10).expect("appended");
    }
    read_all(&mut log);
    // Two are done, the third is on its way.
    log.retire(Some(3), |range| range.contains(&3)).expect("noted");
    drop(log);
    assert_eq!(read_all(&mut open(directory.path())).0, [(meta(3), payload(3, 10))]);
    MarkFile::open(directory.path())
        .expect("opens")
        .0
        .write(Mark { sequence: 99, ..Mark::default() })
        .expect("written");
    assert_eq!(read_all(&mut open(directory.path())).0.len(), 3);
    fs::write(directory.path().join(super::super::mark::NAME), [7; 5000]).expect("written");
    assert_eq!(read_all(&mut open(directory.path())).0.len(), 3);
}

#[test]
fn the_limit_holds_and_what_is_done_makes_room() {
    let directory = TempDir::new().expect("a directory");
    let mut log = open(directory.path());
    let mut written = 0;
    while append(&mut log, 10_000).is_ok() {
        written += 1;
        assert!(log.size() <= MAX);
    }
    assert!((95..105).contains(&written), "{written} frames");
    let on_disk: u64 = segments(directory.path()).iter().map(|path| fs::metadata(path).expect("there").len()).sum();
    assert_eq!(on_disk, log.size());
    // Half is read and done: its segments go.
    (0..written / 2).for_each(|_| drop(log.read().expect("readable")));
    log.retire(None, |_| false).expect("retired");
    assert!(log.size() < MAX * 6 / 10, "{} bytes", log.size());
    append(&mut log, 10_000).expect("there is room again");
    assert_eq!(read_all(&mut log).0.len(), written - written / 2 + 1);
    log.retire(None, |_| false).expect("retired");
    assert_eq!((log.size(), log.records(), segments(directory.path()).len()), (0, 0, 0));
    drop(log);
    // Nothing is used twice.
    assert_eq!(append(&mut open(directory.path()), 1).expect("appended"), written as u64 + 3);
}

#[test]
fn all_is_read_when_the_newest_segment_goes_before_an_older_one() {
    let directory = TempDir::new().expect("a directory");
    let mut log = open(directory.path());
    let long = append(&mut log, 5000).expect("room");
    log.close_segment();
    append(&mut log, 100).expect("room");
    assert_eq!(read_all(&mut log).0.len(), 2);
    log.retire(Some(long), |sequences| sequences.contains(&long)).expect("noted");
    assert_eq!(log.size(), fs::metadata(&segments(directory.path())[0]).expect("there").len() + HEAD);
    assert!(!log.has_unread());
    append(&mut log, 100).expect("room");
    assert!(log.has_unread());
    assert_eq!(read_all(&mut log).0.len(), 1);
    // What the newest had is not missed by the next one.
    log.retire(Some(long), |sequences| sequences.contains(&long)).expect("noted");
    drop(log);
    let (frames, missing) = read_all(&mut open(directory.path()));
    assert_eq!((frames, missing), (vec![(meta(long), payload(long, 5000))], 0));
}

/// A log of five segments with two frames each, of which the first frame is done, and their files.
fn five_segments() -> (TempDir, Vec<PathBuf>) {
    let directory = TempDir::new().expect("a directory");
    let mut log = open(directory.path());
    for _ in 0..5 {
        append(&mut log, 100).expect("room");
        append(&mut log, 200).expect("room");
        log.close_segment();
    }
    log.read().expect("readable");
    log.retire(None, |_| false).expect("noted");
    let files = segments(directory.path());
    assert_eq!(files.len(), 5);
    (directory, files)
}

#[test]
fn segments_that_are_gone_or_cut_off_are_missed_to_the_record() {
    for hit in 0..5 {
        for cut in [None, Some(0), Some(10), Some(HEAD), Some(HEAD + 30), Some(HEAD + HEADER as u64 + 100)] {
            let (directory, files) = five_segments();
            match cut {
                None => fs::remove_file(&files[hit]).expect("deleted"),
                Some(length) => {
                    fs::OpenOptions::new()
                        .write(true)
                        .open(&files[hit])
                        .and_then(|file| file.set_len(length))
                        .expect("cut");
                }
            }
            let missing = if cut > Some(HEAD + HEADER as u64) { 1 } else { 2 };
            // Of the first segment one frame was delivered: who deletes the whole is told of both.
            let rest = 9 - missing + usize::from(hit == 0 && missing == 2);
            let mut log = open(directory.path());
            let (frames, found) = read_all(&mut log);
            assert_eq!((frames.len(), found), (rest, missing), "segment {hit} cut at {cut:?}");
            assert!(log.damaged() > 0);
            // It is told once.
            append(&mut log, 10).expect("room");
            assert_eq!((read_all(&mut log).0.len(), log.damaged()), (1, 1));
            log.retire(None, |_| false).expect("retired");
            drop(log);
            let mut log = open(directory.path());
            assert_eq!((read_all(&mut log), log.damaged()), ((Vec::new(), 0), 0), "segment {hit} cut at {cut:?}");
        }
    }
}

#[test]
fn a_log_that_is_gone_altogether_is_missed() {
    let (directory, files) = five_segments();
    files.iter().for_each(|file| fs::remove_file(file).expect("deleted"));
    let mut log = open(directory.path());
    assert!(log.has_unread());
    assert_eq!(read_all(&mut log), (Vec::new(), 10));
    log.retire(None, |_| false).expect("noted");
    drop(log);
    assert_eq!(read_all(&mut open(directory.path())), (Vec::new(), 0));
}

#[test]
fn one_log_has_one_user() {
    let directory = TempDir::new().expect("a directory");
    let log = open(directory.path());
    let error = Log::open(directory.path(), MAX).expect_err("locked");
    assert_eq!(error.source.kind(), io::ErrorKind::ResourceBusy);
    assert!(error.to_string().contains("another agent"), "{error}");
    drop(log);
    open(directory.path());
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Read,
    /// Of those that were read.
    Acknowledge(proptest::sample::Index),
    Retire,
    /// As after a kill.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..30_000_usize).prop_map(Step::Append),
        3 => Just(Step::Read),
        3 => any::<proptest::sample::Index>().prop_map(Step::Acknowledge),
        1 => Just(Step::Retire),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens, each frame is read in order until it is acknowledged, and none is lost.
    #[test]
    fn nothing_is_lost_and_nothing_comes_out_of_order(steps in proptest::collection::vec(step(), 1..120)) {
        let directory = TempDir::new().expect("a directory");
        let mut log = open(directory.path());
        let mut unread: VecDeque<(u64, usize)> = VecDeque::new();
        let mut on_its_way: BTreeSet<(u64, usize)> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Append(length) => {
                    if let Ok(sequence) = append(&mut log, length) {
                        unread.push_back((sequence, length));
                    }
                }
                Step::Read => {
                    // After a reopening some are read again that were acknowledged.
                    loop {
                        let read = log.read().expect("readable");
                        let Some(Read::Frame(found, bytes)) = read else {
                            prop_assert!(read.is_none() && unread.is_empty(), "{read:?}, {unread:?}");
                            prop_assert_eq!(log.damaged(), 0);
                            break;
                        };
                        prop_assert_eq!(found, meta(found.sequence));
                        prop_assert_eq!(&bytes, &payload(found.sequence, bytes.len()));
                        match unread.front() {
                            Some(next) if next.0 == found.sequence => {
                                on_its_way.extend(unread.pop_front());
                                break;
                            }
                            next => prop_assert!(next.is_none_or(|next| next.0 > found.sequence)),
                        }
                    }
                }
                Step::Acknowledge(which) => {
                    if !on_its_way.is_empty() {
                        let chosen = *on_its_way.iter().nth(which.index(on_its_way.len())).expect("within");
                        on_its_way.remove(&chosen);
                    }
                }
                Step::Retire => {
                    let oldest = on_its_way.first().map(|(sequence, _)| *sequence);
                    let within = |range: std::ops::Range<u64>| on_its_way.range((range.start, 0)..(range.end, 0)).next().is_some();
                    log.retire(oldest, within).expect("retired");
                }
                Step::Reopen => {
                    drop(log);
                    log = open(directory.path());
                    let mut all: Vec<_> = std::mem::take(&mut on_its_way).into_iter().chain(unread.drain(..)).collect();
                    all.sort_unstable();
                    unread = all.into();
                }
            }
            prop_assert!(log.size() <= MAX);
        }
    }
}
