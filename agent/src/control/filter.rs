//! Which lines a client of the tap wants: globs over who wrote, a regular expression over what.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use crate::record::{Class, Stream};

/// The largest compiled regular expression, in bytes.
const REGEX_BYTES: usize = 1 << 20;

/// What the client asks for. An empty list matches everything; several entries of one list are alternatives.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Filter {
    /// Globs over `k8s.pod.name`.
    pub pods: Vec<String>,
    /// Globs over `k8s.namespace.name`.
    pub namespaces: Vec<String>,
    /// Globs over `container.name` or `container.id`.
    pub containers: Vec<String>,
    /// Classes.
    pub classes: Vec<Class>,
    /// Regular expression that the line's bytes must match somewhere.
    pub grep: Option<String>,
}

/// The filter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A glob is malformed.
    #[error("not a valid glob: {0}")]
    Glob(#[from] globset::Error),
    /// The regular expression is malformed or too large.
    #[error("not a valid regular expression: {0}")]
    Grep(#[from] regex::Error),
}

/// A [`Filter`], ready to match.
#[derive(Debug)]
pub struct Matcher {
    pods: Option<GlobSet>,
    namespaces: Option<GlobSet>,
    containers: Option<GlobSet>,
    classes: Vec<Class>,
    grep: Option<regex::bytes::Regex>,
}

impl Matcher {
    /// Compiles a filter.
    ///
    /// # Errors
    /// A glob or the regular expression is not valid, or too large.
    pub fn new(filter: &Filter) -> Result<Self, FilterError> {
        let compile = |pattern: &String| regex::bytes::RegexBuilder::new(pattern).size_limit(REGEX_BYTES).build();
        Ok(Self {
            pods: globs(&filter.pods)?,
            namespaces: globs(&filter.namespaces)?,
            containers: globs(&filter.containers)?,
            classes: filter.classes.clone(),
            grep: filter.grep.as_ref().map(compile).transpose()?,
        })
    }

    /// Whether lines of this stream are wanted.
    #[must_use]
    pub fn matches_stream(&self, stream: &Stream) -> bool {
        let resource = &stream.resource;
        let matches = |globs: &Option<GlobSet>, values: &[Option<&str>]| {
            globs.as_ref().is_none_or(|globs| values.iter().flatten().any(|value| globs.is_match(value)))
        };
        (self.classes.is_empty() || self.classes.contains(&stream.class))
            && matches(&self.namespaces, &[resource.namespace.as_deref()])
            && matches(&self.pods, &[resource.pod.as_deref()])
            && matches(&self.containers, &[resource.container_name.as_deref(), resource.container_id.as_deref()])
    }

    /// Whether a line with these bytes is wanted.
    #[must_use]
    pub fn matches_body(&self, body: &[u8]) -> bool {
        self.grep.as_ref().is_none_or(|grep| grep.is_match(body))
    }
}

fn globs(patterns: &[String]) -> Result<Option<GlobSet>, globset::Error> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        // Names are not paths: `*` matches everything.
        set.add(GlobBuilder::new(pattern).literal_separator(false).build()?);
    }
    set.build().map(Some)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        record::{IoStream, Origin, Resource},
        telemetry::testing::resource,
    };

    fn stream(class: Class, resource: Arc<Resource>) -> Stream {
        let origin = Origin::Stdio(IoStream::Stdout);
        Stream { key: "k".into(), class, origin, resource, account: Arc::default(), source: None }
    }

    fn list(patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(|pattern| (*pattern).to_owned()).collect()
    }

    #[test]
    fn matches_by_globs_and_class() {
        let web = stream(Class::Pod, resource());
        let node = stream(Class::Server, Arc::default());
        let check = |filter: Filter| {
            let matcher = Matcher::new(&filter).expect("a valid filter");
            (matcher.matches_stream(&web), matcher.matches_stream(&node))
        };
        assert_eq!(check(Filter::default()), (true, true));
        assert_eq!(check(Filter { pods: list(&["web-*"]), ..Filter::default() }), (true, false));
        assert_eq!(check(Filter { pods: list(&["api", "w?b-{7,8}*"]), ..Filter::default() }), (true, false));
        assert_eq!(check(Filter { pods: list(&["web"]), ..Filter::default() }), (false, false));
        assert_eq!(check(Filter { containers: list(&["c0ffee*"]), ..Filter::default() }), (true, false));
        assert_eq!(check(Filter { containers: list(&["web"]), ..Filter::default() }), (true, false));
        assert_eq!(check(Filter { classes: vec![Class::Server], ..Filter::default() }), (false, true));
        let both = Filter { namespaces: list(&["shop"]), pods: list(&["api*"]), ..Filter::default() };
        assert_eq!(check(both), (false, false));
    }

    #[test]
    fn greps_bytes_that_are_not_text() {
        let filter = Filter { grep: Some("(?i)error|x{2}".to_owned()), ..Filter::default() };
        let matcher = Matcher::new(&filter).expect("a valid filter");
        assert!(matcher.matches_body(b"\xff\x00 ERROR"));
        assert!(matcher.matches_body(b"axxb"));
        assert!(!matcher.matches_body(b"axb"));
    }

    #[test]
    fn refuses_what_is_malformed_or_too_large() {
        let glob = Filter { pods: list(&["web-["]), ..Filter::default() };
        assert!(matches!(Matcher::new(&glob), Err(FilterError::Glob(_))));
        for pattern in ["(", "(a{1000}){1000}"] {
            let grep = Filter { grep: Some(pattern.to_owned()), ..Filter::default() };
            assert!(matches!(Matcher::new(&grep), Err(FilterError::Grep(_))), "{pattern}");
        }
    }
}
