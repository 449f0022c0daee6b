//! On every node of a cluster at once, for the hook of the chart: a DaemonSet whose Pods stay when their node is clean, and
//! a Job that waits until all of them have got there.

use std::{fmt, io, io::Write, sync::Arc, time::Duration};

use clap::Subcommand;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use crate::kubernetes::{ClientError, Settings, client::connect};

/// How often the API server is asked.
const PAUSE: Duration = Duration::from_secs(1);

/// A part of what removes Sidestep from all nodes.
#[derive(Clone, Debug, Subcommand)]
pub enum Step {
    /// Do nothing until SIGTERM: the Pods of a DaemonSet may not end
    Stay,
    /// Wait until every Pod of a DaemonSet is ready, asking the API server with the Pod's own account
    Wait {
        /// Its namespace
        #[arg(long)]
        namespace: String,
        /// Its name
        #[arg(long)]
        daemonset: String,
    },
}

/// Why it could not be waited for.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Nothing says where the API server is.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The API server refuses.
    #[error("daemonsets.apps {name}: {source}; the account of the Pod needs the verb `get` for it")]
    Refused {
        /// Namespace and name.
        name: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// The output could not be written, or a thread or handler not made.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Step {
    pub(super) fn execute(&self, output: &mut impl Write) -> Result<(), StepError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match self {
                Self::Stay => stay().await?,
                Self::Wait { namespace, daemonset } => wait(namespace, daemonset, output).await?,
            }
            Ok(())
        })
    }
}

/// Without handlers, signals do nothing to a container's first process.
async fn stay() -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn wait(namespace: &str, name: &str, output: &mut impl Write) -> Result<(), StepError> {
    let refused = |source| StepError::Refused { name: format!("{namespace}/{name}"), source: Box::new(source) };
    let client = connect(&Settings::default(), &Arc::default()).await?;
    let daemonsets: Api<DaemonSet> = Api::namespaced(client, namespace);
    let mut last = None;
    loop {
        match daemonsets.get(name).await.map(|daemonset| Progress::of(&daemonset)) {
            Ok(progress) => {
                if last != Some(progress) {
                    writeln!(output, "{progress}")?;
                }
                if progress.is_complete() {
                    return Ok(());
                }
                last = Some(progress);
            }
            // It is there and may not be asked, or is not there: waiting changes nothing.
            Err(error @ kube::Error::Api(_)) if is_final(&error) => return Err(refused(error)),
            Err(error) => tracing::warn!(%error, "the API server does not answer; it is asked again"),
        }
        sleep(PAUSE).await;
    }
}

fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404))
}

/// On how many nodes the Pod is ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Progress {
    ready: i32,
    /// `None` until the controller has looked at the DaemonSet.
    nodes: Option<i32>,
}

impl Progress {
    fn of(daemonset: &DaemonSet) -> Self {
        let Some(status) = &daemonset.status else { return Self { ready: 0, nodes: None } };
        let is_current = status.observed_generation >= daemonset.metadata.generation;
        let nodes = is_current.then_some(status.desired_number_scheduled);
        Self { ready: status.number_ready, nodes }
    }

    fn is_complete(self) -> bool {
        self.nodes.is_some_and(|nodes| self.ready >= nodes)
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nodes {
            Some(nodes) => write!(formatter, "{} of {nodes} nodes are clean", self.ready),
            None => formatter.write_str("the DaemonSet has no Pods yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(text: &str) -> Progress {
        Progress::of(&serde_json::from_str(text).expect("a DaemonSet"))
    }

    #[test]
    fn all_nodes_have_to_be_ready_for_this_generation() {
        assert!(!progress(r#"{"metadata": {"generation": 1}}"#).is_complete());
        // As the API server fills it in before the controller has seen it.
        let new = r#"{"metadata": {"generation": 1}, "status": {"currentNumberScheduled": 0, "numberMisscheduled": 0,
            "desiredNumberScheduled": 0, "numberReady": 0}}"#;
        assert!(!progress(new).is_complete());
        let status = |ready| {
            progress(&format!(
                r#"{{"metadata": {{"generation": 1}}, "status": {{"currentNumberScheduled": 3, "numberMisscheduled": 0,
                "desiredNumberScheduled": 3, "numberReady": {ready}, "observedGeneration": 1}}}}"#
            ))
        };
        assert_eq!((status(2).is_complete(), status(2).to_string().as_str()), (false, "2 of 3 nodes are clean"));
        assert!(status(3).is_complete());
    }
}
