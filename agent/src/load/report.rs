//! What the agent's log says about probes and governed cgroups at the start: a summary, and what is not as it should be.

use super::{Health, Kernel, Pinned, Probe, Roots, pins::Origin};

/// How many probes are in each state, such as `17 probes: 12 healthy, 5 degraded`.
#[must_use]
pub fn summary(states: impl IntoIterator<Item = Health>) -> String {
    let mut counts = Health::ALL.map(|health| (health, 0));
    let mut total = 0;
    for state in states {
        total += 1;
        counts.iter_mut().filter(|(health, _)| *health == state).for_each(|(_, count)| *count += 1);
    }
    let parts =
        counts.iter().filter(|(_, count)| *count > 0).map(|(health, count)| format!("{count} {}", health.as_str()));
    format!("{total} probes: {}", parts.collect::<Vec<_>>().join(", "))
}

/// Logs what is attached, and where.
pub fn log(kernel: &Kernel) {
    if let Some(pinned) = &kernel.programs.pinned {
        pins(pinned);
    }
    roots(&kernel.roots);
    probes(&kernel.programs.probes);
}

/// Logs how the agent came to its programs.
fn pins(pinned: &Pinned) {
    let (directory, generation) = (pinned.directory().display(), pinned.generation());
    match pinned.origin {
        Origin::New => tracing::info!(%directory, generation, "programs and maps are pinned"),
        Origin::TakenOver => tracing::info!(
            %directory,
            generation,
            version = pinned.version,
            "took over the programs and maps that an agent before has pinned; what they have collected since is drained first"
        ),
        Origin::Replaced => tracing::info!(
            %directory,
            generation,
            "this agent's programs have replaced those that an agent before has pinned"
        ),
    }
}

/// Logs the probes: one line for all, and one for each cause of a lesser state.
fn probes(probes: &[Probe]) {
    for probe in probes {
        let attached = probe.attached.map_or("none", super::AttachPoint::as_str);
        tracing::debug!(probe = probe.name, attached, health = probe.health.as_str(), "probe");
    }
    tracing::info!("{}", summary(probes.iter().map(|probe| probe.health)));
    for line in lesser(probes) {
        tracing::warn!("{line}");
    }
}

/// A line for each cause of a lesser state, with all probes that it concerns.
fn lesser(probes: &[Probe]) -> Vec<String> {
    let mut causes: Vec<(&Probe, Vec<&str>)> = Vec::new();
    for probe in probes.iter().filter(|probe| probe.health != Health::Healthy) {
        let is_same = |other: &Probe| {
            (other.health, other.attached, &other.reason) == (probe.health, probe.attached, &probe.reason)
        };
        match causes.iter_mut().find(|(first, _)| is_same(first)) {
            Some((_, names)) => names.push(probe.name),
            None => causes.push((probe, vec![probe.name])),
        }
    }
    let line = |(probe, names): (&Probe, Vec<&str>)| {
        let attached = probe.attached.map_or_else(|| "not attached".to_owned(), |point| format!("attached by {point}"));
        let plural = if names.len() == 1 { "probe" } else { "probes" };
        format!("{} {plural} {}, {attached}: {}", probe.health.as_str(), names.join(", "), probe.reason)
    };
    causes.into_iter().map(line).collect()
}

/// Logs which cgroups are governed, and warns when none is there.
fn roots(roots: &Roots) {
    let (present, absent) = roots.present_and_absent();
    if present.is_empty() {
        tracing::warn!(
            mount = %roots.mount.display(),
            "no governed cgroup is there, so nothing is captured until one of them is made: {}; see \
             `capture.cgroup_roots`",
            list(&absent)
        );
    } else {
        let mount = roots.mount.display();
        let absent = if absent.is_empty() { String::new() } else { format!("; not there now: {}", list(&absent)) };
        tracing::info!(%mount, "governed cgroups: {}{absent}", list(&present));
    }
}

/// Names for a line of the log.
pub(super) fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::AttachPoint;

    #[test]
    fn probes_of_one_cause_share_a_line() {
        let probe = |name, attached, health, reason: &str| Probe {
            name,
            attached,
            health,
            reason: reason.to_owned(),
            required: true,
        };
        let tracepoint = Some(AttachPoint::Tracepoint);
        let probes = [
            probe("exec", Some(AttachPoint::RawTracepoint), Health::Healthy, ""),
            probe("write", tracepoint, Health::Degraded, "fexit: EPERM"),
            probe("tee", None, Health::Unsupported, "no such point"),
            probe("writev", tracepoint, Health::Degraded, "fexit: EPERM"),
        ];
        assert_eq!(summary(probes.iter().map(|probe| probe.health)), "4 probes: 1 healthy, 2 degraded, 1 unsupported");
        assert_eq!(
            lesser(&probes),
            [
                "degraded probes write, writev, attached by tracepoint: fexit: EPERM",
                "unsupported probe tee, not attached: no such point",
            ]
        );
    }
}
