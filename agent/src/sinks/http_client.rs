//! HTTP for sinks: requests that are under way at once, TLS, credentials from files, answers of bounded size, and errors
//! that say what to do.

mod failure;
pub(super) mod tls;

#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, time::Duration};

use bytes::Bytes;
use reqwest::{
    Client, Method, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
    redirect::Policy,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

pub use failure::{Failure, FailureKind};

use super::{
    FileFault, NamedFile, SinkError,
    config::{InvalidSetting, Tls},
};

/// Who the agent is, for the server. The file is read for each request, so a Secret that Kubernetes renews counts at once;
/// a newline at its end does not count.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Auth {
    /// A user and a password (RFC 7617).
    Basic {
        /// The user.
        username: String,
        /// The file with the password.
        password_file: PathBuf,
    },
    /// A token (RFC 6750).
    Bearer {
        /// The file with the token.
        token_file: PathBuf,
    },
    /// An API key of Elasticsearch, in the form that it calls `encoded`.
    ApiKey {
        /// The file with the key.
        key_file: PathBuf,
    },
}

impl Auth {
    /// The file with the secret.
    pub(super) fn file(&self) -> NamedFile<'_> {
        match self {
            Self::Basic { password_file, .. } => NamedFile::new("auth.basic.password_file", password_file),
            Self::Bearer { token_file } => NamedFile::new("auth.bearer.token_file", token_file),
            Self::ApiKey { key_file } => NamedFile::new("auth.api_key.key_file", key_file),
        }
    }

    /// The header `Authorization`.
    fn header(&self) -> Result<HeaderValue, Failure> {
        let value = |secret| match self {
            Self::Basic { username, .. } => {
                let pair = format!("{username}:{secret}");
                format!("Basic {}", data_encoding::BASE64.encode(pair.as_bytes()))
            }
            Self::Bearer { .. } => format!("Bearer {secret}"),
            Self::ApiKey { .. } => format!("ApiKey {secret}"),
        };
        secret_header(&self.file(), value).map_err(|fault| Failure::credentials(&fault))
    }
}

/// The value of a header that `value` makes of the secret in a file.
///
/// # Errors
/// The file can't be read, or holds what no header may have.
pub(super) fn secret_header(
    file: &NamedFile<'_>,
    value: impl FnOnce(String) -> String,
) -> Result<HeaderValue, FileFault> {
    let mut header = HeaderValue::from_str(&value(file.secret()?)).map_err(|_| {
        file.fault("it holds characters that no header may have", "see that it is one line, and what was written to it")
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// What all requests of a sink have in common.
#[derive(Clone, Copy, Debug)]
pub struct Options<'settings> {
    /// The sink's name.
    pub sink: &'settings str,
    /// How connections are encrypted where the URL says `https`.
    pub tls: Option<&'settings Tls>,
    /// How long a connection may take to come about, TLS included.
    pub connect_timeout: Duration,
    /// How long a request may take from its beginning to the last byte of its answer.
    pub request_timeout: Duration,
    /// The most bytes of an answer; a longer one is an error.
    pub max_answer_bytes: usize,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Where to, without user and password.
    pub url: Url,
    /// Its own headers.
    pub headers: HeaderMap,
    /// Who asks.
    pub auth: Option<Auth>,
    /// Its body; not copied for a repeat.
    pub body: Bytes,
}

impl Request {
    /// A request without headers and body.
    #[must_use]
    pub fn new(method: Method, url: Url, auth: Option<&Auth>) -> Self {
        Self { method, url, headers: HeaderMap::new(), auth: auth.cloned(), body: Bytes::new() }
    }

    /// The same with a body of this type.
    #[must_use]
    pub fn with_body(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.headers.insert(reqwest::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.body = body.into();
        self
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// What the server answered; it is complete.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Whether the status says that all went well.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }

    /// How long the server wants to be left alone, where it says that in seconds.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }

    /// What to do where a server speaks of the connection and not of the request: no line is to blame for that. They have
    /// no status for it but 400 (nginx, Go).
    #[must_use]
    pub fn connection_remedy(&self) -> Option<&'static str> {
        const REMEDIES: [(&str, &str); 4] = [
            (
                "No required SSL certificate",
                "the server wants a certificate of the agent: see `tls.cert_file` and `tls.key_file`",
            ),
            (
                "SSL certificate error",
                "the server does not accept the agent's certificate: see `tls.cert_file`, and whether it has expired",
            ),
            ("HTTP request was sent to HTTPS port", "the server expects TLS there: write `https://`"),
            ("sent an HTTP request to an HTTPS server", "the server expects TLS there: write `https://`"),
        ];
        let text = (self.status == 400).then(|| self.excerpt())?;
        REMEDIES.iter().find(|(part, _)| text.contains(part)).map(|(_, remedy)| *remedy)
    }

    /// The beginning of the body for an error, in one line.
    #[must_use]
    pub fn excerpt(&self) -> String {
        const MOST: usize = 300;
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(MOST * 4)]);
        let plain: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(MOST).collect();
        plain.trim().to_owned()
    }
}

/// Sends requests from a thread of its own.
pub struct HttpClient {
    client: Client,
    /// Taken only when dropped.
    runtime: Option<Runtime>,
    max_answer_bytes: usize,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").finish_non_exhaustive()
    }
}

