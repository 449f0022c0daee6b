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
    /// `None` until it can be made.
    root: Mutex<Option<Arc<OwnedFd>>>,
}

impl Tree {
    /// Opens the root, making it when it is missing. A disk that is full or read-only may get better: it is no
    /// error here but in [`Tree::make_directory`], until the root can be made.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};

        let root = match open_root(path) {
            Ok(root) => Some(Arc::new(root)),
            Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_owned(), root: Mutex::new(root) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The root; `NotFound` when it could not be made yet.
    pub(super) fn root(&self) -> io::Result<Arc<OwnedFd>> {
        let root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        root.as_ref().map(Arc::clone).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A directory of the tree.
    pub(super) fn directory(&self, components: &[String]) -> io::Result<OwnedFd> {
        let root = self.root()?;
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
        for _ in 0..4 {
            let root = match self.root() {
                Ok(root) if rustix::fs::fstat(&*root).is_ok_and(|stat| stat.st_nlink > 0) => root,
                _ => {
                    let root = Arc::new(open_root(&self.path)?);
                    *self.root.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&root));
                    root
                }
            };
            match make_below(root, components, changed) {
                Err(Errno::NOENT) => {}
                other => return Ok(other?),
            }
        }
        Err(Errno::NOENT.into())
    }
}

/// Whether a sink writes to the directory at `path`. Makes nothing; a directory that is missing is not written to.
pub(crate) fn is_in_use(path: &Path) -> io::Result<bool> {
    let root = match open(path, DIRECTORY, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    // A shared lock, so that two that ask do not take each other for a sink; it goes with the descriptor.
    match flock(&root, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn make_below(root: Arc<OwnedFd>, components: &[String], changed: &mut Vec<Arc<OwnedFd>>) -> Result<OwnedFd, Errno> {
    let mut current = root;
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
