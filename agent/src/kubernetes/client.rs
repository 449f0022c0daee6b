//! How the API server is reached.

use std::{
    env,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{
    health::Health,
    meter::Meter,
    settings::{Enabled, Settings},
    token::Bearer,
};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take to begin, or to go on. A watch of what never changes may be silent until its end, after 290 s:
/// bookmarks are not promised.
const READ: Duration = Duration::from_secs(320);
const WRITE: Duration = Duration::from_secs(10);
/// Every container of a Pod has it.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";
/// Where a Pod that may ask the API server has its token.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing says where the API server is.
    #[error(
        "kubernetes.enabled is true, and nothing says where the API server is: the agent does not run as a Pod with a \
         service account ({TOKEN}); set kubernetes.kubeconfig, or kubernetes.enabled: false"
    )]
    Nowhere,
    /// The kubeconfig can't be used.
    #[error("kubernetes.kubeconfig {path}: {cause}; give the agent a kubeconfig that it can read")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// The service account can't be used.
    #[error(
        "the Pod's service account can't be used: {0}; set automountServiceAccountToken, or kubernetes.enabled: false"
    )]
    ServiceAccount(String),
    /// TLS can't be set up.
    #[error("preparing requests to the API server: {0}")]
    Client(String),
}

/// Whether the API server is to be asked.
///
/// # Errors
/// It is to be, and nothing says where it is.
pub(crate) fn is_wanted(settings: &Settings) -> Result<bool, ClientError> {
    let is_known = settings.kubeconfig.is_some() || (env::var_os(IN_CLUSTER).is_some() && Path::new(TOKEN).exists());
    match settings.enabled {
        Enabled::No => Ok(false),
        Enabled::Auto => Ok(is_known),
        Enabled::Yes if is_known => Ok(true),
        Enabled::Yes => Err(ClientError::Nowhere),
    }
}

/// The client; nothing is sent yet.
///
/// # Errors
/// What keeps it from being made.
pub(crate) async fn connect(settings: &Settings, health: &Arc<Health>) -> Result<Client, ClientError> {
    let mut config = match &settings.kubeconfig {
        Some(path) => {
            let failed = |cause: String| ClientError::Kubeconfig { path: path.display().to_string(), cause };
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| failed(error.to_string()))?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| failed(error.to_string()))?
        }
        None => Config::incluster().map_err(|error| ClientError::ServiceAccount(error.to_string()))?,
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(READ);
    config.write_timeout = Some(WRITE);
    config.reset_reader_on_write = true;
    // What is asked again, and when, is decided where the answer is known.
    config.default_retry = false;
    let bearer = Bearer::take(&mut config.auth_info, Instant::now());
    let bearer = bearer.map_err(|error| ClientError::Client(error.to_string()))?;
    let builder = ClientBuilder::try_from(config).map_err(|error| ClientError::Client(error.to_string()))?;
    Ok(builder.with_layer(&bearer).with_layer(&Meter::new(Arc::clone(health))).build())
}
