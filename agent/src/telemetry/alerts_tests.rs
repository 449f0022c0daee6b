//! `deploy/alerts.yaml`, `deploy/dashboards` and `docs/runbook.md` against the metrics that there are.

use std::collections::BTreeSet;

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

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

/// A metric of ours.
const METRIC: &str = r"\b((?:sidestep|process)_[a-z0-9_]+)";

fn found<'a>(pattern: &str, text: &'a str) -> Vec<&'a str> {
    let regex = Regex::new(pattern).expect("valid");
    regex.captures_iter(text).filter_map(|captures| captures.get(1)).map(|group| group.as_str()).collect()
}

/// Every metric of `expr`, every label it is chosen or summed by, and every event and reason exists; the labels that its
/// metrics have.
fn check(name: &str, expr: &str) -> BTreeSet<&'static str> {
    let mut labels = BTreeSet::from(["instance", "job"]);
    for metric in found(METRIC, expr) {
        let definition = names::ALL.iter().find(|definition| definition.name == metric);
        labels.extend(definition.unwrap_or_else(|| panic!("{name}: there is no metric {metric}")).labels);
    }
    let grouped = found(r"\b(?:by|on) \(([a-z_, ]+)\)", expr);
    let grouped = grouped.iter().flat_map(|list| list.split(',').map(str::trim));
    for label in found(r"[{,]\s*([a-z_]+)\s*[=!]", expr).into_iter().chain(grouped) {
        assert!(labels.contains(label), "{name}: no metric of it has the label {label}");
    }
    for event in found("event=~?\"([^\"]+)\"", expr).iter().flat_map(|events| events.split('|')) {
        assert!(events::NAMES.contains(&event), "{name}: there is no event {event}");
    }
    for reason in found("reason(?:=~?|!~)\"([^\"]+)\"", expr).iter().flat_map(|reasons| reasons.split('|')) {
        assert!(Reason::ALL.iter().any(|known| known.as_str() == reason), "{name}: there is no reason {reason}");
    }
    labels
}

#[test]
fn every_metric_and_label_of_the_alerts_exists() {
    let rules = rules();
    assert!(rules.len() > 10);
    for Rule { alert, expr, annotations } in &rules {
        let labels = check(alert, expr);
        assert!(!found(METRIC, expr).is_empty() || alert == "SidestepDown", "{alert}");
        for label in found(r"\$labels\.([a-z_]+)", &annotations.summary) {
            assert!(labels.contains(label), "{alert}: no metric of it has the label {label}");
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

/// What every dashboard has to have, and each of its panels.
#[test]
fn every_metric_and_label_of_the_dashboards_exists() {
    let mut uids = BTreeSet::new();
    for (name, text) in [
        ("agent", include_str!("../../../deploy/dashboards/agent.json")),
        ("ledger", include_str!("../../../deploy/dashboards/ledger.json")),
        ("logs", include_str!("../../../deploy/dashboards/logs.json")),
    ] {
        let dashboard: Value = serde_json::from_str(text).expect("JSON");
        assert!(uids.insert(dashboard["uid"].as_str().expect("a uid").to_owned()), "{name}: its uid is another's");
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let variables = list(&dashboard["templating"]["list"]);
        let names: BTreeSet<_> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
        assert!(names.contains("datasource") && names.contains("instance"), "{name}: {names:?}");
        for variable in &variables {
            let query = variable["query"]["query"].as_str().unwrap_or_default();
            let labels = check(name, query);
            for label in found(r", ([a-z]+)\)$", query) {
                assert!(labels.contains(label), "{name}: {query}");
            }
        }
        let panels = list(&dashboard["panels"]);
        let targets: Vec<_> = panels.iter().flat_map(|panel| list(&panel["targets"])).collect();
        assert!(targets.len() >= 10, "{name}: {}", targets.len());
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}: {target}");
            let expr = target["expr"].as_str().expect("an expression");
            let labels = check(name, expr);
            assert!(labels.len() >= 2 && expr.contains("$instance"), "{name}: {expr}");
            for label in found(r"\{\{([a-z_]+)\}\}", target["legendFormat"].as_str().expect("a legend")) {
                assert!(labels.contains(label), "{name}: {expr} has no label {label}");
            }
            for variable in found(r"\$([a-z]+)\b", expr) {
                assert!(names.contains(variable), "{name}: there is no variable {variable}");
            }
        }
    }
}
