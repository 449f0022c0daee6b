//! Where the records of a container go, of what was declared: what whoever declared it may choose.

use std::sync::Arc;

use super::{
    allowed::Allowed,
    annotations::{Problem, Reason},
    precedence::{Effective, Origin},
    settings::Field,
};
use crate::{
    config::Config,
    record::{Chosen, Route},
    sinks::SinkSettings,
};

/// The most names of Pods and policies of namespaces that are kept for one container's topic, or index.
const MAX_CHOSEN: usize = 4;

/// What Pods and policies of namespaces may choose, by the configuration.
#[derive(Clone, Debug, Default)]
pub struct Permits {
    tenants: Allowed,
    topics: Vec<Allowed>,
    indices: Vec<Allowed>,
    sinks: Vec<String>,
}

impl Permits {
    /// What a configuration permits.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut permits = Self { tenants: config.policies.allow_tenants.clone(), ..Self::default() };
        for sink in &config.sinks {
            permits.sinks.push(sink.name().to_owned());
            match sink {
                SinkSettings::Kafka(kafka) => permits.topics.push(kafka.allow_declared.clone()),
                SinkSettings::Elasticsearch(elasticsearch) => {
                    permits.indices.push(elasticsearch.allow_declared.clone());
                }
                _ => {}
            }
        }
        permits
    }

    /// The route of a container of `namespace`, and what of it does not hold: a name that may not be chosen leaves the decision
    /// to who comes next. Each sink checks the names once more: one may permit what another does not.
    #[must_use]
    pub fn route(&self, effective: &mut Effective, namespace: Option<&str>) -> (Option<Arc<Route>>, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut chosen = |field: Field, lists: &[Allowed], what: &str, option: &str| {
            let may_choose = |origin: &Origin, name: &str| {
                origin.is_administrators() || lists.iter().any(|allowed| allowed.permits(name, namespace))
            };
            for refusal in effective.fall_back(field, may_choose) {
                let message = format!("may not be chosen here; {option} says which {what} may");
                problems.push(refused(&refusal.origin, field, &refusal.value, &message));
            }
            let decision = effective.decision(field)?;
            let next = decision.overridden.iter().map(|next| (&next.origin, &*next.value));
            let holding = [(&decision.origin, &*decision.value)].into_iter().chain(next);
            ordered(holding.filter(|(origin, name)| may_choose(origin, name)))
        };
        let mut route = Route {
            topic: chosen(Field::Topic, &self.topics, "topics", "`allow_declared` of the sinks of type `kafka`"),
            index: chosen(
                Field::Index,
                &self.indices,
                "indices",
                "`allow_declared` of the sinks of type `elasticsearch`",
            ),
            tenant: chosen(Field::Tenant, std::slice::from_ref(&self.tenants), "tenants", "`policies.allow_tenants`")
                .map(|chosen| chosen.name),
            sinks: None,
        };
        route.sinks = self.sinks_of(effective, &mut problems);
        ((route != Route::default()).then(|| Arc::new(route)), problems)
    }

    /// The sinks that get the records. A choice of which none is there leaves it to who comes next: nobody takes an
    /// administrator's away by a slip.
    fn sinks_of(&self, effective: &mut Effective, problems: &mut Vec<Problem>) -> Option<Vec<Arc<str>>> {
        let names = |value: &str| -> (Vec<String>, Vec<String>) {
            let names: Vec<String> = serde_json::from_str(value).unwrap_or_default();
            names.into_iter().partition(|name| self.sinks.contains(name))
        };
        let mut tell = |origin: &Origin, value: &str, then: &str| {
            let unknown = names(value).1;
            if !unknown.is_empty() {
                let message = format!("there is no sink {unknown:?}; there are {:?}{then}", self.sinks);
                problems.push(refused(origin, Field::Sinks, value, &message));
            }
        };
        let refusals = effective.fall_back(Field::Sinks, |_, value| !names(value).0.is_empty());
        let decision = effective.decision(Field::Sinks)?;
        let known = names(&decision.value).0;
        let then = if known.is_empty() { "; all sinks get the records" } else { "; who comes next decides" };
        for refusal in &refusals {
            tell(&refusal.origin, &refusal.value, then);
        }
        if known.is_empty() {
            return None;
        }
        tell(&decision.origin, &decision.value, "");
        Some(known.into_iter().map(Into::into).collect())
    }
}

