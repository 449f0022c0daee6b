//! One open file: found or made, cut back to its last whole line, and appended to.

use std::{io, os::fd::OwnedFd, sync::Arc};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, fstat, ftruncate, openat, statat},
    io::{Errno, pread, write},
};

use super::{
    names::{Names, Place},
    path::{FileName, Form, Hour, Target},
    tree::Tree,
};

/// An open file.
#[derive(Debug)]
pub(super) struct Appender {
    pub(super) place: Place,
    pub(super) file: Arc<OwnedFd>,
    /// Bytes in the file.
    pub(super) length: u64,
    /// When it was last written to, on the sink's own count of writes.
    pub(super) last_used: u64,
}

/// How an append ended.
#[derive(Debug)]
pub(super) enum Appended {
    /// All is written.
    All,
    /// The file is not linked into the tree any more: nothing of what was written counts.
    Vanished,
    /// Only so many bytes are written, up to the end of a delivery; the file is whole unless `torn`.
    Partly { kept: usize, torn: bool, error: io::Error },
}

impl Appender {
    /// Opens the file that goes on with `target` in this hour: the last one that is there if it has room, or else a
    /// new one; never one with a number below `first`. Directories that have changed are added to `changed`.
    pub(super) fn open(
        tree: &Tree,
        names: &Names,
        target: &Target,
        (hour, first): (Hour, u32),
        (extension, max_length): (&'static str, u64),
        changed: &mut Vec<Arc<OwnedFd>>,
    ) -> io::Result<Self> {
        let mut number = first;
        // Each turn ends with a file, goes on to a higher number, or finds a directory that has just been removed.
        for _ in 0..64 {
            let directory = tree.make_directory(&target.directories, changed)?;
            let name = |number| FileName { base: target.base.clone(), hour, number, extension };
            let mut exists = false;
            while is_taken(&directory, &name(number))? {
                exists = true;
                number += 1;
            }
            if exists {
                let last = Place { directories: target.directories.clone(), name: name(number - 1) };
                if let Some(appender) = Self::resume(names, &directory, last, max_length)? {
                    return Ok(appender);
                }
            }
            let place = Place { directories: target.directories.clone(), name: name(number) };
            if !names.enter_open(&place) {
                number += 1;
                continue;
            }
            let flags =
                OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(&directory, place.name.with(Form::Plain), flags, Mode::from_raw_mode(0o640)) {
                Ok(file) => {
                    changed.push(Arc::new(directory));
                    return Ok(Self { place, file: Arc::new(file), length: 0, last_used: 0 });
                }
                Err(error) => {
                    names.leave_open(&place);
                    if !matches!(error, Errno::EXIST | Errno::NOENT) {
                        return Err(error.into());
                    }
                }
            }
        }
        Err(Errno::NOENT.into())
    }

    /// Opens a file that is there, unless it is full, compressed already, or in the keeper's hands.
    fn resume(names: &Names, directory: &OwnedFd, place: Place, max_length: u64) -> io::Result<Option<Self>> {
        let compressed = [Form::Zstd, Form::Gzip]
            .into_iter()
            .any(|form| statat(directory, place.name.with(form), AtFlags::SYMLINK_NOFOLLOW).is_ok());
        let plain = statat(directory, place.name.with(Form::Plain), AtFlags::SYMLINK_NOFOLLOW);
        let usable = plain.is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size.cast_unsigned() < max_length
        });
        if compressed || !usable || !names.enter_open(&place) {
            return Ok(None);
        }
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = openat(directory, place.name.with(Form::Plain), flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| Ok((cut_back(&file)?, file)));
        match opened {
            Ok((length, file)) => Ok(Some(Self { place, file: Arc::new(file), length, last_used: 0 })),
            Err(error) => {
                names.leave_open(&place);
                if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) }
            }
        }
    }

    /// Appends `bytes`, whole lines, in one call if the kernel takes them. When it does not, what is written beyond
    /// the last of `ends` (the ends of the deliveries, rising) is taken back.
    pub(super) fn append(&mut self, bytes: &[u8], ends: &[usize]) -> Appended {
        let mut written = 0;
        let mut failure = None;
        while written < bytes.len() && failure.is_none() {
            match write(&self.file, &bytes[written..]) {
                Ok(0) => failure = Some(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(error) => failure = Some(error.into()),
            }
        }
        let stat = match fstat(&self.file) {
            Ok(stat) => stat,
            Err(error) => return Appended::Partly { kept: 0, torn: true, error: error.into() },
        };
        if stat.st_nlink == 0 {
            return Appended::Vanished;
        }
        self.length = stat.st_size.cast_unsigned();
        let Some(error) = failure else { return Appended::All };
        let kept = ends.iter().copied().take_while(|end| *end <= written).last().unwrap_or(0);
        let whole = self.length.saturating_sub((written - kept) as u64);
        let torn = whole != self.length && ftruncate(&self.file, whole).is_err();
        self.length = whole;
        Appended::Partly { kept, torn, error }
    }
}

/// Whether a name is used in any form, by whatever it is.
fn is_taken(directory: &OwnedFd, name: &FileName) -> io::Result<bool> {
    for form in [Form::Plain, Form::Zstd, Form::Gzip] {
        match statat(directory, name.with(form), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Ok(true),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Cuts a file back to the end of its last whole line and returns its length then. A torn line is the trace of an
/// agent that was killed or of a machine that was lost; its receipt was never settled, so it comes again.
pub(super) fn cut_back(file: &OwnedFd) -> io::Result<u64> {
    let length = fstat(file)?.st_size.cast_unsigned();
    let mut end = length;
    let mut buffer = vec![0; 64 * 1024];
    while end > 0 {
        let start = end.saturating_sub(buffer.len() as u64);
        let wanted = (end - start) as usize;
        let mut filled = 0;
        while filled < wanted {
            match pread(file, &mut buffer[filled..wanted], start + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(newline) = memchr::memrchr(b'\n', &buffer[..wanted]) {
            let whole = start + newline as u64 + 1;
            if whole < length {
                ftruncate(file, whole)?;
            }
            return Ok(whole);
        }
        end = start;
    }
    if length > 0 {
        ftruncate(file, 0)?;
    }
    Ok(0)
}
