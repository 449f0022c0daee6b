//! What a reload takes over.

use super::config;
use crate::config::{LogFormat, LogLevel, Part};

#[test]
fn changes_are_named_and_only_those_in_place_are_taken_over() {
    let old = config("");
    assert!(old.diff(&old).is_empty());
    assert_eq!(old.diff(&old).to_string(), "nothing changed");
    let new = config("socket: /s\nlog: {level: debug, format: json}\ncapture: {ring_size: 1MiB, terminals: false}");
    let changes = old.diff(&new);
    assert_eq!(
        changes.to_string(),
        "changed: capture.terminals, log.level; after a restart: socket, capture.ring_size, log.format"
    );
    assert!(changes.contains(Part::RingSize) && !changes.contains(Part::Sinks));
    let next = old.with_in_place_changes(&new);
    assert_eq!((next.log.level, next.log.format), (LogLevel::Debug, LogFormat::Text));
    assert_eq!((next.capture.ring_size, next.capture.terminals), (old.capture.ring_size, false));
    assert_eq!(next.diff(&new).in_place().count(), 0);
}

#[test]
fn every_part_is_seen_and_copied() {
    let old = config("");
    let texts = [
        (Part::NodeName, "node_name: other"),
        (Part::StateDir, "state_dir: /other"),
        (Part::Socket, "socket: /other"),
        (Part::ShutdownTimeout, "shutdown_timeout: 1s"),
        (Part::CgroupRoots, "capture: {cgroup_roots: [/other]}"),
        (Part::CgroupMount, "capture: {cgroup_mount: /other}"),
        (Part::RingSize, "capture: {ring_size: 1MiB}"),
        (Part::ContainerShare, "capture: {container_share: 1%}"),
        (Part::Attach, "capture: {attach: fexit}"),
        (Part::Pin, "capture: {pin: null}"),
        (Part::WhenStopped, "capture: {when_stopped: unload}"),
        (Part::RuntimeLogs, "capture: {runtime_logs: false}"),
        (Part::Terminals, "capture: {terminals: false}"),
        (Part::Files, "capture: {files: {start_at: beginning}}"),
        (Part::Rules, "capture: {rules: [{match: {pod: [x]}}]}"),
        (Part::Server, "server: {poll_interval: 2s}"),
        (Part::Lines, "lines: {idle_flush: 1s}"),
        (Part::Identity, "identity: {live_cgroups: 1}"),
        (Part::Kubernetes, "kubernetes: {wait: 1s}"),
        (Part::Policies, "policies: {annotations: false}"),
        (Part::Processors, "processors: [{type: sample}]"),
        (Part::Sinks, "sinks: [{type: console, name: other}]"),
        (Part::TelemetryListen, "telemetry: {listen: null}"),
        (Part::SinkFailingLimit, "telemetry: {sink_failing_limit: 2m}"),
        (Part::LogLevel, "log: {level: warn}"),
        (Part::LogFormat, "log: {format: json}"),
    ];
    assert_eq!(texts.map(|(part, _)| part), Part::ALL);
    for (part, text) in texts {
        let new = config(text);
        assert_ne!(new, old, "{part:?}");
        assert_eq!(old.diff(&new).to_string().contains("restart"), !part.changes_in_place(), "{part:?}");
        assert!(old.diff(&new).contains(part), "{part:?}");
        let next = old.with_in_place_changes(&new);
        assert_eq!(next == new, part.changes_in_place(), "{part:?}");
    }
}
