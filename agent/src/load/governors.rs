//! The programs that govern. Those for sockets are attached to the governed cgroups themselves, so that no other process pays, and
//! to each that comes later; those for packets at the interfaces of the Pods that have policies for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, CgroupSockAddrAttachType as Point, LinkOrder, Program, ProgramError,
        SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions,
    },
    util::KernelVersion,
};

use super::{
    cgroups::{self, RootPattern},
    interfaces,
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

/// Programs at the Pod's interface on the node, by name: what the node sends there goes to the Pod. What goes to the
/// Pod is answered only where what comes from it is seen as well, so that is the last.
const AT_INTERFACES: [(&str, TcAttachType); 2] =
    [("from_pod", TcAttachType::Ingress), ("to_pod", TcAttachType::Egress)];

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
    Pinned { set: Set, programs: Vec<CgroupSockAddr>, at_interfaces: Vec<SchedClassifier> },
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

/// Whether programs are asked at a cgroup, its own or those above, for connections or datagrams: they may give them another address
/// (`bpf(2)`, `BPF_PROG_QUERY`).
pub(super) fn others_are_asked(cgroup: &Path) -> bool {
    /// Of `union bpf_attr` (`include/uapi/linux/bpf.h`), up to `revision`, to which Linux from 6.17 on writes whatever length it is told.
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        _pad: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    const { assert!(size_of::<Query>() == 64) }
    const BPF_PROG_QUERY: libc::c_long = 16;
    const BPF_F_QUERY_EFFECTIVE: u32 = 1;
    /// `BPF_CGROUP_INET4_CONNECT`, `..6_CONNECT`, `BPF_CGROUP_UDP4_SENDMSG`, `..6_SENDMSG`.
    const POINTS: [u32; 4] = [10, 11, 14, 15];
    let Ok(directory) = File::open(cgroup) else { return false };
    POINTS.into_iter().any(|attach_type| {
        let target_fd = directory.as_raw_fd().cast_unsigned();
        let mut query = Query { target_fd, attach_type, query_flags: BPF_F_QUERY_EFFECTIVE, ..Query::default() };
        // SAFETY: the kernel reads and writes so many bytes of the structure, which lives until then.
        let failed = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
        failed == 0 && query.prog_cnt > 0
    })
}

/// Whether a set has the programs, but for those that not every kernel takes.
pub(super) fn are_pinned(set: &Set) -> bool {
    PROGRAMS.iter().all(|(name, _)| set.program_path(name).exists())
}

/// Loads the programs; those for interfaces where the kernel takes them.
///
/// # Errors
/// The kernel refuses another one.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), String> {
    let failed = |name: &str, error| format!("{name}: {}", text(error));
    for (name, _) in PROGRAMS {
        program::<CgroupSockAddr>(ebpf, name)?.load().map_err(|error| failed(name, error))?;
    }
    if !has_links_at_interfaces() {
        return Ok(());
    }
    for (name, _) in AT_INTERFACES {
        if let Err(error) = program::<SchedClassifier>(ebpf, name)?.load() {
            tracing::warn!(error = failed(name, error), "this kernel takes no programs that govern packets");
            break;
        }
    }
    Ok(())
}

