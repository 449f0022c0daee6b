//! Identity by replay: the runtimes' files in memory.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;

const POD_UID: &str = "6e0e4a3c-6f0d-4b0e-9c1b-0d4f8a4f3b11";
const SANDBOX: &str = "9edf9e17b6fb553ecca531879a41a53b6c1c8cd77416aa88bac3b11fd668bdbf";
const APP: &str = "2460dbf087d4bb4288b271b342b9d1f3dc92a6617655b0b28a7a17ab04f1c7e7";
const DOCKER: &str = "eded29e6352b4dcdd7c180a1a997575c03ac0a73447d8f72947b32d9c9b1eacb";
const PODMAN: &str = "cc02b094cc34c97b8c2ec093ac51043620ad7a3d50db739b1b572a1c3eb08d19";
const LOGS: &str = "/var/log/pods/shop_web-0_6e0e4a3c-6f0d-4b0e-9c1b-0d4f8a4f3b11";

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("fixtures/", $name))
    };
}

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

fn storage(id: &str) -> String {
    format!("/run/containers/storage/overlay-containers/{id}/userdata/config.json")
}

fn pod_cgroup(container: &str) -> String {
    format!("/kubepods/besteffort/pod{POD_UID}/{container}")
}

fn systemd_cgroup(container: &str) -> String {
    let slice = format!("kubepods-besteffort-pod{}.slice", POD_UID.replace('-', "_"));
    format!("/kubepods.slice/kubepods-besteffort.slice/{slice}/{container}")
}

