//! What a Pod may reach, and how often: decided in the kernel, at the system call, with no proxy.

use std::{
    fs,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidestep_tests::{
    Agent, DEADLINE, Testbed, agent, end_to_end,
    governance::{self, TALK, Talker, command, config, figure, policy, refused, wait_shown, wait_told},
    records::Record,
    wait_until,
};

/// Listens, says where, and does what it is told: `connect HOST PORT`, `fastopen` the same, `send` (a datagram), `mapped` (one
/// by a socket of IPv6), `ancillary` (one with a control message, by a socket that has a peer) and `burst HOST PORT COUNT`; says
/// what came of it.
const CLIENT: &str = r#"
def connect(host, port):
    with socket.socket(family(host), socket.SOCK_STREAM) as s:
        try: s.settimeout(5); s.connect((host, port)); return 'ok'
        except OSError as error: return name(error)
def send(host, port):
    with socket.socket(family(host), socket.SOCK_DGRAM) as s:
        try: s.sendto(b'x', (host, port)); return 'ok'
        except OSError as error: return name(error)
def fastopen(host, port):
    with socket.socket(family(host), socket.SOCK_STREAM) as s:
        try: s.sendto(b'x', socket.MSG_FASTOPEN, (host, port)); return 'ok'
        except OSError as error: return name(error)
def mapped(host, port):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        try: s.sendto(b'x', ('::ffff:' + host, port)); return 'ok'
        except OSError as error: return name(error)
def ancillary(host, port):
    with socket.socket(family(host), socket.SOCK_DGRAM) as s:
        try: s.connect((host, port))
        except OSError as error: return 'connect ' + name(error)
        tos = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if ':' in host else (socket.IPPROTO_IP, socket.IP_TOS)
        try: s.sendmsg([b'x'], [(*tos, struct.pack('i', 4))]); return 'ok'
        except OSError as error: return name(error)
def serve(server):
    while True: server.accept()[0].close()
def listen(host):
    server = socket.create_server((host, 0), family=family(host), backlog=1024)
    threading.Thread(target=serve, args=[server], daemon=True).start()
    return server.getsockname()[1]
print('ports', listen('127.0.0.1'), listen('127.0.0.1'), listen('::1'), '.')
for number, line in enumerate(sys.stdin):
    what, host, port, *more = line.split()
    print(number, globals()[what](host, int(port), *more))
"#;

/// A Pod that talks to itself.
struct Client {
    talker: Talker,
    /// It listens there: twice at 127.0.0.1, and at ::1.
    ports: [u16; 3],
}

impl Client {
    fn start(bed: &Testbed, namespace: &str, name: &str) -> Result<Self> {
        let container = bed.container("app").pod(namespace, name).python(&format!("{TALK}{CLIENT}")).start()?;
        container.wait_stdout(" .\n")?;
        let text = String::from_utf8(container.stdout())?;
        let ports = text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<_>>();
        let ports = ports.try_into().map_err(|ports| anyhow::anyhow!("three ports, not {ports:?}"))?;
        Ok(Self { talker: Talker::new(container), ports })
    }

    fn ask(&mut self, what: &str) -> Result<String> {
        self.talker.ask(what)
    }

    fn wait(&mut self, what: &str, expected: &str) -> Result<()> {
        self.talker.wait(what, expected)
    }
}

#[test]
fn a_list_lets_through_what_it_has_and_nothing_else() {
    end_to_end(|bed| {
        let agent = Agent::start(bed, &config(bed, &[])?)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let [allowed, other, six] = web.ports;
        ensure!(web.ask(&format!("connect 127.0.0.1 {other}"))? == "ok", "there is no policy yet");
        let allow = json!({ "egress": [
            { "cidrs": ["127.0.0.0/8"], "ports": [{ "port": allowed }] },
            { "cidrs": ["::1"], "ports": [{ "port": six }] },
            { "cidrs": ["127.0.0.0/8", "::1"], "ports": [{ "protocol": "UDP", "port": 9 }] },
        ] });
        let config = config(bed, &[policy("shop", &json!({ "allow": allow }))])?;
        agent.reload()?;
        web.wait(&format!("connect 127.0.0.1 {other}"), "EPERM")?;
        for (what, expected) in [
            (format!("connect 127.0.0.1 {allowed}"), "ok"),
            (format!("connect 127.1.2.3 {allowed}"), "ECONNREFUSED"),
            // The same address in the clothes of another family.
            (format!("connect ::ffff:127.0.0.1 {allowed}"), "ok"),
            (format!("connect ::ffff:127.0.0.1 {other}"), "EPERM"),
            (format!("connect ::1 {six}"), "ok"),
            (format!("connect ::1 {allowed}"), "EPERM"),
            (format!("send 127.0.0.1 {other}"), "EPERM"),
            (format!("mapped 127.0.0.1 {other}"), "EPERM"),
            (format!("fastopen 127.0.0.1 {allowed}"), "ok"),
            (format!("fastopen 127.0.0.1 {other}"), "EPERM"),
            (format!("fastopen ::1 {allowed}"), "EPERM"),
            (format!("ancillary 127.0.0.1 {other}"), "connect EPERM"),
            // The port is that of TCP.
            (format!("send 127.0.0.1 {allowed}"), "EPERM"),
            ("send 127.0.0.1 9".to_owned(), "ok"),
            ("ancillary 127.0.0.1 9".to_owned(), "ok"),
            ("ancillary ::1 9".to_owned(), "ok"),
        ] {
            let answer = web.ask(&what)?;
            ensure!(answer == expected, "{what}: {answer}, not {expected}");
            // What is said of it beforehand is what comes of it.
            let words: Vec<_> = what.split(' ').collect();
            let protocol = if matches!(words[0], "connect" | "fastopen") { "tcp" } else { "udp" };
            let explain =
                ["policy", "explain", "shop/web", "--to", words[1], "--port", words[2], "--protocol", protocol];
            let said = command(&config, &[&explain[..], &["--output", "json"]].concat())?;
            ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
            let said: Value = serde_json::from_slice(&said.stdout)?;
            let verdict = if expected.contains("EPERM") { "refused" } else { "allowed" };
            ensure!(said["verdict"] == verdict, "{what}: {said}");
            ensure!(said["findings"][0]["policies"][0] == "SidestepPolicy shop/shop (file)", "{what}: {said}");
        }
        let nobody = command(&config, &["policy", "explain", "shop/nobody", "--to", "127.0.0.1", "--port", "1"])?;
        ensure!(nobody.status.code() == Some(1) && !nobody.stderr.is_empty(), "{nobody:?}");
        // The policy is that of another namespace.
        let mut free = Client::start(bed, "other", "free")?;
        let [port, ..] = free.ports;
        ensure!(free.ask(&format!("connect 127.0.0.1 {port}"))? == "ok");
        wait_until("the counts", DEADLINE, || {
            Ok((refused(&config, "web", "egress", "not_allowed")? >= 5).then_some(()))
        })?;
        wait_shown(&config, "Pod shop/web\n")?;
        wait_shown(&config, "the list of SidestepPolicy shop/shop")?;
        agent.stop()
    });
}

#[test]
fn pods_that_nobody_tells_of_are_not_let_through() {
    end_to_end(|bed| {
        let allow = |port: u16| {
            json!({ "egress": [
                { "cidrs": ["127.0.0.0/8"], "ports": [{ "port": port }] },
                { "pods": [{ "selector": {}, "namespaceSelector": {} }] },
            ] })
        };
        let agent = Agent::start(bed, &config(bed, &[])?)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let [allowed, other, six] = web.ports;
        let config = config(bed, &[policy("shop", &json!({ "allow": allow(allowed) }))])?;
        agent.reload()?;
        web.wait(&format!("connect 127.0.0.1 {other}"), "EPERM")?;
        ensure!(web.ask(&format!("connect 127.0.0.1 {allowed}"))? == "ok", "what else is on the list holds");
        ensure!(web.ask(&format!("connect ::1 {six}"))? == "EPERM");
        wait_shown(&config, "the API server is not asked, so the Pods that it names are not known")?;
        wait_shown(&config, "of SidestepPolicy shop/shop (file), with 0 addresses of Pods")?;
        ensure!(agent.metrics()?.sum("sidestep_governance_in_force") == 0.0);
        agent.stop()
    });
}

#[test]
fn a_policy_ends_at_its_date_and_begins_at_it() {
    end_to_end(|bed| {
        let config = config(bed, &[])?;
        let agent = Agent::start(bed, &config)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let connect = format!("connect 127.0.0.1 {}", web.ports[0]);
        ensure!(web.ask(&connect)? == "ok", "there is no policy yet");
        let end = SystemTime::now() + Duration::from_secs(8);
        let date = |time: SystemTime| -> Result<String> {
            Ok(jiff::Timestamp::from_nanosecond(time.duration_since(UNIX_EPOCH)?.as_nanos().try_into()?)?.to_string())
        };
        let dated = |name: &str, field: &str| -> Result<Value> {
            Ok(policy(name, &json!({ field: date(end)?, "allow": { "egress": [] } })))
        };
        governance::config(bed, &[dated("old", "notAfter")?])?;
        agent.reload()?;
        web.wait(&connect, "EPERM")?;
        wait_shown(&config, "SidestepPolicy shop/old (file) holds until ")?;
        web.wait(&connect, "ok")?;
        ensure!(SystemTime::now() >= end, "it has ended before its time");
        wait_shown(&config, "SidestepPolicy shop/old (file) ended at ")?;
        let explained = ["policy", "explain", "shop/web", "--to", "127.0.0.1", "--port", "1"];
        let said = String::from_utf8(command(&config, &explained)?.stdout)?;
        ensure!(said.contains("ended at ") && said.contains("It is let through."), "{said}");

        let begin = SystemTime::now() + Duration::from_secs(8);
        let new = json!({ "notBefore": date(begin)?, "allow": { "egress": [] } });
        governance::config(bed, &[policy("new", &new)])?;
        agent.reload()?;
        wait_shown(&config, "SidestepPolicy shop/new (file) begins at ")?;
        web.wait(&connect, "EPERM")?;
        ensure!(SystemTime::now() >= begin, "it has begun before its time");
        agent.stop()
    });
}

#[test]
fn apply_ends_when_it_is_in_force_and_says_for_whom() {
    end_to_end(|bed| {
        let directory = bed.path("policies")?;
        fs::create_dir(&directory)?;
        let config = bed.config().with("/policies/files", json!([directory]));
        let agent = Agent::start(bed, &config)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let connect = format!("connect 127.0.0.1 {}", web.ports[0]);
        let file = bed.path("shop.yaml")?;
        let file = file.to_str().context("UTF-8")?;
        let policies = |allow: Value| {
            let list = policy("web", &json!({ "allow": { "egress": allow } }));
            let limit = policy("limit", &json!({ "limits": { "connectionsOut": { "perSecond": 1000 } } }));
            fs::write(file, format!("# What the shop may reach.\n{list}\n---\n{limit}\n"))
        };
        let run = |arguments: &[&str], code: i32, told: &[&str]| {
            let output = command(&config, arguments)?;
            let [said, wrong] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
            let all = format!("{said}{wrong}");
            ensure!(output.status.code() == Some(code) && told.iter().all(|told| all.contains(told)), "{output:?}");
            Ok(())
        };
        policies(json!([]))?;
        run(&["policy", "apply", "--dry-run", file], 0, &["SidestepPolicy shop/web: created (dry run)"])?;
        ensure!(fs::read_dir(&directory)?.next().is_none() && web.ask(&connect)? == "ok");
        // Before the Pod is known it would be in force for nobody.
        wait_until("the Pod", DEADLINE, || {
            Ok(command(&config, &["explain", "pod", "shop/web"])?.status.success().then_some(()))
        })?;
        let told = [
            "SidestepPolicy shop/web: created",
            "SidestepPolicy shop/limit: created",
            "Pod shop/web\n",
            "  + namespace: may open connections to the list of SidestepPolicy shop/web (file)",
        ];
        run(&["policy", "apply", file], 0, &told)?;
        ensure!(web.ask(&connect)? == "EPERM", "it has ended before it was in force");
        let written = fs::read_to_string(directory.join("SidestepPolicy.shop.web.yaml"))?;
        ensure!(written.starts_with("# What the shop may reach.\n"), "{written}");

        policies(json!([{ "cidrs": ["127.0.0.0/8"] }]))?;
        run(
            &["policy", "apply", file],
            0,
            &["shop/web: configured", "shop/limit: unchanged", "  ~ namespace: may open"],
        )?;
        ensure!(web.ask(&connect)? == "ok", "it has ended before it was in force");

        // What is wrong changes nothing, and what others have written is theirs.
        policies(json!([{ "cidrs": ["127.0.0.1/8"] }]))?;
        run(&["policy", "apply", file], 1, &["shop.yaml:2:", "write 127.0.0.0/8"])?;
        let other = directory.join("by-hand.yaml");
        fs::write(&other, policy("other", &json!({ "allow": { "ingress": [] } })).to_string())?;
        run(&["policy", "delete", "shop/other"], 1, &["by-hand.yaml"])?;
        fs::write(&other, "kind: what\n")?;
        policies(json!([]))?;
        run(&["policy", "apply", file], 1, &["by-hand.yaml:1"])?;
        ensure!(web.ask(&connect)? == "ok");
        fs::remove_file(&other)?;

        run(&["policy", "delete", "shop/web", "shop/limit"], 0, &["shop/web: deleted", "  - namespace: may open"])?;
        ensure!(fs::read_dir(&directory)?.next().is_none());
        run(&["policy", "delete", "shop/web"], 1, &["stands in none of the files"])?;
        agent.stop()
    });
}

#[test]
fn a_list_without_dns_is_warned_of() {
    end_to_end(|bed| {
        let with = |ports: Value| json!({ "allow": { "egress": [{ "cidrs": ["127.0.0.0/8"], "ports": ports }] } });
        let config = config(bed, &[policy("shop", &with(json!([{ "port": 443 }])))])?;
        let file = bed.path("policies.yaml")?;
        let file = file.to_str().context("UTF-8")?;
        let check = |arguments: &[&str]| -> Result<_> {
            let output = Command::new(agent::binary()?).args(["policy", "check", file]).args(arguments).output()?;
            Ok((output.status.code(), String::from_utf8(output.stderr)?))
        };
        let (code, warning) = check(&[])?;
        ensure!(
            code == Some(0)
                && warning.contains("warning: SidestepPolicy shop/shop: spec.traffic.allow.egress: lets no DNS"),
            "{warning}"
        );
        ensure!(check(&["--strict"])?.0 == Some(1));

        let agent = Agent::start(bed, &config)?;
        let _web = Client::start(bed, "shop", "web")?;
        let shown = "warning: the list of SidestepPolicy shop/shop (file) (allow.egress) lets no DNS through";
        wait_shown(&config, shown)?;
        ensure!(agent.log().contains("lets no DNS through"), "the log has it");
        // Another policy for the same Pods is enough.
        let dns = with(json!([{ "protocol": "UDP", "port": 53 }]));
        governance::config(bed, &[policy("shop", &with(json!([{ "port": 443 }]))), policy("dns", &dns)])?;
        agent.reload()?;
        wait_shown(&config, "SidestepPolicy shop/dns (file), SidestepPolicy shop/shop (file)")?;
        let shown = String::from_utf8(command(&config, &["policy", "show"])?.stdout)?;
        ensure!(!shown.contains("warning"), "{shown}");
        agent.stop()
    });
}

#[test]
fn without_a_directory_apply_says_what_to_set() {
    end_to_end(|bed| {
        let config = config(bed, &[policy("shop", &json!({ "allow": { "ingress": [] } }))])?;
        let agent = Agent::start(bed, &config)?;
        let file = bed.path("policies.yaml")?;
        let output = command(&config, &["policy", "apply", file.to_str().context("UTF-8")?])?;
        let error = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1) && error.contains("`policies.files` of its configuration"), "{error}");
        ensure!(error.lines().count() == 1, "{error}");
        agent.stop()
    });
}

