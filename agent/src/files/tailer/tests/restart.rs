//! What happens while no agent runs, and what an agent finds that comes after another.

use super::*;

fn resume(agent: &Agent, container: &Arc<Container>) {
    agent.send(b"", FileEvent::Resume { container: Arc::clone(container), pids: vec![std::process::id()] });
}

fn settle_as(container: &Container, id: &str) -> Arc<Account> {
    let config = Config::defaults(&Environment::current()).expect("defaults");
    let resource = Arc::new(Resource { container_id: Some(id.into()), ..Resource::default() });
    let account = Arc::new(Account::new(container.cgroup, Arc::clone(&resource)));
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

/// Waits until files that are made now can be told from those that were made before.
fn wait_for_the_clock_of_files() {
    let begin = unix_nano();
    while unix_nano() <= begin + 2 * BIRTH_GRAIN_NANOS {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A thread's state without the thread, and what it delivers.
struct Still {
    tailer: Tailer,
    readings: Arc<Readings>,
    out: Arc<Mutex<Vec<Arc<Batch>>>>,
}

impl Still {
    fn new(settings: Settings) -> Self {
        let out = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&out);
        let deliver: Deliver =
            Box::new(move |batch, _| sink.lock().unwrap_or_else(PoisonError::into_inner).push(batch));
        let readings = Arc::new(Readings::default());
        let verdicts = Box::new(FakeVerdicts::default());
        let tailer = Tailer::new(settings, verdicts, deliver, &Arc::default(), &readings);
        Self { tailer, readings, out }
    }

    fn round(&mut self, events: Vec<(Vec<u8>, FileEvent)>) {
        for (bytes, event) in events {
            self.tailer.round(&FileEvents { bytes, events: vec![event], holds: Vec::new() });
        }
    }

    fn delivered(&self) -> Vec<u8> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner).iter().flat_map(|batch| batch.data.to_vec()).collect()
    }
}

fn seen(writer: &Writer, path: Option<&str>) -> FileEvent {
    let (key, container) = (writer.key(), Arc::clone(&writer.container));
    FileEvent::Seen {
        key,
        announced: 1,
        path: path.map(Into::into),
        tgid: 0,
        fd: -1,
        position: 0,
        name_hash: 0,
        container,
    }
}

#[test]
fn what_was_made_while_no_agent_ran_is_read_whole_and_what_was_there_before_is_not() {
    let directory = tempfile::tempdir().expect("directory");
    let at = |name: &str| directory.path().join(name);
    fs::write(at("old.log"), "before any agent\n").expect("written");
    wait_for_the_clock_of_files();
    let agent = Agent::start(config(directory.path(), &[]));
    let container = container(7);
    settle(&container);
    let mut writer = Writer::new(&at("app.log"), &container);
    writer.seen(&agent);
    writer.write_seen(&agent, "one\n");
    agent.expect("app.log", "one\n");
    agent.stop();

    fs::rename(at("app.log"), at("app.log.1")).expect("renamed");
    writer.write("two\n");
    fs::write(at("app.log"), "three\n").expect("written");
    fs::write(at("other.log"), "four\n").expect("written");
    fs::write(at("other.txt"), "no log\n").expect("written");
    let agent = Agent::start(config(directory.path(), &[]));
    resume(&agent, &container);
    agent.expect("other.log", "four\n");
    // The old one and the new one are streams of their own, which have no order between them.
    agent.expect_lines("app.log", &["three", "two"]);
    agent.stop();

    // The next agent knows them.
    let agent = Agent::start(config(directory.path(), &[]));
    resume(&agent, &container);
    OpenOptions::new().append(true).open(at("other.log")).expect("file").write_all(b"five\n").expect("written");
    agent.expect("other.log", "five\n");
    for name in ["app.log", "old.log", "other.txt"] {
        assert_eq!(agent.content(name), "");
    }
    agent.stop();
}

#[test]
fn in_a_directory_of_several_containers_a_new_file_is_whose_process_holds_it() {
    let directory = tempfile::tempdir().expect("directory");
    let at = |name: &str| directory.path().join(name);
    let agent = Agent::start(config(directory.path(), &[]));
    let containers = [container(7), container(8)];
    settle_as(&containers[0], "c1");
    settle_as(&containers[1], "c2");
    for (container, name) in containers.iter().zip(["a.log", "b.log"]) {
        let mut writer = Writer::new(&at(name), container);
        writer.seen(&agent);
        writer.write_seen(&agent, "one\n");
        agent.expect(name, "one\n");
    }
    agent.stop();

    fs::write(at("closed.log"), "whose is it\n").expect("written");
    let mut held = File::create(at("held.log")).expect("file");
    held.write_all(b"two\n").expect("written");
    let agent = Agent::start(config(directory.path(), &[]));
    resume(&agent, &containers[0]);
    agent.expect("held.log", "two\n");
    assert_eq!(agent.content("closed.log"), "");
    // It is not lost: whoever writes it again announces it, and it is new.
    let mut writer = Writer::new(&at("closed.log"), &containers[1]);
    writer.file.seek(std::io::SeekFrom::End(0)).expect("the end");
    writer.seen(&agent);
    writer.write_seen(&agent, "it is c2's\n");
    agent.expect("closed.log", "whose is it\nit is c2's\n");
    agent.stop();
}

