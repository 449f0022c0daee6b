//! Which files hold what a container wrote: the one that the runtime writes, and those that were rotated away.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;

use crate::attribute::{Files as _, HostFiles, Identity};

/// What is read of a file at once.
const READ_BYTES: usize = 256 * 1024;
/// How often the files are looked at anew that were rotated meanwhile.
const ATTEMPTS: u32 = 3;
/// Files of one container; kubelet keeps five.
const MAX_FILES: usize = 256;

/// Where the runtime writes what a container writes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Location {
    /// This file.
    File(PathBuf),
    /// A file for each start of the container, `0.log`, `1.log`, ...
    Directory(PathBuf),
}

impl Location {
    /// As the runtime's files say; `None` when they name none.
    pub(super) fn of(identity: &Identity) -> Option<Self> {
        if let Some(path) = &identity.log_path {
            return Some(Self::File(path.clone()));
        }
        let name = identity.resource.container_name.as_deref()?;
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return None;
        }
        Some(Self::Directory(identity.log_directory.as_ref()?.join(name)))
    }

    /// The files that the runtime writes, or has written, by the number of the start.
    pub(super) fn candidates(&self, node: &HostFiles) -> io::Result<Vec<PathBuf>> {
        let directory = match self {
            Self::File(path) => return Ok(vec![path.clone()]),
            Self::Directory(directory) => directory,
        };
        let number = |name: &str| name.strip_suffix(".log")?.parse::<u32>().ok();
        let names = node.list(directory)?.into_iter().filter_map(|name| name.into_string().ok());
        let mut numbered: Vec<_> = names.filter_map(|name| Some((number(&name)?, directory.join(&name)))).collect();
        numbered.sort_unstable();
        Ok(numbered.into_iter().map(|(_, path)| path).collect())
    }
}

/// A file that is open, so that it stays what it is when it is renamed or removed.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    compressed: bool,
    /// Device and inode.
    pub(super) id: (u64, u64),
}

impl LogFile {
    fn open(node: &HostFiles, path: &Path) -> io::Result<Self> {
        let file = node.open_regular(path)?;
        let metadata = file.metadata()?;
        let compressed = path.extension().is_some_and(|extension| extension == "gz");
        Ok(Self { file, compressed, id: (metadata.dev(), metadata.ino()) })
    }

    /// Whether its bytes have no place of their own, but only those of the text in it.
    pub(super) const fn is_compressed(&self) -> bool {
        self.compressed
    }

    /// Reads from this byte of the text on.
    pub(super) fn reader(&self, offset: u64) -> io::Result<Box<dyn BufRead + Send>> {
        let mut file = self.file.try_clone()?;
        if !self.compressed {
            file.seek(SeekFrom::Start(offset))?;
            return Ok(Box::new(BufReader::with_capacity(READ_BYTES, file)));
        }
        file.rewind()?;
        let text = MultiGzDecoder::new(BufReader::with_capacity(READ_BYTES, file));
        let mut text = BufReader::with_capacity(READ_BYTES, text);
        let skipped = io::copy(&mut io::Read::take(&mut text, offset), &mut io::sink())?;
        if skipped < offset {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Box::new(text))
    }
}

/// Opens the file at `path` and those that were rotated away from it, oldest first.
pub(super) fn open_all(node: &HostFiles, path: &Path) -> io::Result<Vec<LogFile>> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let names = rotated(node, path)?;
        let opened: io::Result<Vec<_>> =
            names.iter().map(PathBuf::as_path).chain([path]).map(|path| LogFile::open(node, path)).collect();
        // Rotated in between, a file would be missing or there twice.
        let settled = opened.as_ref().is_ok_and(|files| {
            let current = LogFile::open(node, path).map(|file| file.id);
            rotated(node, path).is_ok_and(|again| again == names)
                && files.last().is_some_and(|last| current.is_ok_and(|id| id == last.id))
        });
        if settled {
            return opened;
        }
        if attempt == ATTEMPTS {
            return opened.and_then(|_| Err(io::Error::other("it is rotated all the time")));
        }
    }
}

/// kubelet names them `0.log.20241121-101010`, Docker `ID-json.log.1`, where the higher number is the older; either may add `.gz`.
/// While one is compressed both are there, and the one that is not is complete.
fn rotated(node: &HostFiles, path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let mut suffixes: Vec<(bool, u64, String)> = Vec::new();
    for entry in node.list(directory)? {
        let Some(suffix) = entry.to_str().and_then(|entry| entry.strip_prefix(name)?.strip_prefix('.')) else {
            continue;
        };
        let plain = suffix.strip_suffix(".gz").unwrap_or(suffix);
        let Some(age) = age(plain) else { continue };
        suffixes.push((plain != suffix, age, suffix.to_owned()));
    }
    // Those that are not compressed come first.
    suffixes.sort_unstable_by_key(|suffix| (suffix.1, suffix.0));
    suffixes.dedup_by_key(|(_, age, _)| *age);
    if suffixes.len() > MAX_FILES {
        return Err(io::Error::other("there are too many rotated files"));
    }
    Ok(suffixes.into_iter().map(|(_, _, suffix)| directory.join(format!("{name}.{suffix}"))).collect())
}

/// What orders rotated files, oldest first.
fn age(suffix: &str) -> Option<u64> {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match suffix.split_once('-') {
        Some((day, time)) if day.len() == 8 && time.len() == 6 && digits(day) && digits(time) => {
            format!("{day}{time}").parse().ok()
        }
        None if digits(suffix) => suffix.parse::<u32>().ok().map(|number| u64::MAX - u64::from(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn rotated_files_are_read_oldest_first() {
        let host = tempfile::tempdir().expect("a directory");
        let node = HostFiles::new(host.path()).expect("the root");
        for name in [
            "0.log",
            "0.log.20241121-101010",
            "0.log.20241121-101009.gz",
            "0.log.20241121-101009",
            "0.log.20241120-235959.gz",
            "0.log.20241121-101010.tmp",
            "1.log",
            "x-json.log",
            "x-json.log.1",
            "x-json.log.10.gz",
            "x-json.log.2.gz",
        ] {
            fs::write(host.path().join(name), "").expect("a file");
        }
        let names = |path: &str| {
            let paths = rotated(&node, Path::new(path)).expect("listed");
            paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names("/0.log"), ["/0.log.20241120-235959.gz", "/0.log.20241121-101009", "/0.log.20241121-101010"]);
        assert_eq!(names("/x-json.log"), ["/x-json.log.10.gz", "/x-json.log.2.gz", "/x-json.log.1"]);
        let starts = Location::Directory("/".into()).candidates(&node).expect("listed");
        assert_eq!(starts, [Path::new("/0.log"), Path::new("/1.log")]);
    }
}
