//! The figures: a table for people, JSON for machines.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    machine::Machine,
    statistics::{Summary, median, paired_differences},
};

/// What a figure should reach.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// One figure with all that it was made of.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    /// Stable name for machines.
    name: String,
    /// What was measured, and compared with what.
    what: String,
    unit: &'static str,
    median: f64,
    lower_quartile: f64,
    upper_quartile: f64,
    samples: Vec<f64>,
    /// With the agent / without it; the medians of both stand in `with` and `without`.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    with: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    without: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<bool>,
}

impl Figure {
    /// The median of samples.
    ///
    /// # Errors
    /// There are none.
    pub(crate) fn of(name: &str, what: &str, unit: &'static str, samples: Vec<f64>) -> Result<Self> {
        let summary = Summary::of(&samples).with_context(|| format!("{name}: no sample"))?;
        Ok(Self {
            name: name.to_owned(),
            what: what.to_owned(),
            unit,
            median: summary.median,
            lower_quartile: summary.lower_quartile,
            upper_quartile: summary.upper_quartile,
            samples,
            ratio: None,
            with: None,
            without: None,
            target: None,
            reached: None,
        })
    }

    /// The median of the differences between neighbours, and the ratio of the medians.
    ///
    /// # Errors
    /// There are no pairs.
    pub(crate) fn difference(
        name: &str,
        what: &str,
        unit: &'static str,
        with: &[f64],
        without: &[f64],
    ) -> Result<Self> {
        let mut figure = Self::of(name, what, unit, paired_differences(with, without))?;
        let (with, without) = (median(with), median(without));
        (figure.with, figure.without, figure.ratio) = (Some(with), Some(without), Some(with / without));
        Ok(figure)
    }

    /// What it should reach.
    pub(crate) fn target(mut self, target: Target) -> Self {
        self.reached = Some(match target {
            Target::AtMost(limit) => self.median <= limit,
            Target::AtLeast(limit) => self.median >= limit,
        });
        self.target = Some(target);
        self
    }

    fn row(&self) -> [String; 6] {
        let target = self.target.map_or(String::new(), |target| match target {
            Target::AtMost(limit) => format!("<= {}", shown(limit)),
            Target::AtLeast(limit) => format!(">= {}", shown(limit)),
        });
        let spread = match self.samples.len() {
            1 => String::new(),
            count => format!("{} .. {} ({count})", shown(self.lower_quartile), shown(self.upper_quartile)),
        };
        let ratio = match (self.without, self.with, self.ratio) {
            (Some(without), Some(with), Some(ratio)) => {
                format!("{} -> {} (x{ratio:.2})", shown(without), shown(with))
            }
            _ => String::new(),
        };
        let reached = self.reached.map_or("", |reached| if reached { "yes" } else { "NO" });
        let value = format!("{} {}", shown(self.median), self.unit);
        [self.what.clone(), value, spread, ratio, target, reached.to_owned()]
    }
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    quick: bool,
    /// How the agent's probes are attached, as it says itself.
    attach: Option<String>,
    figures: Vec<Figure>,
    /// What a reader has to know beside the figures.
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(machine: Machine, quick: bool) -> Self {
        Self { machine, quick, attach: None, figures: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn add(&mut self, figure: Figure) {
        eprintln!("  {}", figure.row().join("  "));
        self.figures.push(figure);
    }

    pub(crate) fn note(&mut self, note: String) {
        eprintln!("  note: {note}");
        self.notes.push(note);
    }

    pub(crate) fn attach(&mut self, attach: String) {
        self.attach = Some(attach);
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let head = ["figure", "median", "quartiles (samples)", "without -> with", "target", "reached"];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(self.figures.iter().map(Figure::row));
        let widths: Vec<usize> = (0..head.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
            .collect();
        let attach = self.attach.as_deref().unwrap_or("unknown");
        let mut text = format!("\n{}\nprobes attached by: {attach}\n\n", self.machine);
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        for note in &self.notes {
            text.push_str(&format!("\nnote: {note}"));
        }
        if self.quick {
            text.push_str("\nnote: --quick: few samples, for a look only");
        }
        text.push('\n');
        text
    }

    /// Writes everything as JSON.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("rendering the report")?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }
}

/// Three digits that matter, or whole numbers.
fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_of_pairs_and_a_ratio_of_medians() {
        let figure = Figure::difference("x", "x", "ns", &[30.0, 50.0, 40.0], &[20.0, 20.0, 20.0]).expect("pairs");
        assert_eq!((figure.median, figure.ratio), (20.0, Some(2.0)));
        assert_eq!(figure.target(Target::AtMost(19.0)).reached, Some(false));
        assert!(Figure::of("x", "x", "ns", Vec::new()).is_err());
    }
}