#[test]
fn an_agent_vouches_for_what_it_can_have_found_only() {
    let directory = tempfile::tempdir().expect("directory");
    let mut still = Still::new(config(directory.path(), &[]));
    let started = still.tailer.new_since;
    still.tailer.caught_up = started + 1_000_000_000;
    assert_eq!(still.tailer.complete_until(), started, "what was made just now may not have been heard of");
    still.tailer.caught_up = started + 600_000_000_000;
    let until = still.tailer.complete_until();
    assert!(until > started && until < still.tailer.caught_up - SCAN_NANOS);
    still.tailer.save();
    // By then the next agent's clock shows an earlier time than it was saved with.
    let next = Still::new(config(directory.path(), &[]));
    assert!(next.tailer.new_since <= next.tailer.last_tick);
    assert_eq!(Checkpoint::open(&directory.path().join("state"), until).1.complete_until, Some(until));
}

#[test]
fn what_a_file_began_with_is_read_again_as_long_as_no_sink_has_it() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("app.log");
    let container = container(7);
    settle(&container);
    let mut still = Still::new(config(directory.path(), &[]));
    let mut writer = Writer::new(&path, &container);
    let (tgid, fd) = (std::process::id(), writer.file.as_raw_fd());
    let FileEvent::Seen { key, announced, path, position, name_hash, container, .. } = seen(&writer, path.to_str())
    else {
        panic!("made as such")
    };
    let seen = FileEvent::Seen { key, announced, path, tgid, fd, position, name_hash, container };
    // Of a file that is new, what comes before it is judged is taken when it is.
    still.round(vec![(vec![], seen), (b"one\n".to_vec(), writer.write("one\n"))]);
    assert_eq!(still.delivered(), b"one\n");
    still.tailer.save();
    let known = Checkpoint::open(&directory.path().join("state"), unix_nano()).1.files;
    assert_eq!(known.iter().map(|entry| entry.position).collect::<Vec<_>>(), [0]);
}

#[test]
fn a_file_that_the_checkpoint_has_opened_ends_with_its_container() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("app.log");
    let agent = Agent::start(config(directory.path(), &[]));
    let before = container(7);
    settle(&before);
    let mut writer = Writer::new(&path, &before);
    writer.seen(&agent);
    writer.write_seen(&agent, "one\n");
    agent.expect("app.log", "one\n");
    agent.stop();

    // The same container, of which the next agent hears before it knows who it is.
    let container = container(7);
    writer.container = Arc::clone(&container);
    let data = writer.write("no newline");
    let mut still = Still::new(config(directory.path(), &[]));
    let ended = FileEvent::Ended { container: Arc::clone(&container) };
    let announced = seen(&writer, path.to_str());
    still.round(vec![(vec![], announced), (b"no newline".to_vec(), data), (vec![], ended)]);
    let account = settle(&container);
    still.round(vec![(vec![], FileEvent::Resume { container, pids: vec![std::process::id()] })]);
    assert_eq!(still.delivered(), b"no newline");
    assert!(still.tailer.files.is_empty(), "nobody will write it any more");
    assert_eq!((account.balance().produced, account.balance().dropped), (10, vec![]));
}

#[test]
fn what_was_not_kept_of_a_log_that_is_gone_is_booked() {
    let directory = tempfile::tempdir().expect("directory");
    let container = container(7);
    let mut writer = Writer::new(&directory.path().join("gone.log"), &container);
    let mut still = Still::new(config(directory.path(), &[]));
    let line = "x".repeat(64 * 1024 - 1) + "\n";
    let mut events = vec![(vec![], seen(&writer, Some("/nowhere/gone.log")))];
    events.extend((0..16).map(|_| (line.clone().into_bytes(), writer.write(&line))));
    events.push((vec![], FileEvent::Ended { container: Arc::clone(&container) }));
    still.round(events);
    let account = settle(&container);
    still.round(vec![(vec![], FileEvent::RulesChanged)]);
    let (delivered, written) = (still.delivered().len() as u64, 16 * line.len() as u64);
    assert!(delivered >= 4 * line.len() as u64 && delivered < written, "{delivered}");
    let balance = account.balance();
    assert_eq!(balance.produced, written);
    assert_eq!(balance.dropped, [(Stage::Repair, Reason::Unavailable, written - delivered)]);
    assert_eq!(still.readings.unjudged_bytes(), 0);
}

#[test]
fn what_is_not_known_to_be_a_log_is_counted_and_not_produced() {
    let directory = tempfile::tempdir().expect("directory");
    let container = container(7);
    let account = settle(&container);
    let mut writer = Writer::new(&directory.path().join("a.log"), &container);
    let mut other = Writer::new(&directory.path().join("data.db"), &container);
    let mut still = Still::new(config(directory.path(), &[]));
    // One is never announced, the other is known to be no log.
    let unknown = writer.write("one\n");
    let no_log = other.write("two\n");
    let announced = seen(&other, other.path.to_str());
    still.round(vec![(b"one\n".to_vec(), unknown), (vec![], announced), (b"two\n".to_vec(), no_log)]);
    still.tailer.judge(unix_nano() + 60_000_000_000, false);
    assert_eq!(still.readings.unjudged_bytes(), 4);
    assert_eq!((account.balance().produced, still.delivered()), (0, vec![]));
    assert!(still.tailer.candidates.is_empty());
}
