//! The thread, with real files and records as the kernel would send them.

mod restart;

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        mpsc::{self, SyncSender},
    },
};

use sidestep_abi::log::FLAG_APPEND;

use super::{admit::BIRTH_GRAIN_NANOS, *};
use crate::{
    attribute::Identity,
    config::{Config, Environment, Globs, Slash},
    files::event::FileEvent,
    ledger::{Account, Reason, Stage},
    load::running::inode_key,
    pipeline::container::{Joined, Profile},
    policy::Unannounced,
    record::{Origin, Resource},
    sinks::receipt::Span,
};

#[derive(Clone, Default)]
struct FakeVerdicts(Arc<Mutex<HashMap<u64, bool>>>, Arc<Mutex<HashMap<u64, u64>>>);

impl Verdicts for FakeVerdicts {
    fn forget_ignored(&mut self) {}

    fn set(&mut self, key: &InodeKey, _announced: u64, is_log: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.ino, is_log);
    }

    fn forget(&mut self, key: &InodeKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.ino);
    }

    fn announce_again(&mut self, key: &InodeKey) {
        self.forget(key);
    }

    fn written(&mut self, _key: &InodeKey, announced: u64) -> u64 {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).get(&announced).copied().unwrap_or_default()
    }

    fn unannounced(&mut self) -> Vec<Unannounced> {
        Vec::new()
    }

    fn settle(&mut self, _file: &Unannounced) {}
}

/// A running thread and what it has delivered.
struct Agent {
    events: SyncSender<FileEvents>,
    handle: Handle,
    verdicts: FakeVerdicts,
    out: Arc<Mutex<Vec<Arc<Batch>>>>,
}

fn config(root: &Path, server: &[&str]) -> Settings {
    let config = Config::defaults(&Environment::current()).expect("defaults");
    let patterns: Vec<_> = server.iter().map(|path| format!("{}{path}", root.display())).collect();
    let mut server = config.server;
    server.files.include = Globs::new(&patterns, Slash::Separates).expect("globs");
    server.poll_interval = Duration::from_millis(20);
    Settings {
        state_dir: root.join("state"),
        host_root: "/".into(),
        cgroup_mount: root.join("no-cgroups"),
        server,
        server_lines: config.lines,
        node: Arc::default(),
        node_account: Arc::default(),
        max_open: 4096,
    }
}

impl Agent {
    fn start(settings: Settings) -> Self {
        let (events, receiver) = mpsc::sync_channel(16);
        let verdicts = FakeVerdicts::default();
        let out = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&out);
        let deliver: Deliver =
            Box::new(move |batch, _| sink.lock().unwrap_or_else(PoisonError::into_inner).push(batch));
        let handle = Tailer::spawn(settings, receiver, Box::new(verdicts.clone()), deliver).expect("thread");
        Self { events, handle, verdicts, out }
    }

    fn send(&self, bytes: &[u8], event: FileEvent) {
        self.events
            .send(FileEvents { bytes: bytes.to_vec(), events: vec![event], holds: Vec::new() })
            .expect("the thread runs");
    }

    /// The content of all streams whose path ends so, in the order of delivery.
    fn content(&self, path: &str) -> String {
        let out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = out
            .iter()
            .filter(|batch| matches!(&batch.stream.origin, Origin::File { path: own } if own.ends_with(path)))
            .flat_map(|batch| batch.data.to_vec())
            .collect();
        String::from_utf8(bytes).expect("text")
    }

    fn expect(&self, path: &str, content: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.content(path) != content {
            assert!(Instant::now() < deadline, "{:?} is not {content:?}", self.content(path));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// As [`Agent::expect`], whatever the order; `lines` are sorted.
    fn expect_lines(&self, path: &str, lines: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let content = self.content(path);
            let mut found: Vec<_> = content.lines().collect();
            found.sort_unstable();
            if found == lines {
                return;
            }
            assert!(Instant::now() < deadline, "{found:?} are not {lines:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops, with everything acknowledged that was delivered.
    fn stop(self) -> Leftover {
        let stopped = self.handle.stop(Instant::now() + Duration::from_secs(10)).expect("no panic");
        for batch in self.out.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let (start, end) = (batch.lines[0].position, batch.end());
            stopped.progress().stored(&Span { stream: Arc::clone(&batch.stream), start, end });
        }
        let leftover = stopped.leftover;
        stopped.save();
        leftover
    }
}

fn container(cgroup: u64) -> Arc<Container> {
    Container::new(cgroup)
}

fn settle(container: &Container) -> Arc<Account> {
    let config = Config::defaults(&Environment::current()).expect("defaults");
    let resource = Arc::new(Resource { container_id: Some("c1".into()), ..Resource::default() });
    let account = Arc::new(Account::new(7, Arc::clone(&resource)));
    let identity = Arc::new(Identity { resource, ..Identity::default() });
    container.settle(Profile::new(
        identity,
        Joined::default(),
        Arc::clone(&account),
        &config.capture,
        &config.lines,
        None,
    ));
    account
}

/// A file that a container writes.
struct Writer {
    file: File,
    path: PathBuf,
    container: Arc<Container>,
}

impl Writer {
    fn new(path: &Path, container: &Arc<Container>) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path).expect("file");
        Self { file, path: path.to_owned(), container: Arc::clone(container) }
    }

    fn key(&self) -> InodeKey {
        inode_key(&self.file.metadata().expect("metadata"))
    }

    fn seen(&mut self, agent: &Agent) {
        let position = self.file.stream_position().expect("position");
        let (path, container) = (self.path.to_str().map(Into::into), Arc::clone(&self.container));
        let (tgid, fd) = (std::process::id(), self.file.as_raw_fd());
        agent.send(
            b"",
            FileEvent::Seen { key: self.key(), announced: 1, path, tgid, fd, position, name_hash: 0, container },
        );
    }

    fn write(&mut self, text: &str) -> FileEvent {
        self.file.write_all(text.as_bytes()).expect("written");
        FileEvent::Data {
            key: self.key(),
            position: self.file.stream_position().expect("position") - text.len() as u64,
            bytes: 0..text.len(),
            time_unix_nano: unix_nano(),
            tid: 1,
            description: 1,
            flags: FLAG_APPEND,
            container: Arc::clone(&self.container),
        }
    }

    fn write_seen(&mut self, agent: &Agent, text: &str) {
        let event = self.write(text);
        agent.send(text.as_bytes(), event);
    }
}

