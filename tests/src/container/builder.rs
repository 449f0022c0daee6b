//! What a container shall be, and how it is started.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
    process::Pid,
};
use serde_json::{Value, json};

use super::{
    Capture, Container, console,
    spec::{Bind, CAPABILITIES, Spec},
};
use crate::{RuntimeLog, Testbed, rootfs};

/// Where a standard stream of a container leads to.
#[derive(Clone, Debug, Default)]
pub enum Stdio {
    /// A pipe to the runtime, as usual.
    #[default]
    Pipe,
    /// `/dev/null`.
    Null,
    /// A file of the host, opened for appending.
    File(PathBuf),
    /// What the caller has opened, as a pipe that it reads itself.
    Given(Arc<OwnedFd>),
    /// A pipe to the runtime, which writes the Pod's log; for stdout.
    Logged,
}

/// A container to be started.
#[derive(Debug)]
pub struct ContainerBuilder<'a> {
    bed: &'a Testbed,
    id: String,
    name: String,
    pod: String,
    namespace: String,
    pod_uid: Option<String>,
    args: Vec<String>,
    env: Vec<String>,
    terminal: bool,
    host_pids: bool,
    stdout: Stdio,
    stderr: Stdio,
    host_programs: bool,
    annotated: bool,
    binds: Vec<Bind>,
    capabilities: Vec<String>,
    no_new_privileges: bool,
}

impl<'a> ContainerBuilder<'a> {
    pub(crate) fn new(bed: &'a Testbed, name: &str, id: String) -> Self {
        Self {
            bed,
            id,
            name: name.to_owned(),
            pod: format!("{name}-pod"),
            namespace: "shop".to_owned(),
            pod_uid: None,
            args: vec!["true".to_owned()],
            env: Vec::new(),
            terminal: false,
            host_pids: false,
            stdout: Stdio::Pipe,
            stderr: Stdio::Pipe,
            host_programs: false,
            annotated: true,
            binds: Vec::new(),
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            no_new_privileges: false,
        }
    }