impl HttpClient {
    /// A client, and its thread.
    ///
    /// # Errors
    /// A file of `tls` can't be read or used, or the system has no thread to give.
    pub fn new(options: &Options<'_>) -> Result<Self, SinkError> {
        let tls = tls::config(options.tls.unwrap_or(&Tls::default()))?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("sidestep/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect_timeout)
            .timeout(options.request_timeout)
            .tcp_nodelay(true)
            // Below what servers and balancers usually wait for, so that a request seldom meets a closed connection.
            .pool_idle_timeout(Duration::from_secs(30))
            .redirect(Policy::none())
            .no_proxy()
            .http1_only()
            .build()
            .map_err(|cause| SinkError {
                action: "making the HTTP client".to_owned(),
                source: std::io::Error::other(cause),
            })?;
        // The kernel keeps 15 bytes of a thread's name.
        let thread_name: String = format!("http-{}", options.sink).chars().take(15).collect();
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            // Only names are looked up there.
            .max_blocking_threads(2)
            .thread_name(thread_name)
            .enable_all()
            .build()
            .map_err(|source| SinkError { action: "starting the thread of the HTTP client".to_owned(), source })?;
        Ok(Self { client, runtime: Some(runtime), max_answer_bytes: options.max_answer_bytes })
    }

    /// Begins a request; `done` is called on the client's thread with how it went, unless the client is dropped before.
    pub fn start(&self, request: Request, done: impl FnOnce(Result<Answer, Failure>) + Send + 'static) {
        let (client, limit) = (self.client.clone(), self.max_answer_bytes);
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move { done(send(&client, request, limit).await) });
        }
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// There is no complete answer, and why.
    pub fn ask(&self, request: Request) -> Result<Answer, Failure> {
        let (sender, answer) = std::sync::mpsc::sync_channel(1);
        self.start(request, move |result| {
            // Who asks waits below.
            let _ = sender.send(result);
        });
        answer.recv().unwrap_or_else(|_| Err(Failure::cancelled()))
    }
}

impl Drop for HttpClient {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn send(client: &Client, request: Request, limit: usize) -> Result<Answer, Failure> {
    let server = server(&request.url);
    let mut builder = client.request(request.method, request.url).headers(request.headers).body(request.body);
    if let Some(auth) = &request.auth {
        builder = builder.header(AUTHORIZATION, auth.header()?);
    }
    let fail = |cause: reqwest::Error| Failure::of(&server, &cause);
    let mut response = builder.send().await.map_err(fail)?;
    let mut answer =
        Answer { status: response.status().as_u16(), headers: response.headers().clone(), body: Vec::new() };
    while let Some(chunk) = response.chunk().await.map_err(fail)? {
        if answer.body.len().saturating_add(chunk.len()) > limit {
            return Err(Failure::too_long(&server, limit));
        }
        answer.body.extend_from_slice(&chunk);
    }
    Ok(answer)
}

/// The server of a URL for an error: without path, user and password.
#[must_use]
pub fn server(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// What makes no sense about the URLs of a sink, the one in `option`.
#[must_use]
pub fn url_problem(option: &'static str, url: &str, auth: Option<&Auth>) -> Option<InvalidSetting> {
    let problem = match Url::parse(url) {
        Err(cause) => format!("has {url:?}, which is no URL ({cause}): write `https://host:port`"),
        Ok(url) if !matches!(url.scheme(), "http" | "https") || !url.has_host() => {
            "must be written as `https://host:port` or `http://host:port`".to_owned()
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            "must not hold a user or a password, which errors and `config show` would print: use `auth`".to_owned()
        }
        Ok(url) if auth.is_some() && is_clear_text(&url) => format!(
            "with `auth` would send what is in {} in clear text to {}: it needs `https://`",
            auth.map_or_else(String::new, |auth| auth.file().path.display().to_string()),
            server(&url)
        ),
        Ok(_) => return None,
    };
    Some(InvalidSetting { option, problem })
}

/// Whether others than this machine see what is sent there.
pub(super) fn is_clear_text(url: &Url) -> bool {
    url.scheme() == "http" && !is_loopback(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
