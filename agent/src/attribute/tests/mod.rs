//! Identity by replay: the runtimes' files in memory.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::*;

const POD_UID: &str = "6e0e4a3c-6f0d-4b0e-9c1b-0d4f8a4f3b11";
const SANDBOX: &str = "9edf9e17b6fb553ecca531879a41a53b6c1c8cd77416aa88bac3b11fd668bdbf";
const APP: &str = "2460dbf087d4bb4288b271b342b9d1f3dc92a6617655b0b28a7a17ab04f1c7e7";
const DOCKER: &str = "eded29e6352b4dcdd7c180a1a997575c03ac0a73447d8f72947b32d9c9b1eacb";
const PODMAN: &str = "cc02b094cc34c97b8c2ec093ac51043620ad7a3d50db739b1b572a1c3eb08d19";
const LOGS: &str = "/var/log/pods/shop_web-0_6e0e4a3c-6f0d-4b0e-9c1b-0d4f8a4f3b11";

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../fixtures/", $name))
    };
}

mod cache;
mod readers;

/// A node's files in memory, which tests can change while a cache holds them.
#[derive(Clone, Default)]
struct Node {
    files: Rc<RefCell<BTreeMap<PathBuf, Vec<u8>>>>,
    processes: Rc<RefCell<BTreeMap<u32, String>>>,
    reads: Rc<Cell<usize>>,
}

impl Node {
    fn with(files: &[(&str, &str)]) -> Self {
        let node = Self::default();
        for (path, content) in files {
            node.put(path, content.as_bytes());
        }
        node
    }

    fn put(&self, path: &str, content: &[u8]) {
        self.files.borrow_mut().insert(path.into(), content.into());
    }

    fn clear(&self) {
        self.files.borrow_mut().clear();
    }

    fn resolve(&self, path: &str) -> Identity {
        resolve(self, &Settings::default(), Some(&"node-1".into()), path, None)
    }
}

impl Files for Node {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.reads.set(self.reads.get() + 1);
        self.files.borrow().get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let files = self.files.borrow();
        let mut names: Vec<OsString> = files
            .keys()
            .filter_map(|file| Some(file.strip_prefix(path).ok()?.components().next()?.as_os_str().to_owned()))
            .collect();
        names.dedup();
        if names.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(names) }
    }

    fn process_cgroups(&self, pid: u32) -> io::Result<Vec<u8>> {
        self.processes.borrow().get(&pid).map(|text| text.clone().into()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn tasks(namespace: &str, id: &str) -> String {
    format!("/run/containerd/io.containerd.runtime.v2.task/{namespace}/{id}/config.json")
}

fn containerd() -> Node {
    Node::with(&[
        (&tasks("k8s.io", APP), fixture!("containerd/container.json")),
        (&tasks("k8s.io", SANDBOX), fixture!("containerd/sandbox.json")),
    ])
}

fn pod_cgroup(container: &str) -> String {
    format!("/kubepods/besteffort/pod{POD_UID}/{container}")
}
