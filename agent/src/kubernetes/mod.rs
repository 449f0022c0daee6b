//! What the Kubernetes API server tells of the Pods of this node.
//!
//! All exchange with the API server is here. Everything else reads [`Pods`], a table that is always there: without an API
//! server it is empty, or as old as the last answer. Who a container is needs no server: see `attribute`.

pub(crate) mod client;
mod conditions;
pub mod health;
mod lease;
mod meter;
mod metric_labels;
mod node_report;
mod owners;
mod peer_pods;
mod pod;
mod pod_events;
mod pods;
mod policies;
mod policy_object;
mod projection;
pub(crate) mod saved;
pub mod selector;
mod settings;
mod token;
mod watch;
mod whereabouts;

use std::{
    error::Error,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

pub use self::{
    client::ClientError,
    conditions::InForce,
    health::{Freshness, Health},
    metric_labels::MetricLabels,
    peer_pods::{Knowledge, PeerPods},
    pod::{ANNOTATION_PREFIX, Labels, Oversized, Owner, Pod},
    pod_events::PodEvents,
    pods::Pods,
    policies::SharedPolicies,
    projection::Projection,
    settings::{Enabled, Settings},
};
use crate::config::Config;

/// Pause between attempts to make a client.
const RETRY: Duration = Duration::from_secs(30);

/// What is known of Kubernetes, and how it is found out.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    settings: Settings,
    node: Arc<str>,
    state_dir: PathBuf,
    /// Whether the API server is asked.
    is_on: bool,
    watches_namespaces: bool,
    pods: Arc<Pods>,
    peer_pods: Arc<PeerPods>,
    policies: Arc<SharedPolicies>,
    watches_policies: bool,
    pod_events: Arc<PodEvents>,
    health: Arc<Health>,
    end: Arc<lease::End>,
    /// For questions between.
    client: Arc<whereabouts::LateClient>,
}

impl Kubernetes {
    /// What an agent before has saved. Nobody is asked yet: see [`Kubernetes::run`].
    ///
    /// # Errors
    /// The API server is to be asked, and nothing says where it is.
    pub fn open(config: &Config) -> Result<Self, ClientError> {
        let is_on = client::is_wanted(&config.kubernetes)?;
        let pods = Arc::new(Pods::default());
        let health = Arc::new(Health::default());
        let watches_namespaces = config.needs_namespaces();
        let policies = Arc::new(SharedPolicies::new(Arc::clone(&health)));
        if is_on {
            health.expect(watch::PODS, saved::load_pods(&config.state_dir, &pods));
            if watches_namespaces {
                health.expect(watch::NAMESPACES, None);
            }
            if config.policies.resources {
                let saved = saved::load_policies(&config.state_dir, &policies);
                health.expect(policies::NAMESPACED, saved);
                health.expect(policies::CLUSTER, saved);
            }
        }
        let peer_pods = PeerPods::new(is_on, watches_namespaces, Arc::clone(&pods), Arc::clone(&health));
        Ok(Self {
            settings: config.kubernetes.clone(),
            node: Arc::clone(&config.node_name),
            state_dir: config.state_dir.clone(),
            is_on,
            watches_namespaces,
            pods,
            peer_pods: Arc::new(peer_pods),
            policies,
            watches_policies: config.policies.resources,
            pod_events: Arc::default(),
            health,
            end: Arc::default(),
            client: Arc::default(),
        })
    }

    /// The Pods of this node.
    #[must_use]
    pub const fn pods(&self) -> &Arc<Pods> {
        &self.pods
    }

    /// The Pods of all nodes, for policies that name them as peers.
    #[must_use]
    pub const fn peer_pods(&self) -> &Arc<PeerPods> {
        &self.peer_pods
    }

    /// The policies of the cluster.
    #[must_use]
    pub const fn policies(&self) -> &Arc<SharedPolicies> {
        &self.policies
    }

    /// Whether policies are asked for.
    #[must_use]
    pub const fn watches_policies(&self) -> bool {
        self.is_on && self.watches_policies
    }

    /// Where what is wrong with a Pod's annotations is told.
    #[must_use]
    pub const fn pod_events(&self) -> &Arc<PodEvents> {
        &self.pod_events
    }

