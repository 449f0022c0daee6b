//! The rules of requests and their answers in the kernel's maps. A set does not change, and its number is not used again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, MapData, MapError};
use sidestep_abi::{
    govern::Rate,
    http::{Answer as KernelAnswer, HttpRule, HttpRules, Interface, MAX_ANSWER, MAX_PATH, MAX_RULES, NO_RULES},
};

use super::requests::{Answer, Rule};
use crate::clock;

/// How long what is not used any more stays: a connection that was answered has its answer sent again.
const GRACE: Duration = Duration::from_secs(60);

/// More numbers than an agent uses in a second; a node that is up for two years has enough.
const NUMBERS_A_SECOND: u32 = 64;

/// A set: its rules, and what is answered. The number of the answer in the rule is 0.
type Set = Vec<(HttpRule, Arc<Answer>)>;

/// The maps.
pub struct RequestMaps {
    /// By the index of an interface of the node.
    pub interfaces: HashMap<MapData, u32, Interface>,
    /// By the set's number.
    pub rules: HashMap<MapData, u32, HttpRules>,
    /// By the answer's number.
    pub answers: HashMap<MapData, u32, KernelAnswer>,
}

/// What leads to a Pod, by the interface's index.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Way {
    /// The Pod's cgroup.
    pub cgroup: u64,
    /// The number of the Pod's network.
    pub network: u32,
    /// What packets are looked at for, `LOOKS_*`.
    pub looks: u32,
}

/// The sets that are in the kernel.
pub(super) struct RequestSets {
    maps: RequestMaps,
    sets: Vec<(Set, u32)>,
    answers: BTreeMap<Arc<Answer>, u32>,
    next_set: u32,
    next_answer: u32,
    /// Since when a set is not used.
    retired: BTreeMap<u32, Instant>,
}

impl RequestSets {
    /// Goes on with what is there.
    pub(super) fn new(maps: RequestMaps) -> Self {
        let answers: BTreeMap<u32, Arc<Answer>> =
            maps.answers.iter().flatten().map(|(number, answer)| (number, Arc::new(read(&answer)))).collect();
        // An agent before may have let go of higher numbers, which connections may know still: it has used fewer than this.
        let unused = (clock::monotonic_nano() / 1_000_000_000) as u32 * NUMBERS_A_SECOND;
        let rule = |rule: &HttpRule| Some((HttpRule { answer: 0, ..*rule }, Arc::clone(answers.get(&rule.answer)?)));
        let set = |rules: &HttpRules| rules.rules.iter().take(rules.len as usize).map(rule).collect::<Option<Set>>();
        let sets: Vec<_> =
            maps.rules.iter().flatten().filter_map(|(number, rules)| Some((set(&rules)?, number))).collect();
        Self {
            next_set: sets.iter().map(|(_, number)| *number).max().unwrap_or(NO_RULES).max(unused) + 1,
            next_answer: answers.last_key_value().map_or(0, |(last, _)| *last).max(unused) + 1,
            answers: answers.into_iter().map(|(number, answer)| (answer, number)).collect(),
            sets,
            retired: BTreeMap::new(),
            maps,
        }
    }

    /// The number of the set of these rules, which is written when it is new. Only as many count as a set has.
    pub(super) fn number(&mut self, rules: &[Rule]) -> Result<u32, MapError> {
        let set: Set = rules.iter().take(MAX_RULES).map(|rule| (rule.kernel, Arc::clone(&rule.answer))).collect();
        if let Some((_, number)) = self.sets.iter().find(|(known, _)| *known == set) {
            self.retired.remove(number);
            return Ok(*number);
        }
        let nothing = HttpRule {
            rate: Rate::default(),
            limit: 0,
            answer: 0,
            methods: 0,
            path_len: 0,
            port: 0,
            _pad: 0,
            path: [0; MAX_PATH],
            mask: [0; MAX_PATH],
        };
        let mut written = HttpRules { len: set.len() as u64, rules: [nothing; MAX_RULES] };
        for (slot, (rule, answer)) in written.rules.iter_mut().zip(&set) {
            *slot = HttpRule { answer: self.answer(answer)?, ..*rule };
        }
        let number = self.next_set;
        self.next_set += 1;
        self.maps.rules.insert(number, written, 0)?;
        self.sets.push((set, number));
        Ok(number)
    }

