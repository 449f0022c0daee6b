//! What can be declared for the traffic of a Pod.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use sidestep_abi::http::{MAX_ANSWER, MAX_PATH, MAX_RULES};

use super::{byte_limit::ByteLimit, compile::list, limit::Limit, pod_peers, requests, window::Window};
use crate::policy::resource::bound_selector;

/// The most entries of a list, of networks and of ports of one policy.
const MAX_ENTRIES: usize = 1024;
const MAX_CIDRS: usize = 100_000;
const MAX_PORTS: usize = 16;
/// The most selectors of Pods of one entry, and of one list of a policy: each is held against the Pods of the cluster.
const MAX_PODS: usize = 16;
const MAX_PODS_OF_LIST: usize = 64;
/// The longest text of a network: an IPv6 address, `/` and three digits.
const MAX_CIDR: usize = 49;
/// The most headers of an answer.
const MAX_HEADERS: usize = 16;
/// The longest name of a limit.
const MAX_NAME: usize = 63;
/// The port of name servers (RFC 1035, 4.2.1).
pub const DNS: u16 = 53;
/// The longest text of a time: with nanoseconds and an offset.
const MAX_TIME: usize = 35;
/// The most per second: beyond it a nanosecond is too long.
const MAX_RATE: u32 = 1_000_000;

/// What is declared for traffic.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct TrafficSettings {
    /// Whether what is not allowed, or too much, is refused, or only counted and reported.
    pub mode: Mode,
    /// From when on it says something (RFC 3339); from ever when not given.
    #[serde(deserialize_with = "time", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TIME))]
    pub not_before: Option<Time>,
    /// Until when (RFC 3339); for ever when not given. From then on it is as if it said nothing.
    #[serde(deserialize_with = "time", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TIME))]
    pub not_after: Option<Time>,
    /// Who may be talked to.
    #[serde(skip_serializing_if = "Allow::is_empty")]
    pub allow: Allow,
    /// How much.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
}

/// A time, with what to write where it is none.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Time>, D::Error> {
    let parse = |text: String| {
        let wrong = |_| D::Error::custom(format_args!("{text:?} is no time of RFC 3339, as `2026-03-01T00:00:00Z`"));
        text.parse().map(Time).map_err(wrong)
    };
    Option::<String>::deserialize(deserializer)?.map(parse).transpose()
}

/// What becomes of what a policy does not let through.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is let through, counted and reported.
    Observe,
}

/// Who may be talked to. What is not given is not restricted.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Allow {
    /// Peers of connections that the Pod opens, and of datagrams that it sends; an empty list lets nothing through.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub egress: Option<Vec<Peers>>,
    /// Peers who may open connections to the Pod, and send datagrams to it, and the Pod's ports; an empty list lets nothing
    /// through. What the Pod has asked for is answered, and the node itself is let in, with the kubelet's probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub ingress: Option<Vec<Peers>>,
}

/// Who begins.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Direction {
    /// The Pod.
    Egress,
    /// The other end.
    Ingress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// As it is called in policies, reports and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

impl Allow {
    /// Whether nothing is given.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.egress.is_none() && self.ingress.is_none()
    }

    /// Whether it names Pods.
    #[must_use]
    pub fn names_pods(&self) -> bool {
        let entries = Direction::ALL.iter().filter_map(|direction| self.peers(*direction)).flatten();
        entries.into_iter().any(|peers| peers.pods.is_some())
    }

    /// The peers of one direction; `None` when it is not restricted.
    #[must_use]
    pub const fn peers(&self, direction: Direction) -> Option<&Vec<Peers>> {
        match direction {
            Direction::Egress => self.egress.as_ref(),
            Direction::Ingress => self.ingress.as_ref(),
        }
    }
}

