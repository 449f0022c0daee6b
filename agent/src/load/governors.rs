//! The programs that govern. They are attached to the governed cgroups themselves, so that no other process pays, and to each
//! that comes later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, CgroupSockAddrAttachType as Point, links::FdLink},
};

use super::{
    cgroups::{self, RootPattern},
    pins::Set,
    probes::text,
};

/// Programs by name, and where each is attached.
const PROGRAMS: [(&str, Point); 4] = [
    ("connect4", Point::Connect4),
    ("connect6", Point::Connect6),
    ("sendmsg4", Point::UDPSendMsg4),
    ("sendmsg6", Point::UDPSendMsg6),
];

/// The programs, and where they are attached. Dropping it detaches those that are not pinned.
pub struct Governors {
    held: Held,
    mount: PathBuf,
    roots: Vec<RootPattern>,
}

enum Held {
    /// Loaded by this agent, for as long as it lives, and the links by their names.
    Loaded { ebpf: Box<Ebpf>, links: BTreeMap<String, FdLink> },
    /// Pinned in a set, with the links.
    Pinned { set: Set, programs: Vec<CgroupSockAddr> },
}

/// Whether the process may load and attach such programs: `CAP_NET_ADMIN`, or `CAP_SYS_ADMIN`.
pub(super) fn may_load() -> bool {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (NET_ADMIN | SYS_ADMIN) != 0)
}

/// Whether a set has all the programs.
pub(super) fn are_pinned(set: &Set) -> bool {
    PROGRAMS.iter().all(|(name, _)| set.program_path(name).exists())
}

/// Loads the programs.
///
/// # Errors
/// The kernel refuses one.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), String> {
    PROGRAMS
        .iter()
        .try_for_each(|(name, _)| program(ebpf, name)?.load().map_err(|error| format!("{name}: {}", text(error))))
}

/// Pins the programs, so that they can be attached to cgroups that come later, by whatever agent.
///
/// # Errors
/// The kernel refuses a pin.
pub(super) fn pin(ebpf: &mut Ebpf, set: &Set) -> Result<(), String> {
    for (name, _) in PROGRAMS {
        let path = set.program_path(name);
        program(ebpf, name)?.pin(&path).map_err(|error| format!("{}: {}", path.display(), text(error)))?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr, String> {
    ebpf.program_mut(name).ok_or("not in the object")?.try_into().map_err(text)
}

impl Governors {
    /// Of programs that this agent has loaded, and that end with it.
    pub(super) fn loaded(ebpf: Ebpf, mount: &Path, roots: &[RootPattern]) -> Self {
        Self {
            held: Held::Loaded { ebpf: Box::new(ebpf), links: BTreeMap::new() },
            mount: mount.to_owned(),
            roots: roots.to_vec(),
        }
    }

    /// Of programs that are pinned in a set.
    ///
    /// # Errors
    /// One is not there.
    pub(super) fn pinned(set: &Set, mount: &Path, roots: &[RootPattern]) -> Result<Self, String> {
        let open = |(name, point): (&str, Point)| {
            let path = set.program_path(name);
            CgroupSockAddr::from_pin(&path, point).map_err(|error| format!("{}: {}", path.display(), text(error)))
        };
        let programs = PROGRAMS.into_iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { held: Held::Pinned { set: set.clone(), programs }, mount: mount.to_owned(), roots: roots.to_vec() })
    }

    /// Attaches each program to the governed cgroups that it is not attached to, and lets go of those that are gone; of all when
    /// they are not `needed`. A link whose pin somebody has taken away is made again.
    ///
    /// # Errors
    /// What the kernel says of the first that it refuses; it is tried again with the next call.
    pub fn refresh(&mut self, needed: bool) -> Result<(), String> {
        let there = if needed { cgroups::tops(&self.mount, &self.roots) } else { Vec::new() };
        let attached: BTreeSet<String> = match &self.held {
            Held::Loaded { links, .. } => links.keys().cloned().collect(),
            Held::Pinned { set, .. } => set.link_names().into_iter().collect(),
        };
        for link in &attached {
            let is_gone = |cgroup: u64| !there.iter().any(|(id, _)| *id == cgroup);
            if cgroup_of(link).is_some_and(is_gone) {
                match &mut self.held {
                    Held::Loaded { links, .. } => drop(links.remove(link)),
                    Held::Pinned { set, .. } => set.unpin_link(link),
                }
            }
        }
        let mut result = Ok(());
        for (id, path) in there {
            for (index, (name, _)) in PROGRAMS.into_iter().enumerate() {
                let link = link_name(name, id);
                if !attached.contains(&link) {
                    let made = self.attach(index, name, link, &path);
                    result = result.and(made.map_err(|error| format!("{name} at {}: {error}", path.display())));
                }
            }
        }
        result
    }

    fn attach(&mut self, index: usize, name: &str, link_name: String, path: &Path) -> Result<(), String> {
        let cgroup = match File::open(path) {
            // It has gone since it was found.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(text)?,
        };
        let program = match &mut self.held {
            Held::Loaded { ebpf, .. } => program(ebpf, name)?,
            Held::Pinned { programs, .. } => programs.get_mut(index).ok_or("not in the set")?,
        };
        // Links are always beside those of others (`BPF_F_ALLOW_MULTI` is implied, `cgroup_bpf_link_attach`).
        let link = program.attach(&cgroup, CgroupAttachMode::Single).map_err(text)?;
        let link: FdLink = program.take_link(link).map_err(text)?.try_into().map_err(text)?;
        match &mut self.held {
            Held::Loaded { links, .. } => {
                links.insert(link_name, link);
                Ok(())
            }
            Held::Pinned { set, .. } => set.pin_link(&link_name, link).map_err(text),
        }
    }
}

/// The pin of a link: names of this file system have no dots.
fn link_name(program: &str, cgroup: u64) -> String {
    format!("{program}@{cgroup}")
}

fn cgroup_of(link: &str) -> Option<u64> {
    link.split_once('@')?.1.parse().ok()
}
