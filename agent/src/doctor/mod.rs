//! `sidestep doctor`: what works on this node, what is degraded, what fails, and what to do about it.
//!
//! Each file looks at one thing. What is read from the system is read in one place and judged by a pure function, so
//! that the judgement is tested by replay.

mod cgroups;
mod kernel;
mod kubernetes;
mod mounts;
mod node;
mod privileges;
mod probes;
mod render;

pub use render::{json, text};

use crate::{
    config::{Config, ConfigError},
    load::Health,
};

/// One answer: what was looked at, how it stands, what was found, and what to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What it is about: `kernel`, `privileges`, `config`, `mounts`, `kubernetes`, `cgroups`, `node` or `probe`.
    pub area: &'static str,
    /// What was looked at, such as `btf` or `write`.
    pub check: String,
    /// How it stands. [`Health::Failed`] means that the agent cannot run, or would lose records.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What follows, and what to do; empty when nothing is to be done.
    pub advice: String,
}

impl Finding {
    fn healthy(area: &'static str, check: impl Into<String>, found: impl Into<String>) -> Self {
        Self { area, check: check.into(), health: Health::Healthy, found: found.into(), advice: String::new() }
    }

    fn degraded(area: &'static str, check: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let (check, found, advice) = (check.to_owned(), found.into(), advice.into());
        Self { area, check, health: Health::Degraded, found, advice }
    }

    fn failed(area: &'static str, check: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { health: Health::Failed, ..Self::degraded(area, check, found, advice) }
    }
}

/// Looks at everything. `config` is what the agent would run with; when it is wrong, the rest is looked at with the
/// `fallback`.
#[must_use]
pub fn examine(config: Result<(String, Config), ConfigError>, fallback: Option<Config>) -> Vec<Finding> {
    let (finding, config) = match config {
        Ok((name, config)) => (node::valid(&name), Some(config)),
        Err(error) => (node::invalid(&error), fallback),
    };
    let mut findings = kernel::examine();
    findings.extend(privileges::examine());
    findings.push(finding);
    if let Some(config) = &config {
        findings.extend(mounts::examine(&config.identity.host_root));
        findings.extend(cgroups::examine(&config.capture));
        findings.extend(node::examine(config));
        findings.extend(kubernetes::examine(&config.kubernetes));
        findings.extend(probes::examine(&config.capture));
    }
    findings
}

/// Whether the agent can run: nothing has failed.
#[must_use]
pub fn can_run(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.health != Health::Failed)
}

#[cfg(test)]
mod tests;