/// Some peers: those of `cidrs` and those of `pods`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.cidrs) || has(self.pods)", "message": "names no peers: give cidrs, pods or both",
}]))]
pub struct Peers {
    /// Networks of the other end, as `10.0.0.0/8` and `2001:db8::/32`; an address alone is a network of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_CIDRS), inner(length(min = 2, max = MAX_CIDR)))]
    pub cidrs: Option<Vec<String>>,
    /// Pods at the other end, by labels: the addresses that they have, as they come and go. Those with `hostNetwork` are left
    /// out, as their address is the node's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_PODS))]
    pub pods: Option<Vec<PodPeers>>,
    /// Protocols and ports; all of them when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_PORTS))]
    pub ports: Option<Vec<Ports>>,
}

/// Some Pods.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.selector) || has(self.namespaceSelector)",
    "message": "names no Pods: give selector, namespaceSelector or both",
}]))]
pub struct PodPeers {
    /// Which Pods, by their labels; all of the namespaces when not given.
    #[serde(deserialize_with = "pod_peers::selector", skip_serializing_if = "Option::is_none")]
    #[schemars(transform = bound_selector)]
    pub selector: Option<LabelSelector>,
    /// Pods of which namespaces, by their labels. When not given: of the policy's own, and of all with a
    /// `ClusterSidestepPolicy`.
    #[serde(deserialize_with = "pod_peers::selector", skip_serializing_if = "Option::is_none")]
    #[schemars(transform = bound_selector)]
    pub namespace_selector: Option<LabelSelector>,
}

impl Peers {
    fn let_dns_through(&self) -> bool {
        let lets = |Ports { protocol, port, end_port }: &Ports| {
            let first = port.unwrap_or(0);
            *protocol == Protocol::Udp && (first..=end_port.or(*port).unwrap_or(u16::MAX)).contains(&DNS)
        };
        self.ports.as_ref().is_none_or(|ports| ports.iter().any(lets))
    }
}

/// Ports of a protocol.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Ports {
    /// The protocol; TCP when not given.
    pub protocol: Protocol,
    /// The port, or the first of several; all of them when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// The last of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub end_port: Option<u16>,
}

/// A protocol that has ports. Others, and SCTP, are in entries without ports.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    #[default]
    Tcp,
    /// RFC 768.
    Udp,
}

impl Protocol {
    /// The kernel's number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
        }
    }
}

/// How much is let through.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    /// New connections that the Pod opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_out: Option<RateLimit>,
    /// New TCP connections that others open to the Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_in: Option<RateLimit>,
    /// Packets that the Pod sends, as they pass its interface: segments that are sent together are one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_out: Option<RateLimit>,
    /// Packets that come to the Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_in: Option<RateLimit>,
    /// Bytes of the packets that the Pod sends, with the headers of the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_out: Option<ByteLimit>,
    /// Bytes of the packets that come to the Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_in: Option<ByteLimit>,
    /// HTTP/1 requests that come to the Pod, without TLS. A request has to be within all that match it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_RULES))]
    pub http_requests: Vec<RequestLimit>,
}

impl Limits {
    /// Whether nothing is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A limit of HTTP requests.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestLimit {
    /// Its name in the policy; needed where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_NAME))]
    pub name: Option<String>,
    /// Which requests; all of them when not given.
    #[serde(default, rename = "match", skip_serializing_if = "RequestMatch::is_empty")]
    pub matches: RequestMatch,
    /// How many.
    pub rate: RateLimit,
    /// What is answered to those that are too many: 429 with `Retry-After`, when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<AnswerSettings>,
}

/// Which requests. What is not given is not looked at.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestMatch {
    /// Methods, as `GET`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub methods: Vec<Method>,
    /// What the path begins with, by whole segments: `/api` matches `/api` and `/api/users`, and not `/apis`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_PATH))]
    pub path_prefix: Option<String>,
    /// The Pod's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
}

impl RequestMatch {
    /// Whether nothing is given.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.methods.is_empty() && self.path_prefix.is_none() && self.port.is_none()
    }
}

/// A method of HTTP (RFC 9110, 9.3; RFC 5789).
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "they are their own names")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Patch,
    Options,
}

