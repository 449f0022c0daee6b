//! `sidestep explain`: who has decided what of a Pod's containers.

use std::{fmt::Write as _, io::Write, path::Path};

use super::{ClientError, fetch, quiet_on_broken_pipe, write_out};
use crate::{
    control::{
        explain::{ExplainReport, ExplainRequest},
        protocol::{Ask, Frame},
    },
    kubernetes::health::Freshness,
};

/// Asks the agent and prints its answer, as JSON or for people.
///
/// # Errors
/// The agent does not run or refuses, or the output cannot be written (a closed pipe is not an error).
pub fn explain(socket: &Path, request: ExplainRequest, json: bool, out: &mut dyn Write) -> Result<(), ClientError> {
    let report =
        fetch(
            socket,
            Ask::Explain(request),
            |frame| if let Frame::Explain(report) = frame { Some(*report) } else { None },
        )?;
    let text = if json { format!("{}\n", serde_json::to_string(&report)?) } else { render(&report) };
    quiet_on_broken_pipe(write_out(out, text.as_bytes()))
}

/// For people. What a Pod or a policy chose is shown without control characters.
fn render(report: &ExplainReport) -> String {
    let mut text = String::new();
    let ExplainReport { node, namespace, pod, api_server, policies, is_known, containers } = report;
    // Writing to a text can't fail.
    let _ = writeln!(text, "Pod {namespace}/{pod} on node {node}; API server: {api_server}");
    if policies == Freshness::Never.as_str() {
        text.push_str("The API server has told of no policies yet: those that an agent before has saved count.\n");
    }
    if !is_known {
        text.push_str("Its labels and annotations are not known: only the agent's configuration counts.\n");
    }
    for container in containers {
        let _ = writeln!(
            text,
            "\ncontainer {}{}",
            container.name,
            if container.awaits { " (waits for the API server)" } else { "" }
        );
        for field in &container.fields {
            let by = field.decided_by.as_deref().unwrap_or("default");
            let _ = writeln!(text, "  {:<14} {}    <- {by}", field.field, field.value);
            for lost in &field.overridden {
                let why = if lost.conflict { "in conflict: same kind and priority" } else { "overridden" };
                let _ = writeln!(text, "  {:<14}   {}    <- {} ({why})", "", lost.value, lost.by);
            }
        }
        for problem in &container.problems {
            let _ = writeln!(text, "  problem: {}: {}: {}", problem.key, problem.value, problem.message);
        }
    }
    text.chars().map(|char| if char.is_control() && char != '\n' { '\u{fffd}' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::explain::{ExplainedContainer, ExplainedField, ExplainedLoser, ExplainedProblem};

    #[test]
    fn people_read_who_decided_and_who_lost() {
        let lost =
            ExplainedLoser { by: "SidestepPolicy shop/b".to_owned(), value: "b\u{1b}[31m".to_owned(), conflict: true };
        let field = ExplainedField {
            field: "topic".to_owned(),
            value: "a".to_owned(),
            decided_by: Some("SidestepPolicy shop/a".to_owned()),
            overridden: vec![lost],
        };
        let problem = ExplainedProblem { key: "k".to_owned(), value: "v".to_owned(), message: "m".to_owned() };
        let container = ExplainedContainer {
            name: "app".to_owned(),
            fields: vec![
                field,
                ExplainedField { field: "parse".to_owned(), value: "none".to_owned(), ..Default::default() },
            ],
            problems: vec![problem],
            ..Default::default()
        };
        let report = ExplainReport { node: "n".to_owned(), containers: vec![container], ..Default::default() };
        let text = render(&report);
        for part in [
            "topic          a    <- SidestepPolicy shop/a\n",
            "b\u{fffd}[31m    <- SidestepPolicy shop/b (in conflict",
            "parse          none    <- default\n",
            "problem: k: v: m\n",
            "are not known",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
