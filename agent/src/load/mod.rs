//! Loads the kernel programs: what this kernel can do, the offsets that the programs need, attach, health.

pub mod btf;
pub mod cgroups;
pub mod governors;
pub mod interfaces;
pub mod layout;
pub mod maps;
pub mod pins;
pub mod probes;
pub mod report;
pub mod running;

use std::{
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
};

use aya::{EbpfLoader, maps::Array, programs::links::FdLink};
use sha2::{Digest, Sha256};
use sidestep_abi::kernel::{Control, Generations, Limits};

pub use cgroups::{CgroupError, RootPattern};
pub use governors::Governors;
pub use maps::{FileMaps, KernelMaps};
pub use pins::{OlderRing, PinError, Pinned};
pub use probes::{AttachPoint, Health, Probe};

/// The kernel programs, compiled for BPF and embedded.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sidestep-ebpf"));

/// What the loader has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Cgroups below which processes are captured.
    pub roots: Vec<RootPattern>,
    /// Where the v2 hierarchy is mounted; found when `None`.
    pub cgroup_mount: Option<PathBuf>,
    /// Bytes of the ring: a power of two and a multiple of the page size.
    pub ring_size: u32,
    /// Bytes of the ring that one container may hold.
    pub container_share: u32,
    /// Attach point for finished writes; the best that works when `None`.
    pub attach: Option<AttachPoint>,
    /// Whether policies of traffic let through what the node itself sends.
    pub exempts_node: bool,
    /// Where programs and maps are pinned; `None` when they end with the agent.
    pub pins: Option<pins::Settings>,
}

/// Why the kernel programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The agent was built without its kernel programs.
    #[error("this agent was built without its kernel programs; build it with `cargo xtask build`")]
    NoObject,
    /// The kernel's types can't be used.
    #[error(transparent)]
    Btf(#[from] btf::BtfError),
    /// The cgroups can't be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The kernel refused the object or a map.
    #[error(
        "the kernel refused the programs' maps: {0}; the agent needs CAP_BPF and CAP_PERFMON (or to run privileged), and Linux 5.17 or a kernel with the same features"
    )]
    Object(#[source] Box<aya::EbpfError>),
    /// The pins can't be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A map of the object is not as expected.
    #[error("map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// The cause.
        source: Box<aya::maps::MapError>,
    },
    /// A probe that nothing works without could not be attached.
    #[error("probe {name}: {reason}")]
    Probe {
        /// The probe.
        name: String,
        /// What every attach point that was tried said.
        reason: String,
    },
}

impl LoadError {
    /// Whether the kernel or the node is the cause, so that looking at those helps.
    #[must_use]
    pub const fn is_of_the_node(&self) -> bool {
        !matches!(self, Self::NoObject)
    }
}

/// The loaded programs. Dropping it detaches and unloads them, unless they are pinned to stay.
pub struct Kernel {
    /// The programs and their links.
    pub programs: Programs,
    /// The maps, for `drain` and `policy`.
    pub maps: KernelMaps,
    /// Which cgroups are governed.
    pub roots: Roots,
    /// The programs that govern; or why there are none.
    pub governors: Result<Governors, String>,
}

/// Has the programs that an agent before has left take nothing of this process' cgroup: see [`pins::disown`]. To be called
/// before the first word, by the only agent. What fails here is told when the programs are taken over.
pub fn disown(settings: &Settings) {
    let mount = cgroups::mount(settings.cgroup_mount.as_deref());
    let own = mount.ok().and_then(|mount| cgroups::of_process(&mount, std::process::id()));
    if let (Some(pins), Some(own)) = (&settings.pins, own) {
        let _ = pins::disown(&pins.directory, own);
    }
}

/// The programs and their links: they run as long as this lives, or the pins do.
pub struct Programs {
    /// Links that are not pinned.
    _links: Vec<(String, FdLink)>,
    /// What is attached where.
    pub probes: Vec<Probe>,
    /// What is pinned.
    pub pinned: Option<Pinned>,
}

