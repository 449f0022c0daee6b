//! What policies say of something that a Pod, or a peer of it, would do: by the rules of the kernel programs (`ebpf/src/govern.rs`,
//! `flows.rs`, `requests.rs`), without doing it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use sidestep_abi::{
    govern::{PortRange, Rate, TIERS},
    http::{HttpRule, MAX_RULES},
};

use super::{
    compile::{List, ListName, Name, Plan, Tier},
    limit::Limit,
    requests::{Rule, method_bit},
    settings::{DNS, Direction, Network},
};

/// `IPPROTO_TCP`
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`
pub const UDP: u8 = 17;

/// Something that would be done.
#[derive(Clone, Debug)]
pub struct Act {
    /// Who does it: the Pod with `egress`, the peer with `ingress`.
    pub direction: Direction,
    /// The other end.
    pub peer: IpAddr,
    /// The port of who is asked for something.
    pub port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Method and path of a request that comes to the Pod.
    pub request: Option<(String, String)>,
}

/// What a tier says of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding<'a> {
    /// It is on the list.
    Listed {
        /// Whose list it is.
        policies: &'a BTreeSet<Name>,
        /// The entry that counts.
        network: Network,
        /// Its ports.
        ports: PortRange,
    },
    /// It is not on the list.
    NotListed {
        /// Whose list it is.
        policies: &'a BTreeSet<Name>,
    },
    /// The list could not be made: what held before goes on.
    NoList {
        /// Whose list it is.
        policies: &'a BTreeSet<Name>,
    },
    /// It takes of a limit.
    Limited(Limit, &'a Rate, &'a Name),
    /// It takes a token of a limit of requests.
    Requests(&'a Rule),
}

/// What all tiers say, in the order in which they are asked.
#[must_use]
pub fn judge<'a>(
    act: &Act,
    plans: &'a [Plan; TIERS],
    lists: &BTreeMap<ListName, Arc<List>>,
) -> Vec<(Tier, Finding<'a>)> {
    let mut findings = Vec::new();
    let tiers = || Tier::ALL.into_iter().zip(plans);
    for (tier, plan) in tiers() {
        let policies = match act.direction {
            Direction::Egress => plan.egress.as_ref(),
            Direction::Ingress => plan.ingress.as_ref(),
        };
        let Some(policies) = policies else { continue };
        let name = ListName { policies: policies.clone(), direction: act.direction };
        let finding = lists.get(&name).map_or(Finding::NoList { policies }, |list| match entry(list, act) {
            Some((network, ports)) => Finding::Listed { policies, network, ports },
            None => Finding::NotListed { policies },
        });
        findings.push((tier, finding));
    }
    // The connection itself, and what goes to and fro.
    let is_asked = |limit: &Limit| limit.is_volume() || act.protocol == TCP && limit.direction == act.direction;
    for (tier, plan) in tiers() {
        let limits = plan.limits().filter(|(limit, _)| is_asked(limit));
        findings.extend(limits.map(|(limit, (rate, name))| (tier, Finding::Limited(limit, rate, name))));
    }
    if let (Direction::Ingress, Some((method, path))) = (act.direction, &act.request) {
        for (tier, plan) in tiers() {
            let matching =
                plan.requests.iter().take(MAX_RULES).filter(|rule| matches(&rule.kernel, method, path, act.port));
            findings.extend(matching.map(|rule| (tier, Finding::Requests(rule))));
        }
    }
    findings
}

/// Whether some name server may be asked by it.
#[must_use]
pub fn lets_dns_through(list: &List) -> bool {
    let is_it =
        |range: &PortRange| (range.protocol == 0 || range.protocol == UDP) && (range.first..=range.last).contains(&DNS);
    list.values().flatten().any(is_it)
}

/// The entry of a list that lets something through: the narrowest network has what is allowed to wider ones, too.
fn entry(list: &List, act: &Act) -> Option<(Network, PortRange)> {
    let peer = Network::of(act.peer);
    let (network, ranges) =
        list.iter().filter(|(network, _)| network.contains(&peer)).max_by_key(|(network, _)| network.length)?;
    let is_it = |range: &&PortRange| {
        (range.protocol == 0 || range.protocol == act.protocol) && (range.first..=range.last).contains(&act.port)
    };
    Some((*network, *ranges.iter().find(is_it)?))
}

/// Whether a rule is for a request.
fn matches(rule: &HttpRule, method: &str, path: &str, port: u16) -> bool {
    let prefix = &rule.path[..usize::from(rule.path_len)];
    let is_segment = |rest: &[u8]| {
        prefix.is_empty()
            || prefix.ends_with(b"/")
            || matches!(rest.first(), None | Some(b'/' | b'?' | b'#' | b' ' | b';'))
    };
    (rule.port == 0 || rule.port == port)
        && (rule.methods == 0 || rule.methods & method_bit(method) != 0)
        && path.as_bytes().strip_prefix(prefix).is_some_and(is_segment)
}

#[cfg(test)]
mod tests {
    use sidestep_abi::govern::CONNECTIONS_IN;

    use super::*;
    use crate::policy::{
        precedence::Key,
        traffic::{compile, requests, settings::TrafficSettings},
    };

    fn act(direction: Direction, peer: &str, port: u16, request: Option<(&str, &str)>) -> Act {
        let request = request.map(|(method, path)| (method.to_owned(), path.to_owned()));
        Act { direction, peer: peer.parse().expect("an address"), port, protocol: TCP, request }
    }

    fn traffic(json: &serde_json::Value) -> TrafficSettings {
        serde_json::from_value(json.clone()).expect("traffic")
    }

    #[test]
    fn the_narrowest_network_counts_with_what_its_wider_ones_allow() {
        let traffic = traffic(&serde_json::json!({ "allow": { "egress": [
            { "cidrs": ["10.0.0.0/8"], "ports": [{ "port": 443 }] },
            { "cidrs": ["10.1.0.0/16"], "ports": [{ "port": 8000, "endPort": 8010 }] },
            { "cidrs": ["2001:db8::/32"] },
        ] } }));
        let list = compile::list(traffic.allow.egress.iter().flatten()).expect("a list");
        let entry =
            |peer: &str, port| entry(&list, &act(Direction::Egress, peer, port, None)).map(|(network, _)| network);
        let network = |text: &str| Some(Network::parse(text).expect("a network"));
        assert_eq!(entry("10.2.0.1", 443), network("10.0.0.0/8"));
        assert_eq!(entry("10.1.0.1", 443), network("10.1.0.0/16"));
        assert_eq!(entry("10.1.0.1", 8005), network("10.1.0.0/16"));
        assert_eq!(entry("10.2.0.1", 8005), None);
        assert_eq!(entry("11.0.0.1", 443), None);
        assert_eq!(entry("2001:db8::1", 1), network("2001:db8::/32"));
        assert_eq!(entry("::ffff:10.2.0.1", 443), network("10.0.0.0/8"), "the same address");
    }

    #[test]
    fn a_rule_matches_whole_segments() {
        let traffic = traffic(&serde_json::json!({ "limits": { "httpRequests": [
            { "name": "api", "match": { "methods": ["GET"], "pathPrefix": "/api", "port": 80 }, "rate": { "perSecond": 1 } },
            { "name": "all", "rate": { "perSecond": 9 } },
        ] } }));
        let key = Key { namespace: Some("shop".into()), name: "web".into() };
        let name = Name { key, is_file: false };
        let mut plans = <[Plan; TIERS]>::default();
        plans[1].requests = requests::rules(&traffic.limits.http_requests, &name, Tier::ALL[1], None).collect();
        let names = |method: &str, path: &str, port| {
            let act = act(Direction::Ingress, "10.0.0.1", port, Some((method, path)));
            let found = judge(&act, &plans, &BTreeMap::new()).into_iter();
            found
                .filter_map(|(_, finding)| match finding {
                    Finding::Requests(rule) => rule.name.clone(),
                    _ => None,
                })
                .collect::<Vec<_>>()
        };
        for path in ["/api", "/api/x", "/api?x"] {
            assert_eq!(names("GET", path, 80), ["api", "all"], "{path}");
        }
        assert_eq!(names("GET", "/apis", 80), ["all"]);
        assert_eq!(names("POST", "/api", 80), ["all"]);
        assert_eq!(names("GET", "/api", 81), ["all"]);
    }

    #[test]
    fn every_tier_is_asked_lists_first() {
        let allowed = traffic(&serde_json::json!({ "allow": { "ingress": [{ "cidrs": ["10.0.0.0/8"] }] } }));
        let policies =
            |name: &str| BTreeSet::from([Name { key: Key { namespace: None, name: name.into() }, is_file: false }]);
        let rate = Rate { interval: 1, tolerance: 0, per: 0 };
        let mut plans = <[Plan; TIERS]>::default();
        plans[0].ingress = Some(policies("base"));
        plans[0].limits[CONNECTIONS_IN] = policies("base").pop_first().map(|name| (rate, name));
        plans[1].ingress = Some(policies("own"));
        plans[2].ingress = Some(policies("broken"));
        let list = Arc::new(compile::list(allowed.allow.ingress.iter().flatten()).expect("a list"));
        let name = |name: &str| ListName { policies: policies(name), direction: Direction::Ingress };
        let lists = BTreeMap::from([(name("base"), list), (name("own"), Arc::default())]);
        let found = judge(&act(Direction::Ingress, "10.0.0.1", 80, None), &plans, &lists);
        let kinds: Vec<_> = found
            .iter()
            .map(|(tier, finding)| {
                let kind = match finding {
                    Finding::Listed { .. } => "listed",
                    Finding::NotListed { .. } => "not listed",
                    Finding::NoList { .. } => "no list",
                    Finding::Limited(..) => "connections",
                    Finding::Requests(_) => "requests",
                };
                (Tier::ALL.iter().position(|other| other == tier).unwrap_or_default(), kind)
            })
            .collect();
        assert_eq!(kinds, [(0, "listed"), (1, "not listed"), (2, "no list"), (0, "connections")]);
        let outwards = judge(&act(Direction::Egress, "10.0.0.1", 80, None), &plans, &lists);
        assert!(outwards.is_empty(), "{outwards:?}");
    }
}
