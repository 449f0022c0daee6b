//! Globs over paths and names, and where containers live in the cgroup tree.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};

/// Some globs; matches when any of them does.
#[derive(Clone)]
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
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn new(text: &str) -> Result<Self, String> {
        let Some(components) = text.strip_prefix('/') else {
            return Err(format!("`{text}` must begin with `/`, the root of the cgroup v2 hierarchy"));
        };
        if components.is_empty() {
            return Err("the root cgroup holds the whole node, the agent too; name what holds containers".to_owned());
        }
        if components.split('/').any(|component| matches!(component, "" | "." | "..")) {
            return Err(format!("`{text}` must be a plain path, without `//`, `.`, `..` or `/` at its end"));
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

    /// Whether the cgroup at `path` is one of those meant, or below one.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix(self.parent()).and_then(|rest| rest.strip_prefix('/')) else { return false };
        self.matches_name(rest.split('/').next().unwrap_or(rest))
    }
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
        let docker = CgroupPattern::new("/system.slice/docker-*.scope").expect("pattern");
        assert_eq!((docker.parent(), docker.literal()), ("/system.slice", None));
        assert!(docker.covers("/system.slice/docker-abc.scope"));
        assert!(docker.covers("/system.slice/docker-abc.scope/inner"));
        assert!(!docker.covers("/system.slice/ssh.service"));
        assert!(!docker.covers("/system.slice"));
        assert!(!docker.covers("/system.slice-docker-abc.scope"));
        let kubepods = CgroupPattern::new("/kubepods").expect("pattern");
        assert_eq!((kubepods.parent(), kubepods.literal()), ("", Some("/kubepods")));
        assert!(kubepods.covers("/kubepods/burstable/pod1/c1"));
        assert!(!kubepods.covers("/kubepods.slice"));
    }

    #[test]
    fn a_cgroup_pattern_never_means_the_whole_node() {
        for text in ["/", "", "kubepods", "/a/../b", "/a/", "//a", "/*/b", "/a*/b", "/*", "/[a"] {
            assert!(CgroupPattern::new(text).is_err(), "{text}");
        }
    }
}
