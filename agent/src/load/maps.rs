//! Typed access to the maps. `load` fills them, `drain` takes the ring, `policy` writes verdicts.

use std::collections::BTreeSet;

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError},
};
use sidestep_abi::{
    container::{Container, INIT_CERTAIN, INIT_PRESUMED},
    event,
    file::{FileState, PENDING, RetiredKey, UNANNOUNCED, Verdict},
    kernel::{Control, Reader},
    stdio::{InodeKey, Stdio},
};

use super::{LoadError, OlderRing, interfaces};
use crate::policy::traffic::{program, request_sets::RequestMaps};

/// Events of the ring that carry no bytes of a log.
const ANNOUNCEMENTS: [(u16, &str); 5] = [
    (event::FILE_SEEN, "file_seen"),
    (event::CONTAINER_STARTED, "container_started"),
    (event::CGROUP_MADE, "cgroup_made"),
    (event::CGROUP_EMPTY, "cgroup_empty"),
    (event::CGROUP_REMOVED, "cgroup_removed"),
];

/// For an update of a map: only an entry that is there, `bpf(2)`.
const BPF_EXIST: u64 = 2;

/// What the kernel programs know of files, and the agent's verdicts on them.
pub struct FileMaps {
    /// Written by the kernel programs; the agent removes what shall be announced again.
    pub states: HashMap<MapData, InodeKey, FileState>,
    /// Files whose place in `states` another one has taken; written by the kernel programs, the agent takes them out.
    pub retired: HashMap<MapData, RetiredKey, FileState>,
    /// Written by the agent.
    pub verdicts: HashMap<MapData, InodeKey, Verdict>,
}

/// All maps but the ring, which has a single reader.
pub struct KernelMaps {
    ring: Option<MapData>,
    pub(super) older: Vec<OlderRing>,
    /// Whether another agent has filled them so far.
    pub(super) takes_over: bool,
    control: Array<MapData, Control>,
    reader: Option<Array<MapData, Reader>>,
    containers: HashMap<MapData, u64, Container>,
    members: HashMap<MapData, u64, u32>,
    root_index: HashMap<MapData, u64, u32>,
    stdio: HashMap<MapData, InodeKey, Stdio>,
    files: Option<FileMaps>,
    govern: Option<(program::Maps, RequestMaps)>,
    lost_events: Array<MapData, u64>,
}

pub(super) fn failed(name: &'static str) -> impl Fn(MapError) -> LoadError {
    move |source| LoadError::Map { name, source: Box::new(source) }
}

/// Every map that programs of one set share with the agent, or with the next set.
pub(super) const NAMES: [&str; 26] = [
    "ACTIVE",
    "LATCH",
    "RING",
    "READER",
    "CONTROL",
    "CONTAINERS",
    "MEMBERS",
    "ROOT_INDEX",
    "DECISIONS",
    "STDIO",
    "FILES",
    "RETIRED",
    "VERDICTS",
    "LOST",
    "GOVERNING",
    "GOVERNED",
    "ALLOWED",
    "BUCKETS",
    "CLIENTS",
    "REFUSED",
    "FLOWS",
    "ASKERS",
    "INTERFACES",
    "REQUEST_RULES",
    "ANSWERS",
    "CONNECTIONS",
];

/// A map of programs that were loaded from the object.
pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or_else(|| missing(name))
}

/// The object lacks a map.
pub(super) fn missing(name: &'static str) -> LoadError {
    failed(name)(MapError::InvalidName { name: name.to_owned() })
}

fn ring(map: Map) -> Result<MapData, LoadError> {
    match map {
        Map::RingBuf(ring) => Ok(ring),
        _ => Err(failed("RING")(MapError::InvalidName { name: "RING".to_owned() })),
    }
}

