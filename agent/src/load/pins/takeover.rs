//! From what is pinned to what goes on: the same programs again, or new ones beside the old, which then leave.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::{
    maps::{Array, Map, MapData, PerCpuArray, PerCpuValues},
    programs::links::FdLink,
    util::nr_cpus,
};
use sidestep_abi::kernel::{Control, Generations};

use super::{About, Directory, Layout, PinError, ProbeAbout, Set, Settings, set};
use crate::load::{LoadError, Probe, governors, maps, probes};

/// Between the word that makes the new programs act and the old ones' end: whatever has begun by then is over, so that no
/// event meets both states.
const SETTLE: Duration = Duration::from_millis(20);

/// Maps that every set shares with those before it.
const SHARED: [&str; 2] = ["ACTIVE", "LATCH"];
/// The ring, and what its reader tells.
const RING: [&str; 2] = ["RING", "READER"];
/// Maps that go together: one without the others would say of a container or file what is not so.
const GROUPS: [&[&str]; 5] = [
    &["CONTAINERS", "MEMBERS", "STDIO"],
    &["FILES", "RETIRED", "VERDICTS"],
    &["LOST"],
    &["REFUSED"],
    &[
        "GOVERNING",
        "GOVERNED",
        "ALLOWED",
        "BUCKETS",
        "CLIENTS",
        "FLOWS",
        "ASKERS",
        "INTERFACES",
        "REQUEST_RULES",
        "ANSWERS",
        "CONNECTIONS",
    ],
];

/// How the agent came to its programs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nothing was pinned.
    New,
    /// It goes on with the programs of the agent before.
    TakenOver,
    /// It has put its own programs in place of those of the agent before, and goes on with its maps.
    Replaced,
}

impl Origin {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::TakenOver => "taken over",
            Self::Replaced => "replaced",
        }
    }
}

/// What is pinned of the running agent. As long as it lives, no other agent can use the directory.
#[derive(Debug)]
pub struct Pinned {
    directory: Directory,
    set: Set,
    keep: bool,
    /// How the agent came to it.
    pub origin: Origin,
    /// When the programs were attached.
    pub made: SystemTime,
    /// Version of the agent that has attached them.
    pub version: String,
}

impl Pinned {
    /// The directory of pins.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Generation of the programs.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.set.generation
    }

    /// Its pins.
    pub(in crate::load) const fn set(&self) -> &Set {
        &self.set
    }

    /// Whether the programs go on when the agent stops.
    #[must_use]
    pub const fn keeps(&self) -> bool {
        self.keep
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // With what is left of older sets: their rings are drained, as far as there was time.
        if let Err(error) = set::remove(self.directory.path()) {
            tracing::error!(%error, "the programs are still pinned; `sidestep uninstall` removes them");
        }
    }
}

/// The ring of programs that are detached: drained before the running ones', then removed.
pub struct OlderRing {
    /// The ring.
    pub map: MapData,
    /// Where its records have their fields; `None` when they lie as this agent's do.
    pub layout: Option<Layout>,
    /// Its set, to be removed when everything in it is safe, or counted.
    pub set: Set,
}

/// What is pinned in a directory.
pub(in crate::load) struct Found {
    directory: Directory,
    /// The set whose programs act, and what it tells of itself unless it is damaged.
    current: Option<(Set, Option<About>)>,
    /// All others, and those that are damaged.
    others: Vec<Set>,
    next: u64,
}

/// Locks the directory and looks at what is in it.
pub(in crate::load) fn look(settings: &Settings) -> Result<Found, PinError> {
    let directory = Directory::make(&settings.directory)?;
    let (mut sets, unfinished) = Set::all(directory.path())?;
    for path in unfinished {
        tracing::warn!(path = %path.display(), "an agent has ended while it made these pins; they never counted, and are removed");
        set::remove(&path)?;
    }
    let next = sets.last().map_or(0, |set| set.generation) + 1;
    // A set that waits to be drained only may have words of its own.
    let active = sets.iter().rev().find_map(active);
    let current = sets.iter().position(|set| Some(set.generation) == active);
    let current = current.map(|index| sets.remove(index)).map(|set| {
        let about = set.about().inspect_err(|error| {
            tracing::warn!(%error, "the pins of the agent before are damaged: what it knew is found anew, and what waits \
                                    in its ring is drained as far as it can be read");
        });
        (set, about.ok())
    });
    Ok(Found { directory, current, others: sets, next })
}

