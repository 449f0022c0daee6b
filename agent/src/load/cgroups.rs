//! The cgroup v2 hierarchy: where it is mounted, which cgroups are governed, and which exist now.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use sidestep_abi::kernel::{MAX_ROOTS, PREFIX_SPACE, Root};

/// Why the governed cgroups can't be found.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No v2 hierarchy is mounted.
    #[error(
        "no cgroup2 file system is mounted; mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified` (cgroup v1 alone does not tell containers apart in the kernel programs)"
    )]
    NoV2,
    /// The mount table can't be read.
    #[error("/proc/self/mountinfo: {0}")]
    Mounts(std::io::Error),
    /// It is a part of one, as in a node that is itself a container.
    #[error(
        "{} is one cgroup of the hierarchy, not the node's root of it: the kernel programs would find no container; `sidestep doctor` says what to mount", .0.display()
    )]
    Part(PathBuf),
    /// Too many roots are configured.
    #[error("{0} governed cgroups; the kernel programs hold {MAX_ROOTS}")]
    TooMany(usize),
}

/// Where the cgroup v2 hierarchy is mounted, unless it is configured.
///
/// # Errors
/// When it is not.
pub fn mount(configured: Option<&Path>) -> Result<PathBuf, CgroupError> {
    if let Some(path) = configured {
        return Ok(path.to_owned());
    }
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
    mount_in(&table).ok_or(CgroupError::NoV2)
}

/// Whether a mount shows one cgroup of the hierarchy, and not its root: that alone has no such file.
#[must_use]
pub fn is_part(mount: &Path) -> bool {
    mount.join("cgroup.events").exists()
}

/// Fields by `proc_pid_mountinfo(5)`: the fifth is the mount point, the one after ` - ` the file system's type.
fn mount_in(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        (back.split(' ').next() == Some("cgroup2")).then(|| front.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}

/// A cgroup below which processes are governed, as configured: a path in the v2 hierarchy, whose last component may
/// end in `*`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootPattern {
    /// As configured.
    text: String,
    /// The cgroup, or the parent of those that match.
    parent: PathBuf,
    /// First bytes of the children's names.
    prefix: Option<String>,
}

impl RootPattern {
    /// Takes `/kubepods` or `/system.slice/docker-*`; text after the `*` is not compared in the kernel.
    #[must_use]
    pub fn new(path: &str) -> Self {
        let text = path.to_owned();
        let path = path.trim_start_matches('/');
        match path.rsplit_once('*') {
            Some((before, _)) => {
                let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
                Self { text, parent: PathBuf::from(parent), prefix: Some(prefix.to_owned()) }
            }
            None => Self { text, parent: PathBuf::from(path), prefix: None },
        }
    }

    /// The root as the kernel programs take it. While the cgroup does not exist, its parent stands for it, with its
    /// name as the only child that counts: so the first container of a node is seen as well. `None` while there is no
    /// parent either.
    #[must_use]
    pub fn resolve(&self, mount: &Path) -> Option<Root> {
        let (above, name) = match &self.prefix {
            Some(prefix) => (self.parent.as_path(), Some(prefix.clone())),
            None if mount.join(&self.parent).exists() => (self.parent.as_path(), None),
            // With its NUL the name matches as a whole.
            None => (self.parent.parent()?, Some(format!("{}\0", self.parent.file_name()?.to_str()?))),
        };
        let id = fs::metadata(mount.join(above)).ok()?.ino();
        let level = u32::try_from(above.components().count()).ok()?;
        let mut root = Root { id, level, ..Root::default() };
        if let Some(name) = name {
            let len = name.len().min(PREFIX_SPACE - 1);
            root.prefix[..len].copy_from_slice(&name.as_bytes()[..len]);
            root.prefix_len = u32::try_from(len).ok()?;
        }
        Some(root)
    }

    /// As configured.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the cgroup is there, or for a glob one that matches.
    #[must_use]
    pub fn exists(&self, mount: &Path) -> bool {
        let path = mount.join(&self.parent);
        match &self.prefix {
            None => path.is_dir(),
            Some(_) => children(&path).iter().any(|(name, _)| self.governs_child(name)),
        }
    }

