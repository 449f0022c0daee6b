//! Who decides when several declare the same: each field by itself, from the lowest to the highest
//!
//! 1. the configuration's rule (`capture.rules`),
//! 2. `ClusterSidestepPolicy`,
//! 3. `SidestepPolicy`,
//! 4. the Pod's annotations,
//! 5. its annotations for the container;
//!
//! among policies of one kind the higher `priority`, then the older, then the first by name.

use std::{cmp::Reverse, fmt, sync::Arc};

use serde::Serialize;

use super::settings::{Field, Settings};

/// Names a policy.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Key {
    /// `None` for a `ClusterSidestepPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

/// For whom a policy may decide.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scope {
    /// For the Pods of its namespace.
    Namespaced,
    /// For all Pods of the cluster.
    Cluster,
}

impl Scope {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Namespaced, Self::Cluster];

    /// Its name in metrics and in the status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespaced => "namespaced",
            Self::Cluster => "cluster",
        }
    }
}

impl Key {
    /// For whom the policy may decide.
    #[must_use]
    pub const fn scope(&self) -> Scope {
        if self.namespace.is_some() { Scope::Namespaced } else { Scope::Cluster }
    }

    /// The resource's kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        if self.namespace.is_some() { "SidestepPolicy" } else { "ClusterSidestepPolicy" }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind(), self.name),
            None => write!(f, "{} {}", self.kind(), self.name),
        }
    }
}

/// Where something is declared.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// `capture.rules[n]` of the configuration.
    Rule(usize),
    /// A policy.
    Policy(Key),
    /// An annotation of the Pod, by its key.
    Annotation(String),
}

impl Origin {
    /// Whether the configuration has declared it.
    #[must_use]
    pub const fn is_rule(&self) -> bool {
        matches!(self, Self::Rule(_))
    }

    /// Whether an administrator of the cluster or of the node has declared it: one who may choose any topic.
    #[must_use]
    pub const fn is_administrators(&self) -> bool {
        match self {
            Self::Rule(_) => true,
            Self::Policy(key) => key.namespace.is_none(),
            Self::Annotation(_) => false,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(index) => write!(f, "capture.rules[{index}]"),
            Self::Policy(key) => write!(f, "{key}"),
            Self::Annotation(key) => write!(f, "annotation {key}"),
        }
    }
}

/// How high a source stands; the greater one wins.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Rank {
    /// The configuration.
    Rule,
    /// A `ClusterSidestepPolicy`.
    Cluster(Standing),
    /// A `SidestepPolicy`.
    Namespaced(Standing),
    /// An annotation for all containers of the Pod.
    Pod,
    /// An annotation for the container.
    Container,
}

/// How high a policy stands among those of its kind.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Standing {
    /// `spec.priority`.
    pub priority: i32,
    /// `metadata.creationTimestamp`, seconds since the Unix epoch.
    pub created: Reverse<i64>,
    /// `metadata.name`.
    pub name: Reverse<Arc<str>>,
}

impl Rank {
    /// Whether nothing but age and name decides between the two.
    fn is_level_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cluster(one), Self::Cluster(two)) | (Self::Namespaced(one), Self::Namespaced(two)) => {
                one.priority == two.priority
            }
            _ => false,
        }
    }
}

/// One that declares something for a container.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    /// How high it stands.
    pub rank: Rank,
    /// Where the field is declared.
    pub origin: OriginOf,
    /// What it declares.
    pub settings: &'a Settings,
}

/// Where the fields of a source are declared.
#[derive(Clone, Debug)]
pub enum OriginOf {
    /// All at one place.
    One(Origin),
    /// Each in an annotation of its own, for this container or for all.
    Annotations(Option<Arc<str>>),
}

impl Source<'_> {
    fn origin(&self, field: Field) -> Origin {
        match &self.origin {
            OriginOf::One(origin) => origin.clone(),
            OriginOf::Annotations(container) => {
                Origin::Annotation(super::annotations::key(field, container.as_deref()))
            }
        }
    }
}

/// What is in force for a container.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Effective {
    /// The fields that somebody has declared.
    pub settings: Settings,
    /// Who has, one a field.
    pub decisions: Vec<Decision>,
}

/// What is in force for one field.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Decision {
    /// Which.
    pub field: Field,
    /// As people read it.
    pub value: String,
    /// Who has decided it.
    pub origin: Origin,
    /// Who has declared it too, the highest first, and what.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overridden: Vec<Overridden>,
}