impl KernelMaps {
    /// Takes all maps from where they are.
    pub(super) fn new(mut map: impl FnMut(&'static str) -> Result<Map, LoadError>) -> Result<Self, LoadError> {
        macro_rules! take {
            ($name:literal) => {
                map($name)?.try_into().map_err(failed($name))?
            };
        }
        Ok(Self {
            older: Vec::new(),
            takes_over: false,
            ring: Some(ring(map("RING")?)?),
            control: take!("CONTROL"),
            reader: Some(take!("READER")),
            containers: take!("CONTAINERS"),
            members: take!("MEMBERS"),
            root_index: take!("ROOT_INDEX"),
            stdio: take!("STDIO"),
            files: Some(FileMaps { states: take!("FILES"), retired: take!("RETIRED"), verdicts: take!("VERDICTS") }),
            govern: Some((
                program::Maps {
                    governing: take!("GOVERNING"),
                    governed: take!("GOVERNED"),
                    allowed: take!("ALLOWED"),
                    buckets: take!("BUCKETS"),
                    refused: take!("REFUSED"),
                },
                RequestMaps {
                    interfaces: take!("INTERFACES"),
                    rules: take!("REQUEST_RULES"),
                    answers: take!("ANSWERS"),
                },
            )),
            lost_events: take!("LOST"),
        })
    }

    /// Rings of programs that are detached, in the order in which they are to be drained, before the ring of those that
    /// run; once, for the only reader.
    pub fn take_older_rings(&mut self) -> Vec<OlderRing> {
        std::mem::take(&mut self.older)
    }

    /// Whether another agent has filled the maps so far.
    #[must_use]
    pub const fn takes_over(&self) -> bool {
        self.takes_over
    }

    /// The ring, and where its reader says what it does; once, for the only reader.
    pub fn take_ring(&mut self) -> Option<(MapData, Array<MapData, Reader>)> {
        Some((self.ring.take()?, self.reader.take()?))
    }

    pub(super) fn set_control(&mut self, control: &Control) -> Result<(), LoadError> {
        self.control.set(0, control, 0).map_err(failed("CONTROL"))?;
        for stale in self.root_index.keys().flatten().collect::<Vec<_>>() {
            if !control.roots.iter().take(control.roots_len as usize).any(|root| root.id == stale) {
                let _ = self.root_index.remove(&stale);
            }
        }
        for (index, root) in control.roots.iter().take(control.roots_len as usize).enumerate() {
            self.root_index.insert(root.id, index as u32, 0).map_err(failed("ROOT_INDEX"))?;
        }
        Ok(())
    }

    /// Voids what the kernel programs have decided so far: roots and members are in their place.
    pub(super) fn begin_generation(&mut self) -> Result<(), LoadError> {
        let mut control = self.control()?;
        control.generation += 1;
        self.control.set(0, control, 0).map_err(failed("CONTROL"))
    }

    pub(super) fn control(&self) -> Result<Control, LoadError> {
        self.control.get(&0, 0).map_err(failed("CONTROL"))
    }

    /// Makes a cgroup that existed before the programs a member of its root.
    pub(super) fn add_member(&mut self, cgroup: u64) -> Result<(), LoadError> {
        self.members.insert(cgroup, 1, 0).map_err(failed("MEMBERS"))
    }

    /// Notes that the standard streams of a container are registered, by its first process (`INIT_*`).
    pub(super) fn add_container(&mut self, cgroup: u64, init: u32) -> Result<(), LoadError> {
        let empty = Container { newer: 0, older: 0, mark: 0, unasked: 0, init, _pad: 0 };
        let container = self.containers.get(&cgroup, 0).map_or(empty, |known| Container { init, ..known });
        self.containers.insert(cgroup, container, 0).map_err(failed("CONTAINERS"))
    }

    /// Whether the standard streams of a container are registered.
    #[must_use]
    pub fn is_registered(&self, cgroup: u64) -> bool {
        self.containers.get(&cgroup, 0).is_ok_and(|known| matches!(known.init, INIT_PRESUMED | INIT_CERTAIN))
    }

    /// Registers a standard stream, unless the kernel knows it already as this container's.
    pub(super) fn add_stdio(&mut self, key: InodeKey, stream: Stdio) -> Result<(), LoadError> {
        if self.stdio(&key).is_some_and(|known| known.cgroup == stream.cgroup) {
            return Ok(());
        }
        self.stdio.insert(key, stream, 0).map_err(failed("STDIO"))
    }

    /// A registered stream and its counters.
    #[must_use]
    pub fn stdio(&self, key: &InodeKey) -> Option<Stdio> {
        self.stdio.get(key, 0).ok()
    }

    /// Every registered stream.
    pub fn all_stdio(&self) -> impl Iterator<Item = (InodeKey, Stdio)> + '_ {
        self.stdio.iter().flatten()
    }