/// What is answered to a request that is too much.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct AnswerSettings {
    /// The status: one of an error.
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// Seconds in `Retry-After`; what one request takes by the rate, rounded up, when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
    /// Further headers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_HEADERS))]
    pub headers: Vec<Header>,
    /// The body; its type is `text/plain` unless a header says another one.
    #[schemars(length(max = MAX_ANSWER))]
    pub body: String,
}

/// A header of an answer.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Header {
    /// Its name.
    #[schemars(length(min = 1, max = MAX_ANSWER))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = MAX_ANSWER))]
    pub value: String,
}

impl Default for AnswerSettings {
    fn default() -> Self {
        let (headers, body) = (Vec::new(), "too many requests\n".to_owned());
        Self { status: 429, retry_after: None, headers, body }
    }
}

/// A rate.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RateLimit {
    /// How many in a second, in the long run.
    #[schemars(range(min = 1, max = MAX_RATE))]
    pub per_second: u32,
    /// How many at once, after a time without any; by default those of one second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_RATE))]
    pub burst: Option<u32>,
    /// Who has it: the Pod, for all of its clients together, each of these, or all Pods of its workload on the node together.
    #[serde(default, skip_serializing_if = "Per::is_pod")]
    pub per: Per,
}

/// Who has a rate.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Per {
    /// All together.
    #[default]
    Pod,
    /// Each address of the other end.
    Client,
    /// All Pods of the node together that the same workload has made; a Pod whose workload is not known has it alone.
    Workload,
}

impl Per {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    pub(super) const fn is_pod(&self) -> bool {
        matches!(self, Self::Pod)
    }

    /// What stands behind a rate.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Pod => "",
            Self::Client => " for each client",
            Self::Workload => " with all Pods of its workload on this node",
        }
    }
}

/// A network. That of IPv4 is mapped (RFC 4291, 2.5.5.2), and in none of IPv6.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Network {
    /// Whether it is of IPv4.
    pub is_ipv4: bool,
    /// The first address.
    pub address: [u8; 16],
    /// Bits of the address that count, of 128.
    pub length: u8,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from(self.address);
        match address.to_ipv4_mapped().filter(|_| self.is_ipv4) {
            Some(address) => write!(f, "{address}/{}", self.length - 96),
            None => write!(f, "{address}/{}", self.length),
        }
    }
}

impl Network {
    /// One address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        let mapped = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        Self { is_ipv4: mapped.to_ipv4_mapped().is_some(), address: mapped.octets(), length: 128 }
    }

    /// Reads a network, or an address.
    ///
    /// # Errors
    /// What is wrong with it, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| format!("{address:?} is no IP address"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => bits,
            Some(length) => length
                .parse::<u8>()
                .ok()
                .filter(|length| *length <= bits)
                .ok_or_else(|| format!("the length of the prefix is at most {bits}"))?,
        };
        let mapped = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let length_of_128 = length + (128 - bits);
        let is_ipv4 = mapped.to_ipv4_mapped().is_some() && length_of_128 >= 96;
        let network = Self { is_ipv4, address: mapped.octets(), length: length_of_128 };
        let first = network.first();
        if first != network.address {
            let shown = match (address, Ipv6Addr::from(first).to_ipv4_mapped()) {
                (IpAddr::V4(_), Some(first)) => first.to_string(),
                _ => Ipv6Addr::from(first).to_string(),
            };
            return Err(format!("it has bits behind its prefix: write {shown}/{length}"));
        }
        Ok(network)
    }

    fn first(&self) -> [u8; 16] {
        let bits = u128::from_be_bytes(self.address);
        let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or_default();
        (bits & mask).to_be_bytes()
    }

    /// Whether it has all addresses of `other`.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.is_ipv4 == other.is_ipv4
            && self.length <= other.length
            && Self { length: self.length, ..*other }.first() == self.address
    }
}

impl TrafficSettings {
    /// From when until when it says something.
    #[must_use]
    pub fn window(&self) -> Window {
        let date = |time: &Option<Time>| time.as_ref().map(|time| time.0);
        Window { not_before: date(&self.not_before), not_after: date(&self.not_after) }
    }

