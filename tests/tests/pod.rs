//! What the agent's Pod has by the checked-in manifest is enough, and `sidestep doctor` tells of each piece that is missing.
//!
//! runc gets the capabilities and mounts of `deploy/kustomize/base/sidestep.yaml`, as a container runtime would.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use sidestep_tests::{Container, DEADLINE, Testbed, agent::binary, cgroup, end_to_end};

const MANIFEST: &str = include_str!("../../deploy/kustomize/base/sidestep.yaml");

/// The container of the DaemonSet, and what it has of the node.
#[derive(Clone, Debug)]
struct Pod {
    host_pids: bool,
    capabilities: Vec<String>,
    /// By path in the container: the node's path, and whether it is read-only.
    mounts: BTreeMap<String, (PathBuf, bool)>,
}

impl Pod {
    /// As in the manifest; what the agent writes to is in the test bed, and its configuration too.
    fn of_manifest(bed: &Testbed) -> Result<Self> {
        // Documents without a container, as that of a Service, are of no interest.
        let documents = MANIFEST.split("\n---\n").filter(|text| text.contains("\nkind: DaemonSet\n"));
        let document: Value = serde_saphyr::from_str(documents.last().context("no DaemonSet")?)?;
        let spec: PodSpec = serde_json::from_value(document["spec"]["template"]["spec"].clone())?;
        let [container] = spec.containers.as_slice() else { anyhow::bail!("one container is expected") };
        let capabilities = container.security_context.capabilities.add.iter().map(|name| format!("CAP_{name}"));
        let mut mounts = BTreeMap::new();
        for mount in &container.volume_mounts {
            let volume = spec.volumes.iter().find(|volume| volume.name == mount.name).context("no such volume")?;
            let node = match (&volume.host_path, mount.mount_path.as_str()) {
                (Some(_), "/var/lib/sidestep" | "/run/sidestep") | (None, _) => bed.directory().join(&mount.name),
                (Some(host), _) => host.path.clone(),
            };
            if node.starts_with(bed.directory()) {
                fs::create_dir_all(&node)?;
            }
            mounts.insert(mount.mount_path.clone(), (node, mount.read_only));
        }
        ensure!(mounts.contains_key("/host"), "{mounts:?}");
        let pod = Self { host_pids: spec.host_pid, capabilities: capabilities.collect(), mounts };
        pod.configure(bed, &bed.pins())?;
        Ok(pod)
    }

    fn configure(&self, bed: &Testbed, pins: &Path) -> Result<()> {
        let config = serde_json::json!({
            "identity": { "host_root": "/host" },
            "capture": { "cgroup_roots": [bed.cgroup_root()], "pin": pins },
            "sinks": [{ "type": "file", "path": "/var/lib/sidestep/logs" }],
            "telemetry": { "listen": "0.0.0.0:9464" },
        });
        Ok(fs::write(bed.directory().join("config/sidestep.yaml"), config.to_string())?)
    }

    fn without_mount(mut self, path: &str) -> Self {
        self.mounts.remove(path).expect("the manifest mounts it");
        self
    }

    fn without_capability(mut self, name: &str) -> Self {
        self.capabilities.retain(|other| other != name);
        self
    }

    fn start(&self, bed: &Testbed, name: &str, arguments: &[&str]) -> Result<Container> {
        // A runtime gives every container a /sys of its own, of which the agent needs this.
        let mut container = bed.container(name).bind_read_only("/sys/kernel/btf", "/sys/kernel/btf");
        container = container.bind_read_only(binary()?.canonicalize()?, "/sidestep").host_programs();
        for (target, (source, read_only)) in &self.mounts {
            container = match read_only {
                true => container.bind_read_only(source, target),
                false => container.bind(source, target),
            };
        }
        if self.host_pids {
            container = container.host_pids();
        }
        container.capabilities(&self.capabilities).args(&[&["/sidestep"], arguments].concat()).start()
    }

