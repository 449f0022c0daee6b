//! Records of what policies have refused: from the kernel programs' samples, with the names of the Pod and of the policies.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    mem,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use sidestep_abi::govern::{
    EGRESS, OUTCOME_REFUSED, REASON_BYTE_RATE, REASON_CONNECTION_RATE, REASON_NOT_ALLOWED, REASON_PACKET_RATE,
    REASON_REQUEST_RATE, Refusal,
};

use super::{governed::Reading, governor, streams::Deliver};
use crate::{
    control::governance,
    ledger::Account,
    policy::traffic::{
        compile::{Refuser, Tier},
        judge::{TCP, UDP},
        limit::Limit,
        settings::{Direction, Mode},
    },
    record::{Attributes, Batch, Class, Line, LineFlags, Origin, Resource, Severity, Stream},
    sinks::Hold,
};

/// Streams of Pods that are kept for their next refusal.
const MOST: usize = 4096;
/// How long a refusal waits for who the Pod is, and for the policies: what the kernel goes by is known a moment after.
const PATIENCE: Duration = Duration::from_secs(1);
/// An agent that has just begun does not know them yet, for so long.
const BEGINNING: Duration = Duration::from_secs(10);
/// How many may wait.
const MOST_WAITING: usize = 4096;

/// Makes records of refusals, and hands them on at the end of a round.
pub struct Refusals {
    deliver: Deliver,
    governor: governor::Handle,
    node: Arc<Resource>,
    account: Arc<Account>,
    /// By the Pod's cgroup.
    streams: BTreeMap<u64, Arc<Stream>>,
    waiting: VecDeque<Waiting>,
    begun: Instant,
}

/// A refusal that is not told of yet.
struct Waiting {
    refusal: Refusal,
    request: Vec<u8>,
    time: u64,
    since: Instant,
    /// Keeps the ring from letting go of it.
    hold: Option<Hold>,
}

impl Refusals {
    /// None yet. What they take in the ledger is nothing; it is booked on the node's `account`.
    #[must_use]
    pub fn new(deliver: Deliver, governor: governor::Handle, (node, account): (Arc<Resource>, Arc<Account>)) -> Self {
        Self {
            deliver,
            governor,
            node,
            account,
            streams: BTreeMap::new(),
            waiting: VecDeque::new(),
            begun: Instant::now(),
        }
    }

    /// Takes one, with the beginning of the request, its time in nanoseconds since the Unix epoch and the round's guard.
    pub fn take(&mut self, refusal: &Refusal, request: &[u8], time: u64, hold: Option<&Hold>) {
        let hold = hold.map(Arc::clone);
        self.waiting.push_back(Waiting {
            refusal: *refusal,
            request: request.to_vec(),
            time,
            since: Instant::now(),
            hold,
        });
    }

    /// Hands on those of which all is known, and those that have waited for long; all of them when the ring `is_crowded`.
    pub fn end_round(&mut self, now: Instant, is_crowded: bool) {
        if self.waiting.is_empty() {
            return;
        }
        let reading = self.governor.reading();
        let mut ready = BTreeMap::<u64, Vec<Waiting>>::new();
        let is_full = self.waiting.len() > MOST_WAITING;
        let is_beginning = now.saturating_duration_since(self.begun) < BEGINNING;
        for waiting in mem::take(&mut self.waiting) {
            let cgroup = waiting.refusal.header.cgroup;
            let waited = now.saturating_duration_since(waiting.since);
            let is_known =
                reading.pod(cgroup).is_some_and(|held| held.plans.is_some() || held.is_held && !is_beginning);
            if is_known || is_crowded || is_full || !is_beginning && waited >= PATIENCE {
                ready.entry(cgroup).or_default().push(waiting);
            } else {
                self.waiting.push_back(waiting);
            }
        }
        for (cgroup, told) in ready {
            self.tell(cgroup, &reading, told, is_crowded);
        }
    }

    /// The end: what waits is handed on as it is, or left to the next agent.
    pub fn finish(&mut self, leave: bool) {
        self.end_round(Instant::now(), !leave);
        // The ring keeps what nobody lets go of.
        self.waiting.drain(..).for_each(|waiting| mem::forget(waiting.hold));
    }

