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

/// How long what is not used any more stays: a connection that was answered has its answer sent again.
const GRACE: Duration = Duration::from_secs(60);

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
        let rule = |rule: &HttpRule| Some((HttpRule { answer: 0, ..*rule }, Arc::clone(answers.get(&rule.answer)?)));
        let set = |rules: &HttpRules| rules.rules.iter().take(rules.len as usize).map(rule).collect::<Option<Set>>();
        let sets: Vec<_> =
            maps.rules.iter().flatten().filter_map(|(number, rules)| Some((set(&rules)?, number))).collect();
        Self {
            next_set: sets.iter().map(|(_, number)| *number).max().unwrap_or(NO_RULES) + 1,
            next_answer: answers.last_key_value().map_or(0, |(last, _)| *last) + 1,
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

    /// Interfaces whose requests are limited, and the cgroups of their Pods.
    pub(super) fn interfaces(&self) -> BTreeMap<u32, u64> {
        self.maps.interfaces.iter().flatten().map(|(index, interface)| (index, interface.cgroup)).collect()
    }

    /// Lets the programs know whose interfaces are whose.
    pub(super) fn set_interfaces(&mut self, interfaces: &BTreeMap<u32, u64>) -> Result<(), MapError> {
        let known = self.interfaces();
        for index in known.keys().filter(|index| !interfaces.contains_key(index)) {
            let _ = self.maps.interfaces.remove(index);
        }
        let new = interfaces.iter().filter(|(index, cgroup)| known.get(index) != Some(cgroup));
        for (index, cgroup) in new {
            self.maps.interfaces.insert(index, Interface { cgroup: *cgroup, limited_at: 0 }, 0)?;
        }
        Ok(())
    }

    /// Lets go of what no Pod has, a while after.
    pub(super) fn retire(&mut self, used: &BTreeSet<u32>, now: Instant) {
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
