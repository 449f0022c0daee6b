//! What holds for the traffic of Pods, and what was refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sidestep_abi::govern::{
    EGRESS, INGRESS, OUTCOME_MARKED, REASON_BYTE_RATE, REASON_CONNECTION_RATE, REASON_NOT_ALLOWED, REASON_PACKET_RATE,
    REASON_REQUEST_RATE, Rate, RefusedKey,
};

use crate::{
    pipeline::governed::Reading,
    policy::traffic::{
        compile::{ListName, Name, Refuser, Tier, Unmet},
        judge::lets_dns_through,
        limit::{Limit, burst, per_of, per_second},
        requests::Rule,
        settings::{Direction, Mode, Per},
        window::Window,
    },
};

/// What holds on a node.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct GovernanceReport {
    /// The node that answers.
    pub node: String,
    /// When refusals were counted: nanoseconds since the Unix epoch.
    #[serde(default)]
    pub counted_unix_nano: u64,
    /// Why not all is in force that was declared.
    pub problem: Option<String>,
    /// The same by policies.
    #[serde(default)]
    pub unmet: Vec<UnmetPolicies>,
    /// Raised with each reading of the policies of files; that which is in force.
    #[serde(default)]
    pub files_version: u64,
    /// The Pods for which something holds, or does at other times.
    pub pods: Vec<GovernedPod>,
}

/// Something that does not hold as it was declared.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct UnmetPolicies {
    /// What, and why.
    pub text: String,
    /// Of which policies; `None` for all.
    pub policies: Option<Vec<String>>,
}

/// From where the agent has its policies.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PolicySources {
    /// `policies.files` of its configuration.
    pub files: Vec<PathBuf>,
    /// Whether it asks the API server.
    pub api_server: bool,
}

/// What holds for a Pod.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct GovernedPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name; of a container without a Pod nothing.
    pub pod: String,
    /// The id of its cgroup.
    pub cgroup: u64,
    /// Whether too little is known of it yet, and what held goes on.
    #[serde(default)]
    pub unknown: bool,
    /// What is not known of it yet, and what comes of that.
    #[serde(default)]
    pub waits: Option<String>,
    /// Why what holds is older than what is declared, where it is.
    #[serde(default)]
    pub older: Vec<String>,
    /// The interfaces of the node at which its packets are looked at.
    #[serde(default)]
    pub interfaces: Vec<String>,
    /// What is not decided there as no interface leads to it, and why.
    #[serde(default)]
    pub unmet: Option<String>,
    /// Policies for it that have a beginning or an end.
    #[serde(default)]
    pub dated: Vec<GovernedDates>,
    /// What holds as declared, and may not be meant.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What is said by the policies of each tier.
    pub tiers: Vec<GovernedTier>,
}

impl GovernedPod {
    /// Whether something holds for it now.
    #[must_use]
    pub const fn is_governed(&self) -> bool {
        self.unknown || !self.tiers.is_empty() || !self.older.is_empty()
    }
}

/// From when until when a policy says something.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct GovernedDates {
    /// The policy.
    pub policy: String,
    /// From when on, by RFC 3339.
    pub not_before: Option<String>,
    /// Until when, by RFC 3339.
    pub not_after: Option<String>,
    /// Whether it says something now.
    pub is_open: bool,
    /// What is to be known of that, in words.
    pub what: String,
}

/// What the policies of one tier say.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct GovernedTier {
    /// `cluster` or `namespace`: whose policies.
    pub scope: String,
    /// `enforce` or `observe`.
    pub mode: String,
    /// The policies whose entries make up the list of peers that the Pod may talk to.
    pub egress: Option<Vec<String>>,
    /// The same of the peers who may talk to the Pod.
    #[serde(default)]
    pub ingress: Option<Vec<String>>,
    /// How many addresses of Pods are on the list of those that the Pod may talk to, where it names Pods.
    #[serde(default)]
    pub egress_pods: Option<usize>,
    /// The same of those who may talk to the Pod.
    #[serde(default)]
    pub ingress_pods: Option<usize>,
    /// Its other limits.
    #[serde(default)]
    pub limits: Vec<GovernedLimit>,
    /// The limits of HTTP requests that come to it.
    #[serde(default)]
    pub http_requests: Vec<GovernedRequests>,
    /// What was refused, or with `observe` would have been.
    pub refused: Vec<Refusals>,
    /// Packets that were let through with a mark that tells who sends to send less (RFC 3168).
    #[serde(default)]
    pub marked: Vec<Refusals>,
}

