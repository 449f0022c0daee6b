//! Which indices take documents: only where one does may lines of another be given up to make room.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// An index that has taken documents for less has just been opened, and others may be in a moment: longer than it takes
/// until each held index is tried again.
const SETTLED: Duration = Duration::from_secs(15);
/// What an index did before that says nothing of now.
const STALE: Duration = Duration::from_secs(3600);
/// Indices that took nothing for long are forgotten when there are so many.
const MOST: usize = 4096;

/// Indices that have taken a document, and refused none since.
#[derive(Debug, Default)]
pub(super) struct Open {
    indices: HashMap<String, Taken>,
}

/// When an index took documents.
#[derive(Clone, Copy, Debug)]
struct Taken {
    first: Instant,
    last: Instant,
}

impl Open {
    /// An index took a document.
    pub(super) fn note(&mut self, index: &str, now: Instant) {
        if let Some(taken) = self.indices.get_mut(index) {
            taken.last = now;
            return;
        }
        if self.indices.len() >= MOST {
            self.indices.retain(|_, taken| now.duration_since(taken.last) < STALE);
        }
        if self.indices.len() < MOST {
            self.indices.insert(index.to_owned(), Taken { first: now, last: now });
        }
    }

    /// An index takes nothing.
    pub(super) fn forget(&mut self, index: &str) {
        self.indices.remove(index);
    }

    /// Whether some index takes documents now, as far as is known, and did so after `after`.
    pub(super) fn any(&self, after: Option<Instant>, now: Instant) -> bool {
        self.indices.values().any(|taken| {
            now.duration_since(taken.first) >= SETTLED
                && now.duration_since(taken.last) < STALE
                && after.is_none_or(|after| taken.last > after)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_open_when_it_has_taken_documents_for_a_while_and_lately() {
        let begin = Instant::now();
        let mut open = Open::default();
        assert!(!open.any(None, begin));
        open.note("a", begin);
        assert!(!open.any(None, begin), "others may be opened in a moment");
        let settled = begin + SETTLED;
        assert!(open.any(None, settled) && !open.any(Some(begin), settled), "it took nothing after that");
        open.note("a", settled);
        assert!(open.any(Some(begin), settled) && !open.any(None, settled + STALE));
        open.forget("a");
        assert!(!open.any(None, settled));
    }
}
