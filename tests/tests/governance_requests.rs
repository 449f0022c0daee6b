//! HTTP 429 from the kernel: requests are counted, and those that are too many answered, at the Pod's interface on the node,
//! with no proxy.

use std::{
    io::Write as _,
    net::TcpListener,
    process::{Command, Output},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, Config, Container, DEADLINE, Network, Testbed, agent, end_to_end,
    governance::{self, policy, wait_shown, wait_told},
    network::{Addresses, sockets},
    records, wait_until,
};

/// Answers each request with its path. Told a host and a port on stdin it says how many bytes it gets from there.
const SERVER: &str = r"
import http.server, socket, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    def do_GET(self):
        self.rfile.read(int(self.headers.get('Content-Length', 0)))
        body = self.path.encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)
    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 1024
server = Server(('::', 8080), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print('ready', flush=True)
for line in sys.stdin:
    host, port = line.split()
    with socket.create_connection((host, int(port))) as s:
        seen = b''
        while more := s.recv(65536): seen += more
    print('fetched', len(seen), flush=True)
";

/// Sends so many requests from four threads, by connections that are kept as long as the server keeps them, and says how often
/// which status came, and what else.
const CLIENT: &str = r"
import collections, http.client, sys, threading, time
host, count = sys.argv[1], int(sys.argv[2])
seen = collections.Counter()
lock = threading.Lock()
def some():
    connection = http.client.HTTPConnection(host, 8080, timeout=10)
    for number in range(count // 4):
        try:
            connection.request('GET', '/some')
            answer = connection.getresponse()
            body = answer.read()
            what = str(answer.status)
            if answer.status == 429 and (body != b'too many requests\n' or answer.headers['Retry-After'] != '1'): what = repr(body)
            if answer.status == 200 and body != b'/some': what = repr(body)
        except Exception as error:
            what = repr(error)
            connection.close()
        with lock: seen[what] += 1
begin = time.monotonic()
threads = [threading.Thread(target=some) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(time.monotonic() - begin)
for what, times in seen.items(): print(times, what)
";

/// Sends twelve requests: each byte in a segment of its own, or several at once on a connection, or with an absolute URI. Says how
/// long it took, and how many were let through and limited.
const CUT: &str = r"
import socket, sys, time
host, how = sys.argv[1:]
target = f'http://{host}:8080/absolute' if how == 'absolute' else '/' + how
request = f'GET {target} HTTP/1.1\r\nHost: x\r\n\r\n'.encode()
admitted = limited = 0
begin = time.monotonic()
while admitted + limited < 12:
    with socket.create_connection((host, 8080), timeout=20) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seen = b''
        if how == 'bytes':
            try:
                for byte in request: s.send(bytes([byte]))
            except (BrokenPipeError, ConnectionResetError): pass
        else:
            for _ in range(4 if how == 'pipelined' else 1):
                s.send(request)
                time.sleep(0.002)
        while not seen.endswith(b'too many requests\n'):
            more = s.recv(65536)
            if not more: break
            seen += more
            if seen.count(target.encode()) == (4 if how == 'pipelined' else 1): break
        assert seen.count(b'HTTP/1.1 ') == seen.count(b'HTTP/1.1 200') + seen.count(b'HTTP/1.1 429'), seen
        admitted += seen.count(b'HTTP/1.1 200')
        limited += seen.count(b'HTTP/1.1 429')
print(time.monotonic() - begin, admitted, limited)
";

struct Server {
    container: Container,
    addresses: Addresses,
}

impl Server {
    fn start(bed: &Testbed, network: &Network) -> Result<Self> {
        let container = bed.container("app").pod("shop", "web").python(SERVER).start()?;
        container.wait_stdout("ready\n")?;
        let addresses = network.connect(&container)?;
        Ok(Self { container, addresses })
    }
}

fn config(bed: &Testbed, limits: &Value) -> Result<Config> {
    config_of(bed, &json!({ "limits": { "httpRequests": limits } }))
}

fn config_of(bed: &Testbed, traffic: &Value) -> Result<Config> {
    // The clients are the node's own.
    Ok(governance::config(bed, &[policy("web", traffic)])?.with("/policies/exempt_node", json!(false)))
}

fn curl(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new("curl")
        .args(["--silent", "--show-error", "--include", "--max-time", "10"])
        .args(arguments)
        .output()?)
}

/// The status of what curl has printed.
fn status(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split(' ').nth(1).context("a status")?.to_owned())
}

fn wait_in_force(agent: &Agent, config: &Config, text: &str) -> Result<()> {
    wait_shown(config, text)?;
    wait_shown(config, "its packets are checked at").with_context(|| agent.log())
}

/// What the client tells of `requests`.
struct Seen {
    seconds: f64,
    text: String,
}

impl Seen {
    fn of(host: &str, requests: u32) -> Result<Self> {
        let output = Command::new("python3").args(["-c", CLIENT, host, &requests.to_string()]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let seconds = text.lines().next().context("seconds")?.parse()?;
        Ok(Self { seconds, text })
    }

    fn count(&self, status: &str) -> f64 {
        let of = |line: &str| line.strip_suffix(status)?.strip_suffix(' ')?.parse().ok();
        self.text.lines().find_map(of).unwrap_or_default()
    }

    /// All were answered, and so many let through as the limit says.
    fn check(&self, requests: f64, per_second: f64, burst: f64) -> Result<()> {
        self.check_answered(requests, per_second, burst)?;
        // The burst may be taken already, and tokens are lost when no client runs for as long as it takes.
        ensure!(self.count("200") >= per_second * self.seconds * 0.7, "{}", self.text);
        Ok(())
    }

    /// All were answered, and not more let through than the limit says.
    fn check_answered(&self, requests: f64, per_second: f64, burst: f64) -> Result<()> {
        let (admitted, limited) = (self.count("200"), self.count("429"));
        ensure!(admitted + limited == requests, "{}", self.text);
        ensure!(admitted <= per_second * self.seconds + burst + 1.0 && limited > 0.0, "{}", self.text);
        Ok(())
    }
}

#[test]
fn requests_over_the_limit_get_429_and_no_others() {
    end_to_end(|bed| {
        let network = Network::enter()?;
        let config = config(bed, &json!([{ "name": "all", "rate": { "perSecond": 100 } }]))?;
        let agent = Agent::start(bed, &config)?;
        let server = Server::start(bed, &network)?;
        wait_in_force(&agent, &config, "gets 100 HTTP requests a second")?;
        for host in [server.addresses.four.to_string(), server.addresses.six.to_string()] {
            Seen::of(&host, 10_000)?.check(10_000.0, 100.0, 100.0)?;
            wait_until("no socket left", DEADLINE, || Ok(sockets(&server.container)?.is_empty().then_some(())))
                .with_context(|| sockets(&server.container).unwrap_or_default())?;
        }
        let told = wait_told(&agent, 2, |record| record.attribute("url.path") == "/some")?;
        for record in &told {
            ensure!(record.attribute("http.request.method") == "GET", "{record:?}");
            ensure!(record.attribute("sidestep.governance.rule") == "all", "{record:?}");
            ensure!(record.text("/body").starts_with("refused: GET /some from "), "{record:?}");
        }
        let explain = ["policy", "explain", "shop/web", "--from", "10.0.0.9", "--port", "8080", "--path", "/some"];
        let said = governance::command(&config, &explain)?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        ensure!(said.contains("takes one of 100 (100 at once) HTTP requests a second (all)"), "{said}");
        agent.stop()
    });
}

#[test]
fn a_limit_is_that_of_its_path_its_methods_and_its_port() {
    end_to_end(|bed| {
        let network = Network::enter()?;
        let answer = json!({
            "status": 503, "retryAfter": 30, "headers": [{ "name": "Content-Type", "value": "application/json" }], "body": "{\"later\":true}",
        });
        let config = config(
            bed,
            &json!([
                { "name": "api", "match": { "pathPrefix": "/api", "methods": ["GET", "HEAD"] }, "rate": { "perSecond": 1 }, "answer": answer },
                { "name": "other port", "match": { "port": 9 }, "rate": { "perSecond": 1 } },
                { "name": "longer than a request", "match": { "pathPrefix": format!("/{}", "x".repeat(63)) }, "rate": { "perSecond": 1 } },
            ]),
        )?;
        let agent = Agent::start(bed, &config)?;
        let server = Server::start(bed, &network)?;
        wait_in_force(&agent, &config, "1 HTTP requests a second to /api")?;
        let url = |path: &str| format!("http://{}:8080{path}", server.addresses.four);
        let limited = wait_until("an answer of the kernel", DEADLINE, || {
            let output = curl(&[&url("/api/users")])?;
            Ok((status(&output)? == "503").then_some(output))
        })?;
        let text = String::from_utf8(limited.stdout)?;
        ensure!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{text}");
        ensure!(text.contains("\r\nRetry-After: 30\r\n") && text.ends_with("\r\n\r\n{\"later\":true}"), "{text}");
        let (begin, mut statuses) = (Instant::now(), Vec::new());
        for _ in 0..3 {
            statuses.push(status(&curl(&[&url("/api")])?)?);
            statuses.push(status(&curl(&["--head", &url("/api?x=1")])?)?);
        }
        let admitted = statuses.iter().filter(|status| *status == "200").count() as f64;
        ensure!(admitted <= begin.elapsed().as_secs_f64() + 2.0, "{statuses:?}");
        for arguments in
            [vec![url("/apis")], vec![url("/")], vec!["--data".to_owned(), "x".repeat(100_000), url("/api")]]
        {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            for _ in 0..5 {
                ensure!(status(&curl(&arguments)?)? == "200", "{:?}", arguments.last());
            }
        }
        // A query is nobody's business; and the request's line is longer than what is kept of it.
        let query = url(&format!("/api/told?secret={}", "x".repeat(200)));
        let told = wait_until("a record of its refusal", DEADLINE, || {
            // The same client is told of once a second.
            curl(&[&query])?;
            let all = records::read(agent.records_directory())?.into_iter();
            let told: Vec<_> = all.filter(|record| record.attribute("url.path").starts_with("/api/told")).collect();
            Ok((!told.is_empty()).then_some(told))
        })?;
        ensure!(told[0].attribute("sidestep.governance.rule") == "api", "{told:?}");
        ensure!(!told[0].value.to_string().contains("secret"), "{told:?}");
        agent.stop()
    });
}

/// The limit is the kernel's: it goes on while no agent runs, and the next one takes it over as it is.
#[test]
fn a_limit_holds_while_agents_are_killed() {
    end_to_end(|bed| {
        let network = Network::enter()?;
        let config = config(bed, &json!([{ "rate": { "perSecond": 50, "burst": 10 } }]))?
            .with("/capture/pin", json!(bed.pins()));
        let mut agent = Agent::start(bed, &config)?;
        let server = Server::start(bed, &network)?;
        wait_in_force(&agent, &config, "gets 50 HTTP requests a second")?;
        let host = server.addresses.four.to_string();
        // One client goes on through all of it.
        let of = host.clone();
        let client = thread::spawn(move || Seen::of(&of, 20_000));
        // Every other one is of another build, whose programs take the place of those that run.
        for binary in [agent::binary()?, agent::next_binary()?].iter().cycle().take(6) {
            agent.kill()?;
            agent = Agent::spawn_binary(bed, &config, binary)?.wait_ready()?;
        }
        let client = client.join().map_err(|_| anyhow!("the client has panicked"))??;
        client.check(20_000.0, 50.0, 10.0)?;
        agent.stop()?;
        Seen::of(&host, 1_000)?.check_answered(1_000.0, 50.0, 10.0)
    });
}

#[test]
fn observe_lets_all_through_and_counts() {
    end_to_end(|bed| {
        let network = Network::enter()?;
        let limits = json!({ "mode": "observe", "limits": { "httpRequests": [{ "rate": { "perSecond": 1 } }] } });
        let config = config_of(bed, &limits)?;
        let agent = Agent::start(bed, &config)?;
        let server = Server::start(bed, &network)?;
        wait_in_force(&agent, &config, "gets 1 HTTP requests a second")?;
        let seen = Seen::of(&server.addresses.four.to_string(), 400)?;
        ensure!(seen.count("200") == 400.0, "{}", seen.text);
        wait_until("what would have been refused", DEADLINE, || {
            let refused = agent.metrics()?.sum("sidestep_governance_refused_total");
            Ok((refused >= 400.0 - seen.seconds - 2.0 && refused <= 400.0).then_some(()))
        })?;
        agent.stop()
    });
}

/// What the Pod gets on a connection that it has opened itself is no request to it, whatever it looks like.
#[test]
fn what_the_pod_fetches_is_not_limited() {
    end_to_end(|bed| {
        let network = Network::enter()?;
        let config = config(bed, &json!([{ "rate": { "perSecond": 1 } }]))?;
        let agent = Agent::start(bed, &config)?;
        let mut server = Server::start(bed, &network)?;
        wait_in_force(&agent, &config, "gets 1 HTTP requests a second")?;
        let listener = TcpListener::bind("0.0.0.0:0")?;
        let port = listener.local_addr()?.port();
        let lines = b"GET /some HTTP/1.1\n".repeat(50);
        let sender = thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            // Each write is a segment that begins with a line of it.
            (0..100).try_for_each(|_| stream.write_all(&lines))?;
            Ok(())
        });
        writeln!(server.container.stdin(), "{} {port}", Network::NODE)?;
        server.container.wait_stdout(&format!("fetched {}\n", 100 * 50 * 19))?;
        sender.join().map_err(|_| anyhow!("the sender has panicked"))??;
        ensure!(agent.metrics()?.sum("sidestep_governance_refused_total") == 0.0);
        agent.stop()
    });
}

