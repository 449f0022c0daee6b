//! What a real API server tells of Pods, in records: containers are runc's, with the UIDs of Pods of the API server.

/// By this name `cargo xtask test --no-cluster` leaves them out.
mod on_cluster {
    use std::{
        fs,
        io::Write as _,
        process::Command,
        time::{Duration, Instant},
    };

    use anyhow::{Context, Result, ensure};
    use serde_json::{Value, json};
    use sidestep_tests::{
        Agent, ApiServer, Config, Container, DEADLINE, Testbed, agent, certificates::Authority, end_to_end,
        receiver::Receiver, records::Record, wait_until,
    };

    const NODE: &str = "test-node";
    /// Writes each line that it reads.
    const ECHO: &str = "while read line; do echo \"$line\"; done";

    /// An agent that watches Pods alone: the server has no definitions of policies.
    fn config(bed: &Testbed, server: &ApiServer<'_>) -> Config {
        let kubernetes = json!({ "enabled": true, "kubeconfig": server.kubeconfig() });
        bed.config().with("/kubernetes", kubernetes).with("/policies/resources", json!(false))
    }

    fn container(bed: &Testbed, pod: &str, uid: &str) -> Result<Container> {
        bed.container("app").pod("shop", pod).pod_uid(uid).shell(ECHO).start()
    }

