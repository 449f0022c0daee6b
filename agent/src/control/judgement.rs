//! What policies say of a connection, datagram or request, without one.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::governance::{mode, scope};
use crate::{
    pipeline::governed::{Held, Reading},
    policy::traffic::{
        compile::ListName,
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
        let older = held.map(|held| &held.older[..]).unwrap_or_default();
        judgement.notes.extend(older.iter().map(|older| format!("what holds is older: {older}")));
        let problem = reading.problem.iter().filter(|_| older.is_empty());
        judgement.notes.extend(problem.map(|problem| format!("not all is in force: {problem}")));
        let Some(held) = held else {
            judgement.notes.push("no policy that holds says anything of the Pod's traffic".to_owned());
            return judgement;
        };
        let Some(plans) = &held.plans else {
            judgement.verdict = Verdict::Unknown;
            judgement.notes.extend(held.waits_in_words());
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
                    let name = ListName { policies: policies.clone(), direction: act.direction };
                    let pods = reading.pods_of_lists.get(&name);
                    let who = pods.map(|pods| pods.who_lets(act.peer, act.protocol, act.port)).unwrap_or_default();
                    let who = if who.is_empty() {
                        String::new()
                    } else {
                        format!(", one of the {}", who.join(" and of the "))
                    };
                    let what = format!("is on the list {list}: {network}{}{who}", words(ports));
                    (what, names(policies), Verdict::Allowed)
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
        // The findings are of what is declared.
        if !held.older.is_empty() {
            judgement.verdict = Verdict::Unknown;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        Held {
            cgroup: 7,
            namespace: Some("shop".into()),
            pod: Some("web".into()),
            resource: Default::default(),
            path: None,
            interfaces: Vec::new(),
            unmet: None,
            plans: Some(Default::default()),
            waits: None,
            is_held: true,
            older: Vec::new(),
            dated: Vec::new(),
        }
    }

    fn judged(held: Held) -> Judgement {
        let request = JudgeRequest {
            namespace: "shop".to_owned(),
            pod: "web".to_owned(),
            is_egress: true,
            peer: [10, 0, 0, 1].into(),
            port: 80,
            protocol: TCP,
            request: None,
        };
        let problem = Some("something else".to_owned());
        Judgement::of(&Reading { pods: vec![held], problem, ..Reading::default() }, &request, "node")
    }

    #[test]
    fn what_holds_in_the_place_of_what_is_declared_is_told() {
        let as_declared = judged(held());
        assert_eq!(as_declared.verdict, Verdict::Allowed);
        assert_eq!(as_declared.notes, ["not all is in force: something else", "no policy says anything of it"]);
        let older = judged(Held { older: vec!["the list of web: too long".to_owned()], ..held() });
        assert_eq!(older.verdict, Verdict::Unknown, "it was judged by what is declared");
        assert_eq!(older.notes[0], "what holds is older: the list of web: too long");
        for (is_held, so) in [(true, "what held goes on"), (false, "no policy holds for it yet")] {
            let waits = Some("the API server has not told of it");
            let waiting = judged(Held { plans: None, waits, is_held, ..held() });
            assert_eq!(waiting.verdict, Verdict::Unknown);
            assert_eq!(waiting.notes[1], format!("the API server has not told of it: {so}"));
        }
        let end = Timestamp::UNIX_EPOCH;
        let name = crate::policy::traffic::compile::Name {
            key: crate::policy::precedence::Key { namespace: Some("shop".into()), name: "old".into() },
            is_file: false,
        };
        let window = crate::policy::traffic::window::Window { not_before: None, not_after: Some(end) };
        let over = judged(Held { dated: vec![(name, window)], ..held() });
        assert_eq!(over.notes[1], "SidestepPolicy shop/old ended at 1970-01-01T00:00:00Z");
    }
}
