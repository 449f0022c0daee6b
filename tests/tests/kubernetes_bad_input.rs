//! What is missing on a cluster, or does not fit together, is told; it costs no line.

/// By this name `cargo xtask test --no-cluster` leaves them out.
mod on_cluster {
    use std::time::Duration;

    use anyhow::{Context, Result, ensure};
    use serde_json::{Value, json};
    use sidestep_tests::{
        Expected,
        cluster::{
            Cluster, DaemonSet, PATIENCE, on_cluster,
            workload::{Writer, while_writing},
        },
        wait_until,
    };

    const SHOP: &str = "shop";

    fn policy(name: &str, app: &str, priority: i32, parse: &str) -> Value {
        json!({
            "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
            "metadata": { "name": name, "namespace": SHOP },
            "spec": {
                "selector": { "matchLabels": { "app": app } }, "priority": priority, "logs": { "parse": parse },
            },
        })
    }

    /// Waits until a condition of a policy has this status and a message that holds `part`.
    fn wait_condition(cluster: &Cluster, policy: &str, kind: &str, status: &str, part: &str) -> Result<Value> {
        cluster.wait_for(&["--namespace", SHOP, "sidesteppolicy", policy], |object| {
            let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            conditions.any(|condition| {
                let message = condition["message"].as_str().unwrap_or_default();
                condition["type"] == kind && condition["status"] == status && message.contains(part)
            })
        })
    }

    /// Waits until the watch of policies of namespaces is live, or not.
    fn wait_live(cluster: &Cluster, agents: &DaemonSet<'_>, live: bool) -> Result<()> {
        wait_until("the state of the watch of policies", PATIENCE, || {
            let metrics = agents.metrics(cluster.node())?;
            let mut samples = metrics.samples.iter().filter(|sample| sample.name == "sidestep_kubernetes_watch_live");
            let watch = samples.find(|sample| sample.labels["resource"] == "sidesteppolicies");
            Ok(watch.filter(|sample| sample.value == f64::from(u8::from(live))).map(drop))
        })
    }

    /// The rights of the agent, without those to these resources of `sidestep.dev`.
    fn refuse(cluster: &Cluster, role: &Value, resources: &[&str]) -> Result<()> {
        let mut role = role.clone();
        let rules = role["rules"].as_array_mut().context("rules")?;
        let is_refused = |rule: &Value| {
            let of_rule = rule["resources"].as_array().into_iter().flatten();
            rule["apiGroups"] == json!(["sidestep.dev"])
                && of_rule.flat_map(Value::as_str).any(|of| resources.contains(&of))
        };
        rules.retain(|rule| !is_refused(rule));
        cluster.apply(&role.to_string()).map(drop)
    }

    /// The role as it is to be, without what the API server has added.
    fn role(cluster: &Cluster) -> Result<Value> {
        let role = cluster.get(&["clusterrole", "sidestep"])?;
        Ok(json!({
            "apiVersion": role["apiVersion"], "kind": role["kind"], "rules": role["rules"],
            "metadata": { "name": "sidestep", "labels": role["metadata"]["labels"] },
        }))
    }

