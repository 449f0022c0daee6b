//! HTTP 429 from the kernel: requests are counted, and those that are too many answered, at the Pod's interface on the node,
//! with no proxy.

use std::{
    fs,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, Config, Container, DEADLINE, Network, Testbed, agent, end_to_end, network::Addresses, wait_until,
};

/// Answers each request with its path, and says how many it has got when it is asked on stdin.
const SERVER: &str = r"
import http.server, socket, sys, threading
count = 0
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        global count
        count += 1
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
for line in sys.stdin: print('count', count, flush=True)
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

    /// Sockets of the Pod that are neither listening nor gone.
    fn sockets(&self) -> Result<String> {
        let network = format!("--net=/proc/{}/ns/net", self.container.pid());
        let output = Command::new("nsenter").args([&network, "ss", "-Htan", "state", "connected"]).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn config(bed: &Testbed, limits: &Value) -> Result<Config> {
    let policy = json!({
        "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
        "metadata": { "name": "web", "namespace": "shop" },
        "spec": { "selector": {}, "traffic": { "limits": { "httpRequests": limits } } },
    });
    let file = bed.path("policies.yaml")?;
    fs::write(&file, policy.to_string())?;
    Ok(bed.config().with("/policies/files", json!([file])))
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
    wait_until(&format!("{text} in sidestep policy show"), DEADLINE, || {
        let shown =
            Command::new(agent::binary()?).args(["policy", "show", "--socket"]).arg(config.socket()).output()?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        ensure!(!agent.log().contains("takes no programs"), "{shown}");
        Ok((shown.contains(text) && !shown.contains("are not limited")).then_some(()))
    })
}

#[test]
fn requests_over_the_limit_get_429_and_no_others() {
    end_to_end(|bed| {
        let network = Network::enter()?;
        let config = config(bed, &json!([{ "rate": { "perSecond": 100, "burst": 20 } }]))?;
        let agent = Agent::start(bed, &config)?;
        let server = Server::start(bed, &network)?;
        wait_in_force(&agent, &config, "gets 100 HTTP requests a second")?;
        for host in [server.addresses.four.to_string(), server.addresses.six.to_string()] {
            let output = Command::new("python3").args(["-c", CLIENT, &host, "4000"]).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let mut lines = text.lines();
            let seconds: f64 = lines.next().context("seconds")?.parse()?;
            let count = |what: &str| {
                let found = text.lines().find_map(|line| line.strip_suffix(what)?.trim().parse::<f64>().ok());
                found.unwrap_or_default()
            };
            let (admitted, limited) = (count(" 200"), count(" 429"));
            ensure!(admitted + limited == 4000.0, "{text}\n{}", agent.log());
            ensure!(admitted <= 100.0 * seconds + 21.0 && admitted >= 100.0 * seconds * 0.8, "{text}");
            wait_until("no socket left", DEADLINE, || Ok(server.sockets()?.is_empty().then_some(())))
                .with_context(|| server.sockets().unwrap_or_default())?;
        }
        agent.stop()
    });
}

#[test]
fn a_limit_is_that_of_its_path_its_methods_and_its_port() {
    end_to_end(|bed| {
        let network = Network::enter()?;
        let answer = json!({
            "status": 503, "retryAfter": 30, "headers": { "Content-Type": "application/json" }, "body": "{\"later\":true}",
        });
        let config = config(
            bed,
            &json!([
                { "name": "api", "match": { "pathPrefix": "/api", "methods": ["GET", "HEAD"] }, "rate": { "perSecond": 1 }, "answer": answer },
                { "name": "other port", "match": { "port": 9 }, "rate": { "perSecond": 1 } },
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
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(status(&curl(&[&url("/api")])?)?);
            statuses.push(status(&curl(&["--head", &url("/api?x=1")])?)?);
        }
        ensure!(statuses.iter().filter(|status| *status == "503").count() >= 4, "{statuses:?}");
        for arguments in
            [vec![url("/apis")], vec![url("/")], vec!["--data".to_owned(), "x".repeat(100_000), url("/api")]]
        {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            for _ in 0..5 {
                ensure!(status(&curl(&arguments)?)? == "200", "{:?}", arguments.last());
            }
        }
        agent.stop()
    });
}
