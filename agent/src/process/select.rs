//! Which lines are meant: by who wrote them, how grave they are, and what they say. Used for the `filter` of a sink and
//! the `match` of a processor.

use kube::core::{Selector as LabelSelector, SelectorExt as _};
use regex::bytes::Regex;
use serde::{Deserialize, Serialize};

use super::pattern;
use crate::{
    config::{Globs, Slash},
    kubernetes::{Labels, selector},
    record::{Class, Metadata, Severity, Stream},
};

/// Lines for which all that is given holds; what is left out says nothing.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selector {
    /// Classes of records.
    pub classes: Vec<Class>,
    /// Globs over `k8s.namespace.name`. What is unknown matches no glob, here and below.
    pub namespace: Vec<String>,
    /// Globs over `k8s.pod.name`.
    pub pod: Vec<String>,
    /// Globs over `container.name`.
    pub container: Vec<String>,
    /// A selector of Kubernetes over the labels of the Pod, such as `app in (web, api), tier=front, !canary`. It selects
    /// nothing of which labels are not known.
    pub labels: Option<String>,
    /// The same over the labels of the namespace.
    pub namespace_labels: Option<String>,
    /// Globs over the name of the workload: the Deployment, `StatefulSet`, `CronJob`, ... that has made the Pod.
    pub workload: Vec<String>,
    /// The least severity.
    pub severity_at_least: Option<Severity>,
    /// The severity that lines are below.
    pub severity_below: Option<Severity>,
    /// Whether lines without a known severity pass the two above; default false. Severity is known where bodies are
    /// parsed (`lines.parse`).
    pub unknown_severity: bool,
    /// A regular expression that the body matches somewhere.
    pub body: Option<String>,
    /// A regular expression that the body matches nowhere.
    pub body_not: Option<String>,
}

/// One thing that is wrong with a [`Selector`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SelectorProblem {
    /// The option, below the selector.
    pub option: &'static str,
    /// What is wrong with it, and what is allowed.
    pub problem: String,
}

/// A [`Selector`], ready for use.
#[derive(Clone, Debug)]
pub struct Selection {
    classes: Vec<Class>,
    namespace: Globs,
    pod: Globs,
    container: Globs,
    labels: Option<LabelSelector>,
    namespace_labels: Option<LabelSelector>,
    workload: Globs,
    severity_at_least: Option<Severity>,
    severity_below: Option<Severity>,
    unknown_severity: bool,
    body: Option<Regex>,
    body_not: Option<Regex>,
}

impl Selector {
    /// Compiles it.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn compile(&self) -> Result<Selection, Vec<SelectorProblem>> {
        let mut problems = Vec::new();
        let mut wrong = |option, problem: String| problems.push(SelectorProblem { option, problem });
        let mut globs = |option, patterns: &[String]| match Globs::new(patterns, Slash::IsPlain) {
            Ok(globs) => Some(globs),
            Err(errors) => {
                for (index, error) in errors {
                    wrong(option, format!("[{index}]: {error}"));
                }
                None
            }
        };
        let namespace = globs("namespace", &self.namespace);
        let pod = globs("pod", &self.pod);
        let container = globs("container", &self.container);
        let workload = globs("workload", &self.workload);
        let mut labels = |option, text: &Option<String>| match text.as_deref().map(selector::parse) {
            None => Some(None),
            Some(Ok(selector)) => Some(Some(selector)),
            Some(Err(error)) => {
                wrong(option, error);
                None
            }
        };
        let pod_labels = labels("labels", &self.labels);
        let namespace_labels = labels("namespace_labels", &self.namespace_labels);
        let mut regex = |option, pattern: &Option<String>| match pattern.as_deref().map(pattern::compile) {
            None => Some(None),
            Some(Ok(regex)) => Some(Some(regex)),
            Some(Err(error)) => {
                wrong(option, error);
                None
            }
        };
        let body = regex("body", &self.body);
        let body_not = regex("body_not", &self.body_not);
        if let (Some(least), Some(below)) = (self.severity_at_least, self.severity_below)
            && least >= below
        {
            let problem = "must be above `severity_at_least`: else no line is meant".to_owned();
            wrong("severity_below", problem);
        }
        if self.unknown_severity && self.severity_at_least.is_none() && self.severity_below.is_none() {
            let problem = "says something only beside `severity_at_least` or `severity_below`".to_owned();
            wrong("unknown_severity", problem);
        }
        let told = (pod_labels, namespace_labels, workload);
        match (namespace, pod, container, told, body, body_not) {
            (
                Some(namespace),
                Some(pod),
                Some(container),
                (Some(labels), Some(namespace_labels), Some(workload)),
                Some(body),
                Some(body_not),
            ) if problems.is_empty() => Ok(Selection {
                classes: self.classes.clone(),
                namespace,
                pod,
                container,
                labels,
                namespace_labels,
                workload,
                severity_at_least: self.severity_at_least,
                severity_below: self.severity_below,
                unknown_severity: self.unknown_severity,
                body,
                body_not,
            }),
            _ => Err(problems),
        }
    }

    /// Whether it goes by what the API server tells of a Pod.
    #[must_use]
    pub fn needs_metadata(&self) -> bool {
        self.labels.is_some() || self.namespace_labels.is_some() || !self.workload.is_empty()
    }

    /// Whether every line is meant.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

