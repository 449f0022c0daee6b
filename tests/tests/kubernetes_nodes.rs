//! Two nodes on one kernel: each agent has its own node's Pods, and no other.

/// By this name `cargo xtask test --no-cluster` leaves them out.
mod on_cluster {
    use anyhow::{Context, Result, ensure};
    use serde_json::{Value, json};
    use sidestep_tests::{
        Expected,
        cluster::{
            BUSYBOX, Cluster, DaemonSet, PATIENCE, on_cluster_of,
            workload::{Namespace, Writer, pod},
        },
        wait_until,
    };

    const NODES: u8 = 2;

    /// The specification with a wish that Pods of this label are on different nodes.
    fn spread(mut spec: Value, app: &str) -> Value {
        spec["topologySpreadConstraints"] = json!([{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "app": app } },
        }]);
        spec
    }

    #[test]
    fn each_agent_delivers_the_lines_of_its_own_node() {
        on_cluster_of(NODES, |cluster| {
            DaemonSet::with(cluster, |daemonset| {
                let shop = Namespace::new(cluster, "shop")?;
                let writers = [Writer::new("cart", 300)];
                shop.create("apps/v1", "Deployment", "cart", &spread(pod(&writers), "cart"), json!({ "replicas": 4 }))?;
                let mut expected = Expected::new();
                shop.expect("cart", 4, &writers, &mut expected)?;
                // Once, so never by both.
                daemonset.wait_delivered(&expected)?;
                let pods = cluster.get(&["--namespace", shop.name(), "pods"])?;
                for node in cluster.nodes() {
                    let records = daemonset.records(node)?;
                    ensure!(!records.is_empty(), "no records on {}", node.name());
                    for record in records {
                        let name = record.resource("k8s.pod.name");
                        let mut items = pods["items"].as_array().context("Pods")?.iter();
                        let of = items.find(|pod| pod["metadata"]["name"] == name).context("a record's Pod")?;
                        ensure!(of["spec"]["nodeName"] == node.name(), "{name} was recorded on {}", node.name());
                    }
                }
                Ok(())
            })
        });
    }

    #[test]
    fn the_status_of_policies_counts_both_nodes_whoever_of_them_tells_of_a_conflict() {
        on_cluster_of(NODES, |cluster| {
            DaemonSet::with(cluster, |_| {
                let shop = Namespace::new(cluster, "shop")?;
                // Each node has a Pod, and each Pod two policies of its own, of which the second is in conflict.
                for (number, node) in cluster.nodes().iter().enumerate() {
                    let mut spec = pod(&[Writer::new("cart", 1)]);
                    spec["nodeName"] = json!(node.name());
                    shop.create_pod(&format!("cart-{number}"), &spec)?;
                    for (order, parse) in ["json", "logfmt"].iter().enumerate() {
                        let selector = json!({ "matchLabels": { "app": format!("cart-{number}") } });
                        let policy = json!({
                            "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
                            "metadata": { "name": format!("policy-{number}-{order}"), "namespace": shop.name() },
                            "spec": { "selector": selector, "logs": { "parse": parse } },
                        });
                        cluster.apply(&policy.to_string())?;
                    }
                }
                for number in 0..NODES {
                    let conflict =
                        format!("Pod shop/cart-{number} is decided by SidestepPolicy shop/policy-{number}-0");
                    let policy = format!("policy-{number}-1");
                    let told =
                        cluster.wait_for(&["--namespace", shop.name(), "sidesteppolicy", &policy], |policy| {
                            let mut conditions = policy["status"]["conditions"].as_array().into_iter().flatten();
                            conditions
                                .any(|is| is["message"].as_str().is_some_and(|message| message.contains(&conflict)))
                                && policy["status"]["programmed"] == "2/2"
                        })?;
                    ensure!(told["status"]["selectedPods"] == 1, "of both nodes one Pod is selected: {told}");
                }
                Ok(())
            })
        });
    }

    #[test]
    fn a_service_is_reached_from_the_other_node() {
        on_cluster_of(NODES, |cluster| {
            let net = Namespace::new(cluster, "net")?;
            for (number, node) in cluster.nodes().iter().enumerate() {
                let script = "echo it works > /data/index.html; exec httpd -f -p 8080 -h /data";
                let serves = json!({ "name": "web", "image": BUSYBOX, "command": ["sh", "-c", script] });
                let spec =
                    json!({ "nodeName": node.name(), "containers": [serves], "terminationGracePeriodSeconds": 0 });
                net.create_pod(&format!("web-{number}"), &spec)?;
                let service = json!({
                    "apiVersion": "v1", "kind": "Service",
                    "metadata": { "name": format!("web-{number}"), "namespace": net.name() },
                    "spec": { "selector": { "app": format!("web-{number}") }, "ports": [{ "port": 80, "targetPort": 8080 }] },
                });
                cluster.apply(&service.to_string())?;
            }
            let namespace = ["--namespace", net.name()];
            for (from, to) in [("web-0", "web-1"), ("web-1", "web-0")] {
                let service = cluster.get(&[&namespace[..], &["service", to]].concat())?;
                let address = service["spec"]["clusterIP"].as_str().context("its address")?;
                // The `wget` of a static busybox ends with SIGSEGV.
                let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 80");
                fetch(cluster, &[&namespace[..], &["exec", from, "--", "sh", "-c", &ask]].concat())?;
            }
            Ok(())
        });
    }

    fn fetch(cluster: &Cluster, arguments: &[&str]) -> Result<()> {
        let mut last = String::new();
        wait_until("an answer of a service", PATIENCE, || match cluster.kubectl(arguments) {
            Ok(text) if text.ends_with("it works\n") => Ok(Some(())),
            other => {
                last = format!("{other:?}");
                Ok(None)
            }
        })
        .with_context(|| last)
    }
}
