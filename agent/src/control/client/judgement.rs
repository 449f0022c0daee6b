//! `sidestep policy explain`: what policies say of a connection, datagram or request.

use std::{io::Write, path::Path};

use super::{
    ClientError, fetch, quiet_on_broken_pipe,
    table::{BAD, GOOD, WARNING},
    terminal::{Screen, append_json, escaped_word},
    write_out,
};
use crate::control::{
    judgement::{JudgeRequest, JudgedBy, Judgement, Verdict},
    protocol::{Ask, Frame},
};

/// Asks the agent and prints its answer, as JSON or for people.
///
/// # Errors
/// The agent does not run or refuses, or the output cannot be written (a closed pipe is not an error).
pub fn judgement(
    socket: &Path,
    request: JudgeRequest,
    json: bool,
    (screen, out): (Screen, &mut dyn Write),
) -> Result<(), ClientError> {
    let answer = |frame: Frame<'_>| if let Frame::Judgement(judgement) = frame { Some(*judgement) } else { None };
    let judgement = fetch(socket, Ask::Judge(request), answer)?;
    let mut text = Vec::new();
    if json {
        append_json(&serde_json::to_string(&judgement)?, screen, &mut text);
        text.push(b'\n');
    } else {
        render(&judgement, screen, &mut text);
    }
    quiet_on_broken_pipe(write_out(out, &text))
}

fn render(judgement: &Judgement, screen: Screen, out: &mut Vec<u8>) {
    let Judgement { node, pod, what, verdict, findings, notes } = judgement;
    out.extend_from_slice(escaped_word(&format!("Pod {pod} on node {node}: {what}")).as_bytes());
    out.push(b'\n');
    for JudgedBy { scope, mode, is_refused, what, policies, .. } in findings {
        let observed = if mode == "observe" { ", observed only" } else { "" };
        out.extend_from_slice(format!("  {scope}{observed}: ").as_bytes());
        let style = match (is_refused, mode.as_str()) {
            (false, _) => "0",
            (true, "observe") => WARNING,
            (true, _) => BAD,
        };
        screen.paint(out, style, &escaped_word(what));
        out.extend_from_slice(escaped_word(&format!("    <- {}", policies.join(", "))).as_bytes());
        out.push(b'\n');
    }
    for note in notes {
        out.extend_from_slice(format!("  {}\n", escaped_word(note)).as_bytes());
    }
    let has_limits = findings.iter().any(|by| by.mode == "enforce" && by.is_limit);
    match verdict {
        Verdict::Allowed if has_limits => screen.paint(out, GOOD, "It is let through while it is within the limits."),
        Verdict::Allowed => screen.paint(out, GOOD, "It is let through."),
        Verdict::Refused => screen.paint(out, BAD, "It is refused."),
        Verdict::Unknown => screen.paint(out, WARNING, "Whether it is let through is not known."),
    }
    out.push(b'\n');
}
