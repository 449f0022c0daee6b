//! Podman.

use sidestep::attribute::Settings;

use crate::harness::{Area, Undo, cgroup_of, identify, nothing, run, words};

#[test]
fn a_container() {
    let Some(area) = Area::new("podman", &["podman", "conmon", "runc"]) else { return };
    let (root, runroot, tmp) = (area.text("root"), area.text("run"), area.text("tmp"));
    let podman = [
        &["podman", "--root", &root, "--runroot", &runroot, "--tmpdir", &tmp][..],
        // The development machine has neither systemd nor a file system for overlays everywhere.
        &["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--runtime=runc", "--events-backend=none"],
    ]
    .concat();
    run(&[&podman[..], &["import", &area.archive(), "localhost/shop/web:1.2"]].concat());
    let _undo = Undo::new(&[&[&podman[..], &["rm", "--force", "--time=0", "web-1"]].concat()]);
    let options = ["run", "--detach", "--name=web-1", "--network=none", "--log-driver=none"];
    // Podman's own limits may be above what the test may set.
    let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
    let command = ["localhost/shop/web:1.2", "/bin/sleep", "600"];
    let id = run(&[&podman[..], &options, &limits, &command].concat()).trim().to_owned();
    let pid = run(&[&podman[..], &["inspect", "--format", "{{.State.Pid}}", &id]].concat());

    let settings = Settings { container_storage: vec![runroot.into(), root.into()], ..nothing() };
    let found = identify(&settings, &cgroup_of(&pid));
    let image = "localhost/shop/web:1.2";
    assert_eq!(words(&found)[..4], [Some("podman"), Some(&*id), Some("web-1"), Some(image)]);
    assert_eq!(words(&found)[4..], [None; 3]);
    assert!(found.complete);
    let rootfs = found.rootfs.expect("the bundle names it");
    assert!(rootfs.join("bin/busybox").is_file(), "{rootfs:?}");
}
