//! What an answer means for the lines of its request.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, LOCATION};

use super::config::Encoding;
use crate::sinks::{
    flights::Landing,
    http_client::{Answer, FailureKind},
    otlp::answer::{partial_success, status_message},
};

/// What becomes of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// The server has it, but for so many records that it refused; what it said of them, or of nothing.
    Taken { rejected: u64, message: Option<String> },
    /// The server could not take it now, or does not because of something that an operator can mend: sent again without
    /// an end, after this time where the server says so.
    Again { why: String, after: Option<Duration> },
    /// The server does not like what is in it: cut in halves.
    Refused { why: String },
    /// It is too large for the server: cut in halves.
    TooLarge { why: String },
}

/// Decides on a request by how it went.
pub(super) fn verdict(encoding: Encoding, url: &str, landing: &Landing) -> Verdict {
    let answer = match landing {
        Ok(answer) => answer,
        Err(failure) if failure.kind == FailureKind::Credentials => {
            return Verdict::Again { why: held(&failure.to_string()), after: None };
        }
        Err(failure) => return Verdict::Again { why: failure.to_string(), after: None },
    };
    if answer.is_success() && !is_page(answer) {
        return taken(encoding, answer);
    }
    let why = |remedy: &str| format!("{url}: {}{remedy}", describe(answer));
    let again = |why| Verdict::Again { why, after: answer.retry_after() };
    let hold = |remedy: &str| again(held(&why(remedy)));
    if let Some(remedy) = answer.connection_remedy() {
        return hold(&format!("; {remedy}"));
    }
    match answer.status {
        200..300 => hold("; that is a page for people and no server of logs: see `url`, and what stands before it"),
        400 | 422 => Verdict::Refused { why: why("; see `encoding`, and what the server takes") },
        413 => Verdict::TooLarge {
            why: why("; lower `max_request_bytes` or `lines.max_line_bytes`, or raise the server's limit"),
        },
        408 | 425 | 429 | 500..=599 => again(why("; it is tried again")),
        300..=399 => {
            let to = answer.headers.get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
            hold(&format!(" to {to:?}; redirects are not followed: write the right `url`"))
        }
        401 => hold("; see `auth` and `headers`, and whether the token has expired"),
        403 => hold("; give the agent's user the right to write there, or see `headers` (tenant)"),
        404 | 405 | 410 => hold("; see the path in `url`, and that the server takes logs by POST"),
        406 | 415 => hold("; the server takes neither this `encoding` nor this `compression`"),
        _ => hold("; see `url`, and the server's own log"),
    }
}

/// An error that time does not mend: nobody's line is to blame for it.
pub(super) fn held(why: &str) -> String {
    format!("{why}; lines are held until that is mended, and tried again")
}

/// Whether the server speaks of its answer as JSON.
fn is_json(answer: &Answer) -> bool {
    let content_type = answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.trim_start().starts_with("application/json"))
}

/// Whether it is a page of HTML, as gateways show it that want somebody to log in: with a status that says that all is well.
fn is_page(answer: &Answer) -> bool {
    let start = answer.body.trim_ascii_start();
    ["<!doctype html", "<html"]
        .iter()
        .any(|tag| start.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag.as_bytes())))
}

fn taken(encoding: Encoding, answer: &Answer) -> Verdict {
    let partial = match encoding {
        Encoding::Ndjson => None,
        Encoding::OtlpProto => partial_success(is_json(answer), &answer.body),
    };
    partial.map_or(Verdict::Taken { rejected: 0, message: None }, |partial| Verdict::Taken {
        rejected: partial.rejected,
        message: Some(one_line(&partial.message)),
    })
}

/// Status and beginning of the body, in one line.
fn describe(answer: &Answer) -> String {
    let status = reqwest::StatusCode::from_u16(answer.status).ok();
    let reason = status.and_then(|status| status.canonical_reason()).unwrap_or("unknown status");
    let content_type = answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let message = if content_type.starts_with("application/x-protobuf") {
        status_message(&answer.body).map(|message| one_line(&message))
    } else {
        Some(answer.excerpt())
    };
    match message.filter(|message| !message.is_empty()) {
        Some(message) => format!("{} {reason}: {message}", answer.status),
        None => format!("{} {reason}", answer.status),
    }
}

/// What a server says, of bounded length and without control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(300).collect()
}
