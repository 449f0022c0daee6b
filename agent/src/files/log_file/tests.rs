//! Real files, compared byte by byte.

use std::{
    fs::{self, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::PathBuf,
};

use super::*;
use crate::{assemble::Settings, load::running::inode_key};

/// A log in a directory of its own, its writer, and what came out.
struct Bench {
    _directory: tempfile::TempDir,
    path: PathBuf,
    writer: File,
    append: bool,
    log: LogFile,
    now: u64,
    out: Vec<Arc<Batch>>,
}

impl Bench {
    fn new(append: bool) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a.log");
        let writer = OpenOptions::new().create(true).write(true).append(append).open(&path).expect("file");
        let file = File::open(&path).expect("file");
        let about = About {
            key: inode_key(&file.metadata().expect("metadata")),
            class: Class::Business,
            declared_class: None,
            path: "/var/log/a.log".into(),
            resource: Arc::default(),
            account: Arc::default(),
            lines: Settings::default().compile().expect("settings"),
        };
        let log = LogFile::new(about, Some(file), 0, 0, &Arc::default());
        Self { _directory: directory, path, writer, append, log, now: 1_000_000_000, out: Vec::new() }
    }

    /// Writes, and gives the record that the kernel would send.
    fn write(&mut self, bytes: &[u8]) -> Record {
        self.writer.write_all(bytes).expect("written");
        let end = self.writer.stream_position().expect("position");
        let (position, len) = (end - bytes.len() as u64, bytes.len() as u64);
        Record { position, len, append: self.append, positioned: false, tid: 1, description: 1 }
    }

    fn write_seen(&mut self, bytes: &[u8]) {
        let record = self.write(bytes);
        self.see(&record, bytes);
    }

    fn see(&mut self, record: &Record, bytes: &[u8]) {
        self.now += 1_000_000;
        self.log.record(record, bytes, self.now);
        self.settle();
    }

    fn poll(&mut self) {
        self.now += 500_000_000;
        self.log.look_finally(self.now);
        self.settle();
    }

    fn settle(&mut self) {
        while self.log.is_behind() && self.log.read(1024 * 1024, self.now) > 0 {}
        self.log.take_batches(|batch| self.out.push(batch));
    }

    /// The bytes of each stream, from the first one on.
    fn finish(&mut self) -> Vec<Vec<u8>> {
        self.poll();
        self.log.finish();
        self.log.take_batches(|batch| self.out.push(batch));
        let mut streams: Vec<(Arc<str>, Vec<u8>)> = Vec::new();
        for batch in &self.out {
            assert_eq!(batch.span(), batch.data.len() as u64);
            match streams.last_mut() {
                Some((key, bytes)) if *key == batch.stream.key => bytes.extend(&batch.data),
                _ => streams.push((Arc::clone(&batch.stream.key), batch.data.to_vec())),
            }
            self.log.about.account.deliver(batch.span(), batch.lines.len() as u64);
        }
        let balance = self.log.about.account.balance();
        assert_eq!((balance.difference(), balance.pending), (0, 0), "{balance:?}");
        streams.into_iter().map(|(_, bytes)| bytes).collect()
    }

    fn dropped(&self) -> Vec<(Stage, Reason, u64)> {
        self.log.about.account.balance().dropped
    }
}

#[test]
fn lost_records_are_read_back() {
    let mut bench = Bench::new(true);
    bench.write_seen(b"one\n");
    bench.write(b"two\n");
    bench.write_seen(b"three\n");
    bench.write(b"four\n");
    assert_eq!(bench.finish(), [b"one\ntwo\nthree\nfour\n"]);
    assert_eq!((bench.log.readings.gaps(), bench.log.readings.read_bytes()), (1, 15));
}

#[test]
fn what_is_read_back_has_the_time_of_its_record() {
    let mut bench = Bench::new(true);
    bench.write_seen(b"one\n");
    let first = bench.now;
    bench.write(b"two\n");
    bench.now += 1_000;
    bench.write_seen(b"three\n");
    let third = bench.now;
    bench.poll();
    let times: Vec<_> =
        bench.out.iter().flat_map(|batch| &batch.lines).map(|line| line.observed_time_unix_nano).collect();
    assert_eq!(times, [first, third, third], "the second has no record of its own");
}

#[test]
fn a_renamed_and_a_deleted_file_are_read_to_their_end() {
    let mut bench = Bench::new(true);
    bench.write_seen(b"one\n");
    fs::rename(&bench.path, bench.path.with_extension("1")).expect("renamed");
    bench.write(b"two\n");
    assert!(!bench.log.is_deleted());
    fs::remove_file(bench.path.with_extension("1")).expect("removed");
    assert!(bench.log.is_deleted());
    bench.write(b"three");
    assert_eq!(bench.finish(), [b"one\ntwo\nthree"]);
}

#[test]
fn truncation_is_seen_by_size_and_begins_another_stream() {
    let mut bench = Bench::new(true);
    bench.write_seen(b"a long first line\n");
    bench.writer.set_len(0).expect("truncated");
    bench.poll();
    bench.write_seen(b"second\n");
    assert_eq!(bench.finish(), [&b"a long first line\n"[..], b"second\n"]);
    assert_eq!((bench.dropped(), bench.log.readings.restarts()), (vec![], 1));
}

#[test]
fn truncation_is_seen_by_the_writers_position_though_the_file_has_grown_past_it() {
    let mut bench = Bench::new(true);
    bench.write_seen(b"same\n");
    bench.writer.set_len(0).expect("truncated");
    let records = [bench.write(b"same\n"), bench.write(b"more\n")];
    bench.see(&records[0], b"same\n");
    bench.see(&records[1], b"more\n");
    assert_eq!(bench.finish(), [&b"same\n"[..], b"same\nmore\n"]);
}