#[test]
fn a_rate_of_connections_is_exact() {
    end_to_end(|bed| {
        let limits = json!({ "limits": { "connectionsOut": { "perSecond": 50, "burst": 20 } } });
        let config = config(bed, &[policy("shop", &limits)])?;
        let agent = Agent::start(bed, &config)?;
        let mut web = Client::start(bed, "shop", "web")?;
        wait_shown(&config, "50 connections a second, 20 at once")?;
        let answer = web.ask(&format!("burst 127.0.0.1 {} 100000", web.ports[0]))?;
        let figure = |name: &str| figure(&answer, name);
        let (seconds, admitted, refusals) = (figure("seconds")?, figure("ok")?, figure("EPERM")?);
        // Tokens that nobody takes while the client does not run are lost, once there are as many as the burst.
        ensure!(admitted >= 50.0 * seconds * 0.8 + 20.0 - 1.0, "{answer}");
        ensure!(admitted <= 50.0 * seconds + 20.0 + 1.0, "{answer}");
        ensure!(admitted + refusals == 100_000.0, "{answer}");
        let refusals = refusals as u64;
        wait_until("the counts", DEADLINE, || {
            Ok((refused(&config, "web", "egress", "connection_rate")? == refusals).then_some(()))
        })?;
        agent.stop()
    });
}

