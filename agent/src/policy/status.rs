//! The status of a policy, made of what each node reports.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    precedence::Key,
    resource::{NodePolicy, NodeState, NodeStatus, Status},
};

/// The most characters of a condition's message that the API server takes are 32768.
const MAX_MESSAGE: usize = 1024;

/// A node that has not reported for so long has no agent, or none that the API server hears of: two reports are missing.
const SILENT: Duration = Duration::from_secs(25 * 60);
/// Names of silent nodes in a message.
const MAX_NAMES: usize = 3;

/// What the nodes report.
#[derive(Debug, Default)]
pub struct Reports(BTreeMap<String, Report>);

#[derive(Debug)]
struct Report {
    status: NodeStatus,
    /// When it came, by this node's clock.
    seen: Instant,
    /// When it was written, by the API server's: those of nodes may be wrong by hours.
    written: Option<Timestamp>,
}

impl Reports {
    /// Takes what a node reports, and when that was written by the API server's clock.
    pub fn insert(&mut self, node: String, status: NodeStatus, written: Option<Timestamp>, now: Instant) {
        let known = self.0.get(&node).filter(|known| known.status.report_time == status.report_time);
        let seen = known.map_or(now, |known| known.seen);
        self.0.insert(node, Report { status, seen, written });
    }

    /// A node is gone.
    pub fn remove(&mut self, node: &str) {
        self.0.remove(node);
    }

    /// There are these nodes and no others.
    pub fn retain(&mut self, nodes: &BTreeSet<String>) {
        self.0.retain(|node, _| nodes.contains(node));
    }

    /// What counts now.
    #[must_use]
    pub fn at(&self, now: Instant) -> Counted<'_> {
        let mut counted = Counted::default();
        // It is later than the last report; and this node has reported itself, or does so soon.
        let latest = self.0.values().filter_map(|report| report.written).max();
        for (node, report) in &self.0 {
            // Of long before it was seen here.
            let is_old = latest
                .zip(report.written)
                .is_some_and(|(latest, written)| latest.duration_since(written).unsigned_abs() >= SILENT);
            if is_old || now.saturating_duration_since(report.seen) >= SILENT {
                counted.silent.push(node);
                continue;
            }
            counted.nodes += 1;
            counted.partial += usize::from(report.status.left_out.is_some_and(|left_out| left_out > 0));
            for policy in &report.status.policies {
                counted.of_policy.entry((policy.namespace.as_deref(), &policy.name)).or_default().push(policy);
            }
        }
        counted
    }
}

/// What of the reports counts.
#[derive(Debug, Default, PartialEq)]
pub struct Counted<'a> {
    nodes: usize,
    of_policy: HashMap<(Option<&'a str>, &'a str), Vec<&'a NodePolicy>>,
    /// Nodes whose agents are silent.
    silent: Vec<&'a str>,
    /// Nodes that do not report of all policies.
    partial: usize,
}

impl Counted<'_> {
    /// Why nodes may be missing among those that have told of a policy, in words.
    fn unreported(&self) -> String {
        match self.partial {
            0 => String::new(),
            partial => format!("; of {partial} the report has no room for all policies"),
        }
    }

    /// The nodes that are left out, in words.
    fn without(&self) -> String {
        if self.silent.is_empty() {
            return String::new();
        }
        let names = self.silent.iter().take(MAX_NAMES).copied().collect::<Vec<_>>().join(", ");
        let more = if self.silent.len() > MAX_NAMES { ", ..." } else { "" };
        format!(
            "; {} more, of which no agent has reported for {} minutes: {names}{more}",
            self.silent.len(),
            SILENT.as_secs() / 60
        )
    }
}

