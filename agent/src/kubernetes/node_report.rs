//! What a node reports of policies: bounded, as all tenants share the object, and the API server takes no more than 1.5 MiB.

use std::collections::{BTreeMap, BTreeSet};

use super::{Pods, conditions::InForce};
use crate::policy::{
    Policies, Policy,
    annotations::Declared,
    precedence::Key,
    resource::{NodePolicy, NodeState, NodeStatus},
    selection::Refused,
};

/// Policies that a node reports of: 2,000 with the longest names are 0.9 MiB.
const MAX_POLICIES: usize = 2_000;
/// Conflicts that a node reports of one policy, and problems.
const MAX_TOLD: usize = 3;
/// Characters of each.
const MAX_TEXT: usize = 256;
/// Bytes of all of them.
const MAX_TEXTS: usize = 128 << 10;

/// A node's report.
#[derive(Debug, Default, PartialEq)]
pub(super) struct NodeReport {
    policies: Vec<NodePolicy>,
    /// Policies for which it has no room.
    pub(super) left_out: usize,
    /// Conflicts and problems for which it has none.
    pub(super) texts_left_out: usize,
}

impl NodeReport {
    /// Whether something of it is left out.
    pub(super) const fn is_cut(&self) -> bool {
        self.left_out > 0 || self.texts_left_out > 0
    }

    /// What is written.
    pub(super) fn status(&self) -> NodeStatus {
        let left_out = (self.left_out > 0).then(|| i32::try_from(self.left_out).unwrap_or(i32::MAX));
        NodeStatus { report_time: None, policies: self.policies.clone(), left_out }
    }
}

/// What is in force here: of the cluster's policies first, then by namespace and name, as far as there is room.
pub(super) fn of_node(policies: &Policies, pods: &Pods, in_force: &dyn InForce) -> NodeReport {
    let known = ordered(policies);
    let (mut conflicts, mut problems) = (Texts::new(in_force.conflicts()), Texts::new(in_force.problems()));
    let (pods, declared) = (pods.all(), Declared::default());
    let mut room = Room::default();
    let reports = known.iter().take(MAX_POLICIES).map(|(key, known)| match known {
        Known::Refused(refused) => NodePolicy::new(key, refused.uid.as_deref(), refused.generation, NodeState::Refused),
        Known::InForce(policy) => {
            let selected = pods.iter().filter(|pod| policy.selects(&pod.subject(&declared)));
            let (conflicts, conflicts_left_out) = room.fitting(conflicts.take(key));
            let (problems, problems_left_out) = room.fitting(problems.take(key));
            NodePolicy {
                pods: i32::try_from(selected.count()).unwrap_or(i32::MAX),
                conflicts,
                problems,
                conflicts_left_out,
                problems_left_out,
                ..NodePolicy::new(key, policy.uid.as_deref(), policy.generation, NodeState::Programmed)
            }
        }
    });
    let reports = reports.collect();
    NodeReport { policies: reports, left_out: known.len().saturating_sub(MAX_POLICIES), texts_left_out: room.left_out }
}

enum Known<'a> {
    InForce(&'a Policy),
    Refused(&'a Refused),
}

/// All policies. Those of the cluster come first: their keys have no namespace.
fn ordered(policies: &Policies) -> BTreeMap<&Key, Known<'_>> {
    let in_force = policies.all().map(|policy| (&policy.key, Known::InForce(policy)));
    in_force.chain(policies.refused().map(|refused| (&refused.key, Known::Refused(refused)))).collect()
}

/// What is to be told of policies, each once.
struct Texts(BTreeMap<Key, BTreeSet<String>>);

impl Texts {
    fn new(told: Vec<(Key, String)>) -> Self {
        let mut by_policy: BTreeMap<Key, BTreeSet<String>> = BTreeMap::new();
        told.into_iter().for_each(|(policy, text)| {
            by_policy.entry(policy).or_default().insert(text);
        });
        Self(by_policy)
    }

    /// Those of a policy.
    fn take(&mut self, policy: &Key) -> BTreeSet<String> {
        self.0.remove(policy).unwrap_or_default()
    }
}

/// What room there is for texts.
#[derive(Default)]
struct Room {
    taken: usize,
    left_out: usize,
}

impl Room {
    /// The first few that fit, and how many there are beside them. After the first that does not fit there is no room for any: who
    /// comes later must not win by being short.
    fn fitting(&mut self, texts: BTreeSet<String>) -> (Vec<String>, Option<i32>) {
        let (mut fitting, count) = (Vec::new(), texts.len());
        for text in texts.into_iter().take(MAX_TOLD) {
            let text = shortened(text);
            self.taken = self.taken.saturating_add(text.len());
            if self.taken <= MAX_TEXTS {
                fitting.push(text);
            } else {
                (self.taken, self.left_out) = (usize::MAX, self.left_out + 1);
            }
        }
        let left_out = count - fitting.len();
        (fitting, (left_out > 0).then(|| i32::try_from(left_out).unwrap_or(i32::MAX)))
    }
}

