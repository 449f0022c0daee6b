//! Where pins can be: a directory on a BPF file system.

use std::{
    ffi::CString,
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open, statfs};

use super::PinError;

/// Where the BPF file system belongs.
const USUAL: &str = "/sys/fs/bpf";

/// `BPF_FS_MAGIC` of `linux/magic.h`
const MAGIC: u32 = 0xcafe_4a11;

/// Attempts to lock a directory that another process removes at the same moment.
const ATTEMPTS: u32 = 10;

/// A directory of pins that this process alone uses, for as long as this lives.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Holds the lock; a killed process gives it back.
    _lock: OwnedFd,
}

impl Directory {
    /// Makes the directory, and mounts the BPF file system where it belongs when nobody has.
    ///
    /// # Errors
    /// It is on another file system, or another process uses it.
    pub fn make(path: &Path) -> Result<Self, PinError> {
        ensure_mounted(path)?;
        for _ in 0..ATTEMPTS {
            fs::create_dir_all(path).map_err(|source| PinError::io("making", path, source))?;
            match Self::lock(path)? {
                Some(directory) => return Ok(directory),
                None => continue,
            }
        }
        Err(PinError::io("locking", path, io::ErrorKind::NotFound.into()))
    }

    /// The directory when it is there.
    ///
    /// # Errors
    /// As [`Directory::make`].
    pub fn existing(path: &Path) -> Result<Option<Self>, PinError> {
        if !path.exists() {
            return Ok(None);
        }
        if !is_bpffs(path) {
            return Err(PinError::NotBpffs(path.to_owned()));
        }
        Self::lock(path)
    }

    /// `None` when the directory was removed meanwhile. A file system of pins has no files, but its directories can be
    /// locked as any.
    fn lock(path: &Path) -> Result<Option<Self>, PinError> {
        let failed = |source: rustix::io::Errno| PinError::io("locking", path, source.into());
        let lock = match open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            result => result.map_err(failed)?,
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(PinError::InUse(path.to_owned())),
            Err(error) => return Err(failed(error)),
        }
        let locked = rustix::fs::fstat(&lock).map_err(failed)?;
        let is_there = fs::metadata(path).is_ok_and(|there| there.ino() == locked.st_ino);
        Ok(is_there.then(|| Self { path: path.to_owned(), _lock: lock }))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a path that is there is on a BPF file system.
#[must_use]
pub fn is_bpffs(path: &Path) -> bool {
    // The type of the field differs between machines; the number fits in all of them.
    statfs(path).is_ok_and(|status| status.f_type as u32 == MAGIC)
}

fn ensure_mounted(path: &Path) -> Result<(), PinError> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if is_bpffs(existing) {
        return Ok(());
    }
    if !path.starts_with(USUAL) || existing.starts_with(USUAL) && existing != Path::new(USUAL) {
        return Err(PinError::NotBpffs(existing.to_owned()));
    }
    mount(Path::new(USUAL)).map_err(|source| PinError::Mount { path: USUAL.to_owned(), source })?;
    tracing::info!(path = USUAL, "the BPF file system is mounted; nobody had");
    Ok(())
}

fn mount(path: &Path) -> io::Result<()> {
    let target = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all pointers are to strings that end with a NUL and outlive the call.
    let result = unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
