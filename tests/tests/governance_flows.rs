//! Who may connect to a Pod, and how often; and that no way leads round a list: connections that were there before, raw sockets, parts
//! of packets. Decided at the Pod's interface on the node.

use std::{
    net::{IpAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sidestep_tests::{
    Agent, DEADLINE, Network, Testbed, agent, end_to_end,
    governance::{LOOKS, Node, Peer, figure, refused, wait_shown, wait_told},
    network::sockets,
    records::Record,
    wait_until,
};

/// Says again what it is told, by TCP and UDP, and does what stands in a line: `connect HOST`; `get` by it; `open` one that stays and `say`
/// something by it; `ask` by UDP, with so many bytes; `burst` of connections; `raw` and `frame`, a datagram past all of the kernel's calls.
const PEER: &str = r"
PORT = 7000
def connect(host):
    with socket.socket(family(host), socket.SOCK_STREAM) as s:
        s.settimeout(5)
        try: s.connect((host, PORT)); s.send(b'x'); return 'ok' if s.recv(1) == b'x' else 'closed'
        except OSError as error: return name(error)
def get(host):
    with socket.socket(family(host), socket.SOCK_STREAM) as s:
        s.settimeout(5)
        try: s.connect((host, PORT)); s.send(b'GET / HTTP/1.1\r\n\r\n'); return s.recv(12).decode()
        except OSError as error: return name(error)
kept = None
def open(host):
    global kept
    kept = socket.create_connection((host, PORT), timeout=5)
    return 'ok'
def say():
    try: kept.send(b'x'); return 'ok' if kept.recv(1) == b'x' else 'closed'
    except OSError as error: return name(error)
def ask(host, size, patience='10'):
    with socket.socket(family(host), socket.SOCK_DGRAM) as s:
        s.settimeout(float(patience))
        try: s.sendto(b'x' * int(size), (host, PORT)); return 'ok' if len(s.recvfrom(65536)[0]) == int(size) else 'cut'
        except OSError as error: return name(error)
def datagram(port): return struct.pack('!HHHH', 7001, int(port), 12, 0) + b'past'
def raw(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as s:
        s.sendto(datagram(port), (host, 0)); return 'ok'
def frame(host, port, own, mac):
    packet = bytearray(struct.pack('!BBHHHBBH4s4s', 0x45, 0, 32, 1, 0, 64, 17, 0, socket.inet_aton(own), socket.inet_aton(host)))
    total = sum(struct.unpack('!10H', packet))
    packet[10:12] = struct.pack('!H', ~((total & 0xffff) + (total >> 16)) & 0xffff)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as s:
        s.sendto(bytes(packet) + datagram(port), ('eth0', 0x800, 0, 0, bytes.fromhex(mac.replace(':', '')))); return 'ok'
def echo(connection):
    with connection:
        try:
            while data := connection.recv(65536): connection.send(data)
        except OSError: pass
def serve(server):
    while True: threading.Thread(target=echo, args=[server.accept()[0]], daemon=True).start()
def answer(server):
    while True:
        data, peer = server.recvfrom(65536)
        try: server.sendto(data, peer)
        except OSError: pass
server = socket.create_server(('::', PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
threading.Thread(target=serve, args=[server], daemon=True).start()
for host in ['0.0.0.0', '::']:
    server = socket.socket(family(host), socket.SOCK_DGRAM)
    if host == '::': server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind((host, PORT))
    threading.Thread(target=answer, args=[server], daemon=True).start()
print('ready')
for number, line in enumerate(sys.stdin):
    what, *rest = line.split()
    print(number, globals()[what](*rest))
";

/// The port at which all of them listen.
const PORT: u16 = 7000;

fn start(bed: &Testbed, network: &Network, namespace: &str, name: &str) -> Result<Peer> {
    Peer::start(bed, network, (namespace, name), PEER)
}

#[test]
fn who_is_on_no_list_gets_no_connection_and_no_datagram_through() {
    end_to_end(|bed| {
        let node = Node::start(bed, None)?;
        let mut friend = start(bed, &node.network, "other", "friend")?;
        let mut stranger = start(bed, &node.network, "other", "stranger")?;
        let mut web = start(bed, &node.network, "shop", "web")?;
        for host in web.hosts() {
            ensure!(stranger.ask(&format!("connect {host}"))? == "ok", "there is no policy yet");
        }
        let friends = friend.hosts();
        let ports = json!([{ "port": PORT }, { "protocol": "UDP", "port": PORT }]);
        let traffic = json!({ "allow": { "ingress": [{ "cidrs": friends, "ports": ports }] } });
        node.change(bed, Some(&traffic), LOOKS)?;
        for host in web.hosts() {
            stranger.talker.wait(&format!("connect {host}"), "ECONNREFUSED")?;
            ensure!(friend.ask(&format!("connect {host}"))? == "ok", "{host}");
            // One, and one that is cut into parts.
            for size in [10, 4000] {
                ensure!(friend.ask(&format!("ask {host} {size}"))? == "ok", "{host} {size}");
                ensure!(stranger.ask(&format!("ask {host} {size} 1"))? != "ok", "{host} {size}");
            }
            // The node's own processes are let in: the kubelet's probes are some.
            TcpStream::connect_timeout(&(host, PORT).into(), DEADLINE).with_context(|| host.to_string())?;
        }
        // What it asks for itself is answered.
        for host in stranger.hosts() {
            ensure!(web.ask(&format!("connect {host}"))? == "ok", "{host}");
            ensure!(web.ask(&format!("ask {host} 4000"))? == "ok", "{host}");
        }
        wait_until("the counts", DEADLINE, || {
            Ok((refused(&node.config, "web", "ingress", "not_allowed")? >= 6).then_some(()))
        })?;
        let is_of = |record: &Record, name: &str, end: IpAddr| record.attribute(name) == end.to_string();
        for (own, peer) in web.hosts().into_iter().zip(stranger.hosts()) {
            let told = wait_told(&node.agent, 1, |record| is_of(record, "network.peer.address", peer))?;
            ensure!(is_of(&told[0], "network.local.address", own), "{told:?}");
            ensure!(told[0].value["attributes"]["network.local.port"] == PORT, "{told:?}");
            ensure!(told[0].text("/body").contains(" to port 7000: not on the list allow.ingress ("), "{told:?}");
        }
        // Nor while no agent runs.
        let host = web.addresses.four;
        node.agent.kill()?;
        ensure!(stranger.ask(&format!("connect {host}"))? == "ECONNREFUSED");
        ensure!(friend.ask(&format!("connect {host}"))? == "ok");
        let agent = Agent::start(bed, &node.config)?;
        ensure!(stranger.ask(&format!("connect {host}"))? == "ECONNREFUSED");
        agent.stop()
    });
}

#[test]
fn a_rate_of_connections_that_others_open_is_exact_and_probes_have_their_own_way() {
    end_to_end(|bed| {
        let limit = json!({ "limits": { "connectionsIn": { "perSecond": 50, "burst": 20 } } });
        let node = Node::start(bed, Some(&limit))?;
        let mut client = start(bed, &node.network, "other", "client")?;
        let web = start(bed, &node.network, "shop", "web")?;
        wait_shown(&node.config, "gets 50 connections a second, 20 at once")?;
        wait_shown(&node.config, LOOKS)?;
        for host in web.hosts() {
            let before = refused(&node.config, "web", "ingress", "connection_rate")?;
            let answer = client.ask(&format!("burst {host} 8000"))?;
            let figure = |name: &str| figure(&answer, name);
            let (seconds, admitted, refusals) = (figure("seconds")?, figure("ok")?, figure("ECONNREFUSED")?);
            ensure!(admitted + refusals == 8000.0, "{answer}");
            // Less when the machine keeps the client waiting for longer than the burst bridges.
            ensure!(admitted <= 50.0 * seconds + 20.0 + 1.0 && admitted >= 50.0 * seconds * 0.4, "{answer}");
            for _ in 0..200 {
                TcpStream::connect_timeout(&(host, PORT).into(), DEADLINE).context("a probe")?;
            }
            wait_until("the counts", DEADLINE, || {
                let counted = refused(&node.config, "web", "ingress", "connection_rate")? - before;
                Ok((counted == refusals as u64).then_some(()))
            })?;
        }
        node.agent.stop()
    });
}

/// What was open when a list came is ended for both if the list does not have it, in whatever direction it was opened, and goes on if
/// it has.
#[test]
fn connections_that_were_there_before_are_judged_as_well() {
    end_to_end(|bed| {
        let node = Node::start(bed, None)?;
        let mut friend = start(bed, &node.network, "other", "friend")?;
        let mut stranger = start(bed, &node.network, "other", "stranger")?;
        let mut web = start(bed, &node.network, "shop", "web")?;
        let mut caller = start(bed, &node.network, "shop", "caller")?;
        for peer in [&mut friend, &mut stranger] {
            ensure!(peer.ask(&format!("open {}", web.addresses.four))? == "ok");
        }
        ensure!(web.ask(&format!("open {}", stranger.addresses.six))? == "ok");
        ensure!(caller.ask(&format!("open {}", friend.addresses.six))? == "ok");
        let friends = json!([{ "cidrs": friend.hosts() }]);
        let traffic = json!({ "allow": { "ingress": friends, "egress": friends } });
        node.change(bed, Some(&traffic), LOOKS)?;
        stranger.talker.wait("say", "ECONNRESET")?;
        web.talker.wait("say", "ECONNRESET")?;
        for _ in 0..3 {
            ensure!(friend.ask("say")? == "ok" && caller.ask("say")? == "ok");
        }
        wait_until("no socket left but the friend's", DEADLINE, || {
            Ok((sockets(&web.talker.container)?.lines().count() == 1).then_some(()))
        })?;
        // Another generation, and the same again.
        let traffic = json!({ "allow": { "ingress": friends, "egress": friends }, "limits": { "connectionsOut": { "perSecond": 1, "burst": 1 } } });
        node.change(bed, Some(&traffic), "may open 1 connections")?;
        let connect = format!("connect {}", friend.addresses.four);
        caller.talker.wait(&connect, "EPERM")?;
        ensure!(friend.ask("say")? == "ok" && caller.ask("say")? == "ok");
        for direction in ["egress", "ingress"] {
            wait_until("the counts", DEADLINE, || {
                Ok((refused(&node.config, "web", direction, "not_allowed")? >= 1).then_some(()))
            })?;
        }
        node.agent.stop()
    });
}

/// Raw sockets, of IP and of packets, are asked for by no system call.
#[test]
fn no_socket_gets_past_a_list() {
    end_to_end(|bed| {
        let node = Node::start(bed, None)?;
        let mut web = start(bed, &node.network, "shop", "web")?;
        let receiver = UdpSocket::bind((Network::NODE, 0))?;
        receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
        let port = receiver.local_addr()?.port();
        let mac = node.network.mac_of(&web.addresses)?;
        let ways = [
            format!("raw {} {port}", Network::NODE),
            format!("frame {} {port} {} {mac}", Network::NODE, web.addresses.four),
        ];
        let mut bytes = [0; 16];
        let mut arrives = |web: &mut Peer, way: &str| -> Result<bool> {
            ensure!(web.ask(way)? == "ok", "{way}");
            Ok(receiver.recv(&mut bytes).is_ok_and(|len| len == 4))
        };
        for way in &ways {
            wait_until(way, DEADLINE, || Ok(arrives(&mut web, way)?.then_some(())))?;
        }
        node.change(bed, Some(&json!({ "allow": { "egress": [] } })), LOOKS)?;
        for way in &ways {
            wait_until("a refusal", DEADLINE, || Ok((!arrives(&mut web, way)?).then_some(())))?;
            for _ in 0..3 {
                ensure!(!arrives(&mut web, way)?, "{way}");
            }
        }
        wait_until("the counts", DEADLINE, || {
            Ok((refused(&node.config, "web", "egress", "not_allowed")? >= 6).then_some(()))
        })?;
        node.agent.stop()
    });
}

/// Who may send to nobody may answer all the same, and who may get from nobody gets answers.
#[test]
fn datagrams_are_answered_in_both_directions() {
    end_to_end(|bed| {
        let node = Node::start(bed, None)?;
        let mut client = start(bed, &node.network, "other", "client")?;
        let mut web = start(bed, &node.network, "shop", "web")?;
        node.change(bed, Some(&json!({ "allow": { "egress": [] } })), LOOKS)?;
        for host in web.hosts() {
            client.talker.wait(&format!("ask {host} 10"), "ok")?;
            ensure!(client.ask(&format!("ask {host} 4000"))? == "ok");
        }
        let host = client.addresses.four;
        ensure!(web.ask(&format!("ask {host} 10"))? == "EPERM");
        node.change(bed, Some(&json!({ "allow": { "ingress": [] } })), "may be connected to by the list")?;
        web.talker.wait(&format!("ask {host} 10"), "ok")?;
        ensure!(client.ask(&format!("ask {} 10 1", web.addresses.four))? != "ok");
        node.agent.stop()
    });
}

#[test]
fn observe_lets_connections_through_and_counts_each_once() {
    end_to_end(|bed| {
        let traffic = json!({
            "mode": "observe", "allow": { "ingress": [] }, "limits": { "connectionsIn": { "perSecond": 1, "burst": 1 } },
        });
        let node = Node::start(bed, Some(&traffic))?;
        let mut client = start(bed, &node.network, "other", "client")?;
        let web = start(bed, &node.network, "shop", "web")?;
        wait_shown(&node.config, LOOKS)?;
        let begin = Instant::now();
        for number in 1..=20 {
            ensure!(client.ask(&format!("connect {}", web.addresses.four))? == "ok", "{number}");
        }
        let seconds = begin.elapsed().as_secs();
        wait_until("the counts", DEADLINE, || {
            let rate = refused(&node.config, "web", "ingress", "connection_rate")?;
            let listed = refused(&node.config, "web", "ingress", "not_allowed")?;
            Ok((listed == 20 && rate <= 19 && rate + seconds >= 18).then_some(()))
        })?;
        node.agent.stop()
    });
}

/// What is refused stays so, and what is let through too, while agents of two builds take each other's place.
#[test]
fn lists_hold_while_agents_are_killed() {
    end_to_end(|bed| {
        let node = Node::start(bed, None)?;
        let mut friend = start(bed, &node.network, "other", "friend")?;
        let mut stranger = start(bed, &node.network, "other", "stranger")?;
        let web = start(bed, &node.network, "shop", "web")?;
        let traffic = json!({ "allow": { "ingress": [{ "cidrs": friend.hosts() }] } });
        node.change(bed, Some(&traffic), LOOKS)?;
        let host = web.addresses.four;
        stranger.talker.wait(&format!("connect {host}"), "ECONNREFUSED")?;
        ensure!(friend.ask(&format!("open {host}"))? == "ok");
        let mut agent = node.agent;
        for binary in [agent::next_binary()?, agent::binary()?].iter().cycle().take(4) {
            agent.kill()?;
            ensure!(stranger.ask(&format!("connect {host}"))? == "ECONNREFUSED");
            agent = Agent::spawn_binary(bed, &node.config, binary)?;
            let refused = stranger.ask(&format!("burst {host} 200"))?;
            ensure!(refused.ends_with(" ECONNREFUSED=200"), "{refused}");
            let let_in = friend.ask(&format!("burst {host} 200"))?;
            ensure!(let_in.ends_with(" ok=200") && friend.ask("say")? == "ok", "{let_in}");
            agent = agent.wait_ready()?;
        }
        agent.stop()
    });
}

/// Lists and limits of requests are kept by the same programs, whichever came first.
#[test]
fn requests_are_limited_beside_lists() {
    end_to_end(|bed| {
        let requests = json!([{ "rate": { "perSecond": 1, "burst": 1 } }]);
        let limit = json!({ "limits": { "httpRequests": requests } });
        let node = Node::start(bed, Some(&limit))?;
        let mut friend = start(bed, &node.network, "other", "friend")?;
        let mut stranger = start(bed, &node.network, "other", "stranger")?;
        let web = start(bed, &node.network, "shop", "web")?;
        let host = web.addresses.six;
        wait_shown(&node.config, LOOKS)?;
        // It says again what it is asked: a request that is let through comes back.
        let limited = "HTTP/1.1 429";
        friend.talker.wait(&format!("get {host}"), limited)?;
        let lists = json!([{ "cidrs": friend.hosts() }]);
        let both = json!({ "allow": { "ingress": lists, "egress": lists }, "limits": { "httpRequests": requests } });
        node.change(bed, Some(&both), "may be connected to by the list")?;
        stranger.talker.wait(&format!("get {host}"), "ECONNREFUSED")?;
        for _ in 0..5 {
            let answer = friend.ask(&format!("get {host}"))?;
            ensure!(answer == limited || answer == "GET / HTTP/1", "{answer}");
        }
        friend.talker.wait(&format!("get {host}"), limited)?;
        ensure!(
            refused(&node.config, "web", "egress", "not_allowed")? == 0,
            "what the kernel says is none of the Pod's"
        );
        wait_until("no socket left", DEADLINE, || Ok(sockets(&web.talker.container)?.is_empty().then_some(())))?;
        node.agent.stop()
    });
}

#[test]
fn each_client_has_a_limit_of_its_own() {
    end_to_end(|bed| {
        let rate = json!({ "perSecond": 1, "burst": 5, "per": "Client" });
        let limits = json!({ "limits": { "connectionsIn": rate } });
        let node = Node::start(bed, None)?;
        let mut web = start(bed, &node.network, "shop", "web")?;
        let mut clients = [start(bed, &node.network, "other", "one")?, start(bed, &node.network, "other", "two")?];
        for client in &mut clients {
            for host in web.hosts() {
                // Later beginnings of connections would not get through while neighbours are looked for, and take tokens.
                ensure!(client.ask(&format!("connect {host}"))? == "ok", "{host}");
            }
        }
        node.change(bed, Some(&limits), "gets 1 connections a second for each client, 5 at once")?;
        wait_shown(&node.config, LOOKS)?;
        // What one takes is none of the other's; addresses of both families are two clients.
        for client in &mut clients {
            for host in web.hosts() {
                let answer = client.ask(&format!("burst {host} 400"))?;
                let (seconds, admitted) = (figure(&answer, "seconds")?, figure(&answer, "ok")?);
                ensure!((5.0..=6.0 + seconds).contains(&admitted), "{host}: {answer}");
                ensure!(admitted + figure(&answer, "ECONNREFUSED")? == 400.0, "{answer}");
            }
        }

        let limits = json!({ "limits": { "httpRequests": [{ "name": "each", "rate": rate }] } });
        node.change(bed, Some(&limits), "gets 1 HTTP requests a second for each client, 5 at once")?;
        let host = web.addresses.four;
        for client in &mut clients {
            let begin = Instant::now();
            let answers = (0..20).map(|_| client.ask(&format!("get {host}"))).collect::<Result<Vec<_>>>()?;
            let limited = answers.iter().filter(|answer| *answer == "HTTP/1.1 429").count();
            let admitted = answers.iter().filter(|answer| *answer == "GET / HTTP/1").count();
            ensure!(admitted >= 5 && admitted + limited == 20, "{answers:?}");
            ensure!(admitted as f64 <= 6.0 + begin.elapsed().as_secs_f64(), "{answers:?}");
        }
        // What it begins itself is limited by nobody.
        for host in clients[0].hosts() {
            ensure!(web.ask(&format!("connect {host}"))? == "ok", "{host}");
        }
        node.agent.stop()
    });
}
