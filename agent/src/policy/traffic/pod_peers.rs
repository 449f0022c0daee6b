//! Pods as peers: the addresses that the selectors of a list stand for, at this moment.
//!
//! Pods are held by namespace, and each namespace has a version: a selector is held again against the Pods of those alone that have
//! changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::core::{Selector, SelectorExt};
use serde::{Deserialize, Deserializer};
use sidestep_abi::govern::PortRange;

use super::{
    compile::{Name, ranges},
    settings::{Peers, PodPeers},
};

/// Labels of a Pod or of a namespace.
type Labels = BTreeMap<String, String>;

/// A Pod that can be a peer: it has addresses of its own, and has not ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerPod {
    /// All of its labels.
    pub labels: Labels,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
}

/// Those of a namespace.
#[derive(Clone, Debug, Default)]
struct NamespacePods {
    /// Raised with every change; no other of the table has the same.
    version: u64,
    /// By UID.
    pods: BTreeMap<Arc<str>, Arc<PeerPod>>,
}

/// All Pods that can be peers. A clone is cheap, and stays as it is.
#[derive(Clone, Debug, Default)]
pub struct PodTable {
    namespaces: HashMap<Arc<str>, Arc<NamespacePods>>,
    version: u64,
}

impl PodTable {
    /// Enters a Pod, or what is new of one; with `None` it is gone, or no peer any more. Whether anything has changed.
    pub fn set(&mut self, namespace: &str, uid: &str, pod: Option<PeerPod>) -> bool {
        let known = self.namespaces.get(namespace).and_then(|namespace| namespace.pods.get(uid));
        if known.map(|known| &**known) == pod.as_ref() {
            return false;
        }
        self.version += 1;
        let entry = self.namespaces.entry(namespace.into()).or_default();
        let changed = Arc::make_mut(entry);
        changed.version = self.version;
        match pod {
            Some(pod) => changed.pods.insert(uid.into(), Arc::new(pod)),
            None => changed.pods.remove(uid),
        };
        if changed.pods.is_empty() {
            self.namespaces.remove(namespace);
        }
        true
    }

    /// The Pod with this UID.
    #[must_use]
    pub fn get(&self, namespace: &str, uid: &str) -> Option<&Arc<PeerPod>> {
        self.namespaces.get(namespace)?.pods.get(uid)
    }

    /// Namespace and UID of each Pod.
    pub fn keys(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.namespaces.iter().flat_map(|(namespace, there)| there.pods.keys().map(move |uid| (namespace, uid)))
    }

    /// Raised with every change.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }
}

/// What the selectors of a list have found.
#[derive(Clone, Debug, Default)]
pub struct PodsOfList {
    /// Of each entry, in their order.
    entries: Vec<Entry>,
}

/// An entry of the list.
#[derive(Clone, Debug)]
struct Entry {
    policy: Name,
    ports: Vec<PortRange>,
    pods: Vec<Selecting>,
}

/// A selector, and what it has found.
#[derive(Clone, Debug)]
struct Selecting {
    /// The namespace of whose Pods it is, where it does not select namespaces; `None` for all.
    own: Option<Arc<str>>,
    namespaces: Option<Selector>,
    pods: Selector,
    /// By namespace, those without any too: with the version that it was held against.
    found: BTreeMap<Arc<str>, (u64, Arc<BTreeSet<IpAddr>>)>,
}

impl PodsOfList {
    /// Of the entries of a list, each with its policy; `None` when none of them names Pods.
    #[must_use]
    pub fn new(entries: &[(Name, &Peers)]) -> Option<Self> {
        let entry = |(policy, peers): &(Name, &Peers)| Entry {
            policy: policy.clone(),
            ports: ranges(peers.ports.as_deref()),
            pods: peers.pods.iter().flatten().filter_map(|pods| Selecting::new(pods, policy)).collect(),
        };
        let names_pods = entries.iter().any(|(_, peers)| peers.pods.is_some());
        names_pods.then(|| Self { entries: entries.iter().map(entry).collect() })
    }

