//! Policies for traffic, on a real Kubernetes node: selected by labels, decided in the kernel at the Pods' sockets
//! and interfaces.

/// By this name `cargo xtask test --no-cluster` leaves them out.
mod on_cluster {
    use std::time::{Duration, Instant};

    use anyhow::{Context, Result, ensure};
    use serde_json::{Value, json};
    use sidestep_tests::{
        cluster::{
            Cluster, DaemonSet, PATIENCE, on_cluster,
            workload::{Namespace, Writer, pod},
        },
        wait_until,
    };

    /// In which the kubelet gives a container up whose probes fail.
    const PROBES: Duration = Duration::from_secs(2);

    /// What busybox says of `EPERM`.
    const REFUSED: &str = "Operation not permitted";

    /// Waits until the status of a policy says this of whether it is in force.
    fn wait_programmed(cluster: &Cluster, shop: &Namespace<'_>, name: &str, status: &str, message: &str) -> Result<()> {
        let policy = format!("sidesteppolicy/{name}");
        let is_it = |condition: &Value| {
            let text = condition["message"].as_str().unwrap_or_default();
            condition["type"] == "Programmed" && condition["status"] == status && text.contains(message)
        };
        let named = ["--namespace", shop.name(), &policy];
        cluster.wait_for(&named, |policy| {
            policy["status"]["conditions"].as_array().is_some_and(|conditions| conditions.iter().any(is_it))
        })?;
        Ok(())
    }

    /// What a connection of the Pod `client` comes to: nothing, or what busybox says of it.
    fn connect(cluster: &Cluster, shop: &Namespace<'_>, address: &str, port: u16) -> Result<String> {
        let command = format!("nc -w 5 {address} {port} < /dev/null 2>&1; true");
        cluster.kubectl(&["--namespace", shop.name(), "exec", "client", "--", "sh", "-c", &command])
    }

    #[test]
    fn a_policy_holds_for_the_pods_that_it_selects_whatever_becomes_of_the_agent() {
        on_cluster(|cluster| {
            DaemonSet::with(cluster, |daemonset| {
                let shop = Namespace::new(cluster, "shop")?;
                shop.create_pod("client", &pod(&[Writer::new("client", 1)]))?;
                let mut server = pod(&[Writer::new("server", 1)]);
                let listen = "for port in 8080 8081; do nc -ll -p $port -e echo hello & done; wait";
                server["containers"][0]["command"] = json!(["sh", "-c", listen]);
                shop.create_pod("server", &server)?;
                let running = |name: &str| {
                    let pod = ["--namespace", shop.name(), "pod", name];
                    cluster.wait_for(&pod, |pod| pod["status"]["containerStatuses"][0]["ready"] == true)
                };
                running("client")?;
                let address = running("server")?;
                let address = address["status"]["podIP"].as_str().context("the server's address")?;
                for port in [8080, 8081] {
                    wait_until("the server", PATIENCE, || {
                        Ok(connect(cluster, &shop, address, port)?.contains("hello").then_some(()))
                    })?;
                }

                let policy = json!({
                    "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
                    "metadata": { "name": "client", "namespace": shop.name() },
                    "spec": {
                        "selector": { "matchLabels": { "app": "client" } },
                        "traffic": { "allow": { "egress": [{
                            "pods": [{ "selector": { "matchLabels": { "app": "server" } } }],
                            "ports": [{ "port": 8080 }],
                        }] } },
                    },
                });
                cluster.apply(&policy.to_string())?;
                wait_until("a refusal", PATIENCE, || {
                    Ok(connect(cluster, &shop, address, 8081)?.contains(REFUSED).then_some(()))
                })?;
                ensure!(connect(cluster, &shop, address, 8080)?.contains("hello"));
                wait_programmed(cluster, &shop, "client", "True", "in force on ")?;

                daemonset.kill(cluster.node())?;
                for _ in 0..3 {
                    let answer = connect(cluster, &shop, address, 8081)?;
                    ensure!(answer.contains(REFUSED), "{answer}");
                }
                daemonset.roll()?;
                let answer = connect(cluster, &shop, address, 8081)?;
                ensure!(answer.contains(REFUSED), "{answer}");
                ensure!(connect(cluster, &shop, address, 8080)?.contains("hello"));
                let counters = daemonset.exec(&["policy", "counters"])?;
                ensure!(counters.contains("shop/client") && counters.contains("not_allowed"), "{counters}");

                // Who may write policies of the namespace can't hold up those of the cluster by one that is wrong.
                for number in 1..=2 {
                    let wrong = json!({
                        "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
                        "metadata": { "name": "wrong", "namespace": shop.name() },
                        "spec": {
                            "selector": {}, "containers": ["client"], "priority": number,
                            "traffic": { "limits": { "connectionsOut": { "perSecond": 1 } } },
                        },
                    });
                    cluster.apply(&wrong.to_string())?;
                }
                let nobody = json!({
                    "apiVersion": "sidestep.dev/v1alpha1", "kind": "ClusterSidestepPolicy",
                    "metadata": { "name": "nobody" },
                    "spec": { "selector": { "matchLabels": { "app": "client" } }, "traffic": { "allow": { "egress": [] } } },
                });
                cluster.apply(&nobody.to_string())?;
                wait_until("a refusal by the cluster's policy", PATIENCE, || {
                    Ok(connect(cluster, &shop, address, 8080)?.contains(REFUSED).then_some(()))
                })?;
                cluster.kubectl(&["delete", "clustersidesteppolicy/nobody"])?;
                wait_until("a connection", PATIENCE, || {
                    Ok(connect(cluster, &shop, address, 8080)?.contains("hello").then_some(()))
                })?;

                cluster.kubectl(&["--namespace", shop.name(), "label", "pod", "client", "app=other", "--overwrite"])?;
                wait_until("a connection", PATIENCE, || {
                    Ok(connect(cluster, &shop, address, 8081)?.contains("hello").then_some(()))
                })?;
                pods_of_a_workload_share_its_limit(cluster, daemonset, &shop, address)
            })
        });
    }

