//! The lists of peers that policies make up, with the addresses of the Pods that they name as these come and go.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    kubernetes::{Knowledge, PeerPods},
    policy::traffic::{
        compile::{self, List, ListName, Name},
        pod_peers::PodsOfList,
        settings::Peers,
    },
};

/// Pause between two of one list whose Pods have changed, and more of it for each of its networks: each list stays in the kernel
/// for a while after its successor is there, and to write it takes its time.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_OF_NETWORK: Duration = Duration::from_micros(100);

/// Addresses of Pods in one list: the kernel's lists have room for 262,144 networks in all, and some copies of each are there while
/// Pods come and go.
const MAX_ADDRESSES: usize = 16_384;

/// The entries of a list, each with its policy: asked for when it has to be made.
type Entries<'a> = dyn Fn() -> Vec<(Name, &'a Peers)> + 'a;

/// Lists by their policies, as long as these are the same.
#[derive(Default)]
pub(super) struct Lists(HashMap<ListName, Made>);

/// A list.
#[derive(Clone)]
pub(super) struct Made {
    /// Why there is none, else.
    pub(super) list: Result<Arc<List>, String>,
    /// What of it does not hold.
    pub(super) problem: Option<String>,
    /// The Pods that it names, if it does.
    pub(super) pods: Option<Arc<PodsOfList>>,
    /// The version of the Pods that it is made of; `None` while they are not known.
    seen: Option<(u64, u64)>,
    made: Instant,
}

impl Lists {
    /// The policies have changed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Lets go of all others.
    pub(super) fn retain(&mut self, names: &BTreeSet<ListName>) {
        self.0.retain(|name, _| names.contains(name));
    }

    /// A list, of these entries, as it is now.
    pub(super) fn get(&mut self, name: &ListName, entries: &Entries<'_>, there: &PeerPods, now: Instant) -> &Made {
        let made = self.0.entry(name.clone()).or_insert_with(|| {
            let pods = PodsOfList::new(&entries()).map(Arc::new);
            let mut made = Made { list: Err(String::new()), problem: None, pods, seen: None, made: now };
            made.compile(name, entries);
            made
        });
        if made.pods.is_some() && there.knowledge() == Knowledge::Listed {
            made.refresh(name, entries, there, now);
        }
        made
    }
}

impl Made {
    /// Whether the Pods that it names are in it.
    pub(super) const fn knows_pods(&self) -> bool {
        self.seen.is_some()
    }

    fn refresh(&mut self, name: &ListName, entries: &Entries<'_>, there: &PeerPods, now: Instant) {
        let (version, networks) = (there.version(), self.list.as_ref().map_or(0, |list| list.len()));
        let pause = PAUSE + PAUSE_OF_NETWORK * u32::try_from(networks).unwrap_or(u32::MAX);
        let is_due = match self.seen {
            None => true,
            Some(seen) => seen != version && now.saturating_duration_since(self.made) >= pause,
        };
        let Some(pods) = self.pods.as_mut().filter(|_| is_due) else { return };
        let (table, labels) = there.there();
        self.seen = Some(version);
        if Arc::make_mut(pods).refresh(&table, &labels) {
            self.made = now;
            self.compile(name, entries);
        }
    }

    fn compile(&mut self, name: &ListName, entries: &Entries<'_>) {
        let mut cut = None;
        let entries = entries();
        let peers = entries.iter().map(|(_, peers)| *peers);
        let list = match &self.pods {
            None => compile::list(peers).map_err(|error| error.to_string()),
            Some(pods) if pods.count() > MAX_ADDRESSES => {
                Err(format!("it names {} addresses of Pods, and has room for {MAX_ADDRESSES}", pods.count()))
            }
            Some(pods) => {
                compile::list_with_pods(peers.zip(pods.addresses()), &mut cut).map_err(|error| error.to_string())
            }
        };
        self.list = list.map(Arc::new).map_err(|error| format!("{name}: {error}"));
        self.problem =
            cut.map(|cut| format!("{name}: a Pod with too many: {cut}; the others of its ranges have no effect"));
    }
}

/// Why it is not known which Pods a list names, and what that means; `None` when it is.
pub(super) fn unknown_pods(name: &ListName, knowledge: &Knowledge) -> Option<String> {
    let why = match knowledge {
        Knowledge::Listed => return None,
        Knowledge::Off => {
            "the API server is not asked, so the Pods that it names are not known and not let through: set \
             kubernetes.kubeconfig or kubernetes.enabled, or name networks (cidrs)"
                .to_owned()
        }
        Knowledge::Starting => {
            "the API server has not told yet which Pods there are that it names: what held goes on".to_owned()
        }
        Knowledge::Failed(resource) => format!(
            "the API server does not tell the {resource} (see `sidestep status` and the agent's ClusterRole), so the Pods that \
             it names are not known: what held goes on, and where nothing did they are not let through"
        ),
    };
    Some(format!("{name}: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::policy::{precedence::Key, traffic::settings::Direction};

    #[test]
    fn a_list_waits_for_the_pods_and_is_made_anew_when_they_change() {
        let policy = Name { key: Key { namespace: Some("shop".into()), name: "web".into() }, is_file: false };
        let name = ListName { policies: BTreeSet::from([policy.clone()]), direction: Direction::Ingress };
        let peers: Peers = serde_json::from_value(
            json!({ "cidrs": ["10.9.0.0/16"], "pods": [{ "selector": { "matchLabels": { "app": "a" } } }] }),
        )
        .expect("peers");
        let entries = || vec![(policy.clone(), &peers)];
        let (there, mut lists, now) = (PeerPods::of_test(), Lists::default(), Instant::now());
        let mut networks = |there: &PeerPods, after| {
            let made = lists.get(&name, &entries, there, now + after);
            (made.knows_pods(), made.list.as_ref().map_or(0, |list| list.len()))
        };
        there.want(true);
        assert_eq!(networks(&there, Duration::ZERO), (false, 1));
        there.enter("1", "a", "10.0.0.1");
        assert_eq!(networks(&there, Duration::ZERO), (false, 1), "not all are listed");
        there.list_is_whole();
        assert_eq!(networks(&there, Duration::ZERO), (true, 2), "at once: nobody waits for longer than it takes");
        there.enter("2", "a", "10.0.0.2");
        assert_eq!(networks(&there, Duration::ZERO), (true, 2), "not too often");
        assert_eq!(networks(&there, 2 * PAUSE), (true, 3));
        let made = Arc::clone(lists.get(&name, &entries, &there, now + 2 * PAUSE).list.as_ref().expect("a list"));
        there.enter("3", "b", "10.0.0.3");
        let again = lists.get(&name, &entries, &there, now + 9 * PAUSE).list.as_ref().expect("a list");
        assert!(Arc::ptr_eq(&made, again), "who is picked by nobody changes nothing");
        assert!(unknown_pods(&name, &Knowledge::Listed).is_none());
        let text = unknown_pods(&name, &Knowledge::Off).expect("a problem");
        assert!(text.starts_with("SidestepPolicy shop/web (allow.ingress): the API server is not asked"), "{text}");
    }
}
