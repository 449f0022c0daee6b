//! Writes what holds to the kernel's maps: a generation at once, or a Pod more or less.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, lpm_trie::Key};
use sidestep_abi::{
    govern::{
        ALLOWED_BITS, Allowed, AllowedKey, BYTES_IN, BYTES_OUT, BucketKey, CONNECTIONS_IN, Governed, GovernedKey,
        LISTS_EGRESS, LISTS_INGRESS, NOTHING, OBSERVES, PACKETS_IN, PACKETS_OUT, PortRange, RefusedKey, TIERS,
        Tier as KernelTier, WORKLOADS,
    },
    http::{LOOKS_FLOWS, LOOKS_REQUESTS, LOOKS_VOLUME_IN, LOOKS_VOLUME_OUT, MAX_RULES, NO_RULES},
};

use super::{
    compile::{List, ListName, Plan, Tier, Unmet},
    request_sets::{RequestMaps, RequestSets, Way},
    settings::{Direction, Mode, Network},
};

/// What the kernel programs could not count by its Pod.
const UNCOUNTED: RefusedKey = RefusedKey { cgroup: 0, reason: 0, direction: 0, outcome: 0, tier: 0, limit: 0 };

/// For an update of a map: only an entry that is not there, `bpf(2)`.
const BPF_NOEXIST: u64 = 1;

/// The maps that the kernel programs go by.
pub struct Maps {
    /// One entry: the generation that is in force.
    pub governing: Array<MapData, u64>,
    /// What holds for each Pod.
    pub governed: HashMap<MapData, GovernedKey, Governed>,
    /// All lists.
    pub allowed: LpmTrie<MapData, AllowedKey, Allowed>,
    /// State of limits.
    pub buckets: HashMap<MapData, BucketKey, u64>,
    /// Written by the kernel programs.
    pub refused: HashMap<MapData, RefusedKey, u64>,
}

impl Maps {
    /// Forgets what the Pods of workloads have taken that are not among these.
    fn forget_workloads(&mut self, used: &BTreeSet<u64>) {
        let is_unused = |key: &BucketKey| key.cgroup >= WORKLOADS && !used.contains(&key.cgroup);
        let buckets: Vec<_> = self.buckets.keys().flatten().filter(is_unused).collect();
        for key in buckets {
            let _ = self.buckets.remove(&key);
        }
    }

    /// Forgets what was counted and limited of a Pod.
    fn forget(&mut self, cgroup: u64) {
        let buckets: Vec<_> = self.buckets.keys().flatten().filter(|key| key.cgroup == cgroup).collect();
        for key in buckets {
            let _ = self.buckets.remove(&key);
        }
        let refused: Vec<_> = self.refused.keys().flatten().filter(|key| key.cgroup == cgroup).collect();
        for key in refused {
            let _ = self.refused.remove(&key);
        }
    }
}

/// What shall hold for a Pod.
#[derive(Clone, Debug, Default)]
pub struct Planned {
    /// What each tier says.
    pub plans: [Plan; TIERS],
    /// Tiers of which too little is known: of these what held goes on, and nothing where nothing held.
    pub keeps: [bool; TIERS],
}

/// What shall hold.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// By the Pod's cgroup: what each tier says. Pods of which nothing is said are not in it.
    pub pods: BTreeMap<u64, Planned>,
    /// Cgroups of Pods of which too little is known yet: for these holds what held.
    pub unknown: BTreeSet<u64>,
    /// The lists that the plans name: those of the cluster's come first. One that can't be made is not in it.
    pub lists: BTreeMap<ListName, Arc<List>>,
    /// Those of which not all is known: where a Pod had another list in their place that goes on.
    pub unsettled: BTreeMap<ListName, Unsettled>,
}

/// What becomes of a list of which not all is known, for a Pod that had none in its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unsettled {
    /// It has none yet: all may be known in a moment, and connections that it lets through would be cut until then.
    Waits,
    /// It has what is known of it.
    HoldsAsKnown,
}

/// What is asked for at the interfaces of a Pod.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AtInterface {
    /// HTTP requests.
    pub requests: bool,
    /// What others begin.
    pub ingress: bool,
    /// What the Pod begins, which is asked for at its system calls before.
    pub egress: bool,
    /// How much comes to the Pod.
    pub volume_in: bool,
    /// How much it sends.
    pub volume_out: bool,
}

impl AtInterface {
    /// Whether something of it has no effect where no interface leads to the Pod.
    #[must_use]
    pub const fn is_needed(self) -> bool {
        self.requests || self.ingress || self.volume_in || self.volume_out
    }

