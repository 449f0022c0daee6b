//! What of a Pod goes into records, and which labels its metrics get.

use std::sync::Arc;

use super::{
    pod::{Labels, Pod},
    settings::Settings,
};
use crate::{
    config::{Globs, Slash},
    record::{ANNOTATION_ATTRIBUTE, LABEL_ATTRIBUTE, Metadata, NAMESPACE_LABEL_ATTRIBUTE},
};

/// The allowlists, ready for use.
#[derive(Clone, Debug)]
pub struct Projection {
    labels: Globs,
    annotations: Globs,
    namespace_labels: Globs,
}

impl Projection {
    /// Compiles the allowlists of a checked configuration.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        // Only a wrong glob is an error, and such a configuration is refused.
        let globs = |patterns: &[String]| Globs::new(patterns, Slash::IsPlain).unwrap_or_default();
        Self {
            labels: globs(&settings.labels),
            annotations: globs(&settings.annotations),
            namespace_labels: globs(&settings.namespace_labels),
        }
    }

    /// The annotations that are kept of a Pod.
    #[must_use]
    pub const fn annotations(&self) -> &Globs {
        &self.annotations
    }

    /// What records have of a Pod.
    #[must_use]
    pub fn metadata(&self, pod: &Arc<Pod>) -> Metadata {
        let mut attributes = Vec::new();
        for owner in &pod.owners {
            if let Some(name) = owner.attribute() {
                attributes.push((name.into(), Arc::clone(&owner.name)));
            }
        }
        let mut add = |prefix: &str, labels: &Labels, globs: &Globs| {
            let allowed = labels.iter().filter(|(key, _)| globs.is_match(key));
            attributes.extend(allowed.map(|(key, value)| (format!("{prefix}{key}").into(), value.as_str().into())));
        };
        add(LABEL_ATTRIBUTE, &pod.labels, &self.labels);
        add(ANNOTATION_ATTRIBUTE, &pod.annotations, &self.annotations);
        add(NAMESPACE_LABEL_ATTRIBUTE, &pod.namespace_labels, &self.namespace_labels);
        let workload = pod.workload().map(|owner| Arc::clone(&owner.name));
        Metadata { workload, attributes, pod: Some(Arc::clone(pod)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::Owner;

    #[test]
    fn only_what_is_allowed_goes_into_records() {
        let labels = |entries: &[(&str, &str)]| -> Labels {
            entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let owner = |kind: &str, name: &str| Owner { kind: kind.into(), name: name.into(), uid: "".into() };
        let pod = Arc::new(Pod {
            labels: labels(&[("app", "web"), ("app.kubernetes.io/name", "shop"), ("secret", "x")]),
            annotations: labels(&[("sidestep.dev/logs", "on"), ("team", "a")]),
            namespace_labels: Arc::new(labels(&[("env", "prod"), ("other", "y")])),
            owners: vec![owner("ReplicaSet", "web-1"), owner("Rollout", "web")],
            ..Pod::default()
        });
        let names = |projection: &Projection| -> Vec<String> {
            let metadata = projection.metadata(&pod);
            metadata.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        let settings = Settings {
            labels: vec!["app*".to_owned()],
            annotations: vec!["team".to_owned()],
            namespace_labels: vec!["env".to_owned()],
            ..Settings::default()
        };
        assert_eq!(
            names(&Projection::new(&settings)),
            [
                "k8s.replicaset.name=web-1",
                "k8s.pod.label.app=web",
                "k8s.pod.label.app.kubernetes.io/name=shop",
                "k8s.pod.annotation.team=a",
                "k8s.namespace.label.env=prod",
            ]
        );
        let none = Settings { labels: Vec::new(), ..Settings::default() };
        assert_eq!(names(&Projection::new(&none)), ["k8s.replicaset.name=web-1"]);
        let metadata = Projection::new(&none).metadata(&pod);
        assert_eq!(metadata.workload.as_deref(), Some("web"), "also of a kind that has no attribute");
    }
}
