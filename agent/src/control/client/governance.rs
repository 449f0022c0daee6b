//! `sidestep policy show` and `sidestep policy counters`: what holds for the traffic of Pods, and what was refused.

use std::{fmt::Write as _, io::Write, path::Path};

use super::{ClientError, Connection, quiet_on_broken_pipe};
use crate::control::{
    governance::{GovernanceReport, GovernedPod, GovernedRate, GovernedRequests, GovernedTier},
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
    out: &mut dyn Write,
) -> Result<(), ClientError> {
    let mut report = fetch(socket)?;
    report.pods.retain(|pod| namespace.is_none_or(|namespace| pod.namespace == namespace));
    let text = if json { format!("{}\n", serde_json::to_string(&report)?) } else { render(&report, view) };
    quiet_on_broken_pipe(out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(ClientError::Output))
}

fn fetch(socket: &Path) -> Result<GovernanceReport, ClientError> {
    let mut connection = Connection::ask(socket, Ask::Governance)?;
    loop {
        match connection.next()? {
            Frame::Governance(report) => return Ok(*report),
            Frame::End {} => return Err(ClientError::Closed),
            _ => {}
        }
    }
}

fn render(report: &GovernanceReport, view: View) -> String {
    let mut text = String::new();
    // Writing to a text can't fail.
    if let Some(problem) = &report.problem {
        let _ = writeln!(text, "problem: {problem}");
    }
    if report.pods.is_empty() {
        let _ = writeln!(text, "No policy says anything of the traffic of a Pod of node {}.", report.node);
    }
    match view {
        View::Show => report.pods.iter().for_each(|pod| show(pod, &mut text)),
        View::Counters => counters(&report.pods, &mut text),
    }
    text.chars().map(|char| if char.is_control() && char != '\n' { '\u{fffd}' } else { char }).collect()
}

fn name(pod: &GovernedPod) -> String {
    match pod.pod.as_str() {
        "" => format!("cgroup {}", pod.cgroup),
        name => format!("{}/{name}", pod.namespace),
    }
}

fn show(pod: &GovernedPod, text: &mut String) {
    let _ = writeln!(text, "Pod {}", name(pod));
    if pod.unknown {
        text.push_str("  too little is known of it yet: what held goes on\n");
    }
    if !pod.interfaces.is_empty() {
        let _ = writeln!(text, "  its packets are checked at the node's interface {}", pod.interfaces.join(", "));
    }
    for GovernedTier { scope, mode, egress, ingress, connections_out, connections_in, http_requests, .. } in &pod.tiers
    {
        let what = match mode.as_str() {
            "observe" => format!("{scope}, observed only"),
            _ => scope.clone(),
        };
        let lists = [("may open connections to the list", egress), ("may be connected to by the list", ingress)];
        for (may, policies) in lists {
            if let Some(policies) = policies {
                let _ = writeln!(text, "  {what}: {may} of {}", policies.join(", "));
            }
        }
        for (may, limit) in [("may open", connections_out), ("gets", connections_in)] {
            if let Some(GovernedRate { per_second, burst, policy }) = limit {
                let _ = writeln!(
                    text,
                    "  {what}: {may} {per_second:.0} connections a second, {burst} at once    <- {policy}"
                );
            }
        }
        for GovernedRequests { name, path_prefix, port, rate } in http_requests {
            let path = if path_prefix.is_empty() { String::new() } else { format!(" to {path_prefix}") };
            let port = if *port == 0 { String::new() } else { format!(" at port {port}") };
            let name = name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            let _ = writeln!(
                text,
                "  {what}: gets {:.0} HTTP requests a second{path}{port}, {} at once    <- {}{name}",
                rate.per_second, rate.burst, rate.policy
            );
        }
    }
}

fn counters(pods: &[GovernedPod], text: &mut String) {
    let rows = pods.iter().flat_map(|pod| pod.tiers.iter().map(move |tier| (pod, tier)));
    let rows: Vec<_> = rows
        .flat_map(|(pod, tier)| {
            tier.refused.iter().map(move |refused| {
                let what = if tier.mode == "observe" { "would refuse" } else { "refused" };
                [
                    name(pod),
                    tier.scope.clone(),
                    refused.direction.clone(),
                    refused.reason.clone(),
                    what.to_owned(),
                    refused.count.to_string(),
                ]
            })
        })
        .collect();
    if rows.is_empty() {
        if !pods.is_empty() {
            text.push_str("Nothing was refused.\n");
        }
        return;
    }
    let head = ["POD", "POLICIES", "DIRECTION", "REASON", "", "COUNT"].map(str::to_owned);
    let width =
        |column: usize| rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    for row in [&head].into_iter().chain(&rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
