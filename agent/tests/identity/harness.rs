//! What all runtimes need: a root file system, commands with a time limit, and clean-up.

use std::{
    fs,
    io::{Read, Seek},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sidestep::attribute::{HostFiles, Identity, Settings, resolve};

/// The Pod that the tests' containers are said to be of.
pub(crate) const POD_UID: &str = "6e0e4a3c-6f0d-4b0e-9c1b-0d4f8a4f3b11";
/// How long a command, or a daemon's start, may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A directory and a cgroup of a test's own.
pub(crate) struct Area {
    directory: tempfile::TempDir,
    cgroup: String,
}

impl Area {
    /// Prepares a test that needs `programs`, or says which of them is missing.
    pub(crate) fn new(name: &str, programs: &[&str]) -> Option<Self> {
        for program in programs.iter().chain(&["busybox"]) {
            let found = std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).is_file()));
            if !found {
                eprintln!("skipped: {program} is not installed");
                return None;
            }
        }
        let area = Self {
            directory: tempfile::Builder::new().prefix("sidestep-identity-").tempdir().expect("a directory"),
            cgroup: format!("sidestep-identity-{name}-{}", std::process::id()),
        };
        let bin = area.path("rootfs/bin");
        for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(area.path("rootfs").join(directory)).expect("a root file system");
        }
        let busybox = run(&["sh", "-c", "command -v busybox"]);
        fs::copy(busybox.trim(), bin.join("busybox")).expect("busybox copied");
        std::os::unix::fs::symlink("busybox", bin.join("sleep")).expect("a link");
        Some(area)
    }

    /// A path below the test's directory.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    /// The same as text.
    pub(crate) fn text(&self, below: &str) -> String {
        self.path(below).to_str().expect("a temporary directory is UTF-8").to_owned()
    }

    /// A cgroup as the kubelet makes it for a Pod of class `BestEffort`.
    pub(crate) fn pod_cgroup(&self) -> String {
        format!("/{}/kubepods/besteffort/pod{POD_UID}", self.cgroup)
    }

    /// The test's own cgroup.
    pub(crate) fn cgroup(&self) -> String {
        format!("/{}", self.cgroup)
    }

    /// An image of the root file system, as `docker import` takes it.
    pub(crate) fn archive(&self) -> String {
        let archive = self.text("rootfs.tar");
        run(&["tar", "-C", &self.text("rootfs"), "-cf", &archive, "."]);
        archive
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // What a runtime that failed has left mounted; the innermost first.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in
            own.filter(|mount| Path::new(mount).starts_with(self.directory.path())).collect::<Vec<_>>().iter().rev()
        {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
        let mut hierarchies = vec![PathBuf::from("/sys/fs/cgroup")];
        hierarchies.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
        for hierarchy in hierarchies {
            remove_cgroup(&hierarchy.join(&self.cgroup));
        }
    }
}

fn remove_cgroup(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    // Not there in most hierarchies.
    let _ = fs::remove_dir(cgroup);
}

/// Runs a command to its end and gives its standard output. Containers that it leaves behind inherit files, not
/// pipes, so nothing waits for them.
#[track_caller]
pub(crate) fn run(command: &[&str]) -> String {
    match try_run(command) {
        Ok(output) => output,
        Err(error) => panic!("{command:?}: {error}"),
    }
}

/// The same for a command that may fail.
pub(crate) fn try_run(command: &[&str]) -> Result<String, String> {
    let mut output = tempfile::tempfile().expect("a file");
    let mut errors = tempfile::tempfile().expect("a file");
    let status = Command::new("timeout")
        .arg(LIMIT.as_secs().to_string())
        .args(command)
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a second handle"))
        .stderr(errors.try_clone().expect("a second handle"))
        .status()
        .expect("timeout runs");
    let read = |file: &mut fs::File| {
        let mut text = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).map(|_| text).unwrap_or_default()
    };
    if status.success() { Ok(read(&mut output)) } else { Err(format!("{status}: {}", read(&mut errors))) }
}

/// A command that undoes something when the test ends, however it ends.
pub(crate) struct Undo(Vec<Vec<String>>);

impl Undo {
    /// Commands to run in this order; a failure of one is no concern of the others.
    pub(crate) fn new(commands: &[&[&str]]) -> Self {
        Self(commands.iter().map(|command| command.iter().map(|word| (*word).to_owned()).collect()).collect())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for command in &self.0 {
            let words: Vec<_> = command.iter().map(String::as_str).collect();
            if let Err(error) = try_run(&words) {
                eprintln!("clean-up {command:?}: {error}");
            }
        }
    }
}

/// A daemon of the test's own.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts it, with its output in a file, and waits until `probe` succeeds.
    pub(crate) fn start(command: &[&str], log: &Path, probe: &[&str]) -> Self {
        let file = fs::File::create(log).expect("a log file");
        let child = Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("the daemon starts");
        let mut daemon = Self(child);
        let deadline = Instant::now() + LIMIT;
        while let Err(error) = try_run(probe) {
            let ended = daemon.0.try_wait().expect("our child").is_some();
            if ended || Instant::now() > deadline {
                panic!("{command:?} is not ready: {error}\n{}", fs::read_to_string(log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let deadline = Instant::now() + LIMIT;
        while matches!(self.0.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.0.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The path of a process in the v2 hierarchy.
#[track_caller]
pub(crate) fn cgroup_of(pid: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", pid.trim())).expect("the container runs");
    text.lines().find_map(|line| line.strip_prefix("0::")).expect("a v2 hierarchy").to_owned()
}

/// What the agent finds out, with the files of this node.
pub(crate) fn identify(settings: &Settings, cgroup: &str) -> Identity {
    let files = HostFiles::new(Path::new("/")).expect("the root directory");
    resolve(&files, settings, None, cgroup, None)
}

/// `(runtime, container id, container name, image, namespace, pod, pod uid)`.
pub(crate) fn words(identity: &Identity) -> [Option<&str>; 7] {
    let resource = &*identity.resource;
    [
        &resource.container_runtime,
        &resource.container_id,
        &resource.container_name,
        &resource.image,
        &resource.namespace,
        &resource.pod,
        &resource.pod_uid,
    ]
    .map(Option::as_deref)
}

/// Settings that know none of this node's own runtimes, so that a test sees only what it has started.
pub(crate) fn nothing() -> Settings {
    Settings {
        containerd_state: Vec::new(),
        docker_root: Vec::new(),
        container_storage: Vec::new(),
        runc_state: Vec::new(),
        crun_state: Vec::new(),
        ..Settings::default()
    }
}
