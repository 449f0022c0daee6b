//! Which files are in whose hands.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::path::FileName;

/// A file by its place below the root.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Place {
    /// Class, namespace, Pod, container.
    pub(super) directories: [String; 4],
    pub(super) name: FileName,
}

impl Place {
    /// The path below the root, for messages.
    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.directories.join("/"), self.name)
    }
}

/// The files that the sink writes to and those that the keeper works on. A file is never in both sets: whoever
/// wants one looks and enters it under the same lock.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<Sets>);

#[derive(Debug, Default)]
pub(super) struct Sets {
    pub(super) open: HashSet<Place>,
    pub(super) closing: HashSet<Place>,
}

impl Names {
    pub(super) fn lock(&self) -> MutexGuard<'_, Sets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a file as written to; false when the keeper has it.
    pub(super) fn enter_open(&self, place: &Place) -> bool {
        let mut sets = self.lock();
        if sets.closing.contains(place) {
            return false;
        }
        sets.open.insert(place.clone());
        true
    }

    /// Enters a file as worked on by the keeper; false when it is written to.
    pub(super) fn enter_closing(&self, place: &Place) -> bool {
        let mut sets = self.lock();
        if sets.open.contains(place) {
            return false;
        }
        sets.closing.insert(place.clone());
        true
    }

    pub(super) fn leave_open(&self, place: &Place) {
        self.lock().open.remove(place);
    }

    /// Hands a file from the sink to the keeper.
    pub(super) fn hand_over(&self, place: &Place) {
        let mut sets = self.lock();
        sets.open.remove(place);
        sets.closing.insert(place.clone());
    }

    pub(super) fn leave_closing(&self, place: &Place) {
        self.lock().closing.remove(place);
    }
}
