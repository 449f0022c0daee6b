//! `sidestep policy top`: what is refused at this moment, and to whom.

use std::{collections::BTreeMap, io::Write, path::Path, thread, time::Duration};

use serde::Serialize;

use super::{
    ClientError, fetch,
    governance::{head, name, whose},
    quiet_on_broken_pipe,
    table::{BAD, Cell, FAINT, PLAIN, Row, WARNING, append_table},
    terminal::{Screen, append_json, append_picture, escaped_word},
    write_out,
};
use crate::control::{
    governance::{GovernanceReport, GovernedPod, GovernedTier, Recent, Refusals, RefusalsReport},
    protocol::{Ask, Frame},
};

/// Refusals that are older say nothing of now.
const RECENT_NANOS: u64 = 60_000_000_000;
/// Peers that are named.
const PEERS: usize = 3;

/// What `sidestep policy top` is asked for.
#[derive(Clone, Debug)]
pub struct TopOptions {
    /// Only Pods of this namespace.
    pub namespace: Option<String>,
    /// Pause between two readings.
    pub interval: Duration,
    /// How many; without end when it is `None`.
    pub count: Option<u64>,
    /// As JSON, one object a line.
    pub json: bool,
}

/// Prints what is refused, again and again.
///
/// # Errors
/// The agent does not run or refuses, or the output cannot be written (a closed pipe is not an error).
pub fn top(socket: &Path, options: &TopOptions, screen: Screen, out: &mut dyn Write) -> Result<(), ClientError> {
    quiet_on_broken_pipe(print(socket, options, screen, out))
}

fn print(socket: &Path, options: &TopOptions, screen: Screen, out: &mut dyn Write) -> Result<(), ClientError> {
    let mut before = None;
    let mut printed = 0;
    loop {
        let RefusalsReport { mut governance, recent } =
            fetch(
                socket,
                Ask::Refusals,
                |frame| if let Frame::Refusals(report) = frame { Some(*report) } else { None },
            )?;
        let is_wanted = |namespace: &str| options.namespace.as_deref().is_none_or(|wanted| wanted == namespace);
        governance.pods.retain(|pod| is_wanted(&pod.namespace));
        let entries = entries(before.as_ref(), &governance, &recent);
        let mut text = Vec::new();
        if options.json {
            append_json(
                &serde_json::to_string(&Picture { node: &governance.node, refused: &entries })?,
                screen,
                &mut text,
            );
            text.push(b'\n');
        } else {
            let mut picture = Vec::new();
            head(&governance, options.namespace.as_deref(), screen, &mut picture);
            if !governance.pods.is_empty() {
                render(&entries, screen, &mut picture);
            }
            if screen.terminal {
                append_picture(&picture, before.is_none(), &mut text);
            } else {
                text.extend_from_slice(if before.is_some() { b"\n" } else { b"" });
                text.append(&mut picture);
            }
        }
        write_out(out, &text)?;
        before = Some(governance);
        printed += 1;
        if options.count.is_some_and(|count| printed >= count) {
            return Ok(());
        }
        thread::sleep(options.interval);
    }
}

#[derive(Serialize)]
struct Picture<'a> {
    node: &'a str,
    refused: &'a [Entry],
}

/// What a list or limit has refused to a Pod or its peers.
#[derive(Debug, PartialEq, Serialize)]
struct Entry {
    pod: String,
    mode: String,
    direction: String,
    reason: String,
    policy: String,
    /// Not known at first.
    per_second: Option<f64>,
    total: u64,
    /// The other ends of the last minute, the most frequent first.
    peers: Vec<String>,
}

/// What tells counts of one reading from those of another: the Pod's cgroup, and which of its counts it is.
type Key = (u64, u64);

fn counts(report: &GovernanceReport) -> impl Iterator<Item = (Key, &GovernedPod, &GovernedTier, &Refusals)> {
    let tiers = report.pods.iter().flat_map(|pod| pod.tiers.iter().map(move |tier| (pod, tier)));
    tiers.flat_map(|(pod, tier)| {
        tier.refused.iter().map(move |refused| ((pod.cgroup, refused.kind), pod, tier, refused))
    })
}