/// `(runtime, container id, container name, image, namespace, pod, pod uid)`.
fn words(identity: &Identity) -> [Option<&str>; 7] {
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

#[test]
fn containerd_pod() {
    let app = containerd().resolve(&pod_cgroup(APP));
    let image = "registry.example/shop/web:1.2";
    let pod = [Some("shop"), Some("web-0"), Some(POD_UID)];
    assert_eq!(words(&app)[..4], [Some("containerd"), Some(APP), Some("app"), Some(image)]);
    assert_eq!(words(&app)[4..], pod);
    assert_eq!(app.resource.host_name.as_deref(), Some("node-1"));
    assert_eq!(app.resource.cgroup.as_deref(), Some(&*pod_cgroup(APP)));
    assert_eq!((app.sandbox, app.complete, app.qos), (false, true, Some(Qos::BestEffort)));
    assert_eq!(app.log_directory.as_deref(), Some(Path::new(LOGS)));
    let bundle = PathBuf::from(tasks("k8s.io", APP)).with_file_name("");
    assert_eq!(app.bundle.as_deref(), Some(&*bundle));
    assert_eq!(app.rootfs, Some(bundle.join("rootfs")));

    let sandbox = containerd().resolve(&systemd_cgroup(&format!("cri-containerd-{SANDBOX}.scope")));
    assert_eq!(words(&sandbox)[..4], [Some("containerd"), Some(SANDBOX), None, None]);
    assert_eq!(words(&sandbox)[4..], pod);
    assert!(sandbox.sandbox && sandbox.complete);
    assert_eq!(sandbox.log_directory.as_deref(), Some(Path::new(LOGS)));
}

#[test]
fn containerd_elsewhere() {
    let k3s = tasks("k8s.io", APP).replace("/run/", "/run/k3s/");
    let app = Node::with(&[(&k3s, fixture!("containerd/container.json"))]).resolve(&pod_cgroup(APP));
    assert_eq!(app.resource.pod.as_deref(), Some("web-0"));
    assert_eq!(app.log_directory, None, "no sandbox, and no such directory");

    let other =
        Node::with(&[(&tasks("shop", APP), fixture!("containerd/container.json")), (&format!("{LOGS}/app/0.log"), "")]);
    let app = other.resolve(&pod_cgroup(APP));
    assert_eq!(app.resource.pod.as_deref(), Some("web-0"));
    assert_eq!(app.log_directory.as_deref(), Some(Path::new(LOGS)), "the kubelet's convention");

    let plain = Node::with(&[(&tasks("default", "plain-1"), r#"{"linux":{"cgroupsPath":"/default/plain-1"}}"#)]);
    let found = plain.resolve("/default/plain-1/nested");
    assert_eq!(words(&found)[..3], [Some("containerd"), Some("plain-1"), Some("plain-1")]);
    assert_eq!(&*found.container_cgroup, "/default/plain-1");
    assert!(!plain.resolve("/default/plain-2").complete);
    let moved = Node::with(&[(&tasks("default", "plain-1"), r#"{"linux":{"cgroupsPath":"/elsewhere"}}"#)]);
    assert_eq!(moved.resolve("/default/plain-1").resource.container_id, None, "the bundle is of another cgroup");
}

#[test]
fn crio_pod() {
    let node = Node::with(&[
        (&storage(APP), fixture!("crio/container.json")),
        (&storage(SANDBOX), fixture!("crio/sandbox.json")),
    ]);
    let image = "registry.example/shop/web:1.2";
    let expected = [Some("cri-o"), Some(APP), Some("app"), Some(image), Some("shop"), Some("web-0"), Some(POD_UID)];
    let app = node.resolve(&systemd_cgroup(&format!("crio-{APP}.scope")));
    assert_eq!(words(&app), expected);
    assert_eq!(app.log_path, Some(Path::new(LOGS).join("app/0.log")));
    assert_eq!(app.log_directory.as_deref(), Some(Path::new(LOGS)));
    assert!(app.rootfs.as_ref().is_some_and(|rootfs| rootfs.ends_with("merged")));

    // A client that is not the kubelet gives no labels; the names are in the sandbox's metadata.
    node.put(&storage(APP), fixture!("crio/container-unlabelled.json").as_bytes());
    assert_eq!(words(&node.resolve(&pod_cgroup(&format!("crio-{APP}")))), expected);

    let sandbox = node.resolve(&systemd_cgroup(&format!("crio-{SANDBOX}.scope")));
    assert!(sandbox.sandbox);
    assert_eq!(words(&sandbox)[2..6], [None, Some("registry.k8s.io/pause:3.9"), Some("shop"), Some("web-0")]);
    assert_eq!(sandbox.log_directory.as_deref(), Some(Path::new(LOGS)));
}

#[test]
fn docker_container() {
    let container = format!("/var/lib/docker/containers/{DOCKER}/config.v2.json");
    let node = Node::with(&[(&container, fixture!("docker/config.v2.json"))]);
    for cgroup in [format!("/docker/{DOCKER}"), format!("/system.slice/docker-{DOCKER}.scope")] {
        let found = node.resolve(&cgroup);
        assert_eq!(words(&found)[..4], [Some("docker"), Some(DOCKER), Some("web-1"), Some("shop/web:1.2")]);
        assert_eq!(words(&found)[4..], [None; 3]);
        let log = format!("/var/lib/docker/containers/{DOCKER}/{DOCKER}-json.log");
        assert_eq!(found.log_path, Some(log.into()));
        assert!(found.complete);
    }

    // Another data directory shows in the bundle.
    let there = |text: &str| text.replace("/var/lib/docker", "/data/docker");
    let node = Node::with(&[
        (&there(&container), fixture!("docker/config.v2.json")),
        (&tasks("moby", DOCKER), &there(fixture!("docker/bundle.json"))),
    ]);
    let found = node.resolve(&format!("/docker/{DOCKER}"));
    assert_eq!(words(&found)[2..4], [Some("web-1"), Some("shop/web:1.2")]);
    assert!(found.rootfs.is_some_and(|rootfs| rootfs.starts_with("/data/docker/overlay2")));
}

#[test]
fn docker_under_kubernetes() {
    let file = |id: &str| format!("/var/lib/docker/containers/{id}/config.v2.json");
    let node = Node::with(&[
        (&file(APP), fixture!("cri-dockerd/container.v2.json")),
        (&file(SANDBOX), fixture!("cri-dockerd/sandbox.v2.json")),
    ]);
    let app = node.resolve(&systemd_cgroup(&format!("docker-{APP}.scope")));
    assert_eq!(words(&app)[..3], [Some("docker"), Some(APP), Some("app")]);
    assert_eq!(words(&app)[4..], [Some("shop"), Some("web-0"), Some(POD_UID)]);
    assert_eq!(app.log_directory.as_deref(), Some(Path::new(LOGS)));
    assert_eq!(app.log_path, Some(format!("/var/lib/docker/containers/{APP}/{APP}-json.log").into()));
    assert!(node.resolve(&pod_cgroup(SANDBOX)).sandbox);

    // The same labels on a container outside of that Pod come from its image.
    for cgroup in [format!("/docker/{APP}"), format!("/kubepods/burstable/podaaaa/{APP}")] {
        let impostor = node.resolve(&cgroup);
        assert_eq!((impostor.resource.pod.as_deref(), impostor.resource.namespace.as_deref()), (None, None));
        assert_eq!(impostor.log_directory, None);
    }
}

#[test]
fn podman_container() {
    let list = "/var/lib/containers/storage/overlay-containers/containers.json";
    let bundle = storage(PODMAN).replace("/run/", "/var/lib/");
    let node = Node::with(&[(&bundle, fixture!("podman/config.json")), (list, fixture!("podman/containers.json"))]);
    let cgroup = format!("/machine.slice/libpod-{PODMAN}.scope");
    let found = node.resolve(&format!("{cgroup}/container"));
    let image = "localhost/shop/web:1.2";
    assert_eq!(words(&found)[..4], [Some("podman"), Some(PODMAN), Some("pod-web"), Some(image)]);
    assert_eq!(&*found.container_cgroup, cgroup);
    assert!(found.complete);
}

#[test]
fn runc_and_crun_by_cgroup() {
    let node = Node::with(&[
        ("/run/runc/demo-1/state.json", fixture!("runc/state.json")),
        ("/opt/demo/bundle/config.json", fixture!("runc/config.json")),
        ("/run/runc/broken/state.json", "{"),
        (
            "/run/containerd/runc/default/other/state.json",
            fixture!("runc/state.json").replace("/sub/app", "/b").as_str(),
        ),
        ("/run/crun/demo-2/status", fixture!("crun/status")),
    ]);
    let found = node.resolve("/demo/sub/app/below");
    assert_eq!(words(&found)[..4], [Some("runc"), Some("demo-1"), Some("demo-1"), Some("demo:1")]);
    assert_eq!(&*found.container_cgroup, "/demo/sub/app");
    assert_eq!(found.rootfs.as_deref(), Some(Path::new("/opt/demo/rootfs")));
    assert_eq!(found.bundle.as_deref(), Some(Path::new("/opt/demo/bundle")));
    assert_eq!(node.resolve("/demo/b").resource.container_id.as_deref(), Some("other"));
    let crun = node.resolve("/machine.slice/crun-demo.scope");
    assert_eq!(words(&crun)[..4], [Some("crun"), Some("demo-2"), Some("demo-2"), Some("demo:1")]);

    let unknown = node.resolve("/demo/sub/application");
    assert_eq!(words(&unknown), [None; 7]);
    assert_eq!(unknown.resource.cgroup.as_deref(), Some("/demo/sub/application"));
    assert!(!unknown.complete);

    // The bundle may be gone; the state has the annotations.
    let node = Node::with(&[("/run/runc/demo-1/state.json", fixture!("runc/state.json"))]);
    assert_eq!(node.resolve("/demo/sub/app").resource.image.as_deref(), Some("demo:1"));
}

#[test]
fn unknown_containers_keep_what_the_path_says() {
    let found = Node::default().resolve(&pod_cgroup(APP));
    assert_eq!(words(&found), [None, Some(APP), None, None, None, None, Some(POD_UID)]);
    assert!(!found.complete);
    // A user's own cgroup with the id of somebody else's container is not that container.
    let found = containerd().resolve(&format!("/user.slice/user-1000.slice/docker-{APP}.scope"));
    assert_eq!(found.resource.pod, None);
}

#[test]
fn a_v1_hierarchy_helps_where_v2_says_nothing() {
    let node = containerd();
    node.processes.borrow_mut().insert(7, format!("9:name=systemd:/\n4:memory:{}\n0::/\n", pod_cgroup(APP)));
    let found = resolve(&node, &Settings::default(), None, "/", Some(7));
    assert_eq!(found.resource.pod.as_deref(), Some("web-0"));
    assert_eq!(&*found.container_cgroup, "/");
    assert_eq!(resolve(&node, &Settings::default(), None, "/", Some(8)).resource.pod, None);
}

#[test]
fn hostile_values_are_cut_and_kept_out_of_paths() {
    let long = "ö".repeat(100_000);
    let spec = serde_json::json!({
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": long,
            "io.kubernetes.cri.sandbox-name": "../../etc\u{1b}[2J\n",
            "io.kubernetes.cri.sandbox-namespace": "",
            "io.kubernetes.cri.sandbox-id": "../../../../etc",
            "io.kubernetes.cri.sandbox-log-directory": "/var/log/pods/../../etc",
        },
        "root": {"path": "../../../etc"},
    });
    let found = Node::with(&[(&tasks("k8s.io", APP), &spec.to_string())]).resolve(&pod_cgroup(APP));
    assert_eq!(found.resource.container_name.as_deref(), Some(&*"ö".repeat(512)));
    assert_eq!(found.resource.pod.as_deref(), Some("../../etc\u{1b}[2J\n"));
    assert_eq!(found.resource.namespace, None);
    assert_eq!((found.log_directory, found.rootfs), (None, None));
}

#[test]
fn settings_name_what_they_do_not_know() {
    let settings: Settings = serde_json::from_str(r#"{"host_root": "/host"}"#).expect("the rest has defaults");
    assert_eq!(settings, Settings { host_root: "/host".into(), ..Settings::default() });
    let error = serde_json::from_str::<Settings>(r#"{"docker": []}"#).expect_err("no such option");
    assert!(error.to_string().contains("unknown field `docker`"), "{error}");
}

fn cache(node: &Node) -> Identities<Node> {
    Identities::new(node.clone(), Settings::default(), None)
}

#[test]
fn a_hit_reads_nothing() {
    let node = containerd();
    let (mut identities, now) = (cache(&node), Instant::now());
    let first = Arc::clone(identities.lookup(1, &pod_cgroup(APP), None, now).identity);
    let reads = node.reads.get();
    let second = identities.lookup(1, &pod_cgroup(APP), None, now + Duration::from_secs(3600));
    assert!(second.settled);
    assert!(Arc::ptr_eq(&first, second.identity));
    // What the container makes below its cgroup is the same container.
    let below = identities.lookup(2, &format!("{}/init.scope", pod_cgroup(APP)), None, now);
    assert!(Arc::ptr_eq(&first, below.identity));
    assert_eq!(node.reads.get(), reads);
    assert!(identities.get(2).is_some_and(|identity| Arc::ptr_eq(&first, identity)));
    assert!(identities.get(3).is_none());
}

#[test]
fn metadata_that_comes_late_is_found_with_fewer_and_fewer_reads() {
    let node = Node::default();
    let (mut identities, start) = (cache(&node), Instant::now());
    let path = pod_cgroup(APP);
    assert!(!identities.lookup(1, &path, None, start).settled);
    // One question each millisecond for a minute.
    for milliseconds in 1..60_000 {
        let found = identities.lookup(1, &path, None, start + Duration::from_millis(milliseconds));
        assert_eq!(found.settled, milliseconds >= 2000, "at {milliseconds}");
    }
    // 10 ms, doubled up to 30 s: due at 10, 30, 70, 150 ... 20,470, 40,950 ms.
    assert_eq!(identities.statistics().resolutions, 1 + 12);
    assert_eq!(identities.statistics().incomplete, 1);
    let late = containerd();
    node.files.borrow_mut().clone_from(&late.files.borrow());
    let found = identities.lookup(1, &path, None, start + Duration::from_secs(120));
    assert_eq!((found.settled, found.identity.resource.pod.as_deref()), (true, Some("web-0")));
    assert_eq!(identities.statistics().incomplete, 0);
}

#[test]
fn exited_containers_are_known_until_released() {
    let node = containerd();
    let (mut identities, now) = (cache(&node), Instant::now());
    identities.lookup(1, &pod_cgroup(APP), None, now);
    node.clear();
    identities.exited(1, now);
    identities.exited(1, now);
    identities.exited(99, now);
    assert_eq!((identities.statistics().live, identities.statistics().exited), (0, 1));
    let found = identities.lookup(1, &pod_cgroup(APP), None, now + Duration::from_secs(600));
    assert_eq!((found.settled, found.identity.resource.pod.as_deref()), (true, Some("web-0")));
    // A container that is started at the same path is another one.
    assert_eq!(identities.lookup(2, &pod_cgroup(APP), None, now).identity.resource.pod, None);
    identities.release(1);
    identities.release(1);
    assert!(identities.get(1).is_none());
    assert_eq!(identities.statistics().exited, 0);
}

#[test]
fn the_end_of_a_container_is_the_last_chance_for_its_files() {
    let node = Node::default();
    let (mut identities, now) = (cache(&node), Instant::now());
    identities.lookup(1, &pod_cgroup(APP), None, now);
    node.files.borrow_mut().clone_from(&containerd().files.borrow());
    identities.exited(1, now + Duration::from_millis(1));
    let found = identities.lookup(1, &pod_cgroup(APP), None, now + Duration::from_millis(2));
    assert_eq!((found.settled, found.identity.resource.pod.as_deref()), (true, Some("web-0")));
}

#[test]
fn both_ends_of_the_cache_are_bounded() {
    let node = Node::default();
    let settings = Settings { exited_containers: 10, live_cgroups: 20, ..Settings::default() };
    let mut identities = Identities::new(node, settings, None);
    let now = Instant::now();
    for id in 0..10_000 {
        identities.lookup(id, &format!("/pods/{id}"), None, now);
        if id % 2 == 0 {
            identities.exited(id, now);
        }
    }
    let statistics = identities.statistics();
    assert_eq!((statistics.live, statistics.exited), (20, 10));
    assert_eq!(statistics.evictions, 10_000 - 30);
    assert!(identities.get(9_998).is_some(), "the newest stay");
    assert!(identities.get(9_978).is_none());
    for id in 0..10_000 {
        identities.release(id);
    }
    assert_eq!((identities.statistics().live, identities.statistics().exited), (0, 0));
}

proptest! {
    /// Whatever bytes are in the files, and whatever the path, there is an answer, with the path in it.
    #[test]
    fn damaged_files_never_panic(cut in 0usize..6000, position in 0usize..6000, byte: u8, path in "/\\PC{0,80}") {
        let node = Node::default();
        for (file, text) in [
            (tasks("k8s.io", APP), fixture!("containerd/container.json")),
            (storage(APP), fixture!("crio/container.json")),
            (format!("/var/lib/docker/containers/{APP}/config.v2.json"), fixture!("cri-dockerd/container.v2.json")),
            ("/run/runc/demo-1/state.json".into(), fixture!("runc/state.json")),
        ] {
            let mut bytes = text.as_bytes().to_vec();
            let position = position % bytes.len();
            bytes[position] = byte;
            bytes.truncate(cut.max(1));
            node.put(&file, &bytes);
        }
        for path in [pod_cgroup(APP), "/demo/sub/app".into(), path] {
            let found = node.resolve(&path);
            prop_assert!(path.starts_with(&*found.container_cgroup));
        }
    }

    /// The bounds hold, and nothing is left, after any order of calls.
    #[test]
    fn the_cache_stays_consistent(calls in prop::collection::vec((0u8..4, 0u64..12, 0u64..5000), 0..200)) {
        let settings = Settings { exited_containers: 3, live_cgroups: 5, ..Settings::default() };
        let mut identities = Identities::new(containerd(), settings, None);
        let start = Instant::now();
        for (call, id, milliseconds) in calls {
            let now = start + Duration::from_millis(milliseconds);
            match call {
                0 | 1 => {
                    let path = if id % 3 == 0 { pod_cgroup(APP) } else { format!("{}/{id}", pod_cgroup(APP)) };
                    prop_assert_eq!(identities.lookup(id, &path, None, now).identity.resource.pod.as_deref(), Some("web-0"));
                }
                2 => identities.exited(id, now),
                _ => identities.release(id),
            }
            let statistics = identities.statistics();
            prop_assert!(statistics.live <= 5 && statistics.exited <= 3);
            let known = (0..12).filter(|id| identities.get(*id).is_some()).count();
            prop_assert_eq!(known, statistics.live + statistics.exited);
        }
    }
}
