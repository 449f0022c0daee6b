//! Reading the node's files.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// The largest file that is read, in bytes. A bundle's `config.json` is some 10 KiB.
pub const MAX_FILE_BYTES: usize = 4 << 20;

/// The most entries of a directory that are looked at.
pub const MAX_ENTRIES: usize = 8192;

/// Where the runtimes' files are read from; in tests, from memory.
pub trait Files {
    /// The whole of a regular file of the node, by its absolute path there.
    ///
    /// # Errors
    /// Those of the file system, and [`io::ErrorKind::FileTooLarge`] above [`MAX_FILE_BYTES`].
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The names in a directory of the node, at most [`MAX_ENTRIES`] of them.
    ///
    /// # Errors
    /// Those of the file system.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;

    /// `/proc/PID/cgroup`, of the process namespace that the agent is in.
    ///
    /// # Errors
    /// Those of the file system; the process may be gone.
    fn process_cgroups(&self, pid: u32) -> io::Result<Vec<u8>>;
}

/// The node's real files.
#[derive(Debug)]
pub struct HostFiles {
    root: OwnedFd,
    path: PathBuf,
}

impl HostFiles {
    /// The node's files below the directory where its root is mounted.
    ///
    /// # Errors
    /// When that directory cannot be opened.
    pub fn new(host_root: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(host_root, flags, Mode::empty())?, path: host_root.to_owned() })
    }

    /// Opens a regular file of the node for reading, by its absolute path there.
    ///
    /// # Errors
    /// Those of the file system, and when it is something else.
    pub fn open_regular(&self, path: &Path) -> io::Result<File> {
        let file = self.open(path, OFlags::empty())?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(file)
    }

    /// Opens a path of the node. Links on the way lead where they lead on the node, even absolute ones
    /// (`/var/run`), and never out of it.
    fn open(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        // Without NONBLOCK a named pipe in the place of a file would hold the agent for ever.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | flags;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd = match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
            // Old seccomp profiles refuse the call.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
                let below = self.path.join(path.strip_prefix("/").unwrap_or(path));
                rustix::fs::open(below, flags, Mode::empty())?
            }
            other => other?,
        };
        Ok(File::from(fd))
    }
}

impl Files for HostFiles {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        read_limited(self.open_regular(path)?)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let directory = self.open(path, OFlags::DIRECTORY)?;
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        entries.take(MAX_ENTRIES).map(|entry| Ok(entry?.file_name())).collect()
    }

    fn process_cgroups(&self, pid: u32) -> io::Result<Vec<u8>> {
        read_limited(File::open(format!("/proc/{pid}/cgroup"))?)
    }
}

/// The size that the file system tells is no promise: the file may grow, and `/proc` says 0.
fn read_limited(file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut content)?;
    if content.len() > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn links_stay_inside_the_nodes_root() {
        let host = tempfile::tempdir().expect("a directory");
        let root = host.path();
        fs::create_dir_all(root.join("run/runc")).expect("directories");
        fs::create_dir_all(root.join("var")).expect("directories");
        fs::write(root.join("run/runc/state"), "inside").expect("a file");
        symlink("/run", root.join("var/run")).expect("an absolute link");
        symlink("../../../../../../etc/passwd", root.join("var/escape")).expect("a link out");
        let files = HostFiles::new(root).expect("the root");
        assert_eq!(files.read(Path::new("/var/run/runc/state")).expect("read"), b"inside");
        assert_eq!(files.list(Path::new("/var/run/runc")).expect("listed"), ["state"]);
        let error = files.read(Path::new("/var/escape")).expect_err("leads to nothing inside the root");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_not_a_small_regular_file_is_refused() {
        let host = tempfile::tempdir().expect("a directory");
        let files = HostFiles::new(host.path()).expect("the root");
        let large = File::create(host.path().join("large")).expect("a file");
        large.set_len(MAX_FILE_BYTES as u64).expect("grown");
        assert_eq!(files.read(Path::new("/large")).expect("just fits").len(), MAX_FILE_BYTES);
        large.set_len(MAX_FILE_BYTES as u64 + 1).expect("grown");
        let error = files.read(Path::new("/large")).expect_err("too large");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        let pipe = host.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0).expect("a named pipe");
        let error = files.read(Path::new("/pipe")).expect_err("a pipe");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_agents_own_cgroups_are_readable() {
        let host = HostFiles::new(Path::new("/")).expect("the root");
        let cgroups = host.process_cgroups(std::process::id()).expect("our own");
        assert!(cgroups.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"0::/")), "{cgroups:?}");
    }
}
