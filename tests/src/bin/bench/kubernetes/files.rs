//! What comes into the files of the agent's sink, as soon as it does.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sidestep_tests::cluster::PATIENCE;

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// How far the files below a directory were looked at.
pub(super) struct Files {
    directory: PathBuf,
    read: HashMap<PathBuf, u64>,
}

impl Files {
    /// All that is there now counts as looked at.
    pub(super) fn new(directory: &Path) -> Result<Self> {
        let mut files = Self { directory: directory.to_owned(), read: HashMap::new() };
        files.each(|_, _| Ok(()))?;
        Ok(files)
    }

    /// Waits until something comes that holds `text`.
    ///
    /// # Errors
    /// Not in time, or the files can't be read.
    pub(super) fn wait_new(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.has_new(text)? {
            ensure!(Instant::now() < deadline, "no record with {text} comes");
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Whether something has come that holds `text`.
    fn has_new(&mut self, text: &str) -> Result<bool> {
        let mut found = false;
        self.each(|path, from| {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(from))?;
            let mut new = Vec::new();
            file.read_to_end(&mut new)?;
            found |= String::from_utf8_lossy(&new).contains(text);
            Ok(())
        })?;
        Ok(found)
    }

    /// Calls `look` for each file that has grown, with where it was read to.
    fn each(&mut self, mut look: impl FnMut(&Path, u64) -> Result<()>) -> Result<()> {
        let mut directories = vec![self.directory.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)?.flatten() {
                // A file that has just been rotated away has nothing new.
                let Ok(about) = entry.metadata() else { continue };
                if about.is_dir() {
                    directories.push(entry.path());
                    continue;
                }
                let from = self.read.insert(entry.path(), about.len()).unwrap_or_default();
                if about.len() > from {
                    look(&entry.path(), from)?;
                }
            }
        }
        Ok(())
    }
}
