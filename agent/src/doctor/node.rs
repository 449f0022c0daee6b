//! What the configuration leads to on this node: runtimes, targets of sinks, the socket.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::unix::{ffi::OsStrExt, fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, access},
    io::Errno,
};

use super::{Finding, privileges};
use crate::{
    attribute,
    config::{Config, ConfigError},
    control::PATH_BYTES,
    load::pins,
    sinks::{SinkError, SinkSettings, elasticsearch, file, http, kafka},
};

const AREA: &str = "node";

pub(super) fn valid(name: &str) -> Finding {
    Finding::healthy("config", "config", format!("{name}: no problems"))
}

pub(super) fn invalid(error: &ConfigError) -> Finding {
    let advice = "`sidestep config check` shows where, `sidestep config --example` every option; all that follows is \
                  about the defaults";
    Finding::failed("config", "config", error.render(false).trim_end(), advice)
}

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![runtimes(&config.identity)];
    findings.push(directory("state_dir", &config.state_dir));
    findings.extend(config.capture.pin.as_deref().map(pins));
    let is_running = UnixStream::connect(&config.socket).is_ok();
    for sink in &config.sinks {
        let check = format!("sink {}", sink.name());
        findings.push(match sink {
            SinkSettings::Console(_) => Finding::healthy(AREA, check, "standard output of the agent"),
            SinkSettings::Elasticsearch(settings) => reached(&check, elasticsearch::reach(settings)),
            SinkSettings::File(file) => file_sink(&check, &file.path, is_running),
            SinkSettings::Http(settings) => reached(&check, http::reach(settings)),
            SinkSettings::Kafka(settings) => reached(&check, kafka::reach(settings)),
        });
    }
    findings.push(socket(&config.socket));
    if let Some(address) = config.telemetry_listen {
        findings.push(listen(address, is_running));
    }
    findings
}

/// What a server said, or why it said nothing.
fn reached(check: &str, answer: Result<String, SinkError>) -> Finding {
    match answer {
        Ok(answer) => Finding::healthy(AREA, check, answer),
        Err(error) => Finding::degraded(AREA, check, error.to_string(), "the agent starts, and sends when it answers"),
    }
}

/// What is pinned, and whether something could be.
fn pins(path: &Path) -> Finding {
    const CHECK: &str = "pins";
    let shown = path.display();
    // Below a mount that is read-only, `describe` finds what there is.
    let existing = path.ancestors().find(|path| path.symlink_metadata().is_ok());
    if let Some(existing) = existing
        && pins::is_bpffs(existing)
        && access(existing, Access::WRITE_OK) == Err(Errno::ROFS)
    {
        let advice = "mount the node's /sys/fs/bpf into the Pod without `readOnly`; `sidestep run` would not start";
        return Finding::failed(AREA, CHECK, format!("{} is read-only", existing.display()), advice);
    }
    match pins::describe(path) {
        Ok(Some(sets)) if sets.is_empty() => Finding::healthy(AREA, CHECK, format!("{shown}: nothing is pinned")),
        Ok(Some(sets)) => Finding::healthy(AREA, CHECK, format!("{shown}: {}", sets.join("; "))),
        Ok(None) if path.ancestors().any(pins::is_bpffs) => {
            Finding::healthy(AREA, CHECK, format!("{shown} will be made"))
        }
        Ok(None) if path.starts_with("/sys/fs/bpf") => unmounted(privileges::may_mount()),
        Ok(None) => {
            let advice =
                "name a directory below /sys/fs/bpf in `capture.pin`, or `null` to end the capture with the agent";
            Finding::failed(AREA, CHECK, format!("{shown} is on no BPF file system"), advice)
        }
        Err(error) => Finding::failed(AREA, CHECK, error.to_string(), "`sidestep run` would not start"),
    }
}

