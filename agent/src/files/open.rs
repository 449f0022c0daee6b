//! Opens a container's log file from outside, and makes sure that it is the one that the kernel named.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    sync::Arc,
};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use sidestep_abi::stdio::InodeKey;

use crate::load::running::inode_key;

/// Where a file was written: what leads to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Whereabouts {
    /// A process that had it open; 0 when none is known.
    pub(super) tgid: u32,
    /// Its descriptor.
    pub(super) fd: i32,
    /// The path that the writer sees.
    pub(super) path: Option<Arc<str>>,
}

/// Opens the file `key`, by the writer's descriptor, by the path below the root of the writer or of one of `pids`,
/// or below `rootfs`. What is opened is a regular file, and that one.
#[must_use]
pub(super) fn open(
    key: &InodeKey,
    whereabouts: &Whereabouts,
    pids: impl FnOnce() -> Vec<u32>,
    rootfs: Option<&Path>,
) -> Option<File> {
    let Whereabouts { tgid, fd, path } = whereabouts;
    let by_descriptor = || {
        let link = format!("/proc/{tgid}/fd/{fd}");
        // Opening a device or a FIFO may have effects of its own; looking has none.
        fs::metadata(&link).ok().filter(fs::Metadata::is_file)?;
        open_for_reading(Path::new(&link)).ok().filter(|file| is(file, key, Some(*tgid)))
    };
    if *tgid != 0
        && let Some(file) = by_descriptor()
    {
        return Some(file);
    }
    let path = path.as_deref()?;
    let below = |pid: u32| below_process(pid, path).filter(|file| is(file, key, Some(pid)));
    if *tgid != 0
        && let Some(file) = below(*tgid)
    {
        return Some(file);
    }
    if let Some(file) = pids().into_iter().take(8).find_map(below) {
        return Some(file);
    }
    open_below(rootfs?, path).ok().filter(|file| is(file, key, None))
}

/// Opens `path` as the process sees it.
#[must_use]
pub(super) fn below_process(pid: u32, path: &str) -> Option<File> {
    open_below(Path::new(&format!("/proc/{pid}/root")), path).ok()
}

/// Opens a regular file below `root`: links that its owner has put there lead nowhere else.
///
/// # Errors
/// Those of `openat2(2)`; `InvalidInput` when it is not a regular file.
pub(super) fn open_below(root: &Path, path: &str) -> io::Result<File> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let relative = path.trim_start_matches('/');
    let found: OwnedFd = rustix::fs::openat2(&root, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    if !File::from(found.try_clone()?).metadata()?.is_file() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    open_for_reading(Path::new(&format!("/proc/self/fd/{}", found.as_raw_fd())))
}

/// Opens for reading without waiting and without becoming anybody's terminal.
///
/// # Errors
/// Those of `open(2)`.
pub(crate) fn open_for_reading(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Whether an open file is the one that the kernel programs call `key`.
///
/// The kernel programs know the device of the superblock. `stat(2)` may give another one: btrfs gives that of the
/// subvolume, overlayfs over several file systems that of a layer. Then the mount tells: the descriptor's mount id
/// and inode number stand in `/proc/self/fdinfo`, the superblock's device in the mount table of `pid`.
#[must_use]
pub(super) fn is(file: &File, key: &InodeKey, pid: Option<u32>) -> bool {
    let Ok(metadata) = file.metadata() else { return false };
    metadata.is_file() && (inode_key(&metadata) == *key || superblock_key(file, pid).as_ref() == Some(key))
}

/// Under which key the kernel programs know an open file; see [`is`].
#[must_use]
pub(super) fn key_of(file: &File, pid: Option<u32>) -> Option<InodeKey> {
    superblock_key(file, pid).or_else(|| file.metadata().ok().map(|metadata| inode_key(&metadata)))
}

/// Device and inode number of an open file, as `stat(2)` gives them.
#[must_use]
pub(super) fn device_and_inode(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn superblock_key(file: &File, pid: Option<u32>) -> Option<InodeKey> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name))?.trim().parse::<u64>().ok();
    // Linux 5.14; before, the number of `stat` is the best there is.
    let ino = field("ino:").or_else(|| file.metadata().ok().map(|metadata| metadata.ino()))?;
    let mount = field("mnt_id:")?.to_string();
    let own = fs::read_to_string("/proc/self/mountinfo").ok();
    let others = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok());
    // Mount ids are unique over all mount namespaces.
    let device = others.iter().chain(&own).find_map(|table| superblock_device(table, &mount))?;
    Some(InodeKey { ino, dev: device, _pad: 0 })
}

/// Fields by `proc_pid_mountinfo(5)`: the first is the mount's id, the third the device of its superblock.
fn superblock_device(table: &str, mount: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(' ');
        if fields.next() != Some(mount) {
            return None;
        }
        device(fields.nth(1)?)
    })
}

