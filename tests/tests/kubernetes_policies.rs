//! Annotations and policies of a real API server change what becomes of a container's lines.

/// By this name `cargo xtask test --no-cluster` leaves them out.
mod on_cluster {
    use std::{fs, io::Write as _, process::Command};

    use anyhow::{Result, ensure};
    use serde_json::{Value, json};
    use sidestep_tests::{
        Agent, ApiServer, Config, Container, DEADLINE, Testbed, agent, end_to_end, records::Record, wait_until,
    };

    const NODE: &str = "test-node";
    /// Writes each line that it reads.
    const ECHO: &str = "while read line; do echo \"$line\"; done";

    fn config(bed: &Testbed, server: &ApiServer<'_>) -> Config {
        bed.config().with("/kubernetes", json!({ "enabled": true, "kubeconfig": server.kubeconfig() }))
    }

    /// A server that knows the policies, whose agent may do what the documents say.
    fn server(bed: &Testbed) -> Result<ApiServer<'_>> {
        let server = ApiServer::start(bed)?;
        let definitions = Command::new(agent::binary()?).arg("crds").output()?;
        ensure!(definitions.status.success());
        server.kubectl(&["apply", "--server-side", "-f", "-"], &String::from_utf8(definitions.stdout)?)?;
        server.allow(&[
            ("", "pods", &["list", "watch"]),
            ("", "namespaces", &["list", "watch"]),
            ("", "nodes", &["get"]),
            ("sidestep.dev", "sidesteppolicies", &["list", "watch"]),
            ("sidestep.dev", "clustersidesteppolicies", &["list", "watch"]),
            ("sidestep.dev", "sidesteppolicies/status", &["patch"]),
            ("sidestep.dev", "clustersidesteppolicies/status", &["patch"]),
            ("sidestep.dev", "sidestepnodes", &["list", "watch", "create", "patch"]),
            ("sidestep.dev", "sidestepnodes/status", &["patch"]),
            ("events.k8s.io", "events", &["create"]),
            ("coordination.k8s.io", "leases", &["get", "create", "update"]),
        ])?;
        wait_until("the definitions", DEADLINE, || {
            let established = ["wait", "--for=condition=Established", "--timeout=1s"];
            let definitions = ["sidesteppolicies", "clustersidesteppolicies", "sidestepnodes"];
            let definitions = definitions.map(|plural| format!("crd/{plural}.sidestep.dev"));
            let arguments: Vec<_> = established.into_iter().chain(definitions.iter().map(String::as_str)).collect();
            let waited = server.kubectl(&arguments, "");
            Ok(waited.ok())
        })?;
        Ok(server)
    }

    fn policy(name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
            "metadata": { "name": name, "namespace": "shop" }, "spec": spec,
        })
    }

    fn container(bed: &Testbed, pod: &str, uid: &str) -> Result<Container> {
        bed.container("app").pod("shop", pod).pod_uid(uid).shell(ECHO).start()
    }

    /// Lets a container write until a record is as it should be.
    fn say_until(
        agent: &Agent,
        container: &mut Container,
        what: &str,
        is_so: impl Fn(&Record) -> bool,
    ) -> Result<Record> {
        let mut number = 0;
        wait_until(&format!("a record with {what}"), 2 * DEADLINE, || {
            number += 1;
            writeln!(container.stdin(), "{{\"{what}\":{number}}}")?;
            let body = format!("{{\"{what}\":{number}}}");
            let record = wait_until(&format!("the record of {body}"), DEADLINE, || {
                Ok(agent.records()?.into_iter().find(|record| record.text("/body") == body))
            })?;
            Ok(is_so(&record).then_some(record))
        })
    }

    fn condition(server: &ApiServer<'_>, policy: &str, kind: &str) -> Result<(String, String)> {
        let text = server.kubectl(&["get", "ssp", policy, "-n", "shop", "-o", "json"], "")?;
        let object: Value = serde_json::from_str(&text)?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("message")))
    }

    fn wait_condition(server: &ApiServer<'_>, policy: &str, kind: &str, status: &str) -> Result<String> {
        wait_until(&format!("{kind} {status} of {policy}"), 2 * DEADLINE, || {
            let (is, message) = condition(server, policy, kind)?;
            Ok((is == status).then_some(message))
        })
    }

    /// As many as a Pod may have, of those that take the longest to be checked.
    fn slow_expressions() -> Value {
        let bytes: String = (0x80..0xf8).map(|byte| format!("\\x{byte:02x}")).collect();
        let expression = format!(r"(?s-u)(?:.?.?.?){{0,90}}{{0,6}}Z!|0123456789abcdefghijklmnopqrstuvwxyz{bytes}");
        (0..50)
            .map(|number| (format!("c{number}.sidestep.dev/multiline"), json!(format!("/{expression}{number}/"))))
            .collect()
    }

    #[test]
    fn annotations_hold_from_the_first_line_and_wrong_ones_are_told() {
        end_to_end(|bed| {
            let server = server(bed)?;
            // A terminal would obey it, and it would end a line of a log.
            let odd = "a\u{1b}[31m\n\u{7}b";
            let annotations = json!({
                "team.example/odd": odd, "sidestep.dev/index": odd, "sidestep.dev/files": "/x".repeat(100 * 1024),
                "sidestep.dev/parse": "json", "sidestep.dev/tenant": "shop", "app.sidestep.dev/class": "business",
                "sidestep.dev/topic": "bank.orders", "sidestep.dev/multilin": "java",
            });
            let uid = server.create_pod("web", NODE, &json!({ "annotations": annotations }))?;
            let quiet = server.create_pod("quiet", NODE, &json!({ "annotations": { "sidestep.dev/logs": "off" } }))?;
            // Nobody waits until it is found out of each of these that it would be too slow.
            server.create_pod("slow", NODE, &json!({ "annotations": slow_expressions() }))?;
            let config = config(bed, &server)
                .with("/policies", json!({ "allow_tenants": ["{namespace}"] }))
                .with("/kubernetes/annotations", json!(["team.example/*"]));
            let agent = Agent::start(bed, &config)?;
            let mut quiet_container = container(bed, "quiet", &quiet)?;
            writeln!(quiet_container.stdin(), "secret")?;
            quiet_container.wait_stdout("secret\n")?;
            let mut web = container(bed, "web", &uid)?;
            // The very first line is held until the Pod is known.
            writeln!(web.stdin(), "{{\"level\":\"error\"}}")?;
            let record = wait_until("the first record", DEADLINE, || {
                Ok(agent.records()?.into_iter().find(|record| record.text("/body") == "{\"level\":\"error\"}"))
            })?;
            ensure!(record.text("/severity_text") == "ERROR", "parsed: {}", record.value);
            ensure!(record.resource("sidestep.tenant") == "shop", "{}", record.value);
            ensure!(record.text("/class") == "business", "{}", record.value);
            ensure!(record.resource("k8s.pod.annotation.team.example/odd") == odd, "{}", record.value);

            let events = wait_until("Events on the Pod", 2 * DEADLINE, || {
                let text = server.kubectl(&["get", "events.events.k8s.io", "-n", "shop", "-o", "json"], "")?;
                let list: Value = serde_json::from_str(&text)?;
                let items = list["items"].as_array().cloned().unwrap_or_default();
                Ok((items.len() >= 4).then_some(items))
            })?;
            let notes: Vec<_> =
                events.iter().map(|event| event["note"].as_str().unwrap_or_default().to_owned()).collect();
            ensure!(notes.iter().any(|note| note.contains("did you mean `multiline`?")), "{notes:?}");
            ensure!(
                notes.iter().any(|note| note.contains("sidestep.dev/topic") && note.contains("allow_declared")),
                "{notes:?}"
            );
            ensure!(
                notes.iter().any(|note| note.contains("the value has 204800 bytes; 8192 are the most")),
                "{notes:?}"
            );
            ensure!(events.iter().all(|event| event["regarding"]["name"] == "web"), "{events:?}");
            let is_plain = |text: &str| !text.contains(|char: char| char.is_control() && char != '\n');
            ensure!(notes.iter().all(|note| is_plain(note) && !note.contains('\n')), "{notes:?}");
            ensure!(is_plain(&agent.log()), "{}", agent.log());
            let metrics = agent.metrics()?;
            ensure!(metrics.sum("sidestep_policy_declarations_refused_total") == 4.0);
            ensure!(metrics.sum("sidestep_kubernetes_left_out_total") == 1.0, "also the one that is too long");

            // What is off is counted, and in no record.
            agent.wait_ledger(quiet_container.id(), "secret\n".len() as u64)?;
            ensure!(agent.records()?.iter().all(|record| record.text("/body") != "secret"));

            let explained = Command::new(agent::binary()?)
                .args(["explain", "pod", "shop/web", "--output", "json", "--socket"])
                .arg(config.socket())
                .output()?;
            ensure!(explained.status.success(), "{}", String::from_utf8_lossy(&explained.stderr));
            let report: Value = serde_json::from_slice(&explained.stdout)?;
            let fields = report["containers"][0]["fields"].as_array().cloned().unwrap_or_default();
            let class = fields.iter().find(|field| field["field"] == "class").cloned().unwrap_or_default();
            ensure!(
                class["decided_by"] == "annotation app.sidestep.dev/class" && class["value"] == "business",
                "{report}"
            );
            ensure!(
                report["containers"][0]["problems"].as_array().is_some_and(|problems| problems.len() == 4),
                "{report}"
            );
            // Of other Pods it says where they are, and whom to ask there.
            server.create_pod("elsewhere", "other-node", &json!({}))?;
            server.create_pod("silent", NODE, &json!({}))?;
            let ask = "ask there: `kubectl -n default exec sidestep-x2 -- sidestep explain pod shop/elsewhere`";
            server.apply(&json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": "sidestep-x2", "namespace": "default", "labels": { "app.kubernetes.io/name": "sidestep" } },
                "spec": { "nodeName": "other-node", "containers": [{ "name": "sidestep", "image": "test" }] },
            }))?;
            for (pod, expected) in [
                ("shop/elsewhere", ask),
                ("shop/silent", "is on this node, test-node, and none of its containers is known here"),
                ("shop/nowhere", "there is no Pod shop/nowhere"),
                ("shop/No?where", "-o wide` says on which node it is"),
            ] {
                let arguments = ["explain", "pod", pod, "--socket"];
                let output = Command::new(agent::binary()?).args(arguments).arg(config.socket()).output()?;
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                ensure!(output.status.code() == Some(1) && error.contains(expected), "{error}");
            }
            Ok(())
        });
    }

    #[test]
    fn policies_change_running_containers_and_their_conditions_are_true() {
        end_to_end(|bed| {
            let server = server(bed)?;
            let uid = server.create_pod("web", NODE, &json!({ "labels": { "app": "web" } }))?;
            let config = config(bed, &server).with("/policies", json!({ "allow_tenants": ["*"] }));
            let agent = Agent::start(bed, &config)?;
            let mut web = container(bed, "web", &uid)?;
            let plain = say_until(&agent, &mut web, "plain", |_| true)?;
            ensure!(plain.resource("sidestep.tenant").is_empty(), "{}", plain.value);

            let selector = json!({ "matchLabels": { "app": "web" } });
            server.apply(&policy(
                "first",
                &json!({ "selector": selector, "logs": { "tenant": "first", "parse": "json" } }),
            ))?;
            let of = |tenant: &'static str| move |record: &Record| record.resource("sidestep.tenant") == tenant;
            let changed = say_until(&agent, &mut web, "first", of("first"))?;
            ensure!(changed.stream() == plain.stream(), "it is the same stream");
            ensure!(changed.value["attributes"]["first"].is_number(), "parsed: {}", changed.value);
            wait_condition(&server, "first", "Accepted", "True")?;
            wait_until("one selected Pod", 2 * DEADLINE, || {
                let (status, message) = condition(&server, "first", "Programmed")?;
                Ok((status == "True" && message == "in force on 1 of 1 nodes").then_some(()))
            })?;
            // A node whose clock is wrong by years counts by when the API server has written its report.
            let report = |status: Value| {
                json!({
                    "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepNode",
                    "metadata": { "name": "behind" }, "spec": {}, "status": status,
                })
            };
            server.apply(&report(json!({ "policies": [] })))?;
            let behind = report(json!({ "policies": [], "reportTime": "2020-01-01T00:00:00Z" })).to_string();
            server.kubectl(&["apply", "--server-side", "--subresource=status", "-f", "-"], &behind)?;
            wait_until("the node that is behind", 2 * DEADLINE, || {
                let (status, message) = condition(&server, "first", "Programmed")?;
                Ok((status == "False" && message == "in force on 1 of 2 nodes").then_some(()))
            })?;
            server.kubectl(&["delete", "sidestepnode", "behind"], "")?;
            wait_condition(&server, "first", "Programmed", "True")?;

            // Of the same priority and younger: in conflict, until its priority is higher.
            server.apply(&policy("second", &json!({ "selector": selector, "logs": { "tenant": "second" } })))?;
            let message = wait_condition(&server, "second", "Conflicted", "True")?;
            ensure!(
                message == "spec.logs.tenant for Pod shop/web is decided by SidestepPolicy shop/first",
                "{message}"
            );
            server.apply(&policy(
                "second",
                &json!({ "selector": selector, "priority": 1, "logs": { "tenant": "second" } }),
            ))?;
            say_until(&agent, &mut web, "second", of("second"))?;
            wait_condition(&server, "second", "Conflicted", "False")?;

            // What only the agent can know to be wrong.
            let wrong = json!({ "selector": {}, "logs": { "multiline": { "patterns": [{ "start": "(" }] } } });
            server.apply(&policy("wrong", &wrong))?;
            let message = wait_condition(&server, "wrong", "Accepted", "False")?;
            ensure!(
                message.contains("spec.logs.multiline: ") && message.contains("not a regular expression"),
                "{message}"
            );
            let columns = server.kubectl(&["get", "ssp", "-n", "shop", "wrong", "--no-headers"], "")?;
            ensure!(columns.split_whitespace().take(4).eq(["wrong", "False", "False", "0/1"]), "{columns}");

            // The Pods of all nodes are asked for only while a policy names Pods as peers.
            let watch_of_all = || {
                let watches = status(&config)?["kubernetes"]["watches"].as_array().cloned().unwrap_or_default();
                Ok::<_, anyhow::Error>(watches.into_iter().find(|watch| watch["resource"] == "pods of all nodes"))
            };
            ensure!(watch_of_all()?.is_none());
            let peers = json!([{ "pods": [{ "selector": selector }] }]);
            server.apply(&policy(
                "peers",
                &json!({ "selector": selector, "traffic": { "allow": { "ingress": peers } } }),
            ))?;
            wait_until("the watch of all Pods", DEADLINE, || {
                Ok(watch_of_all()?.is_some_and(|watch| watch["state"] == "live").then_some(()))
            })?;

            server.kubectl(&["delete", "ssp", "--all", "-n", "shop"], "")?;
            wait_until("the end of that watch", DEADLINE, || Ok(watch_of_all()?.is_none().then_some(())))?;
            say_until(&agent, &mut web, "deleted", of(""))?;
            agent.wait_ledger(web.id(), web.stdout().len() as u64).map(drop)
        });
    }
    /// What the agent says of itself, as JSON.
    fn status(config: &Config) -> Result<Value> {
        let arguments = ["status", "--output", "json", "--socket"];
        let output = Command::new(agent::binary()?).args(arguments).arg(config.socket()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn holder(server: &ApiServer<'_>) -> Result<String> {
        server.kubectl(&["get", "lease", "sidestep", "-o", "jsonpath={.spec.holderIdentity}"], "")
    }

    fn wait_holder(server: &ApiServer<'_>, node: &str) -> Result<()> {
        wait_until(&format!("the Lease of {node}"), 2 * DEADLINE, || {
            Ok(holder(server).is_ok_and(|holder| holder == node).then_some(()))
        })
    }

    #[test]
    fn policies_outlive_agent_and_api_server_and_the_lease_ends_with_its_agent() {
        end_to_end(|bed| {
            let mut server = server(bed)?;
            let uid = server.create_pod("web", NODE, &json!({ "labels": { "app": "web" } }))?;
            let selector = json!({ "matchLabels": { "app": "web" } });
            server.apply(&policy("kept", &json!({ "selector": selector, "logs": { "tenant": "kept" } })))?;
            let config = config(bed, &server).with("/policies", json!({ "allow_tenants": ["*"] }));
            let agent = Agent::start(bed, &config)?;
            let mut web = container(bed, "web", &uid)?;
            let is_kept = |record: &Record| record.resource("sidestep.tenant") == "kept";
            say_until(&agent, &mut web, "first", is_kept)?;
            wait_holder(&server, NODE)?;
            wait_until("the saved files", DEADLINE, || {
                let has = |file: &str, text: &str| {
                    Ok::<_, anyhow::Error>(fs::read_to_string(bed.path(file)?).is_ok_and(|saved| saved.contains(text)))
                };
                Ok((has("state/policies.json", "kept")? && has("state/pods.json", &uid)?).then_some(()))
            })?;

            // Neither is left that has ever heard of the policy.
            server.kill()?;
            agent.kill()?;
            let agent = Agent::start(bed, &config)?;
            writeln!(web.stdin(), "nobody told")?;
            let record = wait_until("its record", DEADLINE, || {
                Ok(agent.records()?.into_iter().find(|record| record.text("/body") == "nobody told"))
            })?;
            ensure!(is_kept(&record), "{}", record.value);
            let kubernetes = status(&config)?["kubernetes"].clone();
            let watches = kubernetes["watches"].as_array().cloned().unwrap_or_default();
            let saved = watches.iter().filter(|watch| watch["saved_unix_seconds"].is_number());
            ensure!(saved.filter(|watch| watch["state"] == "never").count() >= 3, "{kubernetes}");
            ensure!(
                kubernetes["policies"][0]
                    == json!({ "scope": "namespaced", "in_force": 1, "refused": 0, "conflicted": 0 }),
                "{kubernetes}"
            );

            // It goes on with the Lease of the one before, and leaves it to the next.
            server.run()?;
            wait_until("the leader, with both watches", 2 * DEADLINE, || {
                let metrics = agent.metrics()?;
                let leads = metrics.sum("sidestep_policy_status_leader") == 1.0;
                Ok((leads && metrics.sum("sidestep_policy_watch_live") == 2.0).then_some(()))
            })?;
            ensure!(agent.metrics()?.sum("sidestep_policy_in_force") == 1.0);
            agent.stop()?;
            ensure!(holder(&server)?.is_empty(), "it is let go of");
            let agent = Agent::start(bed, &config.with("/node_name", json!("other-node")))?;
            wait_holder(&server, "other-node")?;
            agent.stop()
        });
    }
}
