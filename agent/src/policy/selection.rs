//! The policies that there are, and which of them select a container.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::core::{Selector, SelectorExt};

use sidestep_abi::govern::TIERS;

use super::{
    annotations::{Declared, clean},
    precedence::{Effective, Key, Origin, OriginOf, Rank, Source, Standing},
    resource::{ClusterSidestepPolicy, SidestepPolicy},
    settings::Settings,
    traffic::{
        TrafficSettings,
        compile::{Name, Plan, Tier},
        limit::{self, Limit},
        requests,
        window::Window,
    },
};
use crate::{
    assemble::Budget,
    config::{Globs, Slash},
};

/// Every namespace has its name as this label since Kubernetes 1.22.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A policy that can be in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub key: Key,
    /// `metadata.uid`; unknown of one that an older agent has saved.
    pub uid: Option<Arc<str>>,
    /// `metadata.generation`.
    pub generation: i64,
    standing: Standing,
    namespaces: Option<Selector>,
    pods: Selector,
    containers: Option<Globs>,
    settings: Settings,
    traffic: Option<TrafficSettings>,
}

/// Why a policy can't be in force.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{key}: {}", .problems.join("; "))]
pub struct Refused {
    /// Its name.
    pub key: Key,
    /// `metadata.uid`; unknown of one that an older agent has saved.
    pub uid: Option<Arc<str>>,
    /// `metadata.generation`.
    pub generation: i64,
    /// Each with the field's path.
    pub problems: Vec<String>,
}

/// A Pod, as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// The labels of that; of one that is not known, only its name counts.
    pub namespace_labels: Option<&'a BTreeMap<String, String>>,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// What its annotations declare.
    pub declared: &'a Declared,
    /// Kind and name of the workload that has made it.
    pub workload: Option<(&'a str, &'a str)>,
}

/// All policies.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    cluster: BTreeMap<Key, Arc<Policy>>,
    namespaced: HashMap<Arc<str>, BTreeMap<Key, Arc<Policy>>>,
    refused: BTreeMap<Key, Refused>,
    /// What those that are refused were before: what they said of traffic goes on.
    before: BTreeMap<Key, Arc<Policy>>,
    /// Those that are refused and never were anything else.
    never: BTreeSet<Key>,
}

struct Parts<'a> {
    metadata: &'a ObjectMeta,
    namespace_selector: Option<&'a LabelSelector>,
    selector: &'a LabelSelector,
    containers: Option<&'a [String]>,
    priority: i32,
    logs: Option<&'a Settings>,
    traffic: Option<&'a TrafficSettings>,
}

