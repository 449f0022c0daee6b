//! What becomes of policies, told to the API server: each agent reports what is in force on its node in one object of its
//! own, and one of all agents, the holder of a Lease, makes the policies' status of that. So n nodes write n objects and
//! watch none of them, whatever many policies there are.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Node},
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, OwnerReference, Time},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams},
    core::{ApiResource, DynamicObject},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::json;

use super::{
    Kubernetes,
    lease::{Claim, Ending, RENEW, RETRY},
    node_report::{NodeReport, of_node},
};
use crate::{
    events,
    policy::{
        Policies, Policy,
        precedence::Key,
        resource::{ClusterSidestepPolicy, NodeStatus, SidestepNode, SidestepPolicy, Status},
        status::{Reports, status},
    },
};

/// Who owns the fields that are written.
const MANAGER: &str = "sidestep";
/// How often it is looked for what is new. Nothing is written more often.
const TICK: Duration = Duration::from_secs(1);
/// How often a node reports when it has nothing new: 6 requests an hour. See [`Reports`] for what follows if it does not.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(600);
/// How often it is looked for what is in force when neither policies nor Pods have changed: containers come later than their Pods.
const LOOK: Duration = Duration::from_secs(10);
/// How often the statuses are compared with what the API server has when nothing was told: a node may have become silent.
const COMPARE: Duration = Duration::from_secs(60);
/// Pause after the node's report has failed; pauses are doubled each time, up to the most. The first one is short: definitions that were
/// made a moment ago are not served yet.
const FAILED: Duration = Duration::from_secs(5);
/// Reports with something new that are written at once. One policy that is changed all the time must not cost the API server a
/// write for each node and each second.
const BURST: u32 = 20;
/// Another one after so long each time.
const REFILL: Duration = Duration::from_secs(10);
const MAX_FAILED: Duration = Duration::from_secs(960);

/// What is in force on this node: told by who applies it.
pub trait InForce: Send + Sync {
    /// The policies that hold for all containers, and their version: some that were changed a moment ago may be newer.
    fn policies(&self) -> (u64, Arc<Policies>);

    /// Of which policy another one decides a field, and for which Pod: a sentence for each.
    fn conflicts(&self) -> Vec<(Key, String)>;

    /// Of which policy a field does not hold for a Pod, and why.
    fn problems(&self) -> Vec<(Key, String)>;
}

/// Reports until the agent ends.
pub(super) async fn report(client: Client, kubernetes: Kubernetes, in_force: Arc<dyn InForce>, ending: Ending) {
    tokio::select! {
        () = report_node(client.clone(), &kubernetes, &*in_force) => {}
        () = lead(client, &kubernetes, ending) => {}
    }
}

/// Keeps this node's object.
async fn report_node(client: Client, kubernetes: &Kubernetes, in_force: &dyn InForce) {
    let api = Api::<SidestepNode>::all(client.clone());
    let mut written: Option<(NodeReport, Instant)> = None;
    let mut is_cut_told = false;
    let mut pause = FAILED;
    let mut looked: Option<((u64, u64), Instant)> = None;
    let mut allowance = Allowance::new(Instant::now());
    loop {
        tokio::time::sleep(TICK).await;
        // Those that the pipeline has: what is reported is in force, and one that is edited all the time does not keep the others from
        // being told of. Nothing while the API server tells of none: it may not know this resource either.
        let (version, policies) = in_force.policies();
        if version == 0 || !kubernetes.policies.is_any_live() {
            continue;
        }
        // Every policy is held against every Pod.
        let versions = (version, kubernetes.pods.version());
        if looked.is_some_and(|(known, when)| known == versions && when.elapsed() < LOOK) {
            continue;
        }
        if !allowance.has_room(Instant::now()) {
            continue;
        }
        looked = Some((versions, Instant::now()));
        let report = of_node(&policies, &kubernetes.pods, in_force);
        if report.is_cut() && !std::mem::replace(&mut is_cut_told, true) {
            let (policies, texts) = (report.left_out, report.texts_left_out);
            events::Event::PolicyReportCut { policies, texts }.report();
        }
        if written.as_ref().is_some_and(|(known, when)| *known == report && when.elapsed() < HEARTBEAT) {
            continue;
        }
        allowance.take();
        match write_node(&client, &api, &kubernetes.node, &report, written.is_none()).await {
            Ok(()) => (written, pause) = (Some((report, Instant::now())), FAILED),
            // Somebody has deleted the object: it is made anew.
            Err(kube::Error::Api(answer)) if answer.code == 404 && written.take().is_some() => looked = None,
            Err(error) => {
                tracing::debug!(%error, "the node's report on policies can't be written");
                tokio::time::sleep(pause).await;
                (pause, looked) = (MAX_FAILED.min(2 * pause), None);
            }
        }
    }
}