    /// What of it has no effect where no interface leads to the Pod.
    #[must_use]
    pub fn in_words(self) -> String {
        let parts = [
            (self.ingress, "connections to it"),
            (self.requests, "requests to it"),
            (self.volume_in || self.volume_out, "its packets and bytes"),
        ];
        let parts: Vec<_> = parts.into_iter().filter_map(|(is_asked, what)| is_asked.then_some(what)).collect();
        parts.join(" and ")
    }

    /// For the kernel programs.
    #[must_use]
    pub const fn looks(self) -> u32 {
        (if self.requests { LOOKS_REQUESTS } else { 0 })
            | (if self.ingress || self.egress { LOOKS_FLOWS } else { 0 })
            | (if self.volume_in { LOOKS_VOLUME_IN } else { 0 })
            | (if self.volume_out { LOOKS_VOLUME_OUT } else { 0 })
    }
}

/// Networks of all lists: entries of the kernel's map, of which some are kept for changes.
const CAPACITY: usize = 262_144;
/// Pause between two generations.
const PAUSE: Duration = Duration::from_millis(200);
/// How long what is not used any more stays: a program that has begun before may look at it.
const GRACE: Duration = Duration::from_secs(5);

/// The writer: there is one.
pub struct Programmer {
    maps: Maps,
    requests: RequestSets,
    generation: u32,
    next_list: u32,
    /// The lists that are in the kernel, and their numbers.
    lists: Vec<(Arc<List>, u32)>,
    pods: BTreeMap<u64, Governed>,
    /// When the generation began.
    begun: Option<Instant>,
    /// Whether another one shall begin, and was put off.
    is_put_off: bool,
    retired: Retired,
}

/// What is not used any more, since when.
#[derive(Default)]
struct Retired {
    /// By their numbers.
    lists: Vec<(u32, Arc<List>, Instant)>,
    pods: Vec<(GovernedKey, Instant)>,
    /// Limits and counts of Pods, by their cgroups.
    states: Vec<(u64, Instant)>,
}

impl Programmer {
    /// Goes on with what holds.
    #[must_use]
    pub fn new(mut maps: Maps, requests: RequestMaps) -> Self {
        // What the kernel programs have no room for is counted here.
        let _ = maps.refused.insert(UNCOUNTED, 0, BPF_NOEXIST);
        let generation = maps.governing.get(&0, 0).unwrap_or_default() as u32;
        let mut lists: BTreeMap<u32, List> = BTreeMap::new();
        for (key, value) in maps.allowed.iter().flatten() {
            let AllowedKey { list, address } = key.data();
            let length = key.prefix_len().saturating_sub(ALLOWED_BITS) as u8;
            let ranges = value.ranges.into_iter().take(value.len as usize).collect();
            lists.entry(list >> 1).or_default().insert(Network { is_ipv4: list & 1 != 0, address, length }, ranges);
        }
        let of_generation =
            |(key, governed): (GovernedKey, Governed)| (key.generation == generation).then_some((key.cgroup, governed));
        let pods = maps.governed.iter().flatten().filter_map(of_generation).collect();
        Self {
            generation,
            next_list: lists.last_key_value().map_or(NOTHING, |(last, _)| *last) + 1,
            lists: lists.into_iter().map(|(number, list)| (Arc::new(list), number)).collect(),
            pods,
            begun: None,
            is_put_off: false,
            retired: Retired::default(),
            requests: RequestSets::new(requests),
            maps,
        }
    }