    /// All that is wrong with it, each with the field's path.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.allow.is_empty() && self.limits.is_empty() {
            problems.push(format!(
                "declares nothing: give at least one of allow.egress, allow.ingress, limits.httpRequests, limits.{}",
                Limit::ALL.map(Limit::field).join(", limits.")
            ));
        }
        if let Window { not_before: Some(begin), not_after: Some(end) } = self.window()
            && end <= begin
        {
            problems.push(format!("notAfter: {end} is not behind notBefore, {begin}"));
        }
        for direction in Direction::ALL {
            self.list_problems(direction, &mut problems);
        }
        let Limits { connections_out, connections_in, packets_out, packets_in, bytes_out, bytes_in, .. } = &self.limits;
        for (field, limit) in [
            ("connectionsOut", connections_out),
            ("connectionsIn", connections_in),
            ("packetsOut", packets_out),
            ("packetsIn", packets_in),
        ] {
            problems.extend(limit.iter().flat_map(|limit| limit.problems(&format!("limits.{field}"))));
        }
        for (field, limit) in [("bytesOut", bytes_out), ("bytesIn", bytes_in)] {
            problems.extend(limit.iter().flat_map(|limit| limit.problems(&format!("limits.{field}"))));
        }
        if connections_out.is_some_and(|limit| limit.per == Per::Client) {
            problems.push("limits.connectionsOut.per: the one who opens them is the Pod: leave it out".to_owned());
        }
        self.request_problems(&mut problems);
        problems
    }

    /// What is right and may not be meant, each with the field's path: an enforced list that lets no DNS through. An empty one says
    /// so itself.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let enforced = self.allow.egress.iter().filter(|_| self.mode == Mode::Enforce);
        let without_dns = enforced.filter(|entries| !entries.is_empty() && !entries.iter().any(Peers::let_dns_through));
        let warning = "allow.egress: lets no DNS through (UDP port 53), so names are not resolved, unless another policy for the \
                       same Pods does";
        without_dns.map(|_| warning.to_owned()).collect()
    }

    fn list_problems(&self, direction: Direction, problems: &mut Vec<String>) {
        let Some(entries) = self.allow.peers(direction) else { return };
        let (list_path, before) = (format!("allow.{}", direction.as_str()), problems.len());
        for (index, peers) in entries.iter().enumerate() {
            let path = format!("{list_path}[{index}]");
            if peers.cidrs.is_none() && peers.pods.is_none() {
                problems.push(format!("{path}: names no peers: give cidrs, pods or both"));
            }
            if peers.cidrs.as_ref().is_some_and(Vec::is_empty) {
                problems.push(format!("{path}.cidrs: is empty; `0.0.0.0/0` and `::/0` are all peers"));
            }
            for (number, cidr) in peers.cidrs.iter().flatten().enumerate() {
                if let Err(error) = Network::parse(cidr) {
                    problems.push(format!("{path}.cidrs[{number}]: {error}"));
                }
            }
            if peers.pods.as_ref().is_some_and(Vec::is_empty) {
                problems.push(format!("{path}.pods: is empty; `selector: {{}}` is all Pods of the namespace"));
            }
            for (number, pods) in peers.pods.iter().flatten().enumerate() {
                problems.extend(pods.problems().map(|problem| format!("{path}.pods[{number}]{problem}")));
            }
            if peers.ports.as_ref().is_some_and(Vec::is_empty) {
                problems.push(format!("{path}.ports: is empty; leave it out for all ports"));
            }
            for (number, ports) in peers.ports.iter().flatten().enumerate() {
                let wrong = match (ports.port, ports.end_port) {
                    (None, Some(_)) => Some("endPort needs port"),
                    (Some(first), Some(last)) if last < first => Some("endPort is less than port"),
                    (Some(0), _) => Some("port 0 is none"),
                    _ => None,
                };
                problems.extend(wrong.map(|wrong| format!("{path}.ports[{number}]: {wrong}")));
            }
        }
        let selectors: usize = entries.iter().map(|peers| peers.pods.as_ref().map_or(0, Vec::len)).sum();
        if selectors > MAX_PODS_OF_LIST {
            problems.push(format!("{list_path}: has {selectors} selectors of Pods; at most {MAX_PODS_OF_LIST}"));
        }
        if problems.len() == before
            && let Err(error) = list(entries)
        {
            problems.push(format!("{list_path}: {error}"));
        }
    }

    fn request_problems(&self, problems: &mut Vec<String>) {
        let limits = &self.limits.http_requests;
        if limits.len() > MAX_RULES {
            problems.push(format!("limits.httpRequests: has {}; at most {MAX_RULES} are looked at", limits.len()));
        }
        let mut names = BTreeSet::new();
        for (index, limit) in limits.iter().enumerate() {
            let path = format!("limits.httpRequests[{index}]");
            problems.extend(limit.rate.problems(&path));
            match limit.name.as_deref() {
                None if limits.len() > 1 => problems.push(format!("{path}.name: is needed where there are several")),
                Some(name) if name.is_empty() || name.len() > MAX_NAME => {
                    problems.push(format!("{path}.name: has from 1 to {MAX_NAME} characters"));
                }
                Some(name) if !names.insert(name) => problems.push(format!("{path}.name: {name:?} is there twice")),
                _ => {}
            }
            let prefix = limit.matches.path_prefix.as_deref();
            // What ends a path in a request would never match.
            let is_path = |prefix: &str| {
                prefix.starts_with('/')
                    && prefix.len() <= MAX_PATH
                    && prefix.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'))
            };
            if prefix.is_some_and(|prefix| !is_path(prefix)) {
                problems.push(format!(
                    "{path}.match.pathPrefix: begins with `/`, has at most {MAX_PATH} bytes, and is as in a request: without \
                     spaces, `?` and `#`, and with %XX for what is not ASCII"
                ));
            }
            if limit.matches.port == Some(0) {
                problems.push(format!("{path}.match.port: port 0 is none"));
            }
            if let Err(error) = requests::answer(limit) {
                problems.push(format!("{path}.answer{error}"));
            }
        }
    }
}