/// A rate.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct GovernedRate {
    /// How many in a second.
    pub per_second: f64,
    /// How many at once.
    pub burst: u64,
    /// Who has it.
    #[serde(default)]
    pub per: Per,
    /// Whose limit it is.
    pub policy: String,
}

/// A limit of connections, packets or bytes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct GovernedLimit {
    /// Its field in the policy, as `connectionsOut`.
    pub name: String,
    /// How many in a second.
    pub per_second: f64,
    /// How many at once.
    pub burst: f64,
    /// Who has it.
    pub per: Per,
    /// What it lets the Pod do.
    pub what: String,
    /// Whose limit it is.
    pub policy: String,
}

/// A limit of HTTP requests.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct GovernedRequests {
    /// Its name in the policy.
    pub name: Option<String>,
    /// What the path begins with.
    pub path_prefix: String,
    /// The Pod's port; 0 for all.
    pub port: u16,
    /// How many.
    pub rate: GovernedRate,
}

/// How often something was refused.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Refusals {
    /// `not_allowed`, `connection_rate`, `request_rate`, `packet_rate` or `byte_rate`.
    pub reason: String,
    /// `egress` or `ingress`.
    pub direction: String,
    /// The policies whose list or limit it is, as far as they are what they were then.
    #[serde(default)]
    pub policies: Vec<String>,
    /// The limit's name, where it has one.
    #[serde(default)]
    pub rule: Option<String>,
    /// Which of the Pod's counts it is: no other has the same.
    #[serde(default)]
    pub kind: u64,
    /// How often since the kernel programs were loaded.
    pub count: u64,
}

impl Refusals {
    /// Whether a rule is counted on its own, and not all that a tier says of it.
    #[must_use]
    pub const fn has_own_rule(&self) -> bool {
        self.kind >> 32 != 0
    }
}

/// What was refused, and who.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct RefusalsReport {
    /// What holds, and how often it was refused.
    pub governance: GovernanceReport,
    /// Those of last, as far as they were told of.
    pub recent: Vec<Recent>,
}

/// A refusal that the kernel programs have told of.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Recent {
    /// When: nanoseconds since the Unix epoch.
    pub time_unix_nano: u64,
    /// The id of the Pod's cgroup.
    pub cgroup: u64,
    /// The other end's address.
    pub peer: String,
    /// As [`Refusals::kind`].
    pub kind: u64,
}

/// What tells a Pod's counts from each other.
#[must_use]
pub const fn kind(refused: &RefusedKey) -> u64 {
    let [reason, direction, outcome, tier] = [refused.reason, refused.direction, refused.outcome, refused.tier];
    (refused.limit as u64) << 32 | u32::from_be_bytes([reason, direction, outcome, tier]) as u64
}

/// The name of a reason in reports and metrics.
#[must_use]
pub const fn reason(code: u8) -> &'static str {
    match code {
        REASON_NOT_ALLOWED => "not_allowed",
        REASON_CONNECTION_RATE => "connection_rate",
        REASON_REQUEST_RATE => "request_rate",
        REASON_PACKET_RATE => "packet_rate",
        REASON_BYTE_RATE => "byte_rate",
        _ => "unknown",
    }
}

/// The name of a direction in reports and metrics.
#[must_use]
pub const fn direction(code: u8) -> &'static str {
    match code {
        EGRESS => Direction::Egress.as_str(),
        INGRESS => Direction::Ingress.as_str(),
        _ => "unknown",
    }
}

/// The name of a tier's owners.
#[must_use]
pub const fn scope(tier: Tier) -> &'static str {
    if tier.is_namespaced { "namespace" } else { "cluster" }
}

/// The name of a mode.
#[must_use]
pub const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    }
}

fn rate(rate: Rate, policy: &impl ToString) -> GovernedRate {
    GovernedRate { per_second: per_second(&rate), burst: burst(&rate), per: per_of(&rate), policy: policy.to_string() }
}

fn limit((limit, (rate, policy)): (Limit, &(Rate, Name))) -> GovernedLimit {
    GovernedLimit {
        name: limit.field().to_owned(),
        per_second: limit.per_second(rate),
        burst: limit.burst(rate),
        per: per_of(rate),
        what: limit.in_words(rate),
        policy: policy.to_string(),
    }
}

fn requests(rule: &Rule) -> GovernedRequests {
    let path = &rule.kernel.path[..usize::from(rule.kernel.path_len)];
    GovernedRequests {
        name: rule.name.clone(),
        path_prefix: String::from_utf8_lossy(path).into_owned(),
        port: rule.kernel.port,
        rate: rate(rule.kernel.rate, &rule.policy),
    }
}

