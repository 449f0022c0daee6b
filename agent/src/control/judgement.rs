//! What policies say of a connection, datagram or request, without one.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::governance::{mode, scope};
use crate::{
    pipeline::governor::{Held, Reading},
    policy::traffic::{
        judge::{Act, Finding, TCP, judge},
        limit::{Kind, rate_in_words},
        settings::{Direction, Mode},
    },
};

/// What is asked for.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct JudgeRequest {
    /// The Pod's namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Whether the Pod does it, and not the other end.
    pub is_egress: bool,
    /// The other end.
    pub peer: IpAddr,
    /// The port of who is asked for something.
    pub port: u16,
    /// `IPPROTO_*`
    pub protocol: u8,
    /// Method and path of a request.
    pub request: Option<(String, String)>,
}

impl JudgeRequest {
    fn act(&self) -> Act {
        let direction = if self.is_egress { Direction::Egress } else { Direction::Ingress };
        let Self { peer, port, protocol, request, .. } = self.clone();
        Act { direction, peer, port, protocol, request }
    }

    fn what(&self) -> String {
        let (what, end) =
            (if self.protocol == TCP { "connection" } else { "datagram" }, if self.is_egress { "to" } else { "from" });
        let peer = self.peer;
        match (&self.request, self.is_egress) {
            (Some((method, path)), _) => format!("{method} {path} from {peer} to port {}", self.port),
            (None, true) => format!("{what} {end} {peer}, port {}", self.port),
            (None, false) => format!("{what} {end} {peer} to port {}", self.port),
        }
    }
}

/// What comes of it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is let through, as long as it is within the limits.
    #[default]
    Allowed,
    /// It is refused.
    Refused,
    /// Too little is known: what held before goes on.
    Unknown,
}

/// What policies say of it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Judgement {
    /// The node that answers.
    pub node: String,
    /// The Pod, as `namespace/name`.
    pub pod: String,
    /// What would be done, in words.
    pub what: String,
    /// What comes of it.
    pub verdict: Verdict,
    /// Who says what, in the order in which they are asked.
    pub findings: Vec<JudgedBy>,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// What one tier says.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct JudgedBy {
    /// `cluster` or `namespace`: whose policies.
    pub scope: String,
    /// `enforce` or `observe`.
    pub mode: String,
    /// Whether it is refused by it; with `observe` it would be.
    pub is_refused: bool,
    /// Whether it takes a token of a limit.
    pub is_limit: bool,
    /// What is said.
    pub what: String,
    /// By whom.
    pub policies: Vec<String>,
}

impl Judgement {
    /// What the policies that hold say; of a Pod of which nothing is said that all is let through.
    #[must_use]
    pub fn of(reading: &Reading, request: &JudgeRequest, node: &str) -> Self {
        let is_it = |held: &&Held| {
            held.namespace.as_deref() == Some(&request.namespace) && held.pod.as_deref() == Some(&request.pod)
        };
        let held = reading.pods.iter().find(is_it);
        let act = request.act();
        let mut judgement = Self {
            node: node.to_owned(),
            pod: format!("{}/{}", request.namespace, request.pod),
            what: request.what(),
            ..Self::default()
        };
        judgement.notes.extend(reading.problem.iter().map(|problem| format!("not all is in force: {problem}")));
        let Some(held) = held else {
            judgement.notes.push("no policy that holds says anything of the Pod's traffic".to_owned());
            return judgement;
        };
        let Some(plans) = &held.plans else {
            judgement.verdict = Verdict::Unknown;
            judgement.notes.push("too little is known of the Pod yet: what held goes on".to_owned());
            return judgement;
        };
        let now = Timestamp::from_nanosecond(reading.counted_unix_nano.into()).unwrap_or_default();
        for (name, window) in held.dated.iter().filter(|(_, window)| !window.is_open(now)) {
            judgement.notes.extend(window.in_words(now).map(|what| format!("{name} {what}")));
        }
        for (tier, finding) in judge(&act, plans, &reading.lists) {
            let is_limit = matches!(finding, Finding::Limited(..) | Finding::Requests(_));
            let names = |policies: &std::collections::BTreeSet<_>| policies.iter().map(ToString::to_string).collect();
            let list = format!("allow.{}", act.direction.as_str());
            let (what, policies, verdict) = match finding {
                Finding::Listed { policies, network, ports } => {
                    (format!("is on the list {list}: {network}{}", words(ports)), names(policies), Verdict::Allowed)
                }
                Finding::NotListed { policies } => {
                    (format!("is not on the list {list}"), names(policies), Verdict::Refused)
                }
                Finding::NoList { policies } => (
                    format!("the list {list} could not be made: what held before goes on"),
                    names(policies),
                    Verdict::Unknown,
                ),
                Finding::Limited(limit, rate, policy) => {
                    let what = match limit.kind {
                        Kind::Connections => format!("takes one of {} connections a second", rate_in_words(rate)),
                        Kind::Packets | Kind::Bytes => format!("the Pod {}", limit.in_words(rate)),
                    };
                    (what, vec![policy.to_string()], Verdict::Allowed)
                }
                Finding::Requests(rule) => {
                    let name = rule.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
                    let what =
                        format!("takes one of {} HTTP requests a second{name}", rate_in_words(&rule.kernel.rate));
                    (what, vec![rule.policy.to_string()], Verdict::Allowed)
                }
            };
            if tier.mode == Mode::Enforce && judgement.verdict != Verdict::Refused && verdict != Verdict::Allowed {
                judgement.verdict = verdict;
            }
            judgement.findings.push(JudgedBy {
                scope: scope(tier).to_owned(),
                mode: mode(tier.mode).to_owned(),
                is_refused: verdict == Verdict::Refused,
                is_limit,
                what,
                policies,
            });
        }
        if judgement.findings.is_empty() {
            judgement.notes.push("no policy says anything of it".to_owned());
        } else if act.direction == Direction::Ingress && held.interfaces.is_empty() {
            let why = held.unmet.as_deref().unwrap_or("no interface of the node that leads to the Pod was found yet");
            judgement.notes.push(format!("it is not in force: {why}"));
            judgement.verdict = Verdict::Unknown;
        } else if act.direction == Direction::Ingress {
            judgement
                .notes
                .push("what the node's own processes send is let in, unless policies.exempt_node is false".to_owned());
        }
        judgement
    }
}

/// The ports of an entry, if they are not all.
fn words(ports: sidestep_abi::govern::PortRange) -> String {
    let protocol = match ports.protocol {
        0 => return String::new(),
        TCP => "TCP",
        _ => "UDP",
    };
    match (ports.first, ports.last) {
        (0, u16::MAX) => format!(" {protocol}"),
        (first, last) if first == last => format!(" {protocol} {first}"),
        (first, last) => format!(" {protocol} {first} to {last}"),
    }
}