impl Kernel {
    /// Loads and attaches everything, or goes on with what an agent before has pinned, and registers the containers that
    /// already run.
    ///
    /// # Errors
    /// When something that nothing works without is missing; the text says what to do.
    pub fn load(settings: &Settings) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        let mount = cgroups::mount(settings.cgroup_mount.as_deref())?;
        if cgroups::is_part(&mount) {
            return Err(CgroupError::Part(mount).into());
        }
        let roots = Roots { settings: settings.clone(), mount };
        let Some(pins) = &settings.pins else {
            let loaded = Loaded::new(&roots, None)?;
            let programs = Programs { _links: loaded.links, probes: loaded.probes, pinned: None };
            return Ok(Self { programs, maps: loaded.maps, roots, governors: loaded.governors });
        };
        let object = data_encoding::HEXLOWER.encode(&Sha256::digest(OBJECT));
        let wanted = pins::Wanted { settings, object: &object };
        match pins::reuse(pins::look(pins)?, &wanted, pins.keep)? {
            Ok(reused) => Self::go_on(reused, roots),
            Err(found) => Self::replace(pins::make(*found, &wanted)?, &wanted, pins.keep, roots),
        }
    }

    /// Takes over programs that run.
    fn go_on(reused: pins::Reused, roots: Roots) -> Result<Self, LoadError> {
        let mut maps = KernelMaps::new(|name| reused.map(name))?;
        let known = maps.control()?;
        maps.set_control(&Control { generation: known.generation, ..roots.control()? })?;
        maps.take_over();
        if let Err(error) = roots.register(&mut maps) {
            tracing::warn!(%error, "not every container that runs already is captured");
        }
        let pins::Reused { pinned, older, probes } = reused;
        maps.older = older;
        let governors = Governors::pinned(pinned.set(), &roots.mount, roots.patterns());
        Ok(Self { programs: Programs { _links: Vec::new(), probes, pinned: Some(pinned) }, maps, roots, governors })
    }

    /// Loads this agent's programs, pins them, and lets them take the place of those that run, if any do.
    fn replace(making: pins::Making, wanted: &pins::Wanted<'_>, keep: bool, roots: Roots) -> Result<Self, LoadError> {
        let loaded = match Loaded::new(&roots, Some(&making)) {
            Ok(loaded) => loaded,
            Err(error) => {
                making.abandon();
                return Err(error);
            }
        };
        let Loaded { mut maps, probes, links, governors } = loaded;
        let (pinned, older) = making.finish(wanted, &probes, links, keep)?;
        maps.older = older;
        // The set has another name by now.
        let governors = governors.and_then(|_| Governors::pinned(pinned.set(), &roots.mount, roots.patterns()));
        Ok(Self { programs: Programs { _links: Vec::new(), probes, pinned: Some(pinned) }, maps, roots, governors })
    }
}

/// Programs that are loaded and attached.
struct Loaded {
    maps: KernelMaps,
    probes: Vec<Probe>,
    links: Vec<(String, FdLink)>,
    governors: Result<Governors, String>,
}

impl Loaded {
    fn new(roots: &Roots, making: Option<&pins::Making>) -> Result<Self, LoadError> {
        let settings = &roots.settings;
        let layout = layout::kernel_layout(Path::new(layout::BTF_PATH))?;
        let numbers = layout::syscall_numbers();
        let generation = making.map_or(1, pins::Making::generation);
        // What nobody else marks packets with.
        let mark = RandomState::new().hash_one(generation) as u32 | 1;
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .override_global("KERNEL_LAYOUT", &layout, true)
            .override_global("SYSCALL_NUMBERS", &numbers, true)
            .override_global("GENERATION", &generation, true)
            .override_global("MARK", &mark, true)
            .map_max_entries("RING", settings.ring_size);
        if let Some(making) = making {
            for name in maps::NAMES {
                loader.map_pin_path(name, making.map_path(name));
            }
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))?;
        match making {
            Some(making) => making.announce()?,
            None => {
                // Not taken out: its descriptor has to be open until the programs are loaded.
                let active = ebpf.map_mut("ACTIVE").ok_or_else(|| maps::missing("ACTIVE"))?;
                let mut active: Array<_, Generations> = active.try_into().map_err(maps::failed("ACTIVE"))?;
                let only = Generations { active: generation, lowest: generation, highest: generation };
                active.set(0, only, 0).map_err(maps::failed("ACTIVE"))?;
            }
        }
        let mut maps = KernelMaps::new(|name| maps::take(&mut ebpf, name))?;
        maps.set_control(&roots.control()?)?;
        if making.is_some_and(pins::Making::takes_over) {
            maps.take_over();
        }

