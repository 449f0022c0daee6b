//! From policies to what the kernel programs go by.
//!
//! Policies of one tier add up to one list: a peer is allowed that one of them allows. Tiers restrict each other: what a Pod
//! does is let through if every tier that says something lets it through, so a namespace's policy takes nothing away from what
//! the cluster's administrator has forbidden.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use sidestep_abi::govern::{
    EGRESS, LIMITS, MAX_RANGES, PortRange, REASON_NOT_ALLOWED, REASON_REQUEST_RATE, Rate, RefusedKey, TIERS,
};

use super::{
    limit::Limit,
    requests::Rule,
    settings::{Direction, Mode, Network, Peers, Ports},
};
use crate::policy::precedence::Key;

/// Whose policies, and whether they are enforced.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Tier {
    /// Policies of a namespace, not of the cluster.
    pub is_namespaced: bool,
    /// Whether they are enforced.
    pub mode: Mode,
}

impl Tier {
    /// All, in the order in which they are asked: what is refused is refused before it is observed.
    pub const ALL: [Self; TIERS] = [
        Self { is_namespaced: false, mode: Mode::Enforce },
        Self { is_namespaced: true, mode: Mode::Enforce },
        Self { is_namespaced: false, mode: Mode::Observe },
        Self { is_namespaced: true, mode: Mode::Observe },
    ];
}

/// A policy, and where it stands: one of a file and one of the API server may have the same name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name {
    /// Its name. Those of the cluster come first.
    pub key: Key,
    /// Whether it stands in a file.
    pub is_file: bool,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.key, if self.is_file { " (file)" } else { "" })
    }
}

/// What one tier says of a Pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// Policies whose entries make up the list of peers that the Pod may talk to; `None` when there is no such list.
    pub egress: Option<BTreeSet<Name>>,
    /// The same of the peers who may talk to the Pod.
    pub ingress: Option<BTreeSet<Name>>,
    /// Its limits, by [`Limit::index`], and whose they are.
    pub limits: [Option<(Rate, Name)>; LIMITS],
    /// Limits of HTTP requests that come to it, of all policies.
    pub requests: Vec<Rule>,
}

impl Plan {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.egress.is_none()
            && self.ingress.is_none()
            && self.limits.iter().all(Option::is_none)
            && self.requests.is_empty()
    }

    /// Who has refused something in this tier, by what it says now; `None` when it says nothing of it.
    #[must_use]
    pub fn refuser(&self, refused: &RefusedKey) -> Option<Refuser> {
        let list = if refused.direction == EGRESS { &self.egress } else { &self.ingress };
        match refused.reason {
            REASON_NOT_ALLOWED => list
                .as_ref()
                .map(|list| Refuser { policies: list.iter().map(ToString::to_string).collect(), rule: None }),
            REASON_REQUEST_RATE => {
                let rule = self.requests.iter().find(|rule| rule.kernel.limit == refused.limit);
                rule.map(Rule::refuser)
            }
            _ => {
                let limit = Limit::of(refused).and_then(|limit| self.limit(limit));
                limit.map(|(_, name)| Refuser { policies: vec![name.to_string()], rule: None })
            }
        }
    }

    /// A limit, and whose it is.
    #[must_use]
    pub fn limit(&self, limit: Limit) -> Option<&(Rate, Name)> {
        self.limits[limit.index()].as_ref()
    }

    /// Its limits.
    pub fn limits(&self) -> impl Iterator<Item = (Limit, &(Rate, Name))> {
        Limit::ALL.into_iter().zip(&self.limits).filter_map(|(limit, given)| Some((limit, given.as_ref()?)))
    }

    /// All policies that say something.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        let elsewhere = self.limits().filter(|(limit, _)| !limit.is_at_interface()).map(|(_, (_, name))| name);
        self.egress.iter().flatten().chain(elsewhere).chain(self.at_interface())
    }

    /// The policies that say something of what is decided at the Pod's interface alone.
    pub fn at_interface(&self) -> impl Iterator<Item = &Name> {
        let lists = self.ingress.iter().flatten();
        let limits = self.limits().filter(|(limit, _)| limit.is_at_interface()).map(|(_, (_, name))| name);
        lists.chain(limits).chain(self.requests.iter().map(|rule| &rule.policy))
    }

    /// Its lists.
    pub fn lists(&self) -> impl Iterator<Item = ListName> + '_ {
        let of = |(direction, policies): (_, &Option<_>)| Some(ListName { direction, policies: policies.clone()? });
        [(Direction::Egress, &self.egress), (Direction::Ingress, &self.ingress)].into_iter().filter_map(of)
    }
}

/// Something that does not hold as it was declared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unmet {
    /// What, and why.
    pub text: String,
    /// Of which policies; `None` for all.
    pub policies: Option<BTreeSet<Name>>,
    /// Whether what was declared before goes on in its place.
    pub is_older: bool,
}