/// What was taken by a limit with a large burst is no debt of hours under another one.
#[test]
fn a_limit_that_is_changed_has_no_debt_that_it_could_not_have() {
    end_to_end(|bed| {
        let config_of = |rate: Value| config(bed, &[policy("shop", &json!({ "limits": { "connectionsOut": rate } }))]);
        let config = config_of(json!({ "perSecond": 1, "burst": 4000 }))?;
        let agent = Agent::start(bed, &config)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let connect = format!("connect 127.0.0.1 {}", web.ports[0]);
        let burst = format!("burst 127.0.0.1 {} 4000", web.ports[0]);
        wait_shown(&config, "4000 at once")?;
        wait_until("a refusal", DEADLINE, || Ok(web.ask(&burst)?.contains("EPERM=").then_some(())))?;
        config_of(json!({ "perSecond": 1000, "burst": 10 }))?;
        agent.reload()?;
        web.wait(&connect, "ok")?;
        agent.stop()
    });
}

#[test]
fn observe_refuses_nothing_and_counts() {
    end_to_end(|bed| {
        let config = config(bed, &[policy("shop", &json!({ "mode": "observe", "allow": { "egress": [] } }))])?;
        let agent = Agent::start(bed, &config)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let connect = format!("connect 127.0.0.1 {}", web.ports[0]);
        wait_until("a count", DEADLINE, || {
            ensure!(web.ask(&connect)? == "ok");
            Ok((refused(&config, "web", "egress", "not_allowed")? > 0).then_some(()))
        })?;
        agent.stop()
    });
}

