//! The status of a policy, made of what each node reports.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    precedence::Key,
    resource::{NodePolicy, NodeState, Status},
};

/// The most characters of a condition's message that the API server takes are 32768.
const MAX_MESSAGE: usize = 1024;

/// The status of the policy `key`. `refused` says why it can't be in force; `nodes` is what each node reports of all
/// policies; `before` is the status that it has, for the times of its conditions.
#[must_use]
pub fn status(
    key: &Key,
    generation: i64,
    refused: Option<&[String]>,
    nodes: &BTreeMap<String, Vec<NodePolicy>>,
    before: Option<&Status>,
    now: Timestamp,
) -> Status {
    let of_this = |policy: &&NodePolicy| policy.is(key) && policy.generation == generation;
    let reports: Vec<_> = nodes.values().filter_map(|policies| policies.iter().find(of_this)).collect();
    let programmed = reports.iter().filter(|policy| policy.state == NodeState::Programmed).count();
    let pods: i32 = reports.iter().map(|policy| policy.pods).sum();
    let conflict = reports.iter().find_map(|policy| policy.conflicts.first());
    let accepted = match refused {
        None => ("True", "Valid", "it can be in force".to_owned()),
        Some(problems) => ("False", "Invalid", problems.join("; ")),
    };
    let of_nodes = format!("in force on {programmed} of {} nodes", nodes.len());
    let is_programmed = match (refused, programmed) {
        (Some(_), _) => ("False", "Invalid", "it is not in force anywhere".to_owned()),
        (None, _) if nodes.is_empty() => ("False", "NoNode", "no agent has reported yet".to_owned()),
        (None, count) if count < nodes.len() => ("False", "Pending", of_nodes),
        _ if pods == 0 => ("True", "Programmed", format!("{of_nodes}; it selects no Pod")),
        _ => ("True", "Programmed", of_nodes),
    };
    let conflicted = match conflict {
        None => ("False", "NoConflict", "no policy of the same kind and priority decides a field of it".to_owned()),
        Some(conflict) => ("True", "Outranked", conflict.clone()),
    };
    let condition = |type_: &str, (status, reason, message): (&str, &str, String)| {
        let known = before.and_then(|before| before.conditions.iter().find(|condition| condition.type_ == type_));
        let since = known.filter(|known| known.status == status).map(|known| known.last_transition_time.clone());
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.chars().take(MAX_MESSAGE).collect(),
            observed_generation: Some(generation),
            last_transition_time: since.unwrap_or(Time(now)),
        }
    };
    let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    Status {
        observed_generation: Some(generation),
        selected_pods: Some(pods),
        nodes: Some(count(nodes.len())),
        programmed_nodes: Some(count(programmed)),
        programmed: Some(format!("{programmed}/{}", nodes.len())),
        conditions: vec![
            condition("Accepted", accepted),
            condition("Programmed", is_programmed),
            condition("Conflicted", conflicted),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(generation: i64, pods: i32, conflicts: &[&str]) -> Vec<NodePolicy> {
        vec![NodePolicy {
            namespace: Some("shop".to_owned()),
            name: "web".to_owned(),
            generation,
            state: NodeState::Programmed,
            pods,
            conflicts: conflicts.iter().map(ToString::to_string).collect(),
        }]
    }

    fn told(status: &Status) -> Vec<(&str, &str)> {
        status.conditions.iter().map(|condition| (&*condition.status, &*condition.reason)).collect()
    }

    #[test]
    fn conditions_follow_the_nodes_and_keep_their_times() {
        let key = Key { namespace: Some("shop".into()), name: "web".into() };
        let now = |second| Timestamp::from_second(second).expect("a time");
        let mut nodes = BTreeMap::from([("a".to_owned(), report(2, 3, &[])), ("b".to_owned(), report(1, 5, &[]))]);
        let first = status(&key, 2, None, &nodes, None, now(1));
        assert_eq!(told(&first), [("True", "Valid"), ("False", "Pending"), ("False", "NoConflict")]);
        assert_eq!((first.programmed.as_deref(), first.selected_pods), (Some("1/2"), Some(3)));
        nodes.insert("b".to_owned(), report(2, 4, &["topic of Pod shop/x"]));
        let second = status(&key, 2, None, &nodes, Some(&first), now(2));
        assert_eq!(told(&second), [("True", "Valid"), ("True", "Programmed"), ("True", "Outranked")]);
        assert_eq!((second.programmed.as_deref(), second.selected_pods), (Some("2/2"), Some(7)));
        let times: Vec<_> = second.conditions.iter().map(|condition| condition.last_transition_time.0).collect();
        assert_eq!(times, [now(1), now(2), now(2)]);
        let refused = status(&key, 3, Some(&["spec.logs.topic: no".to_owned()]), &nodes, Some(&second), now(3));
        assert_eq!(told(&refused), [("False", "Invalid"), ("False", "Invalid"), ("False", "NoConflict")]);
        assert!(refused.conditions[0].message.contains("spec.logs.topic"));
        let nowhere = status(&key, 1, None, &BTreeMap::new(), None, now(4));
        assert_eq!(told(&nowhere)[1], ("False", "NoNode"));
        let idle = BTreeMap::from([("a".to_owned(), report(1, 0, &[]))]);
        let idle = status(&key, 1, None, &idle, None, now(5));
        assert!(idle.conditions[1].message.contains("selects no Pod"));
    }
}