impl Policy {
    /// Reads a policy of a namespace.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn namespaced(policy: &SidestepPolicy) -> Result<Self, Refused> {
        let spec = &policy.spec;
        Self::read(&Parts {
            metadata: &policy.metadata,
            namespace_selector: None,
            selector: &spec.selector,
            containers: spec.containers.as_deref(),
            priority: spec.priority,
            logs: spec.logs.as_ref(),
            traffic: spec.traffic.as_ref(),
        })
    }

    /// Reads a policy of the cluster.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn cluster(policy: &ClusterSidestepPolicy) -> Result<Self, Refused> {
        let spec = &policy.spec;
        Self::read(&Parts {
            metadata: &policy.metadata,
            namespace_selector: spec.namespace_selector.as_ref(),
            selector: &spec.selector,
            containers: spec.containers.as_deref(),
            priority: spec.priority,
            logs: spec.logs.as_ref(),
            traffic: spec.traffic.as_ref(),
        })
    }

    fn read(parts: &Parts<'_>) -> Result<Self, Refused> {
        let (key, uid) = (key(parts.metadata), uid(parts.metadata));
        let generation = parts.metadata.generation.unwrap_or_default();
        let mut problems = Vec::new();
        let mut selector = |path: &str, selector: &LabelSelector| {
            Selector::try_from(selector.clone()).map_err(|error| problems.push(format!("{path}: {error}"))).ok()
        };
        let pods = selector("spec.selector", parts.selector);
        let namespaces = parts.namespace_selector.map(|labels| selector("spec.namespaceSelector", labels));
        let containers = parts.containers.map(|globs| {
            let wrong = |errors: Vec<(usize, String)>| {
                problems.extend(errors.into_iter().map(|(index, error)| format!("spec.containers[{index}]: {error}")));
            };
            Globs::new(globs, Slash::IsPlain).map_err(wrong).ok()
        });
        if let Some(logs) = parts.logs {
            let found = logs.problems(&mut Budget::default());
            problems.extend(found.into_iter().map(|problem| format!("spec.logs.{problem}")));
        }
        if let Some(traffic) = parts.traffic {
            problems.extend(traffic.problems().into_iter().map(|problem| format!("spec.traffic.{problem}")));
            if parts.containers.is_some() {
                problems.push("spec.containers: the traffic is that of the whole Pod: leave it out".to_owned());
            }
        }
        if parts.logs.is_none() && parts.traffic.is_none() {
            problems.push("spec: declares nothing: give logs, traffic or both".to_owned());
        }
        match pods {
            Some(pods) if problems.is_empty() => Ok(Self {
                standing: Standing {
                    priority: parts.priority,
                    created: Reverse(
                        parts.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
                    ),
                    name: Reverse(Arc::clone(&key.name)),
                },
                key,
                uid,
                generation,
                namespaces: namespaces.flatten(),
                pods,
                containers: containers.flatten(),
                settings: parts.logs.cloned().unwrap_or_default(),
                traffic: parts.traffic.cloned(),
            }),
            _ => {
                Err(Refused { key, uid, generation, problems: problems.iter().map(|problem| clean(problem)).collect() })
            }
        }
    }

    /// Whether it selects the Pod.
    #[must_use]
    pub fn selects(&self, subject: &Subject<'_>) -> bool {
        let in_namespace = match (&self.namespaces, subject.namespace_labels) {
            (None, _) => self.key.namespace.as_deref().is_none_or(|namespace| namespace == subject.namespace),
            (Some(selector), Some(labels)) => selector.matches(labels),
            (Some(selector), None) => {
                selector.matches(&BTreeMap::from([(NAME_LABEL.to_owned(), subject.namespace.to_owned())]))
            }
        };
        in_namespace && self.pods.matches(subject.labels)
    }

    /// From when until when it says something of traffic, if it ever does.
    #[must_use]
    pub fn window(&self) -> Option<Window> {
        self.traffic.as_ref().map(TrafficSettings::window)
    }

    /// What is right and may not be meant.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let warnings = self.traffic.iter().flat_map(TrafficSettings::warnings);
        warnings.map(|warning| format!("{}: spec.traffic.{warning}", self.key))
    }

    fn selects_container(&self, container: &str) -> bool {
        self.containers.as_ref().is_none_or(|globs| globs.is_match(container))
    }

    fn source(&self) -> Source<'_> {
        let standing = self.standing.clone();
        let rank = if self.key.namespace.is_some() { Rank::Namespaced(standing) } else { Rank::Cluster(standing) };
        Source { rank, origin: OriginOf::One(Origin::Policy(self.key.clone())), settings: &self.settings }
    }
}

/// The name of a policy.
#[must_use]
pub fn key(metadata: &ObjectMeta) -> Key {
    Key {
        namespace: metadata.namespace.as_deref().map(Into::into),
        name: metadata.name.as_deref().unwrap_or_default().into(),
    }
}

/// Which of the policies of that name it is.
#[must_use]
pub fn uid(metadata: &ObjectMeta) -> Option<Arc<str>> {
    metadata.uid.as_deref().map(Into::into)
}

