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
use sidestep_abi::govern::{EGRESS, REASON_CONNECTION_RATE, REASON_NOT_ALLOWED, Refusal};

use super::{
    governor::{self, Held},
    streams::Deliver,
};
use crate::{
    control::governance,
    ledger::Account,
    policy::traffic::{
        compile::{Refuser, Tier},
        settings::{Direction, Mode},
    },
    record::{Attributes, Batch, Class, Line, LineFlags, Origin, Resource, Severity, Stream},
    sinks::Hold,
};

/// Streams of Pods that are kept for their next refusal.
const MOST: usize = 4096;
/// How long a refusal waits for who the Pod is, and for the policies: an agent that has just begun does not know them yet.
const PATIENCE: Duration = Duration::from_secs(5);
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
        Self { deliver, governor, node, account, streams: BTreeMap::new(), waiting: VecDeque::new() }
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
        let is_crowded = is_crowded || self.waiting.len() > MOST_WAITING;
        for waiting in mem::take(&mut self.waiting) {
            let cgroup = waiting.refusal.header.cgroup;
            let is_known = reading.pod(cgroup).is_some_and(|held| held.plans.is_some());
            if is_known || is_crowded || now.saturating_duration_since(waiting.since) >= PATIENCE {
                ready.entry(cgroup).or_default().push(waiting);
            } else {
                self.waiting.push_back(waiting);
            }
        }
        for (cgroup, told) in ready {
            self.tell(cgroup, reading.pod(cgroup), told);
        }
    }

    /// The end: what waits is handed on as it is, or left to the next agent.
    pub fn finish(&mut self, leave: bool) {
        self.end_round(Instant::now(), !leave);
        // The ring keeps what nobody lets go of.
        self.waiting.drain(..).for_each(|waiting| mem::forget(waiting.hold));
    }

    fn tell(&mut self, cgroup: u64, held: Option<&Held>, mut waiting: Vec<Waiting>) {
        // CPUs do not write in the order of their clocks.
        waiting.sort_by_key(|waiting| waiting.refusal.header.time);
        let mut data = Vec::new();
        let mut lines: Vec<Line> = Vec::with_capacity(waiting.len());
        for Waiting { refusal, request, time, .. } in &waiting {
            let told = Told::new(refusal, request, held);
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
            self.governor.note_refusal(told.recent(held, *time));
        }
        let resource = held.map_or(&self.node, |held| &held.resource);
        let known = self.streams.get(&cgroup).filter(|stream| stream.resource == *resource);
        let stream = known.map_or_else(|| self.stream(cgroup, resource), Arc::clone);
        if self.streams.len() >= MOST {
            self.streams.clear();
        }
        self.streams.insert(cgroup, Arc::clone(&stream));
        let batch = Arc::new(Batch { stream, data: data.into(), lines });
        // Those of several rounds may have waited.
        let holds: Vec<Hold> = waiting.into_iter().filter_map(|waiting| waiting.hold).collect();
        let hold: Option<Hold> = if holds.is_empty() { None } else { Some(Arc::new(holds)) };
        (self.deliver)(batch, hold.as_ref());
    }

    fn stream(&self, cgroup: u64, resource: &Arc<Resource>) -> Arc<Stream> {
        let pod = resource.pod_uid.as_ref().or(resource.container_id.as_ref());
        Arc::new(Stream {
            key: format!("governance/{}", pod.map_or_else(|| cgroup.to_string(), ToString::to_string)).into(),
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
    method: Cow<'a, str>,
    /// Without its query, which may hold what is nobody's business.
    path: Cow<'a, str>,
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).find(|line| !line.is_empty())?;
        let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
        let (method, target) = (words.next()?, words.next().unwrap_or_default());
        let target = target.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
        // Of an absolute URI what follows the third slash.
        let path = match target.first() {
            Some(b'/' | b'*') | None => target,
            Some(_) => target
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == b'/')
                .nth(2)
                .map_or(&b""[..], |(at, _)| &target[at..]),
        };
        Some(Self { method: String::from_utf8_lossy(method), path: String::from_utf8_lossy(path) })
    }
}

impl<'a> Told<'a> {
    fn new(refusal: &'a Refusal, request: &'a [u8], held: Option<&Held>) -> Self {
        let refused = &refusal.refused;
        let direction = if refused.direction == EGRESS { Direction::Egress } else { Direction::Ingress };
        let tier = Tier::ALL[usize::from(refused.tier) % Tier::ALL.len()];
        let plan = held.and_then(|held| held.plans.as_ref()?.get(usize::from(refused.tier)));
        let refuser = plan.map(|plan| plan.refuser(refused)).unwrap_or_default();
        let is_observed = refused.observed != 0;
        Self { refusal, direction, is_observed, tier, refuser, request: Request::parse(request) }
    }

    const fn transport(&self) -> Option<&'static str> {
        match self.refusal.protocol {
            6 => Some("tcp"),
            17 => Some("udp"),
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
        let what = match (self.refusal.refused.reason, self.direction, &self.request) {
            (REASON_NOT_ALLOWED | REASON_CONNECTION_RATE, Direction::Egress, _) => {
                let what = if self.refusal.protocol == 6 { "connection" } else { "datagram" };
                format!("{what} to {}", end(peer, peer_port))
            }
            (REASON_NOT_ALLOWED | REASON_CONNECTION_RATE, ..) => {
                let what = if self.refusal.protocol == 6 { "connection" } else { "datagram" };
                format!("{what} from {} to port {own_port}", end(peer, peer_port))
            }
            (.., Some(Request { method, path })) => format!("{method} {path} from {peer}"),
            (.., None) => format!("request from {peer}"),
        };
        let by = match self.refuser.rule.as_deref() {
            Some(rule) => format!("{}, {rule}", self.policies()),
            None => self.policies(),
        };
        let why = match self.refusal.refused.reason {
            REASON_NOT_ALLOWED => format!("not on the list allow.{}", self.direction.as_str()),
            REASON_CONNECTION_RATE => "too many connections a second".to_owned(),
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
            put("http.request.method", Value::from(method.as_ref()));
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

    fn recent(&self, held: Option<&Held>, time: u64) -> governance::Recent {
        governance::Recent {
            time_unix_nano: time,
            cgroup: self.refusal.header.cgroup,
            namespace: held.and_then(|held| held.namespace.as_deref()).unwrap_or_default().to_owned(),
            pod: held.and_then(|held| held.pod.as_deref()).unwrap_or_default().to_owned(),
            peer: self.peer().to_string(),
            direction: self.direction.as_str().to_owned(),
            reason: governance::reason(self.refusal.refused.reason).to_owned(),
            is_observed: self.is_observed,
            what: self.body(),
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
