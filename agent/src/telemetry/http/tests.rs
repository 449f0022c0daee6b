use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::mpsc::channel,
    thread,
    time::Instant,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;
use crate::telemetry::{
    snapshot::Health,
    testing::{self, Made},
};

mod reference;

/// No answer takes longer in a test, however busy the machine is.
const DEADLINE: Duration = Duration::from_secs(20);

/// An endpoint on a runtime and thread of its own, as in the agent.
struct Endpoint {
    address: SocketAddr,
    agent: Arc<Made>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Endpoint {
    fn start(adjust: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::new(SocketAddr::from(([127, 0, 0, 1], 0)));
        adjust(&mut options);
        let agent = testing::agent();
        let observe: Arc<dyn Observe> = agent.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (addresses, address) = channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let server = Server::bind(options, observe).await.expect("a free port");
                addresses.send(server.local_addr().expect("an address")).expect("the test waits");
                tokio::select! {
                    _ = stopped => {}
                    _ = server.serve() => {}
                }
            });
        });
        let address = address.recv_timeout(DEADLINE).expect("the endpoint starts");
        Self { address, agent, stop: Some(stop), thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the endpoint listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a time limit");
        stream
    }

    /// Sends raw bytes and reads until the endpoint closes.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The endpoint may close before it has read everything.
        let _ = stream.write_all(bytes);
        read_to_end(&mut stream)
    }

    fn request(&self, method: &str, path: &str) -> (u16, String, String) {
        let answer =
            self.exchange(format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
        (status(head), head.to_ascii_lowercase(), body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.request("GET", path);
        (status, body)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            assert!(thread::panicking(), "the endpoint's thread panicked");
        }
    }
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
}

fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // Closed with bytes of ours unread.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the endpoint neither answers nor closes: {error}"),
    }
    String::from_utf8(answer).expect("UTF-8")
}

#[test]
fn answers_each_path() {
    let endpoint = Endpoint::start(|_| {});
    let (status, head, body) = endpoint.request("GET", "/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let labels = r#"container="web",container_id="c0ffee012345",namespace="shop",pod="web-7d9f""#;
    for expected in [
        format!("sidestep_log_produced_bytes_total{{{labels}}} 1000\n"),
        format!("sidestep_log_delivered_bytes_total{{{labels}}} 850\n"),
        format!("sidestep_log_pending_bytes{{{labels}}} 50\n"),
        r#"container_id="_node",namespace="",pod="",reason="quota",stage="capture"} 100"#.to_owned(),
    ] {
        assert!(sorted_labels(&body).contains(&expected), "{expected} is not in\n{body}");
    }
    assert_eq!(endpoint.get("/healthz"), (200, "{\"status\":\"ok\"}\n".to_owned()));
    assert_eq!(endpoint.get("/readyz"), (200, "{\"ready\":true,\"reasons\":[]}\n".to_owned()));
    let (status, body) = endpoint.get("/version");
    let version: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs");
    assert_eq!((status, &version["version"]), (200, &env!("CARGO_PKG_VERSION").into()));
    assert_eq!(version["kernel"], kernel.trim());
    assert_eq!(endpoint.get("/metrics?x=1").0, 200);
}

/// The text with the labels of each sample in alphabetical order, as no order is promised.
fn sorted_labels(text: &str) -> String {
    text.lines()
        .map(|line| match line.split_once('{').and_then(|(name, rest)| Some((name, rest.rsplit_once('}')?))) {
            Some((name, (labels, value))) if !line.starts_with('#') => {
                let mut labels: Vec<_> = labels.split(',').collect();
                labels.sort_unstable();
                format!("{name}{{{}}}{value}\n", labels.join(","))
            }
            _ => format!("{line}\n"),
        })
        .collect()
}

#[test]
fn says_why_it_is_not_ready() {
    let endpoint = Endpoint::start(|_| {});
    {
        let mut snapshot = endpoint.agent.snapshot.lock().expect("no panic");
        snapshot.probes[1].health = Health::Unsupported;
        snapshot.probes[1].reason = "the kernel has no BTF".to_owned();
    }
    let (status, body) = endpoint.get("/readyz");
    assert_eq!(status, 503);
    let expected = r#"{"ready":false,"reasons":["probe exec is unsupported: the kernel has no BTF"]}"#;
    assert_eq!(body.trim_end(), expected);
    assert_eq!(endpoint.get("/healthz").0, 200);
}

#[test]
fn is_read_only() {
    let endpoint = Endpoint::start(|_| {});
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "MADEUP"] {
        let (status, head, _) = endpoint.request(method, "/metrics");
        assert_eq!(status, 405, "{method}");
        assert!(head.contains("allow: get, head"), "{head}");
    }
    let (status, head, body) = endpoint.request("HEAD", "/metrics");
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("content-length: "), "{head}");
    for path in ["/", "/metrics/", "/../etc/passwd", "/%2e%2e/", "/METRICS", "//metrics"] {
        assert_eq!(endpoint.get(path).0, 404, "{path}");
    }
}

#[test]
fn metrics_of_gone_containers_go() {
    let endpoint = Endpoint::start(|_| {});
    assert!(endpoint.get("/metrics").1.contains("web-7d9f"));
    endpoint.agent.snapshot.lock().expect("no panic").accounts.clear();
    let begin = Instant::now();
    while endpoint.get("/metrics").1.contains("web-7d9f") {
        assert!(begin.elapsed() < DEADLINE, "the container's metrics stay");
    }
}

