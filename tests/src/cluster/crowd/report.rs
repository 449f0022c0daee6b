//! What is done with many Pods, and what came of it.

use std::{fmt, time::Duration};

use crate::kernel::Entries;

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Pods in all.
    pub pods: usize,
    /// At most so many at the same time.
    pub at_once: usize,
    /// How long each is there.
    pub life: Life,
    /// The size of the ring between kernel and agent, in KiB, if not the default: what a small one can't hold is to come from
    /// the runtime's logs, before the kubelet removes them.
    pub ring: Option<u32>,
    /// In the end it is waited until the agent has let go of what it held for Pods that are gone, which takes minutes.
    pub let_go: bool,
}

/// How long a Pod is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Life {
    /// It ends by itself, and is deleted then.
    Ends,
    /// It is deleted in the middle of what it writes as fast as it can: every second one at once, the others with a second
    /// of grace.
    Cut,
    /// It runs on until all have been there at the same time.
    Stays,
}

/// What the agent held.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Resident memory, the highest so far, and what of it is anonymous, in bytes.
    pub(super) resident: [u64; 3],
    /// Cgroups and standard streams in the kernel's maps.
    pub(super) entries: Entries,
    /// Accounts in the ledger.
    pub(super) accounts: f64,
    /// Pods, also those that linger.
    pub(super) pods: f64,
}

/// What came of Pods that were deleted in the middle of what they wrote.
#[derive(Clone, Copy, Debug)]
pub struct CutReport {
    /// Those that were deleted before they had written all.
    pub pods: usize,
    /// Bytes that have come and that the runtime's logs have not.
    pub beyond: usize,
    /// Gaps that the ring left and that were filled from the runtime's logs.
    pub gaps: f64,
}

/// What came of it. What was missing, twice or without its labels is an error instead.
#[derive(Debug)]
pub struct Report {
    pub(super) pods: usize,
    /// The most Pods that ran at the same time.
    pub(super) most: usize,
    /// Of those that were to be deleted while they wrote.
    pub(super) cut: Option<CutReport>,
    pub(super) lines: u64,
    /// From the first that was made to the last that was gone.
    pub(super) took: Duration,
    pub(super) before: Held,
    /// When all were there, or the last was gone.
    pub(super) highest: Held,
    /// When the agent had let go of them, if that was waited for.
    pub(super) after: Option<Held>,
}

impl Report {
    /// What came of Pods that were deleted while they wrote, if they were to be.
    #[must_use]
    pub fn cut(&self) -> Option<CutReport> {
        self.cut
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [resident, peak, anonymous] = self.resident.map(|bytes| bytes as f64 / f64::from(1 << 20));
        let Self { entries, accounts, pods, .. } = self;
        write!(f, "resident {resident:.1} MiB (highest {peak:.1}, anonymous {anonymous:.1}), {pods} Pods, ")?;
        write!(f, "{accounts} accounts, {} cgroups and {} streams in the kernel", entries.containers, entries.stdio)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pods, most, cut, lines, took, before, highest, after } = self;
        let rate = *pods as f64 / took.as_secs_f64();
        writeln!(f, "Pods                            {pods} in {} s, {rate:.2} a second", took.as_secs())?;
        writeln!(f, "most at the same time           {most}")?;
        if let Some(CutReport { pods, beyond, gaps }) = cut {
            writeln!(f, "deleted before their last line  {pods}")?;
            writeln!(f, "bytes that only the agent has   {beyond}")?;
            writeln!(f, "gaps of the ring, filled        {gaps}")?;
        }
        writeln!(f, "lines, each once, with labels   {lines}")?;
        writeln!(f, "the agent before                {before}")?;
        writeln!(f, "the agent with them             {highest}")?;
        after.map_or(Ok(()), |after| writeln!(f, "the agent after                 {after}"))
    }
}
