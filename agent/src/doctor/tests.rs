//! Judgements by replay of what systems say.

use std::path::Path;

use super::*;
use crate::load::{AttachPoint, LoadError, Probe};

fn health_of(findings: &[Finding], check: &str) -> Health {
    findings.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("no check {check}")).health
}

/// `/proc/self/status` with these capabilities in force.
fn status(effective: u64) -> String {
    format!("Name:\tsidestep\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective:016x}\nCapBnd:\t000001ffffffffff\n")
}

#[test]
fn root_has_every_capability() {
    let findings = privileges::judge_capabilities(&status(0x1ff_ffff_ffff), false);
    assert!(findings.iter().all(|finding| finding.health == Health::Healthy), "{findings:?}");
    assert_eq!(findings.len(), 7);
}

#[test]
fn nobody_is_told_what_fails_and_what_is_degraded() {
    let findings = privileges::judge_capabilities(&status(0), false);
    assert_eq!(health_of(&findings, "CAP_BPF"), Health::Failed);
    assert_eq!(health_of(&findings, "CAP_PERFMON"), Health::Failed);
    assert_eq!(health_of(&findings, "CAP_SYS_PTRACE"), Health::Degraded);
    assert!(findings.iter().all(|finding| finding.advice.contains("securityContext")), "{findings:?}");
    assert!(!can_run(&findings));
}

#[test]
fn system_administration_stands_for_bpf() {
    let findings = privileges::judge_capabilities(&status(1 << 21), false);
    assert_eq!(health_of(&findings, "CAP_BPF"), Health::Healthy);
    assert_eq!(health_of(&findings, "CAP_SYS_ADMIN"), Health::Healthy);
    assert_eq!(health_of(&findings, "CAP_DAC_READ_SEARCH"), Health::Degraded);
    assert!(can_run(&findings));
}

#[test]
fn a_status_without_capabilities_is_no_proof() {
    for text in ["", "Name:\tx\n", "CapEff:\tmany\n"] {
        assert_eq!(privileges::judge_capabilities(text, true)[0].health, Health::Degraded, "{text:?}");
    }
}

#[test]
fn releases_are_compared_as_numbers() {
    for release in ["5.17.0", "6.1.0-56-cloud-amd64", "6.12.117+deb12-cloud-amd64", "10.0"] {
        assert_eq!(kernel::judge_release(release).health, Health::Healthy, "{release}");
    }
    for release in ["5.15.0-91-generic", "5.4.0", "4.18.0-553.el8.x86_64", "3.10.0"] {
        let finding = kernel::judge_release(release);
        assert_eq!(finding.health, Health::Degraded, "{release}");
        assert!(finding.advice.starts_with("older than 5.17"), "{finding:?}");
    }
    assert_eq!(kernel::judge_release("").health, Health::Degraded);
}

const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
24 22 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:2 - sysfs sysfs rw
30 24 0:27 / /sys/fs/bpf rw,nosuid,nodev,noexec,relatime shared:9 - bpf bpf rw,mode=700
31 24 0:13 / /sys/kernel/tracing rw,nosuid shared:13 - tracefs tracefs rw
";

#[test]
fn mounts_are_judged_where_the_agent_looks() {
    assert_eq!(mounts::judge_tracefs(MOUNTS).found, "mounted at /sys/kernel/tracing");
    assert_eq!(mounts::judge_bpffs(MOUNTS).found, "mounted at /sys/fs/bpf");
    // What is mounted elsewhere, as below the node's root directory in a Pod, is of no use.
    let elsewhere = MOUNTS.replace(" /sys/", " /host/sys/");
    let without = mounts::judge_tracefs(&elsewhere);
    assert_eq!(without.health, Health::Degraded);
    assert!(without.advice.contains("mount -t tracefs"), "{without:?}");
    let without = mounts::judge_bpffs(&elsewhere);
    assert_eq!(without.health, Health::Degraded);
    assert!(without.advice.contains("mount -t bpf"), "{without:?}");
    let read_only = mounts::judge_bpffs(&MOUNTS.replace("/sys/fs/bpf rw,", "/sys/fs/bpf ro,"));
    assert_eq!(read_only.found, "mounted at /sys/fs/bpf, read-only");
    // A later mount hides an earlier one.
    let hidden = format!("{MOUNTS}40 24 0:50 / /sys/fs/bpf rw - tmpfs tmpfs rw\n");
    assert!(mounts::judge_bpffs(&hidden).found.starts_with("not mounted"));
}

