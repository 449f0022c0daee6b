//! `sidestep policy show` and `sidestep policy counters`: what holds for the traffic of Pods, and what was refused.

use std::{fmt::Write as _, io::Write, path::Path};

use super::{
    ClientError, fetch, quiet_on_broken_pipe,
    table::{BAD, Cell, Row, append_table},
    terminal::{Screen, append_escaped, append_json, escaped_word},
    write_out,
};
use crate::control::{
    governance::{
        GovernanceReport, GovernedDates, GovernedLimit, GovernedPod, GovernedRequests, GovernedTier, Refusals,
    },
    protocol::{Ask, Frame},
};

/// What is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum View {
    /// What holds, with who has declared it.
    Show,
    /// What was refused.
    Counters,
}

/// Asks the agent and prints its answer, as JSON or for people; only of this namespace, if it is given.
///
/// # Errors
/// The agent does not run or refuses, or the output cannot be written (a closed pipe is not an error).
pub fn governance(
    socket: &Path,
    view: View,
    namespace: Option<&str>,
    json: bool,
    (screen, out): (Screen, &mut dyn Write),
) -> Result<(), ClientError> {
    let mut report =
        fetch(
            socket,
            Ask::Governance,
            |frame| if let Frame::Governance(report) = frame { Some(*report) } else { None },
        )?;
    report.pods.retain(|pod| namespace.is_none_or(|namespace| pod.namespace == namespace));
    let mut text = Vec::new();
    if json {
        append_json(&serde_json::to_string(&report)?, screen, &mut text);
        text.push(b'\n');
    } else {
        head(&report, namespace, screen, &mut text);
        render(&report, view, screen, &mut text);
    }
    quiet_on_broken_pipe(write_out(out, &text))
}

fn render(report: &GovernanceReport, view: View, screen: Screen, out: &mut Vec<u8>) {
    match view {
        View::Show => {
            let mut text = String::new();
            report.pods.iter().for_each(|pod| show(pod, &mut text));
            append_escaped(text.as_bytes(), out);
        }
        View::Counters => counters(&report.pods, screen, out),
    }
}

/// What is said before all else.
pub(super) fn head(report: &GovernanceReport, namespace: Option<&str>, screen: Screen, out: &mut Vec<u8>) {
    if let Some(problem) = &report.problem {
        screen.paint(out, BAD, &format!("problem: {}", escaped_word(problem)));
        out.push(b'\n');
    }
    if report.pods.is_empty() {
        let of = namespace.map(|namespace| format!("of namespace {namespace} ")).unwrap_or_default();
        let text = format!("No policy says anything of the traffic of a Pod {of}of node {}.\n", report.node);
        append_escaped(text.as_bytes(), out);
    }
}

pub(super) fn name(pod: &GovernedPod) -> String {
    match pod.pod.as_str() {
        "" => format!("cgroup {}", pod.cgroup),
        name => format!("{}/{name}", pod.namespace),
    }
}

/// What is shown of a Pod, its name first.
pub(super) fn lines(pod: &GovernedPod) -> Vec<String> {
    let mut text = String::new();
    show(pod, &mut text);
    text.lines().map(|line| line.trim_start().to_owned()).collect()
}

fn show(pod: &GovernedPod, text: &mut String) {
    let _ = writeln!(text, "Pod {}", name(pod));
    if let Some(waits) = &pod.waits {
        let _ = writeln!(text, "  {waits}");
    }
    for older in &pod.older {
        let _ = writeln!(text, "  what holds is older: {older}");
    }
    if !pod.interfaces.is_empty() {
        let _ = writeln!(text, "  its packets are checked at the node's interface {}", pod.interfaces.join(", "));
    }
    if let Some(unmet) = &pod.unmet {
        let _ = writeln!(text, "  {unmet}");
    }
    for warning in &pod.warnings {
        let _ = writeln!(text, "  warning: {warning}");
    }
    for GovernedDates { policy, what, .. } in &pod.dated {
        let _ = writeln!(text, "  {policy} {what}");
    }
    for tier in &pod.tiers {
        let GovernedTier { scope, mode, egress, ingress, egress_pods, ingress_pods, limits, http_requests, .. } = tier;
        let what = match mode.as_str() {
            "observe" => format!("{scope}, observed only"),
            _ => scope.clone(),
        };
        let lists = [
            ("may open connections to the list", egress, egress_pods),
            ("may be connected to by the list", ingress, ingress_pods),
        ];
        for (may, policies, pods) in lists {
            if let Some(policies) = policies {
                let pods = pods.map(|count| format!(", with {count} addresses of Pods")).unwrap_or_default();
                let _ = writeln!(text, "  {what}: {may} of {}{pods}", policies.join(", "));
            }
        }
        for GovernedLimit { what: may, policy, .. } in limits {
            let _ = writeln!(text, "  {what}: {may}    <- {policy}");
        }
        for GovernedRequests { name, path_prefix, port, rate } in http_requests {
            let path = if path_prefix.is_empty() { String::new() } else { format!(" to {path_prefix}") };
            let port = if *port == 0 { String::new() } else { format!(" at port {port}") };
            let name = name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            let _ = writeln!(
                text,
                "  {what}: gets {:.0} HTTP requests a second{path}{port}{}, {} at once    <- {}{name}",
                rate.per_second,
                rate.per.in_words(),
                rate.burst,
                rate.policy
            );
        }
    }
}

fn counters(pods: &[GovernedPod], screen: Screen, out: &mut Vec<u8>) {
    let tiers = pods.iter().flat_map(|pod| pod.tiers.iter().map(move |tier| (pod, tier)));
    let row = |(pod, tier): (&GovernedPod, &GovernedTier), refused: &Refusals, outcome: &'static str| Row {
        cells: vec![
            Cell::plain(escaped_word(&name(pod))),
            Cell::plain(tier.scope.as_str()),
            Cell::plain(refused.direction.as_str()),
            Cell::plain(refused.reason.as_str()),
            Cell::plain(outcome),
            Cell::plain(refused.count.to_string()),
            Cell::plain(escaped_word(&whose(refused))),
        ],
        details: Vec::new(),
    };
    let rows: Vec<_> = tiers
        .flat_map(|of @ (_, tier)| {
            let outcome = if tier.mode == "observe" { "would refuse" } else { "refused" };
            let refused = tier.refused.iter().map(move |refused| row(of, refused, outcome));
            refused.chain(tier.marked.iter().map(move |marked| row(of, marked, "marked")))
        })
        .collect();
    if rows.is_empty() {
        out.extend_from_slice(if pods.is_empty() { b"" } else { b"Nothing was refused.\n" });
        return;
    }
    append_table(&["POD", "SCOPE", "DIRECTION", "REASON", "", ">COUNT", "POLICY"], &rows, screen, out);
}

/// The policies whose list or limit has refused something, and the limit's name.
pub(super) fn whose(refused: &Refusals) -> String {
    let policies = refused.policies.join(", ");
    match &refused.rule {
        Some(rule) => format!("{policies} ({rule})"),
        None => policies,
    }
}