        // Births first, then those that were born before, then their writes: none falls between.
        let mut attaching = probes::Attaching::new(&mut ebpf);
        let mut probes = probes::attach_life(&mut attaching)?;
        if let Err(error) = roots.register(&mut maps) {
            tracing::warn!(%error, "not every container that runs already is captured");
        }
        probes.extend(probes::attach_writes(&mut attaching, settings.attach, &layout)?);
        let links = attaching.links;
        let governors = governors::load(&mut ebpf).and_then(|()| {
            let Some(making) = making else { return Ok(Governors::loaded(ebpf, &roots.mount, roots.patterns())) };
            governors::pin(&mut ebpf, making.set())?;
            let mut governors = Governors::pinned(making.set(), &roots.mount, roots.patterns())?;
            // Before those of an agent before are detached. What is refused is tried again, and told, later.
            let _ = governors.refresh(maps.governs());
            let _ = governors.refresh_interfaces(&maps.interfaces());
            Ok(governors)
        });
        release_memory();
        Ok(Self { maps, probes, links, governors })
    }
}

/// The governed roots, as configured and as they exist.
#[derive(Clone, Debug)]
pub struct Roots {
    settings: Settings,
    /// Where the v2 hierarchy is mounted.
    pub mount: PathBuf,
}

impl Roots {
    /// As configured.
    #[must_use]
    pub fn patterns(&self) -> &[RootPattern] {
        &self.settings.roots
    }

    /// Which of them are there now, and which are not, as configured.
    #[must_use]
    pub fn present_and_absent(&self) -> (Vec<&str>, Vec<&str>) {
        let (mut present, mut absent) = (Vec::new(), Vec::new());
        for root in self.patterns() {
            let list = if root.exists(&self.mount) { &mut present } else { &mut absent };
            list.push(root.as_str());
        }
        (present, absent)
    }

    /// Tells the kernel programs of roots that came or went; returns whether there were any.
    ///
    /// # Errors
    /// When the maps can't be written.
    pub fn refresh(&self, maps: &mut KernelMaps) -> Result<bool, LoadError> {
        let mut control = self.control()?;
        let known = maps.control()?;
        control.generation = known.generation;
        if control.trusts_sockets != known.trusts_sockets {
            maps.set_control(&Control { trusts_sockets: control.trusts_sockets, ..known })?;
        }
        if control.roots_len == known.roots_len
            && control.roots.iter().zip(&known.roots).all(|(new, old)| (new.id, new.level) == (old.id, old.level))
        {
            return Ok(false);
        }
        maps.set_control(&control)?;
        self.register(maps)?;
        maps.begin_generation()?;
        let (present, _) = self.present_and_absent();
        tracing::info!("governed cgroups have come or gone; there now: {}", report::list(&present));
        Ok(true)
    }

    /// Registers the containers that run and that the kernel programs have not registered.
    ///
    /// # Errors
    /// When a map is full, so that not all could be.
    pub fn register(&self, maps: &mut KernelMaps) -> Result<(), LoadError> {
        running::register(&self.mount, &self.settings.roots, maps)
    }

    fn control(&self) -> Result<Control, CgroupError> {
        let mut control = Control {
            agent_tgid: std::process::id(),
            agent_started: running::started(std::process::id()).unwrap_or_default(),
            agent_cgroup: cgroups::of_process(&self.mount, std::process::id()).unwrap_or_default(),
            exempts_node: self.settings.exempts_node.into(),
            trusts_sockets: governors::others_are_asked(&self.mount).into(),
            ..Control::default()
        };
        let (ring, share) = (u64::from(self.settings.ring_size), u64::from(self.settings.container_share));
        control.stdio = Limits::new(ring, share);
        control.files = Limits::new(ring, share / 2);
        let roots: Vec<_> = self.settings.roots.iter().filter_map(|pattern| pattern.resolve(&self.mount)).collect();
        if roots.len() > control.roots.len() {
            return Err(CgroupError::TooMany(roots.len()));
        }
        control.roots[..roots.len()].copy_from_slice(&roots);
        control.roots_len = roots.len() as u32;
        Ok(control)
    }
}

/// Gives back what reading BTF took: the allocator would keep it for the life of the agent.
fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
