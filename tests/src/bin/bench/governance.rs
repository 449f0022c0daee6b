//! What a connection costs that is asked for, let through or refused by the kernel programs.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Value, json};
use sidestep_tests::{Agent, DEADLINE, Testbed, wait_until};

use crate::{
    bandwidth,
    report::{Figure, Target},
    requests,
    session::Session,
    statistics::median,
    worker::{Call, Job, Took},
    writer::Writer,
};

/// One group of figures.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Governed {
    /// `connect` on loopback: refused by a list, and let through, beside one that nobody asks for.
    Connect,
    /// HTTP requests through a Pod below its limit, and those that the kernel answers with 429, beside nginx' `limit_req`.
    Requests,
    /// 128 connections and one that asks, into a limit of 100 Mbit/s, beside netfilter's `hashlimit`.
    Bandwidth,
}

/// Connections of a burst.
const BURST: u32 = 2000;
/// In which the kernel lets go of sockets.
const PAUSE: Duration = Duration::from_millis(5);
/// Networks of the long list.
const MANY: usize = 100_000;

/// Where a client is, and what its policy says.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Client {
    /// Outside of the governed cgroups.
    Outside,
    /// A list has the peer.
    Allowed,
    /// A list of one network has not.
    Refused,
    /// Nor has a long one.
    RefusedByMany,
}

const CLIENTS: [Client; 4] = [Client::Outside, Client::Allowed, Client::Refused, Client::RefusedByMany];

impl Client {
    const fn namespace(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::RefusedByMany => "refused-by-many",
        }
    }

    /// Nobody listens: what is let through is refused by the peer.
    const fn call(self) -> Call {
        match self {
            Self::Outside | Self::Allowed => Call::ConnectRefused,
            Self::Refused | Self::RefusedByMany => Call::ConnectDenied,
        }
    }

    fn policy(self) -> Option<Value> {
        let cidrs = match self {
            Self::Outside => return None,
            Self::Allowed => vec!["127.0.0.0/8".to_owned()],
            Self::Refused => vec!["10.0.0.0/8".to_owned()],
            Self::RefusedByMany => (0..MANY).map(|n| format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)).collect(),
        };
        Some(json!({
            "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
            "metadata": { "name": "list", "namespace": self.namespace() },
            "spec": { "selector": {}, "traffic": { "allow": { "egress": [{ "cidrs": cidrs }] } } },
        }))
    }
}

pub(crate) fn run(governed: Governed, session: &mut Session) -> Result<()> {
    match governed {
        Governed::Connect => connect(session),
        Governed::Requests => requests::run(session),
        Governed::Bandwidth => bandwidth::run(session),
    }
}

fn connect(session: &mut Session) -> Result<()> {
    session.step("connect: CPU time of a call, refused by lists and let through, in turns");
    let (bed, outside) = (Testbed::new()?, Testbed::new()?);
    let policies: Vec<_> =
        CLIENTS.iter().filter_map(|client| client.policy()).map(|policy| policy.to_string()).collect();
    let file = bed.path("policies.yaml")?;
    fs::write(&file, policies.join("\n---\n"))?;
    let agent = session.agent(&bed, &bed.config().with("/policies/files", json!([file])))?;
    let mut writers = HashMap::new();
    for client in CLIENTS {
        let bed = if client == Client::Outside { &outside } else { &bed };
        writers.insert(client, Writer::in_namespace(bed, client.namespace())?);
    }
    wait_governed(&agent, 3)?;
    let mut samples: HashMap<Client, Vec<f64>> = HashMap::new();
    let (rounds, bursts) = (session.choose(20, 4), session.choose(5, 2));
    for round in 0..=rounds {
        session.check()?;
        let mut clients = CLIENTS;
        if round % 2 == 1 {
            clients.reverse();
        }
        for client in clients {
            let writer = writers.get_mut(&client).context("a client")?;
            let took =
                writer.perform(Job::Bursts { call: client.call(), size: 200, calls: BURST, bursts, pause: PAUSE })?;
            let each: Vec<f64> = took.iter().map(Took::cpu_per_call).collect();
            // The first round faults pages in.
            if round > 0 {
                samples.entry(client).or_default().push(median(&each));
            }
        }
    }
    agent.stop()?;
    let empty = Vec::new();
    let get = |client| samples.get(&client).unwrap_or(&empty);
    let bare = get(Client::Outside);
    session.report.add(Figure::difference(
        "connect_allowed",
        "connect to a port where nobody listens: let through by a list / not asked for",
        "ns",
        get(Client::Allowed),
        bare,
    )?);
    for (name, client, what) in [
        ("connect_refused", Client::Refused, "a list of one network"),
        ("connect_refused_by_many", Client::RefusedByMany, "a list of 100,000"),
    ] {
        let ratios = get(client).iter().zip(bare).map(|(refused, bare)| refused / bare).collect();
        let what = format!("connect refused by {what} / by a port where nobody listens, CPU time");
        session.report.add(Figure::of(name, &what, "x", ratios)?.target(Target::AtMost(1.0)));
    }
    Ok(())
}

fn wait_governed(agent: &Agent, pods: u64) -> Result<()> {
    wait_until("policies in force", DEADLINE, || {
        Ok((agent.metrics()?.sum("sidestep_governance_pods") >= pods as f64).then_some(()))
    })
}
