use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream as Client,
    path::PathBuf,
    sync::mpsc::channel,
    thread,
    time::Instant,
};

use super::*;
use crate::{
    control::{
        client::{
            ClientError,
            logs::{LogsOptions, LogsOutput, logs},
            status::{StatusOptions, StatusOutput, fetch, status},
            terminal::Screen,
        },
        filter::Filter,
    },
    pipeline::outlet::Watch as _,
    record::{Class, IoStream, Line, Origin, Resource, Stream},
    telemetry::testing,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// A batch of one line that a container of `pod` wrote to stdout, seen one second after the epoch.
pub(crate) fn batch(pod: &str, body: impl AsRef<[u8]>) -> Arc<Batch> {
    seen_at(1_000_000_000, pod, body)
}

fn seen_at(nanos: u64, pod: &str, body: impl AsRef<[u8]>) -> Arc<Batch> {
    let body = body.as_ref();
    let resource = Resource {
        namespace: Some("shop".into()),
        pod: Some(pod.into()),
        container_name: Some("main".into()),
        container_id: Some("c0ffee0123456789".into()),
        ..Resource::default()
    };
    let stream = Arc::new(Stream {
        key: format!("{pod}/stdout").into(),
        class: Class::Pod,
        origin: Origin::Stdio(IoStream::Stdout),
        resource: Arc::new(resource),
        account: Arc::default(),
        source: None,
    });
    let line = Line {
        time_unix_nano: nanos,
        observed_time_unix_nano: nanos,
        body: 0..body.len(),
        span: body.len() as u64 + 1,
        ..Line::default()
    };
    Arc::new(Batch { stream, data: bytes::Bytes::copy_from_slice(body), lines: vec![line] })
}

/// A control socket served by a runtime and thread of its own, as in the agent.
struct Served {
    directory: tempfile::TempDir,
    tap: Arc<Tap>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Served {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.sock");
        let tap = Arc::new(Tap::default());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, wait) = channel();
        let thread = thread::spawn({
            let tap = Arc::clone(&tap);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async move {
                    let listener = Listener::bind(&path).await.expect("a socket");
                    ready.send(()).expect("the test waits");
                    tokio::select! {
                        _ = stopped => {}
                        _ = serve(listener, testing::agent(), tap) => {}
                    }
                });
            }
        });
        wait.recv_timeout(DEADLINE).expect("the server starts");
        Self { directory, tap, stop: Some(stop), thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            assert!(thread::panicking(), "the server's thread panicked");
        }
    }

    /// What `sidestep logs` prints.
    fn logs(&self, options: &LogsOptions) -> Result<Vec<u8>, ClientError> {
        let (mut out, mut notices) = (Vec::new(), Vec::new());
        logs(&self.socket(), options, Screen::default(), &mut out, &mut notices)?;
        assert!(notices.is_empty());
        Ok(out)
    }

    /// Answers of the agent to raw bytes.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut client = Client::connect(self.socket()).expect("the agent listens");
        client.set_read_timeout(Some(DEADLINE)).expect("a time limit");
        // The agent may answer and close before it has read everything.
        let _ = client.write_all(bytes);
        let mut answer = Vec::new();
        match client.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the agent neither answers nor closes: {error}"),
        }
        String::from_utf8(answer).expect("UTF-8")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < DEADLINE, "{what}");
        thread::yield_now();
    }
}

fn raw() -> LogsOptions {
    LogsOptions { output: LogsOutput::Raw, ..LogsOptions::default() }
}

#[test]
fn prints_the_history_in_each_form() {
    let agent = Served::start();
    let body = b"caf\xc3\xa9 \xff\x1b[31m\0 end\r";
    agent.tap.watch(&batch("web-1", body));
    let out = agent.logs(&raw()).expect("an answer");
    assert_eq!(out, [&body[..], b"\n"].concat());
    let json = agent.logs(&LogsOptions { output: LogsOutput::Json, ..raw() }).expect("an answer");
    let record: serde_json::Value = serde_json::from_slice(&json).expect("one record");
    assert_eq!(crate::sinks::json::exact_body(&record).expect("a body"), body);
    assert_eq!(record["resource"]["k8s.pod.name"], "web-1");
    let mut expected = Vec::new();
    let batch = batch("web-1", body);
    Encoder::default().append_line(&batch, &batch.lines[0], &mut expected);
    expected.push(b'\n');
    assert_eq!(json, expected);
    let pretty = agent.logs(&LogsOptions { output: LogsOutput::Pretty, ..raw() }).expect("an answer");
    let pretty = String::from_utf8(pretty).expect("UTF-8");
    assert!(pretty.starts_with("1970-01-01T00:00:01"), "{pretty}");
    assert!(pretty.ends_with(" shop/web-1/main stdout café \\xff\\x1b[31m\\x00 end\\x0d\n"), "{pretty}");
}