    fn tell(&mut self, cgroup: u64, reading: &Reading, mut waiting: Vec<Waiting>, is_crowded: bool) {
        // CPUs do not write in the order of their clocks.
        waiting.sort_by_key(|waiting| waiting.refusal.header.time);
        let held = reading.pod(cgroup);
        let mut data = Vec::new();
        let mut lines: Vec<Line> = Vec::with_capacity(waiting.len());
        for Waiting { refusal, request, time, .. } in &waiting {
            let told = Told::new(refusal, request, reading);
            let body = told.body();
            // Two CPUs may have the same time, and no two records the same place. It is the same for a refusal that comes once more.
            let after = lines.last().map_or(0, |last| last.position + 1);
            lines.push(Line {
                time_unix_nano: *time,
                observed_time_unix_nano: *time,
                body: data.len()..data.len() + body.len(),
                position: refusal.header.time.max(after),
                flags: LineFlags::SYNTHETIC,
                severity: Some(if told.is_observed { Severity::Info } else { Severity::Warn }),
                attributes: Some(Box::new(told.attributes())),
                ..Line::default()
            });
            data.extend_from_slice(body.as_bytes());
            self.governor.recent().note(told.recent(*time));
        }
        // Of a Pod that is gone meanwhile is known what was.
        let known = self.streams.get(&cgroup);
        let known = known.filter(|stream| held.is_none_or(|held| stream.resource == held.resource));
        let resource = held.map_or(&self.node, |held| &held.resource);
        let stream = known.map_or_else(|| self.stream(cgroup, resource), Arc::clone);
        if self.streams.len() >= MOST {
            self.streams.clear();
        }
        self.streams.insert(cgroup, Arc::clone(&stream));
        let batch = Arc::new(Batch { stream, data: data.into(), lines });
        // Those of several rounds may have waited. Where the ring is short of room it keeps lines alone.
        let waiting = if is_crowded { Vec::new() } else { waiting };
        let holds: Vec<Hold> = waiting.into_iter().filter_map(|waiting| waiting.hold).collect();
        let hold: Option<Hold> = if holds.is_empty() { None } else { Some(Arc::new(holds)) };
        (self.deliver)(batch, hold.as_ref());
    }

    fn stream(&self, cgroup: u64, resource: &Arc<Resource>) -> Arc<Stream> {
        Arc::new(Stream {
            // The same whatever is known of the Pod, so that what comes once more is the same record.
            key: format!("governance/{cgroup}").into(),
            class: Class::Governance,
            origin: Origin::Refusals,
            resource: Arc::clone(resource),
            account: Arc::clone(&self.account),
            source: None,
        })
    }
}

/// A refusal, in words.
struct Told<'a> {
    refusal: &'a Refusal,
    direction: Direction,
    is_observed: bool,
    tier: Tier,
    refuser: Refuser,
    request: Option<Request<'a>>,
}

/// What is known of a request.
struct Request<'a> {
    method: &'static str,
    /// Without its query, which may hold what is nobody's business.
    path: Cow<'a, str>,
}

impl<'a> Request<'a> {
    /// What is no method, or no target, may be anything that a client has sent, and is not told.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
        let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
        let (method, target) = (words.next()?, words.next()?);
        let method = METHODS.into_iter().find(|known| known.as_bytes() == method).unwrap_or("_OTHER");
        let target = target.split(|byte| matches!(byte, b'?' | b'#' | b';')).next().unwrap_or_default();
        let path = match target {
            [b'/', ..] | b"*" => target,
            // Of an absolute URI what follows its authority.
            _ => {
                let authority = target.windows(3).position(|window| window == b"://")? + 3;
                let path = target[authority..].iter().position(|byte| *byte == b'/')?;
                &target[authority + path..]
            }
        };
        Some(Self { method, path: String::from_utf8_lossy(path) })
    }
}

/// Those of OpenTelemetry's semantic conventions; others are `_OTHER`.
const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

impl<'a> Told<'a> {
    fn new(refusal: &'a Refusal, request: &'a [u8], reading: &Reading) -> Self {
        let refused = &refusal.refused;
        let direction = if refused.direction == EGRESS { Direction::Egress } else { Direction::Ingress };
        let tier = Tier::ALL[usize::from(refused.tier) % Tier::ALL.len()];
        let refuser = reading.refuser(refused);
        let is_observed = refused.outcome != OUTCOME_REFUSED;
        Self { refusal, direction, is_observed, tier, refuser, request: Request::parse(request) }
    }