    /// Pods for which something holds.
    pub fn pods(&self) -> impl Iterator<Item = u64> + '_ {
        self.pods.keys().copied()
    }

    /// Pods whose packets are looked at, and what for.
    pub fn pods_at_interfaces(&self) -> impl Iterator<Item = (u64, AtInterface)> + '_ {
        self.pods.iter().filter_map(|(cgroup, governed)| {
            let any = |is: fn(&KernelTier) -> bool| governed.tiers.iter().any(is);
            let asked = AtInterface {
                requests: any(|tier| tier.requests != NO_RULES),
                ingress: any(|tier| tier.flags & LISTS_INGRESS != 0 || has(tier, CONNECTIONS_IN)),
                egress: any(|tier| tier.flags & LISTS_EGRESS != 0),
                volume_in: any(|tier| has(tier, PACKETS_IN) || has(tier, BYTES_IN)),
                volume_out: any(|tier| has(tier, PACKETS_OUT) || has(tier, BYTES_OUT)),
            };
            (asked != AtInterface::default()).then_some((*cgroup, asked))
        })
    }

    /// Interfaces whose packets are looked at, by their index in the network of this inode.
    #[must_use]
    pub fn interfaces(&self, network: u64) -> BTreeMap<u32, Way> {
        self.requests.interfaces(network)
    }

    /// Lets the programs know which interface leads to which Pod.
    ///
    /// # Errors
    /// The map is full.
    pub fn set_interfaces(&mut self, network: u64, ways: &BTreeMap<u32, Way>) -> Result<(), MapError> {
        self.requests.set_interfaces(network, ways)
    }

    /// Lets go of interfaces that are not among these.
    pub fn retain_interfaces(&mut self, network: u64, ways: &BTreeMap<u32, Way>) {
        self.requests.retain_interfaces(network, ways);
    }

    /// How long until what was put off can be written, if something was.
    #[must_use]
    pub fn put_off(&self) -> Option<Duration> {
        self.is_put_off.then_some(PAUSE)
    }

    /// How many were refused since the programs were loaded, by Pod, reason and tier.
    pub fn refused(&self) -> impl Iterator<Item = (RefusedKey, u64)> + '_ {
        self.maps.refused.iter().flatten().filter(|(key, _)| *key != UNCOUNTED)
    }

    /// How many the kernel programs could not count, or limit, as a map is full.
    #[must_use]
    pub fn uncounted(&self) -> u64 {
        self.maps.refused.get(&UNCOUNTED, 0).unwrap_or_default()
    }

    /// Makes that hold which shall; returns what is not as it shall be. Of a tier whose list does not fit goes on
    /// what held, and for a Pod for which none held it lets nothing through; all else holds as it shall.
    pub fn apply(&mut self, desired: &Desired, now: Instant) -> Vec<Unmet> {
        self.remove_retired(now);
        let mut problems = Vec::new();
        let mut numbers = BTreeMap::new();
        for (name, list) in &desired.lists {
            match self.number(list, now) {
                Ok(number) => {
                    numbers.insert(name.clone(), number);
                }
                Err(problem) => {
                    problems.push(Unmet::of(&name.policies, format!("the list of {name}: {problem}")).by_older());
                }
            }
        }
        let kept = self.pods.iter().filter(|(cgroup, _)| desired.unknown.contains(cgroup));
        let mut pods: BTreeMap<u64, Governed> = kept.map(|(cgroup, governed)| (*cgroup, *governed)).collect();
        for (cgroup, planned) in &desired.pods {
            let mut sets = [None; TIERS];
            for (set, plan) in sets.iter_mut().zip(&planned.plans).filter(|(_, plan)| !plan.requests.is_empty()) {
                match self.requests.number(&plan.requests) {
                    Ok(number) => *set = Some(number),
                    Err(error) => {
                        let text = format!("map REQUEST_RULES: {error}; what held before goes on");
                        problems.push(Unmet::of(plan.requests.iter().map(|rule| &rule.policy), text).by_older());
                    }
                }
                if let Some(left) = plan.requests.get(MAX_RULES) {
                    let text = format!(
                        "more than {MAX_RULES} limits of requests for one Pod: those of {} have no effect there",
                        left.policy
                    );
                    problems.push(Unmet::of(plan.requests[MAX_RULES..].iter().map(|rule| &rule.policy), text));
                }
            }
            pods.insert(*cgroup, governed(planned, (&numbers, &desired.unsettled), sets, self.pods.get(cgroup)));
        }
        pods.retain(|_, governed| *governed != Governed::default());
        if let Err(error) = self.write(pods, now) {
            problems.push(Unmet::from(format!("map GOVERNED: {error}; what held before goes on")).by_older());
        }
        self.retire_lists(now);
        problems
    }

    /// The number of a list, which is written when it is new.
    fn number(&mut self, list: &Arc<List>, now: Instant) -> Result<u32, String> {
        if let Some((_, number)) = self.lists.iter().find(|(known, _)| known == list) {
            return Ok(*number);
        }
        let used: usize = self.lists.iter().map(|(list, _)| list.len()).sum();
        let leaving: usize = self.retired.lists.iter().map(|(_, list, _)| list.len()).sum();
        let free = CAPACITY.saturating_sub(used + leaving);
        if list.len() > free {
            return Err(format!("{} networks, and there is room for {free} of {CAPACITY}", list.len()));
        }
        let number = self.next_list;
        self.next_list += 1;
        if let Err(error) = self.write_list(number, list) {
            self.retired.lists.push((number, Arc::clone(list), now));
            return Err(format!("map ALLOWED: {error}"));
        }
        self.lists.push((Arc::clone(list), number));
        Ok(number)
    }

    /// Writes what is new into the generation that is in force, or begins another one when something else has changed; not at once
    /// when that was done a moment ago, since each stays for a while.
    fn write(&mut self, mut pods: BTreeMap<u64, Governed>, now: Instant) -> Result<(), MapError> {
        let is_as_it_was = |(cgroup, governed): (&u64, &Governed)| pods.get(cgroup) == Some(governed);
        let is_changed = !self.pods.iter().all(is_as_it_was);
        self.is_put_off = false;
        let is_soon = self.begun.is_some_and(|begun| now.saturating_duration_since(begun) < PAUSE);
        if self.generation == 0 && !pods.is_empty() || is_changed && !is_soon {
            self.begin_generation(&pods, now)?;
            let gone = self.pods.keys().filter(|cgroup| !pods.contains_key(cgroup));
            self.retired.states.extend(gone.map(|cgroup| (*cgroup, now)));
            self.pods = pods;
            return Ok(());
        }
        self.is_put_off = is_changed;
        pods.retain(|cgroup, _| !self.pods.contains_key(cgroup));
        for (cgroup, governed) in pods {
            self.maps.governed.insert(key(self.generation, cgroup), governed, 0)?;
            self.pods.insert(cgroup, governed);
        }
        Ok(())
    }

    fn write_list(&mut self, number: u32, list: &List) -> Result<(), MapError> {
        for (network, ranges) in list {
            self.maps.allowed.insert(&network_key(number, network), allowed(ranges), 0)?;
        }
        Ok(())
    }

    fn begin_generation(&mut self, pods: &BTreeMap<u64, Governed>, now: Instant) -> Result<(), MapError> {
        let next = self.generation.checked_add(1).unwrap_or(1);
        // An agent may have ended while it wrote this generation.
        let stale: Vec<_> = self.maps.governed.keys().flatten().filter(|key| key.generation == next).collect();
        for key in stale {
            let _ = self.maps.governed.remove(&key);
        }
        let written =
            pods.iter().try_for_each(|(cgroup, governed)| self.maps.governed.insert(key(next, *cgroup), governed, 0));
        if let Err(error) = written.and_then(|()| self.maps.governing.set(0, u64::from(next), 0)) {
            for cgroup in pods.keys() {
                let _ = self.maps.governed.remove(&key(next, *cgroup));
            }
            return Err(error);
        }
        let known: BTreeSet<_> = self.retired.pods.iter().map(|(key, _)| (key.generation, key.cgroup)).collect();
        let before = self.maps.governed.keys().flatten().filter(|key| key.generation != next);
        let before = before.filter(|key| !known.contains(&(key.generation, key.cgroup)));
        self.retired.pods.extend(before.map(|key| (key, now)));
        (self.generation, self.begun) = (next, Some(now));
        Ok(())
    }

    /// Lets go of lists that no Pod has.
    fn retire_lists(&mut self, now: Instant) {
        let used: BTreeSet<u32> = self
            .pods
            .values()
            .flat_map(|governed| governed.tiers)
            .flat_map(|tier| [tier.egress, tier.ingress])
            .collect();
        let sets = self.pods.values().flat_map(|governed| governed.tiers.map(|tier| tier.requests)).collect();
        self.requests.retire(&sets, now);
        for (list, number) in self.lists.extract_if(.., |(_, number)| !used.contains(number)) {
            self.retired.lists.push((number, list, now));
        }
    }

    /// The numbers of workloads of which a limit is.
    fn workloads(&self) -> BTreeSet<u64> {
        let tiers = || self.pods.values().flat_map(|governed| &governed.tiers);
        let limits = tiers().flat_map(|tier| tier.limits.map(|rate| rate.per));
        let requests = tiers().flat_map(|tier| self.requests.rates(tier.requests)).map(|rate| rate.per);
        limits.chain(requests).filter(|per| *per >= WORKLOADS).collect()
    }

    fn remove_retired(&mut self, now: Instant) {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= GRACE;
        for (key, _) in self.retired.pods.extract_if(.., |(_, since)| is_over(*since)) {
            let _ = self.maps.governed.remove(&key);
        }
        let states: Vec<_> = self.retired.states.extract_if(.., |(_, since)| is_over(*since)).collect();
        if !states.is_empty() {
            let used = self.workloads();
            self.maps.forget_workloads(&used);
        }
        for (cgroup, _) in states {
            if !self.pods.contains_key(&cgroup) {
                self.maps.forget(cgroup);
            }
        }
        for (number, list, _) in self.retired.lists.extract_if(.., |(_, _, since)| is_over(*since)) {
            for network in list.keys() {
                let _ = self.maps.allowed.remove(&network_key(number, network));
            }
        }
    }
}

