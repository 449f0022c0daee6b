//! What all benchmarks of a run share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use sidestep_tests::{Agent, Config, Ledger, Testbed, wait_until};
use signal_hook::{consts, flag};

use crate::{machine::Machine, process, report::Report};

/// One run.
pub(crate) struct Session {
    pub(crate) quick: bool,
    pub(crate) report: Report,
    stop: Arc<AtomicBool>,
}

impl Session {
    /// Ctrl-C is noted and looked at between measurements, so that everything is cleaned up.
    ///
    /// # Errors
    /// The kernel refuses the signals' handlers.
    pub(crate) fn new(quick: bool) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [consts::SIGINT, consts::SIGTERM, consts::SIGHUP] {
            flag::register(signal, Arc::clone(&stop)).context("clean-up after a signal")?;
        }
        Ok(Self { quick, report: Report::new(Machine::this(), quick), stop })
    }

    pub(crate) fn interrupted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// # Errors
    /// After a signal.
    pub(crate) fn check(&self) -> Result<()> {
        if self.interrupted() {
            bail!("interrupted");
        }
        Ok(())
    }

    /// `full`, or `quick` in a short run.
    pub(crate) fn choose<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    pub(crate) fn step(&self, text: &str) {
        eprintln!("{text}");
    }

    /// Starts an agent, notes how it is attached, and waits until its start is over.
    ///
    /// # Errors
    /// It doesn't start.
    pub(crate) fn agent(&mut self, bed: &Testbed, config: &Config) -> Result<Agent> {
        self.check()?;
        let agent = Agent::start(bed, config)?;
        process::wait_idle(agent.pid(), sidestep_tests::DEADLINE)?;
        let metrics = agent.metrics()?;
        let probe = metrics.samples.iter().find(|sample| {
            let is = |label: &str, value: &str| sample.labels.get(label).is_some_and(|found| found == value);
            sample.name == "sidestep_probe_health" && sample.value > 0.0 && is("probe", "write")
        });
        if let Some(attach) = probe.and_then(|probe| probe.labels.get("attach")) {
            self.report.attach(attach.clone());
        }
        Ok(agent)
    }
}

/// How long the agent may take to deliver what it has.
const SETTLE: Duration = Duration::from_secs(60);

/// Waits until everything that a container wrote since `before` is delivered or dropped, and returns the difference.
///
/// # Errors
/// Not in time: the error has the ledger.
pub(crate) fn settle(agent: &Agent, container_id: &str, before: &Ledger, written: u64) -> Result<Ledger> {
    let mut last = Ledger::default();
    wait_until(&format!("{written} bytes in the ledger"), SETTLE, || {
        last = agent.ledger(container_id)?;
        Ok((last.produced >= before.produced + written && last.pending == 0).then_some(()))
    })
    .with_context(|| format!("the ledger stands at {last:?}, before at {before:?}"))?;
    last.produced -= before.produced;
    last.delivered -= before.delivered;
    for (key, bytes) in &before.dropped {
        if let Some(after) = last.dropped.get_mut(key) {
            *after -= bytes;
        }
    }
    last.dropped.retain(|_, bytes| *bytes > 0);
    Ok(last)
}