    /// What one Pod of a Deployment has taken the other has not, of a limit that the workload has.
    fn pods_of_a_workload_share_its_limit(
        cluster: &Cluster,
        daemonset: &DaemonSet<'_>,
        shop: &Namespace<'_>,
        address: &str,
    ) -> Result<()> {
        const BURST: usize = 30;
        let labels = json!({ "app": "pair" });
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "pair", "namespace": shop.name() },
            "spec": {
                "replicas": 2, "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": pod(&[Writer::new("pair", 1)]) },
            },
        });
        let policy = json!({
            "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
            "metadata": { "name": "pair", "namespace": shop.name() },
            "spec": { "selector": { "matchLabels": labels }, "traffic": { "limits": {
                "connectionsOut": { "perSecond": 1, "burst": BURST, "per": "Workload" },
            } } },
        });
        cluster.apply(&policy.to_string())?;
        cluster.apply(&deployment.to_string())?;
        cluster
            .wait_for(&["--namespace", shop.name(), "deployment/pair"], |pair| pair["status"]["readyReplicas"] == 2)?;
        wait_until("both Pods", PATIENCE, || {
            let shown = daemonset.exec(&["policy", "show"])?;
            Ok((shown.matches("with all Pods of its workload on this node").count() == 2).then_some(()))
        })?;
        let names =
            cluster.kubectl(&["--namespace", shop.name(), "get", "pods", "--selector=app=pair", "--output=name"])?;
        let command = format!("for i in $(seq {}); do nc -w 5 {address} 8080 < /dev/null 2>&1; done; true", 2 * BURST);
        let mut admitted = Vec::new();
        for name in names.lines() {
            let answers = cluster.kubectl(&["--namespace", shop.name(), "exec", name, "--", "sh", "-c", &command])?;
            admitted.push(answers.matches("hello").count());
        }
        // The second has what has come again meanwhile, one in a second.
        ensure!(matches!(admitted[..], [first, second] if first >= BURST && second < BURST / 2), "{admitted:?}");
        Ok(())
    }

    /// Requests of one Pod to another, as busybox' `wget` sees them.
    fn get(cluster: &Cluster, shop: &Namespace<'_>, url: &str) -> Result<String> {
        get_as("client", cluster, shop, url)
    }

    fn get_as(pod: &str, cluster: &Cluster, shop: &Namespace<'_>, url: &str) -> Result<String> {
        let command = format!("wget -S -O - {url} 2>&1; true");
        cluster.kubectl(&["--namespace", shop.name(), "exec", pod, "--", "sh", "-c", &command])
    }

    #[test]
    fn clients_are_limited_and_refused_by_the_kernel_and_probes_are_not() {
        on_cluster(|cluster| {
            DaemonSet::with(cluster, |daemonset| {
                let shop = Namespace::new(cluster, "shop")?;
                shop.create_pod("client", &pod(&[Writer::new("client", 1)]))?;
                let mut server = pod(&[Writer::new("server", 1)]);
                let serve = "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 8080 -h /www";
                server["containers"][0]["command"] = json!(["sh", "-c", serve]);
                server["containers"][0]["livenessProbe"] = json!({ "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 2 });
                shop.create_pod("server", &server)?;
                let running = |name: &str| {
                    let pod = ["--namespace", shop.name(), "pod", name];
                    cluster.wait_for(&pod, |pod| pod["status"]["containerStatuses"][0]["ready"] == true)
                };
                running("client")?;
                let address = running("server")?;
                let address = address["status"]["podIP"].as_str().context("the server's address")?;
                let url = format!("http://{address}:8080/");
                wait_until("the server", PATIENCE, || Ok(get(cluster, &shop, &url)?.contains("hello").then_some(())))?;
                let apply = |traffic: Value| {
                    let policy = json!({
                        "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
                        "metadata": { "name": "server", "namespace": shop.name() },
                        "spec": { "selector": { "matchLabels": { "app": "server" } }, "traffic": traffic },
                    });
                    cluster.apply(&policy.to_string())
                };
                apply(json!({ "limits": { "httpRequests": [{ "rate": { "perSecond": 1, "burst": 1 } }] } }))?;
                // The agents are in a network of their own, where nothing leads to the Pod: they say so.
                wait_until("what is missing", PATIENCE, || {
                    let shown = daemonset.exec(&["policy", "show"])?;
                    Ok(shown.contains("hostNetwork: true").then_some(()))
                })?;
                wait_programmed(cluster, &shop, "server", "False", "hostNetwork: true")?;
                daemonset.join_node_network()?;
                let limited = |url: &str| {
                    wait_until("429", PATIENCE, || {
                        let answers = get(cluster, &shop, &format!("{url} {url} {url} {url}"))?;
                        let is_limited = answers.contains("HTTP/1.1 429 Too Many Requests");
                        ensure!(is_limited || answers.contains("hello"), "{answers}");
                        Ok(is_limited.then_some(()))
                    })
                };
                limited(&url)?;
                wait_programmed(cluster, &shop, "server", "True", "in force on ")?;
                daemonset.kill(cluster.node())?;
                limited(&url)?;
                daemonset.roll()?;
                limited(&url)?;
                let counters = daemonset.exec(&["policy", "counters"])?;
                ensure!(counters.contains("shop/server") && counters.contains("request_rate"), "{counters}");

                // The kubelet's probes are neither limited, for as long as two of them take, nor kept out by a list.
                let restarts = || {
                    let pod = cluster.get(&["--namespace", shop.name(), "pod", "server"])?;
                    let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
                    restarts.with_context(|| pod["status"].to_string())
                };
                let is_alive = |after: &str| {
                    let (begin, before) = (Instant::now(), restarts()?);
                    while begin.elapsed() < 3 * PROBES {
                        get(cluster, &shop, &format!("{url} {url} {url} {url}"))?;
                    }
                    ensure!(restarts()? == before, "{after}");
                    Ok(())
                };
                is_alive("a limit")?;
                apply(json!({ "allow": { "ingress": [] } }))?;
                wait_until("a refusal", PATIENCE, || {
                    Ok(get(cluster, &shop, &url)?.contains("Connection refused").then_some(()))
                })?;
                is_alive("a list")?;
                let counters = daemonset.exec(&["policy", "counters"])?;
                ensure!(counters.contains("not_allowed"), "{counters}");

                // Who is let in by labels is let in for as long as it has them, and from the moment that it has them.
                let friends =
                    json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["client", "friend"] }] });
                apply(
                    json!({ "allow": { "ingress": [{ "pods": [{ "selector": friends }], "ports": [{ "port": 8080 }] }] } }),
                )?;
                wait_until("an answer to who has the label", PATIENCE, || {
                    Ok(get(cluster, &shop, &url)?.contains("hello").then_some(()))
                })?;
                wait_programmed(cluster, &shop, "server", "True", "in force on ")?;
                let client = cluster.get(&["--namespace", shop.name(), "pod", "client"])?;
                let client = client["status"]["podIP"].as_str().context("the client's address")?.to_owned();
                let explained =
                    daemonset.exec(&["policy", "explain", "shop/server", "--from", &client, "--port", "8080"])?;
                let who = format!("{client}/32 TCP 8080, one of the Pods app in (client,friend) of namespace shop by");
                ensure!(explained.contains(&who), "{explained}");
                let shown = daemonset.exec(&["policy", "show"])?;
                ensure!(shown.contains("SidestepPolicy shop/server, with 1 addresses of Pods"), "{shown}");
                cluster.kubectl(&["--namespace", shop.name(), "label", "pod", "client", "app=other", "--overwrite"])?;
                wait_until("a refusal of who has lost the label", PATIENCE, || {
                    Ok(get(cluster, &shop, &url)?.contains("Connection refused").then_some(()))
                })?;
                shop.create_pod("friend", &pod(&[Writer::new("friend", 1)]))?;
                running("friend")?;
                wait_until("an answer to the new Pod", PATIENCE, || {
                    Ok(get_as("friend", cluster, &shop, &url)?.contains("hello").then_some(()))
                })?;
                let answer = get(cluster, &shop, &url)?;
                ensure!(answer.contains("Connection refused"), "{answer}");

                // For a Pod in the node's network it can't be, which is the policy's to say and no alarm.
                let mut of_node = pod(&[Writer::new("of-node", 1)]);
                of_node["hostNetwork"] = json!(true);
                shop.create_pod("of-node", &of_node)?;
                cluster.kubectl(&[
                    "--namespace",
                    shop.name(),
                    "label",
                    "pod",
                    "of-node",
                    "app=server",
                    "--overwrite",
                ])?;
                wait_programmed(
                    cluster,
                    &shop,
                    "server",
                    "False",
                    "Pod shop/of-node: connections to it are not governed",
                )?;
                wait_until("no alarm", PATIENCE, || {
                    let shown = daemonset.exec(&["policy", "show"])?;
                    let is_it = shown.contains("it is in the node's network") && !shown.contains("problem:");
                    Ok(is_it.then_some(()))
                })?;
                cluster.kubectl(&["--namespace", shop.name(), "delete", "pod", "of-node", "--now"])?;
                wait_programmed(cluster, &shop, "server", "True", "in force on ")
            })
        });
    }
}