    /// Lets a container write a line, and waits for its record.
    fn say(agent: &Agent, container: &mut Container, line: &str) -> Result<Record> {
        writeln!(container.stdin(), "{line}")?;
        wait_until(&format!("the record of {line}"), DEADLINE, || {
            Ok(agent.records()?.into_iter().find(|record| record.text("/body") == line))
        })
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
            let record = say(agent, container, &format!("{what} {number}"))?;
            Ok(is_so(&record).then_some(record))
        })
    }

    fn label<'record>(record: &'record Record, key: &str) -> &'record str {
        record.resource(&format!("k8s.pod.label.{key}"))
    }

    fn wait_live(agent: &Agent, live: f64) -> Result<()> {
        wait_until("the watch's state", 2 * DEADLINE, || {
            Ok((agent.metrics()?.sum("sidestep_kubernetes_watch_live") == live).then_some(()))
        })
    }

    fn count(agent: &Agent, event: &str) -> Result<f64> {
        let metrics = agent.metrics()?;
        let samples = metrics.samples.iter().filter(|sample| sample.name == "sidestep_events_total");
        Ok(samples.filter(|sample| sample.labels["event"] == event).map(|sample| sample.value).sum())
    }

    fn controller(kind: &str, name: &str, uid: &str) -> Value {
        json!([{ "apiVersion": "batch/v1", "kind": kind, "name": name, "uid": uid, "controller": true }])
    }

    #[test]
    fn labels_and_workloads_are_in_records_and_follow_their_changes() {
        end_to_end(|bed| {
            let server = ApiServer::start(bed)?;
            let web = server.create_pod(
            "web-6d4cf56db6-x2",
            NODE,
            &json!({
                "labels": { "app": "web", "app.kubernetes.io/name": "shop", "pod-template-hash": "6d4cf56db6" },
                "annotations": { "team.example/name": "cart", "other": "not allowed", "sidestep.dev/huge": "x".repeat(200 * 1024) },
                "ownerReferences": controller("ReplicaSet", "web-6d4cf56db6", "3f1c"),
            }),
        )?;
            // Not of this node.
            server.create_pod("elsewhere", "other-node", &json!({ "labels": { "app": "elsewhere" } }))?;
            let job = json!({
                "apiVersion": "batch/v1", "kind": "Job",
                "metadata": {
                    "name": "nightly-1", "namespace": "shop", "ownerReferences": controller("CronJob", "nightly", "77"),
                },
                "spec": { "template": { "spec": {
                    "restartPolicy": "Never", "containers": [{ "name": "app", "image": "test" }],
                } } },
            });
            let made: Value =
                serde_json::from_str(&server.kubectl(&["create", "-o", "json", "-f", "-"], &job.to_string())?)?;
            let owners = controller("Job", "nightly-1", made["metadata"]["uid"].as_str().context("a UID")?);
            let nightly = server.create_pod("nightly-1-abc", NODE, &json!({ "ownerReferences": owners }))?;
            let hash = "0123456789abcdef0123456789abcdef";
            server.create_pod(
                "etcd-test-node",
                NODE,
                &json!({
                    "labels": { "component": "etcd" },
                    "annotations": { "kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash },
                    "ownerReferences": controller("Node", NODE, "1"),
                }),
            )?;

            let config = config(bed, &server)
                .with("/kubernetes/annotations", json!(["team.example/*", "sidestep.dev/*"]))
                .with("/kubernetes/namespace_labels", json!(["*"]))
                .with("/kubernetes/metric_labels", json!(["app*"]));
            let agent = Agent::start(bed, &config)?;
            wait_live(&agent, 2.0)?;

            let mut web = container(bed, "web-6d4cf56db6-x2", &web)?;
            let record = say_until(&agent, &mut web, "labels", |record| label(record, "app") == "web")?;
            let expected = [
                ("k8s.replicaset.name", "web-6d4cf56db6"),
                ("k8s.deployment.name", "web"),
                ("k8s.pod.label.app.kubernetes.io/name", "shop"),
                ("k8s.pod.annotation.team.example/name", "cart"),
                ("k8s.pod.annotation.other", ""),
                ("k8s.pod.annotation.sidestep.dev/huge", ""),
                ("k8s.namespace.label.kubernetes.io/metadata.name", "shop"),
                ("k8s.pod.name", "web-6d4cf56db6-x2"),
            ];
            for (name, value) in expected {
                ensure!(record.resource(name) == value, "{name}: {}", record.value);
            }
            ensure!(count(&agent, "kubernetes_metadata_left_out")? >= 1.0);

            // A change of a label: the stream is the same, without a gap.
            server.kubectl(&["label", "pod", "-n", "shop", "web-6d4cf56db6-x2", "app=shop", "--overwrite"], "")?;
            let changed = say_until(&agent, &mut web, "relabelled", |record| label(record, "app") == "shop")?;
            ensure!(changed.stream() == record.stream() && changed.position() > record.position());
            agent.wait_ledger(web.id(), web.stdout().len() as u64)?;

            let mut nightly = container(bed, "nightly-1-abc", &nightly)?;
            let record = say_until(&agent, &mut nightly, "the CronJob", |record| {
                record.resource("k8s.cronjob.name") == "nightly"
            })?;
            ensure!(record.resource("k8s.job.name") == "nightly-1", "{}", record.value);

            // The runtime knows a static Pod by the hash of its file.
            let mut etcd = container(bed, "etcd-test-node", hash)?;
            say_until(&agent, &mut etcd, "a static Pod", |record| label(record, "component") == "etcd")?;

            let metrics = agent.metrics()?;
            let of_web = |name: &str| {
                let is_web = |id: &&String| web.id().starts_with(id.as_str());
                let mut samples = metrics.samples.iter().filter(|sample| sample.name == name);
                samples.find(|sample| sample.labels.get("container_id").filter(is_web).is_some())
            };
            let labels = &of_web("sidestep_log_container_labels").context("labels of the container")?.labels;
            ensure!(labels["label_app"] == "shop" && labels["label_app_kubernetes_io_name"] == "shop", "{labels:?}");
            ensure!(metrics.sum("sidestep_kubernetes_pods") == 3.0, "of this node only");
            agent.stop()
        });
    }

    #[test]
    fn an_api_server_that_is_down_costs_freshness_and_nothing_else() {
        end_to_end(|bed| {
            let mut server = ApiServer::start(bed)?;
            let old = server.create_pod("db-0", NODE, &json!({ "labels": { "version": "1" } }))?;
            let config = config(bed, &server);
            let agent = Agent::start(bed, &config)?;
            wait_live(&agent, 1.0)?;
            let mut first = container(bed, "db-0", &old)?;
            say_until(&agent, &mut first, "the first", |record| label(record, "version") == "1")?;
            wait_until("the saved Pods", DEADLINE, || Ok(fs::exists(bed.path("state/pods.json")?)?.then_some(())))?;

            // The same name, another Pod.
            server.delete_pod("db-0")?;
            let new = server.create_pod("db-0", NODE, &json!({ "labels": { "version": "2" } }))?;
            let mut second = container(bed, "db-0", &new)?;
            say_until(&agent, &mut second, "the second", |record| label(record, "version") == "2")?;
            let record = say(&agent, &mut first, "still the first")?;
            ensure!(label(&record, "version") == "1", "{}", record.value);
            let saved = || Ok(fs::read_to_string(bed.path("state/pods.json")?)?.contains(&new).then_some(()));
            wait_until("the second Pod saved", DEADLINE, saved)?;

            server.kill()?;
            wait_live(&agent, 0.0)?;
            ensure!(label(&say(&agent, &mut second, "while it is down")?, "version") == "2");
            let output = Command::new(agent::binary()?).arg("status").arg("--socket").arg(config.socket()).output()?;
            let status = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(status.contains("pods stale for "), "{status}");
            ensure!(count(&agent, "kubernetes_unreachable")? >= 1.0);

            // An agent that starts while it is down knows what the one before has saved, and says how old that is.
            agent.stop()?;
            let agent = Agent::start(bed, &config)?;
            ensure!(label(&say(&agent, &mut second, "a new agent")?, "version") == "2");
            wait_until("the failed request", DEADLINE, || {
                Ok((count(&agent, "kubernetes_unreachable")? >= 1.0).then_some(()))
            })?;
            let mut third =
                bed.container("third").pod("shop", "unknown").pod_uid("00000000-0000-4000-8000-000000000001");
            third = third.shell(ECHO);
            let mut third = third.start()?;
            let record = say(&agent, &mut third, "nobody told of it")?;
            ensure!(
                record.resource("k8s.pod.name") == "unknown" && !record.value["resource"].to_string().contains("label")
            );

            server.run()?;
            wait_live(&agent, 1.0)?;
            wait_until("the news of it", DEADLINE, || {
                Ok((count(&agent, "kubernetes_watch_recovered")? == 1.0).then_some(()))
            })?;
            server.kubectl(&["label", "pod", "-n", "shop", "db-0", "version=3", "--overwrite"], "")?;
            say_until(&agent, &mut second, "the third", |record| label(record, "version") == "3")?;

            // What was seen last is too long ago for the server that starts anew: everything is listed again.
            server.kill()?;
            wait_live(&agent, 0.0)?;
            server.run()?;
            server.kubectl(&["label", "pod", "-n", "shop", "db-0", "version=4", "--overwrite"], "")?;
            wait_live(&agent, 1.0)?;
            say_until(&agent, &mut second, "the fourth", |record| label(record, "version") == "4")?;
            for container in [&second, &third] {
                let ledger = agent.ledger(container.id())?;
                ensure!(ledger.difference() == 0 && ledger.dropped_total() == 0, "{ledger:?}");
            }
            agent.stop()
        });
    }

    #[test]
    fn a_right_that_is_missing_is_named() {
        end_to_end(|bed| {
            let server = ApiServer::start(bed)?;
            server.allow(&[("", "namespaces", &["list", "watch"])])?;
            let owners = controller("Job", "once", "u-1");
            let once = server.create_pod(
                "once-abc",
                NODE,
                &json!({ "labels": { "app": "once" }, "ownerReferences": owners }),
            )?;
            let agent = Agent::start(bed, &config(bed, &server))?;
            let told = |verb: &str, resource: &str| {
                let line = format!("verb=\"{verb}\" resource=\"{resource}\"");
                let is_it =
                    |log: &str| log.lines().any(|text| text.contains("kubernetes_forbidden") && text.contains(&line));
                wait_until(&format!("the log with {line}"), DEADLINE, || Ok(is_it(&agent.log()).then_some(())))
                    .with_context(|| agent.log())
            };
            told("list", "pods")?;
            server.allow(&[("", "pods", &["list", "watch"])])?;
            wait_live(&agent, 1.0)?;
            told("get", "jobs")?;
            let mut once = container(bed, "once-abc", &once)?;
            let record = say_until(&agent, &mut once, "what is allowed", |record| label(record, "app") == "once")?;
            ensure!(record.resource("k8s.job.name") == "once" && record.resource("k8s.cronjob.name").is_empty());
            agent.stop()
        });
    }

    /// As by the clock of a node that is hours off.
    #[test]
    fn a_certificate_that_is_not_valid_by_the_nodes_clock_is_told_and_costs_no_line() {
        end_to_end(|bed| {
            let authority = Authority::new(bed, "cluster")?;
            let (certificate, key) = authority.issue("old", -1)?;
            let server = Receiver::with_tls(bed, "old", &[&certificate, &key])?;
            let cluster = json!({ "server": server.url(), "certificate-authority": authority.file() });
            let kubeconfig = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "it",
                "clusters": [{ "name": "it", "cluster": cluster }],
                "users": [{ "name": "agent", "user": { "token": "none" } }],
                "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "agent" } }],
            });
            let path = bed.path("kubeconfig")?;
            fs::write(&path, kubeconfig.to_string())?;
            let agent = Agent::start(bed, &bed.config().with("/kubernetes", json!({ "kubeconfig": path })))?;
            let told =
                |log: &str| log.lines().any(|line| line.contains("kubernetes_unreachable") && line.contains("xpired"));
            wait_until("the reason in the log", DEADLINE, || Ok(told(&agent.log()).then_some(())))
                .with_context(|| agent.log())?;
            let mut web = container(bed, "web", "00000000-0000-4000-8000-000000000001")?;
            say(&agent, &mut web, "all the same")?;
            agent.wait_ledger(web.id(), web.stdout().len() as u64)?;
            agent.stop()
        });
    }

    #[test]
    fn a_sink_can_go_by_labels_also_for_a_container_of_a_moment() {
        end_to_end(|bed| {
            let mut server = ApiServer::start(bed)?;
            let selected = bed.path("selected")?;
            let config = config(bed, &server).with(
                "/sinks/1",
                json!({
                    "type": "file", "name": "selected", "path": selected, "compression": "none",
                    "filter": { "labels": "app in (once, twice), !canary", "workload": ["nightly"] },
                }),
            );
            let agent = Agent::start(bed, &config)?;
            wait_live(&agent, 1.0)?;
            let metadata = |canary: bool| {
                let mut labels = json!({ "app": "once" });
                if canary {
                    labels["canary"] = json!("yes");
                }
                json!({ "labels": labels, "ownerReferences": controller("StatefulSet", "nightly", "u") })
            };
            let names: Vec<_> = (0..10).map(|number| format!("once-{number}")).collect();
            for (number, name) in names.iter().enumerate() {
                // The container runs as soon as the Pod has a UID: the kubelet is never that fast.
                let uid = server.create_pod(name, NODE, &metadata(number % 2 == 1))?;
                let script = format!("echo {name}; echo {name} > /var/log/{name}.log");
                let mut once = bed.container(name).pod("shop", name).pod_uid(&uid).shell(&script).start()?;
                once.finish()?;
            }
            let expected: Vec<_> = names.iter().step_by(2).collect();
            wait_until("the selected lines", DEADLINE, || {
                let records = sidestep_tests::records::read(&selected)?;
                let of = |class: &str| {
                    let mut of: Vec<_> = records
                        .iter()
                        .filter(|record| record.class() == class)
                        .map(|r| r.text("/body").to_owned())
                        .collect();
                    of.sort();
                    of
                };
                let is_all = |of: &[String]| of.iter().eq(expected.iter().copied());
                Ok((is_all(&of("pod")) && is_all(&of("business"))).then_some(()))
            })?;

            // Nobody waits for an API server that does not answer.
            server.kill()?;
            wait_live(&agent, 0.0)?;
            let start = Instant::now();
            let mut unknown = container(bed, "unknown", "00000000-0000-4000-8000-000000000001")?;
            say(&agent, &mut unknown, "at once")?;
            ensure!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
            agent.stop()
        });
    }
}
