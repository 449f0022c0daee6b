//! The client of the servers, and whether they are there.

use std::{io, time::Duration};

use reqwest::Method;

use super::{config::Settings, servers::Servers, template::Server};
use crate::sinks::{
    SinkError,
    http_client::{HttpClient, Options, Request, server},
};

/// A reply is at most so many times as large as its request, also with an error for each line, and this much more; what
/// is longer comes from something else.
const MAX_ANSWER: (usize, usize) = (8, 4 * 1024 * 1024);

/// What the operator can do about an answer to a whole request.
pub(super) fn request_remedy(status: u16) -> &'static str {
    match status {
        401 => "see `auth`: the user, the password or the key",
        403 => "give the agent's user the right to write the indices, or see the blocks of the cluster",
        300..=399 => "redirects are not followed: write the right `urls`",
        404 | 405 => "see `urls`: there is no bulk API",
        429 => "the server has no time for it; it is tried again",
        500..=599 => "it is tried again; see the server's own log",
        _ => "see `urls`, and the server's own log; it is tried again",
    }
}

pub(super) fn client(settings: &Settings) -> Result<HttpClient, SinkError> {
    let max_request_bytes = usize::try_from(settings.max_request_bytes.as_u64()).unwrap_or(usize::MAX);
    HttpClient::new(&Options {
        sink: &settings.name,
        tls: settings.tls.as_ref(),
        connect_timeout: settings.connect_timeout,
        request_timeout: settings.request_timeout,
        max_answer_bytes: max_request_bytes.saturating_mul(MAX_ANSWER.0).saturating_add(MAX_ANSWER.1),
    })
}

/// Asks each server who it is.
///
/// # Errors
/// The options can't be used, or one does not answer within three seconds, or is no such server; and why.
pub fn reach(settings: &Settings) -> Result<String, SinkError> {
    let limit = Duration::from_secs(3);
    let client = client(&Settings { connect_timeout: limit, request_timeout: limit, ..settings.clone() })?;
    let servers = Servers::new(&settings.urls).map_err(error)?;
    let mut found = Vec::new();
    for index in 0..settings.urls.len() {
        let url = servers.url(index, "");
        let place = server(&url);
        let request = Request::new(Method::GET, url, settings.auth.as_ref());
        let answer = client.ask(request).map_err(|failure| error(failure.text))?;
        if !answer.is_success() {
            let remedy = answer.connection_remedy().unwrap_or_else(|| request_remedy(answer.status));
            return Err(error(format!("{place}: {} {}; {remedy}", answer.status, answer.excerpt())));
        }
        let Server { distribution, number, .. } =
            Server::read(&answer.body).map_err(|why| error(format!("{place}: {why}; see `urls`")))?;
        found.push(format!("{place} is {distribution:?} {number}"));
    }
    Ok(found.join(", "))
}

pub(super) fn error(why: String) -> SinkError {
    SinkError { action: "sending to Elasticsearch or OpenSearch".to_owned(), source: io::Error::other(why) }
}
