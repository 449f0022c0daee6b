//! The measured writer: a process in a container that does one job after the other and answers with its times.

use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{Ipv4Addr, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use sidestep_tests::random::Xorshift;

/// The log file that a writer in a container writes to.
const LOG_FILE: &str = "/var/log/bench.log";

/// What is called.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub(crate) enum Call {
    /// `write` to stdout.
    Stdout,
    /// `write` to a log file, opened for appending.
    LogFile,
    /// `write` to `/dev/null`.
    Null,
    /// `getpid`.
    Getpid,
    /// `connect` to a port of the container itself where nobody listens.
    ConnectRefused,
    /// The same, that a policy refuses.
    ConnectDenied,
}

/// What a writer shall do.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) enum Job {
    /// Bursts of calls with a pause after each, in which the other side can catch up.
    Bursts { call: Call, size: usize, calls: u32, bursts: u32, pause: Duration },
    /// Lines of `size` bytes to stdout for some time.
    Lines { size: usize, per_second: Option<u64>, time: Duration },
    /// Lines to stdout that begin with the time (CLOCK_REALTIME, ns) of their write.
    Stamps { per_second: u64, time: Duration },
}

/// What it took.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Took {
    /// Calls made.
    pub(crate) calls: u64,
    /// Bytes written.
    pub(crate) bytes: u64,
    /// On the wall clock.
    pub(crate) wall: Duration,
    /// CPU time of the process, user and system.
    pub(crate) cpu: Duration,
}

impl Took {
    /// Nanoseconds of CPU for a call.
    pub(crate) fn cpu_per_call(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.calls.max(1) as f64
    }
}

/// One answer: a [`Took`] for each burst, or one in all.
pub(crate) type Answer = Vec<Took>;

