//! Directories below the root, reached through held descriptors only: a link in the way is an error, never a way out.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, mkdirat, open, openat},
    io::Errno,
};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The root of the tree. It is locked for as long as this lives, so that no two sinks cut each other's files.
#[derive(Debug)]
pub(super) struct Tree {
    path: PathBuf,
    root: Mutex<Arc<OwnedFd>>,
}

impl Tree {
    /// Opens the root, making it when it is missing.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), root: Mutex::new(Arc::new(open_root(path)?)) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn root(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.root.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A directory of the tree.
    pub(super) fn directory(&self, components: &[String]) -> io::Result<OwnedFd> {
        let root = self.root();
        let mut current: Option<OwnedFd> = None;
        for component in components {
            let parent = current.as_ref().unwrap_or(&root);
            current = Some(openat(parent, component.as_str(), DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?);
        }
        match current {
            Some(directory) => Ok(directory),
            None => Ok(root.try_clone()?),
        }
    }

    /// A directory of the tree, made when it is missing, root and all. The parents of what was made are added to
    /// `changed`, to be synced.
    pub(super) fn make_directory(&self, components: &[String], changed: &mut Vec<Arc<OwnedFd>>) -> io::Result<OwnedFd> {
        // The keeper removes empty directories, and people remove whole trees: both may happen between two steps.
        let mut last = Errno::NOENT;
        for _ in 0..4 {
            match self.try_make(components, changed) {
                Ok(directory) => return Ok(directory),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            last = Errno::NOENT;
            if !self.root_exists() {
                let root = open_root(&self.path)?;
                *self.root.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(root);
            }
        }
        Err(last.into())
    }

    /// Whether the held root is still linked into the file system.
    fn root_exists(&self) -> bool {
        rustix::fs::fstat(&*self.root()).is_ok_and(|stat| stat.st_nlink > 0)
    }

    fn try_make(&self, components: &[String], changed: &mut Vec<Arc<OwnedFd>>) -> Result<OwnedFd, Errno> {
        let mut current = self.root();
        for component in components {
            let flags = DIRECTORY | OFlags::NOFOLLOW;
            let next = match openat(&current, component.as_str(), flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    match mkdirat(&current, component.as_str(), Mode::from_raw_mode(0o750)) {
                        Ok(()) => changed.push(Arc::clone(&current)),
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(error),
                    }
                    openat(&current, component.as_str(), flags, Mode::empty())?
                }
                other => other?,
            };
            current = Arc::new(next);
        }
        rustix::io::fcntl_dupfd_cloexec(&current, 0)
    }
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::DirBuilderExt;

    fs::DirBuilder::new().recursive(true).mode(0o750).create(path)?;
    let root = open(path, DIRECTORY, Mode::empty())?;
    flock(&root, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        if error == Errno::WOULDBLOCK {
            io::Error::new(io::ErrorKind::ResourceBusy, "another file sink writes to this directory")
        } else {
            error.into()
        }
    })?;
    Ok(root)
}
