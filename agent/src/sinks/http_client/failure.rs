//! Why there is no answer, and what to do about it.

use std::{error::Error, io};

use rustls::CertificateError;

use crate::sinks::FileFault;

/// There is no complete answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// What kind it is.
    pub kind: FailureKind,
    /// The server, the cause and the remedy.
    pub text: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FailureKind {
    /// The file with the password or token can't be used.
    Credentials,
    /// The server's name is not known.
    Resolve,
    /// No connection came about: nothing was sent.
    Connect,
    /// The two sides did not come to terms about TLS: nothing was sent.
    Tls,
    /// The time was over.
    Timeout,
    /// The answer is no HTTP.
    Garbage,
    /// The connection broke before the answer was complete.
    Broken,
    /// The answer is longer than it may be.
    TooLong,
    /// The agent stopped.
    Cancelled,
}

impl FailureKind {
    const fn remedy(self) -> &'static str {
        match self {
            Self::Resolve => "no such host: see the URL, and the node's DNS",
            Self::Connect => "see the URL, that the server runs, and that it is reachable from this node",
            Self::Tls => "see `tls`",
            Self::Timeout => "it is tried again; see the server's load, and `request_timeout`",
            Self::Garbage => "see the URL: another service may listen there, or one that expects `https://`",
            Self::Broken => "it is tried again; see the server's own log",
            Self::TooLong => "see the URL: another service may listen there",
            // The first says it already.
            Self::Credentials | Self::Cancelled => "",
        }
    }
}

impl Failure {
    fn new(kind: FailureKind, what: &str, remedy: &str) -> Self {
        let remedy = if remedy.is_empty() { kind.remedy() } else { remedy };
        Self { kind, text: if remedy.is_empty() { what.to_owned() } else { format!("{what}; {remedy}") } }
    }

    pub(super) fn credentials(fault: &FileFault) -> Self {
        Self::new(FailureKind::Credentials, &fault.to_string(), "")
    }

    pub(super) fn cancelled() -> Self {
        Self::new(FailureKind::Cancelled, "the agent stops", "")
    }

    pub(super) fn too_long(server: &str, limit: usize) -> Self {
        Self::new(FailureKind::TooLong, &format!("{server}: the answer is longer than {limit} bytes"), "")
    }

    /// Finds the cause in a chain of errors.
    pub(super) fn of(server: &str, error: &reqwest::Error) -> Self {
        let causes = || causes(error);
        // The last one says it best; those before it say where it happened.
        let last = causes().last().map_or_else(String::new, ToString::to_string);
        if let Some(cause) = causes().find_map(rustls_error) {
            return Self::new(FailureKind::Tls, &format!("{server}: {cause}"), tls_remedy(cause));
        }
        if causes().any(|cause| cause.to_string() == "dns error") {
            return Self::new(FailureKind::Resolve, &format!("{server}: {last}"), "");
        }
        if error.is_timeout() {
            let what = if error.is_connect() { "no connection in time" } else { "no complete answer in time" };
            let kind = if error.is_connect() { FailureKind::Connect } else { FailureKind::Timeout };
            return Self::new(kind, &format!("{server}: {what}"), "");
        }
        if error.is_connect() {
            return Self::new(FailureKind::Connect, &format!("{server}: {last}"), "");
        }
        let is_garbage = causes().filter_map(|cause| cause.downcast_ref::<hyper::Error>()).any(hyper::Error::is_parse);
        let kind = if is_garbage { FailureKind::Garbage } else { FailureKind::Broken };
        Self::new(kind, &format!("{server}: {last}"), "")
    }
}

/// An error and what caused it.
fn causes<'error>(error: &'error (dyn Error + 'static)) -> impl Iterator<Item = &'error (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// What rustls says, also from within an error of the system.
fn rustls_error<'error>(error: &'error (dyn Error + 'static)) -> Option<&'error rustls::Error> {
    error.downcast_ref().or_else(|| {
        let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
        rustls_error(inner as &(dyn Error + 'static))
    })
}

fn tls_remedy(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidMessage(_) => "it seems to speak no TLS: write `http://`, or see the port",
        rustls::Error::AlertReceived(_) => "the server refuses: see `tls.cert_file`, and what certificates it wants",
        rustls::Error::InvalidCertificate(problem) => match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "renew the server's certificate, or see this node's clock"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "see the clocks of this node and of the server"
            }
            CertificateError::UnknownIssuer => "name the authority that issued it in `tls.ca_file`",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the URL has to use a name that is in the server's certificate"
            }
            _ => "see the server's certificate",
        },
        _ => "",
    }
}
