//! What people see: plain text, with colours on a terminal.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, stdout},
    time::{Duration, Instant},
};

use sidestep_tests::records::Record;

use crate::account::Row;

/// Lines of one Pod that are shown in a second; the rest is counted.
const SHOWN_PER_SECOND: u64 = 8;

/// Lines of the Pod that floods that are shown in all: one is like the other.
const SHOWN_OF_FLOOD: u64 = 2;

/// Series that are shown.
const SHOWN_METRICS: usize = 8;

/// A longer line is cut on the screen, and only there.
const WIDTH: usize = 100;

const COLOURS: [u8; 5] = [36, 33, 32, 35, 34];
const BOLD: u8 = 1;
const RED: u8 = 31;
const GREEN: u8 = 32;

/// The output.
pub(crate) struct Screen {
    colours: bool,
    second: Instant,
    /// Lines of each Pod in this second.
    counts: BTreeMap<String, u64>,
    /// Lines of the flood so far, and whether it was said that no more of them are shown.
    flood: u64,
}

impl Screen {
    /// Standard output.
    pub(crate) fn new() -> Self {
        Self { colours: stdout().is_terminal(), second: Instant::now(), counts: BTreeMap::new(), flood: 0 }
    }

    fn painted(&self, colour: u8, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A heading.
    pub(crate) fn heading(&self, text: &str) {
        println!("\n{}", self.painted(BOLD, &format!("== {text}")));
    }

    /// A line that is none of a Pod's.
    pub(crate) fn note(&self, text: &str) {
        println!("{}", self.painted(GREEN, text));
    }

    /// A line as it is.
    pub(crate) fn text(&self, text: &str) {
        println!("{text}");
    }

    /// A record, with the Pod and the stream that it came from.
    pub(crate) fn record(&mut self, record: &Record, floods: bool) {
        let pod = format!("{}/{}", record.resource("k8s.namespace.name"), record.resource("k8s.pod.name"));
        if floods {
            self.flood += 1;
            if self.flood == SHOWN_OF_FLOOD + 1 {
                println!("{:12} {pod:<26} ... and so on, as fast as the pipe takes it", "");
            }
            if self.flood > SHOWN_OF_FLOOD {
                return;
            }
        }
        let count = self.counts.entry(pod.clone()).or_default();
        *count += 1;
        if *count > SHOWN_PER_SECOND {
            return;
        }
        let colour = pod.bytes().fold(0, |sum, byte| sum + usize::from(byte)) % COLOURS.len();
        let time = record.text("/timestamp").get(11..23).unwrap_or_default();
        let origin = format!("{time} {pod:<26} {:<19} | ", record.source());
        for (number, line) in record.text("/body").lines().enumerate() {
            let start = if number == 0 { origin.clone() } else { format!("{:>width$}", "| ", width = origin.len()) };
            let body = shown(line);
            let body = if line.starts_with("ERROR") { self.painted(RED, &body) } else { body };
            println!("{}{body}", self.painted(COLOURS[colour], &start));
        }
    }

    /// Once a second, says how many lines of a Pod were not shown.
    pub(crate) fn tick(&mut self) {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.flush_flood();
        }
    }

    /// Says how many lines of a Pod were not shown, and counts anew.
    pub(crate) fn flush_flood(&mut self) {
        self.second = Instant::now();
        for (pod, count) in std::mem::take(&mut self.counts) {
            if count > SHOWN_PER_SECOND {
                println!("{:12} {pod:<26} ... and {} lines more", "", count - SHOWN_PER_SECOND);
            }
        }
    }

    /// The ledger.
    pub(crate) fn table(&self, rows: &[Row]) {
        let head = ["Pod", "written", "produced", "delivered", "pending", "dropped"];
        println!("{:<28} {:>10} {:>10} {:>10} {:>8} {:>10}", head[0], head[1], head[2], head[3], head[4], head[5]);
        for row in rows {
            let ledger = &row.ledger;
            let verdict = if row.balances { self.painted(GREEN, "balanced") } else { self.painted(RED, "WRONG") };
            let reasons: Vec<_> =
                ledger.dropped.iter().map(|((stage, reason), bytes)| format!("{stage}/{reason} {bytes}")).collect();
            let line = format!(
                "{:<28} {:>10} {:>10} {:>10} {:>8} {:>10}  {verdict} {}",
                row.pod,
                row.written,
                ledger.produced,
                ledger.delivered,
                ledger.pending,
                ledger.dropped_total(),
                reasons.join(", ")
            );
            println!("{}", line.trim_end());
        }
        println!("(written: counted at the runtime's end of the pipes, and in the files; not by the agent)");
        if rows.iter().any(|row| row.ledger.dropped_total() > 0) {
            println!(
                "The flood exceeded its share of the ring on purpose: only its own lines are dropped, each is booked."
            );
        }
    }

    /// The ledger of one Pod, and a few series of the agent's own.
    pub(crate) fn metrics(&self, text: &str, pod: &str) {
        let pod = format!("pod=\"{pod}\"");
        let own = ["sidestep_ring_capacity_bytes", "sidestep_ring_wakeups_total", "process_resident_memory_bytes"];
        let series = || text.lines().filter(|line| !line.starts_with('#'));
        let of_pod = series().filter(|line| line.contains(&pod)).take(SHOWN_METRICS - own.len());
        let of_agent = series().filter(|line| own.iter().any(|name| line.starts_with(name)));
        of_pod.chain(of_agent).take(SHOWN_METRICS).for_each(|line| println!("{line}"));
    }
}

/// A line without control characters, at most as wide as the screen.
fn shown(line: &str) -> String {
    let mut text: String =
        line.chars().map(|c| if c == '\t' { ' ' } else { c }).filter(|c| !c.is_control()).take(WIDTH).collect();
    if text.len() < line.len() {
        text.push_str("...");
    }
    text
}
