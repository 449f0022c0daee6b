//! Docker and containerd as they are installed, each as a private daemon whose directories and sockets are the test
//! bed's. The daemons run in a cgroup beside the governed root, so that they can be found and ended with it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{DEADLINE, Testbed, daemon::Daemon, rootfs, wait_until};

/// Runs a client and returns its standard output.
fn client(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("running {}", command.get_program().display()))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
    Ok(output.stdout)
}

/// Removes the sockets of shims whose bundles are below `directory`: containerd puts those into `/run/containerd/s`,
/// whatever its configuration says, and a shim that is killed leaves its own there.
pub(crate) fn remove_shim_sockets(directory: &Path) {
    for state in ["docker/exec/containerd/daemon", "containerd/state"] {
        let tasks = directory.join(state).join("io.containerd.runtime.v2.task");
        let namespaces = fs::read_dir(tasks).into_iter().flatten().flatten();
        for bundle in namespaces.filter_map(|entry| fs::read_dir(entry.path()).ok()).flatten().flatten() {
            let address = fs::read_to_string(bundle.path().join("address")).unwrap_or_default();
            if let Some(socket) = address.trim().strip_prefix("unix://") {
                // It is gone when the shim has ended by itself.
                let _ = fs::remove_file(socket);
            }
        }
    }
}

/// A private dockerd with the image `sidestep-test:1`.
#[derive(Debug)]
pub struct Docker {
    _daemon: Daemon,
    directory: PathBuf,
    parent: String,
}

impl Docker {
    /// The image that all containers are made of.
    pub const IMAGE: &str = "sidestep-test:1";

    /// Starts the daemon and imports the image.
    ///
    /// # Errors
    /// Docker isn't installed, or doesn't start; its log is in the error.
    pub fn start(bed: &Testbed) -> Result<Self> {
        let directory = bed.directory().join("docker");
        fs::create_dir_all(&directory)?;
        let log = directory.join("log");
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(directory.join("root")).arg("--exec-root").arg(directory.join("exec"));
        command
            .arg("--pidfile")
            .arg(directory.join("pid"))
            .arg("-H")
            .arg(format!("unix://{}", directory.join("sock").display()));
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
        let daemon = Daemon::start(bed, &mut command, &log, "docker.io")?;
        let docker = Self { _daemon: daemon, directory, parent: bed.cgroup_root() };
        wait_until("dockerd", DEADLINE, || Ok(client(docker.command().arg("version")).ok()))
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        let image = bed.directory().join("image");
        rootfs::make(&image)?;
        let archive = docker.directory.join("image.tar");
        client(Command::new("tar").arg("-C").arg(&image).arg("-cf").arg(&archive).arg("."))?;
        client(docker.command().arg("import").arg(&archive).arg(Self::IMAGE))?;
        Ok(docker)
    }

    /// Options of the agent: where this daemon keeps what it knows.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Where the containerd that belongs to this daemon keeps its bundles.
    #[must_use]
    pub fn containerd_state(&self) -> PathBuf {
        self.directory.join("exec/containerd/daemon")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.arg("-H").arg(format!("unix://{}", self.directory.join("sock").display()));
        command
    }

    /// Starts a container below the governed root that runs a shell script, and returns its id.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn run(&self, name: &str, options: &[&str], script: &str) -> Result<String> {
        let mut command = self.command();
        command.args(["run", "--detach", "--network", "none", "--name", name, "--cgroup-parent", &self.parent]);
        let id = client(command.args(options).args([Self::IMAGE, "sh", "-c", script]))?;
        Ok(String::from_utf8(id)?.trim().to_owned())
    }

    /// Runs a command in a container.
    ///
    /// # Errors
    /// It fails.
    pub fn exec(&self, name: &str, command: &[&str]) -> Result<Vec<u8>> {
        client(self.command().args(["exec", name]).args(command))
    }

    /// What the daemon has of a container's stdout.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn stdout(&self, name: &str) -> Result<Vec<u8>> {
        client(self.command().args(["logs", name]))
    }

    /// Removes a container, running or not.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn remove(&self, name: &str) -> Result<()> {
        client(self.command().args(["rm", "--force", name])).map(drop)
    }
}

/// A private containerd.
#[derive(Debug)]
pub struct Containerd {
    _daemon: Daemon,
    directory: PathBuf,
    rootfs: PathBuf,
    parent: String,
}

impl Containerd {
    /// Starts the daemon.
    ///
    /// # Errors
    /// containerd isn't installed, or doesn't start; its log is in the error.
    pub fn start(bed: &Testbed) -> Result<Self> {
        let directory = bed.directory().join("containerd");
        fs::create_dir_all(&directory)?;
        let config = directory.join("config.toml");
        let path = directory.display();
        let text = format!(
            "version = 2\nroot = \"{path}/root\"\nstate = \"{path}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{path}/sock\"\n"
        );
        fs::write(&config, text)?;
        let log = directory.join("log");
        let daemon = Daemon::start(bed, Command::new("containerd").arg("--config").arg(&config), &log, "containerd")?;
        let rootfs = directory.join("rootfs");
        rootfs::make(&rootfs)?;
        let containerd = Self { _daemon: daemon, directory, rootfs, parent: bed.cgroup_root() };
        wait_until("containerd", DEADLINE, || Ok(client(containerd.command().arg("version")).ok()))
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(containerd)
    }

    /// Where this daemon keeps its bundles.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.directory.join("sock")).args(["--namespace", "k8s.io"]);
        command
    }

    /// Starts a container as the CRI plugin would annotate it, with a shell script, and its stdout in
    /// [`Containerd::stdout`].
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn run(&self, id: &str, pod: &str, script: &str) -> Result<()> {
        let mut command = self.command();
        command.args(["run", "--detach", "--rootfs", "--log-uri"]);
        command.arg(format!("file://{}", self.log(id).display()));
        command.arg("--runc-root").arg(self.directory.join("runc"));
        command.arg("--cgroup").arg(format!("{}/kubepods/besteffort/pod{id:.8}/{id}", self.parent));
        let annotations = [
            ("container-type", "container"),
            ("container-name", "app"),
            ("sandbox-name", pod),
            ("sandbox-namespace", "shop"),
        ];
        for (name, value) in annotations {
            command.arg("--annotation").arg(format!("io.kubernetes.cri.{name}={value}"));
        }
        command.args(["--env", "PATH=/bin"]).arg(&self.rootfs).arg(id);
        client(command.args(["/bin/sh", "-c", script])).map(drop)
    }

    fn log(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.output"))
    }

    /// What the shim has received of stdout and stderr.
    #[must_use]
    pub fn output(&self, id: &str) -> Vec<u8> {
        fs::read(self.log(id)).unwrap_or_default()
    }

    /// Kills and removes a container, so that its shim ends.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn remove(&self, id: &str) -> Result<()> {
        client(self.command().args(["task", "rm", "--force", id]))?;
        client(self.command().args(["container", "rm", id])).map(drop)
    }
}
