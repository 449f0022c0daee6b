//! A processor's figures, for metrics.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::ledger::Reason;

/// The reasons for which processors drop lines.
const REASONS: [Reason; 3] = [Reason::Filtered, Reason::Sampled, Reason::Suppressed];

/// One reading of a processor's figures.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProcessorStats {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Lines that it has dropped, by reason; only reasons that it has.
    pub dropped_lines: Vec<(Reason, u64)>,
    /// Matches that it has redacted, in bodies and in attributes.
    pub redactions: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    dropped_lines: [AtomicU64; REASONS.len()],
    redactions: AtomicU64,
}

impl Counters {
    pub(super) fn note_dropped(&self, reason: Reason, lines: u64) {
        if lines > 0
            && let Some(index) = REASONS.iter().position(|other| *other == reason)
        {
            self.dropped_lines[index].fetch_add(lines, Relaxed);
        }
    }

    pub(super) fn note_redactions(&self, count: u64) {
        if count > 0 {
            self.redactions.fetch_add(count, Relaxed);
        }
    }

    pub(super) fn snapshot(&self, name: &Arc<str>) -> ProcessorStats {
        let dropped = REASONS.iter().zip(&self.dropped_lines).map(|(reason, lines)| (*reason, lines.load(Relaxed)));
        ProcessorStats {
            name: Arc::clone(name),
            dropped_lines: dropped.filter(|(_, lines)| *lines > 0).collect(),
            redactions: self.redactions.load(Relaxed),
        }
    }
}
