//! Workloads that write numbered lines, each in a namespace of the test.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{BUSYBOX, Cluster, DaemonSet};
use crate::Expected;

/// A namespace for the objects of a test. Dropping it removes it with them.
#[derive(Debug)]
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

/// What a container does: it writes so many lines, and waits then or ends.
#[derive(Clone, Debug)]
pub struct Writer {
    name: String,
    lines: u64,
    pause: Duration,
    burst: u64,
    ends: bool,
}

impl Writer {
    /// A container of this name that writes `lines` lines and runs on.
    #[must_use]
    pub fn new(name: &str, lines: u64) -> Self {
        Self { name: name.to_owned(), lines, pause: Duration::ZERO, burst: 1, ends: false }
    }

    /// It waits for this long after each line.
    #[must_use]
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// It makes that pause after so many lines.
    #[must_use]
    pub fn in_bursts(mut self, lines: u64) -> Self {
        self.burst = lines;
        self
    }

    /// It ends after the last line.
    #[must_use]
    pub fn that_ends(mut self) -> Self {
        self.ends = true;
        self
    }

    /// The container's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All that it writes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        (1..=self.lines).flat_map(|number| format!("{} line {number}\n", self.name).into_bytes()).collect()
    }

    /// The container in a Pod's specification.
    #[must_use]
    pub fn container(&self) -> Value {
        json!({ "name": self.name, "image": BUSYBOX, "command": ["sh", "-c", self.script()] })
    }

    /// What its shell is told.
    #[must_use]
    pub fn script(&self) -> String {
        let pause = match (self.pause.as_micros(), self.burst) {
            (0, _) => String::new(),
            (microseconds, 1) => format!("usleep {microseconds}; "),
            (microseconds, burst) => format!("[ $((i % {burst})) -ne 0 ] || usleep {microseconds}; "),
        };
        let last = if self.ends { "" } else { "exec sleep 2147483647" };
        format!(
            "i=0; while [ $i -lt {} ]; do i=$((i+1)); echo \"{} line $i\"; {pause}done; {last}",
            self.lines, self.name
        )
    }
}

/// A schedule whose time never comes: the Jobs are made by hand.
pub const NEVER: &str = "0 0 31 2 *";

/// A Pod's specification with these containers. It ends at once when it is deleted.
#[must_use]
pub fn pod(writers: &[Writer]) -> Value {
    let containers: Vec<Value> = writers.iter().map(Writer::container).collect();
    json!({ "containers": containers, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false })
}

