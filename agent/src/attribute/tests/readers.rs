//! What each runtime writes.

use proptest::prelude::*;

use super::*;

fn storage(id: &str) -> String {
    format!("/run/containers/storage/overlay-containers/{id}/userdata/config.json")
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

    // Hundreds of containers with generated ids, as below CRI-O, are not read for a path without one.
    let reads = node.reads.get();
    node.put(&format!("/run/runc/{APP}/state.json"), fixture!("runc/state.json").replace("/sub/app", "/c").as_bytes());
    assert_eq!(node.resolve("/demo/c").resource.container_id, None);
    let before = node.reads.get() - reads;
    node.files.borrow_mut().remove(Path::new(&format!("/run/runc/{APP}/state.json")));
    let reads = node.reads.get();
    assert_eq!(node.resolve("/demo/c").resource.container_id, None);
    assert_eq!(node.reads.get() - reads, before);
    let there = format!("/demo/{APP}/x");
    let state = fixture!("runc/state.json").replace("/demo/sub/app", &there);
    node.put(&format!("/run/runc/{APP}/state.json"), state.as_bytes());
    assert_eq!(node.resolve(&there).runtime, Some(Runtime::Runc));

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
}

/// A container that ended while no agent ran.
#[test]
fn what_the_runtime_has_forgotten_the_kubelet_remembers() {
    let link = format!("/var/log/containers/web-0_shop_app-{APP}.log");
    let other = format!("/var/log/containers/db-0_shop_store-{DOCKER}.log");
    let node = Node::with(&[(&other, ""), (&link, ""), ("/var/log/containers/strange.log", "")]);
    node.put(&format!("{LOGS}/app/0.log"), b"");
    let app = node.resolve(&pod_cgroup(APP));
    let expected = [None, Some(APP), Some("app"), None, Some("shop"), Some("web-0"), Some(POD_UID)];
    assert_eq!(words(&app), expected);
    assert!(app.complete && !app.sandbox);
    assert_eq!(app.log_directory.as_deref(), Some(Path::new(LOGS)));

    // The runtime's own files say more.
    let node = containerd();
    node.put(&link, b"");
    assert!(node.resolve(&pod_cgroup(APP)).resource.image.is_some());
    // Nobody else's links are believed.
    assert!(!Node::with(&[(&link, "")]).resolve(&format!("/docker/{APP}")).complete);
    assert!(!Node::with(&[("/var/log/containers/__-x.log", "")]).resolve(&pod_cgroup("x")).complete);
}
