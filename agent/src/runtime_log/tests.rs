//! What models of the runtimes write is read back, and only what was written is taken for a gap.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;

use super::{
    content::{Content, Place},
    copy::Copy,
    files::{Location, open_all},
    search::{After, Gap, Look, look},
};
use crate::{attribute::HostFiles, record::IoStream};

/// When everything is written: nanoseconds since the Unix epoch, and the same as the runtimes say it.
const TIME: u64 = 1_704_067_200_000_000_000;
const STAMP: &str = "2024-01-01T00:00:00.000000000Z";
/// The models cut longer lines.
const MAX_LINE: usize = 16;

#[derive(Clone, Copy, Debug)]
enum Model {
    /// Lines are kept until they are complete or too long; the `\r` before a newline is left out.
    Containerd,
    /// Each read is written at once.
    Conmon,
    /// As containerd cuts, in JSON.
    Docker,
}

/// Writes the log of one stream.
struct Writer {
    model: Model,
    name: &'static str,
    partial: Vec<u8>,
}

impl Writer {
    fn new(model: Model, name: &'static str) -> Self {
        Self { model, name, partial: Vec::new() }
    }

    /// Takes what was read from the pipe; returns the lines for the file.
    fn read(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.partial.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(newline) = memchr::memchr(b'\n', &self.partial) {
            let line: Vec<u8> = self.partial.drain(..=newline).collect();
            self.cut(&line[..newline], true, &mut out);
        }
        if matches!(self.model, Model::Conmon) || self.partial.len() > MAX_LINE {
            let partial = std::mem::take(&mut self.partial);
            self.cut(&partial, false, &mut out);
        }
        out
    }

    /// The pipe has ended.
    fn end(&mut self) -> Vec<u8> {
        let (partial, mut out) = (std::mem::take(&mut self.partial), Vec::new());
        self.cut(&partial, false, &mut out);
        out
    }

    fn cut(&self, mut line: &[u8], whole: bool, out: &mut Vec<u8>) {
        if whole && matches!(self.model, Model::Containerd) {
            line = line.strip_suffix(b"\r").unwrap_or(line);
        }
        while line.len() > MAX_LINE {
            self.write(&line[..MAX_LINE], false, out);
            line = &line[MAX_LINE..];
        }
        if whole || !line.is_empty() {
            self.write(line, whole, out);
        }
    }

    fn write(&self, bytes: &[u8], whole: bool, out: &mut Vec<u8>) {
        if matches!(self.model, Model::Docker) {
            let mut text = String::from_utf8(bytes.to_vec()).expect("the test writes ASCII");
            text.extend(whole.then_some('\n'));
            let line = serde_json::json!({ "log": text, "stream": self.name, "time": STAMP });
            writeln!(out, "{line}").expect("memory");
        } else {
            write!(out, "{STAMP} {} {} ", self.name, if whole { 'F' } else { 'P' }).expect("memory");
            out.extend_from_slice(bytes);
            out.push(b'\n');
        }
    }
}

fn model() -> impl Strategy<Value = Model> {
    prop::sample::select(vec![Model::Containerd, Model::Conmon, Model::Docker])
}

/// What a container writes at once, to which stream, and whether the file is rotated, and compressed, after it.
type Write1 = (Vec<u8>, bool, Option<bool>);

fn writes() -> impl Strategy<Value = Vec<Write1>> {
    let byte = prop_oneof![4 => b'a'..=b'f', 1 => Just(b'\n'), 1 => Just(b' ')];
    let rotation = prop_oneof![6 => Just(None), 1 => any::<bool>().prop_map(Some)];
    prop::collection::vec((prop::collection::vec(byte, 1..60), prop::bool::weighted(0.8), rotation), 1..40)
}

/// Writes everything below `directory`; returns what the container wrote to stdout.
fn write_all(directory: &Path, model: Model, writes: &[Write1], carriage_returns: bool) -> Vec<u8> {
    let (mut stdout, mut stderr) = (Writer::new(model, "stdout"), Writer::new(model, "stderr"));
    let current = directory.join("0.log");
    let mut file = File::create(&current).expect("a file");
    let mut written = Vec::new();
    for (index, (bytes, is_stdout, rotation)) in writes.iter().enumerate() {
        let mut bytes = bytes.clone();
        if carriage_returns {
            bytes =
                bytes.into_iter().flat_map(|byte| if byte == b' ' { vec![b'\r', b'\n'] } else { vec![byte] }).collect();
        }
        let lines = if *is_stdout { stdout.read(&bytes) } else { stderr.read(&bytes) };
        if *is_stdout {
            written.extend_from_slice(&bytes);
        }
        file.write_all(&lines).expect("written");
        if let Some(compressed) = rotation {
            let mut name = format!("0.log.20240101-{index:06}");
            let text = fs::read(&current).expect("read");
            fs::remove_file(&current).expect("removed");
            if *compressed {
                name.push_str(".gz");
                let mut gzip = GzEncoder::new(File::create(directory.join(name)).expect("a file"), Compression::fast());
                gzip.write_all(&text).expect("written");
                gzip.finish().expect("written");
            } else {
                fs::write(directory.join(name), text).expect("written");
            }
            file = File::create(&current).expect("a file");
        }
    }
    file.write_all(&stdout.end()).expect("written");
    file.write_all(&stderr.end()).expect("written");
    written
}

