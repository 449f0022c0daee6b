//! The images of a cluster, made of what is installed on this machine: nothing is pulled.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::pack::{self, Description, Layer};

use crate::{agent, rootfs};

/// What holds the namespaces of a Pod, by the name that manifests have for a container that waits.
pub(super) const PAUSE: &str = "registry.k8s.io/pause:3.9";

/// A shell and the usual small programs.
pub const BUSYBOX: &str = "docker.io/library/busybox:1.36";

/// The agent under test, by the name that the manifests have.
pub const AGENT: &str = concat!("docker.io/library/sidestep:", env!("CARGO_PKG_VERSION"));

/// Writes the images that every node has into `directory`, and returns the archives.
///
/// # Errors
/// There is no busybox or no agent, or no space.
pub(super) fn make(directory: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(directory)?;
    let layer = busybox()?.finish()?;
    let path = json!(["PATH=/bin"]);
    let shell =
        pack::archive(&layer, &Description { name: BUSYBOX, config: json!({ "Cmd": ["sh"], "Env": path }), level: 0 })?;
    // As the first process of a container a shell ends by a signal only if it says so; `sleep` never would.
    let script = "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done";
    let wait = json!({ "Entrypoint": ["/bin/sh", "-c", script], "Env": path });
    let pause = pack::archive(&layer, &Description { name: PAUSE, config: wait, level: 0 })?;
    [("busybox", shell), ("pause", pause), ("sidestep", of_agent()?)]
        .into_iter()
        .map(|(name, archive)| {
            let file = directory.join(format!("{name}.tar"));
            fs::write(&file, archive).with_context(|| format!("writing {}", file.display()))?;
            Ok(file)
        })
        .collect()
}

/// The image of the agent under test.
///
/// # Errors
/// There is none.
pub(super) fn of_agent() -> Result<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a checkout")?;
    pack::agent(&agent::binary()?, root, AGENT, "", 0)
}

/// A root file system of busybox alone.
pub(super) fn busybox() -> Result<Layer> {
    let busybox = rootfs::busybox()?;
    let mut layer = Layer::default();
    layer.program("bin/busybox", busybox)?;
    let output = Command::new(busybox).arg("--list").output().context("running busybox --list")?;
    ensure!(output.status.success(), "busybox --list failed");
    for applet in String::from_utf8(output.stdout)?.lines().filter(|applet| *applet != "busybox") {
        layer.link(Path::new("bin").join(applet), "busybox")?;
    }
    layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\npostgres:x:70:70::/data:/bin/sh\nwww-data:x:33:33::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    layer.file("etc/group", 0o644, b"root:x:0:\npostgres:x:70:\nwww-data:x:33:\nnogroup:x:65534:\n")?;
    for (folder, mode) in [("tmp", 0o1777), ("run", 0o755), ("var/log", 0o755), ("data", 0o1777)] {
        layer.folder(Path::new(folder), mode)?;
    }
    Ok(layer)
}