#[test]
fn a_slow_head_ends_its_own_connection_only() {
    let endpoint = Endpoint::start(|options| options.header_timeout = Duration::from_millis(300));
    let begin = Instant::now();
    let mut slow = endpoint.connect();
    slow.set_read_timeout(Some(Duration::from_millis(20))).expect("a time limit");
    slow.write_all(b"GET /metrics HTTP/1.1\r\n").expect("a new connection");
    let mut answer = [0; 1024];
    loop {
        assert!(begin.elapsed() < DEADLINE, "the endpoint waits for ever");
        // Each byte of the slow-loris shows that the client lives; it must not gain time by it.
        if slow.write_all(b"X").is_err() {
            break;
        }
        match slow.read(&mut answer) {
            Ok(0) => break,
            Ok(length) => assert!(answer[..length].starts_with(b"HTTP/1.1 408"), "{answer:?}"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
                break;
            }
        }
    }
    assert!(begin.elapsed() >= Duration::from_millis(250), "cut off too early");
    assert_eq!(endpoint.get("/healthz").0, 200);
}

#[test]
fn an_idle_connection_is_closed() {
    let endpoint = Endpoint::start(|options| options.header_timeout = Duration::from_millis(200));
    let mut stream = endpoint.connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("a new connection");
    // It is kept alive after the answer, and returns from this read only when the endpoint closes it.
    assert_eq!(status(&read_to_end(&mut stream)), 200);
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let endpoint = Endpoint::start(|options| options.connection_lifetime = Duration::from_millis(500));
    let mut lazy = endpoint.connect();
    lazy.set_write_timeout(Some(Duration::from_millis(50))).expect("a time limit");
    let begin = Instant::now();
    // Requests without end, and no answer read, until the endpoint gives up on this client.
    let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
    loop {
        assert!(begin.elapsed() < DEADLINE, "the endpoint holds on for ever");
        match lazy.write(&request) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert_eq!(endpoint.get("/healthz").0, 200);
            }
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
                break;
            }
        }
    }
}

#[test]
fn garbage_gets_an_error_and_is_closed() {
    let endpoint = Endpoint::start(|_| {});
    let noise: Vec<u8> = (0..10_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let long_uri = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(100_000));
    let long_header = format!("GET /healthz HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(10_000_000));
    let many_headers = format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(5000));
    let inputs: [&[u8]; 7] = [
        &noise,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello \r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        long_uri.as_bytes(),
        long_header.as_bytes(),
        many_headers.as_bytes(),
    ];
    for input in inputs {
        let answer = endpoint.exchange(input);
        // A reset may overtake the answer when the client is still sending.
        assert!(answer.is_empty() || (400..500).contains(&status(&answer)), "{answer}");
        assert_eq!(endpoint.get("/healthz").0, 200);
    }
}

#[test]
fn a_body_is_not_waited_for() {
    let endpoint = Endpoint::start(|_| {});
    let mut stream = endpoint.connect();
    let head = b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\nConnection: close\r\n\r\nabc";
    stream.write_all(head).expect("a new connection");
    assert_eq!(status(&read_to_end(&mut stream)), 405);
}

#[test]
fn a_connection_serves_a_bounded_number_of_requests() {
    let endpoint = Endpoint::start(|_| {});
    let mut stream = endpoint.connect();
    let mut writer = stream.try_clone().expect("a second handle");
    let sender = thread::spawn(move || {
        let request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
        while writer.write_all(request).is_ok() {}
    });
    let answers = read_to_end(&mut stream);
    drop(stream);
    sender.join().expect("no panic");
    let count = answers.matches("HTTP/1.1 200 OK").count();
    assert!((1..=REQUESTS_PER_CONNECTION).contains(&count), "{count}");
}

#[test]
fn a_thousand_silent_connections_do_not_shut_others_out() {
    // Both ends of each connection are in this process, and the usual soft limit is 1024 descriptors.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
    let endpoint = Endpoint::start(|_| {});
    let mut scraper = endpoint.connect();
    let mut ask = || {
        scraper.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("the scraper is not shut out");
        let mut answer = Vec::new();
        while !answer.ends_with(b"}\n") {
            let mut byte = [0; 1];
            scraper.read_exact(&mut byte).expect("an answer");
            answer.push(byte[0]);
        }
        assert_eq!(status(&String::from_utf8(answer).expect("UTF-8")), 200);
    };
    ask();
    let mut silent = Vec::new();
    for count in 0..1000 {
        silent.push(endpoint.connect());
        if count % 100 == 99 {
            assert_eq!(endpoint.get("/healthz").0, 200);
        }
    }
    // The oldest silent ones were closed for the newer ones, and the scraper's was not.
    let mut closed = 0;
    for stream in &mut silent[..900] {
        let mut byte = [0; 1];
        closed += usize::from(matches!(stream.read(&mut byte), Ok(0) | Err(_)));
    }
    assert_eq!(closed, 900);
    ask();
    assert_eq!(endpoint.get("/metrics").0, 200);
}

#[test]
fn a_label_of_a_pod_can_break_no_line() {
    let endpoint = Endpoint::start(|_| {});
    let odd = "a\u{1b}[31m\n\"}\\ 1\r\u{202e}";
    {
        let mut snapshot = endpoint.agent.snapshot.lock().expect("no panic");
        let accounts = snapshot.accounts.iter_mut().filter(|account| account.cgroup_id != 0);
        accounts.for_each(|account| account.labels = Some(vec![("label_app".to_owned(), odd.to_owned())]));
    }
    let (_, body) = endpoint.get("/metrics");
    let line = body.lines().find(|line| line.starts_with("sidestep_log_container_labels{")).expect("the family");
    let value = "label_app=\"a\u{fffd}[31m\u{fffd}\\\"}\\\\ 1\u{fffd}\u{fffd}\"";
    assert!(line.contains(value) && line.ends_with(" 1"), "{line}");
}
