//! `runc` with nothing above it.

use std::{fs, path::Path, time::Instant};

use serde_json::{Value, json};
use sidestep::attribute::{HostFiles, Identities, Settings};

use crate::harness::{Area, POD_UID, Undo, cgroup_of, nothing, run, words};

/// A bundle of a container that sleeps.
fn bundle(area: &Area, name: &str, cgroup: &str, annotations: &Value) -> String {
    let bundle = area.text(name);
    fs::create_dir(&bundle).expect("a bundle");
    run(&["runc", "spec", "--bundle", &bundle]);
    let path = Path::new(&bundle).join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path).expect("a specification")).expect("JSON");
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["/bin/sleep", "600"]);
    spec["process"]["rlimits"] = json!([]);
    spec["root"] = json!({"path": area.text("rootfs"), "readonly": true});
    spec["linux"]["cgroupsPath"] = json!(cgroup);
    spec["annotations"] = annotations.clone();
    fs::write(&path, spec.to_string()).expect("written");
    bundle
}

#[test]
fn a_container_is_known_before_its_first_process_runs_and_after_its_end() {
    let Some(area) = Area::new("runc", &["runc"]) else { return };
    let (state, pid_file) = (area.text("state"), area.text("pid"));
    let annotations = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": "app",
        "io.kubernetes.cri.sandbox-name": "web-0",
        "io.kubernetes.cri.sandbox-namespace": "shop",
        "io.kubernetes.cri.sandbox-uid": POD_UID,
        "io.kubernetes.cri.image-name": "registry.example/shop/web:1.2",
    });
    let cgroup = format!("{}/web-0-app", area.pod_cgroup());
    let bundle = bundle(&area, "bundle", &cgroup, &annotations);
    let undo = Undo::new(&[&["runc", "--root", &state, "delete", "--force", "web"]]);
    run(&["runc", "--root", &state, "create", "--bundle", &bundle, "--pid-file", &pid_file, "web"]);
    let pid = fs::read_to_string(&pid_file).expect("a process id");
    assert_eq!(cgroup_of(&pid), cgroup);

    let files = HostFiles::new(Path::new("/")).expect("the root directory");
    let settings = Settings { runc_state: vec![state.clone().into()], ..nothing() };
    let mut identities = Identities::new(files, settings, Some("node-1".into()));
    let now = Instant::now();
    // Created, and not yet started.
    let found = identities.lookup(1, &cgroup, None, now);
    assert!(found.settled && found.identity.complete);
    let image = "registry.example/shop/web:1.2";
    let expected = [Some("runc"), Some("web"), Some("app"), Some(image), Some("shop"), Some("web-0"), Some(POD_UID)];
    assert_eq!(words(found.identity), expected);
    assert_eq!(found.identity.rootfs, Some(area.path("rootfs")));
    assert_eq!(found.identity.bundle, Some(area.path("bundle")));
    let below = identities.lookup(2, &format!("{cgroup}/system.slice/nginx.service"), None, now);
    assert_eq!(words(below.identity), expected);

    run(&["runc", "--root", &state, "start", "web"]);
    drop(undo);
    assert!(!Path::new(&state).join("web").exists(), "its state is gone");
    identities.exited(1, now);
    assert_eq!(words(identities.lookup(1, &cgroup, None, now).identity), expected);
    identities.release(1);
    assert!(identities.get(1).is_none());
}

#[test]
fn a_cgroup_without_any_id_is_found_by_the_state() {
    let Some(area) = Area::new("runc-plain", &["runc"]) else { return };
    let (state, pid_file) = (area.text("state"), area.text("pid"));
    let cgroup = format!("{}/some/where", area.cgroup());
    let bundle = bundle(&area, "bundle", &cgroup, &json!({"org.opencontainers.image.ref.name": "demo:1"}));
    let _undo = Undo::new(&[&["runc", "--root", &state, "delete", "--force", "demo-1"]]);
    run(&["runc", "--root", &state, "run", "--detach", "--bundle", &bundle, "--pid-file", &pid_file, "demo-1"]);
    assert_eq!(cgroup_of(&fs::read_to_string(&pid_file).expect("a process id")), cgroup);

    let settings = Settings { runc_state: vec![state.into()], ..nothing() };
    let found = crate::harness::identify(&settings, &format!("{cgroup}/nested"));
    assert_eq!(words(&found)[..4], [Some("runc"), Some("demo-1"), Some("demo-1"), Some("demo:1")]);
    assert_eq!(words(&found)[4..], [None; 3]);
    assert_eq!(*found.container_cgroup, cgroup);
    let beside = crate::harness::identify(&settings, &format!("{cgroup}else"));
    assert_eq!((beside.complete, words(&beside)), (false, [None; 7]));
}