/// Which generation acts, as far as a set knows.
fn active(set: &Set) -> Option<u64> {
    let map: Array<_, Generations> = set.map("ACTIVE").ok()?.try_into().ok()?;
    map.get(&0, 0).ok().map(|generations| generations.active)
}

/// Has the programs that act take nothing of `cgroup`, the agent's own, from here on. What it says before it has taken over
/// would be a Pod's log to them otherwise. `None` where there are no such programs, or none that it can tell.
pub(in crate::load) fn disown(directory: &Path, cgroup: u64) -> Option<()> {
    let (sets, _) = Set::all(directory).ok()?;
    let active = sets.iter().rev().find_map(active)?;
    let set = sets.iter().find(|set| set.generation == active)?;
    let is_understood = Layout::own().has_values_of(&set.about().ok()?.layout, "CONTROL");
    let mut map: Array<_, Control> = set.map("CONTROL").ok().filter(|_| is_understood)?.try_into().ok()?;
    let mut control = map.get(&0, 0).ok()?;
    control.agent_cgroup = cgroup;
    map.set(0, control, 0).ok()?;
    // Only then is decided anew what has been decided.
    control.generation += 1;
    map.set(0, control, 0).ok()
}

/// What a new agent wants.
pub(in crate::load) struct Wanted<'a> {
    pub(in crate::load) settings: &'a crate::load::Settings,
    pub(in crate::load) object: &'a str,
}

impl Found {
    /// Why the programs that act can't be gone on with, if there are any.
    fn unfit(&self, wanted: &Wanted<'_>) -> Option<String> {
        let (set, about) = self.current.as_ref()?;
        let about = about.as_ref()?;
        if about.object != wanted.object {
            return Some(format!("they are those of another build (version {})", about.version));
        }
        if about.ring_size != wanted.settings.ring_size {
            return Some(format!("capture.ring_size was {} bytes", about.ring_size));
        }
        if about.attach != wanted.settings.attach {
            return Some("capture.attach was another one".to_owned());
        }
        if governors::may_load() && !governors::are_pinned(set) {
            return Some("the programs that govern are missing".to_owned());
        }
        let missing = set.missing_links(&about.links);
        if !missing.is_empty() {
            return Some(format!(
                "links are missing: {}; what they would have seen since is not known",
                missing.join(", ")
            ));
        }
        let missing: Vec<_> = maps::NAMES.into_iter().filter(|name| set.map_data(name).is_err()).collect();
        (!missing.is_empty()).then(|| format!("maps are missing: {}; what they held is found anew", missing.join(", ")))
    }
}

/// Goes on with the programs that act, when they are this agent's own: nothing is loaded, nothing attached.
pub(in crate::load) fn reuse(
    found: Found,
    wanted: &Wanted<'_>,
    keep: bool,
) -> Result<Result<Reused, Box<Found>>, LoadError> {
    if let Some(reason) = found.unfit(wanted) {
        tracing::warn!("programs are pinned, and replaced: {reason}");
        return Ok(Err(Box::new(found)));
    }
    let Found { directory, current: Some((set, Some(about))), others, next } = found else {
        return Ok(Err(Box::new(found)));
    };
    let Some(probes) = about.probes.iter().map(ProbeAbout::to_probe).collect::<Option<Vec<_>>>() else {
        return Ok(Err(Box::new(Found { directory, current: Some((set, Some(about))), others, next })));
    };
    // The agent before may have ended in the middle of a takeover: these programs act alone before others are detached.
    set_generations(&set, &|_| alone(set.generation))?;
    let older = retire(others, &set)?;
    let pinned = Pinned {
        directory,
        keep,
        origin: Origin::TakenOver,
        made: UNIX_EPOCH + Duration::from_secs(about.made_unix_seconds),
        version: about.version,
        set,
    };
    Ok(Ok(Reused { pinned, older, probes }))
}

