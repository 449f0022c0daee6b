//! What Prometheus itself says of the alert rules and of the expressions in the dashboards.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sidestep_tests::end_to_end;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn promtool(arguments: &[&str], file: &Path) -> Result<String> {
    let mut promtool = Command::new("promtool");
    promtool.args(arguments).arg(file);
    let output = promtool.output().context("running promtool: apt-get install prometheus")?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "promtool {arguments:?} {}: {text}", file.display());
    Ok(text)
}

#[test]
fn alert_rules_are_valid_and_fire_when_they_should() -> Result<()> {
    let text = promtool(&["check", "rules"], &deploy().join("alerts.yaml"))?;
    ensure!(text.contains("SUCCESS") && text.contains("rules found"), "{text}");
    promtool(&["test", "rules"], &deploy().join("alerts.test.yaml")).map(drop)
}

#[test]
fn every_expression_of_the_dashboards_is_promql() {
    end_to_end(|bed| {
        let mut count = 0;
        for file in fs::read_dir(deploy().join("dashboards"))? {
            let path = file?.path();
            let dashboard: Value = serde_json::from_slice(&fs::read(&path)?)?;
            let panels = dashboard["panels"].as_array().context("panels")?.iter();
            let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
            let rules: Vec<_> = targets
                .map(|target| {
                    let expr = target["expr"].as_str().context("an expression")?;
                    // What Grafana puts in their place.
                    let expr =
                        expr.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$instance", ".*");
                    let expr = expr.replace("$namespace", ".*").replace("$pod", ".*");
                    ensure!(!expr.contains('$'), "{}: {expr}", path.display());
                    count += 1;
                    Ok(json!({ "record": format!("dashboard:{count}"), "expr": expr }))
                })
                .collect::<Result<_>>()?;
            let rules = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
            let rules_file = bed.path("rules.yaml")?;
            fs::write(&rules_file, rules.to_string())?;
            promtool(&["check", "rules"], &rules_file).with_context(|| path.display().to_string())?;
        }
        ensure!(count > 40, "only {count} expressions");
        Ok(())
    });
}