impl<'a> Namespace<'a> {
    /// Makes it.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let namespace = Self { cluster, name: name.to_owned() };
        namespace.cluster.kubectl(&["create", "namespace", name])?;
        // Pods are refused before their namespace has its account.
        let account = ["--namespace", name, "serviceaccount/default"];
        namespace.cluster.wait_for(&account, |_| true)?;
        Ok(namespace)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A workload of this kind (`apps/v1` `Deployment`) with a template of a Pod; `more` is merged into its
    /// specification.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn create(&self, version: &str, kind: &str, name: &str, pod: &Value, more: Value) -> Result<()> {
        let labels = json!({ "app": name });
        let mut spec = json!({ "template": { "metadata": { "labels": labels }, "spec": pod } });
        if version == "apps/v1" {
            spec["selector"] = json!({ "matchLabels": labels });
        }
        let object = json!({
            "apiVersion": version, "kind": kind,
            "metadata": { "name": name, "namespace": self.name },
            "spec": merged(spec, more),
        });
        self.cluster.apply(&object.to_string()).map(drop)
    }

    /// A Pod alone.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn create_pod(&self, name: &str, spec: &Value) -> Result<()> {
        let metadata = json!({ "name": name, "namespace": self.name, "labels": { "app": name } });
        let object = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        self.cluster.apply(&object.to_string()).map(drop)
    }

    /// Creates a `CronJob` whose Jobs run a Pod of this specification once, with the label `app=NAME`, and are all kept.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn create_cron_job(&self, name: &str, schedule: &str, pod: &Value) -> Result<()> {
        let mut once = pod.clone();
        once["restartPolicy"] = json!("Never");
        let template = json!({ "metadata": { "labels": { "app": name } }, "spec": once });
        let object = json!({
            "apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": { "name": name, "namespace": self.name },
            "spec": {
                "schedule": schedule, "successfulJobsHistoryLimit": 100,
                "jobTemplate": { "spec": { "template": template } },
            },
        });
        self.cluster.apply(&object.to_string()).map(drop)
    }

    /// Makes a Job of a `CronJob` now, whatever its schedule says.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn run_cron_job(&self, name: &str, job: &str) -> Result<()> {
        let from = format!("--from=cronjob/{name}");
        self.cluster.kubectl(&["--namespace", &self.name, "create", "job", job, &from]).map(drop)
    }

    /// Waits until the Pods labelled `app=NAME` are `count`, and every container of them has started; adds what `writers`
    /// write in each of them to `expected`.
    ///
    /// # Errors
    /// Not in time.
    pub fn expect(&self, app: &str, count: usize, writers: &[Writer], expected: &mut Expected) -> Result<()> {
        let selector = format!("--selector=app={app}");
        let pods = ["--namespace", &self.name, "pods", &selector];
        let list = self.cluster.wait_for(&pods, |list| {
            let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
            items.len() == count
                && items.iter().all(|pod| writers.iter().all(|writer| container_id(pod, &writer.name).is_some()))
        })?;
        for pod in list["items"].as_array().context("a list of Pods")? {
            let name = pod["metadata"]["name"].as_str().context("a Pod's name")?;
            for writer in writers {
                let id = container_id(pod, &writer.name).context("a container's id")?;
                expected.pod_stdout(id, [&writer.name, name, &self.name], &writer.bytes());
            }
        }
        Ok(())
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.cluster.kubectl(&["delete", "namespace", &self.name, "--ignore-not-found"]) {
            eprintln!("clean-up of namespace {}: {error:#}", self.name);
        }
    }
}

/// Does `work` while `replicas` Pods of a Deployment `cart` in the namespace `shop` do what `writer` does, and waits until all
/// that they write has come, as is `expected` beside.
///
/// # Errors
/// Those of `work`; the writers do not start, or something of theirs does not come.
pub fn while_writing(
    agents: &DaemonSet<'_>,
    cluster: &Cluster,
    writer: Writer,
    replicas: usize,
    mut expected: Expected,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let shop = Namespace::new(cluster, "shop")?;
    let writers = [writer];
    shop.create("apps/v1", "Deployment", "cart", &pod(&writers), json!({ "replicas": replicas }))?;
    shop.expect("cart", replicas, &writers, &mut expected)?;
    work()?;
    agents.wait_delivered(&expected)
}

/// The id of a container of a Pod (as `kubectl` shows it) that has started.
#[must_use]
pub fn container_id<'a>(pod: &'a Value, container: &str) -> Option<&'a str> {
    container_status(pod, container)?["containerID"].as_str()?.strip_prefix("containerd://")
}

/// The status of a container of a Pod (as `kubectl` shows it), of whatever kind.
#[must_use]
pub fn container_status<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    let lists = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
    let lists = lists.map(|list| pod["status"][list].as_array());
    lists.into_iter().flatten().flatten().find(|status| status["name"] == container)
}

/// `base` with the members of `more`, member by member where both have an object.
fn merged(base: Value, more: Value) -> Value {
    match (base, more) {
        (Value::Object(mut base), Value::Object(more)) => {
            for (name, value) in more {
                let before = base.remove(&name).unwrap_or(Value::Null);
                base.insert(name, merged(before, value));
            }
            Value::Object(base)
        }
        (base, Value::Null) => base,
        (_, more) => more,
    }
}