/// What goes on.
pub(in crate::load) struct Reused {
    pub(in crate::load) pinned: Pinned,
    pub(in crate::load) older: Vec<OlderRing>,
    pub(in crate::load) probes: Vec<Probe>,
}

impl Reused {
    /// Opens a map.
    pub(in crate::load) fn map(&self, name: &'static str) -> Result<Map, LoadError> {
        self.pinned.set.map(name)
    }
}

/// A set that is being made, and what it takes the place of.
pub(in crate::load) struct Making {
    found: Found,
    set: Set,
    /// The generation that acts until then.
    before: Option<u64>,
    shares_ring: bool,
}

/// Begins a set for new programs, with the maps of those before as far as they fit.
pub(in crate::load) fn make(found: Found, wanted: &Wanted<'_>) -> Result<Making, LoadError> {
    let set = Set::begin(found.directory.path(), found.next)?;
    let mut making = Making { before: None, shares_ring: false, set, found };
    let shared = making.share(wanted);
    if let Err(error) = shared {
        let _ = making.set.remove();
        return Err(error.into());
    }
    Ok(making)
}

impl Making {
    fn share(&mut self, wanted: &Wanted<'_>) -> Result<(), PinError> {
        let own = Layout::own();
        let Some((before, about)) = &self.found.current else { return Ok(()) };
        for name in SHARED {
            self.set.share(before, name)?;
        }
        self.before = Some(before.generation);
        let Some(about) = about else { return Ok(()) };
        self.shares_ring = about.ring_size == wanted.settings.ring_size
            && own.has_records_of(&about.layout)
            && RING.iter().all(|name| before.map_data(name).is_ok());
        if self.shares_ring {
            for name in RING {
                self.set.share(before, name)?;
            }
        }
        for group in GROUPS {
            let fits = |name: &&'static str| own.has_values_of(&about.layout, name) && before.map_data(name).is_ok();
            if group.iter().all(fits) {
                for name in group {
                    self.set.share(before, name)?;
                }
            } else if group.iter().any(|name| before.map_data(name).is_ok()) {
                tracing::warn!(
                    maps = group.join(", "),
                    "the agent before has kept these in another way: what they held is found anew, so streams begin \
                     anew, and files are judged again"
                );
            }
        }
        Ok(())
    }

    /// Generation of the new programs.
    pub(in crate::load) const fn generation(&self) -> u64 {
        self.set.generation
    }

    /// The pins.
    pub(in crate::load) const fn set(&self) -> &Set {
        &self.set
    }

    /// Whether programs act that these take the place of.
    pub(in crate::load) const fn takes_over(&self) -> bool {
        self.before.is_some()
    }

    /// Where a map is, or is to be, pinned.
    pub(in crate::load) fn map_path(&self, name: &str) -> PathBuf {
        self.set.map_path(name)
    }

    /// Before the programs are attached: they are not to act yet, when others do.
    pub(in crate::load) fn announce(&self) -> Result<(), LoadError> {
        let generation = self.set.generation;
        let Some(before) = self.before else { return set_generations(&self.set, &|_| alone(generation)) };
        let mut latch: PerCpuArray<_, u64> = self.set.map("LATCH")?.try_into().map_err(maps::failed("LATCH"))?;
        let cpus = nr_cpus().map_err(|(_, error)| PinError::io("counting CPUs for", self.set.path(), error))?;
        let values = PerCpuValues::try_from(vec![before; cpus])
            .map_err(|error| PinError::io("filling the latch of", self.set.path(), error))?;
        latch.set(0, values, 0).map_err(maps::failed("LATCH"))?;
        set_generations(&self.set, &|_| Generations { active: before, lowest: before, highest: generation })
    }

