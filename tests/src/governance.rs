//! What tests of policies for traffic have in common: policies in a file, Pods that talk as they are told, and what `sidestep policy`
//! says.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::IpAddr,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    Agent, Config, Container, DEADLINE, Network, Testbed, agent,
    network::Addresses,
    records::{self, Record},
    wait_until,
};

/// The configuration of an agent that goes by these policies, which are written to its file of policies: again for others.
///
/// # Errors
/// The file can't be written.
pub fn config(bed: &Testbed, policies: &[Value]) -> Result<Config> {
    let documents: Vec<_> = policies.iter().map(Value::to_string).collect();
    let file = bed.path("policies.yaml")?;
    fs::write(&file, documents.join("\n---\n"))?;
    Ok(bed.config().with("/policies/files", json!([file])))
}

/// A policy for all Pods of the namespace `shop`.
#[must_use]
pub fn policy(name: &str, traffic: &Value) -> Value {
    json!({
        "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": { "selector": {}, "traffic": traffic },
    })
}

/// Runs the agent's own client.
///
/// # Errors
/// It can't be started.
pub fn command(config: &Config, arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(agent::binary()?).args(arguments).arg("--socket").arg(config.socket()).output()?)
}

/// Waits until `sidestep policy show` has this.
///
/// # Errors
/// It has not, in time.
pub fn wait_shown(config: &Config, text: &str) -> Result<()> {
    let mut last = String::new();
    let shown = wait_until(&format!("{text} in sidestep policy show"), DEADLINE, || {
        let output = command(config, &["policy", "show"])?;
        last = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(last.contains(text).then_some(()))
    });
    shown.with_context(|| last)
}