    /// How fresh what is known of Pods is: `live`, `stale`, `never`, or `off` when the API server is not asked.
    #[must_use]
    pub fn freshness(&self) -> &'static str {
        self.freshness_of(watch::PODS)
    }

    /// The same of policies: of the watch that is less fresh.
    #[must_use]
    pub fn policies_freshness(&self) -> &'static str {
        let [one, other] = [policies::NAMESPACED, policies::CLUSTER].map(|resource| self.freshness_of(resource));
        if one == Freshness::Live.as_str() { other } else { one }
    }

    fn freshness_of(&self, resource: &str) -> &'static str {
        let readings = self.health.readings(Instant::now());
        let reading = readings.iter().find(|reading| self.is_on && reading.resource == resource);
        reading.map_or("off", |reading| reading.freshness.as_str())
    }

    /// How fresh they are.
    #[must_use]
    pub const fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Whether the API server is asked.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.is_on
    }

    /// Whether it may be worth to wait for a Pod that is not known: the API server tells of changes, or has not been asked
    /// yet.
    #[must_use]
    pub fn may_tell(&self) -> bool {
        self.is_on && (self.health.is_live(watch::PODS) || self.health.is_starting(watch::PODS))
    }

    /// Whether something is known of everything that the API server is asked for, by an agent before too; so, too, where it is
    /// not asked.
    #[must_use]
    pub fn has_told_all(&self) -> bool {
        !self.is_on || self.health.has_told_all()
    }

    /// Whether more will be told of a Pod than is known of it now: who made its controller, or the labels of its namespace,
    /// which has one at least.
    #[must_use]
    pub fn is_incomplete(&self, pod: &Pod) -> bool {
        let is_told = || self.health.is_live(watch::NAMESPACES) || self.health.is_starting(watch::NAMESPACES);
        !pod.owners_known || self.watches_namespaces && pod.namespace_labels.is_empty() && is_told()
    }

    /// Where a Pod is of which no container is known here, in a sentence; `None` when the API server does not tell.
    pub async fn whereabouts(&self, namespace: &str, pod: &str) -> Option<String> {
        whereabouts::Question { here: &self.node, namespace, pod }.answer(self.client.get()?).await
    }

    /// Lets go of what the agent holds in the cluster, before it ends; takes 2 s at most. [`Kubernetes::run`] has to be driven
    /// meanwhile.
    pub async fn end(&self) {
        self.end.begin().await;
    }

    /// Follows what the API server tells, for ever, and reports on the policies that are in force;
    /// returns at once when nobody is to be asked.
    pub async fn run(self, in_force: Arc<dyn InForce>) {
        if !self.is_on {
            return;
        }
        let client = loop {
            match client::connect(&self.settings, &self.health).await {
                Ok(client) => break client,
                // A certificate or a token that is not there yet.
                Err(error) => self.health.all_failed(&error.to_string(), Instant::now()),
            }
            tokio::time::sleep(RETRY).await;
        };
        self.client.set(client.clone());
        let (owners, questions) = owners::Owners::new();
        let all = self.clone();
        let (pods, health) = (self.pods, self.health);
        tokio::spawn(pods::forget(Arc::clone(&pods)));
        tokio::spawn(saved::keep_pods(self.state_dir.clone(), Arc::clone(&pods), self.end.subscribe()));
        tokio::spawn(owners::answer(client.clone(), questions, Arc::clone(&pods), Arc::clone(&health)));
        tokio::spawn(peer_pods::follow(client.clone(), self.peer_pods));
        if self.watches_namespaces {
            tokio::spawn(watch::namespaces(client.clone(), Arc::clone(&pods), Arc::clone(&health)));
        }
        tokio::spawn(pod_events::send(client.clone(), Arc::clone(&self.node), self.pod_events));
        if self.watches_policies {
            tokio::spawn(saved::keep_policies(self.state_dir, Arc::clone(&self.policies), self.end.subscribe()));
            tokio::spawn(policies::follow(client.clone(), Arc::clone(&self.policies), Arc::clone(&health)));
            tokio::spawn(conditions::report(client.clone(), all, in_force, self.end.subscribe()));
        }
        let projection = Projection::new(&self.settings);
        watch::pods(client, &self.node, pods, health, projection, owners).await;
    }
}

/// Whether it can be the name of an object: a DNS subdomain, RFC 1123. Who writes what we read writes names as he likes, and the
/// paths of requests are made of them.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= 253 && name.split('.').all(|label| !label.is_empty() && label.bytes().all(is_plain))
}

/// An error by its causes. One whose own text has that of its cause says nothing more that is worth reading.
fn chain(error: &dyn Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        let text = error.to_string();
        let repeats = next.is_some_and(|cause| text.contains(&cause.to_string()));
        if !repeats && texts.last() != Some(&text) {
            texts.push(text);
        }
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use kube::{core::Status, runtime::watcher};

    use super::*;

    #[test]
    fn only_names_become_part_of_a_request() {
        assert!(is_name("cart-0.x") && is_name("shop"));
        for wrong in ["", ".", "..", "a..b", "a/b", "a?b", "a b", "A", "a,metadata.namespace=b", "a\n"] {
            assert!(!is_name(wrong), "{wrong}");
        }
    }

    #[test]
    fn errors_are_told_by_their_causes() {
        let status = Status::failure("pods is forbidden: User \"agent\" cannot list it", "Forbidden").with_code(403);
        let error = watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()));
        assert_eq!(chain(&error), "pods is forbidden: User \"agent\" cannot list it: Forbidden");
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = watcher::Error::WatchStartFailed(kube::Error::Service(refused.into()));
        assert_eq!(chain(&error), "connection refused");
    }
}
