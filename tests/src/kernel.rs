//! What the kernel holds for an agent: its objects, and the entries of its maps.

mod objects;

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData, loaded_maps},
};
use rustix::process::Pid;
use sidestep_abi::{
    container::Container,
    stdio::{InodeKey, Stdio},
};

pub use objects::Objects;

use crate::Agent;

/// Entries of the maps that grow with containers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entries {
    /// Cgroups that have executed or written something.
    pub containers: usize,
    /// Registered standard streams.
    pub stdio: usize,
}

impl Entries {
    /// Counts the entries of the maps that `agent` has open.
    ///
    /// # Errors
    /// The agent has no such map, or the kernel does not show it.
    pub fn of(agent: &Agent) -> Result<Self> {
        Self::of_process(agent.pid())
    }

    /// As [`Entries::of`], of an agent that somebody else has started.
    ///
    /// # Errors
    /// As [`Entries::of`].
    pub fn of_process(agent: Pid) -> Result<Self> {
        Ok(Self {
            containers: count::<u64, Container>(agent, "CONTAINERS")?,
            stdio: count::<InodeKey, Stdio>(agent, "STDIO")?,
        })
    }
}

/// Numbers of the maps that a process has open: its descriptors tell in `/proc/<pid>/fdinfo`.
fn open_maps(agent: Pid) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", agent.as_raw_nonzero()))?.flatten() {
        // A descriptor may be closed meanwhile.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        ids.extend(text.lines().filter_map(|line| line.strip_prefix("map_id:")?.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}

fn count<K: Pod, V: Pod>(agent: Pid, name: &str) -> Result<usize> {
    let open = open_maps(agent)?;
    // A map of another agent may go while the kernel's list is walked.
    let mut maps = loaded_maps().flatten();
    let map = maps.find(|map| open.contains(&map.id()) && map.name_as_str() == Some(name));
    let map = map.with_context(|| format!("the agent has no map {name}"))?;
    let map = Map::from_map_data(MapData::from_id(map.id())?)?;
    let map = HashMap::<MapData, K, V>::try_from(map)?;
    let keys: Result<Vec<_>, _> = map.keys().collect();
    Ok(keys.with_context(|| format!("walking through {name}"))?.len())
}