impl Policies {
    /// Takes a policy over, in the place of what it was before; whether anything has changed.
    pub fn insert(&mut self, policy: Result<Policy, Refused>) -> bool {
        match policy {
            Ok(policy) => {
                if self.get(&policy.key).is_some_and(|known| **known == policy) {
                    return false;
                }
                self.remove(&policy.key);
                let policies = match &policy.key.namespace {
                    None => &mut self.cluster,
                    Some(namespace) => self.namespaced.entry(Arc::clone(namespace)).or_default(),
                };
                policies.insert(policy.key.clone(), Arc::new(policy));
            }
            Err(refused) => {
                if self.refused.get(&refused.key) == Some(&refused) {
                    return false;
                }
                let is_same = |uid: &Option<Arc<str>>| uid.is_none() || *uid == refused.uid;
                let before = self.get(&refused.key).or_else(|| self.before.get(&refused.key)).cloned();
                let is_never = self.never.contains(&refused.key)
                    && self.refused.get(&refused.key).is_some_and(|known| is_same(&known.uid));
                self.remove(&refused.key);
                if let Some(before) = before.filter(|before| is_same(&before.uid)) {
                    self.before.insert(refused.key.clone(), before);
                } else if is_never || refused.generation <= 1 {
                    self.never.insert(refused.key.clone());
                }
                self.refused.insert(refused.key.clone(), refused);
            }
        }
        true
    }