    /// The first process and its arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        self
    }

    /// A shell script as the first process.
    #[must_use]
    pub fn shell(self, script: &str) -> Self {
        self.args(&["sh", "-c", script])
    }

    /// A Python program as the first process, with the host's interpreter. Standard output is not buffered.
    #[must_use]
    pub fn python(self, program: &str) -> Self {
        self.host_programs().args(&["/usr/bin/python3", "-u", "-c", program])
    }

    /// An environment variable, `NAME=value`.
    #[must_use]
    pub fn env(mut self, variable: &str) -> Self {
        self.env.push(variable.to_owned());
        self
    }

    /// Namespace and Pod in the annotations.
    #[must_use]
    pub fn pod(mut self, namespace: &str, pod: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        pod.clone_into(&mut self.pod);
        self
    }

    /// The Pod's UID, as an API server has it; one that is made of its name when this is not called.
    #[must_use]
    pub fn pod_uid(mut self, uid: &str) -> Self {
        self.pod_uid = Some(uid.to_owned());
        self
    }

    /// One terminal for all standard streams.
    #[must_use]
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    /// The node's PID namespace, as with `hostPID: true`.
    #[must_use]
    pub fn host_pids(mut self) -> Self {
        self.host_pids = true;
        self
    }

    /// Where stdout leads to.
    #[must_use]
    pub fn stdout(mut self, stdio: Stdio) -> Self {
        self.stdout = stdio;
        self
    }

    /// Where stderr leads to.
    #[must_use]
    pub fn stderr(mut self, stdio: Stdio) -> Self {
        self.stderr = stdio;
        self
    }

    /// The host's `/usr`, read-only: Python, Java, nginx.
    #[must_use]
    pub fn host_programs(mut self) -> Self {
        self.host_programs = true;
        self
    }

    /// No annotations, as when someone calls `runc` by hand: nothing tells the Pod.
    #[must_use]
    pub fn without_annotations(mut self) -> Self {
        self.annotated = false;
        self
    }

    /// A directory or file of the host at `target` in the container, writable.
    #[must_use]
    pub fn bind(mut self, source: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        self.binds.push(Bind {
            source: source.as_ref().to_owned(),
            target: target.as_ref().to_owned(),
            read_only: false,
        });
        self
    }

    /// As [`ContainerBuilder::bind`], and the container can't write there.
    #[must_use]
    pub fn bind_read_only(mut self, source: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        self.binds.push(Bind {
            source: source.as_ref().to_owned(),
            target: target.as_ref().to_owned(),
            read_only: true,
        });
        self
    }

    /// These capabilities and no others, with the prefix `CAP_`; and no program gives more, as with
    /// `allowPrivilegeEscalation: false`.
    #[must_use]
    pub fn capabilities(mut self, names: &[String]) -> Self {
        self.capabilities = names.to_vec();
        self.no_new_privileges = true;
        self
    }

    /// Creates and starts the container; it runs when this returns, and may have ended.
    ///
    /// # Errors
    /// runc is missing or refuses; the error has what runc logged.
    pub fn start(self) -> Result<Container> {
        let run = self.bed.directory().join("run/containerd");
        let bundle = run.join("io.containerd.runtime.v2.task/k8s.io").join(&self.id);
        let runtime_root = run.join("runc/k8s.io");
        let pod_uid = self.pod_uid.clone().unwrap_or_else(|| pod_uid(&self.namespace, &self.pod));
        let cgroup = format!("{}/kubepods/besteffort/pod{pod_uid}/{}", self.bed.cgroup_root(), self.id);
        self.make_bundle(&bundle, &cgroup, &pod_uid)?;

        let mut create = Command::new("runc");
        let log = bundle.join("log");
        create.arg("--root").arg(&runtime_root).arg("--log").arg(&log).args(["--log-format", "text", "create"]);
        create.arg("--bundle").arg(&bundle).arg("--pid-file").arg(bundle.join("init.pid"));
        let mut log_file = None;
        let (stdin, stdout, stderr) = if self.terminal {
            let socket = self.bed.directory().join(format!("{}.tty", &self.id[..12]));
            let listener = UnixListener::bind(&socket).with_context(|| format!("binding {}", socket.display()))?;
            create.arg("--console-socket").arg(&socket).arg(&self.id);
            create.stdin(process::Stdio::null()).stdout(process::Stdio::null()).stderr(process::Stdio::null());
            run_runc(&mut create, &log)?;
            (None, Some(Capture::start(console::receive(&listener)?)?), None)
        } else {
            let (stdin, writer) = io::pipe()?;
            let (mut stdout, stdout_end) = open(&self.stdout)?;
            if matches!(self.stdout, Stdio::Logged)
                && let Some(source) = stdout.take()
            {
                log_file = Some(self.start_log(&pod_uid, source)?);
            }
            let (stderr, stderr_end) = open(&self.stderr)?;
            create.arg(&self.id).stdin(stdin).stdout(stdout_end).stderr(stderr_end);
            run_runc(&mut create, &log)?;
            (Some(writer), stdout.map(Capture::start).transpose()?, stderr.map(Capture::start).transpose()?)
        };
        // The writing ends of the pipes must be the container's alone, or they never end.
        drop(create);

        let pid = fs::read_to_string(bundle.join("init.pid"))?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw).context("runc's pid file")?;
        let container = Container {
            id: self.id,
            name: self.name,
            pod: self.pod,
            namespace: self.namespace,
            cgroup,
            runtime_root,
            rootfs: bundle.join("rootfs"),
            pid,
            exit: None,
            stdin,
            stdout,
            stderr,
            log: log_file,
        };
        let mut start = container.runc();
        start.arg("--log").arg(&log).args(["start", &container.id]);
        run_runc(&mut start, &log)?;
        Ok(container)
    }

    fn start_log(&self, pod_uid: &str, source: io::PipeReader) -> Result<RuntimeLog> {
        let pod = format!("{}_{}_{pod_uid}", self.namespace, self.pod);
        let directory = self.bed.pod_logs().join(pod).join(&self.name);
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        RuntimeLog::start(&directory.join("0.log"), source)
    }

    /// The bundle as containerd makes it: `config.json` and an overlay of image and container layer at `rootfs`.
    fn make_bundle(&self, bundle: &Path, cgroup: &str, pod_uid: &str) -> Result<()> {
        let image = self.bed.directory().join("image");
        rootfs::make(&image)?;
        let layers = self.bed.directory().join("layers").join(&self.id);
        let (upper, work, root) = (layers.join("upper"), layers.join("work"), bundle.join("rootfs"));
        for directory in [&upper, &work, &root] {
            fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        }
        let options = format!("lowerdir={},upperdir={},workdir={}", image.display(), upper.display(), work.display());
        let options = std::ffi::CString::new(options)?;
        match mount("overlay", &root, "overlay", MountFlags::empty(), options.as_c_str()) {
            // An emulated machine has its kernel without modules: then each container has a copy of the image.
            Err(Errno::NODEV) => copy_tree(&image, &root)?,
            mounted => mounted.context("mounting the rootfs")?,
        }
        let spec = Spec {
            args: &self.args,
            env: &self.env,
            terminal: self.terminal,
            host_pids: self.host_pids,
            cgroup,
            annotations: self.annotations(pod_uid),
            host_programs: self.host_programs,
            binds: &self.binds,
            hostname: "test",
            capabilities: &self.capabilities,
            no_new_privileges: self.no_new_privileges,
        };
        fs::write(bundle.join("config.json"), spec.to_json().to_string()).context("writing config.json")
    }

    /// What containerd's CRI plugin writes.
    fn annotations(&self, pod_uid: &str) -> Value {
        if !self.annotated {
            return json!({});
        }
        json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": self.name,
            "io.kubernetes.cri.image-name": "registry.example/shop/app:1.2",
            "io.kubernetes.cri.sandbox-id": "5".repeat(64),
            "io.kubernetes.cri.sandbox-name": self.pod,
            "io.kubernetes.cri.sandbox-namespace": self.namespace,
            "io.kubernetes.cri.sandbox-uid": pod_uid,
        })
    }
}

