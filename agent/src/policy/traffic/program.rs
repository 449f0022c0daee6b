//! Writes what holds to the kernel's maps: a generation at once, or a Pod more or less.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap as Map},
    sync::Arc,
};

use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, lpm_trie::Key};
use sidestep_abi::govern::{
    ALLOWED_BITS, Allowed, AllowedKey, BucketKey, Governed, GovernedKey, HOLDS, LISTS_EGRESS, OBSERVES, PortRange,
    RefusedKey, TIERS, Tier as KernelTier,
};

use super::{
    compile::{List, Plan, Tier},
    settings::{Mode, Network},
};
use crate::policy::precedence;

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

/// Why what holds can't be changed; what held before goes on.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// A list has more networks than there is room for.
    #[error("the list of {policies} has {networks} networks, and the kernel's map has no room for them: {source}")]
    List {
        /// The policies.
        policies: String,
        /// How many networks.
        networks: usize,
        /// The cause.
        source: MapError,
    },
    /// Another map is full.
    #[error("map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// The cause.
        source: MapError,
    },
}

/// What shall hold.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// By the Pod's cgroup: what each tier says. Pods of which nothing is said are not in it.
    pub pods: BTreeMap<u64, [Plan; TIERS]>,
    /// Cgroups of Pods of which nothing is known yet: for these holds what held.
    pub unknown: BTreeSet<u64>,
    /// The lists that the plans name, by their policies.
    pub lists: Map<BTreeSet<precedence::Key>, Arc<List>>,
}

/// The writer: there is one.
pub struct Programmer {
    maps: Maps,
    generation: u32,
    next_list: u32,
    /// The lists that are in the kernel, and their numbers; of those that another agent has written only these.
    lists: Vec<(Option<Arc<List>>, u32)>,
    pods: BTreeMap<u64, Governed>,
    /// What is not used any more, but by programs that run at this moment: removed with the next change.
    retired: Retired,
}

#[derive(Default)]
struct Retired {
    lists: BTreeSet<u32>,
    pods: Vec<GovernedKey>,
}

impl Programmer {
    /// Goes on with what holds.
    #[must_use]
    pub fn new(mut maps: Maps) -> Self {
        // What the kernel programs have no room for is counted here.
        let all = RefusedKey { cgroup: 0, reason: 0, direction: 0, observed: 0, tier: 0, _pad: [0; 4] };
        let _ = maps.refused.insert(all, 0, BPF_NOEXIST);
        let generation = maps.governing.get(&0, 0).unwrap_or_default() as u32;
        let lists: BTreeSet<u32> = maps.allowed.keys().flatten().map(|key| key.data().list >> 1).collect();
        let of_generation =
            |(key, governed): (GovernedKey, Governed)| (key.generation == generation).then_some((key.cgroup, governed));
        let pods = maps.governed.iter().flatten().filter_map(of_generation).collect();
        Self {
            generation,
            next_list: lists.last().map_or(1, |last| last + 1),
            lists: lists.into_iter().map(|number| (None, number)).collect(),
            pods,
            retired: Retired::default(),
            maps,
        }
    }