impl Selection {
    /// Whether lines of this stream can be meant; the answer is the same as long as the stream lives.
    #[must_use]
    pub fn matches_stream(&self, stream: &Stream) -> bool {
        let resource = &stream.resource;
        let names = [
            (&self.namespace, &resource.namespace),
            (&self.pod, &resource.pod),
            (&self.container, &resource.container_name),
        ];
        (self.classes.is_empty() || self.classes.contains(&stream.class))
            && names
                .into_iter()
                .all(|(globs, name)| globs.is_empty() || name.as_deref().is_some_and(|name| globs.is_match(name)))
            && self.matches_metadata(resource.metadata.as_deref())
    }

    fn matches_metadata(&self, metadata: Option<&Metadata>) -> bool {
        let pod = metadata.and_then(|metadata| metadata.pod.as_deref());
        let labels = [
            (&self.labels, pod.map(|pod| &pod.labels)),
            (&self.namespace_labels, pod.map(|pod| &*pod.namespace_labels)),
        ];
        let workload = metadata.and_then(|metadata| metadata.workload.as_deref());
        let is_selected = |(selector, labels): (&Option<LabelSelector>, Option<&Labels>)| {
            selector.as_ref().is_none_or(|selector| labels.is_some_and(|labels| selector.matches(labels)))
        };
        labels.into_iter().all(is_selected)
            && (self.workload.is_empty() || workload.is_some_and(|workload| self.workload.is_match(workload)))
    }

    /// Whether all lines of a stream are meant that matches.
    #[must_use]
    pub const fn takes_whole_streams(&self) -> bool {
        self.severity_at_least.is_none()
            && self.severity_below.is_none()
            && self.body.is_none()
            && self.body_not.is_none()
    }

    /// Whether a line of a stream that matches is meant.
    #[must_use]
    pub fn matches_line(&self, severity: Option<Severity>, body: &[u8]) -> bool {
        self.matches_severity(severity)
            && self.body.as_ref().is_none_or(|regex| regex.is_match(body))
            && self.body_not.as_ref().is_none_or(|regex| !regex.is_match(body))
    }

    fn matches_severity(&self, severity: Option<Severity>) -> bool {
        match severity {
            Some(severity) => {
                self.severity_at_least.is_none_or(|least| severity >= least)
                    && self.severity_below.is_none_or(|below| severity < below)
            }
            None => self.unknown_severity || (self.severity_at_least.is_none() && self.severity_below.is_none()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        record::{IoStream, Origin},
        sinks::testing::{pod_stream, stream},
    };

    fn selection(value: serde_json::Value) -> Selection {
        let selector: Selector = serde_json::from_value(value).expect("parses");
        selector.compile().expect("compiles")
    }

    #[test]
    fn streams_are_told_apart_by_who_writes() {
        let web = pod_stream("shop", "web-1", "app");
        let other = pod_stream("team-a", "web-1", "proxy");
        let node = stream(Class::Server, Origin::Stdio(IoStream::Stdout), "", "", "");
        let check = |value| {
            let selection = selection(value);
            [&web, &other, &node].map(|stream| selection.matches_stream(stream))
        };
        assert_eq!(check(json!({})), [true, true, true]);
        assert_eq!(check(json!({"namespace": ["shop"]})), [true, false, false]);
        assert_eq!(check(json!({"namespace": ["shop", "team-*"], "pod": ["web-*"]})), [true, true, false]);
        assert_eq!(check(json!({"container": ["app"], "namespace": ["team-*"]})), [false, false, false]);
        assert_eq!(check(json!({"classes": ["server"]})), [false, false, true]);
    }

    #[test]
    fn what_is_unknown_matches_nothing() {
        let unknown = std::sync::Arc::new(Stream {
            key: "k".into(),
            class: Class::Pod,
            origin: Origin::Stdio(IoStream::Stdout),
            resource: std::sync::Arc::default(),
            account: std::sync::Arc::default(),
            source: None,
        });
        assert!(!selection(json!({"pod": ["*"]})).matches_stream(&unknown));
        let grave = selection(json!({"severity_at_least": "warn"}));
        assert!(!grave.matches_line(None, b"x") && grave.matches_line(Some(Severity::Warn), b"x"));
        let grave = selection(json!({"severity_at_least": "warn", "unknown_severity": true}));
        assert!(grave.matches_line(None, b"x") && !grave.matches_line(Some(Severity::Info), b"x"));
    }

    #[test]
    fn lines_are_told_apart_by_severity_and_body() {
        let selection = selection(json!({"severity_below": "error", "body": "(?i)timeout", "body_not": "health"}));
        assert!(!selection.takes_whole_streams());
        assert!(selection.matches_line(Some(Severity::Info), b"Timeout \xff"));
        assert!(!selection.matches_line(Some(Severity::Error), b"timeout"));
        assert!(!selection.matches_line(Some(Severity::Info), b"timeout of health check"));
        assert!(!selection.matches_line(Some(Severity::Info), b"fine"));
    }

    #[test]
    fn every_mistake_is_named() {
        let selector: Selector = serde_json::from_value(json!({
            "namespace": ["a", "["], "pod": [""], "severity_at_least": "error", "severity_below": "warn",
            "body": "(", "body_not": "a{9999999}",
        }))
        .expect("parses");
        let problems = selector.compile().expect_err("wrong");
        let options: Vec<_> = problems.iter().map(|problem| problem.option).collect();
        assert_eq!(options, ["namespace", "pod", "body", "body_not", "severity_below"]);
        assert!(problems[0].problem.starts_with("[1]: "), "{problems:?}");
        let alone = Selector { unknown_severity: true, ..Selector::default() };
        assert_eq!(alone.compile().expect_err("wrong")[0].option, "unknown_severity");
    }
}
