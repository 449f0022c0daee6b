//! What `sidestep status` says of sinks.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Config, DEADLINE, agent::binary, wait_until};

/// All that it says of the sink of this name.
///
/// # Errors
/// The agent does not answer, or has no such sink.
pub fn of_sink(config: &Config, sink: &str) -> Result<Value> {
    let mut status = Command::new(binary()?);
    let output = status.args(["status", "--output", "json", "--socket"]).arg(config.socket()).output()?;
    ensure!(output.status.success(), "sidestep status: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let sinks = report["sinks"].as_array().context("a report without sinks")?;
    sinks.iter().find(|found| found["name"] == sink).cloned().with_context(|| format!("no sink {sink}"))
}

/// The last error of the sink of this name; empty when it has had none.
///
/// # Errors
/// As [`of_sink`].
pub fn last_error(config: &Config, sink: &str) -> Result<String> {
    Ok(of_sink(config, sink)?["last_error"].as_str().unwrap_or_default().to_owned())
}

/// Waits until the last error of a sink has all these parts; returns it.
///
/// # Errors
/// Not in time.
pub fn wait_error(config: &Config, sink: &str, parts: &[&str]) -> Result<String> {
    let mut last = String::new();
    wait_until(&format!("an error of sink {sink} with {parts:?}"), DEADLINE, || {
        last = last_error(config, sink)?;
        Ok(parts.iter().all(|part| last.contains(part)).then(|| last.clone()))
    })
    .with_context(|| format!("the last error: {last}"))
}