#[test]
fn the_root_directory_of_the_node_is_that_of_its_first_process() {
    let judge = |is_directory, found, node| mounts::judge_host(Path::new("/host"), is_directory, found, node);
    assert_eq!(judge(true, Some((1, 2)), Some((1, 2))).found, "/host is the node's");
    assert_eq!(judge(true, Some((1, 2)), None).health, Health::Healthy);
    let finding = judge(true, Some((9, 2)), Some((1, 2)));
    assert_eq!(finding.health, Health::Degraded);
    assert!(finding.advice.contains("hostPath"), "{finding:?}");
    let finding = judge(false, None, Some((1, 2)));
    assert_eq!(finding.health, Health::Failed);
    assert!(finding.found.contains("/host is no directory"), "{finding:?}");
}

#[test]
fn system_administration_is_for_mounting() {
    let least = 1 << 39 | 1 << 38 | 1 << 19 | 1 << 2 | 1 << 23 | 1 << 12;
    let findings = privileges::judge_capabilities(&status(least), true);
    assert!(findings.iter().all(|finding| finding.health == Health::Healthy), "{findings:?}");
    let findings = privileges::judge_capabilities(&status(least), false);
    assert_eq!(health_of(&findings, "CAP_SYS_ADMIN"), Health::Degraded);
}

#[test]
fn a_profile_of_apparmor_is_told() {
    assert_eq!(privileges::judge_confinement("unconfined\n").health, Health::Healthy);
    let finding = privileges::judge_confinement("cri-containerd.apparmor.d (enforce)\n");
    assert_eq!(finding.health, Health::Degraded);
    assert!(finding.found.contains("cri-containerd.apparmor.d"), "{finding:?}");
}

/// What the chart gives by default, and what the documents say, is what the doctor asks for.
#[test]
fn chart_unit_and_documents_have_the_same_capabilities() {
    #[derive(serde::Deserialize)]
    struct Values {
        security: Security,
    }
    #[derive(serde::Deserialize)]
    struct Security {
        capabilities: Vec<String>,
    }
    let values: Values =
        serde_saphyr::from_str(include_str!("../../../deploy/helm/sidestep/values.yaml")).expect("values");
    let given: std::collections::BTreeSet<_> =
        values.security.capabilities.iter().map(|name| format!("CAP_{name}")).collect();
    let findings = privileges::judge_capabilities(&status(0), false);
    let asked: std::collections::BTreeSet<_> = findings.iter().map(|finding| finding.check.clone()).collect();
    let beside: Vec<_> = asked.difference(&given).map(String::as_str).collect();
    assert_eq!(beside, ["CAP_SYS_ADMIN"], "the chart gives {given:?}");
    assert!(given.is_subset(&asked), "{given:?}");
    let unit = include_str!("../../../deploy/sidestep.service");
    let bounding = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a bounding set");
    let document = include_str!("../../docs/kubernetes/deploy.md");
    for name in &asked {
        assert!(bounding.split(' ').any(|word| word == name), "{name} is not in the unit");
        assert!(document.contains(&format!("| `{name}`")), "{name} is not in deploy.md");
    }
}

#[test]
fn lockdown_is_the_word_in_brackets() {
    assert_eq!(kernel::judge_lockdown(Some("[none] integrity confidentiality\n"), "").found, "none");
    assert_eq!(kernel::judge_lockdown(Some("none [integrity] confidentiality\n"), "").health, Health::Healthy);
    assert_eq!(kernel::judge_lockdown(Some("none integrity [confidentiality]\n"), "").health, Health::Failed);
    let mounted = format!("{MOUNTS}32 24 0:7 / /sys/kernel/security rw - securityfs securityfs rw\n");
    assert_eq!(kernel::judge_lockdown(None, &mounted).health, Health::Healthy);
    let unknown = kernel::judge_lockdown(None, MOUNTS);
    assert_eq!(unknown.health, Health::Degraded);
    assert!(unknown.found.starts_with("unknown"), "{unknown:?}");
}