/// What a source has declared for nothing.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Overridden {
    /// Who.
    pub origin: Origin,
    /// What.
    pub value: String,
    /// The policy of the same kind and priority that has declared something else and is preferred only as it is older or
    /// has the name that comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflicts_with: Option<Key>,
}

impl Effective {
    /// Brings together what sources declare, in whatever order they come. No two have the same rank.
    #[must_use]
    pub fn of(mut sources: Vec<Source<'_>>) -> Self {
        sources.sort_by(|one, two| two.rank.cmp(&one.rank));
        let mut effective = Self::default();
        for field in Field::ALL {
            let declaring: Vec<_> = sources.iter().filter(|source| source.settings.declares(field)).collect();
            let Some((winner, others)) = declaring.split_first() else { continue };
            effective.settings.take(field, winner.settings);
            let overridden = others.iter().enumerate().map(|(index, source)| {
                let value = source.settings.value(field).unwrap_or_default();
                // The first that is level with it: the one that all of them have lost to.
                let preferred = declaring[..=index].iter().find(|other| other.rank.is_level_with(&source.rank));
                let preferred = preferred.filter(|other| other.settings.value(field).as_ref() != Some(&value));
                let conflicts_with = preferred.and_then(|other| match other.origin(field) {
                    Origin::Policy(key) => Some(key),
                    _ => None,
                });
                Overridden { origin: source.origin(field), value, conflicts_with }
            });
            effective.decisions.push(Decision {
                field,
                value: winner.settings.value(field).unwrap_or_default(),
                origin: winner.origin(field),
                overridden: overridden.collect(),
            });
        }
        effective
    }

    /// Who has decided a field, if anybody has.
    #[must_use]
    pub fn decision(&self, field: Field) -> Option<&Decision> {
        self.decisions.iter().find(|decision| decision.field == field)
    }

    /// Lets the first decide a field whose value `holds`; the others before it are returned, and stand behind it. Nothing changes
    /// where none does.
    pub(super) fn fall_back(&mut self, field: Field, holds: impl Fn(&Origin, &str) -> bool) -> Vec<Overridden> {
        let Some(decision) = self.decisions.iter_mut().find(|decision| decision.field == field) else {
            return Vec::new();
        };
        if holds(&decision.origin, &decision.value) {
            return Vec::new();
        }
        let first = Overridden { origin: decision.origin.clone(), value: decision.value.clone(), conflicts_with: None };
        let next = decision.overridden.iter().position(|next| holds(&next.origin, &next.value));
        let refused = &decision.overridden[..next.unwrap_or(decision.overridden.len())];
        let refused: Vec<_> = [first.clone()].into_iter().chain(refused.iter().cloned()).collect();
        if let Some(next) = next {
            let Overridden { origin, value, .. } = decision.overridden.remove(next);
            (decision.origin, decision.value) = (origin, value);
            decision.overridden.insert(0, first);
        }
        refused
    }

