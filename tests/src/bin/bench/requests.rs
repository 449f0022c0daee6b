//! What a request costs: through a Pod whose requests are limited, and refused there by the kernel, beside nginx' `limit_req`.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sidestep_tests::{Agent, Container, DEADLINE, Network, Testbed, cgroup, wait_until};

use crate::{
    report::{Figure, Target},
    session::Session,
};

/// Clients of a window, each with a connection of its own.
const CLIENTS: usize = 4;
const PORT: u16 = 8080;

/// Three servers in each Pod: one that answers, and two that refuse, with and without keeping the connection.
const NGINX: &str = "
daemon off; user root; worker_processes 1; pid /run/nginx.pid; error_log stderr emerg;
events { worker_connections 1024; }
http {
    client_body_temp_path /tmp; proxy_temp_path /tmp; fastcgi_temp_path /tmp; uwsgi_temp_path /tmp; scgi_temp_path /tmp;
    access_log off; keepalive_requests 1000000000; default_type text/plain;
    limit_req_zone $server_addr zone=all:1m rate=1r/s;
    server { listen 8080; location / { return 200 'ok\\n'; } }
    server { listen 8081; location / { limit_req zone=all; limit_req_status 429; root /nowhere; } }
    server { listen 8082; keepalive_timeout 0; location / { limit_req zone=all; limit_req_status 429; root /nowhere; } }
}
";

/// What a window has shown.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    requests: u64,
    limited: u64,
    seconds: f64,
    /// Of all CPUs, and of the Pod's cgroup.
    machine: f64,
    pod: f64,
}

struct Pod {
    container: Container,
    address: Ipv4Addr,
}

impl Pod {
    fn start(bed: &Testbed, network: &Network, namespace: &str) -> Result<Self> {
        let config = bed.path(format!("{namespace}/nginx.conf"))?;
        fs::write(&config, NGINX)?;
        let server = bed.container("nginx").pod(namespace, "nginx").host_programs();
        let server = server.bind_read_only(&config, "/nginx.conf");
        let container = server.shell("mkdir -p /var/log/nginx; exec nginx -c /nginx.conf").start()?;
        let address = network.connect(&container);
        let address = address.with_context(|| String::from_utf8_lossy(&container.stderr()).into_owned())?.four;
        wait_until("nginx", DEADLINE, || Ok(TcpStream::connect((address, PORT)).ok().map(drop)))?;
        Ok(Self { container, address })
    }

    /// Asks as fast as the answers come.
    fn window(&self, port: u16, length: Duration) -> Result<Window> {
        let peer = SocketAddr::from((self.address, port));
        let (machine, pod) = (busy()?, self.cpu()?);
        let begin = Instant::now();
        let clients: Vec<_> = (0..CLIENTS).map(|_| thread::spawn(move || ask(peer, begin + length))).collect();
        let mut window = Window::default();
        for client in clients {
            let (requests, limited) = client.join().ok().context("a client has panicked")??;
            window.requests += requests;
            window.limited += limited;
        }
        window.seconds = begin.elapsed().as_secs_f64();
        (window.machine, window.pod) = (busy()? - machine, self.cpu()? - pod);
        Ok(window)
    }

    /// Seconds that its cgroup has used.
    fn cpu(&self) -> Result<f64> {
        let path = cgroup::unified()?.join(self.container.cgroup().trim_start_matches('/')).join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let used = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("usage_usec")?;
        Ok(used.parse::<f64>()? / 1e6)
    }
}

/// Seconds that all CPUs were not idle (`proc_stat(5)`).
fn busy() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let fields = text.lines().next().context("cpu")?.split_whitespace().skip(1).take(8);
    let fields = fields.map(str::parse::<f64>).collect::<Result<Vec<_>, _>>()?;
    let [user, nice, system, _idle, _wait, irq, softirq, steal] = fields[..] else { bail!("/proc/stat") };
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    // What another machine has taken is nobody's here.
    let _ = steal;
    Ok((user + nice + system + irq + softirq) / ticks)
}

/// One client, which keeps its connection as long as the server does. How many requests, and how many of them were limited.
fn ask(peer: SocketAddr, end: Instant) -> Result<(u64, u64)> {
    let (mut requests, mut limited) = (0, 0);
    while Instant::now() < end {
        let mut stream = TcpStream::connect(peer)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        loop {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
            let (status, stays) = answer(&mut stream)?;
            requests += 1;
            match status.as_str() {
                // nginx has no file for what it lets through.
                "200" | "404" => {}
                "429" => limited += 1,
                status => bail!("a status of {status}"),
            }
            if !stays || Instant::now() >= end {
                break;
            }
        }
    }
    Ok((requests, limited))
}

/// An answer's status, and whether the connection stays.
fn answer(stream: &mut TcpStream) -> Result<(String, bool)> {
    let (mut seen, mut len) = ([0; 4096], 0);
    loop {
        let more = stream.read(&mut seen[len..])?;
        ensure!(more > 0, "the end of a connection within an answer");
        len += more;
        let text = String::from_utf8_lossy(&seen[..len]);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("a length")?;
        if body.len() >= length.trim().parse()? {
            let status = head.split(' ').nth(1).context("a status")?.to_owned();
            return Ok((status, !head.contains("connection: close")));
        }
    }
}

