//! Finds what was written behind a stretch of NULs, without reading holes.

use std::{fs::File, os::unix::fs::FileExt};

use rustix::{fs::SeekFrom, io::Errno};

/// Bytes of data that are searched in one call: a file of written NULs must not hold up the others.
const SEARCH_BYTES: u64 = 8 * 1024 * 1024;

/// Offset of the first byte that is not NUL in `from..to`; `None` when there is none, or none near.
///
/// Moves the descriptor's own position, which nobody else uses.
#[must_use]
pub(super) fn next_written(file: &File, from: u64, to: u64) -> Option<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut position = from;
    let mut searched = 0;
    while position < to && searched < SEARCH_BYTES {
        match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(data) => position = data,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => return None,
            // A file system without holes.
            Err(_) => {}
        }
        if position >= to {
            return None;
        }
        let len = usize::try_from(to - position).unwrap_or(buffer.len()).min(buffer.len());
        let read = file.read_at(&mut buffer[..len], position).ok().filter(|&read| read > 0)?;
        if let Some(found) = buffer[..read].iter().position(|&byte| byte != 0) {
            return Some(position + found as u64);
        }
        position += read as u64;
        searched += read as u64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_data_behind_a_hole_that_nobody_could_read_through() {
        let file = tempfile::tempfile().expect("file");
        let far = 1 << 40;
        file.write_all_at(b"x", far + 5).expect("written");
        assert_eq!(next_written(&file, 0, far + 6), Some(far + 5));
        assert_eq!(next_written(&file, 0, far), None);
        assert_eq!(next_written(&file, far + 6, far + 6), None);
    }
}
