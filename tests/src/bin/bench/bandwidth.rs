//! What a limit of bytes leaves to those who send: many connections of another Pod that send as much as they can, and one that asks and
//! waits for its answer, beside the same limit by a bucket that drops what is too much and nothing before (netfilter's `hashlimit`).

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use sidestep_tests::{
    Network, Testbed,
    governance::{self, LOOKS, Peer, figure, policy, wait_shown},
};

use crate::{
    report::{Figure, Target},
    session::Session,
    statistics::quantile,
};

/// KiB in a second, and at once: 100 Mbit/s.
const LIMIT: u32 = 12_207;
/// Connections that send as much as they can.
const FLOWS: usize = 128;
/// A question is asked so often, whether the one before was answered or not.
const PACE: Duration = Duration::from_millis(10);
/// Until what may come at once has come.
const SETTLES: Duration = Duration::from_secs(3);
const QUESTION: [u8; 100] = [b'?'; 100];

/// Throws away what comes to one port and counts it, and says again what comes to the other.
const SERVER: &str = r"
seen = 0
def sink(connection):
    global seen
    with connection:
        try:
            while data := connection.recv(1 << 18): seen += len(data)
        except OSError: pass
def echo(connection):
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while data := connection.recv(1 << 16): connection.sendall(data)
        except OSError: pass
def serve(server, handle):
    while True: threading.Thread(target=handle, args=[server.accept()[0]], daemon=True).start()
def counted():
    received, packets = next(line.split()[1:3] for line in open('/proc/net/dev') if 'eth0' in line)
    passed = int(received) - 14 * int(packets)
    return f'read={seen} passed={passed} seconds={time.monotonic()}'
for port, handle in [(7000, sink), (7001, echo)]:
    server = socket.create_server(('', port), backlog=1024)
    threading.Thread(target=serve, args=[server, handle], daemon=True).start()
print('ready')
for number, line in enumerate(sys.stdin): print(number, globals()[line.strip()]())
";

/// What a window has shown.
struct Window {
    /// Bytes in a second that have come to the Pod, with the headers of the network.
    passed: f64,
    /// Those of them that the receiver has read.
    goodput: f64,
    /// Milliseconds from when a question was to be asked to its answer; of 100 one was slower.
    p99: f64,
}

fn start(bed: &Testbed, network: &Network, namespace: &str) -> Result<Peer> {
    Peer::start(bed, network, (namespace, namespace), SERVER)
}

