//! Containers that are not simply there from a Pod's begin to its end: init containers, sidecars, ephemeral ones, and those of
//! Pods that are deleted while they write.

/// By this name `cargo xtask test --no-cluster` leaves them out.
mod on_cluster {
    use anyhow::{Context, Result, ensure};
    use rustix::process::{Signal, kill_process};
    use serde_json::{Value, json};
    use sidestep_tests::{
        Expected,
        cluster::{
            BUSYBOX, Cluster, DaemonSet, crowd, on_cluster,
            workload::{Namespace, Writer, container_id, container_status, pod},
        },
        records::Record,
    };

    /// The one Pod with a label `app=NAME`, when `condition` holds for it.
    fn wait_pod(
        cluster: &Cluster,
        shop: &Namespace<'_>,
        app: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let selector = format!("--selector=app={app}");
        let list = cluster.wait_for(&["--namespace", shop.name(), "pods", &selector], |list| {
            list["items"].as_array().is_some_and(|pods| pods.len() == 1 && condition(&pods[0]))
        })?;
        Ok(list["items"][0].clone())
    }

    /// Adds all that a container writes, whose records have this class.
    fn expect(expected: &mut Expected, pod: &Value, writer: &Writer, class: &'static str) -> Result<()> {
        let id = container_id(pod, writer.name()).with_context(|| format!("no container {}: {pod}", writer.name()))?;
        let text = |key: &str| pod["metadata"][key].as_str().with_context(|| format!("a Pod's {key}"));
        expected.pod_stdout(id, [writer.name(), text("name")?, text("namespace")?], &[]);
        expected.add_stream(id, "stdout", class, &writer.bytes());
        Ok(())
    }

    /// Kills a container, as the kernel would, and returns the Pod with the one that the kubelet has started for it.
    fn restart(cluster: &Cluster, shop: &Namespace<'_>, app: &str, container: &str) -> Result<Value> {
        let pod = wait_pod(cluster, shop, app, |pod| container_id(pod, container).is_some())?;
        let id = container_id(&pod, container).context("the container")?;
        for process in cluster.node().processes_of(|cgroup| cgroup.contains(id))? {
            kill_process(process, Signal::KILL).context("killing the container")?;
        }
        wait_pod(cluster, shop, app, |pod| {
            let is_new = container_id(pod, container).is_some_and(|now| now != id);
            is_new && container_status(pod, container).is_some_and(|status| status["restartCount"] == 1)
        })
    }

    /// Whether what is said of each container is in all of its records.
    fn ensure_told(records: &[Record], container: &str, attributes: &[(&str, &str)]) -> Result<()> {
        let of_it = || records.iter().filter(|record| record.resource("k8s.container.name") == container);
        ensure!(of_it().next().is_some(), "no record of {container}");
        for (name, value) in attributes {
            let other = of_it().find(|record| record.resource(name) != *value);
            ensure!(other.is_none(), "{name} is not {value}: {}", other.map_or(&Value::Null, |record| &record.value));
        }
        Ok(())
    }

    /// Once with a PID namespace for each container, and once with one for the Pod.
    #[test]
    fn a_sidecar_an_init_container_and_the_main_one_are_told_apart_also_when_the_sidecar_starts_anew() {
        on_cluster(|cluster| {
            DaemonSet::with(cluster, |daemonset| {
                let shop = Namespace::new(cluster, "shop")?;
                let mut expected = Expected::new();
                let (proxy, prepare) = (Writer::new("proxy", 100), Writer::new("prepare", 50));
                let main = Writer::new("main", 200);
                let apps = [("own", false), ("shared", true)];
                for (app, is_shared) in apps {
                    let mut sidecar = proxy.container();
                    sidecar["restartPolicy"] = json!("Always");
                    let mut spec = pod(std::slice::from_ref(&main));
                    // The sidecar runs before the other one, and on beside the main one.
                    spec["initContainers"] = json!([sidecar, prepare.clone().that_ends().container()]);
                    spec["shareProcessNamespace"] = json!(is_shared);
                    let annotations = json!({ "proxy.sidestep.dev/class": "business" });
                    let more = json!({ "template": { "metadata": { "annotations": annotations } } });
                    shop.create("apps/v1", "Deployment", app, &spec, more)?;
                }
                let all = [&proxy, &prepare, &main];
                for (app, _) in apps {
                    let has_all = |pod: &Value| all.iter().all(|writer| container_id(pod, writer.name()).is_some());
                    let pod = wait_pod(cluster, &shop, app, has_all)?;
                    for (writer, class) in all.into_iter().zip(["business", "pod", "pod"]) {
                        expect(&mut expected, &pod, writer, class)?;
                    }
                }
                daemonset.wait_delivered(&expected)?;
                for (app, _) in apps {
                    let pod = restart(cluster, &shop, app, proxy.name())?;
                    expect(&mut expected, &pod, &proxy, "business")?;
                }
                daemonset.wait_delivered(&expected)?;
                for (app, _) in apps {
                    let mut records = daemonset.records(cluster.node())?;
                    records.retain(|record| record.resource("k8s.pod.label.app") == app);
                    for container in ["proxy", "prepare", "main"] {
                        ensure_told(&records, container, &[("k8s.deployment.name", app)])?;
                    }
                }
                Ok(())
            })
        });
    }

