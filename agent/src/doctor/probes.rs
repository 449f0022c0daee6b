//! Each probe, really loaded and attached, with no governed root: nothing is captured, and all is taken back at once.

use super::Finding;
use crate::{
    config::{Attach, Capture},
    load::{AttachPoint, Health, Kernel, LoadError, Probe, Settings},
};

const AREA: &str = "probe";

/// The ring is never written to, and has the smallest size that every page size allows.
const RING_SIZE: u32 = 1 << 16;

pub(super) fn examine(capture: &Capture) -> Vec<Finding> {
    let attach = match capture.attach {
        Attach::Auto => None,
        Attach::Fexit => Some(AttachPoint::Fexit),
        Attach::Tracepoint => Some(AttachPoint::Tracepoint),
        Attach::RawTracepoint => Some(AttachPoint::RawTracepoint),
    };
    let settings = Settings {
        roots: Vec::new(),
        cgroup_mount: capture.cgroup_mount.clone(),
        ring_size: RING_SIZE,
        container_share: RING_SIZE / 2,
        attach,
        exempts_node: false,
        pins: None,
    };
    match Kernel::load(&settings) {
        Ok(kernel) => kernel.programs.probes.iter().map(judge).collect(),
        Err(error) => vec![judge_error(&error)],
    }
}

pub(super) fn judge(probe: &Probe) -> Finding {
    let point = probe.attached.map_or("not attached", AttachPoint::as_str);
    let (found, advice) = match (probe.health, probe.attached) {
        (Health::Healthy, _) => (point.to_owned(), String::new()),
        (Health::Degraded, Some(used)) => {
            let cost = match used {
                AttachPoint::RawTracepoint => "every system call of the node costs more, more than tracepoints cost",
                _ => {
                    "every system call of the node costs about 70 ns more, and a write by a process that is not \
                     captured 100 to 600 ns"
                }
            };
            (
                format!("{point} ({})", probe.reason),
                format!("it captures all, but {cost}; a kernel with fexit does better"),
            )
        }
        _ => (format!("{point}: {}", probe.reason), String::new()),
    };
    Finding { area: AREA, check: probe.name.to_owned(), health: probe.health, found, advice }
}

pub(super) fn judge_error(error: &LoadError) -> Finding {
    let (check, found) = match error {
        LoadError::Probe { name, reason } => (name.as_str(), reason.clone()),
        other => ("programs", other.to_string()),
    };
    let advice = "the agent can't run; see what fails above: capabilities, lockdown, an old kernel. Where nothing else \
                  fails, `capture.attach` may name another point";
    Finding::failed(AREA, check, found, advice)
}
