//! A limit of HTTP requests, which the kernel keeps.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use aya::util::KernelVersion;
use sidestep_tests::{Config, Network, Testbed, governance};

/// For the Pods that [`crate::samples`] has in this namespace.
pub(crate) const POLICY: &str = "\
apiVersion: sidestep.dev/v1alpha1
kind: SidestepPolicy
metadata: {name: api, namespace: backend}
spec:
  selector: {}
  traffic:
    limits:
      httpRequests:
        - rate: {perSecond: 1, burst: 2}
";

/// A network of the demo's own, which Pods and the agent are in.
pub(crate) struct Limits {
    network: Network,
}

impl Limits {
    /// Takes this thread into the network; `None` where the kernel has no such limits.
    pub(crate) fn prepare() -> Result<Option<Self>> {
        let version = KernelVersion::current().context("the kernel's version")?;
        if version < KernelVersion::new(6, 6, 0) {
            return Ok(None);
        }
        let network = Network::enter()?;
        network.forward()?;
        Ok(Some(Self { network }))
    }

    /// Where Pods are connected.
    pub(crate) const fn network(&self) -> &Network {
        &self.network
    }
}

/// Writes the policy to a file.
pub(crate) fn write_policy(bed: &Testbed) -> Result<PathBuf> {
    let file = bed.path("policy.yaml")?;
    fs::write(&file, POLICY)?;
    Ok(file)
}

/// What was refused.
///
/// # Errors
/// Nothing was: the limit has no effect.
pub(crate) fn counters(config: &Config) -> Result<String> {
    let output = governance::command(config, &["policy", "counters"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("request_rate"), "no request was answered by the kernel: {text}");
    Ok(text)
}
