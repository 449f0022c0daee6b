//! Each sample's ledger as the agent's metrics tell it, beside what the demo itself has counted.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use sidestep_tests::{Ledger, ledger::Metrics};

use crate::samples::{Sample, Samples};

/// What is known of all samples.
#[derive(Default)]
pub(crate) struct Accounts {
    /// The last ledger seen, by container id.
    ledgers: HashMap<String, Ledger>,
    /// Bytes that came out in records, by container id.
    received: HashMap<String, u64>,
    latest: Metrics,
}

/// One line of the table.
pub(crate) struct Row {
    pub(crate) pod: String,
    pub(crate) written: u64,
    pub(crate) ledger: Ledger,
    pub(crate) balances: bool,
}

impl Accounts {
    /// Adds what came out, and reads all ledgers.
    pub(crate) fn note(&mut self, received: HashMap<String, u64>, metrics: &Metrics) {
        for (id, bytes) in received {
            *self.received.entry(id).or_default() += bytes;
        }
        self.latest = metrics.clone();
    }

    /// The ledger of a sample. The account of a container that is gone is closed with its last record: what the
    /// records themselves add up to stands in its place.
    fn ledger(&mut self, sample: &Sample) -> Ledger {
        let id = sample.container.id();
        let now = self.latest.ledger(id);
        if now.produced > 0 {
            self.ledgers.insert(id.to_owned(), now.clone());
            return now;
        }
        let received = self.received.get(id).copied().unwrap_or_default();
        match self.ledgers.get(id) {
            Some(ledger) if ledger.produced >= received && ledger.pending == 0 => ledger.clone(),
            _ => Ledger { produced: received, delivered: received, ..Ledger::default() },
        }
    }

    fn row(&mut self, sample: &Sample) -> Result<Row> {
        let (ledger, written) = (self.ledger(sample), sample.written()?);
        let container = &sample.container;
        let received = self.received.get(container.id()).copied().unwrap_or_default();
        // Three counts by three parties: the runtime's end of the pipe, the agent's ledger, the records.
        let balances = ledger.difference() == 0
            && ledger.pending == 0
            && ledger.produced == written
            && ledger.delivered == received
            && (sample.floods || ledger.dropped.is_empty());
        Ok(Row { pod: format!("{}/{}", container.namespace(), container.pod()), written, ledger, balances })
    }

    /// A line for each sample.
    pub(crate) fn table(&mut self, samples: &Samples) -> Result<Vec<Row>> {
        samples.all().map(|sample| self.row(sample)).collect()
    }

    /// Whether everything has come out or is counted as lost.
    pub(crate) fn settled(&mut self, samples: &Samples) -> Result<bool> {
        Ok(self.table(samples)?.iter().all(|row| row.balances))
    }

    /// Fails when a ledger doesn't balance.
    pub(crate) fn check(&mut self, samples: &Samples) -> Result<()> {
        for row in self.table(samples)? {
            ensure!(
                row.balances,
                "the ledger of {} does not balance: {} bytes written, {:?}",
                row.pod,
                row.written,
                row.ledger
            );
        }
        Ok(())
    }
}
