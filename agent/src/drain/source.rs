//! A ring and how its records are read: that of the running programs, or of programs that the agent has replaced.

use std::{
    io,
    time::{Duration, Instant},
};

use super::ring::{Corrupt, Ring};
use crate::{
    clock,
    decode::{DecodeError, Event, decode, foreign::Foreign},
    load::{OlderRing, pins::Set},
};

/// After this nothing comes any more from programs that are detached.
const GRACE: Duration = Duration::from_secs(2);

/// A ring.
pub struct Source {
    /// The ring.
    pub(super) ring: Ring,
    /// What was in it at the start lies before.
    pub(super) start: u64,
    how: How,
    rewritten: Vec<u8>,
    /// What is pinned of the programs that were replaced, until the ring is empty.
    set: Option<Set>,
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

/// What comes of one record.
pub(super) enum Taken<'a> {
    Event(Event<'a>),
    Undecoded(DecodeError),
    /// Bytes in a ring whose layout this agent can't read.
    Unreadable(u64),
}

/// A record and what the ring tells of it.
pub(super) struct Record<'a> {
    pub(super) length: usize,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) time: Option<u64>,
    pub(super) taken: Taken<'a>,
}

/// `sidestep_abi::Header::time` of a record.
fn time_of(record: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(record.get(8..16)?.try_into().ok()?))
}

impl Source {
    /// The ring of the running programs.
    #[must_use]
    pub fn new(ring: Ring) -> Self {
        Self { start: ring.produced(), ring, how: How::AsOwn, rewritten: Vec::new(), set: None, last: Instant::now() }
    }

    /// The ring of programs that are detached.
    ///
    /// # Errors
    /// When it can't be mapped.
    pub fn older(older: OlderRing) -> io::Result<Self> {
        let OlderRing { map, layout, set } = older;
        let how = match layout.as_ref().map(Foreign::new) {
            None => How::AsOwn,
            Some(Ok(foreign)) => How::Rewritten(foreign),
            Some(Err(error)) => {
                tracing::error!(
                    %error, ring = %set.path().display(),
                    "an agent of another build has left records that this one can't read: they are dropped, and counted with reason `layout` on the node's account"
                );
                How::Not
            }
        };
        Ok(Self { how, set: Some(set), ..Self::new(Ring::open(map)?) })
    }

    /// When its oldest record was written (nanoseconds of `CLOCK_MONOTONIC`), if anything was ever let go of; what was
    /// written before this is nowhere. 0 when the ring holds everything.
    #[must_use]
    pub fn known_since(&mut self) -> u64 {
        if self.ring.position() == 0 {
            return 0;
        }
        self.ring.peek().ok().flatten().and_then(time_of).unwrap_or_else(clock::monotonic_nano)
    }

    /// The next record.
    pub(super) fn read(&mut self) -> Result<Option<Record<'_>>, Corrupt> {
        let Some(record) = self.ring.read()? else { return Ok(None) };
        if self.set.is_some() {
            self.last = Instant::now();
        }
        let (length, time) = (record.len(), time_of(record));
        let own = match &self.how {
            How::AsOwn => Ok(record),
            How::Rewritten(foreign) => foreign.rewrite(record, &mut self.rewritten).map(|()| &self.rewritten[..]),
            How::Not => return Ok(Some(Record { length, time, taken: Taken::Unreadable(length as u64) })),
        };
        let taken = own.and_then(decode).map_or_else(Taken::Undecoded, Taken::Event);
        Ok(Some(Record { length, time, taken }))
    }

    /// Whether programs that were replaced may still write to it, or it holds something.
    pub(super) fn is_wanted(&self) -> bool {
        self.set.is_none() || self.ring.waiting() > 0 || self.ring.held() > 0 || self.last.elapsed() < GRACE
    }

    /// Removes what is pinned of replaced programs when everything in the ring is safe.
    pub(super) fn remove_if_done(&mut self) {
        if !self.is_wanted()
            && let Some(set) = self.set.take()
            && let Err(error) = set.remove()
        {
            tracing::warn!(%error, "what is left of an older agent can't be removed; `sidestep uninstall` does");
        }
    }
}