#[test]
fn a_container_of_which_all_is_gone_is_complete() {
    let directory = tempfile::tempdir().expect("directory");
    let agent = Agent::start(config(directory.path(), &[]));
    let container = container(7);
    let mut writer = Writer::new(&directory.path().join("short.log"), &container);
    let event = writer.write("one\n");
    // The file can't be opened: no process, no path.
    let key = writer.key();
    let path = Some("/nowhere/short.log".into());
    let seen = FileEvent::Seen {
        key,
        announced: 1,
        path,
        tgid: 0,
        fd: 0,
        position: 4,
        name_hash: 0,
        container: Arc::clone(&container),
    };
    agent.send(b"", seen);
    agent.send(b"one\n", event);
    writer.write_seen(&agent, "two");
    agent.send(b"", FileEvent::Ended { container: Arc::clone(&container) });
    let account = settle(&container);
    agent.expect("short.log", "one\ntwo");
    assert_eq!((account.balance().produced, account.balance().dropped), (7, vec![]));
    assert_eq!(agent.stop(), Leftover::default());
}

#[test]
fn what_is_no_log_is_ignored_and_a_log_is_read_to_its_end() {
    let directory = tempfile::tempdir().expect("directory");
    let agent = Agent::start(config(directory.path(), &[]));
    let container = container(7);
    settle(&container);
    let mut other = Writer::new(&directory.path().join("data.db"), &container);
    let mut log = Writer::new(&directory.path().join("app.log"), &container);
    for writer in [&mut other, &mut log] {
        let event = writer.write("one\n");
        writer.seen(&agent);
        agent.send(b"one\n", event);
    }
    // A lost record, then the end.
    log.write("two\n");
    log.write("no newline");
    agent.send(b"", FileEvent::Ended { container });
    agent.expect("app.log", "one\ntwo\nno newline");
    assert_eq!(agent.content("data.db"), "");
    let verdicts = agent.verdicts.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(verdicts.get(&other.key().ino), Some(&false));
    agent.stop();
}

#[test]
fn a_restarted_agent_goes_on_where_the_sinks_have_acknowledged() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("app.log");
    let agent = Agent::start(config(directory.path(), &[]));
    let container = container(7);
    settle(&container);
    let mut writer = Writer::new(&path, &container);
    let event = writer.write("one\ntw");
    writer.seen(&agent);
    agent.send(b"one\ntw", event);
    agent.expect("app.log", "one\n");
    assert_eq!(agent.stop(), Leftover { unread: 0, unfinished: 2 });
    writer.write("o\nthree\n");
    fs::rename(&path, directory.path().join("app.log.1")).expect("renamed");

    let agent = Agent::start(config(directory.path(), &[]));
    let resume = FileEvent::Resume { container: Arc::clone(&container), pids: vec![std::process::id()] };
    agent.send(b"", resume);
    agent.expect("app.log", "two\nthree\n");
    agent.stop();
}

