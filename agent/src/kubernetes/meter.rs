//! Counts every request to the API server by verb, resource and outcome, notes what it says of when to come again, and
//! tells of rights that are missing.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::{Method, Response, StatusCode, header::RETRY_AFTER};
use kube::client::Body;
use tower::{BoxError, Layer, Service};

use super::{
    health::{Health, Request, outcome},
    peer_pods::PEERS,
    watch,
};
use crate::events::Event;

/// What an API server that asks for more patience than this gets.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A right that is missing is told of at most this often.
const TOLD: Duration = Duration::from_secs(600);

/// Resources of whose refusal those tell that ask for them: they know the answer's words.
const TOLD_ELSEWHERE: [&str; 3] = ["events", "jobs", "replicasets"];

/// The resource that is watched without telling [`Health`]: only who leads watches it.
const WITHOUT_HEALTH: &str = "sidestepnodes";

/// Puts a [`Metered`] around the client's service.
#[derive(Clone, Debug)]
pub(super) struct Meter(Arc<Health>, Arc<Refusals>);

impl Meter {
    pub(super) fn new(health: Arc<Health>) -> Self {
        Self(health, Arc::default())
    }
}

/// When the API server has last refused what, as far as that was told.
#[derive(Debug, Default)]
struct Refusals(Mutex<HashMap<(&'static str, String), Instant>>);

impl Refusals {
    /// Whether it is to be told. Refused lists and watches are by their [`Health`], where they have one.
    fn is_news(&self, verb: &'static str, resource: &str, now: Instant) -> bool {
        if matches!(verb, "list" | "watch") && resource != WITHOUT_HEALTH || TOLD_ELSEWHERE.contains(&resource) {
            return false;
        }
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = told.get(&(verb, resource.to_owned()));
        let is_news = last.is_none_or(|last| now.saturating_duration_since(*last) >= TOLD);
        if is_news {
            told.insert((verb, resource.to_owned()), now);
        }
        is_news
    }
}

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Metered<S> {
    service: S,
    health: Arc<Health>,
    refusals: Arc<Refusals>,
}

impl<S> Layer<S> for Meter {
    type Service = Metered<S>;

    fn layer(&self, service: S) -> Metered<S> {
        Metered { service, health: Arc::clone(&self.0), refusals: Arc::clone(&self.1) }
    }
}

impl<S, B> Service<hyper::Request<Body>> for Metered<S>
where
    S: Service<hyper::Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        let (verb, resource) = asked(request.method(), request.uri().path(), request.uri().query().unwrap_or_default());
        let watched = watched(&resource, request.uri().query().unwrap_or_default()).to_owned();
        let (health, refusals) = (Arc::clone(&self.health), Arc::clone(&self.refusals));
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let now = Instant::now();
            let outcome = match &answer {
                Ok(response) => {
                    let status = response.status();
                    if of_status(status) == outcome::FORBIDDEN && refusals.is_news(verb, &resource, now) {
                        let (resource, error) = (&*resource, &*status.to_string());
                        Event::KubernetesForbidden { verb, resource, error }.report();
                    }
                    let seconds =
                        response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                    if let Some(seconds) = seconds.filter(|_| !status.is_success()) {
                        health.pause(now + Duration::from_secs(seconds).min(MAX_PAUSE));
                    }
                    of_status(status)
                }
                Err(_) => outcome::UNREACHABLE,
            };
            if verb == "watch" && outcome == outcome::OK {
                health.watch_began(&watched, now);
            }
            health.count(Request { verb, resource, outcome });
            answer
        })
    }
}

fn of_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 | 403 => outcome::FORBIDDEN,
        404 => outcome::NOT_FOUND,
        410 => outcome::GONE,
        429 => outcome::THROTTLED,
        400..500 => outcome::REFUSED,
        ..400 => outcome::OK,
        _ => outcome::SERVER_ERROR,
    }
}

/// Verb and resource, as RBAC has them. Paths are ours, so there are few.
fn asked(method: &Method, path: &str, query: &str) -> (&'static str, String) {
    let mut parts: Vec<_> = path.trim_matches('/').split('/').collect();
    let prefix = match parts.first() {
        Some(&"api") => 2,
        Some(&"apis") => 3,
        _ => 0,
    };
    parts.drain(..prefix.min(parts.len()));
    // The namespace of an object, not a namespace.
    if parts.len() > 2 && parts[0] == "namespaces" {
        parts.drain(..2);
    }
    let resource = match parts[..] {
        [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
        [resource, ..] => resource.to_owned(),
        [] => String::new(),
    };
    let verb = match *method {
        Method::GET if parts.len() > 1 => "get",
        Method::GET if query.split('&').any(|option| option == "watch=true") => "watch",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    (verb, resource)
}

/// What [`Health`] calls what is watched: there are two watches of Pods.
fn watched<'a>(resource: &'a str, query: &str) -> &'a str {
    let is_of_all_nodes = resource == watch::PODS && !query.contains("spec.nodeName");
    if is_of_all_nodes { PEERS } else { resource }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_names_of_rbac() {
        for (method, path, query, verb, resource) in [
            (Method::GET, "/api/v1/pods", "&watch=true&fieldSelector=x", "watch", "pods"),
            (Method::GET, "/api/v1/pods", "&limit=500", "list", "pods"),
            (Method::GET, "/api/v1/namespaces", "", "list", "namespaces"),
            (Method::GET, "/api/v1/namespaces/shop", "", "get", "namespaces"),
            (Method::GET, "/apis/batch/v1/namespaces/shop/jobs/a", "", "get", "jobs"),
            (Method::POST, "/apis/events.k8s.io/v1/namespaces/shop/events", "", "create", "events"),
            (Method::PATCH, "/apis/sidestep.dev/v1/namespaces/a/policies/b/status", "", "patch", "policies/status"),
        ] {
            assert_eq!(asked(&method, path, query), (verb, resource.to_owned()), "{path}");
        }
    }

    #[test]
    fn the_watches_of_pods_are_told_apart() {
        assert_eq!(watched("pods", "&watch=true&fieldSelector=spec.nodeName%3Da"), "pods");
        assert_eq!(watched("pods", "&watch=true&fieldSelector=status.phase%21%3DFailed"), PEERS);
        assert_eq!(watched("namespaces", "&watch=true"), "namespaces");
    }

    #[test]
    fn a_refusal_is_told_once_in_a_while_and_by_one() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        assert!(refusals.is_news("patch", "sidestepnodes/status", now));
        assert!(refusals.is_news("create", "leases", now));
        assert!(!refusals.is_news("patch", "sidestepnodes/status", now + TOLD / 2));
        assert!(refusals.is_news("patch", "sidestepnodes/status", now + TOLD));
        assert!(!refusals.is_news("watch", "pods", now) && !refusals.is_news("create", "events", now));
    }

    #[test]
    fn outcomes_are_those_of_the_status() {
        for (status, outcome) in [
            (200, outcome::OK),
            (403, outcome::FORBIDDEN),
            (410, outcome::GONE),
            (429, outcome::THROTTLED),
            (422, outcome::REFUSED),
            (503, outcome::SERVER_ERROR),
        ] {
            assert_eq!(of_status(StatusCode::from_u16(status).expect("a status")), outcome);
        }
    }
}
