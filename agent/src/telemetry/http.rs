//! The HTTP endpoint: `/metrics`, `/healthz`, `/readyz`, `/version`. Read-only, and made to survive slow and hostile
//! clients: every wait has a limit, and so has everything that a client can make the agent hold.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use self::routes::Routes;
use super::snapshot::Observe;

mod routes;
#[cfg(test)]
mod tests;

/// Requests on one connection, after which the client has to open a new one.
const REQUESTS_PER_CONNECTION: usize = 1000;

/// Room for the request line and all headers of one request.
const HEADER_BYTES: usize = 16 * 1024;

/// Time that a connection gets for its last response once its lifetime is over.
const CLOSING_TIME: Duration = Duration::from_secs(5);

/// How the endpoint is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// Connections at a time. One more closes the oldest that has not sent a request yet.
    pub max_connections: usize,
    /// Time for a client to send the head of a request, and for an idle connection to send the next one.
    pub header_timeout: Duration,
    /// Time after which a connection is closed, whatever it does.
    pub connection_lifetime: Duration,
    /// How long a sink may fail before the agent is not ready.
    pub sink_failing_limit: Duration,
    /// Containers with series of their own; the others are booked together.
    pub max_container_series: usize,
}

impl Options {
    /// The defaults, on `listen`.
    #[must_use]
    pub const fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            max_connections: 64,
            header_timeout: Duration::from_secs(10),
            connection_lifetime: Duration::from_secs(120),
            sink_failing_limit: Duration::from_secs(60),
            max_container_series: 2000,
        }
    }
}

/// The endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Listening failed.
    #[error(
        "cannot listen on {address} for metrics: {source}; is another agent running? Else set another `telemetry.listen`"
    )]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The metric definitions are not accepted.
    #[error("the metric definitions are not valid: {0}")]
    Definitions(#[from] prometheus::Error),
}

/// An address that is claimed; clients wait until there is a [`Server`].
pub struct Claim {
    listener: TcpListener,
    options: Options,
}

impl Claim {
    /// Listens on the address.
    ///
    /// # Errors
    /// The address is in use or not the node's.
    pub async fn take(options: Options) -> Result<Self, BindError> {
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|source| BindError::Listen { address: options.listen, source })?;
        Ok(Self { listener, options })
    }
}

/// A listening endpoint.
pub struct Server {
    listener: TcpListener,
    options: Options,
    routes: Arc<Routes>,
}

impl Server {
    /// Opens the endpoint for the agent behind `observe`.
    ///
    /// # Errors
    /// The address is in use or not the node's.
    pub async fn bind(options: Options, observe: Arc<dyn Observe>) -> Result<Self, BindError> {
        Self::new(Claim::take(options).await?, observe)
    }

    /// Opens the endpoint at an address that is claimed already.
    ///
    /// # Errors
    /// The metric definitions are not accepted.
    pub fn new(claim: Claim, observe: Arc<dyn Observe>) -> Result<Self, BindError> {
        let Claim { listener, options } = claim;
        let routes = Arc::new(Routes::new(observe, options.sink_failing_limit, options.max_container_series)?);
        Ok(Self { listener, options, routes })
    }

    /// The address that it listens on, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// The socket has none.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the future is dropped, which closes every connection.
    pub async fn serve(self) -> Infallible {
        let mut connections = Connections::new(self.options.max_connections);
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => connections.add(stream, &self.options, &self.routes),
                Err(error) => {
                    // Out of descriptors, mostly: others must close some first.
                    tracing::warn!(%error, "a connection to the HTTP endpoint could not be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
            // In a flood of connections each gets a chance to read its request before it may be the oldest.
            tokio::task::yield_now().await;
        }
    }
}

/// The open connections, oldest first.
struct Connections {
    limit: usize,
    tasks: JoinSet<()>,
    open: VecDeque<OpenConnection>,
}

struct OpenConnection {
    task: AbortHandle,
    /// Whether it has sent a whole request.
    asked: Arc<AtomicBool>,
}

impl Connections {
    fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), tasks: JoinSet::new(), open: VecDeque::new() }
    }

    fn add(&mut self, stream: TcpStream, options: &Options, routes: &Arc<Routes>) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|connection| !connection.task.is_finished());
        while self.open.len() >= self.limit {
            let oldest_silent = self.open.iter().position(|connection| !connection.asked.load(Relaxed));
            if let Some(connection) = self.open.remove(oldest_silent.unwrap_or(0)) {
                connection.task.abort();
            }
        }
        let asked = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(serve_connection(stream, options.clone(), Arc::clone(routes), Arc::clone(&asked)));
        self.open.push_back(OpenConnection { task, asked });
    }
}

async fn serve_connection(stream: TcpStream, options: Options, routes: Arc<Routes>, asked: Arc<AtomicBool>) {
    let requests = AtomicUsize::new(0);
    let service = service_fn(|request| {
        asked.store(true, Relaxed);
        let last = requests.fetch_add(1, Relaxed) + 1 >= REQUESTS_PER_CONNECTION;
        let response = routes.answer(&request, last);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(options.header_timeout)
            .max_buf_size(HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    // A client that breaks the protocol, is too slow or goes away ends its own connection and concerns nobody else.
    if let Ok(_ended) = timeout(options.connection_lifetime, connection.as_mut()).await {
        return;
    }
    connection.as_mut().graceful_shutdown();
    let _closed_in_time = timeout(CLOSING_TIME, connection).await;
}