#[test]
fn filters_by_pod_since_and_grep() {
    let agent = Served::start();
    for (seconds, pod, body) in [(1, "web-1", "old error"), (2, "web-1", "new error"), (3, "api", "new error")] {
        agent.tap.watch(&seen_at(seconds * 1_000_000_000, pod, body));
    }
    agent.tap.watch(&seen_at(4_000_000_000, "web-2", "fine"));
    let since = std::time::UNIX_EPOCH + Duration::from_secs(2);
    let filter = Filter { pods: vec!["web-*".to_owned()], ..Filter::default() };
    let options = LogsOptions { since: Some(since), filter: filter.clone(), ..raw() };
    assert_eq!(agent.logs(&options).expect("an answer"), b"new error\nfine\n");
    let grep = Filter { grep: Some("^new e".to_owned()), ..filter };
    let options = LogsOptions { filter: grep, ..raw() };
    assert_eq!(agent.logs(&options).expect("an answer"), b"new error\n");
    let bad = LogsOptions { filter: Filter { grep: Some("(".to_owned()), ..Filter::default() }, ..raw() };
    assert_eq!(agent.logs(&bad).expect_err("a bad pattern").exit_code(), 2);
}

/// Gives what is written to whoever waits at the other end.
struct Pipe(std::sync::mpsc::Sender<Vec<u8>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn follows_new_lines_until_the_agent_ends() {
    let mut agent = Served::start();
    agent.tap.watch(&batch("web", "before"));
    let (sender, output) = channel();
    let socket = agent.socket();
    let client = thread::spawn(move || {
        let options = LogsOptions { follow: true, ..raw() };
        logs(&socket, &options, Screen::default(), &mut Pipe(sender), &mut Vec::new())
    });
    until("nobody follows", || agent.tap.followers() == 1);
    agent.tap.watch(&batch("web", "one"));
    // Each line comes out at once, although nothing follows it.
    assert_eq!(output.recv_timeout(DEADLINE).expect("a line"), b"one\n");
    agent.tap.watch(&batch("web", "two"));
    assert_eq!(output.recv_timeout(DEADLINE).expect("a line"), b"two\n");
    agent.stop();
    let error = client.join().expect("no panic").expect_err("the agent has ended");
    assert!(matches!(error, ClientError::Closed), "{error}");
    assert!(!agent.socket().exists());
}

#[test]
fn a_client_that_goes_away_is_noticed() {
    let agent = Served::start();
    let mut client = Client::connect(agent.socket()).expect("the agent listens");
    client.write_all(b"{\"version\":1,\"ask\":{\"logs\":{\"follow\":true,\"filter\":{}}}}\n").expect("a request");
    until("nobody follows", || agent.tap.followers() == 1);
    drop(client);
    until("the follower stays", || agent.tap.followers() == 0);
    let (sender, output) = channel();
    drop(output);
    let options = LogsOptions { follow: true, since: Some(std::time::UNIX_EPOCH), ..raw() };
    agent.tap.watch(&batch("web", "one"));
    // `sidestep logs -f | head` ends without an error.
    logs(&agent.socket(), &options, Screen::default(), &mut Pipe(sender), &mut Vec::new()).expect("a quiet end");
}

#[test]
fn a_client_that_does_not_read_never_blocks_and_learns_what_it_lost() {
    const LINES: u64 = 2000;
    let agent = Served::start();
    let mut client = Client::connect(agent.socket()).expect("the agent listens");
    client.set_read_timeout(Some(DEADLINE)).expect("a time limit");
    client.write_all(b"{\"version\":1,\"ask\":{\"logs\":{\"follow\":true,\"filter\":{}}}}\n").expect("a request");
    until("nobody follows", || agent.tap.followers() == 1);
    for _ in 0..LINES {
        agent.tap.watch(&batch("web", "x".repeat(10_000)));
    }
    // Others are served while it sleeps.
    assert_eq!(fetch(&agent.socket()).expect("a status").containers.len(), 2);
    let (mut received, mut lost) = (0, 0);
    for line in BufReader::new(&client).lines() {
        let line = line.expect("a frame");
        match serde_json::from_str(&line).expect("a frame") {
            Frame::Record(_) => received += 1,
            Frame::Lost { lines } => lost += lines,
            other => panic!("{other:?}"),
        }
        if received + lost == LINES {
            break;
        }
    }
    assert!(lost > 0 && received > 100, "{received} received, {lost} lost");
}

#[test]
fn clients_of_the_tap_are_bounded_and_do_not_shut_out_the_status() {
    let agent = Served::start();
    let request = b"{\"version\":1,\"ask\":{\"logs\":{\"follow\":true,\"filter\":{}}}}\n";
    let mut clients: Vec<_> = (0..LOGS_CLIENTS)
        .map(|_| {
            let mut client = Client::connect(agent.socket()).expect("the agent listens");
            client.write_all(request).expect("a request");
            client
        })
        .collect();
    until("not all follow", || agent.tap.followers() == LOGS_CLIENTS);
    assert!(agent.exchange(request).contains("clients read the logs already"));
    assert!(fetch(&agent.socket()).is_ok());
    clients.pop();
    until("the follower stays", || agent.tap.followers() == LOGS_CLIENTS - 1);
    assert!(agent.logs(&raw()).is_ok());
}

#[test]
fn tells_the_status() {
    let agent = Served::start();
    let report = fetch(&agent.socket()).expect("a status");
    let web = &report.containers[0];
    assert_eq!((web.produced_bytes, web.delivered_bytes, web.pending_bytes, web.difference_bytes), (1000, 850, 50, 0));
    assert_eq!((web.streams.len(), web.dropped[0].bytes), (2, 100));
    let options = StatusOptions { watch: None, probes: false, output: StatusOutput::Json };
    let mut out = Vec::new();
    status(&agent.socket(), &options, Screen::default(), &mut out).expect("a status");
    let value: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
    assert_eq!(value["containers"][0]["streams"][0]["class"], "business");
}

#[test]
fn watches_the_status_until_the_reader_is_gone() {
    let agent = Served::start();
    let (sender, output) = channel();
    let socket = agent.socket();
    let client = thread::spawn(move || {
        let options =
            StatusOptions { watch: Some(Duration::from_millis(1)), probes: false, output: StatusOutput::Json };
        status(&socket, &options, Screen::default(), &mut Pipe(sender))
    });
    for _ in 0..3 {
        let reading = output.recv_timeout(DEADLINE).expect("a reading");
        assert!(serde_json::from_slice::<StatusReport>(&reading).is_ok());
    }
    drop(output);
    client.join().expect("no panic").expect("a quiet end");
}

#[test]
fn says_what_to_do_when_no_agent_runs() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("control.sock");
    let error = fetch(&socket).expect_err("nobody is there");
    assert_eq!((error.exit_code(), error.to_string().contains("sidestep run")), (3, true), "{error}");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    assert_eq!(fetch(&socket).expect_err("a stale socket").exit_code(), 3);
    let denied = ClientError::PermissionDenied(socket);
    assert_eq!((denied.exit_code(), denied.to_string().contains("root")), (4, true));
    assert!(!denied.to_string().contains('\n'));
}

#[test]
fn refuses_what_is_not_a_request() {
    let agent = Served::start();
    let long = [b"{\"version\":1,".to_vec(), vec![b' '; 200_000], b"\n".to_vec()].concat();
    let inputs: [(&[u8], &str); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n", "has no version"),
        (b"\xff\xfe\n", "has no version"),
        (b"{\"version\":2,\"ask\":\"anything\"}\n", "version 2"),
        (b"{\"version\":1,\"ask\":\"delete\"}\n", "malformed"),
        (b"{\"version\":1,\"ask\":{\"logs\":{\"follow\":false,\"filter\":{\"pods\":[\"[\"]}}}}\n", "not a valid glob"),
        (&long, "one line of at most"),
    ];
    for (input, expected) in inputs {
        let answer = agent.exchange(input);
        assert!(answer.starts_with("{\"error\"") && answer.contains(expected), "{answer}");
        assert_eq!(answer.lines().count(), 1);
    }
    assert!(fetch(&agent.socket()).is_ok());
}