/// A device by its two numbers, as the kernel programs have it.
pub(super) fn device(numbers: &str) -> Option<u32> {
    let (major, minor) = numbers.split_once(':')?;
    Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?)
}

/// When the file was made, in nanoseconds since the Unix epoch; 0 where the file system does not say.
#[must_use]
pub(super) fn birth(file: &File) -> u64 {
    let Ok(status) = rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::BTIME) else { return 0 };
    if StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::BTIME) {
        let seconds = u64::try_from(status.stx_btime.tv_sec).unwrap_or_default();
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(status.stx_btime.tv_nsec))
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_superblock_device_of_a_mount() {
        let table = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n523 22 0:47 / / rw - overlay overlay rw\n";
        assert_eq!(superblock_device(table, "523"), Some(47));
        assert_eq!(superblock_device(table, "22"), Some(8 << 20 | 1));
        assert_eq!(superblock_device(table, "5"), None);
    }

    #[test]
    fn links_lead_nowhere_else_and_only_regular_files_are_opened() {
        let root = tempfile::tempdir().expect("directory");
        fs::create_dir(root.path().join("etc")).expect("directory");
        fs::write(root.path().join("etc/inside"), "inside").expect("file");
        std::os::unix::fs::symlink("/etc/inside", root.path().join("link")).expect("link");
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("out")).expect("link");
        let file = open_below(root.path(), "/link").expect("the link stays inside");
        assert_eq!(io::read_to_string(file).expect("text"), "inside");
        assert!(open_below(root.path(), "/out").is_err());
        assert!(open_below(root.path(), "/../../../../etc/passwd").is_err());
        assert!(open_below(root.path(), "/etc").is_err());
    }

    #[test]
    fn a_deleted_file_is_opened_by_its_writers_descriptor() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a.log");
        let writer = File::create(&path).expect("file");
        let key = inode_key(&writer.metadata().expect("metadata"));
        fs::remove_file(&path).expect("removed");
        let whereabouts = Whereabouts { tgid: std::process::id(), fd: writer.as_raw_fd(), path: None };
        let found = open(&key, &whereabouts, Vec::new, None).expect("opened");
        assert_eq!(found.metadata().expect("metadata").ino(), key.ino);
        let other = InodeKey { ino: key.ino + 1, ..key };
        assert!(open(&other, &whereabouts, Vec::new, None).is_none());
    }

    #[test]
    fn a_file_was_made_when_it_was_made() {
        let file = tempfile::tempfile().expect("file");
        let born = birth(&file);
        let modified = u64::try_from(file.metadata().expect("metadata").mtime()).expect("after 1970");
        assert!(born == 0 || (born / 1_000_000_000).abs_diff(modified) <= 1, "{born} {modified}");
    }

    /// Takes mounts away again, also when the test fails.
    struct Mounts(Vec<std::path::PathBuf>);

    impl Mounts {
        fn add(&mut self, kind: &str, options: &str, at: &Path) {
            let mut command = std::process::Command::new("mount");
            let status = command.args(["-t", kind, "-o", options, "none"]).arg(at).status().expect("mount");
            assert!(status.success(), "mount {kind}: this test needs root");
            self.0.push(at.to_owned());
        }
    }

    impl Drop for Mounts {
        fn drop(&mut self) {
            while let Some(at) = self.0.pop() {
                let _ = std::process::Command::new("umount").arg(at).status();
            }
        }
    }

    #[test]
    fn an_overlay_of_two_file_systems_is_known_by_its_superblock() {
        let directory = tempfile::tempdir().expect("directory");
        let at = |name: &str| directory.path().join(name);
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(at(name)).expect("directory");
        }
        let mut mounts = Mounts(Vec::new());
        mounts.add("tmpfs", "size=1m", &at("lower"));
        let part = |name: &str| at(name).display().to_string();
        let options = format!("lowerdir={},upperdir={},workdir={}", part("lower"), part("upper"), part("work"));
        mounts.add("overlay", &options, &at("merged"));
        let path = at("merged").join("a.log");
        fs::write(&path, "a line").expect("written");
        let file = File::open(&path).expect("file");
        let superblock = inode_key(&fs::metadata(at("merged")).expect("metadata")).dev;
        let by_stat = inode_key(&file.metadata().expect("metadata"));
        assert_ne!(by_stat.dev, superblock, "stat gives a device of the layer");
        let key = InodeKey { dev: superblock, ..by_stat };
        assert!(is(&file, &key, Some(std::process::id())));
        assert!(!is(&file, &InodeKey { ino: key.ino + 1, ..key }, Some(std::process::id())));
    }
}