    /// Each policy that has lost a field only as another is older, with the field and that other.
    pub fn conflicts(&self) -> impl Iterator<Item = (&Key, Field, &Key)> {
        self.decisions.iter().flat_map(|decision| {
            decision.overridden.iter().filter_map(|overridden| match (&overridden.origin, &overridden.conflicts_with) {
                (Origin::Policy(loser), Some(winner)) => Some((loser, decision.field, winner)),
                _ => None,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(namespace: Option<&str>, name: &str, priority: i32, created: i64) -> (Rank, OriginOf) {
        let standing = Standing { priority, created: Reverse(created), name: Reverse(name.into()) };
        let rank = if namespace.is_some() { Rank::Namespaced(standing) } else { Rank::Cluster(standing) };
        let key = Key { namespace: namespace.map(Into::into), name: name.into() };
        (rank, OriginOf::One(Origin::Policy(key)))
    }

    fn topic(name: &str) -> Settings {
        Settings { topic: Some(name.to_owned()), ..Settings::default() }
    }

    fn effective(sources: &[((Rank, OriginOf), Settings)]) -> Effective {
        let source = |((rank, origin), settings): &'_ ((Rank, OriginOf), Settings)| {
            (rank.clone(), origin.clone(), settings.clone())
        };
        let owned: Vec<_> = sources.iter().map(source).collect();
        Effective::of(
            owned
                .iter()
                .map(|(rank, origin, settings)| Source { rank: rank.clone(), origin: origin.clone(), settings })
                .collect(),
        )
    }

    #[test]
    fn each_field_is_decided_by_the_highest_that_declares_it() {
        let rule = (Rank::Rule, OriginOf::One(Origin::Rule(2)));
        let result = effective(&[
            (rule, Settings { enabled: Some(false), tenant: Some("rule".to_owned()), ..topic("rule") }),
            (policy(None, "all", 100, 1), topic("cluster")),
            (policy(Some("shop"), "own", -100, 9), Settings { tenant: Some("shop".to_owned()), ..topic("namespaced") }),
            ((Rank::Pod, OriginOf::Annotations(None)), topic("pod")),
            ((Rank::Container, OriginOf::Annotations(Some("app".into()))), topic("container")),
        ]);
        let told: Vec<_> =
            result.decisions.iter().map(|decision| (decision.field, decision.origin.to_string())).collect();
        assert_eq!(
            told,
            [
                (Field::Enabled, "capture.rules[2]".to_owned()),
                (Field::Topic, "annotation app.sidestep.dev/topic".to_owned()),
                (Field::Tenant, "SidestepPolicy shop/own".to_owned()),
            ]
        );
        let over: Vec<_> = result.decisions[1].overridden.iter().map(|over| over.value.as_str()).collect();
        assert_eq!(over, ["pod", "namespaced", "cluster", "rule"]);
        assert_eq!(result.settings.topic.as_deref(), Some("container"));
        assert_eq!(result.conflicts().count(), 0);
    }

    #[test]
    fn among_equals_the_older_wins_and_the_other_is_in_conflict() {
        let result = effective(&[
            (policy(Some("a"), "young", 5, 200), topic("young")),
            (policy(Some("a"), "old", 5, 100), topic("old")),
            (policy(Some("a"), "agrees", 5, 300), topic("old")),
            (policy(Some("a"), "low", 4, 1), topic("low")),
            (policy(None, "cluster", 5, 1), topic("cluster")),
        ]);
        assert_eq!(result.settings.topic.as_deref(), Some("old"));
        let conflicts: Vec<_> =
            result.conflicts().map(|(loser, field, winner)| (&*loser.name, field, &*winner.name)).collect();
        assert_eq!(conflicts, [("young", Field::Topic, "old")], "who says the same or stands lower is in no conflict");
        let same_age = effective(&[(policy(None, "b", 0, 7), topic("b")), (policy(None, "a", 0, 7), topic("a"))]);
        assert_eq!(same_age.settings.topic.as_deref(), Some("a"));
    }

    fn settings() -> impl Strategy<Value = Settings> {
        let name = || proptest::option::of("[a-c]");
        (proptest::option::of(any::<bool>()), name(), name(), name()).prop_map(|(enabled, topic, index, tenant)| {
            Settings { enabled, topic, index, tenant, ..Settings::default() }
        })
    }

    proptest! {
        /// Whatever the order of arrival, the same is in force, decided by the same, with the same conflicts.
        #[test]
        fn the_order_of_arrival_never_matters(
            policies in proptest::collection::btree_map((any::<bool>(), "[a-e]"), (-1..2_i32, 0..3_i64, settings()), 0..8),
            own in settings(),
            container in settings(),
            seed in any::<prop::sample::Index>(),
        ) {
            let mut sources: Vec<_> = policies.into_iter().map(|((cluster, name), (priority, created, settings))| {
                (policy((!cluster).then_some("shop"), &name, priority, created), settings)
            }).collect();
            sources.push(((Rank::Pod, OriginOf::Annotations(None)), own));
            sources.push(((Rank::Container, OriginOf::Annotations(Some("app".into()))), container.clone()));
            let first = effective(&sources);
            let middle = seed.index(sources.len());
            sources.rotate_left(middle);
            prop_assert_eq!(&first, &effective(&sources));
            sources.reverse();
            prop_assert_eq!(&first, &effective(&sources));
            for field in Field::ALL {
                let declared = sources.iter().any(|(_, settings)| settings.declares(field));
                prop_assert_eq!(first.decision(field).is_some(), declared);
                if container.declares(field) {
                    prop_assert_eq!(first.settings.value(field), container.value(field));
                }
            }
            for (loser, _, winner) in first.conflicts() {
                prop_assert!(loser != winner && loser.kind() == winner.kind());
            }
        }
    }
}