/// The status of the policy `key`, of which `uid` and `generation` are there. `accepted` is what else is to
/// be known of it, or why it can't be in force; `nodes` is what each node reports of all
/// policies; `before` is the status that it has, for the times of its conditions.
#[must_use]
pub fn status(
    key: &Key,
    uid: Option<&str>,
    generation: i64,
    accepted: Result<Option<&str>, &[String]>,
    nodes: &Counted<'_>,
    before: Option<&Status>,
    now: Timestamp,
) -> Status {
    let reports = nodes.of_policy.get(&(key.namespace.as_deref(), &*key.name)).map_or(&[][..], Vec::as_slice);
    let reports: Vec<_> = reports.iter().filter(|policy| policy.is_about(uid, generation)).collect();
    let programmed = reports.iter().filter(|policy| policy.state == NodeState::Programmed).count();
    let pods: i32 = reports.iter().map(|policy| policy.pods).sum();
    let conflict = reports.iter().find_map(|policy| policy.conflicts.first().cloned());
    let conflict = conflict.or_else(|| left_out("conflicts", reports.iter().map(|policy| policy.conflicts_left_out)));
    let problem = reports.iter().find_map(|policy| policy.problems.first().cloned());
    let problem = problem.or_else(|| left_out("problems", reports.iter().map(|policy| policy.problems_left_out)));
    let note = accepted.ok().flatten().map(|note| format!("; {note}")).unwrap_or_default();
    let is_accepted = match accepted {
        Ok(_) => ("True", "Valid", "it can be in force".to_owned()),
        Err(problems) => ("False", "Invalid", problems.join("; ")),
    };
    let (count, without) = (nodes.nodes, nodes.without());
    let of_nodes = format!("in force on {programmed} of {count} nodes");
    let is_programmed = match (accepted, programmed) {
        (Err(_), _) => ("False", "Invalid", "it is not in force anywhere".to_owned()),
        (Ok(_), _) if count == 0 => ("False", "NoNode", format!("no agent reports{without}")),
        (Ok(_), programmed) if programmed < count => {
            ("False", "Pending", format!("{of_nodes}{}{without}", nodes.unreported()))
        }
        _ if let Some(problem) = problem => ("False", "NotAllowed", format!("{of_nodes}, but for {problem}")),
        _ if pods == 0 => ("True", "Programmed", format!("{of_nodes}; it selects no Pod{note}{without}")),
        _ => ("True", "Programmed", format!("{of_nodes}{note}{without}")),
    };
    let conflicted = match conflict {
        None => ("False", "NoConflict", "no policy of the same kind and priority decides a field of it".to_owned()),
        Some(conflict) => ("True", "Outranked", conflict),
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
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    Status {
        observed_generation: Some(generation),
        selected_pods: Some(pods),
        nodes: Some(number(count)),
        programmed_nodes: Some(number(programmed)),
        programmed: Some(format!("{programmed}/{count}")),
        conditions: vec![
            condition("Accepted", is_accepted),
            condition("Programmed", is_programmed),
            condition("Conflicted", conflicted),
        ],
    }
}

/// What stands in the place of texts for which the reports have no room, if there are any.
fn left_out(what: &str, counts: impl Iterator<Item = Option<i32>>) -> Option<String> {
    let count: i32 = counts.flatten().fold(0, i32::saturating_add);
    let told =
        "for which nodes' reports have no room: `sidestep policy show` and `sidestep explain` on the nodes tell them";
    (count > 0).then(|| format!("{count} {what}, {told}"))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn report(generation: i64, pods: i32, conflicts: &[&str]) -> NodeStatus {
        let policies = vec![NodePolicy {
            namespace: Some("shop".to_owned()),
            name: "web".to_owned(),
            uid: None,
            generation,
            state: NodeState::Programmed,
            pods,
            conflicts: conflicts.iter().map(ToString::to_string).collect(),
            problems: Vec::new(),
            conflicts_left_out: None,
            problems_left_out: None,
        }];
        NodeStatus { policies, ..NodeStatus::default() }
    }

    fn reports<const N: usize>(nodes: [(&str, NodeStatus); N]) -> Reports {
        let mut reports = Reports::default();
        nodes.into_iter().for_each(|(node, status)| reports.insert(node.to_owned(), status, None, Instant::now()));
        reports
    }

    fn told(status: &Status) -> Vec<(&str, &str)> {
        status.conditions.iter().map(|condition| (&*condition.status, &*condition.reason)).collect()
    }

    #[test]
    fn conditions_follow_the_nodes_and_keep_their_times() {
        let key = Key { namespace: Some("shop".into()), name: "web".into() };
        let now = |second| Timestamp::from_second(second).expect("a time");
        let status = |generation, refused, nodes: &Reports, before, second| {
            status(&key, None, generation, refused, &nodes.at(Instant::now()), before, now(second))
        };
        let mut nodes = reports([("a", report(2, 3, &[])), ("b", report(1, 5, &[]))]);
        let first = status(2, Ok(None), &nodes, None, 1);
        assert_eq!(told(&first), [("True", "Valid"), ("False", "Pending"), ("False", "NoConflict")]);
        assert_eq!((first.programmed.as_deref(), first.selected_pods), (Some("1/2"), Some(3)));
        nodes.insert("b".to_owned(), report(2, 4, &["topic of Pod shop/x"]), None, Instant::now());
        let second = status(2, Ok(None), &nodes, Some(&first), 2);
        assert_eq!(told(&second), [("True", "Valid"), ("True", "Programmed"), ("True", "Outranked")]);
        assert_eq!((second.programmed.as_deref(), second.selected_pods), (Some("2/2"), Some(7)));
        let times: Vec<_> = second.conditions.iter().map(|condition| condition.last_transition_time.0).collect();
        assert_eq!(times, [now(1), now(2), now(2)]);
        let problems = ["spec.logs.topic: no".to_owned()];
        let refused = status(3, Err(&problems[..]), &nodes, Some(&second), 3);
        assert_eq!(told(&refused), [("False", "Invalid"), ("False", "Invalid"), ("False", "NoConflict")]);
        assert!(refused.conditions[0].message.contains("spec.logs.topic"));
        let nobody = Reports::default();
        let nowhere = status(1, Ok(None), &nobody, None, 4);
        assert_eq!(told(&nowhere)[1], ("False", "NoNode"));
        let alone = reports([("a", report(1, 0, &[]))]);
        let idle = status(1, Ok(None), &alone, None, 5);
        assert!(idle.conditions[1].message.contains("selects no Pod"));
        let over = status(2, Ok(Some("its traffic part ended at X")), &nodes, None, 5);
        assert_eq!(told(&over)[1], ("True", "Programmed"));
        assert!(over.conditions[1].message.ends_with("2 of 2 nodes; its traffic part ended at X"), "{over:?}");
        let mut refused = report(1, 1, &[]);
        refused.policies[0].problems.push("Pod shop/a: there is no sink \"x\"".to_owned());
        let refused = reports([("a", refused)]);
        let refused = status(1, Ok(None), &refused, None, 6);
        assert_eq!(told(&refused)[1], ("False", "NotAllowed"));
        assert!(refused.conditions[1].message.contains("no sink"));
        let mut untold = report(1, 1, &[]);
        (untold.policies[0].problems_left_out, untold.policies[0].conflicts_left_out) = (Some(2), Some(1));
        let untold = status(1, Ok(None), &reports([("a", untold)]), None, 6);
        assert_eq!(told(&untold)[1..], [("False", "NotAllowed"), ("True", "Outranked")]);
        assert!(untold.conditions[1].message.contains("but for 2 problems, for which"), "{untold:?}");
    }

    #[test]
    fn a_report_about_a_policy_that_was_deleted_does_not_count_for_its_namesake() {
        let key = Key { namespace: Some("shop".into()), name: "web".into() };
        let now = Timestamp::from_second(1).expect("a time");
        let of = |uid: Option<&str>| {
            let mut status = report(1, 1, &[]);
            status.policies[0].uid = uid.map(str::to_owned);
            status
        };
        let nodes = reports([("same", of(Some("new"))), ("away", of(Some("old"))), ("older-agent", of(None))]);
        let programmed = |uid| {
            let status = status(&key, uid, 1, Ok(None), &nodes.at(Instant::now()), None, now);
            (status.programmed.expect("told"), status.selected_pods.expect("told"))
        };
        assert_eq!(programmed(Some("new")), ("2/3".to_owned(), 2));
        assert_eq!(programmed(Some("third")), ("1/3".to_owned(), 1));
        assert_eq!(programmed(None), ("3/3".to_owned(), 3));
    }

    #[test]
    fn a_node_that_does_not_report_of_all_is_told_where_it_may_matter() {
        let now = Timestamp::from_second(1).expect("a time");
        let partial = NodeStatus { left_out: Some(7), ..report(1, 1, &[]) };
        let nodes = reports([("a", partial), ("b", report(1, 1, &[]))]);
        let message = |name: &str| {
            let key = Key { namespace: Some("shop".into()), name: name.into() };
            let status = status(&key, None, 1, Ok(None), &nodes.at(Instant::now()), None, now);
            status.conditions[1].message.clone()
        };
        assert_eq!(message("web"), "in force on 2 of 2 nodes");
        assert_eq!(message("zoo"), "in force on 0 of 2 nodes; of 1 the report has no room for all policies");
    }

    #[test]
    fn a_node_whose_agent_is_silent_does_not_count() {
        let key = Key { namespace: Some("shop".into()), name: "web".into() };
        let (start, time) = (Instant::now(), Timestamp::from_second(1_000_000).expect("a time"));
        // What an agent says of its own time, and when the API server has written it.
        let mut nodes = Reports::default();
        let report_at = |nodes: &mut Reports, node: &str, minutes: i64, hours_ahead: i64, seen: Instant| {
            let written = time + SignedDuration::from_mins(minutes);
            let own = Time(written + SignedDuration::from_hours(hours_ahead));
            let generation = if matches!(node, "silent" | "old") { 1 } else { 2 };
            let status = NodeStatus { report_time: Some(own), ..report(generation, 1, &[]) };
            nodes.insert(node.to_owned(), status, Some(written), seen);
        };
        let alive = [("here", 0), ("behind", -7), ("ahead", 9)];
        for (node, ahead) in alive.into_iter().chain([("silent", 0)]) {
            report_at(&mut nodes, node, 0, ahead, start);
        }
        // Of an agent of long ago, by a clock that was ahead.
        report_at(&mut nodes, "old", -30, 5, start);
        let told = |nodes: &Reports, now| {
            let status = status(&key, None, 2, Ok(None), &nodes.at(now), None, time);
            (status.programmed.expect("told"), status.conditions[1].message.clone())
        };
        let (programmed, message) = told(&nodes, start);
        assert_eq!(programmed, "3/4");
        assert!(message.ends_with("; 1 more, of which no agent has reported for 25 minutes: old"), "{message}");
        let later = start + SILENT;
        for (node, ahead) in alive {
            report_at(&mut nodes, node, 10, ahead, later);
        }
        // The same report once more, as after a list.
        report_at(&mut nodes, "silent", 0, 0, later);
        let (programmed, message) = told(&nodes, later);
        assert_eq!(programmed, "3/3");
        assert!(message.contains("2 more") && message.ends_with("old, silent"), "{message}");
        nodes.retain(&BTreeSet::from(["here".to_owned()]));
        assert_eq!(told(&nodes, later).0, "1/1");
        nodes.remove("here");
        assert_eq!(told(&nodes, later), ("0/0".to_owned(), "no agent reports".to_owned()));
    }

    #[test]
    fn clocks_that_are_set_back_make_no_node_silent() {
        let key = Key { namespace: Some("shop".into()), name: "web".into() };
        let (start, clock) = (Instant::now(), Timestamp::from_second(1_000_000).expect("a time"));
        let hour = SignedDuration::from_hours(1);
        let at = |time: Timestamp| NodeStatus { report_time: Some(Time(time)), ..report(1, 1, &[]) };
        let beat = Duration::from_secs(600);
        let mut nodes = Reports::default();
        nodes.insert("back".to_owned(), at(clock), Some(clock), start);
        nodes.insert("here".to_owned(), at(clock), Some(clock), start);
        let now = |step: u32| start + step * beat;
        let told = |nodes: &Reports, step, clock, before: Option<&Status>| {
            status(&key, None, 1, Ok(None), &nodes.at(now(step)), before, clock)
        };
        let before = told(&nodes, 0, clock, None);
        // The clock of one node goes back by an hour: what it reports is news as before.
        for step in 1..=6 {
            let passed = SignedDuration::from_secs(600) * step as i32;
            nodes.insert("back".to_owned(), at(clock - hour + passed), Some(clock + passed), now(step));
            nodes.insert("here".to_owned(), at(clock + passed), Some(clock + passed), now(step));
            assert_eq!(told(&nodes, step, clock + passed, None).programmed.as_deref(), Some("2/2"));
            // So does that of who writes the status, and of all; the times of what has not changed stay.
            let status = told(&nodes, step, clock + passed - hour, Some(&before));
            assert_eq!(status, before);
        }
        // Who does not report any more is silent all the same.
        let silent = told(&nodes, 9, clock - hour, None);
        assert_eq!(silent.programmed.as_deref(), Some("0/0"));
        assert!(
            silent.conditions[1].message.ends_with("2 more, of which no agent has reported for 25 minutes: back, here")
        );
    }
}