/// The names in the order of precedence, as far as any sink asks: an administrator's holds everywhere.
fn ordered<'a>(names: impl Iterator<Item = (&'a Origin, &'a str)>) -> Option<Chosen> {
    let mut chosen: Vec<(&str, bool)> = Vec::new();
    for (origin, name) in names {
        let by_administrator = origin.is_administrators();
        let is_known = chosen.iter().any(|(known, _)| *known == name);
        if by_administrator || !is_known && chosen.len() < MAX_CHOSEN {
            chosen.push((name, by_administrator));
        }
        if by_administrator {
            break;
        }
    }
    chosen.into_iter().rev().fold(None, |otherwise, (name, by_administrator)| {
        Some(Chosen { name: name.into(), by_administrator, otherwise: otherwise.map(Box::new) })
    })
}

fn refused(origin: &Origin, field: Field, value: &str, message: &str) -> Problem {
    let key = match origin {
        Origin::Annotation(key) => key.clone(),
        other => format!("{other}: spec.logs.{}", field.as_str()),
    };
    let policy = match origin {
        Origin::Policy(key) => Some(key.clone()),
        _ => None,
    };
    Problem { key, policy, ..Problem::new("", value, Reason::NotAllowed, message) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Reverse;

    use crate::{
        policy::{
            Settings,
            precedence::{Key, OriginOf, Rank, Source, Standing},
        },
        record::Resource,
    };

    fn permits() -> Permits {
        let allowed = |glob: &str| Allowed::try_from(vec![glob.to_owned()]).expect("a glob");
        Permits {
            tenants: allowed("{namespace}"),
            topics: vec![allowed("{namespace}.*")],
            indices: Vec::new(),
            sinks: vec!["kafka".to_owned(), "archive".to_owned()],
        }
    }

    fn effective(settings: &Settings, rank: Rank, origin: OriginOf) -> Effective {
        Effective::of(vec![Source { rank, origin, settings }])
    }

    #[test]
    fn a_pod_chooses_what_it_may_and_an_administrator_anything() {
        let settings = Settings {
            topic: Some("bank.orders".to_owned()),
            index: Some("bank".to_owned()),
            tenant: Some("shop".to_owned()),
            sinks: Some(vec!["kafka".to_owned(), "nowhere".to_owned()]),
            ..Settings::default()
        };
        let mut by_pod = effective(&settings, Rank::Pod, OriginOf::Annotations(None));
        let (route, problems) = permits().route(&mut by_pod, Some("shop"));
        let route = route.expect("a route");
        assert_eq!((&route.topic, &route.index), (&None, &None));
        assert_eq!(route.tenant.as_deref(), Some("shop"));
        assert_eq!(route.sinks.as_deref(), Some(&["kafka".into()][..]));
        let told: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(told, ["sidestep.dev/topic", "sidestep.dev/index", "sidestep.dev/sinks"]);
        assert!(problems[0].message.contains("allow_declared") && problems[2].message.contains("nowhere"));
        let mut by_pod = effective(&settings, Rank::Pod, OriginOf::Annotations(None));
        let (other, _) = permits().route(&mut by_pod, Some("bank"));
        let other = other.expect("a route");
        assert!(other.topic.as_ref().is_some_and(|topic| &*topic.name == "bank.orders" && !topic.by_administrator));
        assert_eq!(other.tenant, None, "the tenant is another's");
        let (route, problems) =
            permits().route(&mut effective(&settings, Rank::Rule, OriginOf::One(Origin::Rule(0))), Some("shop"));
        assert!(route.expect("a route").index.as_ref().is_some_and(|index| index.by_administrator));
        assert_eq!(problems.len(), 1, "only the sink that there is not: {problems:?}");
        let unknown = Settings { sinks: Some(vec!["nowhere".to_owned()]), ..Settings::default() };
        let (route, problems) = permits().route(&mut effective(&unknown, Rank::Pod, OriginOf::Annotations(None)), None);
        assert!(route.is_none() && problems[0].message.ends_with("all sinks get the records"), "no line is lost by it");
    }

    #[test]
    fn a_sink_where_a_pod_may_not_choose_keeps_what_an_administrator_has_imposed() {
        let topic = |name: &str| Settings { topic: Some(name.to_owned()), ..Settings::default() };
        let (pod, policy, imposed) = (topic("shop.own"), topic("other.team"), topic("audit"));
        let standing = || Standing { priority: 0, created: Reverse(0), name: Reverse("p".into()) };
        let key = Key { namespace: Some("shop".into()), name: "p".into() };
        let mut effective = Effective::of(vec![
            Source { rank: Rank::Pod, origin: OriginOf::Annotations(None), settings: &pod },
            Source {
                rank: Rank::Namespaced(standing()),
                origin: OriginOf::One(Origin::Policy(key)),
                settings: &policy,
            },
            Source { rank: Rank::Rule, origin: OriginOf::One(Origin::Rule(0)), settings: &imposed },
        ]);
        let (route, problems) = permits().route(&mut effective, Some("shop"));
        assert!(problems.is_empty(), "a sink permits it: {problems:?}");
        let topic = route.expect("a route").topic.clone();
        let resource = Resource { namespace: Some("shop".into()), ..Resource::default() };
        let at = |allowed: &[&str]| {
            let globs: Vec<_> = allowed.iter().map(ToString::to_string).collect();
            let allowed = Allowed::try_from(globs).expect("globs");
            allowed.permitted(topic.as_ref(), &resource).map(str::to_owned)
        };
        assert_eq!(at(&["{namespace}.*"]).as_deref(), Some("shop.own"));
        assert_eq!(at(&[]).as_deref(), Some("audit"), "this one permits nothing");
    }

    #[test]
    fn sinks_that_there_are_not_do_not_take_an_administrators_choice_away() {
        let sinks = |names: &[&str]| Settings {
            sinks: Some(names.iter().map(ToString::to_string).collect()),
            ..Settings::default()
        };
        let (pod, imposed) = (sinks(&["nowhere"]), sinks(&["archive"]));
        let mut effective = Effective::of(vec![
            Source { rank: Rank::Pod, origin: OriginOf::Annotations(None), settings: &pod },
            Source { rank: Rank::Rule, origin: OriginOf::One(Origin::Rule(0)), settings: &imposed },
        ]);
        let (route, problems) = permits().route(&mut effective, Some("shop"));
        assert_eq!(route.expect("a route").sinks.as_deref(), Some(&["archive".into()][..]));
        assert!(problems.len() == 1 && problems[0].message.ends_with("who comes next decides"), "{problems:?}");
        assert_eq!(effective.decision(Field::Sinks).expect("decided").origin, Origin::Rule(0));
    }

    #[test]
    fn what_may_not_be_chosen_leaves_the_decision_to_who_comes_next() {
        let tenant = |name: &str| Settings { tenant: Some(name.to_owned()), ..Settings::default() };
        let (pod, imposed) = (tenant("bank"), tenant("payroll"));
        let sources = || {
            vec![
                Source { rank: Rank::Pod, origin: OriginOf::Annotations(None), settings: &pod },
                Source { rank: Rank::Rule, origin: OriginOf::One(Origin::Rule(0)), settings: &imposed },
            ]
        };
        let mut effective = Effective::of(sources());
        let (route, problems) = permits().route(&mut effective, Some("shop"));
        assert_eq!(route.expect("a route").tenant.as_deref(), Some("payroll"), "an annotation does not take it away");
        assert_eq!(problems.len(), 1);
        let decision = effective.decision(Field::Tenant).expect("decided");
        assert_eq!((&decision.origin, &*decision.value), (&Origin::Rule(0), "payroll"));
        assert_eq!(decision.overridden.len(), 1, "and who explains it names the refused one too");
        let mut effective = Effective::of(sources());
        let (route, problems) = permits().route(&mut effective, Some("bank"));
        assert_eq!((route.expect("a route").tenant.as_deref(), problems.len()), (Some("bank"), 0));
    }
}
