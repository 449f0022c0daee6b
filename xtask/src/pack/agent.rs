//! The image of the agent.

use std::{fs, path::Path};

use anyhow::Result;
use serde_json::json;

use super::{Description, Layer, archive, layer::read};

/// Where the agent is in the image.
const AGENT: &str = "usr/bin/sidestep";

/// Where Debian keeps the certificates of public authorities, for sinks that use TLS.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Packs `program` as `name`; `root` is the checkout, `revision` the commit, and `level` as in [`Description`].
///
/// The same program gives the same bytes: no time of day goes in.
///
/// # Errors
/// A file can't be read, or `name` has no tag.
pub fn agent(program: &Path, root: &Path, name: &str, revision: &str, level: u32) -> Result<Vec<u8>> {
    let config = json!({
        "Entrypoint": [format!("/{AGENT}")],
        "Env": ["PATH=/usr/bin"],
        "WorkingDir": "/",
        "Labels": {
            "org.opencontainers.image.title": "sidestep",
            "org.opencontainers.image.description": "eBPF-based, sidecarless observability agent for Kubernetes nodes",
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.revision": revision,
            "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
        },
    });
    archive(&layer(program, root)?, &Description { name, config, level })
}

/// The one layer: the agent, its libraries, and the few files that the C library looks for.
fn layer(program: &Path, root: &Path) -> Result<Vec<u8>> {
    let mut layer = Layer::default();
    layer.program(AGENT, program)?;
    // Host names of sinks: the node's own file first, then DNS.
    layer.file("etc/nsswitch.conf", 0o644, b"passwd: files\ngroup: files\nhosts: files dns\n")?;
    layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/usr/bin/sidestep\n")?;
    layer.file("etc/group", 0o644, b"root:x:0:\n")?;
    layer.file("usr/share/doc/sidestep/LICENSE", 0o644, &read(&root.join("LICENSE"))?)?;
    if let Ok(certificates) = fs::read(CERTIFICATES) {
        layer.file(Path::new(CERTIFICATES).strip_prefix("/")?, 0o644, &certificates)?;
    }
    for (folder, mode) in [("tmp", 0o1777), ("etc/sidestep", 0o755), ("var/log", 0o755), ("var/lib/sidestep", 0o700)] {
        layer.folder(Path::new(folder), mode)?;
    }
    layer.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn layer_is_complete_and_the_same_each_time() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("LICENSE"), "licence").unwrap();
        // Any dynamic program will do.
        let agent = std::env::current_exe().unwrap();
        let first = layer(&agent, root.path()).unwrap();
        assert!(first == layer(&agent, root.path()).unwrap(), "two layers of the same files differ");

        let mut archive = tar::Archive::new(&first[..]);
        let entries: Vec<(String, u32)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap())
            })
            .collect();
        assert!(entries.contains(&(AGENT.to_owned(), 0o755)), "{entries:?}");
        assert!(entries.iter().any(|(path, _)| path.ends_with("libc.so.6")), "{entries:?}");
        assert!(entries.iter().any(|(path, mode)| path.trim_end_matches('/') == "tmp" && *mode == 0o1777));
        let unique: BTreeSet<_> = entries.iter().map(|(path, _)| path).collect();
        assert_eq!(unique.len(), entries.len(), "an entry is there twice");
    }
}