pub(crate) fn run(session: &mut Session) -> Result<()> {
    session.step(
        "requests: through a Pod without a policy, with lists, with a limit that is not reached, and refused, in turns",
    );
    let network = Network::enter()?;
    let bed = Testbed::new()?;
    let policy = |namespace: &str, traffic: Value| {
        json!({
            "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
            "metadata": { "name": "requests", "namespace": namespace },
            "spec": { "selector": {}, "traffic": traffic },
        })
    };
    let limit = |rate: u32| json!({ "limits": { "httpRequests": [{ "rate": { "perSecond": rate } }] } });
    let peers = json!([{ "cidrs": ["10.0.0.0/8"], "ports": [{ "port": 8080, "endPort": 8089 }] }]);
    let lists = json!({
        "allow": { "ingress": peers, "egress": peers }, "limits": { "connectionsIn": { "perSecond": 1_000_000 } },
    });
    let policies = [policy("below", limit(1_000_000)), policy("limited", limit(1)), policy("listed", lists)];
    let file = bed.path("policies.yaml")?;
    fs::write(&file, policies.map(|policy| policy.to_string()).join("\n---\n"))?;
    // The clients are the node's own.
    let config = bed.config().with("/policies/files", json!([file])).with("/policies/exempt_node", json!(false));
    let agent = session.agent(&bed, &config)?;
    let [bare, below, listed, limited] =
        ["bare", "below", "listed", "limited"].map(|name| Pod::start(&bed, &network, name));
    let (bare, below, listed, limited) = (bare?, below?, listed?, limited?);
    wait_until("the limit", DEADLINE, || {
        let seen = limited.window(PORT, Duration::from_millis(50))?;
        Ok((seen.limited > 1).then_some(()))
    })?;
    wait_in_force(&agent)?;
    let (rounds, length) = (session.choose(15, 3), Duration::from_millis(session.choose(1000, 300)));
    let (mut through, mut with_lists) = (Vec::new(), Vec::new());
    let mut refused = [Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for round in 0..=rounds {
        session.check()?;
        let mut rates = [0.0; 3];
        for turn in 0..3 {
            let pod = (round + turn) % 3;
            let window = [&bare, &below, &listed][pod].window(PORT, length)?;
            rates[pod] = window.requests as f64 / window.seconds;
        }
        let kernel = limited.window(PORT, length)?;
        let keeping = bare.window(8081, length)?;
        let closing = bare.window(8082, length)?;
        // The first round opens files and faults pages in.
        if round == 0 {
            continue;
        }
        through.push(rates[1] / rates[0]);
        with_lists.push(rates[2] / rates[0]);
        let each = |window: &Window, used: f64| used / window.limited.max(1) as f64 * 1e6;
        refused[0].push(each(&kernel, kernel.machine));
        refused[1].push(each(&keeping, keeping.machine));
        refused[2].push(each(&closing, closing.machine));
        refused[3].push(each(&kernel, kernel.pod));
        refused[4].push(each(&closing, closing.pod));
    }
    agent.stop()?;
    let what = "requests a second below a limit / without one";
    session.report.add(Figure::of("requests_below_a_limit", what, "x", through)?.target(Target::AtLeast(0.95)));
    let what = "requests a second of a Pod with lists and a limit of connections / without";
    session.report.add(Figure::of("requests_with_lists", what, "x", with_lists)?.target(Target::AtLeast(0.95)));
    let [kernel, keeping, closing, kernel_pod, closing_pod] = refused;
    let ratio = |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(one, other)| one / other).collect();
    for (name, what, samples) in [
        ("refused_request", "CPU of the machine for each refused request", &kernel),
        ("refused_by_nginx", "the same, by nginx' limit_req, which keeps the connection", &keeping),
        ("refused_by_nginx_close", "the same, by nginx' limit_req without keeping it", &closing),
        ("refused_request_pod", "CPU in the Pod for each refused request", &kernel_pod),
        ("refused_by_nginx_close_pod", "the same, by nginx' limit_req without keeping the connection", &closing_pod),
    ] {
        session.report.add(Figure::of(name, what, "us", samples.clone())?);
    }
    let what = "CPU of the machine for each refused request / by nginx' limit_req, which keeps the connection";
    let figure = Figure::of("refused_request_to_nginx", what, "x", ratio(&kernel, &keeping))?;
    session.report.add(figure.target(Target::AtMost(1.0)));
    let what = "CPU in the Pod for each refused request / by nginx' limit_req without keeping the connection";
    let figure = Figure::of("refused_request_pod_to_nginx", what, "x", ratio(&kernel_pod, &closing_pod))?;
    session.report.add(figure.target(Target::AtMost(0.5)));
    Ok(())
}

fn wait_in_force(agent: &Agent) -> Result<()> {
    wait_until("policies in force", DEADLINE, || {
        let metrics = agent.metrics()?;
        let is_so =
            metrics.sum("sidestep_governance_in_force") == 1.0 && metrics.sum("sidestep_governance_pods") >= 3.0;
        Ok(is_so.then_some(()))
    })
}