/// The most frequent first, then those that were.
fn entries(before: Option<&GovernanceReport>, now: &GovernanceReport, recent: &[Recent]) -> Vec<Entry> {
    let known: BTreeMap<Key, u64> =
        before.into_iter().flat_map(counts).map(|(key, .., refused)| (key, refused.count)).collect();
    let elapsed = before.map(|before| now.counted_unix_nano.saturating_sub(before.counted_unix_nano));
    let entry = |(key, pod, tier, refused): (Key, &GovernedPod, &GovernedTier, &Refusals)| {
        // What is new was nothing before.
        let more = refused.count.saturating_sub(known.get(&key).copied().unwrap_or_default());
        // When they were not counted anew nothing is known of the time since.
        let per_second = elapsed.filter(|nanos| *nanos > 0).map(|nanos| more as f64 * 1e9 / nanos as f64);
        let is_it = |recent: &&Recent| {
            (recent.cgroup, recent.kind) == key
                && now.counted_unix_nano.saturating_sub(recent.time_unix_nano) < RECENT_NANOS
        };
        let mut peers = BTreeMap::<&str, usize>::new();
        recent.iter().filter(is_it).for_each(|recent| *peers.entry(&recent.peer).or_default() += 1);
        let mut peers: Vec<_> = peers.into_iter().collect();
        peers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Entry {
            pod: name(pod),
            mode: tier.mode.clone(),
            direction: refused.direction.clone(),
            reason: refused.reason.clone(),
            policy: whose(refused),
            per_second,
            total: refused.count,
            peers: peers.into_iter().map(|(peer, _)| peer.to_owned()).collect(),
        }
    };
    let mut entries: Vec<_> = counts(now).map(entry).collect();
    let rate = |entry: &Entry| entry.per_second.unwrap_or_default();
    entries.sort_by(|one, two| rate(two).total_cmp(&rate(one)).then(two.total.cmp(&one.total)));
    entries
}

fn render(entries: &[Entry], screen: Screen, out: &mut Vec<u8>) {
    if entries.is_empty() {
        out.extend_from_slice(b"Nothing was refused.\n");
        return;
    }
    let row = |entry: &Entry| {
        let is_now = entry.per_second.is_some_and(|rate| rate > 0.0);
        let style = match (is_now, entry.mode.as_str()) {
            (false, _) => FAINT,
            (true, "observe") => WARNING,
            (true, _) => BAD,
        };
        let rate = entry.per_second.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
        let mut peers = entry.peers.iter().take(PEERS).cloned().collect::<Vec<_>>().join(", ");
        if entry.peers.len() > PEERS {
            peers.push_str(&format!(" and {} more", entry.peers.len() - PEERS));
        }
        Row {
            cells: vec![
                Cell(rate, style),
                Cell::plain(entry.total.to_string()),
                Cell::plain(escaped_word(&entry.pod)),
                Cell(if entry.mode == "observe" { "would refuse".to_owned() } else { "refused".to_owned() }, PLAIN),
                Cell::plain(entry.direction.as_str()),
                Cell::plain(entry.reason.as_str()),
                Cell::plain(escaped_word(&peers)),
                Cell::plain(escaped_word(&entry.policy)),
            ],
            details: Vec::new(),
        }
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    let headings = [">PER SECOND", ">TOTAL", "POD", "", "DIRECTION", "REASON", "PEERS", "POLICY"];
    append_table(&headings, &rows, screen, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(seconds: u64, counts: &[(u64, u64)]) -> GovernanceReport {
        let pods = counts.iter().map(|(cgroup, count)| {
            let refused = Refusals {
                reason: "request_rate".to_owned(),
                direction: "ingress".to_owned(),
                policies: vec!["SidestepPolicy shop/web".to_owned()],
                rule: Some("all".to_owned()),
                kind: 7,
                count: *count,
            };
            let mode = "enforce".to_owned();
            let tiers = vec![GovernedTier { mode, refused: vec![refused], ..GovernedTier::default() }];
            GovernedPod {
                namespace: "shop".to_owned(),
                pod: format!("web-{cgroup}"),
                cgroup: *cgroup,
                tiers,
                ..GovernedPod::default()
            }
        });
        GovernanceReport {
            counted_unix_nano: seconds * 1_000_000_000,
            pods: pods.collect(),
            ..GovernanceReport::default()
        }
    }

    fn recent(seconds: u64, peer: &str) -> Recent {
        Recent { time_unix_nano: seconds * 1_000_000_000, cgroup: 2, peer: peer.to_owned(), kind: 7 }
    }

    #[test]
    fn the_most_frequent_come_first_with_their_peers() {
        let (before, now) = (report(100, &[(1, 50), (2, 10)]), report(102, &[(1, 51), (2, 30), (3, 4)]));
        let told = [recent(30, "10.0.0.1"), recent(101, "10.0.0.3"), recent(101, "10.0.0.2"), recent(102, "10.0.0.2")];
        let entries = entries(Some(&before), &now, &told);
        let seen: Vec<_> = entries.iter().map(|entry| (entry.pod.as_str(), entry.per_second, entry.total)).collect();
        assert_eq!(seen, [("shop/web-2", Some(10.0), 30), ("shop/web-3", Some(2.0), 4), ("shop/web-1", Some(0.5), 51)]);
        assert_eq!(entries[0].peers, ["10.0.0.2", "10.0.0.3"]);
        assert_eq!(entries[0].policy, "SidestepPolicy shop/web (all)");
        assert!(entries[1].peers.is_empty());
    }

    #[test]
    fn nothing_is_known_of_the_rate_at_first() {
        let entries = entries(None, &report(100, &[(1, 50)]), &[]);
        assert_eq!(entries[0].per_second, None);
        let mut out = Vec::new();
        render(&entries, Screen::default(), &mut out);
        let text = String::from_utf8(out).expect("UTF-8");
        assert!(text.contains("PER SECOND") && text.contains("shop/web-1"), "{text}");
    }
}
