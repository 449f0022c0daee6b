//! The agent's own log: where it goes, and what keeps it from flooding the node that it watches.
//!
//! Each place in the code that logs may do so [`BURST`] times within [`INTERVAL`]; what is more is left out, and one line
//! tells how many they were. The count is also a metric.

use std::{
    collections::HashMap,
    io::IsTerminal as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tracing::{Event, Level, Metadata, callsite::Identifier, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer as _, Registry,
    layer::{Context, Filter, SubscriberExt as _},
    reload,
    util::SubscriberInitExt as _,
};

use crate::config::{Config, LogFormat, LogLevel};

/// Lines of one place in the code within an interval.
const BURST: u32 = 20;
/// How long that counts.
const INTERVAL: Duration = Duration::from_secs(30);

/// Lines that were left out since the start.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// How many lines of the agent's own log were left out since the start.
#[must_use]
pub fn left_out() -> u64 {
    LEFT_OUT.load(Relaxed)
}

/// The running logger.
#[derive(Clone)]
pub struct OwnLog {
    level: reload::Handle<LevelFilter, Registry>,
    limit: Arc<Limit>,
}

/// What each place in the code has logged.
#[derive(Debug, Default)]
pub struct Limit {
    places: Mutex<HashMap<Identifier, Place>>,
}

#[derive(Debug)]
struct Place {
    /// File and line in the source.
    name: String,
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl OwnLog {
    /// Logs to standard error: standard output may be a sink.
    #[must_use]
    pub fn start(config: &Config) -> Self {
        let (filter, level) = reload::Layer::new(level(config));
        let limit = Arc::new(Limit::default());
        let colors =
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colors);
        let layer = match config.log.format {
            LogFormat::Text => layer.boxed(),
            LogFormat::Json => layer.json().boxed(),
        };
        let layer = layer.with_filter(Limited(Arc::clone(&limit)));
        // A second call, as in tests, keeps the first logger.
        let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
        Self { level, limit }
    }

    /// Takes over the level of a configuration.
    pub fn set_level(&self, config: &Config) {
        if let Err(error) = self.level.reload(level(config)) {
            tracing::warn!(%error, "the log level can't be changed");
        }
    }

    /// Tells what was left out, now and then, as long as the agent runs.
    pub async fn tell(self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            for (place, lines) in self.limit.take_left_out() {
                tracing::warn!(place, lines, "lines of the agent's own log were left out: they came too fast");
            }
        }
    }
}

const fn level(config: &Config) -> LevelFilter {
    match config.log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

impl Limit {
    /// Whether this place may log a line at `now`.
    fn admits(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        // Told by our own events, once, and not at each attempt.
        if metadata.target().starts_with("kube_") && *metadata.level() == Level::WARN {
            return false;
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(metadata.callsite()).or_insert_with(|| Place {
            name: format!("{}:{}", metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0)),
            since: now,
            lines: 0,
            left_out: 0,
        });
        if now.duration_since(place.since) >= INTERVAL {
            (place.since, place.lines) = (now, 0);
        }
        place.lines = place.lines.saturating_add(1);
        let is_admitted = place.lines <= BURST;
        if !is_admitted {
            place.left_out += 1;
            LEFT_OUT.fetch_add(1, Relaxed);
        }
        is_admitted
    }

    /// How many lines were left out since the last call, for each place with some.
    fn take_left_out(&self) -> Vec<(String, u64)> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let some = places.values_mut().filter(|place| place.left_out > 0);
        some.map(|place| (place.name.clone(), std::mem::take(&mut place.left_out))).collect()
    }
}

/// Keeps a [`Limit`] in a logger.
struct Limited(Arc<Limit>);

impl<S> Filter<S> for Limited {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.0.admits(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A log in memory.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_place_that_logs_too_much_is_held_back_and_others_are_not() {
        let memory = Memory::default();
        let limit = Arc::new(Limit::default());
        let writer = memory.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_ansi(false);
        let logger = tracing_subscriber::registry().with(layer.with_filter(Limited(Arc::clone(&limit))));
        tracing::subscriber::with_default(logger, || {
            for number in 0..1000 {
                tracing::warn!(number, "flood");
            }
            tracing::warn!("quiet");
        });
        let text = String::from_utf8(memory.0.lock().expect("no panic").clone()).expect("text");
        assert_eq!(text.lines().filter(|line| line.contains("flood")).count(), 20);
        assert_eq!(text.lines().filter(|line| line.contains("quiet")).count(), 1);
        let left_out = limit.take_left_out();
        assert_eq!(left_out.len(), 1);
        assert!(left_out[0].0.contains("own_log.rs:"), "{left_out:?}");
        assert_eq!(left_out[0].1, 980);
        assert!(limit.take_left_out().is_empty(), "told once");
    }
}
