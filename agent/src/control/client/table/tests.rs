use std::time::SystemTime;

use super::*;
use crate::telemetry::{Observe, testing};

fn rendered(report: &StatusReport) -> String {
    let mut out = Vec::new();
    render(report, false, Screen::default(), &mut out);
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn shows_streams_and_the_ledger_of_each_container() {
    let agent = testing::agent();
    let mut report = StatusReport::of(&agent.snapshot(), agent.streams(), agent.roots());
    report.agent.kernel = "6.12.0".to_owned();
    let text = rendered(&report);
    let expected = [
        "sidestep 0.1.0 on Linux 6.12.0, up 1h: ready",
        "",
        "CONTAINER          ID            PRODUCED  DELIVERED  LINES  PENDING  DROPPED  LEDGER",
        "shop/web-7d9f/web  c0ffee012345  1000 B      850 B      9     50 B    100 B  balanced",
    ];
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("sidestep ") && lines[0].ends_with("on Linux 6.12.0, up 1h: ready"), "{text}");
    assert_eq!(lines[1..3], expected[1..3]);
    // The width of a number depends on its unit, so the fields are compared without their padding.
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[3]), words(expected[3]), "{text}");
    let details = [
        "  business /var/log/shop/orders.log: 1000 B seen, 50 B pending",
        "  pod stdout: 1000 B seen, 50 B pending",
        "  dropped at capture, quota: 100 B (100 B)",
    ];
    assert_eq!(lines[4..7], details);
    assert!(lines[7].starts_with("(node)"), "{text}");
    for part in [
        "12.1 KiB of 64.0 MiB filled",
        "3 gaps filled, 4.0 KiB",
        "12 containers, 30 cgroups",
        "api      30 Pods known; pods live\n",
        "policies 2 in force, 0 refused, 0 in conflict here; this agent writes their status\n",
        "works",
        "SINK   TYPE   LAG  BEHIND  BUFFERED  LINES/S  BYTES/S  DELIVERED  ERRORS  STATE",
        "acknowledged up to 20",
        "100 records in all; 8.0 KiB queued",
        "buffer: 1.0 MiB of 1.0 GiB, 70 records, the oldest file is of 3s ago",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn what_was_saved_by_a_clock_that_has_been_set_back_since_is_not_older_than_now() {
    let mut snapshot = testing::snapshot();
    let kubernetes = snapshot.kubernetes.as_mut().expect("it is asked");
    kubernetes.watches[0].freshness = Freshness::Never;
    kubernetes.watches[0].saved = Some(SystemTime::now() + Duration::from_hours(1));
    let text = rendered(&StatusReport::of(&snapshot, Vec::new(), Vec::new()));
    assert!(text.contains("; pods never, as saved 0s ago"), "{text}");
}

#[test]
fn shows_what_is_wrong() {
    let mut snapshot = testing::snapshot();
    snapshot.accounts[1].balance.produced += 7;
    snapshot.probes[0].health = Health::Failed;
    snapshot.probes[0].reason = "EPERM\u{1b}[2J".to_owned();
    snapshot.sinks[0].failing_for = Some(Duration::from_secs(90));
    snapshot.sinks[0].last_error = Some("disk full".to_owned());
    snapshot.sinks[0].last_error_at = Some(UNIX_EPOCH + Duration::from_secs(86_400));
    snapshot.sinks[0].lag = Duration::from_secs(200);
    let kubernetes = snapshot.kubernetes.as_mut().expect("it is asked");
    kubernetes.watches[0].freshness = Freshness::Never;
    kubernetes.watches[0].error = Some("refused\u{1b}".to_owned());
    kubernetes.watches[0].saved = Some(UNIX_EPOCH);
    kubernetes.policies[0].refused = 1;
    let text = rendered(&StatusReport::of(&snapshot, Vec::new(), Vec::new()));
    for part in [
        "not ready",
        "off by 7 B",
        "EPERM\\x1b[2J",
        "failing for 1m 30s",
        "last error at 1970-01-02T00:00:00Z: disk full",
        "dropped, buffer_full: 7 records (700 B)",
        "3m 20s",
        "; pods never, as saved ",
        "ago: refused\\x1b",
        "policies 2 in force, 1 refused, 0",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains('\u{1b}'));
}