    /// The policy of this name, if it can be in force.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<Policy>> {
        match &key.namespace {
            None => self.cluster.get(key),
            Some(namespace) => self.namespaced.get(namespace)?.get(key),
        }
    }

    /// Whether the policy is there, in force or not.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.get(key).is_some() || self.refused.contains_key(key)
    }

    /// A policy is gone.
    pub fn remove(&mut self, key: &Key) {
        self.refused.remove(key);
        self.before.remove(key);
        self.never.remove(key);
        match &key.namespace {
            None => {
                self.cluster.remove(key);
            }
            Some(namespace) => {
                if let Some(policies) = self.namespaced.get_mut(namespace) {
                    policies.remove(key);
                    if policies.is_empty() {
                        self.namespaced.remove(namespace);
                    }
                }
            }
        }
    }

    /// Lets go of the policies of one kind that are not among `keys`.
    pub fn retain(&mut self, namespaced: bool, keys: &BTreeSet<Key>) {
        let known: Vec<_> = self.all().map(|policy| policy.key.clone()).chain(self.refused.keys().cloned()).collect();
        for key in known {
            if key.namespace.is_some() == namespaced && !keys.contains(&key) {
                self.remove(&key);
            }
        }
    }

    /// Those that can be in force.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.cluster.values().chain(self.namespaced.values().flat_map(BTreeMap::values))
    }

    /// Those that can't be in force.
    pub fn refused(&self) -> impl Iterator<Item = &Refused> {
        self.refused.values()
    }

    /// Those that select the Pod.
    pub fn selecting(&self, subject: &Subject<'_>) -> impl Iterator<Item = &Arc<Policy>> {
        let own = self.namespaced.get(subject.namespace).into_iter().flat_map(BTreeMap::values);
        self.cluster.values().chain(own).filter(|policy| policy.selects(subject))
    }

    /// What a policy says of traffic; of one that is refused by now, what it said before: an edit that goes wrong opens nothing.
    #[must_use]
    pub fn traffic(&self, key: &Key) -> Option<&TrafficSettings> {
        self.get(key).or_else(|| self.before.get(key))?.traffic.as_ref()
    }

    /// Whether one names Pods as peers.
    #[must_use]
    pub fn name_pods(&self) -> bool {
        let traffic = self.all().chain(self.before.values()).filter_map(|policy| policy.traffic.as_ref());
        traffic.into_iter().any(|traffic| traffic.allow.names_pods())
    }

    /// Policies for Pods of a namespace that are refused, and of which nobody knows what they said before: of the cluster, or of
    /// the namespace. One that never was anything else has said nothing.
    pub fn uncertain(&self, namespace: &str, is_namespaced: bool) -> impl Iterator<Item = &Refused> {
        let refused = self.refused.values().filter(|refused| !self.never.contains(&refused.key));
        refused.filter(move |Refused { key, .. }| {
            let concerns = match key.namespace.as_deref() {
                None => !is_namespaced,
                Some(own) => is_namespaced && own == namespace,
            };
            concerns && !self.before.contains_key(key)
        })
    }

    /// When the next policy begins or ends to say something of traffic.
    #[must_use]
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        let windows = self.all().chain(self.before.values()).filter_map(|policy| policy.window());
        windows.filter_map(|window| window.next_change(now)).min()
    }

    /// Those that select the Pod and say something of its traffic, now or at other times: the one with the higher priority first,
    /// then the older one.
    fn governing<'a>(&'a self, subject: &Subject<'_>, files: &'a Self) -> Vec<(Name, &'a TrafficSettings)> {
        let before = self.before.values().filter(|policy| policy.selects(subject));
        let own = self.selecting(subject).chain(before).map(|policy| (false, policy));
        let mut selecting: Vec<_> = own.chain(files.selecting(subject).map(|policy| (true, policy))).collect();
        selecting.sort_by(|(_, one), (_, two)| two.standing.cmp(&one.standing));
        let named = |(is_file, policy): (bool, &'a Arc<Policy>)| {
            Some((Name { key: policy.key.clone(), is_file }, policy.traffic.as_ref()?))
        };
        selecting.into_iter().filter_map(named).collect()
    }

    /// Those that say something of the Pod's traffic and have a beginning or an end.
    pub fn dated(&self, subject: &Subject<'_>, files: &Self) -> Vec<(Name, Window)> {
        let governing = self.governing(subject, files).into_iter().map(|(name, traffic)| (name, traffic.window()));
        governing.filter(|(_, window)| !window.is_always()).collect()
    }

    /// What those that select the Pod say of its traffic at the time `now`, by tier: see [`Plan`]. Among policies of one tier their
    /// lists add up, and their limits of requests; of their other limits holds that of the policy with the higher priority, then of
    /// the older one.
    pub fn plans(&self, subject: &Subject<'_>, files: &Self, now: Timestamp) -> [Plan; TIERS] {
        let mut plans = <[Plan; TIERS]>::default();
        let governing = self.governing(subject, files).into_iter();
        for (name, traffic) in governing.filter(|(_, traffic)| traffic.window().is_open(now)) {
            let workload = subject.workload.map(|workload| limit::workload(&name, subject.namespace, workload));
            let tier = Tier { is_namespaced: name.key.namespace.is_some(), mode: traffic.mode };
            let Some((_, plan)) = Tier::ALL.iter().zip(&mut plans).find(|(other, _)| **other == tier) else { continue };
            for (is_given, list) in [
                (traffic.allow.egress.is_some(), &mut plan.egress),
                (traffic.allow.ingress.is_some(), &mut plan.ingress),
            ] {
                if is_given {
                    list.get_or_insert_default().insert(name.clone());
                }
            }
            plan.requests.extend(requests::rules(&traffic.limits.http_requests, &name, tier, workload));
            for (limit, slot) in Limit::ALL.into_iter().zip(&mut plan.limits) {
                if let (None, Some(rate)) = (&slot, limit.declared(&traffic.limits, workload)) {
                    *slot = Some((rate, name.clone()));
                }
            }
        }
        plans
    }

    /// What is in force for a container: of a Pod of which nothing is known, what the configuration's rule declares.
    #[must_use]
    pub fn effective(
        &self,
        rule: Option<(usize, &Settings)>,
        subject: Option<&Subject<'_>>,
        container: &str,
    ) -> Effective {
        let rule = rule.map(|(index, settings)| Source {
            rank: Rank::Rule,
            origin: OriginOf::One(Origin::Rule(index)),
            settings,
        });
        let mut sources: Vec<_> = rule.into_iter().collect();
        if let Some(subject) = subject {
            let policies = self.selecting(subject).filter(|policy| policy.selects_container(container));
            sources.extend(policies.map(|policy| policy.source()));
            let declared = subject.declared;
            let origin = OriginOf::Annotations(None);
            sources.push(Source { rank: Rank::Pod, origin, settings: &declared.pod });
            if let Some(settings) = declared.containers.get(container) {
                let origin = OriginOf::Annotations(Some(container.into()));
                sources.push(Source { rank: Rank::Container, origin, settings });
            }
        }
        Effective::of(sources)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use sidestep_abi::govern::{CONNECTIONS_IN, CONNECTIONS_OUT};

    use super::*;
    use crate::policy::{annotations, settings::Field};

    fn namespaced(name: &str, spec: &Value) -> Result<Policy, Refused> {
        let metadata =
            json!({ "name": name, "namespace": "shop", "generation": 3, "creationTimestamp": "2026-01-01T00:00:00Z" });
        let policy = json!({ "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy", "metadata": metadata, "spec": spec });
        Policy::namespaced(&serde_json::from_value(policy).expect("a policy"))
    }

    fn cluster(name: &str, spec: &Value) -> Result<Policy, Refused> {
        let policy = json!({ "apiVersion": "sidestep.dev/v1alpha1", "kind": "ClusterSidestepPolicy", "metadata": { "name": name }, "spec": spec });
        Policy::cluster(&serde_json::from_value(policy).expect("a policy"))
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn policies_select_by_namespace_labels_and_container() {
        let mut policies = Policies::default();
        policies.insert(namespaced(
            "web",
            &json!({ "selector": { "matchLabels": { "app": "web" } }, "containers": ["app*"], "logs": { "topic": "web" } }),
        ));
        policies.insert(cluster(
            "team",
            &json!({
                "namespaceSelector": { "matchLabels": { "team": "x" } },
                "selector": { "matchExpressions": [{ "key": "app", "operator": "In", "values": ["web", "api"] }] },
                "logs": { "tenant": "x" },
            }),
        ));
        let declared = annotations::parse(&labels(&[("sidestep.dev/parse", "json")]));
        let (web, team) = (labels(&[("app", "web")]), labels(&[("team", "x")]));
        let subject = |namespace, namespace_labels| Subject {
            namespace,
            namespace_labels,
            labels: &web,
            declared: &declared,
            workload: None,
        };
        let told = |subject: Subject<'_>, container: &str| {
            let effective = policies.effective(None, Some(&subject), container);
            effective.decisions.iter().map(|decision| decision.field).collect::<Vec<_>>()
        };
        assert_eq!(told(subject("shop", Some(&team)), "app-1"), [Field::Parse, Field::Topic, Field::Tenant]);
        assert_eq!(told(subject("shop", None), "proxy"), [Field::Parse]);
        assert_eq!(told(subject("other", Some(&team)), "app"), [Field::Parse, Field::Tenant]);
        assert!(policies.effective(None, None, "app").decisions.is_empty());
        policies.retain(false, &BTreeSet::new());
        assert_eq!(policies.all().count(), 1);
        let other = policies.all().next().expect("the other").key.clone();
        policies.remove(&other);
        assert_eq!(policies.all().count(), 0);
    }

    #[test]
    fn a_policy_that_can_not_be_is_refused_with_the_fields() {
        let spec = json!({
            "selector": { "matchExpressions": [{ "key": "app", "operator": "Like" }] },
            "containers": ["{"],
            "logs": { "multiline": { "patterns": [{ "start": "(\u{1b}[2J\n" }] }, "files": { "include": ["/{"] } },
        });
        let refused = namespaced("web", &spec).expect_err("all is wrong");
        assert_eq!((refused.generation, refused.problems.len()), (3, 4), "{refused}");
        for (problem, path) in refused.problems.iter().zip([
            "spec.selector: ",
            "spec.containers[0]: ",
            "spec.logs.files.include: ",
            "spec.logs.multiline: ",
        ]) {
            assert!(problem.starts_with(path) && !problem.contains(char::is_control), "{problem}");
        }
        let mut policies = Policies::default();
        let traffic = json!({ "limits": { "connectionsOut": { "perSecond": 1 } } });
        let good = json!({ "selector": {}, "logs": { "topic": "web" }, "traffic": traffic });
        policies.insert(Err(Refused { generation: 1, ..refused.clone() }));
        policies.insert(Err(refused.clone()));
        assert_eq!(policies.uncertain("shop", true).count(), 0, "it never was anything else");
        policies.remove(&refused.key);
        policies.insert(Err(refused.clone()));
        let uncertain = |policies: &Policies, namespace: &str, is_namespaced: bool| {
            policies.uncertain(namespace, is_namespaced).count()
        };
        assert_eq!([true, false].map(|is_namespaced| uncertain(&policies, "shop", is_namespaced)), [1, 0]);
        assert_eq!(uncertain(&policies, "other", true), 0);
        policies.insert(namespaced("web", &good));
        policies.insert(Err(refused));
        assert_eq!(
            (policies.all().count(), policies.refused().count()),
            (0, 1),
            "the old one is not in force any more"
        );
        let (labels, declared) = (BTreeMap::new(), Declared::default());
        let subject =
            Subject { namespace: "shop", namespace_labels: None, labels: &labels, declared: &declared, workload: None };
        let plans = policies.plans(&subject, &Policies::default(), Timestamp::UNIX_EPOCH);
        assert!(plans.iter().any(|plan| plan.limits[CONNECTIONS_OUT].is_some()), "what it said of traffic goes on");
        assert_eq!(uncertain(&policies, "shop", true), 0);
        policies.retain(true, &BTreeSet::new());
        let plans = policies.plans(&subject, &Policies::default(), Timestamp::UNIX_EPOCH);
        assert!(plans.iter().all(Plan::is_empty), "it is gone");
    }

    #[test]
    fn a_policy_says_nothing_of_traffic_outside_of_its_dates() {
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        let policy = |name: &str, dates: &Value, limit: &str| {
            let mut traffic = json!({ "limits": { limit: { "perSecond": 1 } } });
            traffic.as_object_mut().expect("an object").extend(dates.as_object().cloned().unwrap_or_default());
            namespaced(name, &json!({ "selector": {}, "logs": { "topic": "t" }, "traffic": traffic }))
        };
        let (begin, end) = (time("2026-03-01T00:00:00Z"), time("2026-04-01T00:00:00Z"));
        let (mut policies, mut files) = (Policies::default(), Policies::default());
        policies.insert(policy(
            "march",
            &json!({ "notBefore": begin.to_string(), "notAfter": end.to_string() }),
            "connectionsOut",
        ));
        files.insert(policy("spring", &json!({ "notBefore": end.to_string() }), "connectionsIn"));
        files.insert(policy("always", &json!({}), "connectionsIn"));
        let (labels, declared) = (BTreeMap::new(), Declared::default());
        let subject =
            Subject { namespace: "shop", namespace_labels: None, labels: &labels, declared: &declared, workload: None };
        let said = |now: Timestamp| {
            let [_, plan, ..] = policies.plans(&subject, &files, now);
            let name = |limit: &Option<(_, Name)>| limit.as_ref().map(|(_, name)| name.key.name.to_string());
            (name(&plan.limits[CONNECTIONS_OUT]), name(&plan.limits[CONNECTIONS_IN]))
        };
        let (march, spring, always) = (Some("march".to_owned()), Some("spring".to_owned()), Some("always".to_owned()));
        assert_eq!(said(time("2026-02-28T23:59:59Z")), (None, always.clone()));
        assert_eq!(said(begin), (march, always.clone()));
        // Of the same age the first by name decides.
        assert_eq!(said(end), (None, always));
        files.remove(&Key { namespace: Some("shop".into()), name: "always".into() });
        let [_, plan, ..] = policies.plans(&subject, &files, end);
        let limit = plan.limits[CONNECTIONS_IN].as_ref();
        assert_eq!(limit.map(|(_, name)| name.key.name.to_string()), spring);
        let dated: Vec<_> = policies.dated(&subject, &files).into_iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(dated.len(), 2, "{dated:?}");
        assert_eq!(policies.next_change(time("2026-01-01T00:00:00Z")), Some(begin));
        assert_eq!((policies.next_change(begin), policies.next_change(end)), (Some(end), None));
        let effective = policies.effective(None, Some(&subject), "app");
        assert_eq!(effective.settings.topic.as_deref(), Some("t"), "logs have no dates");
    }
}