    /// In a PID namespace of its own, and in that of another container, as `kubectl debug --target` makes it.
    #[test]
    fn an_ephemeral_container_is_one_of_its_pod() {
        on_cluster(|cluster| {
            DaemonSet::with(cluster, |daemonset| {
                let shop = Namespace::new(cluster, "shop")?;
                let main = Writer::new("main", 100);
                let annotations = json!({ "guest.sidestep.dev/class": "business", "later.sidestep.dev/logs": "off" });
                let more = json!({ "template": { "metadata": { "annotations": annotations } } });
                shop.create("apps/v1", "Deployment", "cart", &pod(std::slice::from_ref(&main)), more)?;
                let policy = json!({
                    "apiVersion": "sidestep.dev/v1alpha1", "kind": "ClusterSidestepPolicy",
                    "metadata": { "name": "debugging" },
                    "spec": { "selector": {}, "containers": ["guest", "al*"], "logs": { "tenant": "debugging" } },
                });
                let policy = policy.to_string();
                cluster.apply(&policy)?;
                let result = debug(cluster, daemonset, &shop, &main);
                cluster.delete(&policy)?;
                result
            })
        });
    }

    fn debug(cluster: &Cluster, daemonset: &DaemonSet<'_>, shop: &Namespace<'_>, main: &Writer) -> Result<()> {
        cluster.wait_for(&["clustersidesteppolicy", "debugging"], |policy| {
            policy["status"]["programmed"] == "1/1" && policy["status"]["selectedPods"].is_number()
        })?;
        let running = wait_pod(cluster, shop, "cart", |pod| container_id(pod, "main").is_some())?;
        let name = running["metadata"]["name"].as_str().context("a Pod's name")?;
        let [guest, alone, later] = ["guest", "alone", "later"].map(|name| Writer::new(name, 60));
        for (writer, target) in [(&guest, Some("--target=main")), (&alone, None), (&later, Some("--target=main"))] {
            let image = format!("--image={BUSYBOX}");
            let container = format!("--container={}", writer.name());
            let debug = ["--namespace", shop.name(), "debug", name, &image, &container, "--profile=general"];
            let script = ["--", "sh", "-c", &writer.script()];
            let target: Vec<&str> = target.into_iter().collect();
            cluster.kubectl(&[&debug[..], &target, &script].concat())?;
        }
        let all = [main, &guest, &alone, &later];
        let pod =
            wait_pod(cluster, shop, "cart", |pod| all.iter().all(|writer| container_id(pod, writer.name()).is_some()))?;
        let mut expected = Expected::new();
        expect(&mut expected, &pod, main, "pod")?;
        expect(&mut expected, &pod, &guest, "business")?;
        expect(&mut expected, &pod, &alone, "pod")?;
        daemonset.wait_delivered(&expected)?;
        let records = daemonset.records(cluster.node())?;
        let whose = [("k8s.deployment.name", "cart"), ("k8s.pod.label.app", "cart")];
        for (container, tenant) in [("main", ""), ("guest", "debugging"), ("alone", "debugging")] {
            ensure_told(&records, container, &[&whose[..], &[("sidestep.tenant", tenant)]].concat())?;
        }
        // What is off is counted, and in no record.
        let id = container_id(&pod, "later").context("the container that is off")?;
        daemonset.wait_ledger(cluster.node(), id, |ledger| {
            ledger.dropped_for("capture", "filtered") == later.bytes().len() as u64 && ledger.difference() == 0
        })?;
        let explained =
            daemonset.exec(&["explain", "pod", &format!("{}/{name}", shop.name()), "--container", "guest"])?;
        for part in ["annotation guest.sidestep.dev/class", "ClusterSidestepPolicy debugging"] {
            ensure!(explained.contains(part), "{explained}");
        }
        Ok(())
    }

    /// Also what the ring could not hold of it, and the kubelet is about to remove. `cargo xtask soak kubernetes-pods --cut` does
    /// it with many.
    #[test]
    fn what_pods_had_written_when_they_were_deleted_arrives_once() {
        on_cluster(|cluster| {
            let plan = crowd::Plan { pods: 8, at_once: 4, life: crowd::Life::Cut, ring: Some(64), let_go: false };
            let report = crowd::run(cluster, plan, &|step| eprintln!("{step}"))?;
            let cut = report.cut().context("what came of them")?;
            ensure!(cut.pods == plan.pods, "not all were deleted in the middle: {report}");
            ensure!(cut.gaps > 0.0, "the ring was never full: {report}");
            eprintln!("{report}");
            Ok(())
        });
    }
}