/// How many reports may be written now.
#[derive(Debug)]
struct Allowance {
    left: u32,
    /// When it was last filled.
    filled: Instant,
}

impl Allowance {
    const fn new(now: Instant) -> Self {
        Self { left: BURST, filled: now }
    }

    fn has_room(&mut self, now: Instant) -> bool {
        let more = u32::try_from(now.saturating_duration_since(self.filled).as_nanos() / REFILL.as_nanos());
        let more = more.unwrap_or(u32::MAX);
        self.left = BURST.min(self.left.saturating_add(more));
        self.filled = if self.left == BURST { now } else { self.filled + REFILL * more };
        self.left > 0
    }

    const fn take(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

async fn write_node(
    client: &Client,
    api: &Api<SidestepNode>,
    node: &str,
    report: &NodeReport,
    is_first: bool,
) -> kube::Result<()> {
    let parameters = PatchParams::apply(MANAGER).force();
    let (version, kind) = (SidestepNode::api_version(&()), SidestepNode::kind(&()));
    if is_first {
        // With its node it goes, where the agent may read that.
        let owner = Api::<Node>::all(client.clone()).get_metadata(node).await.ok().and_then(|node| node.metadata.uid);
        let owner = owner.map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            uid,
            ..OwnerReference::default()
        });
        let metadata = ObjectMeta {
            name: Some(node.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        };
        let object = json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "spec": {} });
        api.patch(node, &parameters, &Patch::Apply(object)).await?;
    }
    let status = NodeStatus { report_time: Some(Time(Timestamp::now())), ..report.status() };
    let object = json!({ "apiVersion": version, "kind": kind, "status": status });
    api.patch_status(node, &parameters, &Patch::Apply(object)).await.map(drop)
}

/// Holds the Lease when nobody else does, and then keeps the status of all policies; until the agent is to end, when another
/// one may go on with it.
async fn lead(client: Client, kubernetes: &Kubernetes, mut ending: Ending) {
    let mut claim = Claim::new(Api::<Lease>::default_namespaced(client.clone()), &kubernetes.node);
    tokio::select! {
        () = keep_statuses(&client, kubernetes, &mut claim) => {}
        () = ending.begun() => {}
    }
    claim.release().await;
}