#[test]
fn refusals_are_told_of_with_both_ends_and_the_policy() {
    end_to_end(|bed| {
        let observed = json!({ "mode": "observe", "allow": { "egress": [] } });
        let traffic = json!({ "allow": { "egress": [{ "cidrs": ["127.0.0.0/16"] }] } });
        let config = config(bed, &[policy("web", &traffic), policy("trial", &observed)])?;
        let agent = Agent::start(bed, &config)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let port = web.ports[0];
        web.wait(&format!("connect 127.1.0.1 {port}"), "EPERM")?;
        ensure!(web.ask(&format!("connect ::1 {port}"))? == "EPERM" && web.ask("send 127.1.0.2 9")? == "EPERM");
        ensure!(web.ask(&format!("connect 127.0.0.1 {port}"))? == "ok");

        let to = |address: &str| {
            let told = wait_told(&agent, 1, |record| record.attribute("network.peer.address") == address)?;
            ensure!(told.len() == 1, "{told:?}");
            told.into_iter().next().context("one")
        };
        let record = to("127.1.0.1")?;
        for (name, expected) in [
            ("network.type", "ipv4"),
            ("network.transport", "tcp"),
            ("sidestep.governance.reason", "not_allowed"),
            ("sidestep.governance.direction", "egress"),
            ("sidestep.governance.scope", "namespace"),
            ("sidestep.governance.mode", "enforce"),
            ("sidestep.governance.policy", "SidestepPolicy shop/web (file)"),
            ("sidestep.event.name", "governance.refusal"),
        ] {
            ensure!(record.attribute(name) == expected, "{name} in {record:?}");
        }
        let attributes = &record.value["attributes"];
        ensure!(attributes["network.peer.port"] == port, "{record:?}");
        ensure!(attributes["sidestep.governance.count"].as_u64().is_some_and(|count| count > 0), "{record:?}");
        ensure!(attributes["process.pid"] == web.talker.container.pid().as_raw_nonzero().get(), "{record:?}");
        ensure!((record.resource("k8s.namespace.name"), record.resource("k8s.pod.name")) == ("shop", "web"));
        ensure!(record.text("/severity_text") == "WARN" && record.value["length"] == 0, "{record:?}");
        let body = format!(
            "refused: connection to 127.1.0.1:{port}: not on the list allow.egress (SidestepPolicy shop/web (file))"
        );
        ensure!(record.text("/body") == body, "{record:?}");

        let datagram = to("127.1.0.2")?;
        ensure!(datagram.attribute("network.transport") == "udp", "{datagram:?}");
        ensure!(to("::1")?.attribute("network.type") == "ipv6");
        let observed = to("127.0.0.1")?;
        ensure!(observed.attribute("sidestep.governance.policy") == "SidestepPolicy shop/trial (file)", "{observed:?}");
        ensure!(observed.text("/severity_text") == "INFO" && observed.text("/body").starts_with("would be refused: "));
        agent.stop()
    });
}

