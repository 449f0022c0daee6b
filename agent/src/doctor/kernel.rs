//! The kernel: its release, its types, and what the programs call.

use std::{fs, path::Path};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{is_map_supported, is_program_supported},
};

use super::Finding;
use crate::load::layout;

const AREA: &str = "kernel";

/// The oldest release with everything that the programs call: `bpf_loop` came last.
const OLDEST: (u32, u32) = (5, 17);

pub(super) fn examine() -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").ok();
    let unprivileged = fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").ok();
    let mut findings = vec![judge_release(release.trim()), btf()];
    findings.extend(features());
    findings.push(judge_lockdown(lockdown.as_deref(), &mounts));
    findings.push(judge_unprivileged(unprivileged.as_deref().map(str::trim)));
    findings
}

pub(super) fn judge_release(release: &str) -> Finding {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    let found = format!("Linux {release} ({})", std::env::consts::ARCH);
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST => Finding::healthy(AREA, "release", found),
        (Some(_), Some(_)) => {
            let advice = format!(
                "older than {}.{}: what counts is not the number but the features below, which distributions also \
                 bring to older kernels; where one is missing, install a newer kernel",
                OLDEST.0, OLDEST.1
            );
            Finding::degraded(AREA, "release", found, advice)
        }
        _ => Finding::degraded(AREA, "release", format!("unknown ({release:?})"), "is /proc mounted?"),
    }
}

fn btf() -> Finding {
    match layout::kernel_layout(Path::new(layout::BTF_PATH)) {
        Ok(_) => Finding::healthy(AREA, "btf", format!("{} has every member that is needed", layout::BTF_PATH)),
        Err(error) => {
            let advice = "nothing can be captured; boot a kernel with CONFIG_DEBUG_INFO_BTF=y, such as that of any \
                          large distribution since Linux 5.15";
            Finding::failed(AREA, "btf", error.to_string(), advice)
        }
    }
}

/// What the programs are made of. Whether each of them is accepted shows at the probes.
fn features() -> Vec<Finding> {
    let denied = "the kernel does not tell without CAP_BPF; see `privileges` below";
    let judge = |check: &str, supported: Option<bool>, advice: &str| match supported {
        Some(true) => Finding::healthy(AREA, check, "available"),
        Some(false) => Finding::failed(AREA, check, "not available", advice),
        None => Finding::degraded(AREA, check, "unknown", denied),
    };
    let ring = is_map_supported(MapType::RingBuf).ok();
    let raw = is_program_supported(ProgramType::RawTracePoint).ok();
    vec![
        judge("ring_buffer", ring, "nothing can be captured; Linux 5.8 or later has it"),
        judge("raw_tracepoint", raw, "nothing can be captured; boot a kernel with CONFIG_BPF_EVENTS=y"),
        judge("bpf_loop", bpf_loop(), "long writes and paths can't be walked; Linux 5.17 or later has it"),
    ]
}

/// Whether the helper exists: the kernel lists its helpers in an enumeration, whose names BTF keeps.
fn bpf_loop() -> Option<bool> {
    let btf = fs::read(layout::BTF_PATH).ok()?;
    Some(memchr::memmem::find(&btf, b"\0BPF_FUNC_loop\0").is_some())
}

pub(super) fn judge_lockdown(text: Option<&str>, mounts: &str) -> Finding {
    let mode = text.and_then(|text| text.split_once('[')).and_then(|(_, rest)| rest.split_once(']'));
    match mode {
        None if mounts.lines().any(|line| line.contains(" - securityfs ")) => {
            Finding::healthy(AREA, "lockdown", "not part of this kernel")
        }
        None => {
            let advice = "nothing is to be done where the probes below are attached; else `mount -t securityfs none \
                          /sys/kernel/security` shows whether lockdown is the reason";
            Finding::degraded(AREA, "lockdown", "unknown: securityfs is not mounted", advice)
        }
        Some(("confidentiality", _)) => {
            let advice = "the kernel refuses programs that read its memory, so nothing can be captured; boot with \
                          lockdown=integrity, or without lockdown";
            Finding::failed(AREA, "lockdown", "confidentiality", advice)
        }
        Some((mode, _)) => Finding::healthy(AREA, "lockdown", mode),
    }
}

pub(super) fn judge_unprivileged(value: Option<&str>) -> Finding {
    let found = match value {
        Some("0") => "users without privileges may load BPF programs; the agent does not need that",
        Some(_) => "only privileged processes may load BPF programs, as it should be",
        None => "the kernel does not say",
    };
    Finding::healthy(AREA, "unprivileged_bpf", found)
}