/// For ever.
async fn keep_statuses(client: &Client, kubernetes: &Kubernetes, claim: &mut Claim) {
    loop {
        // Without a definition, or an API server, there is no status to write, and nobody is asked.
        while !kubernetes.policies.is_any_live() {
            tokio::time::sleep(TICK).await;
        }
        if claim.hold().await {
            let _leading = kubernetes.policies.lead();
            // The watch goes on from one renewal to the next.
            let mut statuses = std::pin::pin!(write_statuses(client, kubernetes));
            loop {
                tokio::select! {
                    () = &mut statuses => break,
                    () = tokio::time::sleep(RENEW) => if !claim.hold().await { break },
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Keeps the status of all policies, until it is dropped.
async fn write_statuses(client: &Client, kubernetes: &Kubernetes) {
    let api = Api::<SidestepNode>::all(client.clone());
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    let mut nodes = Reports::default();
    let mut listed = None;
    let mut is_complete = false;
    let (mut pause, mut not_before) = (TICK, Instant::now());
    let mut compared = None;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next() => {
                compared = None;
                let now = Instant::now();
                match event {
                    Some(Ok(Event::Init)) => listed = Some(BTreeSet::new()),
                    Some(Ok(Event::InitApply(node))) => {
                        listed.get_or_insert_default().insert(node.name_any());
                        insert(&mut nodes, node, now);
                    }
                    Some(Ok(Event::InitDone)) => {
                        nodes.retain(&listed.take().unwrap_or_default());
                        is_complete = true;
                    }
                    Some(Ok(Event::Apply(node))) => insert(&mut nodes, node, now),
                    Some(Ok(Event::Delete(node))) => nodes.remove(&node.name_any()),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "the nodes' reports on policies can't be watched");
                        tokio::time::sleep(FAILED).await;
                    }
                    None => return,
                }
            }
            _ = tick.tick(), if is_complete && Instant::now() >= not_before => {
                let version = kubernetes.policies.told();
                if compared.is_some_and(|(known, when): (u64, Instant)| known == version && when.elapsed() < COMPARE) {
                    continue;
                }
                match write_changed(client, kubernetes, &nodes).await {
                    Ok(()) => (pause, compared) = (TICK, Some((version, Instant::now()))),
                    Err(error) => {
                        tracing::debug!(%error, "the status of policies can't be written");
                        not_before = Instant::now() + pause;
                        pause = MAX_FAILED.min(2 * pause);
                    }
                }
            }
        }
    }
}

/// Takes what a node reports; when it was written stands where the API server notes who has written what.
fn insert(nodes: &mut Reports, node: SidestepNode, now: Instant) {
    let of_status = |entry: &&ManagedFieldsEntry| entry.subresource.as_deref() == Some("status");
    let entries = node.metadata.managed_fields.iter().flatten().filter(of_status);
    let written = entries.filter_map(|entry| Some(entry.time.as_ref()?.0)).max();
    nodes.insert(node.name_any(), node.status.unwrap_or_default(), written, now);
}

/// Writes those that are not as the API server has them.
async fn write_changed(client: &Client, kubernetes: &Kubernetes, nodes: &Reports) -> kube::Result<()> {
    let (policies, clock) = (kubernetes.policies.get(), Timestamp::now());
    let nodes = nodes.at(Instant::now());
    let accepted =
        policies.all().map(|policy| (&policy.key, &policy.uid, policy.generation, Ok(outside(policy, clock))));
    let refused =
        policies.refused().map(|refused| (&refused.key, &refused.uid, refused.generation, Err(&refused.problems[..])));
    for (key, uid, generation, accepted) in accepted.chain(refused) {
        let before = kubernetes.policies.status(key);
        let accepted = accepted.as_ref().map(Option::as_deref).map_err(|problems| *problems);
        let status = status(key, uid.as_deref(), generation, accepted, &nodes, before.as_ref(), clock);
        if before.as_ref() == Some(&status) {
            continue;
        }
        match write_status(client, key, &status).await {
            // The watch tells of it later.
            Ok(()) => kubernetes.policies.set_status(key.clone(), Some(status)),
            // The others have theirs all the same.
            Err(kube::Error::Api(answer)) if is_of_one(answer.code, &answer.message) => {
                tracing::debug!(policy = %key, %answer, "the status of a policy can't be written");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// That a policy says nothing of traffic at the time `now`, where it does at others.
fn outside(policy: &Policy, now: Timestamp) -> Option<String> {
    let window = policy.window().filter(|window| !window.is_open(now))?;
    Some(format!("its traffic part {}", window.in_words(now)?))
}

/// Whether an answer is about the policy alone: it was deleted meanwhile, or its user has left no room for a status, or made it
/// before a rule of today that it breaks.
fn is_of_one(code: u16, message: &str) -> bool {
    matches!(code, 404 | 413 | 422) || message.contains("too large")
}

async fn write_status(client: &Client, key: &Key, status: &Status) -> kube::Result<()> {
    let resource = match key.namespace {
        Some(_) => ApiResource::erase::<SidestepPolicy>(&()),
        None => ApiResource::erase::<ClusterSidestepPolicy>(&()),
    };
    let api = match &key.namespace {
        Some(namespace) => Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource),
        None => Api::<DynamicObject>::all_with(client.clone(), &resource),
    };
    let object = json!({ "apiVersion": resource.api_version, "kind": resource.kind, "status": status });
    api.patch_status(&key.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_is_changed_all_the_time_costs_few_writes() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut written = 0;
        for second in 0..3600 {
            if allowance.has_room(start + Duration::from_secs(second)) {
                allowance.take();
                written += 1;
            }
        }
        assert!((360..=381).contains(&written), "{written}");
        let quiet = start + Duration::from_secs(7200);
        assert!((0..BURST).all(|_| {
            let has_room = allowance.has_room(quiet);
            allowance.take();
            has_room
        }));
        assert!(!allowance.has_room(quiet) && allowance.has_room(quiet + REFILL));
    }
}
