//! The one layer of the image: the agent, its libraries, and the few files that the C library looks for.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tar::{Builder, EntryType, Header};

use crate::libraries;

/// Where the agent is in the image.
pub(super) const AGENT: &str = "usr/bin/sidestep";

/// Where Debian keeps the certificates of public authorities, for sinks that use TLS.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The layer as an uncompressed tar.
///
/// # Errors
/// A file can't be read.
pub(super) fn layer(agent: &Path, root: &Path) -> Result<Vec<u8>> {
    let mut layer = Layer { tar: Builder::new(Vec::new()), folders: BTreeSet::new() };
    layer.file(AGENT, 0o755, &read(agent)?)?;
    for (target, source) in libraries::libraries(agent)? {
        layer.file(target.strip_prefix("/")?, 0o755, &read(&source)?)?;
    }
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
    Ok(layer.tar.into_inner()?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

struct Layer {
    tar: Builder<Vec<u8>>,
    folders: BTreeSet<PathBuf>,
}

impl Layer {
    fn file(&mut self, path: impl AsRef<Path>, mode: u32, content: &[u8]) -> Result<()> {
        let path = path.as_ref();
        self.folder(path.parent().context("a file at the root")?, 0o755)?;
        self.entry(path, EntryType::Regular, mode, content)
    }

    /// A folder, with those above it: without entries of their own, engines would choose their modes.
    fn folder(&mut self, path: &Path, mode: u32) -> Result<()> {
        if path.as_os_str().is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.folder(path.parent().context("a folder above the root")?, 0o755)?;
        self.folders.insert(path.to_owned());
        self.entry(path, EntryType::Directory, mode, &[])
    }

    fn entry(&mut self, path: &Path, kind: EntryType, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content).with_context(|| format!("layer: {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
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