    /// The rates of a set.
    pub(super) fn rates(&self, number: u32) -> impl Iterator<Item = Rate> + '_ {
        let sets = self.sets.iter().filter(move |(_, known)| *known == number);
        sets.flat_map(|(set, _)| set.iter().map(|(rule, _)| rule.rate))
    }

    fn answer(&mut self, answer: &Arc<Answer>) -> Result<u32, MapError> {
        if let Some(number) = self.answers.get(answer) {
            return Ok(*number);
        }
        let number = self.next_answer;
        self.next_answer += 1;
        self.maps.answers.insert(number, write(answer), 0)?;
        self.answers.insert(Arc::clone(answer), number);
        Ok(number)
    }

    /// Interfaces whose packets are looked at, by their index in the network of this inode.
    pub(super) fn interfaces(&self, network: u64) -> BTreeMap<u32, Way> {
        let known = self.maps.interfaces.iter().flatten().filter(|(_, interface)| interface.network == network);
        let way = |Interface { cgroup, pod_network, looks, .. }| Way { cgroup, network: pod_network, looks };
        known.map(|(index, known)| (index, way(known))).collect()
    }

    /// Lets the programs know which interface leads to which Pod. Those that are not there any more are let go of first, by
    /// `retain_interfaces`, before programs are detached.
    pub(super) fn set_interfaces(&mut self, network: u64, ways: &BTreeMap<u32, Way>) -> Result<(), MapError> {
        let known = self.interfaces(network);
        for (index, way) in ways.iter().filter(|(index, way)| known.get(index) != Some(way)) {
            let Way { cgroup, network: pod_network, looks } = *way;
            // Who was answered is still stood in for when packets are looked at for something else as well.
            let before = self.maps.interfaces.get(index, 0).ok();
            let limited_at = before.filter(|known| known.cgroup == cgroup).map_or(0, |known| known.limited_at);
            let interface = Interface { cgroup, limited_at, network, pod_network, looks };
            self.maps.interfaces.insert(index, interface, 0)?;
        }
        Ok(())
    }

    /// Lets go of interfaces that are not among these, of the network of this inode.
    pub(super) fn retain_interfaces(&mut self, network: u64, ways: &BTreeMap<u32, Way>) {
        let is_there = |index: &u32, interface: &Interface| interface.network == network && ways.contains_key(index);
        let gone = self.maps.interfaces.iter().flatten().filter(|(index, interface)| !is_there(index, interface));
        let gone: Vec<u32> = gone.map(|(index, _)| index).collect();
        for index in gone {
            let _ = self.maps.interfaces.remove(&index);
        }
    }

    /// Lets go of what no Pod has, a while after.
    pub(super) fn retire(&mut self, used: &BTreeSet<u32>, now: Instant) {
        self.retired.retain(|number, _| !used.contains(number));
        for (_, number) in self.sets.iter().filter(|(_, number)| !used.contains(number)) {
            self.retired.entry(*number).or_insert(now);
        }
        let is_over = |since: &Instant| now.saturating_duration_since(*since) >= GRACE;
        let over: Vec<u32> =
            self.retired.iter().filter(|(_, since)| is_over(since)).map(|(number, _)| *number).collect();
        if over.is_empty() {
            return;
        }
        for number in &over {
            self.retired.remove(number);
            let _ = self.maps.rules.remove(number);
        }
        self.sets.retain(|(_, number)| !over.contains(number));
        let needed: BTreeSet<Arc<Answer>> =
            self.sets.iter().flat_map(|(set, _)| set.iter().map(|(_, answer)| Arc::clone(answer))).collect();
        for (_, number) in self.answers.extract_if(.., |answer, _| !needed.contains(answer)) {
            let _ = self.maps.answers.remove(&number);
        }
    }
}

fn write(answer: &Answer) -> KernelAnswer {
    let mut bytes = [0; MAX_ANSWER];
    let len = answer.bytes.len().min(MAX_ANSWER);
    bytes[..len].copy_from_slice(&answer.bytes[..len]);
    let head_len = answer.head_len.min(len);
    KernelAnswer {
        len: len as u32,
        head_len: head_len as u32,
        sum: sum(&bytes[..len]),
        head_sum: sum(&bytes[..head_len]),
        bytes,
    }
}

fn read(answer: &KernelAnswer) -> Answer {
    let len = (answer.len as usize).min(MAX_ANSWER);
    Answer { bytes: answer.bytes[..len].to_vec(), head_len: answer.head_len as usize }
}

/// One's complement sum, not folded (RFC 1071): an odd byte at the end is followed by 0.
fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]));
    bytes.chunks(2).map(word).sum()
}
