//! One test's place: a directory and a cgroup root of its own, removed with all that lives in them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};

use crate::{Agent, Config, ContainerBuilder, cgroup, mounts};

/// Everything that tests make is named with this, the pid of the test process and a number.
const PREFIX: &str = "sidestep-test-";

/// The cgroup of daemons has the test bed's name and this.
const ENGINE: &str = ".engine";

/// Of how many agents it is shown what they wrote.
const SHOWN_AGENTS: usize = 10;

/// Where pins are.
const PINS: &str = "/sys/fs/bpf";

static NEXT: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// A directory and a cgroup root, both named `sidestep-test-<pid>-<n>`.
#[derive(Debug)]
pub struct Testbed {
    name: String,
    directory: PathBuf,
    next_container: AtomicU32,
}

/// Runs `test` in a [`Testbed`] and removes all that it started, also when it fails; then the agents' stderr is
/// shown.
///
/// # Panics
/// When the test gives an error or panics itself.
pub fn end_to_end(test: impl FnOnce(&Testbed) -> Result<()>) {
    let bed = Testbed::new().expect("setting up the test bed");
    if let Err(error) = test(&bed) {
        // The test bed is dropped while unwinding and so knows that the test has failed.
        // The causes and no backtrace: the test's name and the causes say where, and CI shows the end of a log alone.
        panic!("{error:#}");
    }
}

impl Testbed {
    /// Makes the directory and the cgroup; the first call of a process also removes what crashed runs have left.
    ///
    /// # Errors
    /// Not root, no cgroup v2, or no space.
    pub fn new() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "containers and eBPF need root: run the tests with sudo");
        SWEEP.call_once(|| {
            if let Err(error) = sweep() {
                eprintln!("removing what earlier runs left: {error:#}");
            }
        });
        crate::container::become_subreaper()?;
        let name = format!("{PREFIX}{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let bed = Self { name, directory, next_container: AtomicU32::new(0) };
        let root = cgroup::unified()?.join(&bed.name);
        fs::create_dir_all(&root).with_context(|| format!("creating the cgroup {}", root.display()))?;
        Ok(bed)
    }

    /// The directory that all files of the test live in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A directory of pins of its own, for agents that pin; removed with the test bed.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        Path::new(PINS).join(&self.name)
    }

    /// Path of the governed root from the root of the v2 hierarchy: `/sidestep-test-...`.
    #[must_use]
    pub fn cgroup_root(&self) -> String {
        format!("/{}", self.name)
    }

    /// Path of the cgroup for daemons of the test: beside the governed root, not below it.
    pub(crate) fn engine_cgroup(&self) -> String {
        format!("/{}{ENGINE}", self.name)
    }

    /// What is `/var/log/pods` elsewhere.
    #[must_use]
    pub fn pod_logs(&self) -> PathBuf {
        self.directory.join("pods")
    }

    /// A path in the test's directory, whose parents are made.
    ///
    /// # Errors
    /// No space.
    pub fn path(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.directory.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        Ok(path)
    }

    /// A new container of the Pod `<name>-pod` in the namespace `shop`.
    #[must_use]
    pub fn container(&self, name: &str) -> ContainerBuilder<'_> {
        let number = self.next_container.fetch_add(1, Ordering::Relaxed);
        ContainerBuilder::new(self, name, container_id(&self.name, number))
    }

    /// The usual configuration: this governed root and a file sink below this directory.
    #[must_use]
    pub fn config(&self) -> Config {
        Config::new(self)
    }

    /// Starts an agent with the usual configuration and waits until it is ready.
    ///
    /// # Errors
    /// It can't be started, or isn't ready in time.
    pub fn agent(&self) -> Result<Agent> {
        Agent::start(self, &self.config())
    }

    /// Prints the last of what the last agents of this test wrote to stderr.
    pub fn show_agent_logs(&self) {
        for (path, text) in self.agent_logs() {
            eprintln!("---- {} ----\n{}", path.display(), tail(&text));
        }
    }

    /// What the last agents of this test wrote to stderr.
    fn agent_logs(&self) -> Vec<(PathBuf, String)> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = entries.filter(|path| path.extension().is_some_and(|extension| extension == "stderr"));
        let mut logs: Vec<_> = logs.collect();
        // A soak has a thousand.
        logs.sort_by_cached_key(|path| fs::metadata(path).and_then(|about| about.modified()).ok());
        let last = logs.split_off(logs.len().saturating_sub(SHOWN_AGENTS));
        last.into_iter()
            .filter_map(|path| fs::read(&path).ok().map(|text| (path, String::from_utf8_lossy(&text).into_owned())))
            .collect()
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show_agent_logs();
        }
        if let Err(error) = remove(&self.name) {
            eprintln!("clean-up of {}: {error:#}", self.name);
        }
    }
}

/// The last part of a long text: the reason of a failure stands at its end.
fn tail(text: &str) -> &str {
    const SHOWN: usize = 16 * 1024;
    let start = text.len().saturating_sub(SHOWN);
    &text[text.ceil_char_boundary(start)..]
}

/// 64 hexadecimal digits as every runtime uses, and unlike those of other tests.
fn container_id(bed: &str, number: u32) -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let mut id = String::new();
    // Each `RandomState` has keys of its own, so this needs no crate for random numbers.
    while id.len() < 64 {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write(bed.as_bytes());
        hasher.write_u32(number);
        id.push_str(&format!("{:016x}", hasher.finish()));
    }
    id
}

/// Removes the processes, cgroups, mounts and files of the test bed `name`.
fn remove(name: &str) -> Result<()> {
    // Programs that no agent holds any more.
    match fs::remove_dir_all(Path::new(PINS).join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context("removing pins"),
        _ => {}
    }
    cgroup::remove(&format!("/{name}"))?;
    cgroup::remove(&format!("/{name}{ENGINE}"))?;
    let directory = std::env::temp_dir().join(name);
    crate::engine::remove_shim_sockets(&directory);
    mounts::unmount_below(&directory)?;
    // A lazily detached mount point is busy for a moment.
    crate::wait_until(&format!("removing {}", directory.display()), crate::DEADLINE, || {
        match fs::remove_dir_all(&directory) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(())),
            Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    })
}

/// Removes the test beds whose process is gone.
///
/// # Errors
/// `/proc` or the temporary directory can't be read, or something can't be removed.
pub fn sweep() -> Result<()> {
    let mut names = cgroup::top_level(PREFIX)?;
    for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    for entry in fs::read_dir(PINS).into_iter().flatten().flatten() {
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    names.dedup();
    for name in names {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let Some(pid) = pid.and_then(|digits| digits.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            remove(&name)?;
        }
    }
    Ok(())
}
