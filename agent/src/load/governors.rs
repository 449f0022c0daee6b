//! The programs that govern. They are attached to the governed cgroups themselves, so that no other process pays, and to each
//! that comes later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
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
    /// Links that are not pinned, by the cgroup.
    links: BTreeMap<u64, Vec<FdLink>>,
    attached: BTreeSet<u64>,
}

enum Held {
    /// Loaded by this agent, for as long as it lives.
    Loaded(Box<Ebpf>),
    /// Pinned in a set.
    Pinned { set: Set, programs: Vec<CgroupSockAddr> },
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
        Self::new(Held::Loaded(Box::new(ebpf)), mount, roots, BTreeSet::new())
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
        let attached = set.link_names().iter().filter_map(|name| cgroup_of(name)).collect();
        Ok(Self::new(Held::Pinned { set: set.clone(), programs }, mount, roots, attached))
    }

    fn new(held: Held, mount: &Path, roots: &[RootPattern], attached: BTreeSet<u64>) -> Self {
        Self { held, mount: mount.to_owned(), roots: roots.to_vec(), links: BTreeMap::new(), attached }
    }

    /// Attaches the programs to governed cgroups that are new, and lets go of those that are gone.
    ///
    /// # Errors
    /// What the kernel says of the first cgroup that it refuses.
    pub fn refresh(&mut self) -> Result<(), String> {
        let there = cgroups::tops(&self.mount, &self.roots);
        let gone: Vec<_> =
            self.attached.iter().filter(|id| !there.iter().any(|(there, _)| there == *id)).copied().collect();
        for id in gone {
            self.attached.remove(&id);
            self.links.remove(&id);
            if let Held::Pinned { set, .. } = &self.held {
                PROGRAMS.iter().for_each(|(name, _)| set.unpin_link(&link_name(name, id)));
            }
        }
        let mut result = Ok(());
        for (id, path) in there {
            if !self.attached.contains(&id) {
                result = result.and(self.attach(id, &path).map_err(|error| format!("{}: {error}", path.display())));
            }
        }
        result
    }

    fn attach(&mut self, id: u64, path: &Path) -> Result<(), String> {
        let cgroup = File::open(path).map_err(text)?;
        let mut links = Vec::new();
        for (index, (name, _)) in PROGRAMS.into_iter().enumerate() {
            let program = match &mut self.held {
                Held::Loaded(ebpf) => program(ebpf, name)?,
                Held::Pinned { programs, .. } => programs.get_mut(index).ok_or("not in the set")?,
            };
            // Links are always beside those of others (`BPF_F_ALLOW_MULTI` is implied, `cgroup_bpf_link_attach`).
            let link = program.attach(&cgroup, CgroupAttachMode::Single).map_err(text)?;
            let link: FdLink = program.take_link(link).map_err(text)?.try_into().map_err(text)?;
            links.push((name, link));
        }
        match &self.held {
            Held::Loaded(_) => {
                self.links.insert(id, links.into_iter().map(|(_, link)| link).collect());
            }
            Held::Pinned { set, .. } => {
                for (name, link) in links {
                    set.pin_link(&link_name(name, id), link).map_err(text)?;
                }
            }
        }
        self.attached.insert(id);
        Ok(())
    }
}

/// The pin of a link: names of this file system have no dots.
fn link_name(program: &str, cgroup: u64) -> String {
    format!("{program}@{cgroup}")
}

fn cgroup_of(link: &str) -> Option<u64> {
    link.split_once('@')?.1.parse().ok()
}
