//! The OCI configuration of a container.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::rootfs;

/// A directory or file of the host in a container.
#[derive(Debug)]
pub(super) struct Bind {
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    pub(super) read_only: bool,
}

/// What of the configuration differs between containers.
pub(super) struct Spec<'a> {
    pub(super) args: &'a [String],
    pub(super) env: &'a [String],
    pub(super) terminal: bool,
    pub(super) host_pids: bool,
    pub(super) cgroup: &'a str,
    pub(super) annotations: Value,
    pub(super) host_programs: bool,
    pub(super) binds: &'a [Bind],
    pub(super) hostname: &'a str,
    /// With the prefix `CAP_`.
    pub(super) capabilities: &'a [String],
    pub(super) no_new_privileges: bool,
}

/// What Docker and containerd grant by default, as far as tests need it.
pub(super) const CAPABILITIES: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
];

impl Spec<'_> {
    /// `config.json`.
    pub(super) fn to_json(&self) -> Value {
        let mut env =
            vec!["PATH=/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin".to_owned(), "HOME=/".to_owned()];
        env.extend_from_slice(self.env);
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": self.terminal,
                "user": { "uid": 0, "gid": 0 },
                "args": self.args,
                "env": env,
                "cwd": "/",
                "capabilities": {
                    "bounding": self.capabilities, "effective": self.capabilities, "permitted": self.capabilities,
                },
                "noNewPrivileges": self.no_new_privileges,
            },
            "root": { "path": "rootfs", "readonly": false },
            "hostname": self.hostname,
            "mounts": self.mounts(),
            "annotations": self.annotations,
            "linux": {
                "cgroupsPath": self.cgroup,
                "namespaces": self.namespaces(),
            },
        })
    }

    fn namespaces(&self) -> Vec<Value> {
        let all = ["pid", "network", "ipc", "uts", "mount"];
        let own = all.into_iter().filter(|name| !(self.host_pids && *name == "pid"));
        own.map(|name| json!({ "type": name })).collect()
    }

    fn mounts(&self) -> Vec<Value> {
        let mut mounts = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
            json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] }),
            json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] }),
        ];
        let host = if self.host_programs { rootfs::host_directories() } else { Vec::new() };
        let host = host.into_iter().map(|path| (path.clone(), path, "ro"));
        let mode = |bind: &Bind| if bind.read_only { "ro" } else { "rw" };
        let own = self.binds.iter().map(|bind| (bind.source.clone(), bind.target.clone(), mode(bind)));
        mounts.extend(host.chain(own).map(|(source, target, mode)| {
            json!({ "destination": target, "type": "bind", "source": source, "options": ["rbind", mode] })
        }));
        mounts
    }
}