/// Nothing is told of that was not counted, and who hammers does not keep others from being told of.
#[test]
fn refusals_are_sampled_by_their_peers() {
    end_to_end(|bed| {
        let config = config(bed, &[policy("web", &json!({ "allow": { "egress": [] } }))])?;
        let agent = Agent::start(bed, &config)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let port = web.ports[0];
        web.wait(&format!("connect 127.0.0.1 {port}"), "EPERM")?;
        let answer = web.ask(&format!("burst 127.0.0.1 {port} 20000"))?;
        for host in 1..=9 {
            ensure!(web.ask(&format!("connect 127.0.1.{host} {port}"))? == "EPERM");
        }
        wait_told(&agent, 9, |record| record.attribute("network.peer.address").starts_with("127.0.1."))?;
        let hammered = wait_told(&agent, 1, |record| record.attribute("network.peer.address") == "127.0.0.1")?;
        // One a second: those before the burst, during it, and one at its end.
        ensure!(hammered.len() as f64 <= figure(&answer, "seconds")? + 6.0, "{answer}: {hammered:?}");
        let counts = hammered.iter().map(|record| record.value["attributes"]["sidestep.governance.count"].as_u64());
        let counts = counts.collect::<Option<Vec<_>>>().context("counts")?;
        let mut all = 0;
        wait_until("the counts", DEADLINE, || {
            all = refused(&config, "web", "egress", "not_allowed")?;
            Ok((all >= 20_010).then_some(()))
        })?;
        ensure!(counts.iter().all(|count| (1..=all).contains(count)), "{counts:?} of {all}");
        let top = command(&config, &["policy", "top", "--count", "1", "--output", "json"])?;
        let top: Value = serde_json::from_slice(&top.stdout)?;
        let entry = &top["refused"][0];
        ensure!(entry["pod"] == "shop/web" && entry["total"] == all && entry["reason"] == "not_allowed", "{top}");
        ensure!(entry["policy"] == "SidestepPolicy shop/web (file)", "{top}");
        ensure!(entry["peers"].as_array().is_some_and(|peers| peers.len() == 10), "{top}");
        agent.stop()
    });
}