    const fn transport(&self) -> Option<&'static str> {
        match self.refusal.protocol as u8 {
            TCP => Some("tcp"),
            UDP => Some("udp"),
            132 => Some("sctp"),
            _ => None,
        }
    }

    fn peer(&self) -> IpAddr {
        Ipv6Addr::from(self.refusal.ends.client).to_canonical()
    }

    /// The Pod's end, as far as it has one.
    fn own(&self) -> Option<IpAddr> {
        let own = Ipv6Addr::from(self.refusal.ends.pod);
        (!own.is_unspecified()).then(|| own.to_canonical())
    }

    fn policies(&self) -> String {
        self.refuser.policies.join(", ")
    }

    fn body(&self) -> String {
        let (verb, peer) = (if self.is_observed { "would be refused" } else { "refused" }, self.peer());
        let (peer_port, own_port) = (self.refusal.ends.client_port, self.refusal.ends.pod_port);
        let kind = if self.refusal.protocol == u32::from(TCP) { "connection" } else { "datagram" };
        let limit = Limit::of(&self.refusal.refused);
        let kind = if limit.is_some_and(Limit::is_volume) { "packet" } else { kind };
        let what = match (self.refusal.refused.reason, self.direction, &self.request) {
            (REASON_REQUEST_RATE, _, Some(Request { method, path })) => format!("{method} {path} from {peer}"),
            (REASON_REQUEST_RATE, ..) => format!("request from {peer}"),
            (_, Direction::Egress, _) => format!("{kind} to {}", end(peer, peer_port)),
            // Not of every protocol.
            _ if own_port == 0 => format!("{kind} from {peer}"),
            _ => format!("{kind} from {} to port {own_port}", end(peer, peer_port)),
        };
        let by = match self.refuser.rule.as_deref() {
            Some(rule) => format!("{}, {rule}", self.policies()),
            None => self.policies(),
        };
        let why = match self.refusal.refused.reason {
            REASON_NOT_ALLOWED => format!("not on the list allow.{}", self.direction.as_str()),
            REASON_CONNECTION_RATE => "too many connections a second".to_owned(),
            REASON_PACKET_RATE => "too many packets a second".to_owned(),
            REASON_BYTE_RATE => "too many bytes a second".to_owned(),
            _ => "too many requests a second".to_owned(),
        };
        if by.is_empty() { format!("{verb}: {what}: {why}") } else { format!("{verb}: {what}: {why} ({by})") }
    }

    /// By OpenTelemetry's semantic conventions where they have a name.
    fn attributes(&self) -> Attributes {
        let Refusal { header, refused, count, ends, .. } = self.refusal;
        let mut attributes = Attributes::new();
        let mut put = |name: &str, value: Value| attributes.insert(name.to_owned(), value);
        let (peer, own) = (self.peer(), self.own());
        put("network.type", Value::from(if peer.is_ipv4() { "ipv4" } else { "ipv6" }));
        if let Some(transport) = self.transport() {
            put("network.transport", Value::from(transport));
        }
        put("network.peer.address", Value::from(peer.to_string()));
        put("network.peer.port", Value::from(ends.client_port));
        if let Some(own) = own {
            put("network.local.address", Value::from(own.to_string()));
            put("network.local.port", Value::from(ends.pod_port));
        }
        if let Some(Request { method, path }) = &self.request {
            put("http.request.method", Value::from(*method));
            put("url.path", Value::from(path.as_ref()));
        }
        if header.tgid != 0 {
            put("process.pid", Value::from(header.tgid));
        }
        put("sidestep.governance.reason", Value::from(governance::reason(refused.reason)));
        put("sidestep.governance.direction", Value::from(self.direction.as_str()));
        put("sidestep.governance.scope", Value::from(governance::scope(self.tier)));
        let mode = if self.is_observed { Mode::Observe } else { Mode::Enforce };
        put("sidestep.governance.mode", Value::from(governance::mode(mode)));
        if !self.refuser.policies.is_empty() {
            put("sidestep.governance.policy", Value::from(self.policies()));
        }
        if let Some(rule) = &self.refuser.rule {
            put("sidestep.governance.rule", Value::from(rule.as_str()));
        }
        put("sidestep.governance.count", Value::from(*count));
        attributes
    }

    fn recent(&self, time: u64) -> governance::Recent {
        governance::Recent {
            time_unix_nano: time,
            cgroup: self.refusal.header.cgroup,
            peer: self.peer().to_string(),
            kind: governance::kind(&self.refusal.refused),
        }
    }
}

