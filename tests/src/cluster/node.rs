//! A node: namespaces of its own with what a real node has in its own directories, containerd, a kubelet, a kube-proxy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};
use serde_json::json;

use super::{Place, credentials::Credentials, images, network, process::Process};
use crate::{DEADLINE, cgroup, mounts, wait_until};

/// What holds the namespaces.
const SCRIPT: &str = include_str!("node.sh");

/// The processes of a node that can be ended and started again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Component {
    /// The container runtime.
    Containerd,
    /// The kubelet.
    Kubelet,
    /// What leads to services.
    KubeProxy,
    /// The store; on the first node only, as the following.
    Etcd,
    /// The API server.
    ApiServer,
    /// Deployments to ReplicaSets to Pods, and the like.
    ControllerManager,
    /// Pods to nodes.
    Scheduler,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Etcd,
        Self::ApiServer,
        Self::Containerd,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::KubeProxy,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }
}

/// One node of a cluster.
#[derive(Clone, Debug)]
pub struct Node {
    place: Place,
    number: u8,
    programs: PathBuf,
}

impl Node {
    /// The node with this number, from 1; `programs` has those of Kubernetes.
    pub(super) fn new(place: &Place, number: u8, programs: &Path) -> Self {
        Self { place: place.clone(), number, programs: programs.to_owned() }
    }

    /// Its name in the cluster.
    #[must_use]
    pub fn name(&self) -> String {
        network::node_name(&self.place, self.number)
    }

    /// The cgroup that its Pods' are below, for `capture.cgroup_roots`.
    #[must_use]
    pub fn pods_cgroup(&self) -> String {
        format!("{}/kubepods", self.place.cgroup(self.number))
    }

