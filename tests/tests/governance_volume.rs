//! How many packets and bytes a Pod gets and sends in a second: what comes is what the policy says, those who send little are not
//! held up by those who send much, and who understands marks is marked and loses nothing.

use std::{net::TcpStream, process::Command, thread};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidestep_tests::{
    DEADLINE, Network, Testbed, end_to_end,
    governance::{self, LOOKS, Node, Peer, figure, refused, wait_shown, wait_told},
    wait_until,
};

/// Counts the datagrams that come (`counted`), sends many (`flood`), asks and waits for the answer many times (`chat`), and gives and
/// gets many bytes by TCP (`pull`), each of which is what it was.
const PEER: &str = r"
PORT = 7000
LINE = bytes(range(256)) * 257
seen = [0, 0]
def flood(host, size, seconds, at_once=20):
    with socket.socket(family(host), socket.SOCK_DGRAM) as s:
        begin, count, data = time.monotonic(), 0, b'x' * int(size)
        while time.monotonic() - begin < float(seconds):
            for _ in range(int(at_once)):
                try: s.sendto(data, (host, PORT)); count += 1
                except OSError: pass
            time.sleep(0.001)
        return f'seconds={time.monotonic() - begin} count={count}'
def counted():
    count, size = seen
    seen[:] = [0, 0]
    return f'count={count} bytes={size}'
