//! What a container runtime does with a container's stdout, for tools that read the runtime's files: each line with time, stream
//! and a tag in front (the CRI log format), and one `write` for each, as containerd's shim has it.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

use crate::{DEADLINE, wait_until};

/// A longer line is cut (`max_container_log_line_size`).
const MAX_LINE: u64 = 16 * 1024;

/// A container's log as containerd writes it, while it runs.
#[derive(Debug)]
pub struct RuntimeLog {
    path: PathBuf,
    file: Arc<Mutex<File>>,
    /// Bytes of the container that are in it.
    written: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl RuntimeLog {
    /// Copies what comes out of `source` to `path`.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn start(path: &Path, source: impl Read + Send + 'static) -> Result<Self> {
        let file = Arc::new(Mutex::new(open(path)?));
        let written = Arc::new(AtomicU64::new(0));
        let (output, counter) = (Arc::clone(&file), Arc::clone(&written));
        let thread = thread::spawn(move || {
            let copied = copy(source, |line, bytes| {
                output.lock().unwrap_or_else(PoisonError::into_inner).write_all(line)?;
                counter.fetch_add(bytes, Relaxed);
                Ok(())
            });
            if let Err(error) = copied {
                eprintln!("copying a container's stdout: {error}");
            }
        });
        Ok(Self { path: path.to_owned(), file, written, thread })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the container that are in it.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// As the kubelet does it: the file gets another name, and then the runtime opens it anew.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn rotate(&self, suffix: &str) -> Result<PathBuf> {
        let mut rotated = self.path.clone().into_os_string();
        rotated.push(format!(".{suffix}"));
        fs::rename(&self.path, &rotated)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = open(&self.path)?;
        Ok(rotated.into())
    }

    /// Waits until all that the container wrote is in the file, after its end.
    ///
    /// # Errors
    /// Somebody has its pipe open still.
    pub fn wait_end(&self) -> Result<()> {
        wait_until("the end of a runtime's log", DEADLINE, || Ok(self.thread.is_finished().then_some(())))
    }
}

fn open(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).with_context(|| format!("opening {}", path.display()))
}

/// Writes the log of what `source` has, up to its end: each line goes to `write`, with the count of the container's bytes.
///
/// # Errors
/// Those of either side.
pub fn copy(source: impl Read, mut write: impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
    let mut source = BufReader::with_capacity(64 << 10, source);
    let mut line = Vec::new();
    loop {
        line.clear();
        write_prefix(&mut line)?;
        let tag = line.len() - 2;
        let bytes = source.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? as u64;
        if bytes == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            line[tag] = b'P';
            line.push(b'\n');
        }
        write(&line, bytes)?;
    }
}

/// `2026-11-21T05:00:00.000000901Z stdout F `.
fn write_prefix(line: &mut Vec<u8>) -> io::Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let second = now.tv_sec.rem_euclid(86_400);
    let (year, month, day) = civil(now.tv_sec.div_euclid(86_400));
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    write!(line, "{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z stdout F ", now.tv_nsec)
}

/// The Gregorian date of a day since 1970-01-01, after 1970 (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_453), (2025, 12, 31));
    }
}
