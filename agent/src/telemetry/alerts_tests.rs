//! `deploy/alerts.yaml` and `docs/runbook.md` against the metrics that there are.

use std::collections::BTreeSet;

use regex::Regex;
use serde::Deserialize;

use super::names;
use crate::{events, ledger::Reason};

#[derive(Deserialize)]
struct Alerts {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    annotations: Annotations,
}

#[derive(Deserialize)]
struct Annotations {
    summary: String,
    runbook: String,
}

fn rules() -> Vec<Rule> {
    let alerts: Alerts =
        serde_saphyr::from_str(include_str!("../../../deploy/alerts.yaml")).expect("rules for Prometheus");
    alerts.groups.into_iter().flat_map(|group| group.rules).collect()
}

fn found<'a>(pattern: &str, text: &'a str) -> Vec<&'a str> {
    let regex = Regex::new(pattern).expect("valid");
    regex.captures_iter(text).filter_map(|captures| captures.get(1)).map(|group| group.as_str()).collect()
}

#[test]
fn every_metric_and_label_of_the_alerts_exists() {
    let rules = rules();
    assert!(rules.len() > 10);
    for Rule { alert, expr, annotations } in &rules {
        let metrics = found(r"\b((?:sidestep|process)_[a-z0-9_]+)", expr);
        assert!(!metrics.is_empty() || alert == "SidestepDown", "{alert}");
        let mut labels = BTreeSet::from(["instance", "job"]);
        for metric in metrics {
            let definition = names::ALL.iter().find(|definition| definition.name == metric);
            labels.extend(definition.unwrap_or_else(|| panic!("{alert}: there is no metric {metric}")).labels);
        }
        for label in found(r"[{,]\s*([a-z_]+)\s*[=!]", expr)
            .into_iter()
            .chain(found(r"\$labels\.([a-z_]+)", &annotations.summary))
        {
            assert!(labels.contains(label), "{alert}: no metric of it has the label {label}");
        }
        for event in found("event=~?\"([^\"]+)\"", expr).iter().flat_map(|events| events.split('|')) {
            assert!(events::NAMES.contains(&event), "{alert}: there is no event {event}");
        }
        for reason in found("reason(?:=|!~)\"([^\"]+)\"", expr).iter().flat_map(|reasons| reasons.split('|')) {
            assert!(Reason::ALL.iter().any(|known| known.as_str() == reason), "{alert}: there is no reason {reason}");
        }
    }
}

#[test]
fn every_alert_has_its_section_in_the_runbook() {
    let runbook = include_str!("../../docs/runbook.md");
    let sections: Vec<_> = runbook.split("\n## ").skip(1).collect();
    let titles: BTreeSet<_> = sections.iter().filter_map(|section| section.lines().next()).collect();
    let rules = rules();
    let alerts: BTreeSet<_> = rules.iter().map(|rule| rule.alert.as_str()).collect();
    assert_eq!(titles, alerts);
    for section in sections {
        for part in ["**Means**", "**Look**", "**Do**"] {
            assert!(section.contains(part), "{part} is not in {section}");
        }
    }
    for rule in &rules {
        assert_eq!(rule.annotations.runbook, format!("agent/docs/runbook.md#{}", rule.alert.to_lowercase()));
    }
    for reason in Reason::ALL {
        assert!(runbook.contains(&format!("`{}`", reason.as_str())), "{}", reason.as_str());
    }
}
