//! The capture tests of an emulated machine, whose kernel is another one than that of the development machine: run
//! as its only program by `cargo xtask vm`. It also runs on the development machine, as root.
//!
//! The doctor comes first; then, for each way to attach the probes, one agent with containers of every kind. Inside of
//! containers the same binary is the writer, since the machine has neither Python nor Java.

#[path = "vm-guest/cases.rs"]
mod cases;
#[path = "vm-guest/writer.rs"]
mod writer;

use std::{
    fs,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};
use sidestep_tests::{Testbed, agent, wait};

/// Ways to attach, as `capture.attach` names them.
const ATTACH: [&str; 3] = ["fexit", "tracepoint", "raw_tracepoint"];

/// Runs the capture tests on this kernel.
#[derive(Debug, Parser)]
#[command(name = "vm-guest")]
struct Arguments {
    /// Be the writer inside of a container
    #[arg(long, value_enum, value_name = "MODE")]
    write: Option<writer::Mode>,
    /// Only load and attach the probes, each way, and say how they do
    #[arg(long)]
    doctor: bool,
    /// Only this test
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    /// How much slower than a real machine this one may be
    #[arg(long, default_value_t = 4, value_name = "FACTOR")]
    patience: u32,
    /// Ways to attach that have to work; without it every one
    #[arg(long, value_delimiter = ',', value_name = "POINT")]
    attach: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.write {
        Some(mode) => writer::write(mode),
        None => test(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn test(arguments: &Arguments) -> Result<()> {
    wait::set_patience(arguments.patience);
    let points = match arguments.attach.as_slice() {
        [] => ATTACH.map(str::to_owned).to_vec(),
        named => named.to_vec(),
    };
    // Every point is tried before any is judged: one boot shows all that the verifier has to say.
    let mut failures = Vec::new();
    for point in &points {
        let bed = Testbed::new()?;
        let mut results = vec![("doctor", timed(point, "doctor", || doctor(&bed, point)))];
        if !arguments.doctor && results[0].1.is_ok() {
            drop(bed);
            let chosen = |(name, _): &(&str, cases::Case)| arguments.case.as_ref().is_none_or(|case| case == name);
            let cases = cases::ALL.into_iter().filter(chosen);
            results.extend(cases.map(|(name, case)| (name, timed(point, name, || in_bed(point, case)))));
        }
        let failed = results.into_iter().filter_map(|(name, result)| Some((name, result.err()?)));
        failures.extend(failed.map(|(name, error)| format!("{point}: {name}: {error:#}")));
    }
    if !failures.is_empty() {
        bail!("{} failed:\n{}", failures.len(), failures.join("\n"));
    }
    Ok(())
}

fn in_bed(point: &str, case: cases::Case) -> Result<()> {
    let bed = Testbed::new()?;
    let result = case(&bed, &bed.config().with("/capture/attach", json!(point)));
    if result.is_err() {
        bed.show_agent_logs();
    }
    result
}

fn timed(point: &str, name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    println!("{point}: {name} ...");
    let result = run();
    let word = if result.is_ok() { "ok" } else { "FAILED" };
    println!("{point}: {name}: {word} ({:.1} s)", started.elapsed().as_secs_f64());
    result
}

/// Runs `sidestep doctor` with this attach point, which has to be the one in use, and prints what it says.
fn doctor(bed: &Testbed, point: &str) -> Result<()> {
    let config = bed.path("doctor.yaml")?;
    fs::write(&config, bed.config().with("/capture/attach", json!(point)).text())?;
    let mut command = Command::new(agent::binary()?);
    let output = command.args(["doctor", "--output", "json", "--config"]).arg(&config).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let findings: Value = serde_json::from_str(&said).with_context(|| {
        format!("not JSON: {said:?}, {}: {}", output.status, String::from_utf8_lossy(&output.stderr))
    })?;
    let findings = findings.as_array().context("not an array")?;
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    for finding in findings {
        let [area, check, health, found] = ["area", "check", "health", "found"].map(|field| text(finding, field));
        println!("  {health:<9} {area:<10} {check:<23} {found}");
    }
    ensure!(output.status.success(), "the doctor ended with {}", output.status);
    for call in ["write", "writev", "pwrite64", "pwritev", "pwritev2"] {
        let is_probe = |finding: &&Value| finding["area"] == "probe" && finding["check"] == call;
        let finding = findings.iter().find(is_probe).with_context(|| format!("no probe {call}"))?;
        ensure!(finding["health"] == "healthy" && finding["found"] == point, "{finding}");
    }
    Ok(())
}
