//! Which containers get series of their own, and what their labels say: bounded in number, length and alphabet,
//! because names and numbers of containers are chosen by those who deploy Pods.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::snapshot::AccountReading;
use crate::ledger::{Balance, Reason, Stage};

/// `container_id` of the series that books the containers beyond the limit together.
pub const OVERFLOW: &str = "_overflow";

/// `container_id` of the node's own account.
pub const NODE: &str = "_node";

/// Kubernetes' longest names have 253 characters; anything longer was not named by Kubernetes.
const LABEL_CHARS: usize = 253;

/// Characters of `container.id` that runtimes show and accept.
const SHORT_ID: usize = 12;

/// Values of the labels namespace, pod, container and container_id.
pub type Labels = [String; 4];

/// The figures of one series; sums of [`Balance`]s.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Figures {
    /// [`Balance::produced`]
    pub produced: u64,
    /// [`Balance::delivered`]
    pub delivered: u64,
    /// [`Balance::delivered_lines`]
    pub delivered_lines: u64,
    /// [`Balance::pending`]
    pub pending: i64,
    /// [`Balance::dropped`]
    pub dropped: BTreeMap<(Stage, Reason), u64>,
}

impl Figures {
    fn add(&mut self, balance: &Balance) {
        self.add_counters(balance);
        self.pending += balance.pending;
    }

    fn add_counters(&mut self, balance: &Balance) {
        self.produced += balance.produced;
        self.delivered += balance.delivered;
        self.delivered_lines += balance.delivered_lines;
        for (stage, reason, bytes) in &balance.dropped {
            *self.dropped.entry((*stage, *reason)).or_default() += bytes;
        }
    }
}

/// The series of one scrape.
#[derive(Debug, Default)]
pub struct Arranged {
    /// Figures by labels.
    pub series: BTreeMap<Labels, Figures>,
    /// Live containers that are booked together.
    pub overflow_containers: u64,
    /// Labels of the Pods of these series, where they are asked for.
    pub pod_labels: BTreeMap<Labels, Vec<(String, String)>>,
}

/// Decides at each scrape which containers have series of their own.
///
/// A container that was booked under [`OVERFLOW`] stays there, and its last figures remain in the sum when it is gone:
/// moving it out would make counters fall, which Prometheus takes for a restart.
#[derive(Debug)]
pub struct Admission {
    limit: usize,
    admitted: HashSet<u64>,
    overflowed: HashMap<u64, Balance>,
    gone: Figures,
}

impl Admission {
    /// At most `limit` containers get series of their own; the node always does.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, admitted: HashSet::new(), overflowed: HashMap::new(), gone: Figures::default() }
    }

    /// Arranges one reading of the ledger.
    pub fn arrange(&mut self, accounts: &[AccountReading]) -> Arranged {
        self.forget_gone(accounts);
        let mut arranged = Arranged::default();
        for account in accounts {
            if account.cgroup_id != 0 && !self.admit(account.cgroup_id) {
                self.overflowed.insert(account.cgroup_id, account.balance.clone());
                continue;
            }
            // Two accounts may have the same labels after sanitizing; Prometheus refuses a scrape with duplicates.
            let labels = labels(account);
            if let Some(pod_labels) = &account.labels {
                arranged.pod_labels.insert(labels.clone(), pod_labels.clone());
            }
            arranged.series.entry(labels).or_default().add(&account.balance);
        }
        if !self.overflowed.is_empty() || self.gone != Figures::default() {
            let mut sum = self.gone.clone();
            for balance in self.overflowed.values() {
                sum.add(balance);
            }
            arranged.series.insert([String::new(), String::new(), String::new(), OVERFLOW.to_owned()], sum);
        }
        arranged.overflow_containers = self.overflowed.len() as u64;
        arranged
    }

    fn forget_gone(&mut self, accounts: &[AccountReading]) {
        let live: HashSet<u64> = accounts.iter().map(|account| account.cgroup_id).collect();
        self.admitted.retain(|cgroup_id| live.contains(cgroup_id));
        let gone = &mut self.gone;
        self.overflowed.retain(|cgroup_id, last| {
            let alive = live.contains(cgroup_id);
            if !alive {
                gone.add_counters(last);
            }
            alive
        });
    }

    fn admit(&mut self, cgroup_id: u64) -> bool {
        if self.admitted.contains(&cgroup_id) {
            return true;
        }
        if self.overflowed.contains_key(&cgroup_id) || self.admitted.len() >= self.limit {
            return false;
        }
        self.admitted.insert(cgroup_id);
        true
    }
}

fn labels(account: &AccountReading) -> Labels {
    let resource = &account.resource;
    let container_id = match &resource.container_id {
        _ if account.cgroup_id == 0 => NODE.to_owned(),
        Some(id) => sanitize(&id.chars().take(SHORT_ID).collect::<String>()),
        // No runtime knows it; its cgroup still tells it from others.
        None => format!("_cgroup_{}", account.cgroup_id),
    };
    let text = |value: &Option<std::sync::Arc<str>>| value.as_deref().map_or_else(String::new, sanitize);
    [text(&resource.namespace), text(&resource.pod), text(&resource.container_name), container_id]
}