/// What waits in the ring when an agent is killed is the next one's to tell of, which does not know yet whose it is.
#[test]
fn no_record_of_a_refusal_is_lost_while_agents_are_killed() {
    end_to_end(|bed| {
        let config = config(bed, &[policy("shop", &json!({ "allow": { "egress": [] } }))])?
            .with("/capture/pin", json!(bed.pins()));
        let mut agent = Agent::start(bed, &config)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let port = web.ports[0];
        web.wait(&format!("connect 127.0.0.1 {port}"), "EPERM")?;
        for round in 1..=5 {
            let connect = |host: u32| format!("connect 127.{round}.0.{host} {port}");
            ensure!(web.ask(&connect(1))? == "EPERM");
            agent.kill()?;
            ensure!(web.ask(&connect(2))? == "EPERM", "no agent runs");
            agent = Agent::start(bed, &config)?;
        }
        let told = wait_told(&agent, 10, |record| !record.attribute("network.peer.address").starts_with("127.0."))?;
        ensure!(told.len() == 10, "{told:?}");
        let named =
            |record: &Record| record.attribute("sidestep.governance.policy") == "SidestepPolicy shop/shop (file)";
        ensure!(told.iter().all(|record| named(record) && record.resource("k8s.pod.name") == "web"), "{told:?}");
        agent.stop()
    });
}