    /// Holds the selectors against what there is; whether they find something else than before. `labels`: of namespaces, as far
    /// as they are known.
    pub fn refresh(&mut self, there: &PodTable, labels: &HashMap<Arc<str>, Arc<Labels>>) -> bool {
        let selectors = self.entries.iter_mut().flat_map(|entry| &mut entry.pods);
        selectors.fold(false, |is_changed, selector| selector.refresh(there, labels) | is_changed)
    }

    /// The addresses of the Pods that each entry names.
    pub fn addresses(&self) -> impl Iterator<Item = BTreeSet<IpAddr>> {
        self.entries.iter().map(|entry| entry.pods.iter().flat_map(Selecting::addresses).collect())
    }

    /// How many addresses there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.addresses().flatten().collect::<BTreeSet<_>>().len()
    }

    /// The selectors that let an address through, in words, each with its policy.
    #[must_use]
    pub fn who_lets(&self, peer: IpAddr, protocol: u8, port: u16) -> Vec<String> {
        let peer = peer.to_canonical();
        let has_port = |range: &PortRange| {
            (range.protocol == 0 || range.protocol == protocol) && (range.first..=range.last).contains(&port)
        };
        let entries = self.entries.iter().filter(|entry| entry.ports.iter().any(has_port));
        let selectors = entries.flat_map(|entry| entry.pods.iter().map(move |selecting| (&entry.policy, selecting)));
        let picking = selectors.filter(|(_, selecting)| selecting.addresses().any(|address| address == peer));
        picking.map(|(policy, selecting)| format!("{} by {policy}", selecting.words())).collect()
    }
}

impl Selecting {
    /// What is no selector was refused when it was read.
    fn new(pods: &PodPeers, policy: &Name) -> Option<Self> {
        let read = |selector: &Option<LabelSelector>| selector.clone().map(Selector::try_from).transpose().ok();
        Some(Self {
            own: policy.key.namespace.clone(),
            namespaces: read(&pods.namespace_selector)?,
            pods: read(&pods.selector)?.unwrap_or_default(),
            found: BTreeMap::new(),
        })
    }

    fn refresh(&mut self, there: &PodTable, labels: &HashMap<Arc<str>, Arc<Labels>>) -> bool {
        let (own, namespaces) = (&self.own, &self.namespaces);
        let is_selected = |namespace: &Arc<str>| match (namespaces, labels.get(namespace)) {
            (None, _) => own.as_ref().is_none_or(|own| own == namespace),
            (Some(selector), Some(labels)) => selector.matches(labels),
            // What is asked for may be that a label is not there.
            (Some(selector), None) => selector.selects_all(),
        };
        let mut is_changed = false;
        self.found.retain(|namespace, (_, addresses)| {
            let stays = there.namespaces.contains_key(namespace) && is_selected(namespace);
            is_changed |= !stays && !addresses.is_empty();
            stays
        });
        let of_own = own.as_ref().filter(|_| namespaces.is_none()).map(|own| there.namespaces.get_key_value(own));
        let all = of_own.is_none().then_some(&there.namespaces).into_iter().flatten();
        for (namespace, pods) in of_own.flatten().into_iter().chain(all) {
            if !is_selected(namespace) {
                continue;
            }
            let (version, known) = self.found.entry(Arc::clone(namespace)).or_default();
            if *version == pods.version {
                continue;
            }
            let picked = pods.pods.values().filter(|pod| self.pods.matches(&pod.labels));
            let addresses = picked.flat_map(|pod| pod.addresses.iter().map(IpAddr::to_canonical)).collect();
            *version = pods.version;
            if **known != addresses {
                (*known, is_changed) = (Arc::new(addresses), true);
            }
        }
        is_changed
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.found.values().flat_map(|(_, addresses)| addresses.iter().copied())
    }

