//! One set of pins: the maps and links of the programs of one generation.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::{Map, MapData},
    programs::links::{FdLink, PinnedLink},
};

use super::{About, PinError};
use crate::load::{LoadError, maps, probes::text};

/// Every set has its maps here,
const MAPS: &str = "maps";
/// its links here,
const LINKS: &str = "links";
/// programs that are attached to cgroups as these come here,
const PROGRAMS: &str = "programs";
/// and what it tells of itself here: pinned last.
const ABOUT: &str = "about";
/// What stands before the generation in the name of a set that is being made; a name of this file system has no dots.
const UNFINISHED: &str = "making-";

/// A set of pins: a directory that is named by its generation.
#[derive(Clone, Debug)]
pub struct Set {
    path: PathBuf,
    /// Generation of its programs.
    pub generation: u64,
}

impl Set {
    /// Begins a new set. It has no place among the others until [`Set::finish`].
    ///
    /// # Errors
    /// The directories can't be made.
    pub fn begin(directory: &Path, generation: u64) -> Result<Self, PinError> {
        let set = Self { path: directory.join(format!("{UNFINISHED}{generation}")), generation };
        for folder in [MAPS, LINKS, PROGRAMS] {
            let path = set.path.join(folder);
            fs::create_dir_all(&path).map_err(|source| PinError::io("making", &path, source))?;
        }
        Ok(set)
    }

    /// Says that the set is whole.
    ///
    /// # Errors
    /// A pin or the directory's name is refused.
    pub fn finish(&mut self, about: &About) -> Result<(), PinError> {
        about.pin(&self.path.join(ABOUT))?;
        let path = self.path.with_file_name(self.generation.to_string());
        fs::rename(&self.path, &path).map_err(|source| PinError::io("naming", &path, source))?;
        self.path = path;
        Ok(())
    }

    /// The sets in a directory, by generation, and what is left of sets that were never finished.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn all(directory: &Path) -> Result<(Vec<Self>, Vec<PathBuf>), PinError> {
        let entries = fs::read_dir(directory).map_err(|source| PinError::io("reading", directory, source))?;
        let (mut sets, mut unfinished) = (Vec::new(), Vec::new());
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Ok(generation) = name.parse() {
                sets.push(Self { path, generation });
            } else if name.strip_prefix(UNFINISHED).is_some_and(|number| number.parse::<u64>().is_ok()) {
                unfinished.push(path);
            }
        }
        sets.sort_unstable_by_key(|set| set.generation);
        Ok((sets, unfinished))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it tells of itself.
    ///
    /// # Errors
    /// It is damaged, or made by an agent of another kind.
    pub fn about(&self) -> Result<About, PinError> {
        About::read(&self.path.join(ABOUT))
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map_path(&self, name: &str) -> PathBuf {
        self.path.join(MAPS).join(name)
    }

    /// Where a program is pinned.
    #[must_use]
    pub fn program_path(&self, name: &str) -> PathBuf {
        self.path.join(PROGRAMS).join(name)
    }

    /// Opens a map.
    ///
    /// # Errors
    /// It is not there.
    pub fn map(&self, name: &'static str) -> Result<Map, LoadError> {
        Map::from_map_data(self.map_data(name)?).map_err(maps::failed(name))
    }

    /// As [`Set::map`], of any type.
    ///
    /// # Errors
    /// It is not there.
    pub fn map_data(&self, name: &'static str) -> Result<MapData, LoadError> {
        MapData::from_pin(self.map_path(name)).map_err(maps::failed(name))
    }

    /// Pins a map of `other` in this set too.
    ///
    /// # Errors
    /// It is not there, or the kernel refuses the pin.
    pub fn share(&self, other: &Self, name: &'static str) -> Result<(), PinError> {
        let path = self.map_path(name);
        let failed = |reason| PinError::Pin { path: path.clone(), reason };
        let data = MapData::from_pin(other.map_path(name)).map_err(|error| failed(text(error)))?;
        data.pin(&path).map_err(|error| failed(text(error)))
    }

    /// Pins a link, which holds its program.
    ///
    /// # Errors
    /// The kernel refuses the pin.
    pub fn pin_link(&self, name: &str, link: FdLink) -> Result<(), PinError> {
        let path = self.path.join(LINKS).join(name);
        link.pin(&path).map(drop).map_err(|error| PinError::Pin { path, reason: text(error) })
    }

    /// Those of the named links that are not there.
    #[must_use]
    pub fn missing_links<'a>(&self, names: &'a [String]) -> Vec<&'a str> {
        let is_there = |name: &str| PinnedLink::from_pin(self.path.join(LINKS).join(name)).is_ok();
        names.iter().map(String::as_str).filter(|name| !is_there(name)).collect()
    }

    /// How many links it has.
    #[must_use]
    pub fn link_count(&self) -> usize {
        self.link_names().len()
    }

    /// The names of its links.
    #[must_use]
    pub fn link_names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path.join(LINKS)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Takes a link away that sees nothing any more.
    pub fn unpin_link(&self, name: &str) {
        let _ = fs::remove_file(self.path.join(LINKS).join(name));
    }

    /// Takes the links away: the programs see nothing from now on. The maps stay.
    ///
    /// # Errors
    /// A pin can't be removed.
    pub fn detach(&self) -> Result<(), PinError> {
        remove(&self.path.join(LINKS))
    }

    /// Removes it, links first.
    ///
    /// # Errors
    /// A pin can't be removed.
    pub fn remove(&self) -> Result<(), PinError> {
        self.detach()?;
        remove(&self.path)
    }
}

/// Removes a directory of pins with all that is in it; nothing when it is not there.
///
/// # Errors
/// A pin can't be removed.
pub(super) fn remove(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PinError::io("removing", path, source)),
        _ => Ok(()),
    }
}