/// The decision is the kernel's: it holds while no agent runs, and the next one takes it over without a moment in between.
#[test]
fn what_is_refused_stays_so_while_agents_are_killed() {
    end_to_end(|bed| {
        let config = config(bed, &[policy("shop", &json!({ "allow": { "egress": [] } }))])?
            .with("/capture/pin", json!(bed.pins()));
        let mut agent = Agent::start(bed, &config)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let burst = format!("burst 127.0.0.1 {} 1000", web.ports[0]);
        web.wait(&format!("connect 127.0.0.1 {}", web.ports[0]), "EPERM")?;
        for _ in 0..5 {
            agent.kill()?;
            ensure!(web.ask(&burst)?.ends_with(" EPERM=1000"), "no agent runs");
            agent = Agent::spawn(bed, &config)?;
            ensure!(web.ask(&burst)?.ends_with(" EPERM=1000"), "one begins");
            agent = agent.wait_ready()?;
            ensure!(web.ask(&burst)?.ends_with(" EPERM=1000"), "one has begun");
        }
        agent.stop()
    });
}

#[test]
fn a_policy_that_is_changed_holds_from_then_on_and_a_wrong_one_changes_nothing() {
    end_to_end(|bed| {
        let nobody = [policy("shop", &json!({ "allow": { "egress": [] } }))];
        let agent = Agent::start(bed, &config(bed, &nobody)?)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let connect = format!("connect 127.0.0.1 {}", web.ports[0]);
        web.wait(&connect, "EPERM")?;
        let somebody = [policy("shop", &json!({ "allow": { "egress": [{ "cidrs": ["127.0.0.1"] }] } }))];
        config(bed, &somebody)?;
        agent.reload()?;
        web.wait(&connect, "ok")?;
        config(bed, &[policy("shop", &json!({ "allow": { "egress": [{ "cidrs": ["127.0.0.1/8"] }] } }))])?;
        agent.reload()?;
        wait_until("the refusal of a wrong policy", DEADLINE, || {
            Ok(agent.log().contains("write 127.0.0.0/8").then_some(()))
        })?;
        ensure!(web.ask(&connect)? == "ok", "what held before goes on");
        config(bed, &nobody)?;
        agent.reload()?;
        web.wait(&connect, "EPERM")?;
        config(bed, &[])?;
        agent.reload()?;
        web.wait(&connect, "ok")?;
        agent.stop()
    });
}

