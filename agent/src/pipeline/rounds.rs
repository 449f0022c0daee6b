//! Rounds of draining: the ring lets go of a round's records when all lines made of them are safe, and the journal knows
//! where their streams stand.
//!
//! Every batch of a round carries a clone of the round's guard, and so does whatever else is kept in memory only. Rounds
//! are released in order: first the sinks have it, then the journal is written, then the consumer's position moves. An
//! agent that is killed between the first two repeats lines, with the same positions; one that is killed between the
//! last two finds records that the journal has passed.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::journal::{Change, Journal, StreamId};
use crate::sinks::Hold;

/// Rounds that are not safe yet; above it the last one is not ended, so that what they note of streams stays bounded.
const MAX_ROUNDS: usize = 64;
/// Pause between attempts to write a journal that the file system refuses.
const RETRY: Duration = Duration::from_secs(1);

/// A place in one of several rings.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Place {
    /// Which ring.
    pub ring: usize,
    /// The position in it.
    pub position: u64,
}

/// What a round has done, apart from its batches.
#[derive(Debug, Default)]
pub struct Effects {
    /// For the journal, whatever becomes of the round: what a container is stays so. Noted before the ring lets go of
    /// anything of the round.
    pub facts: Vec<Change>,
    /// For the journal, once the round is safe.
    pub changes: Vec<Change>,
    /// Streams that have ended: the kernel may forget them when all of it is safe.
    pub ended: Vec<StreamId>,
}

impl Effects {
    /// Whether nothing was done.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.facts.is_empty() && self.changes.is_empty() && self.ended.is_empty()
    }
}

/// What may be let go of now.
#[derive(Debug, Default)]
pub struct Released {
    /// Records of each ring before these places.
    pub places: Vec<Place>,
    /// Streams that the kernel may forget.
    pub ended: Vec<StreamId>,
}

#[derive(Debug)]
struct Round {
    guard: Arc<()>,
    end: Vec<Place>,
    effects: Effects,
}

/// The rounds that are not released yet.
#[derive(Debug)]
pub struct Rounds {
    /// `None` when the ring goes with the agent, so that nothing has to be kept in it.
    journal: Option<Journal>,
    guard: Arc<()>,
    closed: VecDeque<Round>,
    /// Facts that are not in the journal.
    facts: Vec<Change>,
    /// Where the last round ended.
    last: Vec<Place>,
    /// Safe, and not in the journal.
    safe: Option<Released>,
    /// When the journal is tried again that could not be written.
    retry: Option<Instant>,
}

impl Rounds {
    /// No rounds yet. Without a journal each round is released as soon as it ends.
    #[must_use]
    pub fn new(journal: Option<Journal>) -> Self {
        Self {
            journal,
            guard: Arc::new(()),
            closed: VecDeque::new(),
            facts: Vec::new(),
            last: Vec::new(),
            safe: None,
            retry: None,
        }
    }

    /// Whether rounds are held back.
    #[must_use]
    pub const fn are_held(&self) -> bool {
        self.journal.is_some()
    }

    /// The guard of the round that is under way; none when nothing is held back.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        self.journal.is_some().then(|| Arc::clone(&self.guard) as Hold)
    }

    /// Whether the round that is under way may end.
    #[must_use]
    pub fn may_end(&self) -> bool {
        self.closed.len() < MAX_ROUNDS
    }

    /// Whether anything was read since the last round.
    #[must_use]
    pub fn has_moved(&self, end: &[Place]) -> bool {
        self.last != end
    }

    /// Ends the round that is under way, at these places of all rings.
    pub fn end(&mut self, end: Vec<Place>, mut effects: Effects) {
        self.last.clone_from(&end);
        self.facts.append(&mut effects.facts);
        let guard = std::mem::replace(&mut self.guard, Arc::new(()));
        self.closed.push_back(Round { guard, end, effects });
    }

    /// Looks which rounds are safe and writes the journal; returns what may be let go of.
    ///
    /// While the journal can't be written the ring keeps what it has. When it is `crowded` the journal is taken away
    /// instead: what is written now would be lost for certain, and the places of streams only if the agent is killed.
    pub fn release(&mut self, now: Instant, crowded: bool) -> Option<Released> {
        let mut changes = std::mem::take(&mut self.facts);
        while let Some(round) = self.closed.pop_front_if(|round| self.journal.is_none() || is_free(&round.guard)) {
            let safe = self.safe.get_or_insert_default();
            safe.places = round.end;
            safe.ended.extend(round.effects.ended);
            changes.extend(round.effects.changes);
        }
        if self.safe.is_none() && changes.is_empty() {
            return None;
        }
        let Some(journal) = &mut self.journal else { return self.safe.take() };
        if self.retry.is_some_and(|retry| now < retry) {
            journal.note(changes);
            return if journal.is_discarded() { self.safe.take() } else { None };
        }
        match journal.append(changes) {
            Ok(()) => {
                if self.retry.take().is_some() {
                    tracing::info!("the journal of streams is written again");
                }
                self.safe.take()
            }
            Err(error) => {
                if self.retry.replace(now + RETRY).is_none() {
                    tracing::error!(
                        %error,
                        "the journal of streams can't be written: free space below state_dir; until then the kernel's ring keeps its records, and when it is half full lines that are under way would be torn by a kill"
                    );
                }
                if journal.is_discarded() {
                    return self.safe.take();
                }
                if !crowded {
                    return None;
                }
                match journal.discard() {
                    Ok(()) => self.safe.take(),
                    Err(error) => {
                        tracing::error!(%error, "the journal of streams can't be removed either; the ring fills");
                        None
                    }
                }
            }
        }
    }

    /// Rounds that are not released.
    #[must_use]
    pub fn held(&self) -> usize {
        self.closed.len()
    }
}