    /// Pods for which something holds.
    pub fn pods(&self) -> impl Iterator<Item = u64> + '_ {
        self.pods.keys().copied()
    }

    /// How many were refused since the programs were loaded, by Pod, reason and tier; those of Pods for which the map had no
    /// room stand under the cgroup 0.
    pub fn refused(&self) -> impl Iterator<Item = (RefusedKey, u64)> + '_ {
        self.maps.refused.iter().flatten()
    }

    /// Makes that hold which shall; whether anything has changed.
    ///
    /// # Errors
    /// There is no room for it; what held before goes on.
    pub fn apply(&mut self, desired: &Desired) -> Result<bool, ProgramError> {
        self.remove_retired();
        let mut written = Vec::new();
        let result = self.write(desired, &mut written);
        if result.is_err() {
            // They are in no generation.
            for number in written {
                self.lists.retain(|(_, known)| *known != number);
                self.retired.lists.insert(number);
            }
        }
        result
    }

    fn write(&mut self, desired: &Desired, written: &mut Vec<u32>) -> Result<bool, ProgramError> {
        let mut numbers = Map::new();
        for (policies, list) in &desired.lists {
            let number = match self.lists.iter().find(|(known, _)| known.as_ref() == Some(list)) {
                Some((_, number)) => *number,
                None => {
                    let number = self.next_list;
                    self.next_list += 1;
                    written.push(number);
                    self.lists.push((Some(Arc::clone(list)), number));
                    self.write_list(number, list).map_err(|source| ProgramError::List {
                        policies: policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                        networks: list.len(),
                        source,
                    })?;
                    number
                }
            };
            numbers.insert(policies, number);
        }
        let kept = self.pods.iter().filter(|(cgroup, _)| desired.unknown.contains(cgroup));
        let mut pods: BTreeMap<u64, Governed> = kept.map(|(cgroup, governed)| (*cgroup, *governed)).collect();
        for (cgroup, plans) in &desired.pods {
            pods.insert(*cgroup, governed(plans, &numbers));
        }
        if pods == self.pods {
            self.retire_lists();
            return Ok(false);
        }
        let is_changed = |(cgroup, governed): (&u64, &Governed)| pods.get(cgroup).is_some_and(|new| new != governed);
        if self.generation == 0 || self.pods.iter().any(is_changed) {
            self.begin_generation(&pods)?;
        } else {
            let new: Vec<_> = pods.iter().filter(|(cgroup, _)| !self.pods.contains_key(cgroup)).collect();
            for (cgroup, governed) in new {
                self.insert(self.generation, *cgroup, governed)?;
            }
            let gone = self.pods.keys().filter(|cgroup| !pods.contains_key(cgroup));
            self.retired.pods.extend(gone.map(|cgroup| key(self.generation, *cgroup)));
        }
        let gone: Vec<_> = self.pods.keys().filter(|cgroup| !pods.contains_key(cgroup)).copied().collect();
        for cgroup in gone {
            self.forget(cgroup);
        }
        self.pods = pods;
        self.retire_lists();
        Ok(true)
    }

    fn write_list(&mut self, number: u32, list: &List) -> Result<(), MapError> {
        for (network, ranges) in list {
            let key = Key::new(ALLOWED_BITS + u32::from(network.length), allowed_key(number, network));
            self.maps.allowed.insert(&key, allowed(ranges), 0)?;
        }
        Ok(())
    }

    fn begin_generation(&mut self, pods: &BTreeMap<u64, Governed>) -> Result<(), ProgramError> {
        let next = self.generation.checked_add(1).unwrap_or(1);
        // An agent may have ended while it wrote this generation.
        let stale: Vec<_> = self.maps.governed.keys().flatten().filter(|key| key.generation == next).collect();
        for key in stale {
            let _ = self.maps.governed.remove(&key);
        }
        for (cgroup, governed) in pods {
            if let Err(error) = self.insert(next, *cgroup, governed) {
                for cgroup in pods.keys() {
                    let _ = self.maps.governed.remove(&key(next, *cgroup));
                }
                return Err(error);
            }
        }
        self.maps
            .governing
            .set(0, u64::from(next), 0)
            .map_err(|source| ProgramError::Map { name: "GOVERNING", source })?;
        let before = self.maps.governed.keys().flatten().filter(|key| key.generation != next);
        self.retired.pods.extend(before);
        self.generation = next;
        Ok(())
    }

    fn insert(&mut self, generation: u32, cgroup: u64, governed: &Governed) -> Result<(), ProgramError> {
        self.maps
            .governed
            .insert(key(generation, cgroup), governed, 0)
            .map_err(|source| ProgramError::Map { name: "GOVERNED", source })
    }

    /// Forgets the state of the limits, and the counts, of a Pod that is gone, or of which nothing is said any more.
    fn forget(&mut self, cgroup: u64) {
        let buckets: Vec<_> = self.maps.buckets.keys().flatten().filter(|key| key.cgroup == cgroup).collect();
        for key in buckets {
            let _ = self.maps.buckets.remove(&key);
        }
        let refused: Vec<_> = self.maps.refused.keys().flatten().filter(|key| key.cgroup == cgroup).collect();
        for key in refused {
            let _ = self.maps.refused.remove(&key);
        }
    }

    /// Lets go of lists that no Pod has.
    fn retire_lists(&mut self) {
        let used: BTreeSet<u32> =
            self.pods.values().flat_map(|governed| governed.tiers.map(|tier| tier.egress)).collect();
        self.lists.retain(|(_, number)| used.contains(number) || !self.retired.lists.insert(*number));
        self.retired.lists.retain(|number| !used.contains(number));
    }

    fn remove_retired(&mut self) {
        let Retired { lists, pods } = std::mem::take(&mut self.retired);
        for key in pods {
            let _ = self.maps.governed.remove(&key);
        }
        if lists.is_empty() {
            return;
        }
        let keys: Vec<_> =
            self.maps.allowed.keys().flatten().filter(|key| lists.contains(&(key.data().list >> 1))).collect();
        for key in keys {
            let _ = self.maps.allowed.remove(&key);
        }
    }
}

const fn key(generation: u32, cgroup: u64) -> GovernedKey {
    GovernedKey { cgroup, generation, _pad: 0 }
}

const fn allowed_key(number: u32, network: &Network) -> AllowedKey {
    AllowedKey { list: number << 1 | network.is_ipv4 as u32, address: network.address }
}

fn allowed(ranges: &BTreeSet<PortRange>) -> Allowed {
    let mut allowed = Allowed { len: ranges.len() as u64, ..Allowed::default() };
    for (slot, range) in allowed.ranges.iter_mut().zip(ranges) {
        *slot = *range;
    }
    allowed
}

fn governed(plans: &[Plan; TIERS], numbers: &Map<&BTreeSet<precedence::Key>, u32>) -> Governed {
    let mut governed = Governed::default();
    for ((slot, plan), tier) in governed.tiers.iter_mut().zip(plans).zip(Tier::ALL) {
        if plan.is_empty() {
            continue;
        }
        let list = plan.egress.as_ref().map(|policies| numbers.get(policies).copied().unwrap_or_default());
        *slot = KernelTier {
            flags: HOLDS
                | if list.is_some() { LISTS_EGRESS } else { 0 }
                | if tier.mode == Mode::Observe { OBSERVES } else { 0 },
            egress: list.unwrap_or_default(),
            connections_out: plan.connections_out.as_ref().map_or_else(Default::default, |(rate, _)| *rate),
        };
    }
    governed
}