/// No BPF file system is where it usually is.
fn unmounted(may_mount: bool) -> Finding {
    const FOUND: &str = "no BPF file system is mounted at /sys/fs/bpf";
    if may_mount {
        let advice = "the agent mounts it; in a container, so that it stays when that ends: mount the node's /sys/fs/bpf \
                      with `mountPropagation: Bidirectional`, or run `mount -t bpf bpf /sys/fs/bpf` on the node";
        return Finding::degraded(AREA, "pins", FOUND, advice);
    }
    let advice = "`sidestep run` would not start, as it may not mount one (CAP_SYS_ADMIN): run `mount -t bpf bpf \
                  /sys/fs/bpf` on the node and mount that into the Pod, or set `security.privileged` of the chart, or \
                  `capture.pin: null`, with which the capture ends with the agent";
    Finding::failed(AREA, "pins", FOUND, advice)
}

fn runtimes(identity: &attribute::Settings) -> Finding {
    let kinds = [
        &identity.containerd_state,
        &identity.docker_root,
        &identity.container_storage,
        &identity.runc_state,
        &identity.crun_state,
    ];
    let paths = kinds.into_iter().flatten();
    let seen = |path: &&PathBuf| identity.host_root.join(path.strip_prefix("/").unwrap_or(path)).is_dir();
    let present: Vec<_> = paths.filter(seen).map(|path| path.display().to_string()).collect();
    if present.is_empty() {
        let advice = "lines are delivered with the container's id only; mount the runtimes' state directories into \
                      the Pod (`identity.host_root`), or name them below `identity`";
        return Finding::degraded(AREA, "runtimes", "no runtime's state directory is there", advice);
    }
    Finding::healthy(AREA, "runtimes", present.join(", "))
}

/// Whether files can be made at `path`, or in the nearest directory above that exists. Nothing is made.
fn directory(check: &str, path: &Path) -> Finding {
    let existing = path.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
    let problem = if existing.is_dir() {
        access(existing, Access::WRITE_OK | Access::EXEC_OK).err().map(|error| io::Error::from(error).to_string())
    } else {
        Some("is no directory".to_owned())
    };
    let shown = path.display();
    match problem {
        None if existing == path => Finding::healthy(AREA, check, format!("{shown} is writable")),
        None => Finding::healthy(AREA, check, format!("{shown} will be made")),
        Some(problem) => {
            let advice = format!("name a directory on a writable file system, or make {shown} writable");
            Finding::failed(AREA, check, format!("{shown}: {}: {problem}", existing.display()), advice)
        }
    }
}

/// A file sink's directory, which only one agent writes to.
fn file_sink(check: &str, path: &Path, is_running: bool) -> Finding {
    let shown = path.display();
    match file::is_in_use(path) {
        Ok(true) if is_running => Finding::healthy(AREA, check, format!("{shown} is written to by the running agent")),
        Ok(true) => {
            let advice = "stop the other agent, or set another `path`; `sidestep run` would not start";
            Finding::failed(AREA, check, format!("{shown}: another file sink writes to this directory"), advice)
        }
        // What else is wrong shows below.
        Ok(false) | Err(_) => directory(check, path),
    }
}