/// Packets are lost in both directions, and the client names a service's address: what is lost is sent again.
#[test]
fn a_limit_holds_under_loss_and_behind_address_translation() {
    end_to_end(|bed| {
        let network = Network::enter()?;
        let config = config(bed, &json!([{ "rate": { "perSecond": 20 } }]))?;
        let agent = Agent::start(bed, &config)?;
        let server = Server::start(bed, &network)?;
        wait_in_force(&agent, &config, "gets 20 HTTP requests a second")?;
        let pod = server.addresses.four;
        for rule in [
            "--table nat --append OUTPUT --protocol tcp --destination 10.96.0.9 --dport 8080 --jump DNAT --to-destination {pod}",
            "--append INPUT --source {pod} --match statistic --mode random --probability 0.03 --jump DROP",
            "--append OUTPUT --destination {pod} --match statistic --mode random --probability 0.03 --jump DROP",
        ] {
            let rule = rule.replace("{pod}", &pod.to_string());
            let output = Command::new("iptables").args(rule.split(' ')).output()?;
            ensure!(output.status.success(), "{rule}: {}", String::from_utf8_lossy(&output.stderr));
        }
        // The service's address needs a way out.
        network.route("10.96.0.9")?;
        Seen::of("10.96.0.9", 400)?.check_answered(400.0, 20.0, 20.0)?;
        agent.stop()
    });
}