/// Takes the thread into the network of a Pod.
fn enter(pod: &Peer) -> Result<()> {
    let network = File::open(format!("/proc/{}/ns/net", pod.talker.container.pid()))?;
    Ok(move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Sends as much as it can.
fn send(client: &Peer, peer: SocketAddr, is_over: &AtomicBool) -> Result<()> {
    enter(client)?;
    let mut stream = TcpStream::connect(peer)?;
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    let block = vec![b'x'; 1 << 16];
    while !is_over.load(Ordering::Relaxed) {
        match stream.write(&block) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// How long each answer took, in milliseconds.
fn ask(client: &Peer, peer: SocketAddr, begin: Instant, length: Duration) -> Result<Vec<f64>> {
    enter(client)?;
    let mut stream = TcpStream::connect(peer)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut took = Vec::new();
    let mut due = begin;
    while due < begin + length {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(&QUESTION)?;
        stream.read_exact(&mut [0; QUESTION.len()])?;
        took.push(due.elapsed().as_secs_f64() * 1e3);
        due += PACE;
    }
    Ok(took)
}

fn window(client: &Peer, pod: &mut Peer, length: Duration) -> Result<Window> {
    let host = pod.addresses.four;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let flows: Vec<_> = (0..FLOWS).map(|_| scope.spawn(|| send(client, (host, 7000).into(), &is_over))).collect();
        thread::sleep(SETTLES);
        let begin = Instant::now();
        let asking = scope.spawn(move || ask(client, (host, 7001).into(), begin, length));
        let before = pod.ask("counted");
        thread::sleep((begin + length).saturating_duration_since(Instant::now()));
        let after = pod.ask("counted");
        is_over.store(true, Ordering::Relaxed);
        for flow in flows {
            flow.join().ok().context("a sender has panicked")??;
        }
        let mut took = asking.join().ok().context("who asks has panicked")??;
        let (before, after) = (before?, after?);
        let of = |name: &str| Ok::<_, anyhow::Error>(figure(&after, name)? - figure(&before, name)?);
        took.sort_unstable_by(f64::total_cmp);
        let seconds = of("seconds")?;
        let (passed, goodput) = (of("passed")? / seconds, of("read")? / seconds);
        Ok(Window { passed, goodput, p99: quantile(&took, 0.99).context("no answer")? })
    })
}

/// The same limit, by a bucket alone, for what this network passes on to an address; it goes with the network.
fn bucket(host: Ipv4Addr) -> Result<()> {
    let rate = format!("{LIMIT}kb/s");
    let done = Command::new("iptables")
        .args(["-A", "FORWARD", "-d", &host.to_string(), "-m", "hashlimit", "--hashlimit-above", &rate])
        // One packet more than what it takes as the least.
        .args(["--hashlimit-burst", &format!("{}kb", LIMIT + 2)])
        .args(["--hashlimit-name", "bench", "-j", "DROP"])
        .status()
        .context("iptables")?;
    ensure!(done.success(), "iptables: {done}");
    Ok(())
}

pub(crate) fn run(session: &mut Session) -> Result<()> {
    session
        .step("bandwidth: 128 connections and one that asks, into 100 Mbit/s, beside netfilter's hashlimit, in turns");
    let network = Network::enter()?;
    network.forward()?;
    let bed = Testbed::new()?;
    let limit = json!({ "limits": { "bytesIn": { "perSecond": format!("{LIMIT}KiB") } } });
    let config = governance::config(&bed, &[policy("bandwidth", &limit)])?;
    let agent = session.agent(&bed, &config)?;
    let (mut limited, mut plain) = (start(&bed, &network, "shop")?, start(&bed, &network, "plain")?);
    let client = start(&bed, &network, "client")?;
    bucket(plain.addresses.four)?;
    wait_shown(&config, LOOKS)?;
    let (rounds, length) = (session.choose(5, 1), Duration::from_secs(session.choose(10, 3)));
    let (mut passed, mut goodput, mut plain_goodput) = (Vec::new(), Vec::new(), Vec::new());
    let (mut p99, mut plain_p99) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        session.check()?;
        let (of_limited, of_plain) = (window(&client, &mut limited, length)?, window(&client, &mut plain, length)?);
        passed.push(of_limited.passed / f64::from(LIMIT << 10));
        goodput.push(of_limited.goodput / f64::from(LIMIT << 10));
        plain_goodput.push(of_plain.goodput / f64::from(LIMIT << 10));
        p99.push(of_limited.p99);
        plain_p99.push(of_plain.p99);
    }
    agent.stop()?;
    let what = "bytes that have come to the Pod in a second, with their headers / what the limit says";
    session.report.add(Figure::of("bandwidth_passed", what, "x", passed)?);
    let what = "bytes that were read in a second / what the limit says";
    session.report.add(Figure::of("bandwidth_goodput", what, "x", goodput)?.target(Target::AtLeast(0.97)));
    let what = "the same with hashlimit";
    session.report.add(Figure::of("bandwidth_goodput_hashlimit", what, "x", plain_goodput)?);
    let ratio = p99.iter().zip(&plain_p99).map(|(one, other)| one / other).collect();
    session.report.add(Figure::of("bandwidth_answer_p99", "p99 of an answer beside 128 senders", "ms", p99)?);
    session.report.add(Figure::of("bandwidth_answer_p99_hashlimit", "the same with hashlimit", "ms", plain_p99)?);
    let what = "p99 of an answer / with hashlimit";
    session.report.add(Figure::of("bandwidth_answer_p99_ratio", what, "x", ratio)?.target(Target::AtMost(0.1)));
    Ok(())
}
