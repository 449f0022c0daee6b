//! The agent's configuration as tests write it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{Testbed, http};

/// A configuration that confines an agent to one test bed. It is written as JSON, which is YAML as well.
#[derive(Clone, Debug)]
pub struct Config {
    value: Value,
    telemetry: SocketAddr,
    records: PathBuf,
    socket: PathBuf,
    open_files: Option<u64>,
}

impl Config {
    /// The governed root and all directories are the test bed's.
    ///
    /// # Panics
    /// No port is free.
    #[must_use]
    pub fn new(bed: &Testbed) -> Self {
        let port = http::free_port().expect("a free port");
        let telemetry = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let records = bed.directory().join("logs");
        let socket = bed.directory().join("sidestep.sock");
        let value = json!({
            "node_name": "test-node",
            "state_dir": bed.directory().join("state"),
            "socket": socket,
            "capture": {
                "cgroup_roots": [bed.cgroup_root()],
                "ring_size": "16MiB",
                "pin": null,
                "files": { "include": ["/var/log/**", "**/*.log"] },
            },
            "identity": {
                "containerd_state": [bed.directory().join("run/containerd")],
                "runc_state": [bed.directory().join("run/containerd/runc")],
                "pod_logs": bed.pod_logs(),
            },
            "server": { "include": [] },
            "sinks": [{ "type": "file", "path": records, "compression": "none" }],
            "telemetry": { "listen": telemetry.to_string() },
        });
        Self { value, telemetry, records, socket, open_files: None }
    }

    /// Sets one option by its JSON pointer (`/capture/ring_size`), making the objects on the way.
    ///
    /// # Panics
    /// The pointer leads through something that is neither an object nor an array.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.value;
        for key in pointer.split('/').skip(1) {
            place = match place {
                Value::Array(items) => {
                    let index = key.parse::<usize>().expect("an index");
                    // The next one may be added.
                    if index == items.len() {
                        items.push(Value::Null);
                    }
                    &mut items[index]
                }
                Value::Object(options) => options.entry(key).or_insert_with(|| json!({})),
                other => panic!("{pointer}: {other} has no options"),
            };
        }
        *place = value;
        self
    }

    /// Has these sinks in the place of the file sink.
    #[must_use]
    pub fn with_sinks(self, sinks: &[Value]) -> Self {
        self.with("/sinks", json!(sinks))
    }

    /// The file sink's directory; the records are read from there.
    #[must_use]
    pub fn with_records(mut self, directory: &Path) -> Self {
        directory.clone_into(&mut self.records);
        self.with("/sinks/0/path", json!(directory))
    }

    /// Lets the agent have at most `limit` descriptors.
    #[must_use]
    pub fn with_open_files(mut self, limit: u64) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// The most descriptors that the agent may have, where it is not as for the test itself.
    #[must_use]
    pub fn open_files(&self) -> Option<u64> {
        self.open_files
    }

    /// Where `/metrics` and the rest answer.
    #[must_use]
    pub fn telemetry(&self) -> SocketAddr {
        self.telemetry
    }

    /// The file sink's directory.
    #[must_use]
    pub fn records(&self) -> &Path {
        &self.records
    }

    /// The socket of `sidestep logs` and `sidestep status`.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The text of the file.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{:#}\n", self.value)
    }
}

/// A sink: its usual options, and these beside them or in their place.
#[must_use]
pub fn sink(mut usual: Value, options: &Value) -> Value {
    for (option, value) in options.as_object().into_iter().flatten() {
        usual[option] = value.clone();
    }
    usual
}
