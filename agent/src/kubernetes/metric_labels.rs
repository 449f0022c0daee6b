//! Labels of Pods as labels of metrics.

use std::collections::{BTreeMap, BTreeSet};

use super::{pod::Labels, settings::Settings};
use crate::config::{Globs, Slash};

/// Labels of one Pod that metrics get; the others are left out, by the order of their keys.
const MAX_LABELS: usize = 32;

/// The allowlist, ready for use.
#[derive(Clone, Debug)]
pub struct MetricLabels(Globs);

impl MetricLabels {
    /// Compiles the allowlist of a checked configuration.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self(Globs::new(&settings.metric_labels, Slash::IsPlain).unwrap_or_default())
    }

    /// Whether none is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values of the labels of a Pod. Keys that become one name get a number at the end, by their order, as
    /// kube-state-metrics does it.
    #[must_use]
    pub fn of(&self, labels: &Labels) -> Vec<(String, String)> {
        let allowed: Vec<_> = labels.iter().filter(|(key, _)| self.0.is_match(key)).take(MAX_LABELS).collect();
        let names: Vec<_> = allowed.iter().map(|(key, _)| name(key)).collect();
        let mut taken: BTreeSet<_> = names.iter().cloned().collect();
        let mut numbers = BTreeMap::new();
        let mut unique = |name: &String| {
            if names.iter().filter(|other| *other == name).count() == 1 {
                return name.clone();
            }
            let number = numbers.entry(name.clone()).or_insert(0);
            loop {
                *number += 1;
                let numbered = format!("{name}_conflict{number}");
                // It may be that of another key.
                if taken.insert(numbered.clone()) {
                    return numbered;
                }
            }
        };
        allowed.into_iter().zip(&names).map(|((_, value), name)| (unique(name), value.clone())).collect()
    }
}

/// `app.kubernetes.io/name` is `label_app_kubernetes_io_name`.
fn name(key: &str) -> String {
    let clean = |character: char| if character.is_ascii_alphanumeric() { character } else { '_' };
    format!("label_{}", key.chars().map(clean).collect::<String>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> MetricLabels {
        MetricLabels::new(&Settings { metric_labels: vec!["*".to_owned()], ..Settings::default() })
    }

    fn labels(entries: &[(&str, &str)]) -> Labels {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn names_are_those_of_kube_state_metrics() {
        let names = |metric_labels: &MetricLabels, entries: &[(&str, &str)]| -> Vec<String> {
            metric_labels.of(&labels(entries)).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        assert_eq!(names(&all(), &[("app.kubernetes.io/name", "web")]), ["label_app_kubernetes_io_name=web"]);
        let conflict = [("a-b", "1"), ("a.b", "2"), ("c", "3")];
        assert_eq!(names(&all(), &conflict), ["label_a_b_conflict1=1", "label_a_b_conflict2=2", "label_c=3"]);
        let twice = [("a-b", "1"), ("a.b", "2"), ("a_b_conflict1", "3")];
        let expected = ["label_a_b_conflict2=1", "label_a_b_conflict3=2", "label_a_b_conflict1=3"];
        assert_eq!(names(&all(), &twice), expected);
        let only = MetricLabels::new(&Settings { metric_labels: vec!["app*".to_owned()], ..Settings::default() });
        assert_eq!(names(&only, &[("app", "web"), ("secret", "x")]), ["label_app=web"]);
        assert!(MetricLabels::new(&Settings::default()).is_empty());
    }

    proptest! {
        /// Whatever a Pod has: names that Prometheus takes, none twice, and not too many.
        #[test]
        fn names_are_valid_and_unique(entries in proptest::collection::btree_map("\\PC{0,12}", "\\PC{0,8}", 0..64)) {
            let found = all().of(&entries);
            prop_assert!(found.len() <= MAX_LABELS);
            let mut names: Vec<_> = found.iter().map(|(name, _)| name.clone()).collect();
            prop_assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')));
            names.sort_unstable();
            names.dedup();
            prop_assert_eq!(names.len(), found.len());
        }
    }
}