/// Somebody removes pins below bpffs, or an agent was killed in the middle of making them: the next look makes them again.
#[test]
fn links_that_are_taken_away_are_made_again_and_uninstall_leaves_none() {
    end_to_end(|bed| {
        let config = config(bed, &[policy("shop", &json!({ "allow": { "egress": [] } }))])?
            .with("/capture/pin", json!(bed.pins()));
        let agent = Agent::start(bed, &config)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let four = format!("connect 127.0.0.1 {}", web.ports[0]);
        let six = format!("connect ::1 {}", web.ports[2]);
        web.wait(&four, "EPERM")?;
        let links = bed.pins().join("1/links");
        for name in fs::read_dir(&links)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()? {
            let name = name.display().to_string();
            if name.contains("/connect6@") || name.contains("/sendmsg") {
                fs::remove_file(&name)?;
            }
        }
        web.wait(&six, "EPERM")?;
        agent.kill()?;
        // The programs of a set are taken away as well: the next agent makes another set.
        fs::remove_dir_all(bed.pins().join("1/programs"))?;
        let agent = Agent::start(bed, &config)?;
        ensure!(agent.log().contains("the programs that govern are missing"), "{}", agent.log());
        web.wait(&four, "EPERM")?;
        web.wait(&six, "EPERM")?;
        agent.stop()?;
        ensure!(web.ask(&four)? == "EPERM", "the programs go on");
        let file = bed.path("sidestep.yaml")?;
        let output = Command::new(agent::binary()?).arg("uninstall").arg("--config").arg(file).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ensure!(!bed.pins().exists());
        web.wait(&four, "ok")
    });
}

/// Two lists of a namespace that can't be put together take nothing from what the cluster's policy says.
#[test]
fn a_list_that_can_not_be_made_lets_nothing_through_and_all_else_holds() {
    end_to_end(|bed| {
        let agent = Agent::start(bed, &config(bed, &[])?)?;
        let mut web = Client::start(bed, "shop", "web")?;
        let [one, other, _] = web.ports;
        let (one, other) = (format!("connect 127.0.0.1 {one}"), format!("connect 127.0.0.1 {other}"));
        let cluster = json!({
            "apiVersion": "sidestep.dev/v1alpha1", "kind": "ClusterSidestepPolicy", "metadata": { "name": "all" },
            "spec": { "selector": {}, "traffic": { "allow": { "egress": [
                { "cidrs": ["127.0.0.0/8"], "ports": [{ "port": web.ports[0] }] },
            ] } } },
        });
        let ports = |from: u16| json!((0..9).map(|number| json!({ "port": from + 2 * number })).collect::<Vec<_>>());
        let part = |name: &str, from| {
            policy(name, &json!({ "allow": { "egress": [{ "cidrs": ["127.0.0.0/8"], "ports": ports(from) }] } }))
        };
        config(bed, std::slice::from_ref(&cluster))?;
        agent.reload()?;
        web.wait(&other, "EPERM")?;
        ensure!(web.ask(&one)? == "ok");
        config(bed, &[cluster.clone(), part("a", 1), part("b", 101)])?;
        agent.reload()?;
        web.wait(&one, "EPERM")?;
        wait_until("what is not in force", DEADLINE, || {
            let is_told = agent.log().contains("has 18 ranges of ports");
            Ok((is_told && agent.metrics()?.sum("sidestep_governance_in_force") == 0.0).then_some(()))
        })?;
        config(bed, &[cluster])?;
        agent.reload()?;
        web.wait(&one, "ok")?;
        ensure!(web.ask(&other)? == "EPERM");
        agent.stop()
    });
}