/// An address and its port, if it has one.
fn end(address: IpAddr, port: u16) -> String {
    match (port, address) {
        (0, _) => address.to_string(),
        (_, IpAddr::V6(_)) => format!("[{address}]:{port}"),
        (_, IpAddr::V4(_)) => format!("{address}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_request_says_nothing() {
        let parse =
            |bytes: &str| Request::parse(bytes.as_bytes()).map(|request| (request.method, request.path.into_owned()));
        for (line, method, path) in [
            ("GET /a/b?token=x HTTP/1.1\r\nHost: x", "GET", "/a/b"),
            ("GET /a;jsessionid=x HTTP/1.1\r\n", "GET", "/a"),
            ("OPTIONS * HTTP/1.1\r\n", "OPTIONS", "*"),
            ("BREW /pot HTTP/1.1\r\n", "_OTHER", "/pot"),
            ("GET http://user:secret@host:80/path#x HTTP/1.1", "GET", "/path"),
            ("GET /cut", "GET", "/cut"),
        ] {
            assert_eq!(parse(line), Some((method, path.to_owned())), "{line}");
        }
        for line in
            ["", "\r\nX-Api-Key: SECRET", "hunterSecret", "GET ", "GET a/b/c/SECRET", "Cookie: a://SECRET", "\u{fffd}"]
        {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn records_say_it_in_words() {
        let ends = sidestep_abi::http::ConnectionKey {
            client: Ipv6Addr::LOCALHOST.octets(),
            pod: std::net::Ipv4Addr::new(10, 0, 0, 4).to_ipv6_mapped().octets(),
            client_port: 5,
            pod_port: 80,
            interface: 2,
        };
        let header = sidestep_abi::Header { kind: 8, flags: 0, len: 0, time: 1, cgroup: 7, tgid: 0, tid: 0 };
        let refused = |reason, direction, outcome| sidestep_abi::govern::RefusedKey {
            cgroup: 7,
            reason,
            direction,
            outcome,
            tier: 3,
            limit: 0,
        };
        // A limit that has gone since.
        let gone = Refuser { policies: vec!["SidestepPolicy shop/web".to_owned()], rule: Some("search".to_owned()) };
        let reading = Reading { limits: BTreeMap::from([(4, gone)]), ..Reading::default() };
        let told = |refused, protocol, request: &str| {
            let refusal = Refusal { header, refused, count: 9, ends, protocol, _pad: 0 };
            let told = Told::new(&refusal, request.as_bytes(), &reading);
            (told.body(), told.attributes())
        };
        let (body, attributes) = told(refused(REASON_NOT_ALLOWED, EGRESS, 0), 17, "");
        assert_eq!(body, "refused: datagram to [::1]:5: not on the list allow.egress");
        assert_eq!(attributes["network.local.address"], "10.0.0.4");
        assert_eq!(
            (&attributes["sidestep.governance.scope"], &attributes["network.type"]),
            (&"namespace".into(), &"ipv6".into())
        );
        assert!(!attributes.contains_key("process.pid") && !attributes.contains_key("sidestep.governance.policy"));
        let (body, _) = told(refused(REASON_CONNECTION_RATE, 2, 1), 6, "");
        assert_eq!(body, "would be refused: connection from [::1]:5 to port 80: too many connections a second");
        let (body, attributes) = told(refused(3, 2, 0), 6, "POST /x HTTP/1.1");
        assert_eq!(body, "refused: POST /x from ::1: too many requests a second");
        assert_eq!((&attributes["http.request.method"], &attributes["url.path"]), (&"POST".into(), &"/x".into()));
        let limited = sidestep_abi::govern::RefusedKey { limit: 4, ..refused(3, 2, 0) };
        let (body, attributes) = told(limited, 6, "GET /y HTTP/1.1");
        assert_eq!(body, "refused: GET /y from ::1: too many requests a second (SidestepPolicy shop/web, search)");
        assert_eq!(attributes["sidestep.governance.rule"], "search");
    }
}