    fn governs_child(&self, name: &str) -> bool {
        self.prefix.as_deref().is_none_or(|prefix| name.starts_with(prefix))
    }
}

/// A cgroup that exists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cgroup {
    /// Its id: the inode number of its directory.
    pub id: u64,
    /// Its path in the v2 hierarchy, with a leading slash.
    pub path: String,
    /// Whether it is itself a child that matched a root's prefix.
    pub member: bool,
}

/// The governed cgroups that exist now, parents before children.
#[must_use]
pub fn list(mount: &Path, patterns: &[RootPattern]) -> Vec<Cgroup> {
    let mut found = Vec::new();
    for pattern in patterns {
        for (name, path) in children(&mount.join(&pattern.parent)) {
            if pattern.governs_child(&name) {
                walk(mount, &path, pattern.prefix.is_some(), &mut found);
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found.dedup_by(|a, b| a.id == b.id);
    found
}

/// The governed cgroups that stand above all others of theirs and exist now: of a glob all that match it. Id and directory.
#[must_use]
pub fn tops(mount: &Path, patterns: &[RootPattern]) -> Vec<(u64, PathBuf)> {
    let mut found = Vec::new();
    for pattern in patterns {
        let parent = mount.join(&pattern.parent);
        let paths = match &pattern.prefix {
            None => vec![parent],
            Some(_) => {
                let children = children(&parent).into_iter();
                children.filter(|(name, _)| pattern.governs_child(name)).map(|(_, path)| path).collect()
            }
        };
        let with_id = |path: PathBuf| Some((fs::metadata(&path).ok()?.ino(), path));
        found.extend(paths.into_iter().filter_map(with_id));
    }
    found.sort();
    found.dedup();
    found
}

fn walk(mount: &Path, path: &Path, member: bool, found: &mut Vec<Cgroup>) {
    // A cgroup may go away at any moment of the walk.
    let Ok(metadata) = fs::metadata(path) else { return };
    let relative = path.strip_prefix(mount).unwrap_or(path);
    found.push(Cgroup { id: metadata.ino(), path: format!("/{}", relative.display()), member });
    for (_, child) in children(path) {
        walk(mount, &child, false, found);
    }
}

fn children(path: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect()
}

/// Processes of one cgroup, without those of its children.
#[must_use]
pub fn processes(mount: &Path, cgroup: &str) -> Vec<u32> {
    let path = mount.join(cgroup.trim_start_matches('/')).join("cgroup.procs");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Id of the cgroup that a process is in, by the v2 hierarchy; `None` when it is the hierarchy's root.
#[must_use]
pub fn of_process(mount: &Path, pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    if path == "/" {
        return None;
    }
    fs::metadata(mount.join(path.trim_start_matches('/'))).ok().map(|metadata| metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_v2_mount_of_a_hybrid_machine() {
        let table = "30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                     31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
                     32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(mount_in(table), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_in("32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn a_root_that_does_not_exist_is_a_name_under_its_parent() {
        let mount = tempfile::tempdir().expect("temporary directory");
        let root = RootPattern::new("/kubepods").resolve(mount.path()).expect("the mount exists");
        assert_eq!((root.level, &root.prefix[..root.prefix_len as usize]), (0, b"kubepods\0".as_slice()));
        fs::create_dir(mount.path().join("kubepods")).expect("make the root");
        let root = RootPattern::new("/kubepods").resolve(mount.path()).expect("it exists");
        assert_eq!((root.level, root.prefix_len), (1, 0));
        assert!(RootPattern::new("/a/b").resolve(mount.path()).is_none());
    }

    #[test]
    fn patterns_have_a_parent_and_a_prefix() {
        let pattern = RootPattern::new("/system.slice/docker-*.scope");
        assert_eq!(pattern.parent, Path::new("system.slice"));
        assert!(pattern.governs_child("docker-0123.scope"));
        assert!(!pattern.governs_child("sshd.service"));
        assert!(RootPattern::new("/kubepods").governs_child("besteffort"));
    }
}