    /// Pins the links, makes the new programs act, and takes the old ones away.
    pub(in crate::load) fn finish(
        mut self,
        wanted: &Wanted<'_>,
        probes: &[Probe],
        links: Vec<(String, FdLink)>,
        keep: bool,
    ) -> Result<(Pinned, Vec<OlderRing>), LoadError> {
        let made = SystemTime::now();
        let about = About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            object: wanted.object.to_owned(),
            made_unix_seconds: made.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            attach: wanted.settings.attach,
            ring_size: wanted.settings.ring_size,
            layout: Layout::own(),
            links: links.iter().map(|(name, _)| name.clone()).collect(),
            probes: probes.iter().map(ProbeAbout::from).collect(),
        };
        for (name, link) in links {
            self.set.pin_link(&name, link)?;
        }
        self.set.finish(&about)?;
        let generation = self.set.generation;
        if self.before.is_some() {
            set_generations(&self.set, &|known| Generations { active: generation, ..known })?;
            std::thread::sleep(SETTLE);
            set_generations(&self.set, &|_| alone(generation))?;
        }
        let origin = if self.found.current.is_some() { Origin::Replaced } else { Origin::New };
        let Found { directory, current, mut others, .. } = self.found;
        others.extend(current.map(|(set, _)| set));
        let older = retire(others, &self.set)?;
        Ok((Pinned { directory, set: self.set, keep, origin, made, version: about.version }, older))
    }

    /// Takes back what was made, because something is refused: what acted before goes on.
    pub(in crate::load) fn abandon(self) {
        if let Some(before) = self.before {
            let _ = set_generations(&self.set, &|_| alone(before));
        }
        if let Err(error) = self.set.remove() {
            tracing::warn!(%error, "pins that are of no use can't be removed; `sidestep uninstall` does");
        }
    }
}

const fn alone(generation: u64) -> Generations {
    Generations { active: generation, lowest: generation, highest: generation }
}

fn set_generations(set: &Set, change: &dyn Fn(Generations) -> Generations) -> Result<(), LoadError> {
    let mut map: Array<_, Generations> = set.map("ACTIVE")?.try_into().map_err(maps::failed("ACTIVE"))?;
    let known = map.get(&0, 0).map_err(maps::failed("ACTIVE"))?;
    map.set(0, change(known), 0).map_err(maps::failed("ACTIVE"))
}

/// Detaches the programs of other sets, and gives the rings that only they have.
fn retire(others: Vec<Set>, current: &Set) -> Result<Vec<OlderRing>, LoadError> {
    let own = id(&current.map_data("RING")?);
    let mut rings: Vec<OlderRing> = Vec::new();
    let mut known = vec![own];
    for set in others {
        set.detach()?;
        let ring = set.map_data("RING").ok().filter(|ring| !known.contains(&id(ring)));
        let Some(map) = ring else {
            set.remove()?;
            continue;
        };
        known.push(id(&map));
        // Of a damaged set nothing tells where its records have their fields; they are most likely this agent's own,
        // and what can't be read is counted.
        let layout = set.about().ok().map(|about| about.layout).filter(|layout| !layout.has_records_of(&Layout::own()));
        rings.push(OlderRing { map, layout, set });
    }
    Ok(rings)
}

/// The kernel's number of a map; 0 when it does not tell.
fn id(map: &MapData) -> u32 {
    map.info().map_or(0, |info| info.id())
}

impl From<&Probe> for ProbeAbout {
    fn from(probe: &Probe) -> Self {
        Self {
            name: probe.name.to_owned(),
            attached: probe.attached,
            health: probe.health,
            reason: probe.reason.clone(),
            required: probe.required,
        }
    }
}

impl ProbeAbout {
    /// `None` when this agent knows no such probe.
    fn to_probe(&self) -> Option<Probe> {
        let name = probes::name(&self.name)?;
        let Self { attached, health, required, .. } = *self;
        Some(Probe { name, attached, health, reason: self.reason.clone(), required })
    }
}
