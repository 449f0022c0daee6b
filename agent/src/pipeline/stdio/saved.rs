//! What the journal has of a stream, for the agent that goes on after a kill.

use std::sync::Arc;

use super::StdioStream;
use crate::{
    assemble::Update,
    pipeline::{
        container::Container,
        journal::{Change, Saved, Standing, StreamId},
    },
};

impl StdioStream {
    /// A stream that goes on where an agent before has left it.
    #[must_use]
    pub fn restore(id: StreamId, container: Arc<Container>, saved: Saved) -> Self {
        let Saved { standing, unfinished, pieces } = saved;
        Self {
            key: standing.key,
            restored: Some(unfinished),
            next: standing.next,
            booked: standing.booked,
            unwanted: standing.unwanted,
            waiting_bytes: pieces.values().map(|piece| piece.bytes.len()).sum(),
            waiting: pieces,
            ..Self::new(id, container, standing.cgroup, standing.iostream)
        }
    }

    /// What the journal has to know of it that it does not know yet; nothing before it has begun. To be asked when no
    /// line is ready.
    pub fn save(&mut self) -> Option<Change> {
        self.unsaved = false;
        if self.begins_anywhere {
            return None;
        }
        let standing = Standing {
            cgroup: self.cgroup,
            container: self.container.cgroup,
            iostream: self.iostream,
            key: self.key.clone(),
            next: self.next,
            booked: self.booked,
            unwanted: self.unwanted,
        };
        let unfinished = match (&self.open, &self.restored) {
            (Some(open), _) => open.assembler.unfinished(&mut self.mark),
            (None, Some(restored)) => restored.clone().into_update(),
            (None, None) => Update::default(),
        };
        let piece = |position| self.waiting.get(&position).map(|piece| (position, piece.clone()));
        let pieces = std::mem::take(&mut self.new_pieces).into_iter().filter_map(piece).collect();
        Some(Change::Stream { id: self.id, standing, unfinished, pieces })
    }
}
