//! Globs over paths and names, and where containers live in the cgroup tree.

use std::{fmt, path::Path};

use globset::{GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};

/// Some globs; matches when any of them does.
#[derive(Clone, Default)]
pub struct Globs {
    patterns: Vec<String>,
    set: GlobSet,
}

/// How `*` and `?` treat the character `/`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Slash {
    /// They stop there, and only `**` crosses it: for paths.
    Separates,
    /// It is a character like any other: for names and images.
    IsPlain,
}

impl Globs {
    /// Compiles `patterns`.
    ///
    /// # Errors
    /// For each pattern that is no glob, its index and what is wrong with it.
    pub fn new(patterns: &[String], slash: Slash) -> Result<Self, Vec<(usize, String)>> {
        let mut builder = GlobSetBuilder::new();
        let mut errors = Vec::new();
        for (index, pattern) in patterns.iter().enumerate() {
            let glob =
                GlobBuilder::new(pattern).literal_separator(slash == Slash::Separates).backslash_escape(true).build();
            match glob {
                Ok(_) if pattern.is_empty() => errors.push((index, "a pattern may not be empty".to_owned())),
                Ok(glob) => {
                    builder.add(glob);
                }
                Err(error) => errors.push((index, format!("`{pattern}` is not a glob: {}", error.kind()))),
            }
        }
        let set = builder.build().map_err(|error| vec![(0, error.to_string())]);
        match (errors.is_empty(), set) {
            (true, set) => set.map(|set| Self { patterns: patterns.to_vec(), set }),
            (false, _) => Err(errors),
        }
    }

    /// Whether any of them matches all of `text`.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        self.set.is_match(text)
    }

    /// The patterns as typed.
    #[must_use]
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// Whether there are none, so that nothing matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

impl fmt::Debug for Globs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.patterns).finish()
    }
}

impl PartialEq for Globs {
    fn eq(&self, other: &Self) -> bool {
        self.patterns == other.patterns
    }
}

/// A place in the cgroup v2 tree below which containers are: `/kubepods`, `/system.slice/docker-*.scope`.
#[derive(Clone)]
pub struct CgroupPattern {
    text: String,
    last: Option<GlobMatcher>,
}

impl CgroupPattern {
    /// Reads a pattern. `mount` is where the hierarchy is mounted, if that is configured: a pattern names a place in
    /// the hierarchy, and a path in the file system would name nothing and be silent about it.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn new(text: &str, mount: Option<&Path>) -> Result<Self, String> {
        let Some(components) = text.strip_prefix('/') else {
            return Err(format!("`{text}` must begin with `/`, the root of the cgroup v2 hierarchy"));
        };
        if components.is_empty() {
            return Err("the root cgroup holds the whole node, the agent too; name what holds containers".to_owned());
        }
        if components.split('/').any(|component| matches!(component, "" | "." | "..")) {
            return Err(format!("`{text}` must be a plain path, without `//`, `.`, `..` or `/` at its end"));
        }
        if let Some((mount, below)) = below_mount(text, mount) {
            return Err(format!(
                "`{text}` is a path in the file system; name the cgroup as /proc/PID/cgroup does, without `{mount}`{}",
                if below.is_empty() { String::new() } else { format!(": `{below}`") }
            ));
        }
        let (parent, last) = text.rsplit_once('/').unwrap_or(("", text));
        if is_glob(parent) {
            return Err(format!("in `{text}` only the last component may be a glob"));
        }
        if last == "*" && parent.is_empty() {
            return Err("`/*` holds the whole node, the agent too; name what holds containers".to_owned());
        }
        let last = if is_glob(last) {
            let glob = GlobBuilder::new(last).literal_separator(true).backslash_escape(false).build();
            Some(glob.map_err(|error| format!("`{text}` is not a glob: {}", error.kind()))?.compile_matcher())
        } else {
            None
        };
        Ok(Self { text: text.to_owned(), last })
    }

    /// The path of the cgroup, when the pattern is not a glob.
    #[must_use]
    pub fn literal(&self) -> Option<&str> {
        if self.last.is_none() { Some(&self.text) } else { None }
    }

    /// The directory that holds what the pattern names; empty for the root.
    #[must_use]
    pub fn parent(&self) -> &str {
        self.text.rsplit_once('/').map_or("", |(parent, _)| parent)
    }

    /// Whether a child of [`Self::parent`] is meant.
    #[must_use]
    pub fn matches_name(&self, name: &str) -> bool {
        match &self.last {
            Some(glob) => glob.is_match(name),
            None => self.text.rsplit_once('/').is_some_and(|(_, last)| last == name),
        }
    }

    /// Whether something is below both: they are the same, or one is below the other.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let covers = |outer: &Self, inner: &Self| outer.covers(inner.literal().unwrap_or(inner.parent()));
        self == other || covers(self, other) || covers(other, self)
    }

    /// Whether the cgroup at `path` is one of those meant, or below one.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix(self.parent()).and_then(|rest| rest.strip_prefix('/')) else { return false };
        self.matches_name(rest.split('/').next().unwrap_or(rest))
    }
}

