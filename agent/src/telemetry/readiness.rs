//! Whether the agent does its work, and if not, why.

use std::time::Duration;

use super::snapshot::Snapshot;

/// The answer of `/readyz`.
#[derive(Debug, Eq, PartialEq, serde::Serialize)]
pub struct Readiness {
    /// Whether logs are captured and leave the node.
    pub ready: bool,
    /// What stands in the way, one sentence each; empty when ready.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// Judges a snapshot: every required probe is attached, and no sink has been failing for longer than `limit`.
    #[must_use]
    pub fn of(snapshot: &Snapshot, limit: Duration) -> Self {
        let mut reasons = Vec::new();
        if !snapshot.probes.iter().any(|probe| probe.required) {
            reasons.push("capture is not attached yet".to_owned());
        }
        for probe in snapshot.probes.iter().filter(|probe| probe.required && !probe.health.is_attached()) {
            reasons.push(format!("probe {} is {}: {}", probe.name, probe.health.as_str(), probe.reason));
        }
        for sink in &snapshot.sinks {
            if let Some(failing) = sink.failing_for.filter(|failing| *failing > limit) {
                let error = sink.last_error.as_deref().unwrap_or("unknown error");
                reasons.push(format!("sink {} has been failing for {} s: {error}", sink.name, failing.as_secs()));
            }
        }
        Self { ready: reasons.is_empty(), reasons }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{snapshot::Health, testing};

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn ready_with_a_degraded_probe_and_a_sink_that_has_just_failed() {
        let mut snapshot = testing::snapshot();
        snapshot.probes[0].health = Health::Degraded;
        snapshot.sinks[0].failing_for = Some(LIMIT);
        assert_eq!(Readiness::of(&snapshot, LIMIT), Readiness { ready: true, reasons: Vec::new() });
    }

    #[test]
    fn names_every_reason() {
        let mut snapshot = testing::snapshot();
        snapshot.probes[0].health = Health::Failed;
        snapshot.probes[0].reason = "permission denied".to_owned();
        snapshot.sinks[0].failing_for = Some(LIMIT + Duration::from_secs(1));
        snapshot.sinks[0].last_error = Some("no space left on device".to_owned());
        let readiness = Readiness::of(&snapshot, LIMIT);
        assert!(!readiness.ready);
        let expected = [
            "probe write is failed: permission denied",
            "sink files has been failing for 61 s: no space left on device",
        ];
        assert_eq!(readiness.reasons, expected);
    }

    #[test]
    fn not_ready_before_anything_is_attached() {
        let mut snapshot = testing::snapshot();
        snapshot.probes.clear();
        assert_eq!(Readiness::of(&snapshot, LIMIT).reasons, ["capture is not attached yet"]);
    }
}
