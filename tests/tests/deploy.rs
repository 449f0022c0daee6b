//! The chart, the manifests and the steps of the README on a real cluster.

mod on_cluster {
    use std::{
        env, fs,
        path::{Path, PathBuf},
        process::{Command, Stdio},
    };

    use anyhow::{Context, Result, ensure};
    use serde_json::{Value, json};
    use sidestep_tests::{
        cluster::{AGENT, Cluster, Node, PATIENCE, daemonset::NAMESPACE, on_cluster},
        kernel::Objects,
        wait_until,
    };
    use xtask::helm;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a checkout").to_owned()
    }

    /// What differs from the chart's defaults on a cluster of the tests: its Pods are in cgroups of its own.
    fn values(cluster: &Cluster) -> Value {
        let (image, tag) = AGENT.rsplit_once(':').expect("a tag");
        let roots: Vec<_> = cluster.nodes().iter().map(Node::pods_cgroup).collect();
        json!({
            "image": { "repository": image, "tag": tag, "pullPolicy": "Never" },
            "config": { "capture": { "cgroup_roots": roots }, "server": { "include": [] } },
        })
    }

    /// A shell that has `helm` and `kubectl`, in which `helm install` gets [`values`].
    fn shell(cluster: &Cluster, script: &str) -> Result<Command> {
        let values_file = cluster.place().directory().join("values.json");
        fs::write(&values_file, values(cluster).to_string())?;
        let helm = helm::build()?;
        let mut command = cluster.client("/bin/bash")?;
        let prelude = "set -eu; helm() { case $1 in install|upgrade) command helm \"$@\" --values \"$VALUES\";; \
                       *) command helm \"$@\";; esac; }; PATH=$HELM:$PATH; ";
        command.args(["-c", &format!("{prelude}{script}")]).current_dir(root());
        command.env("VALUES", values_file).env("HELM", helm.parent().context("a folder")?);
        let own = cluster.place().directory().join("helm");
        command.env("HELM_CONFIG_HOME", &own).env("HELM_CACHE_HOME", &own).env("HELM_DATA_HOME", &own);
        Ok(command)
    }

    fn run(cluster: &Cluster, script: &str) -> Result<String> {
        let output = shell(cluster, script)?.stdin(Stdio::null()).output().context("running bash")?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "{script}: {}: {text}", output.status);
        Ok(text)
    }

    /// Removes what a test has installed, also when it fails.
    struct Installed<'a>(&'a Cluster);

    impl Drop for Installed<'_> {
        fn drop(&mut self) {
            let script = "kubectl delete deployment hello --ignore-not-found --now; \
                          helm uninstall sidestep --namespace sidestep --ignore-not-found; \
                          kubectl delete namespace sidestep --ignore-not-found";
            if let Err(error) = run(self.0, script) {
                eprintln!("clean-up: {error:#}");
            }
        }
    }

    /// The lines of the README's quick start that begin with `$ `, without their comments.
    fn quick_start() -> Result<Vec<String>> {
        let readme = fs::read_to_string(root().join("README.md"))?;
        let (_, after) = readme.split_once("<!-- quick start -->").context("the README has no quick start")?;
        let (section, _) = after.split_once("<!-- end of quick start -->").context("it has no end")?;
        let lines = section.lines().filter_map(|line| line.strip_prefix("$ "));
        Ok(lines.map(|line| line.split("  #").next().unwrap_or(line).trim().to_owned()).collect())
    }

    #[test]
    fn the_quick_start_works_as_printed() {
        on_cluster(|cluster| {
            let steps = quick_start()?;
            ensure!(steps.iter().any(|step| step.starts_with("helm install ")), "{steps:?}");
            let _installed = Installed(cluster);
            let mut objects = Objects::default();
            for step in &steps {
                // The image is on the nodes already.
                if step.starts_with("cargo xtask image") || step.starts_with("ctr ") {
                    continue;
                }
                eprintln!("$ {step}");
                if step.starts_with("helm uninstall ") {
                    objects = objects_of_agents(cluster)?;
                }
                if step.contains("sidestep logs") {
                    // What was just written may be on its way.
                    wait_until("the lines of the Pod", PATIENCE, || {
                        let text = run(cluster, step)?;
                        let is_shown = |number: u32| text.contains(&format!("line {number}\n"));
                        Ok((1..=100).all(is_shown).then_some(()))
                    })?;
                    continue;
                }
                let text = run(cluster, step)?;
                if step.contains("sidestep doctor") {
                    ensure!(text.contains("host_root") && !text.contains("FAILED"), "{text}");
                    ensure!(text.contains("/host is the node's"), "{text}");
                }
                if step.contains("sidestep status") {
                    ensure!(text.contains("hello-"), "{text}");
                }
            }
            ensure!(objects != Objects::default(), "nothing was uninstalled");
            nothing_is_left(cluster, &objects)
        });
    }

    /// What the agents on all nodes have in the kernel.
    fn objects_of_agents(cluster: &Cluster) -> Result<Objects> {
        let mut objects = Objects::default();
        for node in cluster.nodes() {
            objects.extend(Objects::of(node.agent()?.context("no agent runs")?)?);
        }
        Ok(objects)
    }

    /// After `helm uninstall`: no object, no pin, no state, and nothing of `objects` in the kernel.
    fn nothing_is_left(cluster: &Cluster, objects: &Objects) -> Result<()> {
        let selector = "--selector=app.kubernetes.io/instance=sidestep";
        let kinds = "daemonsets,jobs,configmaps,serviceaccounts,roles,rolebindings,services,networkpolicies";
        let left = cluster.kubectl(&["get", kinds, "--namespace", NAMESPACE, selector, "--output=name"])?;
        ensure!(left.trim().is_empty(), "{left}");
        let left = cluster.kubectl(&["get", "clusterroles,clusterrolebindings", selector, "--output=name"])?;
        ensure!(left.trim().is_empty(), "{left}");
        for node in cluster.nodes() {
            let output = node.command("ls")?.arg("/sys/fs/bpf").output()?;
            let pins = String::from_utf8_lossy(&output.stdout).into_owned();
            // The kernel has two files of its own there.
            let is_clean = pins.lines().all(|name| ["maps.debug", "progs.debug"].contains(&name));
            ensure!(output.status.success() && is_clean, "{}: {pins}", node.name());
            let state: Vec<_> = fs::read_dir(node.path("/var/lib/sidestep"))?
                .map(|entry| Ok(entry?.file_name()))
                .collect::<Result<_>>()?;
            // What a sink has written is not the agent's.
            ensure!(state.iter().all(|name| name == "logs"), "{}: {state:?}", node.name());
        }
        objects.wait_gone()
    }

    #[test]
    fn another_configuration_rolls_the_pods() {
        on_cluster(|cluster| {
            let _installed = Installed(cluster);
            let chart = "deploy/helm/sidestep --namespace sidestep";
            run(cluster, &format!("helm install sidestep {chart} --create-namespace"))?;
            cluster.wait_rollout(NAMESPACE, "daemonset/sidestep")?;
            let before = pod_of_the_agent(cluster)?;
            run(cluster, &format!("helm upgrade sidestep {chart}"))?;
            cluster.wait_rollout(NAMESPACE, "daemonset/sidestep")?;
            ensure!(pod_of_the_agent(cluster)? == before, "nothing was changed, and {before} is gone");
            run(cluster, &format!("helm upgrade sidestep {chart} --set config.log.level=debug"))?;
            cluster.wait_rollout(NAMESPACE, "daemonset/sidestep")?;
            ensure!(pod_of_the_agent(cluster)? != before, "{before} has not been replaced");
            Ok(())
        });
    }

    /// The name of the one agent's Pod.
    fn pod_of_the_agent(cluster: &Cluster) -> Result<String> {
        let selector = "--selector=app.kubernetes.io/name=sidestep";
        cluster.kubectl(&["get", "pods", "--namespace", NAMESPACE, selector, "--output=name"])
    }

    #[test]
    fn the_api_server_takes_what_the_chart_renders() {
        on_cluster(|cluster| {
            let _installed = Installed(cluster);
            cluster.kubectl(&["create", "namespace", NAMESPACE])?;
            let mut count = 0;
            for file in fs::read_dir(root().join("deploy/helm/values"))? {
                let path = file?.path();
                if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("refused-")) {
                    continue;
                }
                let script = format!(
                    "helm template sidestep deploy/helm/sidestep --namespace {NAMESPACE} --values {}",
                    path.display()
                );
                let rendered = shell(cluster, &script)?.output()?;
                ensure!(rendered.status.success(), "{}: {rendered:?}", path.display());
                // Kinds of the Prometheus operator, whose CRDs are not here.
                let rendered = String::from_utf8(rendered.stdout)?;
                let known =
                    rendered.split("\n---\n").filter(|text| !text.contains("apiVersion: monitoring.coreos.com/"));
                let known = known.collect::<Vec<_>>().join("\n---\n");
                let said = cluster.kubectl_with_input(&["apply", "--dry-run=server", "--filename=-"], &known);
                let said = said.with_context(|| path.display().to_string())?;
                ensure!(said.contains("daemonset.apps/"), "{said}");
                count += 1;
            }
            ensure!(count >= 4, "only {count} files of values");
            for overlay in ["base", "overlays/privileged", "uninstall"] {
                let path = root().join("deploy/kustomize").join(overlay);
                let path = path.to_str().context("a path that is text")?;
                cluster.kubectl(&["apply", "--dry-run=server", "--kustomize", path]).context(overlay)?;
            }
            Ok(())
        });
    }

    #[test]
    fn the_overlay_is_the_chart_with_the_value() {
        on_cluster(|cluster| {
            let overlay = root().join("deploy/kustomize/overlays/privileged");
            let overlay = cluster.kubectl(&["kustomize", overlay.to_str().context("text")?])?;
            let script = "command helm template sidestep deploy/helm/sidestep --namespace sidestep --no-hooks \
                          --values deploy/helm/values/privileged.yaml";
            let rendered = String::from_utf8(shell(cluster, script)?.output()?.stdout)?;
            let daemonset = |text: &str| -> Result<Value> {
                let documents = text.split("\n---\n").filter(|text| text.contains("kind: DaemonSet\n"));
                let mut object: Value = serde_saphyr::from_str(documents.last().context("no DaemonSet")?)?;
                let mounts = object["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].as_array_mut();
                mounts.context("mounts")?.sort_by_key(|mount| mount["mountPath"].to_string());
                Ok(object)
            };
            let (overlay, chart) = (daemonset(&overlay)?, daemonset(&rendered)?);
            ensure!(overlay == chart, "{overlay}\nis not\n{chart}");
            Ok(())
        });
    }

    #[test]
    fn the_account_may_do_what_the_chart_says_and_nothing_else() {
        on_cluster(|cluster| {
            let _installed = Installed(cluster);
            run(cluster, "helm install sidestep deploy/helm/sidestep --namespace sidestep --create-namespace")?;
            let may = |verb: &str, resource: &str, group: &str| -> Result<bool> {
                let review = json!({
                    "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                    "spec": {
                        "user": "system:serviceaccount:sidestep:sidestep",
                        "groups": ["system:serviceaccounts", "system:authenticated"],
                        "resourceAttributes": {
                            "verb": verb, "group": group, "resource": resource.split('/').next(),
                            "subresource": resource.split('/').nth(1).unwrap_or_default(), "namespace": "shop",
                        },
                    },
                });
                let arguments = ["create", "--filename=-", "--output=json"];
                let answer: Value =
                    serde_json::from_str(&cluster.kubectl_with_input(&arguments, &review.to_string())?)?;
                Ok(answer["status"]["allowed"] == true)
            };
            for (verbs, resource, group) in [
                (&["list", "watch"][..], "pods", ""),
                (&["list", "watch"], "namespaces", ""),
                (&["get"], "nodes", ""),
                (&["get"], "replicasets", "apps"),
                (&["get"], "jobs", "batch"),
                (&["create"], "events", "events.k8s.io"),
                (&["list", "watch"], "sidesteppolicies", "sidestep.dev"),
                (&["list", "watch"], "clustersidesteppolicies", "sidestep.dev"),
                (&["patch"], "sidesteppolicies/status", "sidestep.dev"),
                (&["list", "watch", "create", "patch"], "sidestepnodes", "sidestep.dev"),
                (&["patch"], "sidestepnodes/status", "sidestep.dev"),
            ] {
                for verb in verbs {
                    ensure!(may(verb, resource, group)?, "{verb} {resource}.{group} is refused");
                }
                for verb in ["delete", "update"] {
                    ensure!(!may(verb, resource, group)?, "{verb} {resource}.{group} is allowed");
                }
            }
            for (verb, resource) in
                [("get", "secrets"), ("list", "configmaps"), ("create", "pods/exec"), ("list", "nodes")]
            {
                ensure!(!may(verb, resource, "")?, "{verb} {resource} is allowed");
            }
            Ok(())
        });
    }
}