/// What is taken for the bytes of a gap.
fn repaired(directory: &Path, gap: &Gap) -> Option<Vec<u8>> {
    let node = HostFiles::new(directory).expect("the root");
    let deadline = Instant::now() + Duration::from_secs(60);
    let location = Location::Directory("/".into());
    let Look::Found(found) = look(&node, &location, gap, None, deadline).expect("readable") else { return None };
    let mut copy = Copy::new(found, gap);
    let mut bytes = Vec::new();
    while let Some(chunk) = copy.next().expect("readable") {
        assert_eq!(chunk.position, gap.range.start + bytes.len() as u64);
        bytes.extend(chunk.bytes);
    }
    Some(bytes)
}

fn gap(written: &[u8], from: usize, to: usize, around: usize) -> Gap {
    Gap {
        iostream: IoStream::Stdout,
        registered: TIME,
        range: from as u64..to as u64,
        before: written[from.saturating_sub(around)..from].to_vec(),
        not_before: TIME,
        after: match written[to..].len() {
            0 => After::End,
            left => After::Bytes(written[to..to + left.min(around)].to_vec().into()),
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn what_runtimes_write_is_read_back(model in model(), writes in writes()) {
        let directory = tempfile::tempdir().expect("a directory");
        let written = write_all(directory.path(), model, &writes, false);
        let node = HostFiles::new(directory.path()).expect("the root");
        let files = Arc::new(open_all(&node, Path::new("/0.log")).expect("open"));
        let mut content = Content::new(&files, IoStream::Stdout, Place::default());
        let mut read = Vec::new();
        while let Some((place, entry)) = content.next().expect("readable") {
            prop_assert_eq!(place.position, read.len() as u64);
            prop_assert!(entry.exact && entry.time() == Some(TIME));
            read.extend_from_slice(&entry.bytes);
        }
        prop_assert_eq!(read, written);
    }

    #[test]
    fn a_gap_is_filled_with_its_bytes(
        model in model(), writes in writes(), from: prop::sample::Index, to: prop::sample::Index,
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let written = write_all(directory.path(), model, &writes, false);
        prop_assume!(written.len() > 1);
        let (one, other) = (from.index(written.len() + 1), to.index(written.len() + 1));
        let (from, to) = (one.min(other), one.max(other));
        prop_assume!(from < to);
        let found = repaired(directory.path(), &gap(&written, from, to, super::KNOWN_BYTES));
        prop_assert_eq!(found.as_deref(), Some(&written[from..to]));
    }

    /// With lines that containerd shortens, and a file that is gone: what is taken is right, or nothing is.
    #[test]
    fn wrong_bytes_are_never_taken(
        model in model(), writes in writes(), from: prop::sample::Index, to: prop::sample::Index, without_oldest: bool,
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let written = write_all(directory.path(), model, &writes, true);
        prop_assume!(written.len() > 1);
        if without_oldest {
            let mut names: Vec<_> = fs::read_dir(directory.path()).expect("listed").flatten().map(|e| e.path()).collect();
            names.sort_by_key(|path| path.to_string_lossy().replace(".gz", ""));
            // The current one is the first by name.
            if let Some(oldest) = names.get(1) {
                fs::remove_file(oldest).expect("removed");
            }
        }
        let (one, other) = (from.index(written.len() + 1), to.index(written.len() + 1));
        let (from, to) = (one.min(other), one.max(other));
        prop_assume!(from < to);
        let found = repaired(directory.path(), &gap(&written, from, to, super::KNOWN_BYTES));
        prop_assert!(found.is_none_or(|found| found == written[from..to]));
    }
}

#[test]
fn a_gap_behind_shortened_lines_is_found_by_its_neighbours() {
    let directory = tempfile::tempdir().expect("a directory");
    let text: String = (0..200).map(|line| format!("line {line}{}\n", if line < 20 { "\r" } else { "" })).collect();
    let written = write_all(directory.path(), Model::Containerd, &[(text.into_bytes(), true, None)], false);
    let found = repaired(directory.path(), &gap(&written, 1000, 1500, 128));
    assert_eq!(found.as_deref(), Some(&written[1000..1500]));
    assert_eq!(repaired(directory.path(), &gap(&written, 100, 1500, 128)), None, "lines in it are shortened");
}