/// Whether the agent could listen; tries it for a moment.
fn listen(address: SocketAddr, is_running: bool) -> Finding {
    const CHECK: &str = "telemetry.listen";
    match TcpListener::bind(address) {
        Ok(_) => Finding::healthy(AREA, CHECK, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_running => {
            Finding::healthy(AREA, CHECK, format!("{address} is in use, and an agent is running"))
        }
        Err(error) => {
            let advice = "stop what listens there, or set another address; `sidestep run` would not start";
            Finding::failed(AREA, CHECK, format!("{address}: {error}"), advice)
        }
    }
}

fn socket(path: &Path) -> Finding {
    const CHECK: &str = "socket";
    let length = path.as_os_str().as_bytes().len();
    if length > PATH_BYTES {
        let found = format!("{} has {length} bytes; sockets take {PATH_BYTES}", path.display());
        return Finding::failed(AREA, CHECK, found, "name a shorter path in `socket`");
    }
    if path.symlink_metadata().is_ok_and(|metadata| !metadata.file_type().is_socket()) {
        let advice = "remove it, or set another `socket`; `sidestep run` would not start";
        return Finding::failed(AREA, CHECK, format!("{} exists and is not a socket", path.display()), advice);
    }
    match UnixStream::connect(path) {
        Ok(_) => Finding::healthy(AREA, CHECK, format!("an agent is running at {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.exists() => {
            let advice = "`sidestep logs` and `sidestep status` need the agent's user, which is root";
            Finding::degraded(AREA, CHECK, format!("{}: {error}", path.display()), advice)
        }
        Err(_) => {
            let above = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            directory(CHECK, above)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Health;

    #[test]
    fn a_missing_bpf_file_system_is_fatal_only_where_nobody_may_mount_it() {
        assert_eq!(unmounted(true).health, Health::Degraded);
        let finding = unmounted(false);
        assert_eq!(finding.health, Health::Failed);
        assert!(finding.advice.contains("security.privileged"), "{finding:?}");
    }

    #[test]
    fn directories_are_judged_by_what_exists() {
        let folder = tempfile::tempdir().expect("a directory");
        assert_eq!(directory("x", folder.path()).health, Health::Healthy);
        let deeper = directory("x", &folder.path().join("a/b"));
        assert_eq!((deeper.health, deeper.found.ends_with("will be made")), (Health::Healthy, true));
        assert!(!folder.path().join("a").exists(), "the doctor makes nothing");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("a file");
        let finding = directory("x", &file.join("below"));
        assert_eq!(finding.health, Health::Failed);
        assert!(finding.found.contains("is no directory"), "{finding:?}");
    }

    #[test]
    fn a_listening_agent_is_told() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("agent.sock");
        assert!(socket(&path).found.contains("is writable"));
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        assert!(socket(&path).found.contains("an agent is running"));
        let long = folder.path().join("x".repeat(PATH_BYTES));
        assert_eq!(socket(&long).health, Health::Failed);
    }

    #[test]
    fn what_is_no_socket_is_told() {
        let folder = tempfile::tempdir().expect("a directory");
        let finding = socket(folder.path());
        assert_eq!(finding.health, Health::Failed);
        assert!(finding.found.contains("is not a socket"), "{finding:?}");
    }

    #[test]
    fn an_address_in_use_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        assert_eq!(listen(address, false).health, Health::Failed);
        let finding = listen(address, true);
        assert!(finding.health == Health::Healthy && finding.found.contains("an agent is running"), "{finding:?}");
        drop(listener);
        assert_eq!(listen(address, false).health, Health::Healthy);
    }

    #[test]
    fn a_directory_that_another_sink_writes_to_is_told() {
        let folder = tempfile::tempdir().expect("a directory");
        let settings = file::Settings { path: folder.path().join("logs"), ..file::Settings::default() };
        assert!(file_sink("sink x", &settings.path, false).found.ends_with("will be made"));
        let sink = file::FileSink::new(settings.clone()).expect("a sink");
        assert_eq!(file_sink("sink x", &settings.path, false).health, Health::Failed);
        assert_eq!(file_sink("sink x", &settings.path, true).health, Health::Healthy);
        let again = file::FileSink::new(settings.clone()).expect_err("the directory is taken").to_string();
        assert!(again.contains("another agent is running") && !again.contains("tried again"), "{again}");
        drop(sink);
    }

    #[test]
    fn runtimes_are_looked_for_below_the_host_root() {
        let root = tempfile::tempdir().expect("a directory");
        let settings = attribute::Settings { host_root: root.path().to_owned(), ..attribute::Settings::default() };
        assert_eq!(runtimes(&settings).health, Health::Degraded);
        std::fs::create_dir_all(root.path().join("run/containerd/runc")).expect("a directory");
        assert_eq!(runtimes(&settings).found, "/run/containerd, /run/containerd/runc");
    }
}
