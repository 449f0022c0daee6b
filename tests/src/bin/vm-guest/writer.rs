//! The writer inside of a container. Every mode writes to stdout or to a file below `/var/log`, says `done` on stderr,
//! and stays until its stdin is closed, so that its account stays open.

use std::{
    fs::{self, File},
    io::{self, IoSlice, Read},
    os::fd::AsFd,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    io::{ReadWriteFlags, pwrite, pwritev, pwritev2, writev},
    pipe::{SpliceFlags, pipe, splice},
};

/// What is written. The bytes are given by [`Mode::stdout`] and [`Mode::file`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// One write of several MiB.
    Large,
    /// One `writev` with 1024 vectors, one with few, one with a large one.
    Vectors,
    /// `pwrite`, `pwritev`, `pwritev2` with a position, and `pwritev2` that appends.
    Positions,
    /// A log file that is renamed, and a new one in its place.
    Rename,
    /// A log file that is truncated by someone else in the middle: when half is written, a byte is awaited on stdin.
    Truncate,
    /// Bytes that no buffer shows: spliced from a pipe into stdout.
    Splice,
}

/// Where log files are.
pub(crate) const LOG: &str = "/var/log/app.log";

/// Bytes that [`Mode::Splice`] moves without showing them.
pub(crate) const SPLICED: usize = 7000;

const LARGE_LINES: usize = 3072;

impl Mode {
    /// The argument that selects it.
    pub(crate) fn argument(self) -> String {
        use clap::ValueEnum as _;
        self.to_possible_value().map_or_else(String::new, |value| format!("--write={}", value.get_name()))
    }

    /// What is written to stdout, without what is spliced.
    pub(crate) fn stdout(self) -> Vec<u8> {
        match self {
            Self::Large => (0..LARGE_LINES).flat_map(|number| format!("{number:01023}\n").into_bytes()).collect(),
            Self::Vectors => self.vectors().concat().concat(),
            Self::Splice => b"seen before\nseen after\n".to_vec(),
            Self::Positions | Self::Rename | Self::Truncate => Vec::new(),
        }
    }

    /// What is written to [`LOG`], over its whole life.
    pub(crate) fn file(self) -> Vec<u8> {
        let word = match self {
            Self::Positions => "positioned",
            Self::Rename => "renamed",
            Self::Truncate => "truncated",
            Self::Large | Self::Vectors | Self::Splice => return Vec::new(),
        };
        lines(word, 0, 200).concat()
    }

    /// One inner list a call.
    fn vectors(self) -> [Vec<Vec<u8>>; 3] {
        let many = (0..1024).map(|number| format!("vector {number}\n").into_bytes()).collect();
        let few = ["", "head", " and", "", " tail\n"].map(|part| part.as_bytes().to_vec()).to_vec();
        let large = vec![b"large: ".to_vec(), vec![b'x'; 200_000], b"\n".to_vec()];
        [many, few, large]
    }
}

fn lines(word: &str, from: usize, to: usize) -> Vec<Vec<u8>> {
    (from..to).map(|number| format!("{word} {number}\n").into_bytes()).collect()
}

/// Writes as `mode` says, from inside of a container.
pub(crate) fn write(mode: Mode) -> Result<()> {
    match mode {
        Mode::Large => io::stdout().write_all_at_once(&mode.stdout())?,
        Mode::Vectors => vectors(mode)?,
        Mode::Positions => positions()?,
        Mode::Rename => rename()?,
        Mode::Truncate => truncate()?,
        Mode::Splice => spliced()?,
    }
    rustix::io::write(io::stderr(), b"done\n")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// One system call for all bytes: the library's own buffering would make others of it.
trait WriteAtOnce: AsFd {
    fn write_all_at_once(&self, bytes: &[u8]) -> Result<()> {
        let written = rustix::io::write(self, bytes)?;
        ensure!(written == bytes.len(), "a write of {} bytes took {written}", bytes.len());
        Ok(())
    }
}

impl<T: AsFd> WriteAtOnce for T {}

fn vectors(mode: Mode) -> Result<()> {
    for parts in mode.vectors() {
        let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let written = writev(io::stdout(), &slices)?;
        ensure!(written == parts.iter().map(Vec::len).sum::<usize>(), "a writev took {written} bytes");
    }
    Ok(())
}

fn positions() -> Result<()> {
    let file = File::create(LOG).context("creating the log")?;
    let mut at = 0;
    for (number, line) in lines("positioned", 0, 200).iter().enumerate() {
        let (head, tail) = line.split_at(3);
        let slices = [IoSlice::new(head), IoSlice::new(tail)];
        let written = match number % 4 {
            0 => pwrite(&file, line, at)?,
            1 => pwritev(&file, &slices, at)?,
            2 => pwritev2(&file, &slices, at, ReadWriteFlags::empty())?,
            _ => pwritev2(&file, &slices, u64::MAX, ReadWriteFlags::APPEND)?,
        };
        ensure!(written == line.len(), "a write of {} bytes took {written}", line.len());
        at += written as u64;
    }
    Ok(())
}

fn rename() -> Result<()> {
    let mut file = File::create(LOG)?;
    for line in lines("renamed", 0, 50) {
        file.write_all_at_once(&line)?;
    }
    fs::rename(LOG, format!("{LOG}.1"))?;
    // Written before the writer notices: still the log, under its old name.
    for line in lines("renamed", 50, 100) {
        file.write_all_at_once(&line)?;
    }
    file = File::create(LOG)?;
    for line in lines("renamed", 100, 200) {
        file.write_all_at_once(&line)?;
    }
    Ok(())
}

fn truncate() -> Result<()> {
    let file = File::options().append(true).create(true).open(LOG)?;
    for line in lines("truncated", 0, 100) {
        file.write_all_at_once(&line)?;
    }
    io::stderr().write_all_at_once(b"half\n")?;
    io::stdin().read_exact(&mut [0])?;
    for line in lines("truncated", 100, 200) {
        file.write_all_at_once(&line)?;
    }
    Ok(())
}

fn spliced() -> Result<()> {
    let stdout = io::stdout();
    stdout.write_all_at_once(b"seen before\n")?;
    let (source, sink) = pipe()?;
    sink.write_all_at_once(&b"hidden\n".repeat(SPLICED / 7))?;
    let mut left = SPLICED;
    while left > 0 {
        left -= splice(&source, None, &stdout, None, left, SpliceFlags::empty())?;
    }
    stdout.write_all_at_once(b"seen after\n")
}
