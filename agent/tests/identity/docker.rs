//! Docker, on its own and with the labels of cri-dockerd.

use sidestep::attribute::Settings;

use crate::harness::{Area, Daemon, POD_UID, Undo, cgroup_of, identify, nothing, run, words};

#[test]
fn containers_of_a_pod_and_of_no_pod() {
    let Some(area) = Area::new("docker", &["dockerd", "docker", "containerd", "runc"]) else { return };
    let socket = format!("unix://{}", area.text("socket"));
    let (root, exec) = (area.text("root"), area.text("exec"));
    let pid_file = area.text("pid");
    let daemon = [
        &["dockerd", "--data-root", &root, "--exec-root", &exec, "--host", &socket, "--pidfile", &pid_file][..],
        &["--bridge=none", "--iptables=false", "--ip6tables=false", "--exec-opt=native.cgroupdriver=cgroupfs"],
    ]
    .concat();
    let docker = ["docker", "--host", &socket];
    let _daemon = Daemon::start(&daemon, &area.path("log"), &[&docker[..], &["info"]].concat());
    run(&[&docker[..], &["import", &area.archive(), "shop/web:1.2"]].concat());
    let start = |name: &str, options: &[&str]| {
        let undo = Undo::new(&[&[&docker[..], &["rm", "--force", name]].concat()]);
        let command = [&docker[..], &["run", "--detach", "--network=none", "--name", name], options];
        let command = [&command.concat()[..], &["shop/web:1.2", "/bin/sleep", "600"]].concat();
        let id = run(&command).trim().to_owned();
        let pid = run(&[&docker[..], &["inspect", "--format", "{{.State.Pid}}", &id]].concat());
        (cgroup_of(&pid), id, undo)
    };
    let by_root = Settings { docker_root: vec![root.clone().into()], ..nothing() };
    // Docker uses a containerd that runs already; else it starts its own.
    let states = vec![format!("{exec}/containerd/daemon").into(), "/run/containerd".into()];
    let by_bundle = Settings { containerd_state: states, ..nothing() };

    let labels = [
        "io.kubernetes.docker.type=container".to_owned(),
        "io.kubernetes.container.name=app".to_owned(),
        "io.kubernetes.pod.name=web-0".to_owned(),
        "io.kubernetes.pod.namespace=shop".to_owned(),
        format!("io.kubernetes.pod.uid={POD_UID}"),
        format!("io.kubernetes.container.logpath=/var/log/pods/shop_web-0_{POD_UID}/app/0.log"),
    ];
    let labels: Vec<&str> = labels.iter().flat_map(|label| ["--label", label]).collect();

    // The labels alone make no Pod of it.
    let (cgroup, id, _plain) = start("web-1", &labels);
    for settings in [&by_root, &by_bundle] {
        let plain = identify(settings, &cgroup);
        assert_eq!(words(&plain)[..4], [Some("docker"), Some(&*id), Some("web-1"), Some("shop/web:1.2")]);
        assert_eq!(words(&plain)[4..], [None; 3]);
        assert_eq!(plain.log_path, Some(format!("{root}/containers/{id}/{id}-json.log").into()));
        assert!(plain.complete);
    }
    let rootfs = identify(&by_bundle, &cgroup).rootfs.expect("the bundle names it");
    assert!(rootfs.join("bin/busybox").is_file(), "{rootfs:?}");

    let parent = area.pod_cgroup();
    let (cgroup, id, _app) = start("k8s_app_web-0", &[&labels[..], &["--cgroup-parent", &parent]].concat());
    assert_eq!(cgroup, format!("{parent}/{id}"));
    for settings in [&by_root, &by_bundle] {
        let app = identify(settings, &cgroup);
        assert_eq!(words(&app)[..4], [Some("docker"), Some(&*id), Some("app"), Some("shop/web:1.2")]);
        assert_eq!(words(&app)[4..], [Some("shop"), Some("web-0"), Some(POD_UID)]);
        assert_eq!(app.log_directory, Some(format!("/var/log/pods/shop_web-0_{POD_UID}").into()));
    }
}