/// A text of at most [`MAX_TEXT`] characters; one that was longer ends in an ellipsis.
fn shortened(mut text: String) -> String {
    if text.chars().nth(MAX_TEXT).is_some() {
        let end = text.char_indices().nth(MAX_TEXT - 1).map_or(text.len(), |(end, _)| end);
        text.truncate(end);
        text.push('\u{2026}');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::policy::resource::{ClusterSidestepPolicy, SidestepPolicy};

    /// Three conflicts and three problems of each policy.
    struct Told {
        policies: Vec<Key>,
        text: String,
    }

    impl Told {
        fn texts(&self) -> Vec<(Key, String)> {
            let of = |key: &Key| [0, 1, 2].map(|number| (key.clone(), format!("{number}{}", self.text)));
            self.policies.iter().flat_map(of).collect()
        }
    }

    impl InForce for Told {
        fn policies(&self) -> (u64, Arc<Policies>) {
            (1, Arc::default())
        }

        fn conflicts(&self) -> Vec<(Key, String)> {
            self.texts()
        }

        fn problems(&self) -> Vec<(Key, String)> {
            self.texts()
        }
    }

    fn policies(count: usize) -> Policies {
        let mut policies = Policies::default();
        for number in 0..count {
            let metadata = json!({
                "namespace": format!("{number:063}"), "name": format!("{number:0253}"),
                "uid": format!("{number:036}"), "generation": i64::MAX,
            });
            // Every third can't be in force.
            let operator = if number % 3 == 0 { "Like" } else { "Exists" };
            let selector = json!({ "matchExpressions": [{ "key": "app", "operator": operator }] });
            let policy = json!({ "metadata": metadata, "spec": { "selector": selector, "logs": { "topic": "t" } } });
            let policy: SidestepPolicy = serde_json::from_value(policy).expect("a policy");
            policies.insert(Policy::namespaced(&policy));
        }
        let cluster = json!({
            "metadata": { "name": "zzz", "uid": "u", "generation": 1 },
            "spec": { "selector": {}, "logs": { "topic": "t" } },
        });
        let cluster: ClusterSidestepPolicy = serde_json::from_value(cluster).expect("a policy");
        policies.insert(Policy::cluster(&cluster));
        policies
    }

    fn report(policies: &Policies, text: &str) -> NodeReport {
        let told = Told { policies: policies.all().map(|policy| policy.key.clone()).collect(), text: text.to_owned() };
        of_node(policies, &Pods::default(), &told)
    }

    fn texts(policy: &NodePolicy) -> impl Iterator<Item = &String> {
        policy.conflicts.iter().chain(&policy.problems)
    }

    #[test]
    fn what_fits_is_told_in_full() {
        let policies = policies(3);
        let report = report(&policies, "x");
        assert!(!report.is_cut() && report.status().left_out.is_none(), "{report:?}");
        let told: Vec<_> = report.policies.iter().map(|policy| (policy.state, texts(policy).count())).collect();
        let (programmed, refused) = ((NodeState::Programmed, 6), (NodeState::Refused, 0));
        assert_eq!(told, [programmed, refused, programmed, programmed]);
        assert_eq!((&*report.policies[0].name, report.policies[0].uid.as_deref()), ("zzz", Some("u")));
    }

    #[test]
    fn a_report_is_bounded_whatever_there_is() {
        let policies = policies(MAX_POLICIES + 500);
        // The worst in JSON, and in UTF-8.
        for text in ["\"".repeat(1000), "\u{1f600}".repeat(1000)] {
            let report = report(&policies, &text);
            assert_eq!((report.policies.len(), report.left_out), (MAX_POLICIES, 501));
            assert!(report.is_cut() && report.texts_left_out > 1000, "{}", report.texts_left_out);
            assert_eq!(report.policies[0].name, "zzz", "those of the cluster come first");
            let told: Vec<_> = report.policies.iter().flat_map(texts).collect();
            assert!(told.iter().all(|text| text.chars().count() == MAX_TEXT && text.ends_with('\u{2026}')));
            let bytes: usize = told.iter().map(|text| text.len()).sum();
            assert!(bytes <= MAX_TEXTS && bytes > MAX_TEXTS * 9 / 10, "{bytes}");
            let is_silent = |policy: &NodePolicy| texts(policy).count() == 0;
            let last = report.policies.iter().rposition(|policy| !is_silent(policy)).expect("one that has texts");
            let full = report.policies[..last].iter().filter(|policy| policy.state == NodeState::Programmed);
            assert!(full.into_iter().all(|policy| texts(policy).count() == 6), "the first have all of theirs");
            let untold = report.policies[last + 1..].iter().filter(|policy| policy.state == NodeState::Programmed);
            let counts = untold.map(|policy| (policy.conflicts_left_out, policy.problems_left_out));
            assert!(counts.into_iter().all(|counts| counts == (Some(3), Some(3))), "that there are some is told");
            let status = report.status();
            assert_eq!(status.left_out, Some(501));
            let bytes = serde_json::to_string(&status).expect("JSON").len();
            assert!(bytes < 1_300_000, "{bytes}");
        }
    }
}
