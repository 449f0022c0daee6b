//! From the write to the sink: each line carries the time of its write, and the sink's file is watched.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use sidestep_tests::{Testbed, wait_until};

use crate::{
    report::{Figure, Target},
    session::Session,
    statistics::quantile,
    worker::Job,
    writer::Writer,
};

pub(crate) const LINES_PER_SECOND: u64 = 1000;

/// p99, in milliseconds.
const TARGET: f64 = 20.0;

/// How often the file is looked at: the error of the figures.
const LOOK: Duration = Duration::from_micros(200);

/// How often new files are looked for: the sink begins one with the first line and at each full hour.
const LOOK_FOR_FILES: Duration = Duration::from_millis(20);

pub(crate) fn run(session: &mut Session) -> Result<()> {
    session.step("latency: 1,000 lines/s, from the write to the sink's file");
    let bed = Testbed::new()?;
    let mut writer = Writer::drained(&bed, "writer", None)?;
    let agent = session.agent(&bed, &bed.config())?;
    let time = session.choose(Duration::from_secs(10), Duration::from_secs(3));
    let warm_up = Job::Stamps { per_second: LINES_PER_SECOND, time: Duration::from_millis(500) };
    let expected = writer.perform_one(warm_up)?.calls as usize;
    let watch = Watch::start(agent.records_directory().to_owned());
    watch.wait(expected)?;
    let expected = expected + writer.perform_one(Job::Stamps { per_second: LINES_PER_SECOND, time })?.calls as usize;
    watch.wait(expected)?;
    let all = watch.stop()?;
    agent.stop()?;
    ensure!(all.len() == expected, "{} lines instead of {expected}", all.len());
    let warm_up = expected - (time.as_millis() as usize * LINES_PER_SECOND as usize / 1000).min(expected);
    let mut delays = all[warm_up..].to_vec();
    delays.sort_unstable_by(f64::total_cmp);
    for (name, what, share, target) in [
        ("latency_p50", "write to sink at 1,000 lines/s: p50", 0.5, None),
        ("latency_p99", "write to sink at 1,000 lines/s: p99", 0.99, Some(Target::AtMost(TARGET))),
        ("latency_max", "write to sink at 1,000 lines/s: the slowest", 1.0, None),
    ] {
        let value = quantile(&delays, share).context("no line")?;
        let figure = Figure::of(name, what, "ms", vec![value])?;
        session.report.add(match target {
            Some(target) => figure.target(target),
            None => figure,
        });
    }
    Ok(())
}

/// A thread that follows the sink's files.
struct Watch {
    /// Lines seen; written by the thread alone.
    seen: Arc<std::sync::atomic::AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<Vec<f64>>>,
}

impl Watch {
    fn start(directory: PathBuf) -> Self {
        let seen = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || {
                let mut follower = Follower::default();
                while !stop.load(Ordering::Relaxed) {
                    follower.look(&directory)?;
                    seen.store(follower.delays.len(), Ordering::Relaxed);
                    thread::sleep(LOOK);
                }
                Ok(follower.delays)
            }
        });
        Self { seen, stop, thread }
    }

    fn wait(&self, lines: usize) -> Result<()> {
        wait_until(&format!("{lines} lines in the sink's file"), sidestep_tests::DEADLINE, || {
            ensure!(!self.thread.is_finished(), "the sink's file can't be followed");
            Ok((self.seen.load(Ordering::Relaxed) >= lines).then_some(()))
        })
    }

    fn stop(self) -> Result<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the watching thread panicked"))?
    }
}

#[derive(Default)]
struct Follower {
    files: Vec<(PathBuf, File, String)>,
    looked_for_files: Option<Instant>,
    /// Milliseconds, in the order of the lines.
    delays: Vec<f64>,
}

impl Follower {
    fn look(&mut self, directory: &Path) -> Result<()> {
        if self.looked_for_files.is_none_or(|last| last.elapsed() >= LOOK_FOR_FILES) {
            self.looked_for_files = Some(Instant::now());
            self.find(directory)?;
        }
        for (_, file, text) in &mut self.files {
            if file.read_to_string(text).context("following the sink's file")? == 0 {
                continue;
            }
            let now = clock_gettime(ClockId::Realtime);
            let now = now.tv_sec as f64 * 1e3 + now.tv_nsec as f64 / 1e6;
            let complete = text.rfind('\n').map_or(0, |at| at + 1);
            for line in text[..complete].lines() {
                self.delays.push(now - written_at(line).with_context(|| format!("no time in {line}"))?);
            }
            text.drain(..complete);
        }
        Ok(())
    }

    fn find(&mut self, directory: &Path) -> Result<()> {
        let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                self.find(&path)?;
            } else if path.extension().is_some_and(|extension| extension == "ndjson")
                && !self.files.iter().any(|(known, ..)| *known == path)
            {
                let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
                self.files.push((path, file, String::new()));
            }
        }
        Ok(())
    }
}

/// The time that a record's body begins with, in milliseconds.
pub(crate) fn written_at(record: &str) -> Option<f64> {
    let (_, body) = record.split_once("\"body\":\"")?;
    Some(body.split(' ').next()?.parse::<u64>().ok()? as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_time_in_a_record() {
        assert_eq!(written_at(r#"{"timestamp":"x","body":"1500000 the time","position":1}"#), Some(1.5));
        assert_eq!(written_at(r#"{"body":"no time"}"#), None);
    }
}