impl Unmet {
    /// Of these policies.
    pub fn of<'a>(policies: impl IntoIterator<Item = &'a Name>, text: String) -> Self {
        Self { text, policies: Some(policies.into_iter().cloned().collect()), is_older: false }
    }

    /// The same, and what was declared before goes on.
    #[must_use]
    pub fn by_older(self) -> Self {
        Self { is_older: true, ..self }
    }

    /// Whether it is of one of these policies.
    pub fn concerns<'a>(&self, mut policies: impl Iterator<Item = &'a Name>) -> bool {
        self.policies.as_ref().is_none_or(|of| policies.any(|name| of.contains(name)))
    }
}

impl From<String> for Unmet {
    /// Of all policies.
    fn from(text: String) -> Self {
        Self { text, policies: None, is_older: false }
    }
}

/// Who refuses something.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Refuser {
    /// The policies; several where their entries make up one list. None when they have changed since.
    pub policies: Vec<String>,
    /// The name of the limit, where the policy gives it one.
    pub rule: Option<String>,
}

/// Which list.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ListName {
    /// The policies whose entries it has; those of the cluster come first.
    pub policies: BTreeSet<Name>,
    /// Of those who are talked to, or of those who talk to the Pod.
    pub direction: Direction,
}

impl fmt::Display for ListName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.policies.iter().map(ToString::to_string).collect();
        write!(f, "{} (allow.{})", names.join(", "), self.direction.as_str())
    }
}

/// A list: for each network all that is allowed to it, by wider networks too, so that one look is enough.
pub type List = BTreeMap<Network, BTreeSet<PortRange>>;

/// A network has more ranges of ports than the kernel programs look at.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{network} has {count} ranges of ports, with those of the networks that it lies in; at most {MAX_RANGES} are looked at: join \
     some, or allow all ports"
)]
pub struct TooManyRanges {
    network: Network,
    count: usize,
}

/// Puts the entries of several policies together, without the Pods that they name.
///
/// # Errors
/// A network with too many ranges of ports.
pub fn list<'a>(entries: impl IntoIterator<Item = &'a Peers>) -> Result<List, TooManyRanges> {
    list_with_pods(entries.into_iter().map(|peers| (peers, [])), &mut None)
}

/// Puts the entries of several policies together, each with the addresses of the Pods that it names. A Pod that has too many
/// ranges of ports has the first of them, and one of those is `cut`: labels come and go, and must not hold up the others.
///
/// # Errors
/// A network of the entries themselves with too many ranges of ports.
pub fn list_with_pods<'a, P: IntoIterator<Item = IpAddr>>(
    entries: impl IntoIterator<Item = (&'a Peers, P)>,
    cut: &mut Option<TooManyRanges>,
) -> Result<List, TooManyRanges> {
    let (mut list, mut of_pods) = (List::new(), BTreeSet::new());
    for (peers, pods) in entries {
        let ranges = ranges(peers.ports.as_deref());
        // They were checked when they were read.
        for network in peers.cidrs.iter().flatten().filter_map(|cidr| Network::parse(cidr).ok()) {
            list.entry(network).or_default().extend(&ranges);
        }
        for network in pods.into_iter().map(Network::of) {
            list.entry(network).or_default().extend(&ranges);
            of_pods.insert(network);
        }
    }
    // In this order a network comes behind those that it lies in.
    let mut wider: Vec<(Network, BTreeSet<PortRange>)> = Vec::new();
    for (network, own) in &mut list {
        while wider.last().is_some_and(|(above, _)| !above.contains(network)) {
            wider.pop();
        }
        if let Some((_, above)) = wider.last() {
            own.extend(above);
        }
        *own = joined(own);
        if own.len() > MAX_RANGES {
            let error = TooManyRanges { network: *network, count: own.len() };
            if !of_pods.contains(network) {
                return Err(error);
            }
            *own = own.iter().take(MAX_RANGES).copied().collect();
            *cut = Some(error);
        }
        wider.push((*network, own.clone()));
    }
    Ok(list)
}

const ALL_PORTS: PortRange = PortRange { first: 0, last: u16::MAX, protocol: 0, _pad: [0; 3] };

pub(super) fn ranges(ports: Option<&[Ports]>) -> Vec<PortRange> {
    let Some(ports) = ports else { return vec![ALL_PORTS] };
    let range = |ports: &Ports| PortRange {
        first: ports.port.unwrap_or_default(),
        last: ports.end_port.or(ports.port).unwrap_or(u16::MAX),
        protocol: ports.protocol.number(),
        _pad: [0; 3],
    };
    ports.iter().map(range).collect()
}

