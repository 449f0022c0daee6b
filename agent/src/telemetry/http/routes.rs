//! What each path answers.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
};
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};

use crate::telemetry::{collector::AgentCollector, readiness::Readiness, snapshot::Observe};

/// How long one rendering of the metrics serves all who ask: clients that ask in a loop, or read slowly, cost the node
/// neither CPU nor a copy of the text each.
const METRICS_AGE: Duration = Duration::from_millis(100);

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const METRICS: HeaderValue = HeaderValue::from_static(TEXT_FORMAT);

/// Answers requests; shared by all connections.
pub(super) struct Routes {
    observe: Arc<dyn Observe>,
    sink_failing_limit: Duration,
    registry: Registry,
    rendered: Mutex<Option<(Instant, Bytes)>>,
}

impl Routes {
    pub(super) fn new(
        observe: Arc<dyn Observe>,
        sink_failing_limit: Duration,
        max_container_series: usize,
    ) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(AgentCollector::new(Arc::clone(&observe), max_container_series)?))?;
        Ok(Self { observe, sink_failing_limit, registry, rendered: Mutex::new(None) })
    }

    /// Answers a request by its method and path alone; a body is not read. With `last` the connection is closed after it.
    pub(super) fn answer<B>(&self, request: &Request<B>, last: bool) -> Response<Full<Bytes>> {
        let mut response = match request.uri().path() {
            path @ ("/metrics" | "/healthz" | "/readyz" | "/version") => {
                if matches!(*request.method(), Method::GET | Method::HEAD) {
                    self.page(path)
                } else {
                    method_not_allowed()
                }
            }
            _ => page(StatusCode::NOT_FOUND, TEXT, "not found; there are /metrics /healthz /readyz /version\n"),
        };
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if last {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn page(&self, path: &str) -> Response<Full<Bytes>> {
        match path {
            "/metrics" => self.metrics(),
            "/readyz" => self.readyz(),
            "/version" => self.version(),
            // Answering at all is the health: this thread depends on no stage.
            _ => json(StatusCode::OK, &serde_json::json!({ "status": "ok" })),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, text)) = &*rendered
            && at.elapsed() < METRICS_AGE
        {
            return page(StatusCode::OK, METRICS, text.clone());
        }
        match TextEncoder::new().encode_to_string(&self.registry.gather()) {
            Ok(text) => {
                let text = Bytes::from(text);
                *rendered = Some((Instant::now(), text.clone()));
                page(StatusCode::OK, METRICS, text)
            }
            Err(error) => {
                tracing::error!(%error, "the metrics could not be rendered");
                page(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("the metrics could not be rendered: {error}\n"))
            }
        }
    }

    fn readyz(&self) -> Response<Full<Bytes>> {
        let readiness = Readiness::of(&self.observe.snapshot(), self.sink_failing_limit);
        let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        json(status, &serde_json::json!({ "ready": readiness.ready, "reasons": readiness.reasons }))
    }

    fn version(&self) -> Response<Full<Bytes>> {
        let build = self.observe.snapshot().build;
        let version = serde_json::json!({
            "version": build.version,
            "commit": build.commit,
            "kernel": build.kernel,
        });
        json(StatusCode::OK, &version)
    }
}

fn method_not_allowed() -> Response<Full<Bytes>> {
    let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are allowed\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    page(status, JSON, format!("{value}\n"))
}

fn page(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