/// Does jobs until the other side closes the socket.
pub(crate) fn run(socket: &Path) -> Result<()> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    let mut answers = stream.try_clone()?;
    let mut descriptors = Descriptors::open()?;
    for order in BufReader::new(stream).lines() {
        let job: Job = serde_json::from_str(&order?).context("reading an order")?;
        let answer = perform(job, &mut descriptors)?;
        writeln!(answers, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

struct Descriptors {
    stdout: OwnedFd,
    null: File,
    /// Opened at first use: nobody sees a file before something is written.
    log_file: Option<File>,
}

impl Descriptors {
    fn open() -> Result<Self> {
        let stdout = std::io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self { stdout, null: File::options().write(true).open("/dev/null")?, log_file: None })
    }

    fn log_file(&mut self) -> Result<&File> {
        if self.log_file.is_none() {
            let file = File::options().create(true).append(true).open(LOG_FILE);
            self.log_file = Some(file.with_context(|| format!("opening {LOG_FILE}"))?);
        }
        self.log_file.as_ref().context("the log file")
    }
}

fn perform(job: Job, descriptors: &mut Descriptors) -> Result<Answer> {
    match job {
        Job::Bursts { call, size, calls, bursts, pause } => {
            let line = Lines::new(size).next().to_owned();
            let burst = |call: &dyn Fn() -> Result<()>| (0..bursts).map(|_| timed_burst(call, calls, pause)).collect();
            match call {
                Call::Stdout => burst(&|| write_whole(&descriptors.stdout, &line)),
                Call::LogFile => {
                    let file = descriptors.log_file()?;
                    burst(&|| write_whole(file, &line))
                }
                Call::Null => burst(&|| write_whole(&descriptors.null, &line)),
                Call::ConnectRefused => burst(&|| connect(ErrorKind::ConnectionRefused)),
                Call::ConnectDenied => burst(&|| connect(ErrorKind::PermissionDenied)),
                Call::Getpid => burst(&|| {
                    std::hint::black_box(rustix::process::getpid());
                    Ok(())
                }),
            }
        }
        Job::Lines { size, per_second, time } => {
            let mut lines = Lines::new(size);
            Ok(vec![paced(per_second, time, || write_whole(&descriptors.stdout, lines.next()).map(|()| size))?])
        }
        Job::Stamps { per_second, time } => {
            let write = || {
                let now = clock_gettime(ClockId::Realtime);
                let line = format!("{} the time of this line's write, in nanoseconds\n", nanoseconds(now));
                write_whole(&descriptors.stdout, line.as_bytes()).map(|()| line.len())
            };
            Ok(vec![paced(Some(per_second), time, write)?])
        }
    }
}

fn timed_burst(call: &dyn Fn() -> Result<()>, calls: u32, pause: Duration) -> Result<Took> {
    let clocks = Clocks::start();
    for _ in 0..calls {
        call()?;
    }
    let took = clocks.took(u64::from(calls), 0);
    thread::sleep(pause);
    Ok(took)
}

/// Calls `write` at this rate, or as fast as it goes, for `time`; late calls are made up for.
fn paced(per_second: Option<u64>, time: Duration, mut write: impl FnMut() -> Result<usize>) -> Result<Took> {
    // The clock is looked at each millisecond of lines only: at full speed it would cost more than it tells.
    let batch = per_second.map_or(256, |rate| (rate / 1000).max(1));
    let clocks = Clocks::start();
    let (mut calls, mut bytes) = (0, 0);
    while clocks.wall.elapsed() < time {
        for _ in 0..batch {
            bytes += write()? as u64;
        }
        calls += batch;
        if let Some(rate) = per_second {
            let due = Duration::from_secs_f64(calls as f64 / rate as f64);
            thread::sleep(due.saturating_sub(clocks.wall.elapsed()));
        }
    }
    Ok(clocks.took(calls, bytes))
}

/// Discard (RFC 863): nobody listens there.
const DISCARD: u16 = 9;

fn connect(expected: ErrorKind) -> Result<()> {
    let error = TcpStream::connect((Ipv4Addr::LOCALHOST, DISCARD)).err().map(|error| error.kind());
    ensure!(error == Some(expected), "{error:?}, and not {expected:?}");
    Ok(())
}

fn write_whole(descriptor: impl AsFd, bytes: &[u8]) -> Result<()> {
    let written = rustix::io::write(descriptor, bytes).context("writing")?;
    ensure!(written == bytes.len(), "only {written} of {} bytes were written", bytes.len());
    Ok(())
}

struct Clocks {
    wall: Instant,
    cpu: Duration,
}

impl Clocks {
    fn start() -> Self {
        Self { wall: Instant::now(), cpu: cpu_time() }
    }

    fn took(&self, calls: u64, bytes: u64) -> Took {
        Took { calls, bytes, wall: self.wall.elapsed(), cpu: cpu_time().saturating_sub(self.cpu) }
    }
}

fn cpu_time() -> Duration {
    Duration::from_nanos(nanoseconds(clock_gettime(ClockId::ProcessCPUTime)))
}

fn nanoseconds(time: rustix::time::Timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Lines like those of a service: mostly the same words, with an identifier that never comes again, so that a
/// compressor has neither nothing nor everything to do.
struct Lines {
    line: Vec<u8>,
    random: Xorshift,
}

/// Where the digits stand that change.
const DIGITS: std::ops::Range<usize> = 40..88;

impl Lines {
    fn new(size: usize) -> Self {
        let start = b"INFO  checkout.OrderService order_id=    ";
        let words = b"customer accepted, payment of 42.10 EUR authorised by gateway eu-1 after 3 attempts; ";
        let mut line = vec![b'0'; DIGITS.end];
        line[..DIGITS.start].copy_from_slice(&start[..DIGITS.start]);
        line.push(b' ');
        line.extend(words.iter().cycle().take(size.saturating_sub(line.len() + 1)));
        line.truncate(size - 1);
        line.push(b'\n');
        Self { line, random: Xorshift::new(0x9e37_79b9_7f4a_7c15) }
    }

    fn next(&mut self) -> &[u8] {
        let end = DIGITS.end.min(self.line.len() - 1);
        for eight in self.line[DIGITS.start..end].chunks_mut(8) {
            for (digit, byte) in eight.iter_mut().zip(self.random.next().to_le_bytes()) {
                *digit = b'a' + (byte & 15);
            }
        }
        &self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_size_and_differ() {
        let mut lines = Lines::new(200);
        let first = lines.next().to_owned();
        assert_eq!((first.len(), first.iter().filter(|byte| **byte == b'\n').count()), (200, 1));
        assert_ne!(first, lines.next());
        assert_eq!(Lines::new(64).next().len(), 64);
    }

    #[test]
    fn a_pace_is_kept() {
        let took = paced(Some(2000), Duration::from_millis(100), || Ok(1)).expect("no failure");
        assert!((190..=210).contains(&took.calls), "{took:?}");
        assert_eq!(took.bytes, took.calls);
    }
}