/// The same ports in as few ranges as can be.
fn joined(ranges: &BTreeSet<PortRange>) -> BTreeSet<PortRange> {
    if ranges.contains(&ALL_PORTS) {
        return BTreeSet::from([ALL_PORTS]);
    }
    let mut sorted: Vec<_> = ranges.iter().copied().collect();
    sorted.sort_by_key(|range| (range.protocol, range.first));
    let mut joined: Vec<PortRange> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if last.protocol == range.protocol && range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::traffic::settings::Protocol;

    fn peers(cidrs: &[&str], ports: &[(Protocol, u16, u16)]) -> Peers {
        let port = |(protocol, first, last): &(Protocol, u16, u16)| Ports {
            protocol: *protocol,
            port: Some(*first),
            end_port: Some(*last),
        };
        Peers {
            cidrs: Some(cidrs.iter().map(|cidr| (*cidr).to_owned()).collect()),
            pods: None,
            ports: (!ports.is_empty()).then(|| ports.iter().map(port).collect()),
        }
    }

    /// As the kernel programs do: the longest network that has the address, and then its ranges.
    fn allows(list: &List, peer: &str, protocol: Protocol, port: u16) -> bool {
        let peer = Network::parse(peer).expect("an address");
        let longest =
            list.iter().filter(|(network, _)| network.contains(&peer)).max_by_key(|(network, _)| network.length);
        longest.is_some_and(|(_, ranges)| {
            ranges.iter().any(|range| {
                (range.protocol == 0 || range.protocol == protocol.number())
                    && (range.first..=range.last).contains(&port)
            })
        })
    }

    #[test]
    fn a_narrow_network_has_what_the_wider_ones_have() {
        let entries = [
            peers(&["10.0.0.0/8"], &[(Protocol::Tcp, 443, 443)]),
            peers(&["10.1.0.0/16", "::/0"], &[(Protocol::Udp, 53, 53)]),
            peers(&["10.1.2.3"], &[]),
        ];
        let list = list(&entries).expect("a list");
        assert!(allows(&list, "10.9.9.9", Protocol::Tcp, 443) && !allows(&list, "10.9.9.9", Protocol::Udp, 53));
        assert!(allows(&list, "10.1.9.9", Protocol::Tcp, 443) && allows(&list, "10.1.9.9", Protocol::Udp, 53));
        assert!(allows(&list, "10.1.2.3", Protocol::Tcp, 1));
        assert!(allows(&list, "2001:db8::1", Protocol::Udp, 53) && !allows(&list, "192.0.2.1", Protocol::Udp, 53));
    }

    #[test]
    fn ranges_are_joined_and_bounded() {
        let many: Vec<_> = (0..20).map(|index| (Protocol::Tcp, index * 10, index * 10 + 9)).collect();
        let joined = list([&peers(&["10.0.0.0/8"], &many)]).expect("they touch each other");
        assert_eq!(joined.values().next().map(BTreeSet::len), Some(1));
        let many: Vec<_> = (0..17).map(|index| (Protocol::Tcp, index * 10, index * 10)).collect();
        let error = list([&peers(&["10.0.0.0/8"], &many[..9]), &peers(&["10.1.0.0/16"], &many[9..])]);
        assert!(error.is_err_and(|error| error.to_string().starts_with("10.1.0.0/16 has 17 ranges")));
    }

    #[test]
    fn a_pod_with_too_many_ranges_has_the_first_of_them() {
        let ports: Vec<_> = (0..17).map(|index| (Protocol::Tcp, index * 10, index * 10)).collect();
        let (one, other) = (peers(&["192.0.2.0/24"], &ports[..9]), peers(&[], &ports[9..]));
        let (pod, elsewhere): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [10, 0, 0, 1].into());
        let mut cut = None;
        let list = list_with_pods([(&one, vec![]), (&other, vec![pod, elsewhere])], &mut cut).expect("a list");
        assert_eq!(list[&Network::of(pod)].len(), MAX_RANGES);
        assert!(allows(&list, "192.0.2.1", Protocol::Tcp, 80) && !allows(&list, "192.0.2.1", Protocol::Tcp, 160));
        assert!(allows(&list, "10.0.0.1", Protocol::Tcp, 160) && !allows(&list, "10.0.0.1", Protocol::Tcp, 80));
        assert!(cut.is_some_and(|cut| cut.to_string().starts_with("192.0.2.1/32 has 17 ranges")));
    }

    proptest! {
        /// One look at the longest network tells the same as a look at all entries.
        #[test]
        fn one_look_is_enough(
            entries in proptest::collection::vec((0u8..8, 0u8..=32, 0u16..8, 0u16..4, any::<bool>()), 1..30),
            asked in proptest::collection::vec((0u8..8, 0u16..12, any::<bool>()), 30),
        ) {
            let protocol = |is_udp| if is_udp { Protocol::Udp } else { Protocol::Tcp };
            let entries: Vec<_> = entries.iter().map(|(byte, length, first, more, is_udp)| {
                let bits = u32::from_be_bytes([10, *byte, 0, 0]) & u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
                let network = format!("{}/{length}", std::net::Ipv4Addr::from(bits));
                peers(&[&network], &[(protocol(*is_udp), *first, first + more)])
            }).collect();
            let list = list(&entries).expect("few ports");
            for (byte, port, is_udp) in asked {
                let peer = format!("10.{byte}.0.0");
                let network = Network::parse(&peer).expect("an address");
                let expected = entries.iter().any(|entry| {
                    let ports = entry.ports.as_ref().expect("ports")[0];
                    Network::parse(&entry.cidrs.as_ref().expect("networks")[0]).expect("a network").contains(&network)
                        && ports.protocol == protocol(is_udp)
                        && (ports.port..=ports.end_port).contains(&Some(port))
                });
                prop_assert_eq!(allows(&list, &peer, protocol(is_udp), port), expected);
            }
        }
    }
}