    fn words(&self) -> String {
        let labels = |selector: &Selector| if selector.selects_all() { None } else { Some(selector.to_string()) };
        let pods = labels(&self.pods).map_or("all Pods".to_owned(), |labels| format!("Pods {labels}"));
        match (self.namespaces.as_ref().map(labels), &self.own) {
            (Some(Some(labels)), _) => format!("{pods} of namespaces {labels}"),
            (None, Some(own)) => format!("{pods} of namespace {own}"),
            (Some(None), _) | (None, None) => format!("{pods} of all namespaces"),
        }
    }
}

impl PodPeers {
    /// All that is wrong with it, each with the field's path.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let none = self.selector.is_none() && self.namespace_selector.is_none();
        let fields = [(".selector", &self.selector), (".namespaceSelector", &self.namespace_selector)];
        let wrong = fields.into_iter().filter_map(|(path, selector)| {
            let error = Selector::try_from(selector.clone()?).err()?;
            Some(format!("{path}: {error}"))
        });
        none.then(|| ": names no Pods: give selector, namespaceSelector or both".to_owned()).into_iter().chain(wrong)
    }
}

/// Reads a selector. What is not known of one is refused: a mistyped `matchLabels` would select all Pods.
///
/// # Errors
/// It is none.
pub(super) fn selector<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LabelSelector>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Requirement {
        key: String,
        operator: String,
        values: Option<Vec<String>>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Written {
        match_labels: Option<Labels>,
        match_expressions: Option<Vec<Requirement>>,
    }
    let requirement =
        |Requirement { key, operator, values }: Requirement| LabelSelectorRequirement { key, operator, values };
    Ok(Option::<Written>::deserialize(deserializer)?.map(|written| LabelSelector {
        match_labels: written.match_labels,
        match_expressions: written.match_expressions.map(|all| all.into_iter().map(requirement).collect()),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::precedence::Key;

    fn name(namespace: Option<&str>) -> Name {
        Name { key: Key { namespace: namespace.map(Into::into), name: "web".into() }, is_file: false }
    }

    fn peers(pods: &Value) -> Peers {
        serde_json::from_value(json!({ "pods": pods })).expect("peers")
    }

    fn labels(labels: &[(&str, &str)]) -> Labels {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn pod(own: &[(&str, &str)], addresses: &[&str]) -> PeerPod {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        PeerPod { labels: labels(own), addresses }
    }

    fn found(list: &PodsOfList) -> Vec<String> {
        list.addresses().flatten().map(|address| address.to_string()).collect()
    }

    #[test]
    fn addresses_come_and_go_with_labels_and_namespaces() {
        let here = peers(&json!([{ "selector": { "matchLabels": { "app": "web" } } }]));
        let there = peers(&json!([{ "namespaceSelector": { "matchLabels": { "team": "a" } } }]));
        let shop = name(Some("shop"));
        let mut list = PodsOfList::new(&[(shop.clone(), &here), (shop, &there)]).expect("it names Pods");
        let (mut table, mut namespaces) = (PodTable::default(), HashMap::new());
        assert!(!list.refresh(&table, &namespaces));
        table.set("shop", "1", Some(pod(&[("app", "web")], &["10.0.0.1", "fd00::1"])));
        table.set("other", "2", Some(pod(&[("app", "web")], &["10.0.0.2"])));
        assert!(list.refresh(&table, &namespaces) && !list.refresh(&table, &namespaces));
        assert_eq!(found(&list), ["10.0.0.1", "fd00::1"], "of namespaces that are not known no label is");
        namespaces.insert(Arc::from("other"), Arc::new(labels(&[("team", "a")])));
        assert!(list.refresh(&table, &namespaces));
        assert_eq!((found(&list).len(), list.count()), (3, 3));
        let who = |peer: &str| list.who_lets(peer.parse().expect("an address"), 6, 80);
        assert_eq!(who("::ffff:10.0.0.1"), ["Pods app=web of namespace shop by SidestepPolicy shop/web"]);
        assert_eq!(who("10.0.0.2"), ["all Pods of namespaces team=a by SidestepPolicy shop/web"]);
        assert!(who("10.0.0.3").is_empty());

        // Who is picked by nobody changes nothing, nor does what is told again.
        assert!(table.set("shop", "3", Some(pod(&[], &["10.0.0.3"]))) && !list.refresh(&table, &namespaces));
        assert!(!table.set("shop", "3", Some(pod(&[], &["10.0.0.3"]))) && !table.set("shop", "4", None));
        // Labels are lost, a Pod goes, and so does a namespace' label.
        table.set("shop", "1", Some(pod(&[], &["10.0.0.1"])));
        assert!(list.refresh(&table, &namespaces));
        assert_eq!(found(&list), ["10.0.0.2"]);
        namespaces.insert(Arc::from("other"), Arc::default());
        assert!(list.refresh(&table, &namespaces) && found(&list).is_empty());
        table.set("other", "2", None);
        assert!(!list.refresh(&table, &namespaces));
    }

    #[test]
    fn a_policy_of_the_cluster_means_all_namespaces() {
        let all = peers(&json!([{ "selector": {} }]));
        let mut list = PodsOfList::new(&[(name(None), &all)]).expect("it names Pods");
        let mut table = PodTable::default();
        table.set("shop", "1", Some(pod(&[], &["10.0.0.1"])));
        table.set("other", "2", Some(pod(&[], &["10.0.0.2"])));
        assert!(list.refresh(&table, &HashMap::new()));
        assert_eq!(found(&list), ["10.0.0.1", "10.0.0.2"]);
        let networks = Peers { cidrs: Some(vec!["10.0.0.0/8".to_owned()]), ..Peers::default() };
        assert!(PodsOfList::new(&[(name(None), &networks)]).is_none());
    }

    #[test]
    fn what_is_mistyped_selects_nothing() {
        for wrong in [
            json!([{ "selector": { "matchLabel": { "app": "web" } } }]),
            json!([{ "selectors": {} }]),
            json!([{ "selector": { "matchExpressions": [{ "key": "a", "operator": "In", "value": ["b"] }] } }]),
        ] {
            assert!(serde_json::from_value::<Peers>(json!({ "pods": wrong })).is_err(), "{wrong}");
        }
        let problems = |pods: Value| peers(&json!([pods])).pods.expect("Pods")[0].problems().collect::<Vec<_>>();
        assert_eq!(problems(json!({})), [": names no Pods: give selector, namespaceSelector or both"]);
        let wrong = json!({ "namespaceSelector": { "matchExpressions": [{ "key": "a", "operator": "Is" }] } });
        assert!(problems(wrong)[0].starts_with(".namespaceSelector: "));
    }

    /// A requirement of a selector, and whether labels meet it: as Kubernetes' documentation has it.
    fn requirement() -> impl Strategy<Value = (String, String, Vec<String>)> {
        (
            "[ab]",
            prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist"]),
            prop::sample::subsequence(vec!["x", "y"], 1..=2),
        )
            .prop_map(|(key, operator, values)| {
                let values =
                    if operator.ends_with("In") { values.into_iter().map(str::to_owned).collect() } else { Vec::new() };
                (key, operator.to_owned(), values)
            })
    }

    type Requirements = Vec<(String, String, Vec<String>)>;

    fn meets(requirements: &Requirements, labels: &Labels) -> bool {
        requirements.iter().all(|(key, operator, values)| match (operator.as_str(), labels.get(key)) {
            ("In", Some(value)) => values.contains(value),
            ("NotIn", Some(value)) => !values.contains(value),
            ("Exists", value) => value.is_some(),
            ("DoesNotExist", value) => value.is_none(),
            (operator, _) => operator == "NotIn",
        })
    }

    fn written(requirements: &Requirements) -> Value {
        let one = |(key, operator, values): &(String, String, Vec<String>)| match values.is_empty() {
            true => json!({ "key": key, "operator": operator }),
            false => json!({ "key": key, "operator": operator, "values": values }),
        };
        json!({ "matchExpressions": requirements.iter().map(one).collect::<Vec<_>>() })
    }

    fn some_labels() -> impl Strategy<Value = Labels> {
        prop::collection::btree_map("[ab]", "[xy]", 0..3)
    }

    proptest! {
        /// Whatever has happened before: found are exactly the addresses of the Pods that a selector picks, entry by entry.
        #[test]
        fn exactly_the_pods_that_match_are_found(
            changes in prop::collection::vec((0u8..4, 0u8..6, prop::option::of((some_labels(), 0u8..8)), any::<bool>()), 1..60),
            namespaces in prop::collection::vec((0u8..4, some_labels()), 0..8),
            entries in prop::collection::vec((prop::option::of(prop::collection::vec(requirement(), 0..3)), prop::option::of(prop::collection::vec(requirement(), 0..2)), any::<bool>()), 1..4),
        ) {
            let mut settings = Vec::new();
            for (pods, namespaces, is_of_cluster) in &entries {
                let mut selector = serde_json::Map::new();
                selector.extend(pods.iter().map(|pods| ("selector".to_owned(), written(pods))));
                selector.extend(namespaces.iter().map(|labels| ("namespaceSelector".to_owned(), written(labels))));
                settings.push((name((!is_of_cluster).then_some("n0")), peers(&json!([selector]))));
            }
            let named: Vec<_> = settings.iter().map(|(name, peers)| (name.clone(), peers)).collect();
            let mut list = PodsOfList::new(&named).expect("it names Pods");
            let (mut table, mut labels) = (PodTable::default(), HashMap::<Arc<str>, Arc<Labels>>::new());
            let mut model: BTreeMap<(String, u8), (Labels, IpAddr)> = BTreeMap::new();
            let mut news = namespaces.into_iter();
            let mut before: Vec<BTreeSet<IpAddr>> = list.addresses().collect();
            for (namespace, uid, pod, is_looked_at) in changes {
                let namespace = format!("n{namespace}");
                let pod = pod.map(|(labels, address)| (labels, IpAddr::from([10, 0, 0, address])));
                let entered = pod.clone().map(|(labels, address)| PeerPod { labels, addresses: vec![address] });
                table.set(&namespace, &uid.to_string(), entered);
                match pod {
                    Some(pod) => model.insert((namespace, uid), pod),
                    None => model.remove(&(namespace, uid)),
                };
                if !is_looked_at {
                    continue;
                }
                if let Some((namespace, of_namespace)) = news.next() {
                    labels.insert(format!("n{namespace}").into(), Arc::new(of_namespace));
                }
                let is_changed = list.refresh(&table, &labels);
                let expected: Vec<BTreeSet<IpAddr>> = entries.iter().map(|(pods, namespaces, is_of_cluster)| {
                    let is_in = |namespace: &str| match (namespaces, labels.get(namespace)) {
                        (None, _) => *is_of_cluster || namespace == "n0",
                        (Some(wanted), Some(labels)) => meets(wanted, labels),
                        (Some(wanted), None) => wanted.is_empty(),
                    };
                    let picked = model.iter().filter(|((namespace, _), (labels, _))| {
                        is_in(namespace) && pods.as_ref().is_none_or(|wanted| meets(wanted, labels))
                    });
                    picked.map(|(_, (_, address))| *address).collect()
                }).collect();
                let now: Vec<BTreeSet<IpAddr>> = list.addresses().collect();
                prop_assert_eq!(&now, &expected);
                prop_assert!(is_changed || now == before, "a change is told");
                before = now;
            }
        }
    }
}