/// Whether nobody else has the guard. Clones are made of clones and of the round that is under way only, so it stays so.
fn is_free(guard: &Arc<()>) -> bool {
    let free = Arc::strong_count(guard) == 1;
    // What the last holder did before he let go of it is seen after this.
    std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(directory: &tempfile::TempDir) -> Rounds {
        Rounds::new(Some(Journal::open(directory.path(), "boot").0))
    }

    fn place(position: u64) -> Vec<Place> {
        vec![Place { ring: 0, position }]
    }

    #[test]
    fn rounds_are_released_in_order() {
        let directory = tempfile::tempdir().expect("directory");
        let mut rounds = rounds(&directory);
        let now = Instant::now();
        let first = rounds.hold().expect("held");
        rounds.end(place(10), Effects::default());
        let second = rounds.hold().expect("held");
        rounds.end(place(20), Effects::default());
        drop(second);
        assert!(rounds.release(now, false).is_none(), "the first one is not safe");
        drop(first);
        assert_eq!(rounds.release(now, false).expect("both").places, place(20));
        assert!(rounds.release(now, false).is_none() && rounds.held() == 0);
    }

    /// The ring tells once where a container's cgroup is, and the runtime's files who it is may be gone with it.
    #[test]
    fn what_a_container_is_waits_for_no_round() {
        let directory = tempfile::tempdir().expect("directory");
        let mut rounds = rounds(&directory);
        let journaled = || Journal::open(directory.path(), "boot").1.state.containers;
        let container = |identity| Change::Container { cgroup: 7, path: "/kubepods/c".into(), identity };
        let hold = rounds.hold();
        rounds.end(place(10), Effects { facts: vec![container(None)], ..Effects::default() });
        assert!(rounds.release(Instant::now(), false).is_none(), "the round is held");
        assert_eq!(journaled()[&7], ("/kubepods/c".into(), None));
        rounds.end(place(20), Effects { facts: vec![container(Some(Box::default()))], ..Effects::default() });
        assert!(rounds.release(Instant::now(), false).is_none());
        assert!(journaled()[&7].1.is_some());
        rounds.end(place(30), Effects { facts: vec![container(None)], ..Effects::default() });
        drop(hold);
        assert_eq!(rounds.release(Instant::now(), false).expect("all").places, place(30));
        assert!(journaled()[&7].1.is_some(), "a later look at the hierarchy takes nothing away");
    }

    #[test]
    fn without_a_journal_nothing_is_held() {
        let mut rounds = Rounds::new(None);
        assert!(rounds.hold().is_none());
        rounds.end(place(10), Effects::default());
        assert_eq!(rounds.release(Instant::now(), false).expect("at once").places, place(10));
    }

    #[test]
    fn the_number_of_rounds_is_bounded() {
        let directory = tempfile::tempdir().expect("directory");
        let mut rounds = rounds(&directory);
        let hold = rounds.hold();
        let mut ended = 0;
        while rounds.may_end() {
            ended += 1;
            rounds.end(place(ended), Effects::default());
        }
        assert_eq!(ended, MAX_ROUNDS as u64);
        drop(hold);
        assert_eq!(rounds.release(Instant::now(), false).expect("all").places, place(ended));
    }

    #[test]
    fn a_journal_that_is_refused_holds_the_ring_until_it_is_crowded() {
        let directory = tempfile::tempdir().expect("directory");
        let state = directory.path().join("state");
        std::fs::write(&state, "a file").expect("written");
        let mut rounds = Rounds::new(Some(Journal::open(&state, "boot").0));
        let now = Instant::now();
        let ended = StreamId { ino: 1, dev: 2, registered: 3 };
        rounds.end(
            place(10),
            Effects { changes: vec![Change::StreamEnded(ended)], ended: vec![ended], ..Effects::default() },
        );
        assert!(rounds.release(now, false).is_none());
        assert!(rounds.release(now, true).is_none(), "not tried again at once");
        std::fs::remove_file(&state).expect("removed");
        let released = rounds.release(now + RETRY, false).expect("written");
        assert_eq!((released.places, released.ended), (place(10), vec![ended]));
    }
}