    /// Where a file of the node (`/var/lib/...`, `/var/log/...`) is for the machine.
    ///
    /// # Panics
    /// It is elsewhere on the node: the machine has no other name for it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        let own = path.strip_prefix("/var/").filter(|rest| rest.starts_with("lib/") || rest.starts_with("log/"));
        self.directory().join(own.expect("a path below /var/lib or /var/log"))
    }

    /// The process of a component.
    #[must_use]
    pub fn process(&self, component: Component) -> Process {
        self.process_named(component.name(), "system")
    }

    fn process_named(&self, name: &str, group: &str) -> Process {
        let log = self.place.logs().join(format!("{name}-{}.log", self.number));
        let cgroup = format!("{}/{group}", self.place.cgroup(self.number));
        Process::new(self.directory().join(format!("{name}.pid")), log, cgroup)
    }

    fn directory(&self) -> PathBuf {
        self.place.node(self.number)
    }

    /// The process that holds its namespaces.
    fn holder(&self) -> Process {
        self.process_named("namespaces", "system")
    }

    /// Its number, if the node has been started.
    ///
    /// # Errors
    /// It has not.
    pub fn namespaces(&self) -> Result<Pid> {
        self.holder().pid().with_context(|| format!("node {} does not run", self.name()))
    }

    /// A command that will run as if on the node.
    ///
    /// # Errors
    /// The node does not run.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(self.entry(&["--mount", "--uts", "--net"])?).arg(program);
        Ok(command)
    }

    /// A command that has the node's network, and the machine's files.
    ///
    /// # Errors
    /// The node does not run.
    pub fn network_command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(self.entry(&["--net"])?).arg(program);
        Ok(command)
    }

    fn entry(&self, namespaces: &[&str]) -> Result<Vec<String>> {
        let target = format!("--target={}", self.namespaces()?);
        Ok([target]
            .into_iter()
            .chain(namespaces.iter().map(|name| (*name).to_owned()))
            .chain(["--".to_owned()])
            .collect())
    }

    /// Starts a component, which may have run before.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(&self, component: Component) -> Result<()> {
        let arguments = match component {
            Component::Containerd => vec![format!("--config={}", self.directory().join("containerd.toml").display())],
            Component::Kubelet => self.kubelet(),
            Component::KubeProxy => self.proxy(),
            Component::Etcd | Component::ApiServer | Component::ControllerManager | Component::Scheduler => {
                super::control::arguments(component, &self.place)
            }
        };
        let own = self.programs.join(component.name());
        // etcd and containerd are Debian's.
        let program = if own.exists() { own.display().to_string() } else { component.name().to_owned() };
        let mut command = vec!["nsenter".to_owned()];
        command.extend(self.entry(&["--mount", "--uts", "--net"])?);
        command.push(program);
        command.extend(arguments);
        self.process(component).start(&command.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Makes its namespaces, its cgroups and its configuration. No component runs yet.
    ///
    /// # Errors
    /// Something is not allowed here, or there is no space.
    pub(super) fn prepare(&self) -> Result<()> {
        let directory = self.directory();
        for name in ["lib", "log", "cni"] {
            fs::create_dir_all(directory.join(name)).with_context(|| format!("creating {name} of {}", self.name()))?;
        }
        fs::create_dir_all(self.place.logs())?;
        self.make_cgroups()?;
        self.configure()?;
        let script = directory.join("node.sh");
        fs::write(&script, SCRIPT)?;
        let [script, place] = [&script, &directory].map(|path| path.display().to_string());
        let unshare =
            ["unshare", "--mount", "--uts", "--net", "--propagation=slave", "sh", &script, &place, &self.name()];
        self.holder().start(&unshare)?;
        let ready = directory.join("ready");
        let started =
            wait_until(&format!("the namespaces of {}", self.name()), DEADLINE, || Ok(ready.exists().then_some(())));
        started.with_context(|| self.holder().last_words())
    }

    /// The kubelet wants its root in every hierarchy. A new cpuset of version 1 has neither processors nor memory.
    fn make_cgroups(&self) -> Result<()> {
        let group = self.place.cgroup(self.number);
        for mount in mounts::all()?.iter().filter(|mount| mount.kind.starts_with("cgroup")) {
            let directory = mount.target.join(group.trim_start_matches('/'));
            fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
            for name in ["cpuset.cpus", "cpuset.mems"] {
                let (from, to) = (mount.target.join(name), directory.join(name));
                if mount.kind == "cgroup" && from.exists() && to.exists() {
                    fs::copy(&from, &to).with_context(|| format!("setting {}", to.display()))?;
                }
            }
        }
        Ok(())
    }

    /// Writes the files that containerd, its network plugins and the kubelet are started with.
    fn configure(&self) -> Result<()> {
        let directory = self.directory();
        let cni = directory.join("cni");
        let containerd = format!(
            "version = 2\nroot = \"/var/lib/containerd\"\nstate = \"/run/containerd\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{}\"\n\
             # This machine's root may not lower a score, and every sandbox would.\n  restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"/usr/lib/cni\"\n  conf_dir = \"{}\"\n",
            images::PAUSE,
            cni.display()
        );
        fs::write(directory.join("containerd.toml"), containerd)?;
        let network = json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                { "type": "ptp", "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": network::pods(self.number) }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                } },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        fs::write(cni.join("10-pods.conflist"), network.to_string())?;
        let kubelet = json!({
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.place.cgroup(self.number),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "enforceNodeAllocatable": [],
            "evictionHard": {},
            "failCgroupV1": false,
            "failSwapOn": false,
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": false,
            "maxPods": 250,
            "oomScoreAdj": 0,
            "resolvConf": "",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        });
        Ok(fs::write(directory.join("kubelet.json"), kubelet.to_string())?)
    }

    fn kubelet(&self) -> Vec<String> {
        let kubeconfig = Credentials::of(&self.place).kubeconfig(&format!("kubelet-{}", self.number));
        vec![
            format!("--config={}", self.directory().join("kubelet.json").display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={}", self.name()),
            format!("--node-ip={}", network::address(self.number)),
            "--root-dir=/var/lib/kubelet".to_owned(),
            "--cert-dir=/var/lib/kubelet/pki".to_owned(),
        ]
    }

    fn proxy(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--kubeconfig={}", Credentials::of(&self.place).kubeconfig("proxy").display()),
            format!("--hostname-override={}", self.name()),
            format!("--cluster-cidr={}", network::PODS),
        ];
        // Connection tracking is the machine's; scores can't be lowered here.
        arguments.extend(
            [
                "--proxy-mode=iptables",
                "--conntrack-max-per-core=0",
                "--conntrack-tcp-timeout-established=0",
                "--conntrack-tcp-timeout-close-wait=0",
                "--oom-score-adj=0",
            ]
            .map(str::to_owned),
        );
        arguments
    }

    /// Runs `ip` in the network of the node.
    pub(super) fn ip(&self, arguments: &str) -> Result<()> {
        let output = self.network_command("ip")?.args(arguments.split_whitespace()).output()?;
        ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Gives the node its address; all that it does not know goes to the same wire.
    pub(super) fn connect(&self) -> Result<()> {
        self.ip(&format!("addr add {}/24 dev eth0", network::address(self.number)))?;
        self.ip("link set eth0 up")?;
        self.ip("route add default dev eth0")
    }

    /// Waits until containerd answers.
    ///
    /// # Errors
    /// Not in time; its log is in the error.
    pub fn wait_containerd(&self) -> Result<()> {
        let process = self.process(Component::Containerd);
        let answered = wait_until("containerd", DEADLINE, || {
            Ok(self.command("ctr")?.arg("version").output()?.status.success().then_some(()))
        });
        answered.with_context(|| process.last_words())
    }

    /// Ends a component and starts it again.
    ///
    /// # Errors
    /// It does not end, or can't be started.
    pub fn restart(&self, component: Component, signal: Signal) -> Result<()> {
        self.process(component).stop(signal)?;
        self.start(component)
    }

    /// The processes of its Pods, and of what serves them.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        cgroup::processes(&self.place.cgroup(self.number))
    }

    /// Those of them whose cgroups, as `/proc/PID/cgroup` has them, are `wanted`.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub fn processes_of(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Pid>> {
        // One that has ended meanwhile has no file any more.
        let is_wanted = |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| wanted(&text));
        Ok(self.processes()?.into_iter().filter(is_wanted).collect())
    }

    /// The agent that runs on it, found without asking anybody.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub fn agent(&self) -> Result<Option<Pid>> {
        let is_agent =
            |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sidestep");
        Ok(self.processes()?.into_iter().find(is_agent))
    }
}