def chat(host, times, pause='0'):
    with socket.socket(family(host), socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        answered = 0
        for number in range(int(times)):
            time.sleep(float(pause))
            s.sendto(b'?%d' % number, (host, PORT))
            try: answered += s.recvfrom(100)[0] == b'?%d' % number
            except TimeoutError: pass
        return f'answered={answered}'
def pull(host, size):
    begin, got, size = time.monotonic(), 0, int(size)
    with socket.create_connection((host, PORT), timeout=60) as s:
        s.send(struct.pack('!Q', size))
        while got < size:
            data = s.recv(65536)
            if not data or data != LINE[got % 256:][:len(data)]: return f'broken at {got}'
            got += len(data)
    return f'seconds={time.monotonic() - begin} bytes={got}'
def give(connection):
    with connection:
        size, = struct.unpack('!Q', connection.recv(8))
        try:
            while size > 0: connection.sendall(LINE[:size]); size -= len(LINE)
        except OSError: pass
def serve(server):
    while True: threading.Thread(target=give, args=[server.accept()[0]], daemon=True).start()
def count(server):
    while True:
        data, peer = server.recvfrom(65536)
        if data[:1] == b'?': server.sendto(data, peer)
        else: seen[0] += 1; seen[1] += len(data)
server = socket.create_server(('::', PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
threading.Thread(target=serve, args=[server], daemon=True).start()
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
SO_RCVBUFFORCE = 33
server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
server.bind(('::', PORT))
threading.Thread(target=count, args=[server], daemon=True).start()
print('ready')
for number, line in enumerate(sys.stdin):
    what, *rest = line.split()
    print(number, globals()[what](*rest))
";

/// The port at which all of them listen.
const PORT: u16 = 7000;
const MEGABYTE: f64 = 1e6;
/// What may come at once.
const BURST: f64 = 262_144.0;

fn start(bed: &Testbed, network: &Network, namespace: &str, name: &str) -> Result<Peer> {
    Peer::start(bed, network, (namespace, name), PEER)
}

/// A limit of one megabyte a second.
fn megabyte(limit: &str) -> Value {
    json!({ "limits": { limit: { "perSecond": "1MB", "burst": "256KiB" } } })
}

/// What came of a flood, in `seconds` of it.
struct Flood {
    seconds: f64,
    sent: f64,
    came: f64,
}

/// Floods for a while, and waits until what has come of it has been read.
fn flood(from: &mut Peer, to: &mut Peer, host: &str, size: usize) -> Result<Flood> {
    // So that both know the way, on which nothing of a flood waits then.
    from.talker.wait(&format!("chat {host} 1"), "answered=1")?;
    to.ask("counted")?;
    let answer = from.ask(&format!("flood {host} {size} 3"))?;
    let (mut came, mut quiet) = (0.0, 0);
    wait_until("the end of what has come", DEADLINE, || {
        let more = figure(&to.ask("counted")?, "count")?;
        came += more;
        quiet = if more == 0.0 { quiet + 1 } else { 0 };
        Ok((quiet == 5).then_some(()))
    })?;
    Ok(Flood { seconds: figure(&answer, "seconds")?, sent: figure(&answer, "count")?, came })
}

impl Flood {
    /// Whether as many came as a limit lets through, each of which counts so much.
    fn is_as_said(&self, per_second: f64, burst: f64, each: f64) -> Result<()> {
        let Self { seconds, sent, came } = *self;
        let most = per_second * seconds + burst + each;
        ensure!(sent * each > 2.0 * most, "no flood: {sent} in {seconds} s");
        ensure!(came * each <= most, "{came} of {sent} came in {seconds} s");
        // Who sends may be kept waiting by the machine for longer than the burst bridges.
        ensure!(came * each >= per_second * seconds * 0.9, "{came} of {sent} came in {seconds} s");
        Ok(())
    }
}

#[test]
fn as_many_bytes_and_packets_come_as_the_policy_says() {
    end_to_end(|bed| {
        let node = Node::start(bed, Some(&megabyte("bytesIn")))?;
        let mut client = start(bed, &node.network, "other", "client")?;
        let mut web = start(bed, &node.network, "shop", "web")?;
        wait_shown(&node.config, "gets 1 MB a second, 256KiB at once")?;
        wait_shown(&node.config, LOOKS)?;
        for (host, header) in web.hosts().into_iter().zip([28.0, 48.0]) {
            let before = refused(&node.config, "web", "ingress", "byte_rate")?;
            let come = flood(&mut client, &mut web, &host.to_string(), 1200)?;
            come.is_as_said(MEGABYTE, BURST, 1200.0 + header)?;
            wait_until("the counts", DEADLINE, || {
                let counted = (refused(&node.config, "web", "ingress", "byte_rate")? - before) as f64;
                let lost = come.sent - come.came;
                Ok(((counted - lost).abs() <= 0.01 * lost).then_some(()))
            })?;
            let told = wait_told(&node.agent, 1, |record| {
                record.attribute("network.local.address") == host.to_string()
                    && record.attribute("sidestep.governance.reason") == "byte_rate"
            })?;
            let body = told[0].text("/body");
            ensure!(
                body.starts_with("refused: packet from ") && body.contains(": too many bytes a second ("),
                "{body}"
            );
        }
        // Nor while no agent runs, and the next one goes on with it.
        let host = web.addresses.four.to_string();
        node.agent.kill()?;
        flood(&mut client, &mut web, &host, 1200)?.is_as_said(MEGABYTE, BURST, 1228.0)?;
        let agent = sidestep_tests::Agent::start(bed, &node.config)?;
        let node = Node { agent, ..node };
        flood(&mut client, &mut web, &host, 1200)?.is_as_said(MEGABYTE, BURST, 1228.0)?;
        // What it sends is its own.
        let packets = json!({ "limits": { "packetsOut": { "perSecond": 500, "burst": 50 } } });
        node.change(bed, Some(&packets), "may send 500 packets a second, 50 at once")?;
        for host in client.hosts() {
            flood(&mut web, &mut client, &host.to_string(), 10)?.is_as_said(500.0, 50.0, 1.0)?;
        }
        wait_until("the counts", DEADLINE, || {
            Ok((refused(&node.config, "web", "egress", "packet_rate")? > 0).then_some(()))
        })?;
        node.agent.stop()
    });
}

/// Those who send little have the last of a limit: a flood does not keep them from their answers. Nor does it the node's own probes.
#[test]
fn a_flood_does_not_hold_up_those_who_send_little() {
    end_to_end(|bed| {
        let node = Node::start(bed, Some(&megabyte("bytesIn")))?;
        let mut flooder = start(bed, &node.network, "other", "flooder")?;
        let mut client = start(bed, &node.network, "other", "client")?;
        let mut web = start(bed, &node.network, "shop", "web")?;
        wait_shown(&node.config, LOOKS)?;
        let host = web.addresses.four;
        let full = || refused(&node.config, "web", "ingress", "byte_rate");
        let (come, answered) = thread::scope(|scope| {
            let flood = scope.spawn(|| flood(&mut flooder, &mut web, &host.to_string(), 1200));
            wait_until("a limit that is used up", DEADLINE, || Ok((full()? > 0).then_some(())))?;
            let before = full()?;
            let answered = client.ask(&format!("chat {host} 200 0.005"))?;
            for _ in 0..50 {
                TcpStream::connect_timeout(&(host, PORT).into(), DEADLINE).context("a probe")?;
            }
            ensure!(full()? > before, "the flood was over");
            Ok((flood.join().ok().context("a flood")??, figure(&answered, "answered")?))
        })?;
        come.is_as_said(MEGABYTE, BURST, 1228.0)?;
        ensure!(answered >= 198.0, "{answered} of 200 were answered");
        node.agent.stop()
    });
}

/// TCP finds its way below the limit, in both directions, and nothing of it is lost or changed; who understands marks gets these.
#[test]
fn tcp_goes_as_fast_as_it_may() {
    end_to_end(|bed| {
        let node = Node::start(bed, None)?;
        let mut client = start(bed, &node.network, "other", "client")?;
        let mut web = start(bed, &node.network, "shop", "web")?;
        let marked = || -> Result<u64> {
            let output = governance::command(&node.config, &["policy", "counters", "--output", "json"])?;
            let report: Value = serde_json::from_slice(&output.stdout)?;
            let tiers =
                report["pods"].as_array().into_iter().flatten().flat_map(|pod| pod["tiers"].as_array()).flatten();
            Ok(tiers.flat_map(|tier| tier["marked"].as_array()).flatten().filter_map(|of| of["count"].as_u64()).sum())
        };
        for has_ecn in [false, true] {
            for peer in [&client, &web] {
                let pid = peer.talker.container.pid().to_string();
                let set = format!("net.ipv4.tcp_ecn={}", u8::from(has_ecn));
                let done = Command::new("nsenter").args(["-t", &pid, "-n", "sysctl", "-qw", &set]).status()?;
                ensure!(done.success(), "sysctl {set}");
            }
            for limit in ["bytesOut", "bytesIn"] {
                let verb = if limit == "bytesOut" { "may send" } else { "gets" };
                let traffic = json!({ "limits": { limit: { "perSecond": "10MB" } } });
                node.change(bed, Some(&traffic), &format!("{verb} 10 MB a second"))?;
                wait_shown(&node.config, LOOKS)?;
                let before = marked()?;
                // Of `bytesOut` the Pod is who gives.
                let (getter, giver) = if limit == "bytesOut" { (&mut client, &web) } else { (&mut web, &client) };
                for host in giver.hosts() {
                    let answer = getter.ask(&format!("pull {host} 20000000"))?;
                    let (seconds, bytes) = (figure(&answer, "seconds")?, figure(&answer, "bytes")?);
                    ensure!(bytes == 20e6, "{answer}");
                    ensure!(bytes <= 1e7 * seconds + 1e7 + 65536.0, "{limit} {has_ecn}: {answer}");
                    ensure!(bytes >= 1e7 * seconds * 0.5, "{limit} {has_ecn}: {answer}");
                }
                ensure!((marked()? > before) == has_ecn, "{limit} {has_ecn}: {before} {}", marked()?);
            }
        }
        node.agent.stop()
    });
}

/// Each client has the rate, and what is observed is counted and let through as it is.
#[test]
fn each_client_has_its_bytes_and_what_is_observed_is_let_through() {
    end_to_end(|bed| {
        let each = json!({ "limits": { "bytesIn": { "perSecond": "1MB", "burst": "256KiB", "per": "Client" } } });
        let node = Node::start(bed, Some(&each))?;
        let mut flooder = start(bed, &node.network, "other", "flooder")?;
        let mut client = start(bed, &node.network, "other", "client")?;
        let mut web = start(bed, &node.network, "shop", "web")?;
        wait_shown(&node.config, "gets 1 MB a second for each client, 256KiB at once")?;
        wait_shown(&node.config, LOOKS)?;
        let host = web.addresses.four.to_string();
        flood(&mut flooder, &mut web, &host, 1200)?.is_as_said(MEGABYTE, BURST, 1228.0)?;
        flood(&mut client, &mut web, &host, 1200)?.is_as_said(MEGABYTE, BURST, 1228.0)?;
        let mut observed = megabyte("bytesIn");
        observed["mode"] = json!("observe");
        node.change(bed, Some(&observed), "observed only: gets 1 MB a second")?;
        let come = flood(&mut client, &mut web, &host, 1200)?;
        ensure!(come.came == come.sent, "{} of {} came", come.came, come.sent);
        let most = (MEGABYTE * come.seconds + BURST) / 1228.0;
        wait_until("the counts", DEADLINE, || {
            let counted = refused(&node.config, "web", "ingress", "byte_rate")? as f64;
            Ok((counted >= come.sent - most - 1.0).then_some(()))
        })?;
        node.agent.stop()
    });
}
