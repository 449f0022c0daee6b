//! The status as tables for people.

use std::{
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use bytesize::ByteSize;

use super::terminal::{Screen, escaped_word};
use crate::{
    control::status::{
        BufferStatus, ContainerStatus, PolicyStatus, RootStatus, SinkDroppedStatus, SinkStatus, StatusReport,
    },
    kubernetes::health::Freshness,
    load::report::summary,
    telemetry::snapshot::Health,
};

pub(super) const PLAIN: &str = "0";
const HEADING: &str = "1";
pub(super) const FAINT: &str = "2";
pub(super) const GOOD: &str = "32";
pub(super) const WARNING: &str = "33";
pub(super) const BAD: &str = "1;31";

/// Appends the whole report; of the probes a summary, or with `probes` a line each.
pub(super) fn render(report: &StatusReport, probes: bool, screen: Screen, out: &mut Vec<u8>) {
    agent(report, screen, out);
    out.push(b'\n');
    containers(report, screen, out);
    out.push(b'\n');
    capture(report, probes, screen, out);
    out.push(b'\n');
    sinks(report, screen, out);
}

/// A text and its style.
pub(super) struct Cell(pub(super) String, pub(super) &'static str);

impl Cell {
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self(text.into(), PLAIN)
    }
}

/// A line of a table, and the lines below it that explain it.
pub(super) struct Row {
    pub(super) cells: Vec<Cell>,
    pub(super) details: Vec<Cell>,
}

/// Appends a table whose columns are as wide as their widest cell. Headings that begin with `>` stand to the right.
pub(super) fn append_table(headings: &[&str], rows: &[Row], screen: Screen, out: &mut Vec<u8>) {
    let heading_cells: Vec<_> =
        headings.iter().map(|heading| Cell(heading.trim_start_matches('>').to_owned(), HEADING)).collect();
    let width_of = |index: usize| {
        let cells = rows.iter().map(|row| &row.cells).chain(std::iter::once(&heading_cells));
        cells.filter_map(|cells| cells.get(index)).map(|cell| cell.0.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width_of).collect();
    let append_line = |cells: &[Cell], out: &mut Vec<u8>| {
        for (index, Cell(text, style)) in cells.iter().enumerate() {
            if cells[index..].iter().all(|cell| cell.0.is_empty()) {
                break;
            }
            let padding = " ".repeat(widths[index].saturating_sub(text.chars().count()));
            out.extend_from_slice(if index > 0 { b"  " } else { b"" });
            if headings[index].starts_with('>') {
                out.extend_from_slice(padding.as_bytes());
                paint(text, style, screen, out);
            } else {
                paint(text, style, screen, out);
                // Nothing follows, so there is no padding.
                let is_last = cells[index + 1..].iter().all(|cell| cell.0.is_empty());
                out.extend_from_slice(if is_last { b"" } else { padding.as_bytes() });
            }
        }
        out.push(b'\n');
    };
    append_line(&heading_cells, out);
    for row in rows {
        append_line(&row.cells, out);
        for Cell(text, style) in &row.details {
            out.extend_from_slice(b"  ");
            paint(text, style, screen, out);
            out.push(b'\n');
        }
    }
}

fn paint(text: &str, style: &str, screen: Screen, out: &mut Vec<u8>) {
    if style == PLAIN || text.is_empty() {
        out.extend_from_slice(text.as_bytes());
    } else {
        screen.paint(out, style, text);
    }
}

fn agent(report: &StatusReport, screen: Screen, out: &mut Vec<u8>) {
    let agent = &report.agent;
    let commit = agent.commit.as_deref().map_or_else(String::new, |commit| format!(" ({commit})"));
    let uptime = humantime::format_duration(Duration::from_secs(agent.uptime_seconds));
    let line = format!("sidestep {}{commit} on Linux {}, up {uptime}: ", agent.version, agent.kernel);
    paint(&escaped_word(&line), PLAIN, screen, out);
    let (word, style) = if agent.ready { ("ready", GOOD) } else { ("not ready", BAD) };
    paint(word, style, screen, out);
    out.push(b'\n');
    for reason in &agent.reasons {
        paint(&format!("  {}", escaped_word(reason)), BAD, screen, out);
        out.push(b'\n');
    }
    if let Some(error) = &agent.reload_refused {
        let text = format!("  the last reload was refused, the configuration before it is in force: {error}");
        paint(&escaped_word(&text), BAD, screen, out);
        out.push(b'\n');
    }
}

fn containers(report: &StatusReport, screen: Screen, out: &mut Vec<u8>) {
    let headings = ["CONTAINER", "ID", ">PRODUCED", ">DELIVERED", ">LINES", ">PENDING", ">DROPPED", "LEDGER"];
    // The node's own account is there always; without its own log files it says nothing.
    let says_something = |container: &&ContainerStatus| {
        container.cgroup_id != 0 || container.produced_bytes > 0 || !container.streams.is_empty()
    };
    let rows: Vec<Row> = report.containers.iter().filter(says_something).map(container).collect();
    append_table(&headings, &rows, screen, out);
}

fn container(container: &ContainerStatus) -> Row {
    let parts = [&container.namespace, &container.pod, &container.container];
    let mut name = parts.into_iter().flatten().map(|part| escaped_word(part)).collect::<Vec<_>>().join("/");
    if name.is_empty() {
        name = match &container.cgroup {
            _ if container.cgroup_id == 0 => "(node)".to_owned(),
            Some(path) => escaped_word(path),
            None => "(unknown)".to_owned(),
        };
    }
    let id = match &container.container_id {
        Some(id) => escaped_word(&id.chars().take(12).collect::<String>()),
        None if container.cgroup_id == 0 => String::new(),
        None => format!("cgroup {}", container.cgroup_id),
    };
    let dropped: u64 = container.dropped.iter().map(|dropped| dropped.bytes).sum();
    let ledger = match container.difference_bytes {
        0 => Cell("balanced".to_owned(), GOOD),
        difference => Cell(format!("off by {difference} B"), WARNING),
    };
    let cells = vec![
        Cell::plain(name),
        Cell(id, FAINT),
        Cell::plain(bytes(container.produced_bytes)),
        Cell::plain(bytes(container.delivered_bytes)),
        Cell::plain(container.delivered_lines.to_string()),
        Cell::plain(signed_bytes(container.pending_bytes)),
        Cell(bytes(dropped), if dropped > 0 { BAD } else { PLAIN }),
        ledger,
    ];
    let streams = container.streams.iter().map(|stream| {
        let pending = bytes(stream.pending_bytes);
        let (class, origin) = (stream.class, escaped_word(&stream.origin));
        Cell(format!("{class} {origin}: {} seen, {pending} pending", bytes(stream.position)), FAINT)
    });
    let losses = container.dropped.iter().map(|dropped| {
        let (stage, reason) = (escaped_word(&dropped.stage), escaped_word(&dropped.reason));
        Cell(format!("dropped at {stage}, {reason}: {} ({} B)", bytes(dropped.bytes), dropped.bytes), BAD)
    });
    Row { cells, details: streams.chain(losses).collect() }
}

fn capture(report: &StatusReport, probes: bool, screen: Screen, out: &mut Vec<u8>) {
    roots(report, screen, out);
    let (ring, repair) = (&report.ring, &report.repair);
    let lines = format!(
        "ring     {} of {} filled, {} records, {} wake-ups, lag {:.1} ms\nrepair   {} gaps filled, {} read back\n",
        bytes(ring.fill_bytes),
        bytes(ring.capacity_bytes),
        ring.records,
        ring.wakeups,
        ring.lag_seconds * 1000.0,
        repair.gaps,
        bytes(repair.read_bytes),
    );
    out.extend_from_slice(lines.as_bytes());
    if let Some(programs) = &report.programs {
        let since = time(programs.since_unix_seconds);
        let line = format!(
            "programs {}, pinned at {}, generation {}, attached by version {} at {since}{}\n",
            programs.origin.as_str(),
            escaped_word(&programs.pinned),
            programs.generation,
            escaped_word(&programs.version),
            if programs.keep { "" } else { ", removed when the agent stops" },
        );
        out.extend_from_slice(line.as_bytes());
    }
    let caches = report.identity.iter().map(|cache| match cache.cache.as_str() {
        // The only one whose name does not say what it counts.
        "incomplete" => format!("{} without a name from a runtime", cache.entries),
        name => format!("{} {}", cache.entries, escaped_word(name)),
    });
    let caches: Vec<_> = caches.collect();
    out.extend_from_slice(format!("identity {}\n", caches.join(", ")).as_bytes());
    kubernetes(report, screen, out);
    let lesser = report.probes.iter().any(|probe| probe.health != Health::Healthy);
    let summary = summary(report.probes.iter().map(|probe| probe.health));
    let hint = if lesser && !probes { " (--probes says why)" } else { "" };
    out.extend_from_slice(b"probes   ");
    let text = summary.split_once(": ").map_or(summary.as_str(), |(_, states)| states);
    paint(text, if lesser { WARNING } else { GOOD }, screen, out);
    out.extend_from_slice(format!("{hint}\n").as_bytes());
    if !probes {
        return;
    }
    out.push(b'\n');
    let row = |probe: &crate::control::status::ProbeStatus| {
        let style = match probe.health {
            Health::Healthy => GOOD,
            Health::Degraded => WARNING,
            Health::Unsupported if !probe.required => WARNING,
            Health::Unsupported | Health::Failed => BAD,
        };
        let health = Cell(probe.health.as_str().to_owned(), style);
        let cells = vec![
            Cell::plain(escaped_word(&probe.name)),
            Cell::plain(escaped_word(&probe.attach)),
            health,
            Cell::plain(escaped_word(&probe.reason)),
        ];
        Row { cells, details: Vec::new() }
    };
    let rows: Vec<Row> = report.probes.iter().map(row).collect();
    append_table(&["PROBE", "ATTACHED BY", "HEALTH", "REASON"], &rows, screen, out);
}

/// How fresh what the API server tells is, and how many policies that makes.
fn kubernetes(report: &StatusReport, screen: Screen, out: &mut Vec<u8>) {
    let Some(kubernetes) = &report.kubernetes else { return };
    let now = report.agent.started_unix_seconds + report.agent.uptime_seconds;
    let duration = |seconds| humantime::format_duration(Duration::from_secs(seconds));
    let mut line = format!("api      {} Pods known", kubernetes.pods);
    for watch in &kubernetes.watches {
        let _ = write!(line, "; {} {}", escaped_word(&watch.resource), escaped_word(&watch.state));
        if let Some(seconds) = watch.stale_seconds {
            let _ = write!(line, " for {}", duration(seconds));
        }
        if let Some(saved) = watch.saved_unix_seconds {
            let _ = write!(line, ", as saved {} ago", duration(now.saturating_sub(saved)));
        }
        if let Some(error) = &watch.error {
            let _ = write!(line, ": {}", escaped_word(error));
        }
    }
    let is_live = kubernetes.watches.iter().all(|watch| watch.state == Freshness::Live.as_str());
    paint(&line, if is_live { PLAIN } else { WARNING }, screen, out);
    out.push(b'\n');
    if kubernetes.policies.is_empty() {
        return;
    }
    let sum = |of: fn(&PolicyStatus) -> u64| kubernetes.policies.iter().map(of).sum::<u64>();
    let (refused, conflicted) = (sum(|policies| policies.refused), sum(|policies| policies.conflicted));
    let in_force = sum(|policies| policies.in_force);
    let writes = if kubernetes.writes_policy_status { "; this agent writes their status" } else { "" };
    let line = format!("policies {in_force} in force, {refused} refused, {conflicted} in conflict here{writes}");
    paint(&line, if refused + conflicted == 0 { PLAIN } else { WARNING }, screen, out);
    out.push(b'\n');
}

fn roots(report: &StatusReport, screen: Screen, out: &mut Vec<u8>) {
    let (present, absent): (Vec<_>, Vec<_>) = report.roots.iter().partition(|root| root.present);
    let names =
        |roots: &[&RootStatus]| roots.iter().map(|root| escaped_word(&root.path)).collect::<Vec<_>>().join(", ");
    if present.is_empty() && absent.is_empty() {
        return;
    }
    out.extend_from_slice(b"roots    ");
    if present.is_empty() {
        paint("none is there, so nothing is captured", BAD, screen, out);
    } else {
        out.extend_from_slice(names(&present).as_bytes());
    }
    if !absent.is_empty() {
        paint(&format!("; not there now: {}", names(&absent)), FAINT, screen, out);
    }
    out.push(b'\n');
}

fn sinks(report: &StatusReport, screen: Screen, out: &mut Vec<u8>) {
    let headings =
        ["SINK", "TYPE", ">LAG", ">BEHIND", ">BUFFERED", ">LINES/S", ">BYTES/S", ">DELIVERED", ">ERRORS", "STATE"];
    let rows: Vec<Row> = report.sinks.iter().map(sink).collect();
    append_table(&headings, &rows, screen, out);
}

fn sink(sink: &SinkStatus) -> Row {
    let state = match sink.failing_seconds {
        Some(seconds) => Cell(format!("failing for {}", humantime::format_duration(Duration::from_secs(seconds))), BAD),
        None => Cell("works".to_owned(), GOOD),
    };
    let cells = vec![
        Cell::plain(escaped_word(&sink.name)),
        Cell::plain(escaped_word(&sink.kind)),
        Cell::plain(seconds(sink.lag_seconds)),
        Cell::plain(sink.behind_records.to_string()),
        Cell::plain(sink.buffer.as_ref().map_or_else(|| "-".to_owned(), |buffer| bytes(buffer.bytes))),
        Cell::plain(format!("{:.0}", sink.records_per_second)),
        Cell::plain(bytes(sink.bytes_per_second as u64)),
        Cell::plain(bytes(sink.delivered_bytes)),
        Cell(sink.errors.to_string(), if sink.errors > 0 { WARNING } else { PLAIN }),
        state,
    ];
    let mut details = vec![Cell(delivery(sink), FAINT)];
    details.extend(sink.buffer.as_ref().filter(|buffer| buffer.bytes > 0 || buffer.damaged > 0).map(buffer));
    details.extend(sink.dropped.iter().map(|SinkDroppedStatus { reason, records, bytes }| {
        Cell(format!("dropped, {}: {records} records ({bytes} B)", escaped_word(reason)), BAD)
    }));
    details.extend(sink.last_error.iter().map(|error| {
        let at = sink.last_error_unix_seconds.map_or_else(String::new, |at| format!(" at {}", time(at)));
        Cell(format!("last error{at}: {}", escaped_word(error)), WARNING)
    }));
    Row { cells, details }
}

/// How far a sink is.
fn delivery(sink: &SinkStatus) -> String {
    let up_to = sink.acknowledged_up_to_unix_seconds.map_or_else(
        || "nothing yet".to_owned(),
        |up_to| {
            let up_to = UNIX_EPOCH + Duration::try_from_secs_f64(up_to).unwrap_or_default();
            format!("up to {}", humantime::format_rfc3339_millis(up_to))
        },
    );
    let records = sink.delivered_records;
    format!("acknowledged {up_to}, {records} records in all; {} queued", bytes(sink.queued_bytes))
}

fn buffer(buffer: &BufferStatus) -> Cell {
    let BufferStatus { records, oldest_seconds, damaged, .. } = buffer;
    let age = oldest_seconds.map_or_else(String::new, |age| {
        format!(", the oldest file is of {} ago", humantime::format_duration(Duration::from_secs(age)))
    });
    let (has, capacity) = (bytes(buffer.bytes), bytes(buffer.capacity_bytes));
    let text = format!("buffer: {has} of {capacity}, {records} records{age}");
    if *damaged > 0 {
        return Cell(format!("{text}; {damaged} places could not be read"), BAD);
    }
    Cell(text, FAINT)
}

/// To a tenth where that says something.
fn seconds(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{seconds:.1}s");
    }
    humantime::format_duration(Duration::from_secs(seconds as u64)).to_string()
}

fn time(unix_seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_seconds)).to_string()
}

fn bytes(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// Pending bytes below zero are a mistake in the ledger, and shown as such.
fn signed_bytes(value: i64) -> String {
    let sign = if value < 0 { "-" } else { "" };
    format!("{sign}{}", bytes(value.unsigned_abs()))
}

#[cfg(test)]
mod tests;