#[test]
fn files_of_the_node_are_followed_over_rotation_and_restart() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("node.log");
    fs::write(&path, "before the agent\n").expect("written");
    // The file system's clock is too coarse to tell what was made just before from what was made just after.
    let made = unix_nano();
    while unix_nano() <= made + 2 * BIRTH_GRAIN_NANOS {
        std::thread::sleep(Duration::from_millis(5));
    }
    let settings = || config(directory.path(), &["/*.log"]);
    let agent = Agent::start(settings());
    let deadline = Instant::now() + Duration::from_secs(30);
    while agent.handle.readings().streams().is_empty() {
        assert!(Instant::now() < deadline, "the file is not found");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut writer = OpenOptions::new().append(true).open(&path).expect("file");
    writer.write_all(b"one\n").expect("written");
    agent.expect("node.log", "one\n");
    fs::rename(&path, directory.path().join("node.log.1")).expect("renamed");
    writer.write_all(b"two\n").expect("written");
    fs::write(&path, "three\n").expect("written");
    agent.expect("node.log", "one\ntwo\nthree\n");
    agent.stop();

    writer.write_all(b"four\n").expect("written");
    OpenOptions::new().append(true).open(&path).expect("file").write_all(b"five\n").expect("written");
    let agent = Agent::start(settings());
    agent.expect_lines("node.log", &["five", "four"]);
    agent.stop();
}

#[test]
fn copytruncate_under_a_writer_loses_only_what_it_says() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("busy.log");
    let agent = Agent::start(config(directory.path(), &[]));
    let container = container(7);
    let account = settle(&container);
    let mut writer = Writer::new(&path, &container);
    let mut expected = String::new();
    for number in 0..2000 {
        let line = format!("{number:06} a line of a busy writer\n");
        let event = writer.write(&line);
        if number == 0 {
            writer.seen(&agent);
        }
        // Every seventh record is lost: the file tells.
        if number % 7 != 3 {
            agent.send(line.as_bytes(), event);
        }
        expected += &line;
        if number % 500 == 499 {
            agent.expect("busy.log", &expected);
            fs::copy(&path, path.with_extension("1")).expect("copied");
            OpenOptions::new().write(true).truncate(true).open(&path).expect("truncated");
        }
    }
    agent.send(b"", FileEvent::Ended { container });
    agent.expect("busy.log", &expected);
    let balance = account.balance();
    assert_eq!((balance.produced, balance.dropped), (expected.len() as u64, vec![]));
    agent.stop();
}

#[test]
fn a_clock_set_back_stops_nothing() {
    const HOUR: u64 = 3_600_000_000_000;
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("node.log");
    let out = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&out);
    let deliver: Deliver = Box::new(move |batch, _| sink.lock().unwrap_or_else(PoisonError::into_inner).push(batch));
    let verdicts = Box::new(FakeVerdicts::default());
    let settings = config(directory.path(), &["/*.log"]);
    let mut tailer = Tailer::new(settings, verdicts, deliver, &Arc::default(), &Arc::default());
    tailer.tick();
    fs::write(&path, "one\n").expect("written");
    // As if the clock had been an hour ahead until now.
    let ahead = unix_nano() + HOUR;
    (tailer.last_tick, tailer.next_scan, tailer.next_save) = (ahead, ahead, ahead);
    tailer.tick();
    let text = |out: &Mutex<Vec<Arc<Batch>>>| {
        let batches = out.lock().unwrap_or_else(PoisonError::into_inner);
        let bodies = batches.iter().flat_map(|batch| batch.lines.iter().map(|line| batch.body(line).to_vec()));
        String::from_utf8(bodies.collect::<Vec<_>>().join(&b'\n')).expect("UTF-8")
    };
    assert_eq!(text(&out), "one", "the search for files waits for the clock");
    let open = tailer.files.values_mut().next().expect("the file");
    (open.next_look, tailer.last_tick) = (ahead, ahead);
    OpenOptions::new().append(true).open(&path).expect("file").write_all(b"two\n").expect("written");
    tailer.tick();
    assert_eq!(text(&out), "one\ntwo", "the look at the file waits for the clock");
}
