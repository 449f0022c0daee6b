//! What happens to closed files: compressed, and deleted when they are too old or too many. On a thread of its own,
//! at the lowest priority.

use std::{
    collections::HashSet,
    ffi::OsStr,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, fstatvfs, statat, unlinkat},
    io::Errno,
};

use super::{
    compress::compress,
    config::{Compression, Settings},
    names::{Names, Place},
    path::{FileName, Form, Hour},
    tree::Tree,
};
use crate::{record::Class, sinks::SinkError};

/// The thread that looks after closed files.
#[derive(Debug)]
pub(super) struct Keeper {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
    finished: Receiver<()>,
}

#[derive(Debug)]
enum Job {
    Closed(Place),
    Sweep { now: Hour, oldest: Hour },
}

#[derive(Debug)]
struct Shared {
    tree: Arc<Tree>,
    names: Arc<Names>,
    settings: Settings,
    stop: AtomicBool,
    /// A sweep is asked for and not done.
    sweeping: AtomicBool,
    /// The last sweep found nothing more to delete, and the tree is still over its quota.
    over_quota: AtomicBool,
    error: Mutex<Option<SinkError>>,
}

impl Keeper {
    pub(super) fn start(tree: Arc<Tree>, names: Arc<Names>, settings: Settings) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            tree,
            names,
            settings,
            stop: AtomicBool::new(false),
            sweeping: AtomicBool::new(false),
            over_quota: AtomicBool::new(false),
            error: Mutex::default(),
        });
        let (jobs, queue) = mpsc::channel();
        let (finish, finished) = mpsc::channel();
        let of_thread = Arc::clone(&shared);
        thread::Builder::new().name("sink-file-keep".to_owned()).spawn(move || {
            of_thread.run(&queue);
            // The tree's lock is let go of before the end is told.
            drop(of_thread);
            drop(finish);
        })?;
        Ok(Self { jobs, shared, finished })
    }

    /// Takes a file that the sink is done with.
    pub(super) fn close(&self, place: Place) {
        if self.shared.settings.compression == Compression::None {
            self.shared.names.leave_open(&place);
        } else {
            self.shared.names.hand_over(&place);
            // The thread is gone only after `stop`; the next agent finds the file then.
            let _ = self.jobs.send(Job::Closed(place));
        }
    }

    /// Asks for a look at the whole tree: hours before `oldest` are deleted.
    pub(super) fn sweep(&self, now: Hour, oldest: Hour) {
        if !self.shared.sweeping.swap(true, Ordering::AcqRel) {
            let _ = self.jobs.send(Job::Sweep { now, oldest });
        }
    }

    /// Whether a sweep is asked for and not done.
    pub(super) fn is_sweeping(&self) -> bool {
        self.shared.sweeping.load(Ordering::Acquire)
    }

    pub(super) fn is_over_quota(&self) -> bool {
        self.shared.over_quota.load(Ordering::Acquire)
    }

    /// The last error, once.
    pub(super) fn take_error(&self) -> Option<SinkError> {
        self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends the thread; a compression under way is given up and done again by the next agent.
    pub(super) fn stop(&self, limit: Duration) {
        self.shared.stop.store(true, Ordering::Release);
        // Wakes the thread if it waits for a job.
        self.sweep(Hour::of(0), Hour::of(0));
        // An error means that the other end is dropped, which is what is waited for.
        let _ = self.finished.recv_timeout(limit);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

/// A file that a sweep has found.
#[derive(Debug)]
struct Found {
    /// Index of its directory.
    directory: usize,
    name: FileName,
    form: Form,
    bytes: u64,
}

impl Shared {
    fn run(&self, queue: &Receiver<Job>) {
        // Compressing must never take the processor from the Pods. In Linux this is about the thread alone.
        if let Err(error) = rustix::process::nice(19) {
            tracing::debug!(%error, "the priority of the thread that compresses stays as it is");
        }
        while let Ok(job) = queue.recv() {
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            match job {
                Job::Closed(place) => self.compress(&place),
                Job::Sweep { now, oldest } => {
                    if let Err(source) = self.sweep(now, oldest) {
                        self.note(format!("looking through {}", self.tree.path().display()), source);
                    }
                    self.sweeping.store(false, Ordering::Release);
                }
            }
        }
    }

    fn note(&self, action: String, source: io::Error) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(SinkError { action, source });
    }

    /// Compresses a file that is entered as closing.
    fn compress(&self, place: &Place) {
        let settings = &self.settings;
        let result = compress(&self.tree, place, settings.compression, settings.compression_level, &self.stop);
        self.names.leave_closing(place);
        match result {
            Ok(_) => {}
            // Deleted meanwhile, for its age or by hand.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let action = format!(
                    "compressing {}/{}; it is kept as it is and tried again",
                    self.tree.path().display(),
                    place.path()
                );
                self.note(action, error);
            }
        }
    }

    fn sweep(&self, now: Hour, oldest: Hour) -> io::Result<()> {
        if self.tree.root().is_err() {
            return Ok(());
        }
        let mut directories = Vec::new();
        let mut found = Vec::new();
        for class in Class::ALL {
            let class = class.as_str().to_owned();
            for namespace in self.subdirectories(std::slice::from_ref(&class))? {
                for pod in self.subdirectories(&[class.clone(), namespace.clone()])? {
                    let parent = [class.clone(), namespace.clone(), pod.clone()];
                    for container in self.subdirectories(&parent)? {
                        let path = [class.clone(), namespace.clone(), pod.clone(), container];
                        self.list(directories.len(), &path, &mut found)?;
                        directories.push(path);
                    }
                }
            }
        }
        self.compress_forgotten(now, &directories, &mut found);
        self.delete(oldest, &directories, &mut found)?;
        let in_use: HashSet<usize> = found.iter().map(|file| file.directory).collect();
        for (index, path) in directories.iter().enumerate() {
            if !in_use.contains(&index) {
                self.remove_empty(path);
            }
        }
        Ok(())
    }

    /// Names of the directories in a directory; none when it is missing.
    fn subdirectories(&self, path: &[String]) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        self.each_entry(path, |_, name, file_type| {
            if file_type == FileType::Directory {
                names.push(name.to_owned());
            }
        })?;
        Ok(names)
    }

    fn list(&self, directory: usize, path: &[String], found: &mut Vec<Found>) -> io::Result<()> {
        self.each_entry(path, |descriptor, text, file_type| {
            let (true, Some((name, form))) = (file_type == FileType::RegularFile, FileName::parse(text)) else {
                return;
            };
            if form == Form::Temporary {
                // This thread makes them, one at a time, and has none now: this one is of an agent before.
                let _ = unlinkat(descriptor, text, AtFlags::empty());
                return;
            }
            if let Ok(stat) = statat(descriptor, text, AtFlags::SYMLINK_NOFOLLOW) {
                let bytes = stat.st_size.max(stat.st_blocks * 512).cast_unsigned();
                found.push(Found { directory, name, form, bytes });
            }
        })
    }

    fn each_entry(&self, path: &[String], mut visit: impl FnMut(&OwnedFd, &str, FileType)) -> io::Result<()> {
        let directory = match self.tree.directory(path) {
            Ok(directory) => directory,
            // Gone meanwhile, or never made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let Some(name) = OsStr::from_bytes(entry.file_name().to_bytes()).to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let mut file_type = entry.file_type();
            if file_type == FileType::Unknown {
                let Ok(stat) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
                file_type = FileType::from_raw_mode(stat.st_mode);
            }
            visit(&directory, name, file_type);
        }
        Ok(())
    }

    /// Compresses what an agent before has left, and what was closed to make room for other open files.
    fn compress_forgotten(&self, now: Hour, directories: &[[String; 4]], found: &mut [Found]) {
        if self.settings.compression == Compression::None {
            return;
        }
        for file in found.iter_mut().filter(|file| file.form == Form::Plain && file.name.hour != now) {
            let place = Place { directories: directories[file.directory].clone(), name: file.name.clone() };
            if self.stop.load(Ordering::Acquire) || !self.names.enter_closing(&place) {
                continue;
            }
            self.compress(&place);
            for form in [Form::Zstd, Form::Gzip] {
                let stat = self
                    .tree
                    .directory(&place.directories)
                    .and_then(|directory| Ok(statat(&directory, place.name.with(form), AtFlags::SYMLINK_NOFOLLOW)?));
                if let Ok(stat) = stat {
                    file.form = form;
                    file.bytes = stat.st_size.max(stat.st_blocks * 512).cast_unsigned();
                }
            }
        }
    }

    /// Deletes what is too old, and then the oldest until the quota holds. What is left stays in `found`.
    fn delete(&self, oldest: Hour, directories: &[[String; 4]], found: &mut Vec<Found>) -> io::Result<()> {
        let limit = self.quota()?;
        let mut total: u64 = found.iter().map(|file| file.bytes).sum();
        found.sort_by_key(|file| (file.name.hour, file.name.number));
        let mut failure = None;
        found.retain(|file| {
            if file.name.hour >= oldest && total <= limit {
                return true;
            }
            let place = Place { directories: directories[file.directory].clone(), name: file.name.clone() };
            match self.unlink(&place, file.form) {
                Ok(true) => {
                    total -= file.bytes;
                    false
                }
                Ok(false) => true,
                Err(error) => {
                    failure = Some(error);
                    true
                }
            }
        });
        self.over_quota.store(total > limit, Ordering::Release);
        failure.map_or(Ok(()), Err)
    }

    /// The most that the tree may take, in bytes.
    fn quota(&self) -> io::Result<u64> {
        let stat = fstatvfs(&*self.tree.root()?)?;
        let size = u128::from(stat.f_blocks) * u128::from(stat.f_frsize);
        let share = size * u128::from(self.settings.quota_percent) / 100;
        Ok(self.settings.quota.as_u64().min(u64::try_from(share).unwrap_or(u64::MAX)))
    }

    /// Deletes a file unless it is written to.
    fn unlink(&self, place: &Place, form: Form) -> io::Result<bool> {
        // Held until the file is gone, so that the sink does not open it in between.
        let sets = self.names.lock();
        if form == Form::Plain && sets.open.contains(place) {
            return Ok(false);
        }
        let result = self
            .tree
            .directory(&place.directories)
            .and_then(|directory| Ok(unlinkat(&directory, place.name.with(form), AtFlags::empty())?));
        drop(sets);
        match result {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Removes a container's directory and then those above it, as far as they are empty.
    fn remove_empty(&self, path: &[String; 4]) {
        for depth in (1..path.len()).rev() {
            let Ok(parent) = self.tree.directory(&path[..depth]) else { return };
            match unlinkat(&parent, path[depth].as_str(), AtFlags::REMOVEDIR) {
                Ok(()) => {}
                Err(Errno::NOTEMPTY | Errno::NOENT) => return,
                Err(error) => {
                    tracing::debug!(%error, path = path[..=depth].join("/"), "an empty directory stays");
                    return;
                }
            }
        }
    }
}
