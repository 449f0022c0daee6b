//! Findings for people and for programs.

use std::fmt::Write as _;

use serde_json::json;

use super::{Finding, can_run};
use crate::{
    control::{Screen, escaped_word},
    load::Health,
};

/// A line for each finding, its advice below, and what it comes to at the end.
#[must_use]
pub fn text(findings: &[Finding], screen: Screen) -> String {
    let groups = grouped(findings);
    let shown = |names: &[String]| names.join(", ");
    let widths = groups.iter().map(|(_, names)| shown(names).chars().count());
    let width = widths.filter(|width| *width <= LONGEST_NAME).max().unwrap_or(0);
    let mut out = Vec::new();
    let mut area = "";
    for (finding, names) in &groups {
        if finding.area != area {
            area = finding.area;
            screen.paint(&mut out, "1", area);
            out.push(b'\n');
        }
        let (word, style) = match finding.health {
            Health::Healthy => ("ok      ", "32"),
            Health::Degraded => ("degraded", "33"),
            Health::Unsupported => ("missing ", "33"),
            Health::Failed => ("FAILED  ", "1;31"),
        };
        out.extend_from_slice(b"  ");
        screen.paint(&mut out, style, word);
        let name = shown(names);
        let indent = " ".repeat(14 + width);
        let mut lines = finding.found.lines().map(escaped_word);
        let first = lines.next().unwrap_or_default();
        let length = name.chars().count();
        // What is found stands in its column; below names that are too long for theirs.
        let gap = if length > width { format!("\n{indent}") } else { " ".repeat(width - length + 2) };
        out.extend_from_slice(format!("  {name}{gap}{first}\n").as_bytes());
        for line in lines {
            out.extend_from_slice(format!("{indent}{line}\n").as_bytes());
        }
        if !finding.advice.is_empty() {
            out.extend_from_slice(format!("{indent}-> {}\n", finding.advice).as_bytes());
        }
    }
    let mut text = String::from_utf8_lossy(&out).into_owned();
    let count = |health: Health| findings.iter().filter(|finding| finding.health == health).count();
    let lesser = count(Health::Degraded) + count(Health::Unsupported);
    // Writing to memory cannot fail.
    let _ = match (can_run(findings), lesser) {
        (true, 0) => writeln!(text, "\nAll works."),
        (true, _) => writeln!(text, "\nThe agent can run; {lesser} of {} checks say `degraded`.", findings.len()),
        (false, _) => writeln!(text, "\nThe agent cannot run: {} failed.", count(Health::Failed)),
    };
    text
}

/// Names that take more than this stand on a line of their own.
const LONGEST_NAME: usize = 24;

/// The findings in their order; those of one area that say the same together, with the names of all.
fn grouped(findings: &[Finding]) -> Vec<(&Finding, Vec<String>)> {
    let mut groups: Vec<(&Finding, Vec<String>)> = Vec::new();
    for finding in findings {
        let is_same = |other: &Finding| {
            (other.area, other.health, &other.found, &other.advice)
                == (finding.area, finding.health, &finding.found, &finding.advice)
        };
        let name = escaped_word(&finding.check);
        match groups.iter_mut().find(|(first, _)| is_same(first)) {
            Some((_, names)) => names.push(name),
            None => groups.push((finding, vec![name])),
        }
    }
    groups
}

/// An array with an object for each finding: `area`, `check`, `health`, `found`, `advice`.
#[must_use]
pub fn json(findings: &[Finding]) -> String {
    let object = |finding: &Finding| {
        json!({
            "area": finding.area,
            "check": finding.check,
            "health": finding.health.as_str(),
            "found": finding.found,
            "advice": finding.advice,
        })
    };
    serde_json::Value::Array(findings.iter().map(object).collect()).to_string()
}