#[test]
fn truncation_is_seen_by_the_head_when_no_record_tells() {
    let mut bench = Bench::new(true);
    bench.write_seen(b"first\n");
    bench.writer.set_len(0).expect("truncated");
    bench.write(b"other, and longer\n");
    assert_eq!(bench.finish(), [&b"first\n"[..], b"other, and longer\n"]);
}

#[test]
fn what_is_truncated_before_it_was_read_is_booked() {
    let mut bench = Bench::new(true);
    bench.write_seen(b"one\n");
    bench.write(b"lost\n");
    let record = bench.write(b"lost too\n");
    bench.log.record(&record, b"lost too\n", bench.now);
    bench.writer.set_len(0).expect("truncated");
    bench.write(b"new\n");
    assert_eq!(bench.finish(), [&b"one\n"[..], b"new\n"]);
    assert_eq!(bench.dropped(), [(Stage::Repair, Reason::Truncated, 14)]);
}

#[test]
fn the_hole_of_a_writer_without_append_is_not_read() {
    let mut bench = Bench::new(false);
    let long = vec![b'x'; 700_000];
    bench.write_seen(&long);
    bench.writer.set_len(0).expect("truncated");
    bench.poll();
    bench.write_seen(b"after\n");
    bench.write(b"more\n");
    assert_eq!(bench.finish(), [&long[..], b"after\nmore\n"]);
}

#[test]
fn a_preallocated_file_is_read_as_far_as_it_is_written() {
    let mut bench = Bench::new(false);
    bench.writer.set_len(4 * 1024 * 1024).expect("preallocated");
    bench.poll();
    // What a memory-mapped appender does: no system call shows it.
    bench.writer.write_all(b"one\n\0two\n").expect("written");
    bench.poll();
    bench.poll();
    bench.writer.write_all(b"three\n").expect("written");
    bench.poll();
    bench.writer.set_len(15).expect("cut to its real size");
    assert_eq!(bench.finish(), [b"one\n\0two\nthree\n"]);
    assert_eq!((bench.dropped(), bench.log.readings.restarts()), (vec![], 0));
}

#[test]
fn written_nuls_and_small_holes_are_kept() {
    let mut bench = Bench::new(false);
    bench.write_seen(b"one\n\0\0");
    bench.writer.seek(SeekFrom::Start(100)).expect("sought");
    bench.write_seen(b"two\n");
    let mut expected = b"one\n\0\0".to_vec();
    expected.resize(100, 0);
    expected.extend(b"two\n");
    assert_eq!(bench.finish(), [expected]);
}

#[test]
fn without_a_file_the_ring_is_all_there_is() {
    let mut bench = Bench::new(true);
    bench.log.reopened(None);
    bench.write_seen(b"one\n");
    bench.write(b"lost\n");
    bench.write_seen(b"two\n");
    bench.write_seen(b"three\n");
    assert_eq!(bench.finish(), [b"one\ntwo\nthree\n"]);
    assert_eq!(bench.dropped(), [(Stage::Repair, Reason::Unavailable, 5)]);
    assert!(
        bench.out.iter().flat_map(|batch| &batch.lines).any(|line| line.flags == crate::record::LineFlags::AFTER_GAP)
    );
}

#[test]
fn a_standing_holds_for_the_same_file_only() {
    let mut bench = Bench::new(true);
    bench.write_seen(b"one\ntwo\n");
    let standing = bench.log.standing(4);
    let file = File::open(&bench.path).expect("file");
    assert!(standing.holds_for(&file));
    bench.write(b"three\n");
    assert!(standing.holds_for(&file));
    bench.writer.set_len(0).expect("truncated");
    assert!(!standing.holds_for(&file));
    bench.write(b"another one, and longer\n");
    assert!(!standing.holds_for(&file));
}

#[test]
fn a_record_without_its_bytes_is_read_from_the_file() {
    let mut bench = Bench::new(true);
    bench.write_seen(b"one\n");
    let record = bench.write(b"two\n");
    bench.see(&record, b"");
    bench.write_seen(b"three\n");
    assert_eq!(bench.finish(), [b"one\ntwo\nthree\n"]);
    assert_eq!(bench.dropped(), []);
}

#[test]
fn a_record_without_its_bytes_is_lost_and_booked_where_there_is_no_file() {
    for gap in [false, true] {
        let mut bench = Bench::new(true);
        bench.log.reopened(None);
        bench.write_seen(b"one\n");
        let lost = if gap { bench.write(b"unseen\n").len } else { 0 };
        let record = bench.write(b"two\n");
        bench.see(&record, b"");
        bench.write_seen(b"three\n");
        let place = bench.log.unfinished_position();
        assert_eq!(place, 14 + lost);
        bench.log.finish();
        assert_eq!(bench.finish().concat(), b"one\nthree\n");
        assert_eq!(bench.dropped(), [(Stage::Repair, Reason::Unavailable, 4 + lost)]);
    }
}

#[test]
fn a_write_of_unknown_place_is_booked_where_there_is_no_file() {
    let mut bench = Bench::new(true);
    bench.log.reopened(None);
    let record = Record { positioned: true, ..bench.write(b"one\n") };
    bench.see(&record, b"one\n");
    assert_eq!(bench.finish(), Vec::<Vec<u8>>::new());
    assert_eq!(bench.dropped(), [(Stage::Repair, Reason::Unavailable, 4)]);
}