#[test]
fn another_pid_namespace_is_told() {
    assert_eq!(privileges::judge_pid_namespace(Some("pid:[4026531836]")).health, Health::Healthy);
    let finding = privileges::judge_pid_namespace(Some("pid:[4026532412]"));
    assert_eq!(finding.health, Health::Degraded);
    assert!(finding.advice.contains("hostPID: true"), "{finding:?}");
}

#[test]
fn locked_memory_is_read_from_the_limits() {
    let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                  Max locked memory         8388608              8388608              bytes     \n";
    assert!(privileges::judge_memlock(limits).found.starts_with("8388608;"));
    assert!(privileges::judge_memlock("").found.starts_with("unknown;"));
}

#[test]
fn a_probe_at_a_lesser_point_says_what_it_costs() {
    let probe =
        |health, attached| Probe { name: "write", attached, health, reason: "fexit: EPERM".to_owned(), required: true };
    let finding = probes::judge(&probe(Health::Degraded, Some(AttachPoint::Tracepoint)));
    assert_eq!((finding.health, finding.found.as_str()), (Health::Degraded, "tracepoint (fexit: EPERM)"));
    assert!(finding.advice.contains("about 70 ns"), "{finding:?}");
    let finding = probes::judge(&probe(Health::Degraded, Some(AttachPoint::RawTracepoint)));
    assert!(finding.advice.contains("more than tracepoints cost"), "{finding:?}");
    let finding = probes::judge(&probe(Health::Unsupported, None));
    assert_eq!(finding.found, "not attached: fexit: EPERM");
    let error = LoadError::Probe { name: "write".to_owned(), reason: "refused".to_owned() };
    assert_eq!(probes::judge_error(&error).health, Health::Failed);
}

#[test]
fn text_has_a_line_for_each_finding_and_a_conclusion() {
    let mut findings = vec![
        Finding::healthy("kernel", "release", "Linux 6.1"),
        Finding::degraded("node", "runtimes", "none", "mount them"),
    ];
    let shown = text(&findings, crate::control::Screen::default());
    assert_eq!(
        shown,
        "kernel\n  ok        release   Linux 6.1\nnode\n  degraded  runtimes  none\n                      -> mount them\n\n\
         The agent can run; 1 of 2 checks say `degraded`.\n"
    );
    findings.push(Finding::failed("node", "config", "line 1\n\x1b[2J", "repair it"));
    let shown = text(&findings, crate::control::Screen::default());
    assert!(shown.contains("FAILED    config    line 1\n                      \\x1b[2J\n"), "{shown}");
    assert!(shown.ends_with("\nThe agent cannot run: 1 failed.\n"), "{shown}");
}

#[test]
fn findings_that_say_the_same_share_a_line() {
    let refused = |check| Finding::degraded("probe", check, "tracepoint (fexit: EPERM)", "take another kernel");
    let findings = [
        Finding::healthy("kernel", "ring_buffer", "available"),
        Finding::healthy("kernel", "bpf_loop", "available"),
        refused("write"),
        Finding::healthy("probe", "open", "tracepoint"),
        refused("writev"),
        refused("pwrite64"),
        refused("pwritev"),
    ];
    let shown = text(&findings, crate::control::Screen::default());
    assert_eq!(
        shown,
        "kernel\n  ok        ring_buffer, bpf_loop  available\nprobe\n  degraded  write, writev, pwrite64, pwritev\n\
         \x20                                  tracepoint (fexit: EPERM)\n\
         \x20                                  -> take another kernel\n  ok        open                   tracepoint\n\n\
         The agent can run; 4 of 7 checks say `degraded`.\n"
    );
}

#[test]
fn json_has_the_words_of_the_metrics() {
    let parsed: serde_json::Value =
        serde_json::from_str(&json(&[Finding::failed("kernel", "btf", "none", "boot another")])).expect("JSON");
    assert_eq!(
        parsed,
        serde_json::json!([{
            "area": "kernel", "check": "btf", "health": "failed", "found": "none", "advice": "boot another"
        }])
    );
}