impl GovernanceReport {
    /// Of what holds.
    #[must_use]
    pub fn of(reading: &Reading, node: &str) -> Self {
        let mut refused: BTreeMap<(u64, u8), Vec<&(RefusedKey, u64)>> = BTreeMap::new();
        for counted in &reading.refused {
            refused.entry((counted.0.cgroup, counted.0.tier)).or_default().push(counted);
        }
        let refusals = |(key, count): &(RefusedKey, u64)| {
            let Refuser { policies, rule } = reading.refuser(key);
            let (reason, direction) = (reason(key.reason).to_owned(), direction(key.direction).to_owned());
            Refusals { reason, direction, policies, rule, kind: kind(key), count: *count }
        };
        let counts: BTreeMap<_, _> = reading.pods_of_lists.iter().map(|(name, pods)| (name, pods.count())).collect();
        let unmet = |Unmet { text, policies, .. }: &Unmet| UnmetPolicies {
            text: text.clone(),
            policies: policies.as_ref().map(|policies| policies.iter().map(ToString::to_string).collect()),
        };
        let now = Timestamp::from_nanosecond(reading.counted_unix_nano.into()).unwrap_or_default();
        let dates = |(name, window): &(Name, Window)| GovernedDates {
            policy: name.to_string(),
            not_before: window.not_before.map(|date| date.to_string()),
            not_after: window.not_after.map(|date| date.to_string()),
            is_open: window.is_open(now),
            what: window.in_words(now).unwrap_or_default(),
        };
        // Lists may be long, and those of many Pods are the same.
        let without_dns: BTreeSet<&ListName> = reading
            .lists
            .iter()
            .filter(|(name, list)| name.direction == Direction::Egress && !list.is_empty() && !lets_dns_through(list))
            .map(|(name, _)| name)
            .collect();
        let mut pods = Vec::new();
        for held in &reading.pods {
            let mut tiers = Vec::new();
            let unknown = held.plans.is_none() && held.is_held;
            let plans = held.plans.clone().unwrap_or_default();
            let mut warnings = Vec::new();
            for (index, (tier, plan)) in Tier::ALL.iter().zip(&plans).enumerate() {
                if plan.is_empty() {
                    continue;
                }
                let lists = plan.lists().filter(|list| tier.mode == Mode::Enforce && without_dns.contains(list));
                warnings.extend(lists.map(|list| format!("the list of {list} lets no DNS through (UDP port 53)")));
                let names = |policies: &BTreeSet<_>| policies.iter().map(ToString::to_string).collect();
                let counted = refused.remove(&(held.cgroup, index as u8)).unwrap_or_default();
                let (marked, refused): (Vec<_>, Vec<_>) =
                    counted.into_iter().partition(|(key, _)| key.outcome == OUTCOME_MARKED);
                let told = |counted: Vec<_>| counted.into_iter().map(refusals).collect();
                let pods = |direction| {
                    let name = plan.lists().find(|list| list.direction == direction)?;
                    counts.get(&name).copied()
                };
                tiers.push(GovernedTier {
                    scope: scope(*tier).to_owned(),
                    mode: mode(tier.mode).to_owned(),
                    egress: plan.egress.as_ref().map(names),
                    ingress: plan.ingress.as_ref().map(names),
                    egress_pods: pods(Direction::Egress),
                    ingress_pods: pods(Direction::Ingress),
                    limits: plan.limits().map(limit).collect(),
                    http_requests: plan.requests.iter().map(requests).collect(),
                    refused: told(refused),
                    marked: told(marked),
                });
            }
            let text = |text: &Option<std::sync::Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
            pods.push(GovernedPod {
                namespace: text(&held.namespace),
                pod: text(&held.pod),
                cgroup: held.cgroup,
                unknown,
                waits: held.waits_in_words(),
                older: held.older.clone(),
                interfaces: held.interfaces.clone(),
                unmet: held.unmet.clone(),
                dated: held.dated.iter().map(dates).collect(),
                warnings,
                tiers,
            });
        }
        pods.sort_by(|one, two| (&one.namespace, &one.pod).cmp(&(&two.namespace, &two.pod)));
        Self {
            node: node.to_owned(),
            counted_unix_nano: reading.counted_unix_nano,
            problem: reading.problem.clone(),
            unmet: reading.unmet.iter().map(unmet).collect(),
            files_version: reading.files_version,
            pods,
        }
    }
}
