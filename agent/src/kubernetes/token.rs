//! The token of a service account: the kubelet writes a new one into its file long before the last one ends. `kube` would read the
//! file again when the time of the day says so, which after a clock that was set back is hours or days later; then the API
//! server refuses the old token. Here it goes by a clock that nobody sets.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::{
    Request,
    header::{AUTHORIZATION, HeaderValue},
};
use kube::config::AuthInfo;
use tower::{Layer, Service};

/// For how long a token is used before its file is read again, as `client-go` does it.
const FRESH: Duration = Duration::from_secs(60);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[error("reading the token {path}: {source}")]
pub(super) struct TokenError {
    path: PathBuf,
    source: io::Error,
}

/// A layer around what sends requests: each gets the token, where one is in a file.
#[derive(Debug)]
pub(super) struct Bearer(Option<Arc<Mutex<Token>>>);

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Authorized<S> {
    service: S,
    token: Option<Arc<Mutex<Token>>>,
}

/// A token in a file.
#[derive(Debug)]
struct Token {
    path: PathBuf,
    header: HeaderValue,
    read: Instant,
}

impl Bearer {
    /// Takes the file of the token out of `auth`, unless something else there comes before it.
    ///
    /// # Errors
    /// The file can't be read.
    pub(super) fn take(auth: &mut AuthInfo, now: Instant) -> Result<Self, TokenError> {
        let is_basic = auth.username.is_some() && auth.password.is_some();
        if auth.auth_provider.is_some() || auth.token.is_some() || is_basic {
            return Ok(Self(None));
        }
        if auth.token_file.is_some() {
            // What `kube` would ask for the want of a token, where both are given.
            auth.exec = None;
        }
        let token = auth.token_file.take().map(|path| Token::new(path.into(), now)).transpose()?;
        Ok(Self(token.map(|token| Arc::new(Mutex::new(token)))))
    }
}

impl<S> Layer<S> for Bearer {
    type Service = Authorized<S>;

    fn layer(&self, service: S) -> Authorized<S> {
        Authorized { service, token: self.0.clone() }
    }
}

impl<S, B> Service<Request<B>> for Authorized<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if let Some(token) = &self.token {
            let header = token.lock().unwrap_or_else(PoisonError::into_inner).header(Instant::now());
            request.headers_mut().insert(AUTHORIZATION, header);
        }
        self.service.call(request)
    }
}

impl Token {
    fn new(path: PathBuf, now: Instant) -> Result<Self, TokenError> {
        match read(&path) {
            Ok(header) => Ok(Self { path, header, read: now }),
            Err(source) => Err(TokenError { path, source }),
        }
    }

    /// The header of a request.
    fn header(&mut self, now: Instant) -> HeaderValue {
        if now.saturating_duration_since(self.read) >= FRESH {
            // One that can't be read, or is being replaced, leaves the last one: it may hold still.
            match read(&self.path) {
                Ok(header) => self.header = header,
                Err(error) => tracing::debug!(%error, "the token can't be read again"),
            }
            self.read = now;
        }
        self.header.clone()
    }
}

fn read(path: &Path) -> io::Result<HeaderValue> {
    let token = fs::read_to_string(path)?;
    let mut header = HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(io::Error::other)?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn auth(path: &Path) -> AuthInfo {
        AuthInfo { token_file: Some(path.display().to_string()), ..AuthInfo::default() }
    }

    #[test]
    fn a_token_is_read_again_by_time_that_has_passed_whatever_the_clock_says() {
        let directory = tempfile::tempdir().expect("directory");
        let (path, start) = (directory.path().join("token"), Instant::now());
        fs::write(&path, "first\n").expect("written");
        let mut token = Token::new(path.clone(), start).expect("a token");
        fs::write(&path, "second").expect("written");
        assert_eq!(token.header(start + FRESH / 2), "Bearer first");
        assert_eq!(token.header(start + FRESH), "Bearer second");
        assert!(token.header(start + FRESH).is_sensitive());
        fs::remove_file(&path).expect("removed");
        assert_eq!(token.header(start + 2 * FRESH), "Bearer second", "the last one may hold still");
        fs::write(&path, "third").expect("written");
        assert_eq!(token.header(start + 2 * FRESH), "Bearer second", "it is not asked for at each request");
        assert_eq!(token.header(start + 3 * FRESH), "Bearer third");
        fs::write(&path, "no\nheader").expect("written");
        assert_eq!(token.header(start + 4 * FRESH), "Bearer third");
    }

    #[tokio::test]
    async fn requests_have_it_where_nothing_else_comes_before() {
        let directory = tempfile::tempdir().expect("directory");
        let (path, now) = (directory.path().join("token"), Instant::now());
        let missing = Bearer::take(&mut auth(&path), now).expect_err("no file").to_string();
        assert!(missing.starts_with(&format!("reading the token {}: ", path.display())), "{missing}");
        fs::write(&path, "first").expect("written");
        let sent = async |auth: &mut AuthInfo| {
            let echo = tower::service_fn(async |request: Request<()>| {
                Ok::<_, Infallible>(request.headers().get(AUTHORIZATION).cloned())
            });
            let mut service = Bearer::take(auth, now).expect("the token").layer(echo);
            service.call(Request::new(())).await.expect("an answer")
        };
        let mut from_file = auth(&path);
        assert_eq!(sent(&mut from_file).await, Some(HeaderValue::from_static("Bearer first")));
        assert!(from_file.token_file.is_none(), "nobody else sends it");
        let mut inline = AuthInfo { token: Some("inline".to_owned().into()), ..auth(&path) };
        assert_eq!(sent(&mut inline).await, None);
        assert!(inline.token_file.is_some());
        assert_eq!(sent(&mut AuthInfo::default()).await, None);
    }
}