/// The mount point that `text` begins with, and what follows it.
fn below_mount<'a>(text: &'a str, mount: Option<&'a Path>) -> Option<(&'a str, &'a str)> {
    // Hybrid machines have the v2 hierarchy at the first of the two usual ones.
    let usual = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let mounts = mount.and_then(Path::to_str).filter(|mount| mount.len() > 1).into_iter().chain(usual);
    mounts.map(|mount| mount.trim_end_matches('/')).find_map(|mount| {
        let below = text.strip_prefix(mount)?;
        (below.is_empty() || below.starts_with('/')).then_some((mount, below))
    })
}

fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

impl fmt::Display for CgroupPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for CgroupPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl PartialEq for CgroupPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globs(patterns: &[&str], slash: Slash) -> Globs {
        Globs::new(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>(), slash).expect("globs")
    }

    #[test]
    fn one_star_stays_in_a_directory_and_two_do_not() {
        let paths = globs(&["/var/log/*.log", "**/app/**", "/x/{a,b}.log"], Slash::Separates);
        for path in ["/var/log/a.log", "/srv/app/x/y", "/x/b.log"] {
            assert!(paths.is_match(path), "{path}");
        }
        for path in ["/var/log/a/b.log", "/var/log/a.txt", "/x/c.log", ""] {
            assert!(!paths.is_match(path), "{path}");
        }
        assert!(globs(&["**/*.log"], Slash::Separates).is_match("/a.log"));
        assert!(globs(&["/var/log/**"], Slash::Separates).is_match("/var/log/nginx/access.log"));
        assert!(globs(&["registry.example.com/*"], Slash::IsPlain).is_match("registry.example.com/team/app:1"));
    }

    #[test]
    fn every_bad_glob_is_named() {
        let patterns = ["[a", "ok", "{a", ""].map(str::to_owned);
        let errors = Globs::new(&patterns, Slash::Separates).expect_err("three are bad");
        assert_eq!(errors.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 2, 3]);
        assert!(errors[0].1.starts_with("`[a` is not a glob: unclosed character class"), "{}", errors[0].1);
    }

    #[test]
    fn a_cgroup_pattern_covers_what_is_below_it() {
        let docker = CgroupPattern::new("/system.slice/docker-*.scope", None).expect("pattern");
        assert_eq!((docker.parent(), docker.literal()), ("/system.slice", None));
        assert!(docker.covers("/system.slice/docker-abc.scope"));
        assert!(docker.covers("/system.slice/docker-abc.scope/inner"));
        assert!(!docker.covers("/system.slice/ssh.service"));
        assert!(!docker.covers("/system.slice"));
        assert!(!docker.covers("/system.slice-docker-abc.scope"));
        let kubepods = CgroupPattern::new("/kubepods", None).expect("pattern");
        assert_eq!((kubepods.parent(), kubepods.literal()), ("", Some("/kubepods")));
        assert!(kubepods.covers("/kubepods/burstable/pod1/c1"));
        assert!(!kubepods.covers("/kubepods.slice"));
    }

    #[test]
    fn a_cgroup_pattern_never_means_the_whole_node() {
        for text in ["/", "", "kubepods", "/a/../b", "/a/", "//a", "/*/b", "/a*/b", "/*", "/[a"] {
            assert!(CgroupPattern::new(text, None).is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_in_the_file_system_is_no_cgroup() {
        let error = |text| CgroupPattern::new(text, Some(Path::new("/mnt/cg/"))).expect_err(text);
        assert!(error("/sys/fs/cgroup/unified/kubepods").ends_with("without `/sys/fs/cgroup/unified`: `/kubepods`"));
        assert!(error("/sys/fs/cgroup/kubepods").ends_with("without `/sys/fs/cgroup`: `/kubepods`"));
        assert!(error("/mnt/cg/a/*").ends_with("without `/mnt/cg`: `/a/*`"));
        assert!(error("/sys/fs/cgroup").contains("is a path in the file system"));
        assert!(CgroupPattern::new("/sys/fs/cgroups", None).is_ok());
        assert!(CgroupPattern::new("/mnt/cg/a", None).is_ok());
    }

    #[test]
    fn patterns_overlap_when_one_is_below_the_other() {
        let overlap = |one, other| {
            let [one, other] = [one, other].map(|text| CgroupPattern::new(text, None).expect("pattern"));
            assert_eq!(one.overlaps(&other), other.overlaps(&one));
            one.overlaps(&other)
        };
        assert!(overlap("/a", "/a"));
        assert!(overlap("/a", "/a/b/c"));
        assert!(overlap("/a", "/a/b-*"));
        assert!(overlap("/a/b-*", "/a/b-1/c"));
        assert!(overlap("/a/*", "/a/b"));
        assert!(!overlap("/a/b-*", "/a/c-*"));
        assert!(!overlap("/kubepods", "/kubepods.slice"));
        assert!(!overlap("/b", "/a/*"));
    }
}
