//! Where requests go, and whether anybody is there.

use std::{io, time::Duration};

use reqwest::{
    Method, Url,
    header::{CONTENT_TYPE, HeaderValue},
};

use super::{
    config::{Encoding, Settings},
    headers,
    verdict::{Verdict, verdict},
};
use crate::sinks::{
    SinkError,
    http_client::{HttpClient, Options, Request},
};

/// An answer is a few words; what is longer comes from something else.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

pub(super) fn client(settings: &Settings) -> Result<(HttpClient, Url), SinkError> {
    let url = Url::parse(&settings.url).map_err(|cause| error(format!("{:?} is no URL: {cause}", settings.url)))?;
    let client = HttpClient::new(&Options {
        sink: &settings.name,
        tls: settings.tls.as_ref(),
        connect_timeout: settings.connect_timeout,
        request_timeout: settings.request_timeout,
        max_answer_bytes: MAX_ANSWER_BYTES,
    })?;
    Ok((client, url))
}

pub(super) fn request(settings: &Settings, url: &Url) -> Result<Request, String> {
    let mut request = Request::new(Method::POST, url.clone(), settings.auth.as_ref());
    request.headers = headers::read(&settings.headers)?;
    request.headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(settings.content_type()));
    Ok(request)
}

/// The URL for an error; the query may hold a secret.
pub(super) fn place(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.into()
}

/// Asks the server whether it is there: with an empty request where that is one, as in OTLP, else with `HEAD`, which writes
/// nothing.
///
/// # Errors
/// The settings can't be used, or there is no answer, or one that speaks of a wrong path or missing rights; and why.
pub fn reach(settings: &Settings) -> Result<String, SinkError> {
    let limit = Duration::from_secs(3);
    let hurried = Settings { connect_timeout: limit, request_timeout: limit, ..settings.clone() };
    let (client, url) = client(&hurried)?;
    let mut request = request(settings, &url).map_err(error)?;
    match settings.encoding {
        Encoding::OtlpProto => {}
        Encoding::Ndjson => request.method = Method::HEAD,
    }
    let landing = client.ask(request);
    let status = landing.as_ref().map(|answer| answer.status).unwrap_or_default();
    let by_post = settings.encoding == Encoding::OtlpProto;
    match verdict(settings.encoding, &place(&url), &landing) {
        Verdict::Taken { .. } => Ok(format!("{} answers", place(&url))),
        // Not every server that takes `POST` knows `HEAD`.
        _ if !by_post && matches!(status, 400 | 404 | 405 | 411 | 501) => {
            Ok(format!("{} answers; whether it takes logs shows with the first request", place(&url)))
        }
        Verdict::Again { why, .. } | Verdict::Refused { why } | Verdict::TooLarge { why } => Err(error(why)),
    }
}

pub(super) fn error(why: String) -> SinkError {
    SinkError { action: "sending by HTTP".to_owned(), source: io::Error::other(why) }
}
