//! The maps, programs and links of an agent, by the numbers that the kernel gives them, and which of them are left.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};
use rustix::process::Pid;

use super::open_maps;
use crate::{DEADLINE, wait_until};

/// What the kernel holds for an agent. Numbers are given in turn, so that one which is gone does not come back soon as
/// somebody else's.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Objects {
    maps: BTreeSet<u32>,
    programs: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Objects {
    /// What the agent that is this process has: its maps, the programs that use them, and the links of these.
    ///
    /// # Errors
    /// It is gone, has none of a kind, or the kernel does not show them.
    pub fn of(agent: Pid) -> Result<Self> {
        let open = open_maps(agent)?;
        let mut objects = Self { maps: open.clone(), ..Self::default() };
        // What others have may go while the kernel's lists are walked.
        for program in loaded_programs().flatten() {
            let uses = program.map_ids().ok().flatten().unwrap_or_default();
            if uses.iter().any(|map| open.contains(map)) {
                objects.programs.insert(program.id());
                objects.maps.extend(uses);
            }
        }
        let links = loaded_links().flatten().filter(|link| objects.programs.contains(&link.program_id()));
        objects.links = links.map(|link| link.id()).collect();
        let is_whole = [&objects.maps, &objects.programs, &objects.links].iter().all(|ids| !ids.is_empty());
        ensure!(is_whole, "process {agent} has not all that an agent has: {objects:?}");
        Ok(objects)
    }

    /// Adds what another agent has, or the same one later.
    pub fn extend(&mut self, other: Self) {
        self.maps.extend(other.maps);
        self.programs.extend(other.programs);
        self.links.extend(other.links);
    }

    /// Waits until none of it is left. A program that is attached anywhere, also to a cgroup without a link, is there still.
    ///
    /// # Errors
    /// Something is: it is named in the error.
    pub fn wait_gone(&self) -> Result<()> {
        let mut left = Vec::new();
        // The kernel lets go of programs when all processors are done with them.
        wait_until("the end of all maps, programs and links", DEADLINE, || {
            left = self.left();
            Ok(left.is_empty().then_some(()))
        })
        .with_context(|| format!("left in the kernel: {}", left.join(", ")))
    }

    /// What is there still.
    fn left(&self) -> Vec<String> {
        let links = loaded_links().flatten().filter(|link| self.links.contains(&link.id()));
        let programs = loaded_programs().flatten().filter(|program| self.programs.contains(&program.id()));
        let maps = loaded_maps().flatten().filter(|map| self.maps.contains(&map.id()));
        let links = links.map(|link| format!("link {} of program {}", link.id(), link.program_id()));
        let programs = programs
            .map(|program| format!("program {} {}", program.id(), program.name_as_str().unwrap_or("without a name")));
        let maps = maps.map(|map| format!("map {} {}", map.id(), map.name_as_str().unwrap_or("without a name")));
        links.chain(programs).chain(maps).collect()
    }
}
