//! Finds the node's own log files.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use crate::config::Files;

/// Directory entries that one search looks at; a glob that is too wide costs no more.
const MAX_ENTRIES: usize = 100_000;
/// Directories below a glob's fixed part that are entered.
const MAX_DEPTH: usize = 16;

/// The paths on the node that `files` names and that exist, below `host_root`.
#[must_use]
pub(super) fn find(files: &Files, host_root: &Path) -> Vec<String> {
    let mut found = HashSet::new();
    let mut left = MAX_ENTRIES;
    for pattern in files.include.patterns() {
        let (prefix, depth) = fixed_part(pattern);
        walk(files, host_root, &prefix, depth, &mut left, &mut found);
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort();
    found
}

/// The directory before the first component that is a glob, and how many components follow on it.
pub(super) fn fixed_part(pattern: &str) -> (PathBuf, usize) {
    let components: Vec<_> = pattern.split('/').filter(|component| !component.is_empty()).collect();
    let is_glob = |component: &&str| component.contains(['*', '?', '[', '{', '\\']);
    let fixed = components.iter().take(components.len().saturating_sub(1)).take_while(|part| !is_glob(part)).count();
    let mut prefix = PathBuf::from("/");
    prefix.extend(&components[..fixed]);
    // Braces may hold slashes, and `**` any number of directories.
    let deep = components[fixed..].iter().any(|part| part.contains("**") || part.contains('{') != part.contains('}'));
    (prefix, if deep { MAX_DEPTH } else { components.len() - fixed })
}

fn walk(
    files: &Files,
    host_root: &Path,
    directory: &Path,
    depth: usize,
    left: &mut usize,
    found: &mut HashSet<String>,
) {
    let Ok(relative) = directory.strip_prefix("/") else { return };
    let Ok(entries) = fs::read_dir(host_root.join(relative)) else { return };
    for entry in entries.flatten() {
        if *left == 0 {
            return;
        }
        *left -= 1;
        let path = directory.join(entry.file_name());
        // A name that is no UTF-8 matches no glob.
        let (Ok(kind), Some(text)) = (entry.file_type(), path.to_str()) else { continue };
        if kind.is_dir() {
            if depth > 1 {
                walk(files, host_root, &path, depth - 1, left, found);
            }
        } else if (kind.is_file() || kind.is_symlink()) && files.matches(text) {
            found.insert(text.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Globs, Slash, StartAt};

    fn files(include: &[&str], exclude: &[&str]) -> Files {
        let globs = |patterns: &[&str]| {
            Globs::new(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>(), Slash::Separates).expect("globs")
        };
        Files { include: globs(include), exclude: globs(exclude), start_at: StartAt::End }
    }

    #[test]
    fn walks_only_below_the_fixed_part() {
        assert_eq!(fixed_part("/var/log/*.log"), ("/var/log".into(), 1));
        assert_eq!(fixed_part("/var/log/syslog"), ("/var/log".into(), 1));
        assert_eq!(fixed_part("/var/log/*/a.log"), ("/var/log".into(), 2));
        assert_eq!(fixed_part("/srv/**/a.log"), ("/srv".into(), MAX_DEPTH));
        assert_eq!(fixed_part("/srv/{a/b,c}/d"), ("/srv".into(), MAX_DEPTH));
    }

    #[test]
    fn finds_what_matches_below_the_nodes_root() {
        let root = tempfile::tempdir().expect("directory");
        for path in ["var/log/a.log", "var/log/a.log.gz", "var/log/syslog", "var/log/x/b.log", "srv/deep/er/c.log"] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(path, "").expect("file");
        }
        let files = files(&["/var/log/*.log*", "/var/log/{syslog,messages}", "/srv/**/*.log"], &["**/*.gz"]);
        assert_eq!(find(&files, root.path()), ["/srv/deep/er/c.log", "/var/log/a.log", "/var/log/syslog"]);
    }
}