/// A stable UUID for a Pod, whatever its name.
fn pod_uid(namespace: &str, pod: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (namespace, pod).hash(&mut hasher);
    let digits = format!("{:016x}", hasher.finish());
    format!("{}-{}-4000-8000-{}", &digits[..8], &digits[8..12], &digits[4..])
}

/// The reading end, when it is a pipe, and what the container gets.
fn open(stdio: &Stdio) -> Result<(Option<io::PipeReader>, process::Stdio)> {
    Ok(match stdio {
        Stdio::Pipe | Stdio::Logged => {
            let (reader, writer) = io::pipe()?;
            (Some(reader), writer.into())
        }
        Stdio::Null => (None, process::Stdio::null()),
        Stdio::File(path) => {
            let file = File::options().create(true).append(true).open(path);
            (None, file.with_context(|| format!("opening {}", path.display()))?.into())
        }
        Stdio::Given(descriptor) => (None, descriptor.try_clone().context("duplicating a descriptor")?.into()),
    })
}

/// Copies what is in a directory, links as links.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().context("running cp")?;
    ensure!(status.success(), "copying {}: {status}", from.display());
    Ok(())
}

fn run_runc(command: &mut Command, log: &Path) -> Result<()> {
    let status = command.status().context("running runc: apt-get install runc")?;
    ensure!(status.success(), "runc: {status}: {}", fs::read_to_string(log).unwrap_or_default());
    Ok(())
}
