//! What the kernel programs did not tell: governed roots that came or went, and what lost announcements were about.

use std::collections::HashSet;

use super::{Engine, Kernel};
use crate::events::Event;

impl<K: Kernel> Engine<K> {
    pub(super) fn refresh_roots(&mut self) {
        match self.kernel.refresh_roots() {
            Ok(false) => {}
            Ok(true) => self.scan(),
            Err(error) => tracing::warn!(%error, "new cgroups can't be governed"),
        }
    }

    /// Finds what announcements were about that the ring, or a map, did not take.
    pub(super) fn find_lost(&mut self) {
        let mut events = self.kernel.lost_events();
        let lost = events.iter().map(|(_, count)| count).sum();
        let lost_files = self.kernel.lost_files();
        if lost_files != std::mem::replace(&mut self.lost_files, lost_files) {
            self.files.set_incomplete();
        }
        // What is not told of was counted all the same.
        events.push(("refused", self.kernel.lost_refusals()));
        self.readings.set_lost_events(events);
        self.find_others(lost);
        self.files.search_unannounced(|| self.registry.all());
    }

    /// Finds containers, and ends of containers, that were not announced.
    fn find_others(&mut self, lost: u64) {
        if lost != self.lost || self.full {
            self.lost = lost;
            self.register();
            self.scan();
        } else if self.vanished.is_empty() && !self.registry.has_nameless() {
            return;
        }
        // What is gone since the last look and still known has its last bytes, and its end, in the ring perhaps.
        let vanished = self.registry.vanished();
        let (lost, recent) = vanished.into_iter().partition::<HashSet<_>, _>(|id| self.vanished.contains(id));
        lost.into_iter().for_each(|cgroup| self.removed(cgroup));
        self.vanished = recent;
    }

    /// Enters the containers that the kernel programs have no room for as soon as there is some.
    fn register(&mut self) {
        let result = self.kernel.register();
        if let Err(error) = &result
            && !self.full
        {
            Event::MapFull { error }.report();
        }
        self.full = result.is_err();
    }
}