    fn doctor(&self, bed: &Testbed, name: &str) -> Result<Vec<Finding>> {
        let arguments = ["doctor", "--config", "/etc/sidestep/sidestep.yaml", "--output", "json"];
        let mut container = self.start(bed, name, &arguments)?;
        container.wait_for(DEADLINE)?;
        serde_json::from_slice(&container.stdout())
            .with_context(|| format!("the doctor said {:?}", String::from_utf8_lossy(&container.stderr())))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(rename = "hostPID")]
    host_pid: bool,
    containers: Vec<PodContainer>,
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodContainer {
    security_context: SecurityContext,
    volume_mounts: Vec<VolumeMount>,
}

#[derive(Deserialize)]
struct SecurityContext {
    capabilities: Capabilities,
}

#[derive(Deserialize)]
struct Capabilities {
    add: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeMount {
    name: String,
    mount_path: String,
    #[serde(default)]
    read_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    name: String,
    host_path: Option<HostPath>,
}

#[derive(Deserialize)]
struct HostPath {
    path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Finding {
    area: String,
    check: String,
    health: String,
    found: String,
    advice: String,
}

/// The finding of `check` is `health`, and says what is missing and what to do.
fn expect(findings: &[Finding], check: &str, health: &str, found: &str, advice: &str) -> Result<()> {
    let finding = findings.iter().find(|finding| finding.check == check).with_context(|| format!("no {check}"))?;
    let is_told = finding.health == health && finding.found.contains(found) && finding.advice.contains(advice);
    ensure!(is_told, "{health} is expected, with {found:?} and {advice:?}: {finding:?}");
    Ok(())
}

#[test]
fn the_pod_of_the_manifest_has_all_it_needs() {
    end_to_end(|bed| {
        let findings = Pod::of_manifest(bed)?.doctor(bed, "whole")?;
        // What the kernel of this machine lacks is not the Pod's.
        let of_the_pod = |finding: &&Finding| ["privileges", "mounts", "cgroups", "config"].contains(&&*finding.area);
        let mut bad: Vec<_> =
            findings.iter().filter(of_the_pod).filter(|finding| finding.health != "healthy").collect();
        // The test bed's cgroup holds nothing but this container; below it there may be none.
        bad.retain(|finding| finding.check != "governed_roots");
        ensure!(bad.is_empty(), "{bad:?}");
        expect(&findings, "host_root", "healthy", "/host is the node's", "")?;
        expect(&findings, "CAP_SYS_ADMIN", "healthy", "not needed", "")?;
        expect(&findings, "pins", "healthy", "will be made", "")?;
        let failed: Vec<_> = findings.iter().filter(|finding| finding.health == "failed").collect();
        ensure!(failed.is_empty(), "{failed:?}");
        Ok(())
    });
}

#[test]
fn each_missing_capability_is_told() {
    end_to_end(|bed| {
        let pod = Pod::of_manifest(bed)?;
        for (name, health, purpose) in [
            ("CAP_BPF", "failed", "nothing can be captured"),
            ("CAP_PERFMON", "failed", "nothing can be captured"),
            ("CAP_SYS_PTRACE", "degraded", "stdout of containers that ran before the agent"),
            ("CAP_DAC_READ_SEARCH", "degraded", "log files"),
            ("CAP_SYS_NICE", "degraded", "drain the ring"),
            ("CAP_NET_ADMIN", "degraded", "policies for traffic"),
        ] {
            ensure!(pod.capabilities.iter().any(|other| other == name), "{name} is not in the manifest");
            let findings = pod.clone().without_capability(name).doctor(bed, &name.to_lowercase().replace('_', "-"))?;
            expect(&findings, name, health, "missing", purpose)?;
            expect(&findings, name, health, "missing", "`security.capabilities` of the chart")?;
        }
        Ok(())
    });
}

#[test]
fn each_missing_mount_is_told() {
    end_to_end(|bed| {
        let pod = Pod::of_manifest(bed)?;
        let findings = pod.clone().without_mount("/host").doctor(bed, "host")?;
        expect(&findings, "host_root", "failed", "/host is no directory", "hostPath")?;

        let findings = pod.clone().without_mount("/sys/kernel/tracing").doctor(bed, "tracing")?;
        expect(
            &findings,
            "tracefs",
            "degraded",
            "not mounted at /sys/kernel/tracing",
            "mount that directory into the Pod",
        )?;
        expect(&findings, "CAP_SYS_ADMIN", "degraded", "missing", "to mount the BPF file system and tracefs")?;

        let findings = pod.clone().without_mount("/sys/fs/bpf").doctor(bed, "bpf")?;
        expect(&findings, "bpffs", "degraded", "not mounted at /sys/fs/bpf", "mount -t bpf")?;
        expect(&findings, "pins", "failed", "no BPF file system", "`sidestep run` would not start")?;

        let mut read_only = pod.clone();
        read_only.mounts.get_mut("/sys/fs/bpf").context("the manifest mounts it")?.1 = true;
        let findings = read_only.doctor(bed, "bpf-read-only")?;
        expect(&findings, "bpffs", "degraded", "read-only", "without `readOnly`")?;
        expect(&findings, "pins", "failed", "read-only", "`sidestep run` would not start")?;

        let mut another = pod.clone();
        another.mounts.insert("/host".to_owned(), (bed.directory().join("config"), true));
        let findings = another.doctor(bed, "another-host")?;
        expect(&findings, "host_root", "degraded", "not the root directory", "hostPath")?;
        expect(&findings, "runtimes", "degraded", "no runtime's state directory", "")?;

        let mut own = pod.clone().without_mount("/host");
        let cgroup = cgroup::unified()?.join(bed.cgroup_root().trim_start_matches('/'));
        own.mounts.insert("/sys/fs/cgroup".to_owned(), (cgroup, true));
        let findings = own.doctor(bed, "own-cgroup")?;
        expect(&findings, "cgroup_v2", "failed", "one cgroup of the hierarchy", "Mount the node's /sys/fs/cgroup")?;

        let mut confined = pod;
        confined.host_pids = false;
        let findings = confined.doctor(bed, "own-pids")?;
        expect(&findings, "pid_namespace", "degraded", "not the node's", "hostPID: true")
    });
}