/// A label value without control and formatting characters (each becomes U+FFFD), cut to [`LABEL_CHARS`].
#[must_use]
pub fn sanitize(value: &str) -> String {
    let clean = |c: char| if c.is_control() || is_formatting(c) { char::REPLACEMENT_CHARACTER } else { c };
    value.chars().take(LABEL_CHARS).map(clean).collect()
}

/// Line separators, byte order mark, and the marks that turn the direction of text or join it: they make one name look
/// like another, in a dashboard as on a terminal.
#[must_use]
pub const fn is_formatting(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::record::Resource;

    fn account(cgroup_id: u64, produced: u64) -> AccountReading {
        let resource = Resource { pod: Some(format!("pod-{cgroup_id}").into()), ..Resource::default() };
        let dropped = vec![(Stage::Capture, Reason::Quota, 2)];
        let balance = Balance { produced, delivered: produced - 3, delivered_lines: 1, pending: 1, dropped };
        AccountReading { cgroup_id, resource: Arc::new(resource), balance, labels: None }
    }

    fn overflow(arranged: &Arranged) -> Option<&Figures> {
        arranged.series.iter().find(|(labels, _)| labels[3] == OVERFLOW).map(|(_, figures)| figures)
    }

    #[test]
    fn books_containers_beyond_the_limit_together_and_keeps_the_sum() {
        let mut admission = Admission::new(3);
        let accounts: Vec<_> = (1..=10).map(|id| account(id, id * 100)).collect();
        let arranged = admission.arrange(&accounts);
        assert_eq!(arranged.series.len(), 4);
        assert_eq!(arranged.overflow_containers, 7);
        let sum: u64 = arranged.series.values().map(|figures| figures.produced).sum();
        assert_eq!(sum, 5500);
        let other = overflow(&arranged).expect("an overflow series");
        assert_eq!((other.produced, other.pending), (4900, 7));
        assert_eq!(other.dropped[&(Stage::Capture, Reason::Quota)], 14);
    }

    #[test]
    fn counters_of_the_overflow_never_fall() {
        let mut admission = Admission::new(1);
        admission.arrange(&[account(1, 100), account(2, 200), account(3, 300)]);
        // 1 and 3 are gone: there is room again, but 2 stays where its counter was, and a new one gets the room.
        let arranged = admission.arrange(&[account(2, 250), account(4, 400)]);
        let other = overflow(&arranged).expect("an overflow series");
        assert_eq!((other.produced, other.pending), (550, 1));
        assert_eq!(arranged.overflow_containers, 1);
        let named: Vec<_> = arranged.series.keys().map(|labels| labels[1].as_str()).collect();
        assert_eq!(named, ["", "pod-4"]);
        let arranged = admission.arrange(&[]);
        assert_eq!(overflow(&arranged).expect("an overflow series").produced, 550);
        assert_eq!(arranged.series.len(), 1);
    }

    #[test]
    fn stays_bounded_while_containers_come_and_go() {
        let mut admission = Admission::new(10);
        for round in 0..1000 {
            let accounts: Vec<_> = (0..20).map(|i| account(1 + round * 20 + i, 100)).collect();
            assert!(admission.arrange(&accounts).series.len() <= 11);
            assert!(admission.admitted.len() <= 10 && admission.overflowed.len() <= 20);
        }
        assert_eq!(overflow(&admission.arrange(&[])).expect("an overflow series").produced, 1000 * 10 * 100);
    }

    #[test]
    fn accounts_with_the_same_labels_become_one_series() {
        let resource = Arc::new(Resource { container_id: Some("0123456789abcdef".into()), ..Resource::default() });
        let same = |cgroup_id| AccountReading { resource: Arc::clone(&resource), ..account(cgroup_id, 50) };
        let arranged = Admission::new(10).arrange(&[same(1), same(2)]);
        assert_eq!(arranged.series.len(), 1);
        let (labels, figures) = arranged.series.first_key_value().expect("one series");
        assert_eq!((labels[3].as_str(), figures.produced), ("0123456789ab", 100));
    }

    #[test]
    fn tells_the_node_and_unknown_containers_apart() {
        let unknown = |cgroup_id| AccountReading { resource: Arc::default(), ..account(cgroup_id, 10) };
        let arranged = Admission::new(0).arrange(&[unknown(0)]);
        assert_eq!(arranged.series.keys().next().expect("the node")[3], NODE);
        let arranged = Admission::new(9).arrange(&[unknown(0), unknown(7), unknown(8)]);
        let ids: Vec<_> = arranged.series.keys().map(|labels| labels[3].as_str()).collect();
        assert_eq!(ids, ["_cgroup_7", "_cgroup_8", "_node"]);
    }

    #[test]
    fn cleans_label_values() {
        assert_eq!(sanitize("a\n\"b\u{1b}[31m\u{202e}"), "a\u{fffd}\"b\u{fffd}[31m\u{fffd}");
        assert_eq!(sanitize(&"ä".repeat(5000)).chars().count(), LABEL_CHARS);
    }
}
