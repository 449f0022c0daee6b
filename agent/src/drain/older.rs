//! Rings of programs that the agent has replaced: drained before its own, then removed.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};

use crate::{
    decode::foreign::Foreign,
    load::{OlderRing, pins::Set},
};

/// After this nothing comes any more from programs that are detached.
const GRACE: Duration = Duration::from_secs(2);

/// What came of one round.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Taken {
    /// Bytes of records that were handed over.
    pub bytes: usize,
    /// Records that were handed over.
    pub records: u64,
    /// Records that can't be read.
    pub undecoded: u64,
    /// Bytes of records in a ring whose layout this agent can't read.
    pub unreadable: u64,
}

/// The older rings, first things first.
#[derive(Default)]
pub struct Older {
    rings: VecDeque<Reading>,
    rewritten: Vec<u8>,
}

struct Reading {
    ring: RingBuf<MapData>,
    how: How,
    set: Set,
    last: Instant,
}

/// How the records of a ring are read.
enum How {
    /// They lie as this agent's.
    AsOwn,
    Rewritten(Foreign),
    /// By the rule for what can't be read: counted, and told once.
    Not,
}

impl Older {
    /// Takes up older rings.
    #[must_use]
    pub fn new(rings: Vec<OlderRing>) -> Self {
        let rings = rings.into_iter().filter_map(|older| {
            let OlderRing { map, layout, set } = older;
            let how = match layout.as_ref().map(Foreign::new) {
                None => How::AsOwn,
                Some(Ok(foreign)) => How::Rewritten(foreign),
                Some(Err(error)) => {
                    tracing::error!(%error, ring = %set.path().display(), "an agent of another build has left records that \
                        this one can't read: they are dropped, and counted with reason `layout` on the node's account");
                    How::Not
                }
            };
            let ring = aya::maps::Map::from_map_data(map).and_then(RingBuf::try_from);
            let ring = ring.inspect_err(|error| tracing::error!(%error, "the ring of an older agent can't be read"));
            Some(Reading { ring: ring.ok()?, how, set, last: Instant::now() })
        });
        Self { rings: rings.collect(), rewritten: Vec::new() }
    }

    /// Whether all are drained and removed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.rings.is_empty()
    }

    /// Takes up to `limit` bytes of records, in order.
    pub fn round(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> Taken {
        let mut taken = Taken::default();
        while let Some(first) = self.rings.front_mut() {
            while taken.bytes < limit
                && let Some(record) = first.ring.next()
            {
                first.last = Instant::now();
                match &first.how {
                    How::AsOwn => take(&record),
                    How::Rewritten(foreign) => match foreign.rewrite(&record, &mut self.rewritten) {
                        Ok(()) => take(&self.rewritten),
                        Err(_) => taken.undecoded += 1,
                    },
                    How::Not => {
                        taken.unreadable += record.len() as u64;
                        continue;
                    }
                }
                taken.bytes += record.len();
                taken.records += 1;
            }
            // One that was attached may have been in the middle of its work.
            if taken.bytes >= limit || first.last.elapsed() < GRACE {
                break;
            }
            let done = self.rings.pop_front();
            if let Some(Reading { set, .. }) = done
                && let Err(error) = set.remove()
            {
                tracing::warn!(%error, "what is left of an older agent can't be removed; `sidestep uninstall` does");
            }
        }
        taken
    }
}