    /// With a container that writes all the while.
    fn under_load(test: impl FnOnce(&Cluster, &DaemonSet<'_>) -> Result<()>) {
        on_cluster(|cluster| {
            DaemonSet::with(cluster, |agents| {
                let writer = Writer::new("cart", 1000).with_pause(Duration::from_millis(30));
                while_writing(agents, cluster, writer, 1, Expected::new(), || test(cluster, agents))
            })
        });
    }

    #[test]
    fn policies_that_select_nothing_or_are_in_conflict_say_so() {
        under_load(|cluster, _| {
            for (name, app) in [("nothing", "nobody"), ("first", "cart")] {
                cluster.apply(&policy(name, app, 0, "json").to_string())?;
                wait_condition(cluster, name, "Programmed", "True", "in force on 1 of 1 nodes")?;
            }
            let nothing = wait_condition(cluster, "nothing", "Programmed", "True", "it selects no Pod")?;
            ensure!(nothing["status"]["selectedPods"] == 0, "{nothing}");
            let mut nowhere = policy("nowhere", "cart", 0, "json");
            nowhere["spec"]["logs"]["sinks"] = json!(["serch"]);
            cluster.apply(&nowhere.to_string())?;
            wait_condition(cluster, "nowhere", "Programmed", "False", "there is no sink [\"serch\"]")?;
            cluster.kubectl(&["--namespace", SHOP, "delete", "sidesteppolicy", "nowhere"])?;
            cluster.apply(&policy("second", "cart", 0, "logfmt").to_string())?;
            let decided = "is decided by SidestepPolicy shop/first";
            wait_condition(cluster, "second", "Conflicted", "True", decided)?;
            wait_condition(cluster, "first", "Conflicted", "False", "")?;
            // Whoever looks sees it at once.
            let listed = cluster.kubectl(&["--namespace", SHOP, "get", "sidesteppolicy", "--no-headers"])?;
            ensure!(listed.lines().count() == 3, "{listed}");
            cluster.apply(&policy("second", "cart", 1, "logfmt").to_string())?;
            wait_condition(cluster, "second", "Conflicted", "False", "").map(drop)
        });
    }

    #[test]
    fn a_right_or_a_definition_that_is_missing_is_told() {
        under_load(|cluster, agents| {
            let role = role(cluster)?;
            wait_live(cluster, agents, true)?;

            // The status can't be told; what the policy says holds all the same.
            let statuses = ["sidesteppolicies/status", "sidestepnodes/status"];
            refuse(cluster, &role, &statuses)?;
            cluster.apply(&policy("first", "cart", 0, "json").to_string())?;
            agents.wait_logged(&["kubernetes_forbidden", "verb=\"patch\" resource=\"sidestepnodes/status\""])?;
            let pods = cluster.get(&["--namespace", SHOP, "pods", "--selector=app=cart"])?;
            let pod = format!("{SHOP}/{}", pods["items"][0]["metadata"]["name"].as_str().context("a Pod")?);
            let explain = ["explain", "pod", &pod];
            let explained = agents.exec(&explain)?;
            ensure!(explained.contains("shop/first"), "{explained}");

            // No policies at all, for an agent that starts then.
            refuse(cluster, &role, &["sidesteppolicies"])?;
            agents.roll()?;
            agents.wait_logged(&["kubernetes_forbidden", "verb=\"list\" resource=\"sidesteppolicies\""])?;
            wait_live(cluster, agents, false)?;
            cluster.apply(&role.to_string())?;
            wait_live(cluster, agents, true)?;
            wait_condition(cluster, "first", "Programmed", "True", "in force on 1 of 1 nodes")?;

            // What the agent reports in is deleted, and made anew with the next news.
            cluster.kubectl(&["delete", "sidestepnodes", "--all"])?;
            cluster.apply(&policy("first", "cart", 1, "json").to_string())?;
            cluster.wait_for(&["sidestepnode", &cluster.node().name()], |_| true)?;
            wait_condition(cluster, "first", "Programmed", "True", "in force on 1 of 1 nodes")?;

            // The definitions go, with all policies, and come again.
            let names = ["sidesteppolicies", "clustersidesteppolicies", "sidestepnodes"];
            let definitions: Vec<_> = names.iter().map(|name| format!("crd/{name}.sidestep.dev")).collect();
            let definitions: Vec<_> = definitions.iter().map(String::as_str).collect();
            cluster.kubectl(&[&["delete"], &definitions[..]].concat())?;
            agents.wait_logged(&["policies_absent", "resource=\"sidesteppolicies\""])?;
            wait_live(cluster, agents, false)?;
            ensure!(!agents.exec(&explain)?.contains("shop/first"), "a policy without a definition is in force");
            cluster.apply(&agents.exec(&["crds"])?)?;
            wait_live(cluster, agents, true)?;
            cluster.apply(&policy("again", "cart", 0, "json").to_string())?;
            wait_until("a policy in force", PATIENCE, || {
                Ok(agents.exec(&explain)?.contains("shop/again").then_some(()))
            })
        });
    }
}