/// A request is one however it is cut, and however many come before the first is answered.
#[test]
fn requests_that_are_cut_or_come_together_are_counted() {
    end_to_end(|bed| {
        let network = Network::enter()?;
        let ways = ["absolute", "pipelined", "bytes"];
        let limit = |way: &&str| json!({ "name": way, "match": { "pathPrefix": format!("/{way}") }, "rate": { "perSecond": 1, "burst": 3 } });
        let config = config(bed, &json!(ways.iter().map(limit).collect::<Vec<_>>()))?;
        let agent = Agent::start(bed, &config)?;
        let server = Server::start(bed, &network)?;
        wait_in_force(&agent, &config, "to /bytes")?;
        for how in ways {
            let output = Command::new("python3")
                .args(["-c", CUT, &server.addresses.four.to_string(), how])
                .output()
                .context("the client")?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "{how}: {text}{}", String::from_utf8_lossy(&output.stderr));
            let mut words = text.split_whitespace();
            let mut next = || words.next().context("a number")?.parse::<f64>().context("a number");
            let (seconds, admitted, limited) = (next()?, next()?, next()?);
            // A byte alone may be of any of them: it takes a token of each, and the others have none by now.
            let least = if how == "bytes" { 0.0 } else { 2.0 };
            ensure!(admitted >= least && admitted <= seconds + 4.0 && limited >= 1.0, "{how}: {text}");
            wait_until("no socket left", DEADLINE, || Ok(sockets(&server.container)?.is_empty().then_some(())))
                .with_context(|| sockets(&server.container).unwrap_or_default())?;
        }
        agent.stop()
    });
}