/// Whether a tier has a limit.
const fn has(tier: &KernelTier, limit: usize) -> bool {
    tier.limits[limit].interval != 0
}

const fn key(generation: u32, cgroup: u64) -> GovernedKey {
    GovernedKey { cgroup, generation, _pad: 0 }
}

fn network_key(number: u32, network: &Network) -> Key<AllowedKey> {
    let key = AllowedKey { list: number << 1 | u32::from(network.is_ipv4), address: network.address };
    Key::new(ALLOWED_BITS + u32::from(network.length), key)
}

fn allowed(ranges: &BTreeSet<PortRange>) -> Allowed {
    let mut allowed = Allowed { len: ranges.len() as u64, ..Allowed::default() };
    for (slot, range) in allowed.ranges.iter_mut().zip(ranges) {
        *slot = *range;
    }
    allowed
}

fn governed(
    planned: &Planned,
    (numbers, unsettled): (&BTreeMap<ListName, u32>, &BTreeMap<ListName, Unsettled>),
    sets: [Option<u32>; TIERS],
    held: Option<&Governed>,
) -> Governed {
    let mut governed = Governed::default();
    for (index, ((slot, plan), tier)) in governed.tiers.iter_mut().zip(&planned.plans).zip(Tier::ALL).enumerate() {
        if planned.keeps[index] {
            *slot = held.map(|held| held.tiers[index]).unwrap_or_default();
            continue;
        }
        if plan.is_empty() {
            continue;
        }
        let held = held.map(|held| held.tiers[index]);
        for name in plan.lists() {
            let (flag, held, list) = match name.direction {
                Direction::Egress => (LISTS_EGRESS, held.map(|held| (held.flags, held.egress)), &mut slot.egress),
                Direction::Ingress => (LISTS_INGRESS, held.map(|held| (held.flags, held.ingress)), &mut slot.ingress),
            };
            let held = held.filter(|(flags, _)| flags & flag != 0).map(|(_, held)| held);
            *list = match (unsettled.get(&name), numbers.get(&name), held) {
                (None, Some(number), _) | (Some(Unsettled::HoldsAsKnown), Some(number), None) => *number,
                (_, _, Some(held)) => held,
                (Some(Unsettled::Waits), _, None) => continue,
                (_, None, None) => NOTHING,
            };
            slot.flags |= flag;
        }
        if tier.mode == Mode::Observe {
            slot.flags |= OBSERVES;
        }
        slot.requests = match (plan.requests.is_empty(), sets[index]) {
            (true, _) => NO_RULES,
            (false, Some(number)) => number,
            (false, None) => held.map_or(NO_RULES, |held| held.requests),
        };
        slot.limits =
            plan.limits.each_ref().map(|limit| limit.as_ref().map_or_else(Default::default, |(rate, _)| *rate));
    }
    governed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{precedence::Key, traffic::compile::Name};

    /// A list of which not all is known takes nothing away from what held in its place, whatever else held for the Pod.
    #[test]
    fn what_held_in_the_place_of_an_unsettled_list_goes_on() {
        let name = Name { key: Key { namespace: Some("shop".into()), name: "web".into() }, is_file: false };
        let mut planned = Planned::default();
        planned.plans[1].ingress = Some(BTreeSet::from([name.clone()]));
        let list = ListName { policies: BTreeSet::from([name]), direction: Direction::Ingress };
        let numbers = BTreeMap::from([(list.clone(), 7)]);
        let mut other = Governed::default();
        (other.tiers[0].flags, other.tiers[1].flags, other.tiers[1].egress) = (LISTS_INGRESS, LISTS_EGRESS, 3);
        let mut same = Governed::default();
        (same.tiers[1].flags, same.tiers[1].ingress) = (LISTS_INGRESS, 5);
        let holds = |unsettled: Option<Unsettled>, held: Option<&Governed>| {
            let unsettled = unsettled.map(|unsettled| (list.clone(), unsettled)).into_iter().collect();
            let tier = governed(&planned, (&numbers, &unsettled), [None; TIERS], held).tiers[1];
            (tier.flags & LISTS_INGRESS != 0).then_some(tier.ingress)
        };
        assert_eq!(holds(None, Some(&same)), Some(7));
        for held in [None, Some(&other)] {
            assert_eq!(holds(Some(Unsettled::Waits), held), None);
            assert_eq!(holds(Some(Unsettled::HoldsAsKnown), held), Some(7));
        }
        for unsettled in [Unsettled::Waits, Unsettled::HoldsAsKnown] {
            assert_eq!(holds(Some(unsettled), Some(&same)), Some(5));
        }
    }
}
