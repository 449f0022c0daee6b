mod crash;
mod faults;
mod names;
mod rotation;

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use super::*;
use crate::{
    record::Stream,
    sinks::{
        Delivery, Receipt, Settlement, Sink, SinkError,
        testing::{FIVE_O_CLOCK, all_settled, batch},
    },
};

const LONG: Duration = Duration::from_secs(30);

/// A sink in a directory of its own, with a clock that the test sets.
struct Fixture {
    directory: tempfile::TempDir,
    clock: Arc<AtomicU64>,
    settings: Settings,
    sink: Option<FileSink>,
    queue: VecDeque<Delivery>,
    sender: mpsc::Sender<Settlement>,
    settled: Receiver<Settlement>,
    position: u64,
}

impl Fixture {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("tree");
        Self::at(directory, path, change)
    }

    fn at(directory: tempfile::TempDir, path: PathBuf, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings { path, sync: Sync::Never, ..Settings::default() };
        change(&mut settings);
        let (sender, settled) = mpsc::channel();
        let clock = Arc::new(AtomicU64::new(FIVE_O_CLOCK));
        let mut fixture =
            Self { directory, clock, settings, sink: None, queue: VecDeque::new(), sender, settled, position: 0 };
        fixture.start().expect("starts");
        fixture
    }

    fn start(&mut self) -> Result<(), SinkError> {
        let clock = Arc::clone(&self.clock);
        let clock = Box::new(move || clock.load(Ordering::Relaxed));
        self.sink = Some(FileSink::with_clock(self.settings.clone(), clock)?);
        Ok(())
    }

    fn restart(&mut self) {
        self.sink().close(LONG).expect("closes");
        self.sink = None;
        self.start().expect("starts again");
    }

    fn sink(&mut self) -> &mut FileSink {
        self.sink.as_mut().expect("started")
    }

    fn set_hour(&self, hours_after_five: u64) {
        self.clock.store(FIVE_O_CLOCK + hours_after_five * 3_600_000_000_000, Ordering::Relaxed);
    }

    /// Queues one batch of these lines and lets the sink write.
    fn write(&mut self, stream: &Arc<Stream>, bodies: &[&[u8]]) -> Result<(), SinkError> {
        self.queue(stream, bodies);
        self.retry()
    }

    fn queue(&mut self, stream: &Arc<Stream>, bodies: &[&[u8]]) {
        let batch = Arc::new(batch(stream, self.position, bodies));
        self.position = batch.end();
        let receipt = Receipt::for_sinks(&batch, 1, &self.sender, None).remove(0);
        self.queue.push_back(Delivery { batch, receipt });
    }

    fn retry(&mut self) -> Result<(), SinkError> {
        self.sink.as_mut().expect("started").write(&mut self.queue)
    }

    /// How many batches have been settled since the last call, all of them as delivered.
    fn delivered(&self) -> usize {
        all_settled(&self.settled).iter().inspect(|settled| assert_eq!(settled.lost_for(), None)).count()
    }

    /// Ticks until what is below the root is as wanted.
    fn tick_until(&mut self, what: &str, reached: impl Fn(&[String]) -> bool) -> Vec<String> {
        let deadline = Instant::now() + LONG;
        loop {
            self.sink().tick().expect("a tick without error");
            let files = self.files();
            if reached(&files) {
                return files;
            }
            assert!(Instant::now() < deadline, "waited in vain: {what}; there are {files:?}");
            std::thread::yield_now();
        }
    }

    /// Every file below the root, sorted.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        collect(&self.settings.path, &self.settings.path, &mut files);
        files.sort();
        files
    }

    /// The bodies in a file, decompressed.
    fn bodies(&self, file: &str) -> Vec<String> {
        let text = read(&self.settings.path.join(file));
        assert!(text.is_empty() || text.ends_with('\n'), "{file} ends in a torn line");
        text.lines()
            .map(|line| {
                let record: serde_json::Value = serde_json::from_str(line).expect("a record");
                record["body"].as_str().expect("a body").to_owned()
            })
            .collect()
    }
}

fn collect(root: &Path, directory: &Path, files: &mut Vec<String>) {
    // Directories may vanish while the keeper works.
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(file_type) = entry.file_type() else { continue };
        if file_type.is_dir() {
            collect(root, &entry.path(), files);
        } else {
            files.push(entry.path().strip_prefix(root).expect("below").to_string_lossy().into_owned());
        }
    }
}

fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let bytes = match path.extension().and_then(|extension| extension.to_str()) {
        Some("zst") => zstd::decode_all(&bytes[..]).expect("zstd"),
        Some("gz") => {
            let mut out = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut out).expect("gzip");
            out
        }
        _ => bytes,
    };
    String::from_utf8(bytes).expect("UTF-8")
}