/// How often a Pod was refused in a direction, for a reason, as `sidestep policy counters` has it.
///
/// # Errors
/// The agent does not answer.
pub fn refused(config: &Config, pod: &str, direction: &str, reason: &str) -> Result<u64> {
    let output = command(config, &["policy", "counters", "--output", "json"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let pods = report["pods"].as_array().context("Pods")?;
    let tiers = pods.iter().filter(|found| found["pod"] == pod).flat_map(|pod| pod["tiers"].as_array()).flatten();
    let refusals = tiers.flat_map(|tier| tier["refused"].as_array()).flatten();
    let of = refusals.filter(|refused| refused["reason"] == reason && refused["direction"] == direction);
    Ok(of.filter_map(|refused| refused["count"].as_u64()).sum())
}

/// Waits until there are so many records of refusals that `is_it`; all of these. One that was sent once more is there once.
///
/// # Errors
/// There are not, in time.
pub fn wait_told(agent: &Agent, count: usize, is_it: impl Fn(&Record) -> bool) -> Result<Vec<Record>> {
    let mut last = Vec::new();
    let told = wait_until(&format!("{count} records of refusals"), DEADLINE, || {
        let all = records::read(agent.records_directory())?;
        let mut known = BTreeSet::new();
        let mut is_new = |record: &Record| known.insert((record.stream().to_owned(), record.position()));
        let refusals = all.into_iter().filter(|record| record.class() == "governance" && is_it(record));
        last = refusals.filter(|record| is_new(record)).collect();
        Ok((last.len() >= count).then_some(()))
    });
    told.with_context(|| format!("{last:?}"))?;
    Ok(last)
}

/// What programs of a [`Talker`] begin with. `burst` opens so many connections from four threads, by the program's own `connect`, and
/// says how long it took and how often which came of it: see [`figure`].
pub const TALK: &str = r"
import errno, socket, struct, sys, threading, time
def name(error): return errno.errorcode.get(error.errno, str(error))
def family(host): return socket.AF_INET6 if ':' in host else socket.AF_INET
def burst(*asked):
    *peer, count = asked
    results = []
    def some(): results.extend(connect(*peer) for _ in range(int(count) // 4))
    threads = [threading.Thread(target=some) for _ in range(4)]
    begin = time.monotonic()
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    counts = [f'{result}={results.count(result)}' for result in sorted(set(results))]
    return ' '.join([f'seconds={time.monotonic() - begin}', *counts])
";

/// A figure of what `burst` answers, `seconds` or what came of connections; 0 when it is not there.
///
/// # Errors
/// It is no number.
pub fn figure(answer: &str, name: &str) -> Result<f64> {
    let found = answer.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    Ok(found.map_or(Ok(0.0), str::parse)?)
}

/// A container that does what it is told on its stdin, a line for each, and answers each with a line that begins with its number.
#[derive(Debug)]
pub struct Talker {
    /// The container.
    pub container: Container,
    asked: usize,
}

impl Talker {
    /// Of a container that was told nothing so far.
    #[must_use]
    pub const fn new(container: Container) -> Self {
        Self { container, asked: 0 }
    }

    /// What comes of `what`.
    ///
    /// # Errors
    /// No answer.
    pub fn ask(&mut self, what: &str) -> Result<String> {
        writeln!(self.container.stdin(), "{what}")?;
        let begin = format!("{} ", self.asked);
        self.asked += 1;
        let answer = wait_until(&format!("the answer to {what:?}"), DEADLINE, || {
            let text = String::from_utf8(self.container.stdout())?;
            let line = text.split_inclusive('\n').find(|line| line.starts_with(&begin) && line.ends_with('\n'));
            Ok(line.map(|line| line[begin.len()..].trim().to_owned()))
        });
        answer.with_context(|| String::from_utf8_lossy(&self.container.stderr()).into_owned())
    }

    /// Waits until `what` comes out like this.
    ///
    /// # Errors
    /// It does not, in time.
    pub fn wait(&mut self, what: &str, expected: &str) -> Result<()> {
        let mut last = String::new();
        let come = wait_until(&format!("{what}: {expected}"), DEADLINE, || {
            last = self.ask(what)?;
            Ok((last == expected).then_some(()))
        });
        come.with_context(|| format!("the last answer was {last}"))
    }
}

/// A Pod in a network of its own, that does as it is told.
#[derive(Debug)]
pub struct Peer {
    /// It.
    pub talker: Talker,
    /// Where it is found.
    pub addresses: Addresses,
}

impl Peer {
    /// One of the namespace `shop`, for which the policies are, or of another one, with a program that begins with [`TALK`].
    ///
    /// # Errors
    /// It does not start.
    pub fn start(bed: &Testbed, network: &Network, (namespace, name): (&str, &str), program: &str) -> Result<Self> {
        let container = bed
            .container("app")
            .pod(namespace, name)
            .capabilities(&["CAP_NET_RAW", "CAP_NET_ADMIN"].map(str::to_owned));
        let container = container.python(&format!("{TALK}{program}")).start()?;
        container.wait_stdout("ready\n")?;
        let addresses = network.connect(&container)?;
        Ok(Self { talker: Talker::new(container), addresses })
    }

    /// What comes of `what`.
    ///
    /// # Errors
    /// No answer.
    pub fn ask(&mut self, what: &str) -> Result<String> {
        self.talker.ask(what)
    }

    /// Both addresses.
    #[must_use]
    pub fn hosts(&self) -> [IpAddr; 2] {
        [self.addresses.four.into(), self.addresses.six.into()]
    }
}

/// A node with Pods that forward to each other, and an agent.
#[derive(Debug)]
pub struct Node {
    /// Where the Pods are connected to.
    pub network: Network,
    /// The agent.
    pub agent: Agent,
    /// Its configuration.
    pub config: Config,
}

impl Node {
    /// One with this traffic for the Pods of `shop`.
    ///
    /// # Errors
    /// The network or the agent does not start.
    pub fn start(bed: &Testbed, traffic: Option<&Value>) -> Result<Self> {
        let network = Network::enter()?;
        network.forward()?;
        let config = node_config(bed, traffic)?;
        let agent = Agent::start(bed, &config)?;
        Ok(Self { network, agent, config })
    }

    /// Other traffic for the Pods of `shop`, once `sidestep policy show` has `text`.
    ///
    /// # Errors
    /// It does not, in time.
    pub fn change(&self, bed: &Testbed, traffic: Option<&Value>, text: &str) -> Result<()> {
        node_config(bed, traffic)?;
        self.agent.reload()?;
        wait_shown(&self.config, text)
    }
}

fn node_config(bed: &Testbed, traffic: Option<&Value>) -> Result<Config> {
    let policies: Vec<_> = traffic.iter().map(|traffic| policy("web", traffic)).collect();
    Ok(config(bed, &policies)?.with("/capture/pin", json!(bed.pins())))
}

/// What `sidestep policy show` says where packets are looked at.
pub const LOOKS: &str = "its packets are checked at";
