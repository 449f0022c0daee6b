//! Where the lines of a log file can be read once more, for a sink that had no room for them.

use std::{
    fs::File,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{assemble::Compiled, record::Line};

/// The file behind a stream.
#[derive(Debug)]
pub struct Source {
    /// `None` while the descriptor is given up.
    file: Mutex<Option<Arc<File>>>,
    lines: Arc<Compiled>,
}

impl Source {
    /// The source of a stream whose lines are cut by these rules.
    #[must_use]
    pub fn new(file: Option<Arc<File>>, lines: &Arc<Compiled>) -> Self {
        Self { file: Mutex::new(file), lines: Arc::clone(lines) }
    }

    /// The file, if it is open; who keeps it can read it also when it has no name any more.
    #[must_use]
    pub fn file(&self) -> Option<Arc<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_file(&self, file: Option<Arc<File>>) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }

    /// Adds to a line what its body says, as when it was cut first.
    pub fn parse(&self, body: &[u8], line: &mut Line) {
        self.lines.parse(body, line);
    }
}
