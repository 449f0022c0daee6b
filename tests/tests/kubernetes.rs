//! The agent as a DaemonSet on a real Kubernetes node: what Pods of every kind write arrives, complete and in order.

/// By this name `cargo xtask test --no-cluster` leaves them out.
mod on_cluster {
    use std::time::Duration;

    use anyhow::{Result, ensure};
    use rustix::process::Signal;
    use serde_json::json;
    use sidestep_tests::{
        Expected,
        cluster::{
            Cluster, Component, DaemonSet, PATIENCE, Software, on_cluster, trial,
            workload::{NEVER, Namespace, Writer, pod, while_writing},
        },
        wait_until,
    };

    /// A Deployment, a Job of a moment, a Job of a CronJob, a StatefulSet, a Pod in the node's network, and init containers.
    #[test]
    fn lines_of_every_kind_of_workload_arrive_with_their_pod() {
        on_cluster(|cluster| {
            DaemonSet::with(cluster, |daemonset| {
                let shop = Namespace::new(cluster, "shop")?;
                let mut expected = Expected::new();

                let cart = [Writer::new("cart", 200), Writer::new("cache", 100)];
                shop.create("apps/v1", "Deployment", "cart", &pod(&cart), json!({ "replicas": 2 }))?;
                let store = [Writer::new("store", 100)];
                shop.create(
                    "apps/v1",
                    "StatefulSet",
                    "store",
                    &pod(&store),
                    json!({ "replicas": 2, "serviceName": "store" }),
                )?;
                let short = [Writer::new("short", 50).that_ends()];
                let mut once = pod(&short);
                once["restartPolicy"] = json!("Never");
                shop.create("batch/v1", "Job", "short", &once, json!({ "completions": 3, "parallelism": 3 }))?;
                shop.create_cron_job("nightly", NEVER, &once)?;
                shop.run_cron_job("nightly", "nightly-1")?;
                let main = [Writer::new("main", 100)];
                let mut staged = pod(&main);
                staged["initContainers"] = json!([
                    Writer::new("prepare", 30).that_ends().container(),
                    Writer::new("migrate", 20).that_ends().container(),
                ]);
                shop.create_pod("staged", &staged)?;
                let mut host = pod(&[Writer::new("host", 100)]);
                host["hostNetwork"] = json!(true);
                shop.create_pod("host", &host)?;

                shop.expect("cart", 2, &cart, &mut expected)?;
                shop.expect("store", 2, &store, &mut expected)?;
                shop.expect("short", 3, &short, &mut expected)?;
                shop.expect("nightly", 1, &short, &mut expected)?;
                let all = [Writer::new("prepare", 30), Writer::new("migrate", 20), Writer::new("main", 100)];
                shop.expect("staged", 1, &all, &mut expected)?;
                shop.expect("host", 1, &[Writer::new("host", 100)], &mut expected)?;
                daemonset.wait_delivered(&expected)
            })
        });
    }

    /// Writes for long enough that all that happens to the agent happens meanwhile.
    fn under_load(happens: impl FnOnce(&Cluster, &DaemonSet<'_>) -> Result<()>) {
        on_cluster(|cluster| {
            DaemonSet::with(cluster, |daemonset| {
                let writer = Writer::new("cart", 2000).with_pause(Duration::from_millis(8));
                // What was on its way to a file when an agent was killed is written again.
                let expected = Expected::new().with_repeats();
                while_writing(daemonset, cluster, writer, 2, expected, || happens(cluster, daemonset))
            })
        });
    }

    #[test]
    fn nothing_is_lost_while_the_daemonset_is_rolled() {
        under_load(|_, daemonset| {
            daemonset.roll()?;
            daemonset.roll()?;
            daemonset.ensure_consistent()
        });
    }

    /// Jobs of a moment, of a CronJob each: some live and end while no agent runs, or while one has just begun.
    #[test]
    fn jobs_of_a_moment_keep_their_pods_while_agents_are_replaced() {
        on_cluster(|cluster| {
            DaemonSet::with(cluster, |daemonset| {
                let shop = Namespace::new(cluster, "shop")?;
                let short = [Writer::new("short", 50).that_ends()];
                shop.create_cron_job("short", NEVER, &pod(&short))?;
                let mut made = 0;
                let mut make = |count: usize| -> Result<()> {
                    for _ in 0..count {
                        shop.run_cron_job("short", &format!("short-{made}"))?;
                        made += 1;
                    }
                    Ok(())
                };
                for round in 0..4 {
                    make(1 + round % 4)?;
                    daemonset.roll()?;
                    make(1 + round % 3)?;
                    daemonset.kill(cluster.node())?;
                }
                let mut expected = Expected::new().with_repeats();
                shop.expect("short", made, &short, &mut expected)?;
                daemonset.wait_delivered(&expected)
            })
        });
    }

    #[test]
    fn nothing_is_lost_when_the_agent_is_killed() {
        under_load(|cluster, daemonset| daemonset.kill(cluster.node()));
    }

    #[test]
    fn nothing_is_lost_while_the_runtime_and_the_kubelet_are_restarted() {
        under_load(|cluster, daemonset| {
            let node = cluster.node();
            node.restart(Component::Containerd, Signal::KILL)?;
            node.wait_containerd()?;
            node.restart(Component::Kubelet, Signal::TERM)?;
            cluster.wait_ready()?;
            daemonset.roll()
        });
    }

    /// All of it at once; `cargo xtask soak kubernetes` takes the API server away for ten minutes.
    #[test]
    fn every_line_reaches_kafka_in_order_with_its_labels_whatever_happens() {
        on_cluster(|cluster| {
            let plan = trial::Plan { outage: Duration::from_secs(20) };
            let report = trial::run(cluster, plan, &|step| eprintln!("{step}"))?;
            ensure!(report.lines > 0 && report.records >= report.lines, "{report}");
            Ok(())
        });
    }

    #[test]
    fn an_image_made_of_packages_serves() {
        on_cluster(|cluster| {
            cluster.import_software(Software::Nginx)?;
            let web = Namespace::new(cluster, "web")?;
            let container = json!({ "name": "nginx", "image": Software::Nginx.image() });
            web.create_pod("nginx", &json!({ "containers": [container], "terminationGracePeriodSeconds": 0 }))?;
            let ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 127.0.0.1 80";
            wait_until("a page of nginx", PATIENCE, || {
                let page = cluster.kubectl(&["--namespace", web.name(), "exec", "nginx", "--", "sh", "-c", ask]);
                Ok(page.is_ok_and(|page| page.contains("Welcome to nginx!")).then_some(()))
            })
        });
    }
}