/// Links of programs at interfaces (TCX), which can be pinned, and hold beside those of others.
fn has_links_at_interfaces() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// Pins the programs, so that they can be attached to cgroups that come later, by whatever agent.
///
/// # Errors
/// The kernel refuses a pin.
pub(super) fn pin(ebpf: &mut Ebpf, set: &Set) -> Result<(), String> {
    for name in PROGRAMS.map(|(name, _)| name).into_iter().chain(AT_INTERFACES.map(|(name, _)| name)) {
        let path = set.program_path(name);
        let program = ebpf.program_mut(name).ok_or("not in the object")?;
        if program.fd().is_err() {
            // The kernel has not taken it.
            continue;
        }
        program.pin(&path).map_err(|error| format!("{}: {}", path.display(), text(error)))?;
    }
    Ok(())
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, String>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
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
        let there = AT_INTERFACES.iter().map(|(name, _)| set.program_path(name)).filter(|path| path.exists());
        let open = |path: PathBuf| {
            SchedClassifier::from_pin(&path).map_err(|error| format!("{}: {}", path.display(), text(error)))
        };
        let at_interfaces = there.map(open).collect::<Result<_, _>>()?;
        let held = Held::Pinned { set: set.clone(), programs, at_interfaces };
        Ok(Self { held, mount: mount.to_owned(), roots: roots.to_vec() })
    }

    /// Attaches each program to the governed cgroups that it is not attached to, and lets go of those that are gone; of all when
    /// they are not `needed`. A link whose pin somebody has taken away is made again.
    ///
    /// # Errors
    /// What the kernel says of the first that it refuses; it is tried again with the next call.
    pub fn refresh(&mut self, needed: bool) -> Result<(), String> {
        let there = if needed { cgroups::tops(&self.mount, &self.roots) } else { Vec::new() };
        let attached = self.attached();
        for link in &attached {
            let is_gone = |cgroup: u64| !there.iter().any(|(id, _)| *id == cgroup);
            if place_of(link, AT_CGROUP).is_some_and(is_gone) {
                self.detach(link);
            }
        }
        let mut result = Ok(());
        for (id, path) in there {
            for (index, (name, _)) in PROGRAMS.into_iter().enumerate() {
                let link = format!("{name}{AT_CGROUP}{id}");
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
            Held::Loaded { ebpf, .. } => program::<CgroupSockAddr>(ebpf, name)?,
            Held::Pinned { programs, .. } => programs.get_mut(index).ok_or("not in the set")?,
        };
        // Links are always beside those of others (`BPF_F_ALLOW_MULTI` is implied, `cgroup_bpf_link_attach`).
        let link = program.attach(&cgroup, CgroupAttachMode::Single).map_err(text)?;
        let link: FdLink = program.take_link(link).map_err(text)?.try_into().map_err(text)?;
        self.hold(link_name, link)
    }

    /// Whether this kernel has such links at interfaces.
    #[must_use]
    pub fn reach_interfaces(&self) -> bool {
        has_links_at_interfaces()
    }

    /// The same at interfaces of the node, by their index. Returns those that have not all programs, and why: one without the other
    /// would answer requests and let the Pod's own segments pass.
    ///
    /// # Errors
    /// The kernel takes them at none.
    pub fn refresh_interfaces(&mut self, there: &BTreeSet<u32>) -> Result<BTreeMap<u32, String>, String> {
        let attached = self.attached();
        for link in &attached {
            if place_of(link, AT_INTERFACE).is_some_and(|index| !there.contains(&(index as u32))) {
                self.detach(link);
            }
        }
        if !there.is_empty() && !has_links_at_interfaces() {
            return Err("what comes to Pods is governed from Linux 6.6 on (TCX)".to_owned());
        }
        let mut failed = BTreeMap::new();
        for interface in there {
            for (index, (name, point)) in AT_INTERFACES.into_iter().enumerate() {
                let link = format!("{name}{AT_INTERFACE}{interface}");
                if attached.contains(&link) {
                    continue;
                }
                if let Err(error) = self.attach_at_interface(index, (name, point), link, *interface) {
                    failed.entry(*interface).or_insert(format!("{name} at interface {interface}: {error}"));
                }
            }
        }
        Ok(failed)
    }

    fn attach_at_interface(
        &mut self,
        index: usize,
        (name, point): (&str, TcAttachType),
        link_name: String,
        interface: u32,
    ) -> Result<(), String> {
        let program = match &mut self.held {
            Held::Loaded { ebpf, .. } => program::<SchedClassifier>(ebpf, name)?,
            Held::Pinned { at_interfaces, .. } => at_interfaces.get_mut(index).ok_or("this kernel does not take it")?,
        };
        let interface = interfaces::name(interface).ok_or("it has gone since it was found")?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program.attach_with_options(&interface, point, options).map_err(text)?;
        let link: FdLink = program.take_link(link).map_err(text)?.try_into().map_err(text)?;
        self.hold(link_name, link)
    }

    fn attached(&self) -> BTreeSet<String> {
        match &self.held {
            Held::Loaded { links, .. } => links.keys().cloned().collect(),
            Held::Pinned { set, .. } => set.link_names().into_iter().collect(),
        }
    }

    fn detach(&mut self, link: &str) {
        match &mut self.held {
            Held::Loaded { links, .. } => drop(links.remove(link)),
            Held::Pinned { set, .. } => set.unpin_link(link),
        }
    }

    fn hold(&mut self, name: String, link: FdLink) -> Result<(), String> {
        match &mut self.held {
            Held::Loaded { links, .. } => {
                links.insert(name, link);
                Ok(())
            }
            Held::Pinned { set, .. } => set.pin_link(&name, link).map_err(text),
        }
    }
}

/// What stands in the name of a link's pin between the program's and the number of a cgroup, or the index of an interface: names
/// of this file system have no dots.
const AT_CGROUP: char = '@';
const AT_INTERFACE: char = '%';

fn place_of(link: &str, at: char) -> Option<u64> {
    link.split_once(at)?.1.parse().ok()
}