    /// Forgets a stream whose container is gone.
    pub fn remove_stdio(&mut self, key: &InodeKey) {
        let _ = self.stdio.remove(key);
    }

    /// Forgets a cgroup that is gone.
    pub fn remove_container(&mut self, cgroup: u64) {
        let _ = self.containers.remove(&cgroup);
        let _ = self.members.remove(&cgroup);
    }

    /// Notes that another agent has filled the maps, and makes the kernel programs announce every file again that it has
    /// heard of: this one has not.
    pub(super) fn take_over(&mut self) {
        self.takes_over = true;
        let Some(files) = &mut self.files else { return };
        let known: Vec<_> = files.states.iter().flatten().collect();
        for (key, state) in known {
            // Another update may have come first, or the entry may be gone.
            if state.verdict == PENDING && files.verdicts.get(&key, 0).is_err() {
                // The announcement may wait in the ring; a second one does no harm.
                let _ = files.states.insert(key, FileState { verdict: UNANNOUNCED, captured: 0, ..state }, BPF_EXIST);
            } else if state.verdict != UNANNOUNCED {
                let _ = files.verdicts.remove(&key);
                let _ = files.states.remove(&key);
            }
        }
    }

    /// The files; once, for the only judge: see `policy`.
    pub fn take_files(&mut self) -> Option<FileMaps> {
        self.files.take()
    }

    /// Whether something holds for the traffic of Pods.
    pub(super) fn governs(&self) -> bool {
        let generation = self.govern.as_ref().and_then(|(govern, _)| govern.governing.get(&0, 0).ok());
        generation.is_some_and(|generation| generation != 0)
    }

    /// Interfaces of the agent's network at which packets are looked at.
    pub(super) fn interfaces(&self) -> BTreeSet<u32> {
        let (Some((_, requests)), Ok(network)) = (&self.govern, interfaces::network_of("self")) else {
            return BTreeSet::new();
        };
        let all = requests.interfaces.iter().flatten();
        all.filter(|(_, interface)| interface.network == network).map(|(index, _)| index).collect()
    }

    /// What governs; once, for the only writer: see `policy`.
    pub fn take_govern(&mut self) -> Option<(program::Maps, RequestMaps)> {
        self.govern.take()
    }

    /// Announcements of files that the ring, or a map, did not take.
    #[must_use]
    pub fn lost_files(&self) -> u64 {
        self.lost_events.get(&u32::from(event::FILE_SEEN), 0).unwrap_or_default()
    }

    /// Records of refusals that the ring did not take.
    #[must_use]
    pub fn lost_refusals(&self) -> u64 {
        self.lost_events.get(&u32::from(event::REFUSED), 0).unwrap_or_default()
    }

    /// Announcements that the ring, or a map, did not take, by name.
    #[must_use]
    pub fn lost_events(&self) -> Vec<(&'static str, u64)> {
        let count = |kind: u16| self.lost_events.get(&u32::from(kind), 0).unwrap_or_default();
        ANNOUNCEMENTS.iter().map(|(kind, name)| (*name, count(*kind))).collect()
    }
}
