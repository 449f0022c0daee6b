//! A layer of an image: folders, files and links, in which two runs do not differ.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tar::{Builder, EntryType, Header};

use crate::libraries;

/// An uncompressed tar under construction. Paths are relative to the root of the image.
pub struct Layer {
    tar: Builder<Vec<u8>>,
    folders: BTreeSet<PathBuf>,
    /// Files and links.
    files: BTreeSet<PathBuf>,
}

impl Default for Layer {
    fn default() -> Self {
        Self { tar: Builder::new(Vec::new()), folders: BTreeSet::new(), files: BTreeSet::new() }
    }
}

impl Layer {
    /// Adds a file, with the folders above it.
    ///
    /// # Errors
    /// The path does not fit into a tar.
    pub fn file(&mut self, path: impl AsRef<Path>, mode: u32, content: &[u8]) -> Result<()> {
        let path = path.as_ref();
        self.folder(path.parent().context("a file at the root")?, 0o755)?;
        self.files.insert(path.to_owned());
        let mut header = header(EntryType::Regular, mode, content.len() as u64);
        self.tar.append_data(&mut header, path, content).with_context(|| format!("layer: {}", path.display()))
    }

    /// Adds a program of this machine at `path`, with the shared libraries that it needs.
    ///
    /// # Errors
    /// A file can't be read, or a library is missing.
    pub fn program(&mut self, path: impl AsRef<Path>, program: &Path) -> Result<()> {
        self.file(path, 0o755, &read(program)?)?;
        for (target, source) in libraries::libraries(program)? {
            self.file(target.strip_prefix("/")?, 0o755, &read(&source)?)?;
        }
        Ok(())
    }

    /// Adds a symbolic link, with the folders above it.
    ///
    /// # Errors
    /// A path does not fit into a tar.
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.folder(path.parent().context("a link at the root")?, 0o755)?;
        self.files.insert(path.to_owned());
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, path, target).with_context(|| format!("layer: {}", path.display()))
    }

    /// Adds a folder, with those above it: without entries of their own, engines would choose their modes.
    ///
    /// # Errors
    /// The path does not fit into a tar.
    pub fn folder(&mut self, path: &Path, mode: u32) -> Result<()> {
        if path.as_os_str().is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.folder(path.parent().context("a folder above the root")?, 0o755)?;
        self.folders.insert(path.to_owned());
        let mut header = header(EntryType::Directory, mode, 0);
        self.tar.append_data(&mut header, path, &[][..]).with_context(|| format!("layer: {}", path.display()))
    }

    /// Whether there is a file or a link of this name: a second one would be there beside it.
    #[must_use]
    pub fn has(&self, path: &Path) -> bool {
        self.files.contains(path)
    }

    /// The bytes of the tar.
    ///
    /// # Errors
    /// None that is known: it is in memory.
    pub fn finish(self) -> Result<Vec<u8>> {
        Ok(self.tar.into_inner()?)
    }
}

/// An entry that belongs to root and tells no time.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
