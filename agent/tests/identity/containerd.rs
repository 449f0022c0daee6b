//! containerd, driven by `ctr`: the files are those of CRI, which only adds the annotations.

use std::fs;

use sidestep::attribute::Settings;

use crate::harness::{Area, Daemon, POD_UID, Undo, cgroup_of, identify, nothing, run, words};

const APP: &str = "2460dbf087d4bb4288b271b342b9d1f3dc92a6617655b0b28a7a17ab04f1c7e7";
const SANDBOX: &str = "9edf9e17b6fb553ecca531879a41a53b6c1c8cd77416aa88bac3b11fd668bdbf";

struct Client {
    socket: String,
    rootfs: String,
    runc_root: String,
}

impl Client {
    /// Starts a container; gives its process id and what removes it.
    fn start(&self, namespace: &str, id: &str, options: &[&str]) -> (String, Undo) {
        let ctr = ["ctr", "--address", &self.socket, "--namespace", namespace];
        let words = |words: &[&'static str]| -> Vec<String> {
            ctr.iter().chain(words).map(|word| (*word).to_owned()).chain([id.to_owned()]).collect()
        };
        let commands =
            [words(&["task", "kill", "--signal", "9"]), words(&["task", "rm", "--force"]), words(&["container", "rm"])];
        let commands: Vec<Vec<&str>> =
            commands.iter().map(|words| words.iter().map(String::as_str).collect()).collect();
        let undo = Undo::new(&commands.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let run_options = ["run", "--detach", "--null-io", "--runc-root", &self.runc_root, "--rootfs"];
        let mut command = [&ctr[..], &run_options].concat();
        command.extend(options);
        command.extend([&*self.rootfs, id, "/bin/sleep", "600"]);
        run(&command);
        let tasks = run(&[&ctr[..], &["task", "ls"]].concat());
        let line = tasks.lines().find(|line| line.starts_with(id)).expect("the task is listed");
        (line.split_whitespace().nth(1).expect("a process id").to_owned(), undo)
    }
}

#[test]
fn containers_of_a_pod_and_of_no_pod() {
    let Some(area) = Area::new("containerd", &["containerd", "ctr", "runc"]) else { return };
    let (config, socket) = (area.text("config.toml"), area.text("socket"));
    let (root, state) = (area.text("root"), area.text("state"));
    let text = format!(
        "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = {socket:?}\n"
    );
    fs::write(&config, text).expect("a configuration");
    let probe = ["ctr", "--address", &socket, "version"];
    let _daemon = Daemon::start(&["containerd", "--config", &config], &area.path("log"), &probe);
    let client = Client { socket, rootfs: area.text("rootfs"), runc_root: area.text("runc") };
    let settings = Settings { containerd_state: vec![state.clone().into()], ..nothing() };

    let logs = area.text(&format!("pods/shop_web-0_{POD_UID}"));
    let pod = [
        "io.kubernetes.cri.sandbox-name=web-0".to_owned(),
        "io.kubernetes.cri.sandbox-namespace=shop".to_owned(),
        format!("io.kubernetes.cri.sandbox-uid={POD_UID}"),
        format!("io.kubernetes.cri.sandbox-id={SANDBOX}"),
    ];
    let of_sandbox = [
        "io.kubernetes.cri.container-type=sandbox".to_owned(),
        format!("io.kubernetes.cri.sandbox-log-directory={logs}"),
    ];
    let of_app = [
        "io.kubernetes.cri.container-type=container".to_owned(),
        "io.kubernetes.cri.container-name=app".to_owned(),
        "io.kubernetes.cri.image-name=registry.example/shop/web:1.2".to_owned(),
    ];
    let start = |id: &str, own: &[String]| {
        let cgroup = format!("{}/{id}", area.pod_cgroup());
        let mut options = vec!["--cgroup", &*cgroup];
        for annotation in pod.iter().chain(own) {
            options.extend(["--annotation", annotation]);
        }
        let (pid, undo) = client.start("k8s.io", id, &options);
        assert_eq!(cgroup_of(&pid), cgroup);
        (cgroup, undo)
    };
    let (sandbox_cgroup, _sandbox) = start(SANDBOX, &of_sandbox);
    let (app_cgroup, _app) = start(APP, &of_app);

    let app = identify(&settings, &app_cgroup);
    let image = "registry.example/shop/web:1.2";
    assert_eq!(words(&app)[..4], [Some("containerd"), Some(APP), Some("app"), Some(image)]);
    assert_eq!(words(&app)[4..], [Some("shop"), Some("web-0"), Some(POD_UID)]);
    assert_eq!(app.log_directory, Some(logs.clone().into()), "as the sandbox says");
    assert_eq!(app.rootfs, Some(area.path("rootfs")));
    assert!(app.complete && !app.sandbox);
    let sandbox = identify(&settings, &sandbox_cgroup);
    assert!(sandbox.complete && sandbox.sandbox);
    assert_eq!(sandbox.log_directory, Some(logs.into()));

    // `ctr` without more: the cgroup is `/NAMESPACE/ID`, the names are free. The namespace is this test's cgroup, so
    // that it is removed with it.
    let namespace = area.cgroup().trim_start_matches('/').to_owned();
    let (pid, _plain) = client.start(&namespace, "plain-1", &[]);
    let cgroup = cgroup_of(&pid);
    assert_eq!(cgroup, format!("/{namespace}/plain-1"));
    let plain = identify(&settings, &cgroup);
    assert_eq!(words(&plain)[..3], [Some("containerd"), Some("plain-1"), Some("plain-1")]);
    assert_eq!(words(&plain)[3..], [None; 4]);
    assert!(plain.complete);
}
