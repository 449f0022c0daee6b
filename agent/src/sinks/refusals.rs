//! Whether a line is at fault that a server refuses, or the server itself; for sinks that send by HTTP.
//!
//! A request that is refused as a whole is cut in halves until a line is refused alone. That line is given up when it shows
//! that the server takes others. So many in a row with none taken between them are not at fault: then lines are held.

use crate::ledger::Reason;

/// So many lines in a row that are refused alone, and none taken: it is not the lines.
const IN_A_ROW: usize = 10;

/// What was refused lately.
#[derive(Debug)]
pub(super) struct Refusals<Load> {
    /// Requests of one line, refused since the server last took one.
    suspects: Vec<Suspect<Load>>,
    /// How many lines were refused alone since the server last took one.
    in_a_row: usize,
    /// Whether the server has taken a request since it was in doubt.
    is_proven: bool,
    /// Whether it seems to be the server that is at fault.
    is_in_doubt: bool,
}

/// A request of one line that was refused.
#[derive(Debug)]
pub(super) struct Suspect<Load> {
    /// The request.
    pub(super) load: Load,
    /// What it is counted as if it is given up.
    pub(super) reason: Reason,
    /// What the server says.
    pub(super) why: String,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Judgement<Load> {
    /// The lines are at fault, and given up.
    GiveUp(Vec<Suspect<Load>>),
    /// The server is: these are sent again; and what there is to tell.
    Hold(Vec<Load>, String),
}

impl<Load> Default for Refusals<Load> {
    fn default() -> Self {
        Self { suspects: Vec::new(), in_a_row: 0, is_proven: false, is_in_doubt: false }
    }
}

impl<Load> Refusals<Load> {
    /// Whether lines are held as the server seems to be at fault.
    pub(super) const fn is_in_doubt(&self) -> bool {
        self.is_in_doubt
    }

    /// How many lines wait to be judged.
    pub(super) const fn len(&self) -> usize {
        self.suspects.len()
    }

    /// The server has taken a request: what it has refused before is at fault.
    pub(super) fn note_taken(&mut self) -> Vec<Suspect<Load>> {
        (self.in_a_row, self.is_proven, self.is_in_doubt) = (0, true, false);
        std::mem::take(&mut self.suspects)
    }

    /// The server has refused a request of one line; `was_held` when it was held for that before.
    pub(super) fn note_refused(&mut self, suspect: Suspect<Load>, was_held: bool) -> Judgement<Load> {
        self.in_a_row += 1;
        if self.is_in_doubt || self.in_a_row >= IN_A_ROW {
            self.suspects.push(suspect);
            return self.hold();
        }
        if was_held && self.is_proven {
            return Judgement::GiveUp(vec![suspect]);
        }
        self.suspects.push(suspect);
        Judgement::GiveUp(Vec::new())
    }

    /// Nothing else is to be sent that could show who is at fault.
    pub(super) fn note_idle(&mut self) -> Judgement<Load> {
        if self.suspects.is_empty() || self.is_proven {
            return Judgement::GiveUp(std::mem::take(&mut self.suspects));
        }
        self.hold()
    }

    /// Takes out all that was not judged.
    pub(super) fn take_all(&mut self) -> Vec<Load> {
        std::mem::take(&mut self.suspects).into_iter().map(|suspect| suspect.load).collect()
    }

    fn hold(&mut self) -> Judgement<Load> {
        (self.is_proven, self.is_in_doubt) = (false, true);
        let why = self.suspects.last().map(|suspect| in_doubt(&suspect.why)).unwrap_or_default();
        Judgement::Hold(self.take_all(), why)
    }
}

/// What an error says while lines are held for that.
pub(super) fn in_doubt(why: &str) -> String {
    format!("{why}; it refuses every line so, each alone: the lines are held, and tried again until it takes one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspect(load: usize) -> Suspect<usize> {
        Suspect { load, reason: Reason::Rejected, why: String::new() }
    }

    fn given_up(judgement: Judgement<usize>) -> Vec<usize> {
        match judgement {
            Judgement::GiveUp(suspects) => suspects.into_iter().map(|suspect| suspect.load).collect(),
            Judgement::Hold(loads, _) => panic!("{loads:?} are held"),
        }
    }

    fn held(judgement: Judgement<usize>) -> Vec<usize> {
        match judgement {
            Judgement::Hold(loads, _) => loads,
            Judgement::GiveUp(suspects) => panic!("{suspects:?} are given up"),
        }
    }

    #[test]
    fn a_line_is_given_up_when_the_server_takes_others() {
        let mut refusals = Refusals::default();
        assert!(given_up(refusals.note_refused(suspect(1), false)).is_empty());
        assert_eq!(refusals.note_taken().len(), 1);
        // The last one: the server has just taken others.
        assert!(given_up(refusals.note_refused(suspect(2), false)).is_empty());
        assert_eq!(given_up(refusals.note_idle()), [2]);
        assert!(!refusals.is_in_doubt());
    }

    #[test]
    fn a_server_that_has_taken_nothing_is_in_doubt() {
        let mut refusals = Refusals::default();
        assert!(given_up(refusals.note_idle()).is_empty());
        assert!(given_up(refusals.note_refused(suspect(1), false)).is_empty());
        assert_eq!(held(refusals.note_idle()), [1]);
        assert_eq!(held(refusals.note_refused(suspect(1), true)), [1]);
        assert!(refusals.is_in_doubt() && refusals.note_taken().is_empty() && !refusals.is_in_doubt());
        assert_eq!(given_up(refusals.note_refused(suspect(1), true)), [1], "it takes others, and not this one");
    }

    #[test]
    fn many_in_a_row_are_not_at_fault() {
        let mut refusals = Refusals::default();
        refusals.note_taken();
        // One at a time with pauses between them does not hide it.
        for load in 1..IN_A_ROW {
            assert!(given_up(refusals.note_refused(suspect(load), false)).is_empty());
            assert_eq!(given_up(refusals.note_idle()), [load]);
        }
        assert_eq!(held(refusals.note_refused(suspect(IN_A_ROW), false)), [IN_A_ROW]);
        refusals.note_taken();
        for load in 1..IN_A_ROW {
            assert!(given_up(refusals.note_refused(suspect(load), false)).is_empty());
        }
        assert_eq!(held(refusals.note_refused(suspect(10), false)).len(), IN_A_ROW, "none is lost");
    }
}