impl RateLimit {
    fn problems(&self, path: &str) -> Vec<String> {
        let fields = [("perSecond", Some(self.per_second)), ("burst", self.burst)];
        let wrong = fields.into_iter().filter(|(_, value)| value.is_some_and(|value| value == 0 || value > MAX_RATE));
        wrong.map(|(field, _)| format!("{path}.{field}: is from 1 to {MAX_RATE}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read() {
        let network = Network::parse("10.0.0.0/8").expect("a network");
        assert_eq!((network.length, network.address[12]), (104, 10));
        assert!(network.contains(&Network::parse("10.1.2.3").expect("an address")));
        assert!(network.contains(&Network::parse("::ffff:10.1.2.3").expect("the same, mapped")));
        assert!(!network.contains(&Network::parse("11.0.0.0/8").expect("another")));
        assert!(Network::parse("0.0.0.0/0").expect("all").contains(&network));
        assert!(!Network::parse("::/0").expect("all of IPv6").contains(&network));
        for (text, error) in [
            ("10.0.0.1/8", "it has bits behind its prefix: write 10.0.0.0/8"),
            ("2001:db8::1/32", "it has bits behind its prefix: write 2001:db8::/32"),
            ("10.0.0.0/33", "the length of the prefix is at most 32"),
            ("example.org", "\"example.org\" is no IP address"),
        ] {
            assert_eq!(Network::parse(text), Err(error.to_owned()));
        }
    }

    #[test]
    fn a_list_that_cuts_off_dns_is_warned_of() {
        let is_warned_of = |traffic: serde_json::Value| {
            let settings: TrafficSettings = serde_json::from_value(traffic).expect("settings");
            let warnings = settings.warnings();
            assert!(warnings.iter().all(|warning| warning.starts_with("allow.egress: ")), "{warnings:?}");
            !warnings.is_empty()
        };
        let egress = |ports: serde_json::Value| {
            serde_json::json!({ "allow": { "egress": [
                { "cidrs": ["10.0.0.0/8"], "ports": [{ "port": 443 }] }, { "cidrs": ["10.0.0.1"], "ports": ports },
            ] } })
        };
        for ports in [
            serde_json::json!([{ "protocol": "UDP", "port": 53 }]),
            serde_json::json!([{ "port": 53 }, { "protocol": "UDP", "port": 1, "endPort": 1023 }]),
            serde_json::json!([{ "protocol": "UDP" }]),
            serde_json::json!(null),
        ] {
            assert!(!is_warned_of(egress(ports.clone())), "{ports}");
        }
        for ports in [
            serde_json::json!([{ "port": 53 }]),
            serde_json::json!([{ "protocol": "UDP", "port": 54, "endPort": 1023 }]),
            serde_json::json!([{ "protocol": "UDP", "port": 5353 }]),
        ] {
            assert!(is_warned_of(egress(ports.clone())), "{ports}");
            let mut observed = egress(ports);
            observed["mode"] = "observe".into();
            assert!(!is_warned_of(observed));
        }
        assert!(
            !is_warned_of(serde_json::json!({ "allow": { "egress": [] } })),
            "it says itself that nothing is let through"
        );
        assert!(!is_warned_of(serde_json::json!({ "allow": { "ingress": [{ "cidrs": ["10.0.0.0/8"] }] } })));
    }

    #[test]
    fn problems_name_the_field() {
        let settings: TrafficSettings = serde_json::from_str(
            r#"{"notBefore": "2026-03-01T00:00:00Z", "notAfter": "2026-03-01T01:00:00+01:00",
                "allow": {"egress": [{"cidrs": ["10.0.0.0/8"]}, {"cidrs": ["x"], "ports": [{"endPort": 2}]}],
                           "ingress": [{"cidrs": []}]},
                "limits": {"connectionsOut": {"perSecond": 0}, "connectionsIn": {"perSecond": 1, "burst": 0}}}"#,
        )
        .expect("settings");
        let problems = settings.problems();
        assert_eq!(problems.len(), 6, "{problems:?}");
        let problems = match &problems[..] {
            [dates, others @ ..] if dates.starts_with("notAfter: 2026-03-01T00:00:00Z is not behind") => others,
            _ => panic!("{problems:?}"),
        };
        assert!(problems[0].starts_with("allow.egress[1].cidrs[0]: "), "{problems:?}");
        assert_eq!(problems[1], "allow.egress[1].ports[0]: endPort needs port");
        assert!(problems[2].starts_with("allow.ingress[0].cidrs: is empty"), "{problems:?}");
        assert!(problems[3].starts_with("limits.connectionsOut.perSecond: "), "{problems:?}");
        assert!(problems[4].starts_with("limits.connectionsIn.burst: "), "{problems:?}");
    }

    #[test]
    fn peers_are_networks_or_pods() {
        let pods = |count: usize| serde_json::json!(vec![serde_json::json!({ "selector": {} }); count]);
        let wrong = serde_json::json!({ "allow": { "ingress": [
            {}, { "pods": [] }, { "pods": [{}] },
            { "pods": [{ "selector": { "matchExpressions": [{ "key": "a", "operator": "Is" }] } }] },
        ], "egress": [{ "pods": pods(MAX_PODS_OF_LIST) }, { "cidrs": ["10.0.0.0/8"], "pods": pods(1) }] } });
        let settings: TrafficSettings = serde_json::from_value(wrong).expect("settings");
        assert!(settings.allow.names_pods());
        let problems = settings.problems();
        assert_eq!(
            problems[..4],
            [
                "allow.egress: has 65 selectors of Pods; at most 64",
                "allow.ingress[0]: names no peers: give cidrs, pods or both",
                "allow.ingress[1].pods: is empty; `selector: {}` is all Pods of the namespace",
                "allow.ingress[2].pods[0]: names no Pods: give selector, namespaceSelector or both",
            ]
        );
        assert!(problems[4].starts_with("allow.ingress[3].pods[0].selector: ") && problems.len() == 5, "{problems:?}");
    }
}
