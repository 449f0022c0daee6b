//! Letting go of what is done.

use std::{fs, io, ops::Range};

use super::Log;
use crate::sinks::buffer::{frame::Totals, mark::Mark};

impl Log {
    /// Deletes segments that were read and of which nothing is on its way; `on_its_way` says of a range of sequences
    /// whether something is, `oldest` is the lowest of all. Notes how far all is done.
    ///
    /// # Errors
    /// A file can't be deleted, or the mark not be written; it is tried again.
    pub(in crate::sinks::buffer) fn retire(
        &mut self,
        oldest: Option<u64>,
        on_its_way: impl Fn(Range<u64>) -> bool,
    ) -> io::Result<()> {
        let is_noted = match self.mark.last() {
            Some(mark) => mark.front == self.totals && mark.tail == self.totals,
            None => self.totals == Totals::default(),
        };
        if self.segments.is_empty() && is_noted {
            return Ok(());
        }
        let reading = self.cursor_index();
        let read_all = !self.has_unread();
        let ends = self.segments.iter().skip(1).map(|segment| segment.first).chain([self.next]);
        let done: Vec<bool> = (self.segments.iter().zip(ends).enumerate())
            .map(|(index, (segment, end))| {
                let was_read = index < reading || (index + 1 == self.segments.len() && read_all);
                was_read && !on_its_way(segment.first..end)
            })
            .collect();
        // Those that go; one behind an older one that stays keeps its head, which says that nothing of it is missing.
        let go = done.iter().take_while(|done| **done).count();
        if go == self.segments.len() {
            self.records = 0;
        }
        let sequence = oldest.unwrap_or(u64::MAX).min(if self.has_unread() { self.cursor.sequence } else { self.next });
        let known = self.mark.last().map_or(Totals::default(), |mark| mark.front);
        let front = self.segments.get(go).map_or(Some(self.totals), |oldest| oldest.start).unwrap_or(known);
        // What is missing before it and not told yet is told by the next agent, if this one does not come to it.
        let front = self.expected.map_or(front, |expected| if go == 0 { front.min(expected) } else { front });
        // Before they go: a mark that says less would have them missing.
        let noted = self.mark.write(Mark { sequence, tail: self.totals, front, records: self.records });
        let hollowed = (go..done.len()).filter(|index| done[*index]).try_for_each(|index| self.hollow(index));
        (0..go).for_each(|_| self.remove(0));
        noted.and(hollowed)
    }

    /// Lets go of what a segment has that is done while an older one is not.
    fn hollow(&mut self, index: usize) -> io::Result<()> {
        let end = self.segments.get(index + 1).map_or(Some(self.totals), |next| next.start);
        let is_last = index + 1 == self.segments.len();
        let (Some(segment), Some(end)) = (self.segments.get_mut(index).filter(|segment| !segment.is_done), end) else {
            return Ok(());
        };
        let size = segment.size;
        let hollowed = segment.hollow(end);
        self.size = self.size + segment.size - size;
        self.open = self.open && !is_last;
        hollowed
    }

    pub(super) fn remove(&mut self, index: usize) {
        let Some(segment) = self.segments.remove(index) else { return };
        self.size -= segment.size;
        if index == self.segments.len() {
            self.open = false;
        }
        if let Err(error) = fs::remove_file(&segment.path) {
            tracing::warn!(file = %segment.path.display(), %error, "a part of the buffer can't be deleted: delete it");
        }
    }
}
