//! From the bytes of the ring to events. Pure: nothing is looked up here, and every length is checked.

pub mod foreign;

use std::{mem::size_of, sync::Arc};

use sidestep_abi::{
    Header,
    container::{CGROUP_PATH_SPACE, ContainerEvent},
    event,
    file::{FLAG_PATH_CUT, FileSeen, PATH_SPACE},
    govern::Refusal,
    log::LogEvent,
};

/// One event from the kernel.
#[derive(Debug)]
pub enum Event<'a> {
    /// Bytes of a container's standard stream.
    Stdio(LogEvent, &'a [u8]),
    /// Bytes written to a file.
    FileData(LogEvent, &'a [u8]),
    /// A file was written that is not judged yet. The path is `None` when it was too long for the record.
    FileSeen(FileSeen, Option<Arc<str>>),
    /// A container's first process was executed.
    ContainerStarted(ContainerEvent),
    /// A cgroup was made, at this path in the v2 hierarchy.
    CgroupMade(Header, Arc<str>),
    /// A cgroup's last process has ended.
    CgroupEmpty(Header),
    /// A cgroup was removed.
    CgroupRemoved(Header),
    /// Something of a Pod was refused; the beginning of a request.
    Refused(Refusal, &'a [u8]),
}

impl Event<'_> {
    /// The cgroup of the process that wrote, or was executed; `None` for the life of a cgroup.
    #[must_use]
    pub const fn writer(&self) -> Option<u64> {
        match self {
            Self::Stdio(event, _) | Self::FileData(event, _) => Some(event.header.cgroup),
            Self::FileSeen(seen, _) => Some(seen.header.cgroup),
            Self::ContainerStarted(event) => Some(event.header.cgroup),
            Self::CgroupMade(..) | Self::CgroupEmpty(_) | Self::CgroupRemoved(_) | Self::Refused(..) => None,
        }
    }
}

/// A record that this version can't read: counted, and left out.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The record is shorter than its kind or its length say.
    #[error("a record of {0} bytes is too short for its kind")]
    Short(usize),
    /// The kind is not known.
    #[error("unknown kind {0} of record")]
    UnknownKind(u16),
}

/// Types of `sidestep_abi` that are read from bytes as they are.
///
/// # Safety
/// The type consists of integers only, so that any bytes are a value.
unsafe trait Wire: Copy {}
// SAFETY: `repr(C)`, of integers only.
unsafe impl Wire for Header {}
// SAFETY: `repr(C)`, a `Header` and integers.
unsafe impl Wire for LogEvent {}
// SAFETY: `repr(C)`, a `Header` and integers.
unsafe impl Wire for FileSeen {}
// SAFETY: `repr(C)`, a `Header`, and structures of integers only.
unsafe impl Wire for Refusal {}
// SAFETY: `repr(C)`, a `Header` and two `InodeKey`s, which are of integers only.
unsafe impl Wire for ContainerEvent {}

fn split<T: Wire>(record: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    let Some((fixed, rest)) = record.split_at_checked(size_of::<T>()) else {
        return Err(DecodeError::Short(record.len()));
    };
    // SAFETY: `fixed` is as long as `T`, of which any bytes are a value by `Wire`; the read needs no alignment.
    Ok((unsafe { fixed.as_ptr().cast::<T>().read_unaligned() }, rest))
}

/// The valid bytes of the variable part.
fn payload<'a>(header: &Header, rest: &'a [u8], record: &[u8]) -> Result<&'a [u8], DecodeError> {
    rest.get(..header.len as usize).ok_or(DecodeError::Short(record.len()))
}

/// Reads one record of the ring.
///
/// # Errors
/// When it is not one that this version knows.
pub fn decode(record: &[u8]) -> Result<Event<'_>, DecodeError> {
    let (header, _) = split::<Header>(record)?;
    match header.kind {
        event::STDIO_DATA | event::FILE_DATA => {
            let (event, rest) = split::<LogEvent>(record)?;
            let bytes = payload(&header, rest, record)?;
            Ok(if header.kind == event::STDIO_DATA {
                Event::Stdio(event, bytes)
            } else {
                Event::FileData(event, bytes)
            })
        }
        event::FILE_SEEN => {
            let (seen, rest) = split::<FileSeen>(record)?;
            let names = payload(&header, rest, record)?;
            let complete = header.flags & FLAG_PATH_CUT == 0 && names.len() <= PATH_SPACE;
            Ok(Event::FileSeen(seen, complete.then(|| path_of(names))))
        }
        event::CONTAINER_STARTED => Ok(Event::ContainerStarted(split(record)?.0)),
        event::CGROUP_MADE => {
            let (made, rest) = split::<ContainerEvent>(record)?;
            let path = payload(&header, rest, record)?;
            let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len()).min(CGROUP_PATH_SPACE);
            Ok(Event::CgroupMade(made.header, String::from_utf8_lossy(&path[..end]).into()))
        }
        event::CGROUP_EMPTY => Ok(Event::CgroupEmpty(header)),
        event::CGROUP_REMOVED => Ok(Event::CgroupRemoved(header)),
        event::REFUSED => {
            let (refusal, rest) = split::<Refusal>(record)?;
            Ok(Event::Refused(refusal, payload(&header, rest, record)?))
        }
        kind => Err(DecodeError::UnknownKind(kind)),
    }
}

/// The kernel walks from the leaf up: `app.log\0log\0var\0` is `/var/log/app.log`.
fn path_of(names: &[u8]) -> Arc<str> {
    let mut path = String::with_capacity(names.len());
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).rev() {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(name));
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(kind: u16, flags: u16, len: u32, fixed: usize, rest: &[u8]) -> Vec<u8> {
        let mut record = vec![0; fixed];
        record[..2].copy_from_slice(&kind.to_ne_bytes());
        record[2..4].copy_from_slice(&flags.to_ne_bytes());
        record[4..8].copy_from_slice(&len.to_ne_bytes());
        record.extend_from_slice(rest);
        record
    }

    #[test]
    fn bytes_end_where_the_record_says() {
        let record = record(event::STDIO_DATA, 0, 3, 64, b"abc-rest-of-the-space");
        let Ok(Event::Stdio(_, bytes)) = decode(&record) else { panic!("no stdio event") };
        assert_eq!(bytes, b"abc");
    }

    #[test]
    fn a_path_is_turned_round() {
        let record = record(event::FILE_SEEN, 0, 16, size_of::<FileSeen>(), b"app.log\0log\0var\0");
        let Ok(Event::FileSeen(_, path)) = decode(&record) else { panic!("no file event") };
        assert_eq!(path.as_deref(), Some("/var/log/app.log"));
    }

    #[test]
    fn a_cut_path_is_no_path() {
        let record = record(event::FILE_SEEN, FLAG_PATH_CUT, 4, size_of::<FileSeen>(), b"log\0");
        assert!(matches!(decode(&record), Ok(Event::FileSeen(_, None))));
    }

    #[test]
    fn a_length_beyond_the_record_is_refused() {
        assert!(matches!(decode(&record(event::FILE_DATA, 0, 9, 64, b"12345678")), Err(DecodeError::Short(72))));
        assert!(matches!(decode(&record(99, 0, 0, 64, b"")), Err(DecodeError::UnknownKind(99))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_event_or_an_error(record in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u16..10) {
            let mut record = record;
            if record.len() >= 2 {
                record[..2].copy_from_slice(&kind.to_ne_bytes());
            }
            let _ = decode(&record);
        }
    }
}
