//! Compresses a closed file: into a temporary name, synced, renamed, and only then is the original removed.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
};

use flate2::write::GzEncoder;
use rustix::{
    fs::{AtFlags, Mode, OFlags, fsync, openat, renameat, unlinkat},
    io::Errno,
};

use super::{appender::cut_back, config::Compression, names::Place, path::Form, tree::Tree};

/// How much is compressed between two looks at the stop signal.
const CHUNK: usize = 256 * 1024;

/// Compresses the file at `place`. False when `stop` came first; the file is then as it was.
pub(super) fn compress(
    tree: &Tree,
    place: &Place,
    compression: Compression,
    level: u8,
    stop: &AtomicBool,
) -> io::Result<bool> {
    let form = match compression {
        Compression::Zstd => Form::Zstd,
        Compression::Gzip => Form::Gzip,
        Compression::None => return Ok(true),
    };
    let directory = tree.directory(&place.directories)?;
    let plain = place.name.with(Form::Plain);
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let source = openat(&directory, &plain, flags, Mode::empty())?;
    if cut_back(&source)? == 0 {
        unlinkat(&directory, &plain, AtFlags::empty())?;
        return Ok(true);
    }
    let temporary = place.name.with(Form::Temporary);
    let result = compress_into(&directory, source, &temporary, (form, level), stop);
    if !matches!(result, Ok(true)) {
        // The next sweep removes it if this does not.
        let _ = unlinkat(&directory, &temporary, AtFlags::empty());
        return result;
    }
    renameat(&directory, &temporary, &directory, place.name.with(form))?;
    // The new name must not be lost with the machine once the original is gone.
    fsync(&directory)?;
    unlinkat(&directory, &plain, AtFlags::empty())?;
    Ok(true)
}

fn compress_into(
    directory: &OwnedFd,
    source: OwnedFd,
    temporary: &str,
    (form, level): (Form, u8),
    stop: &AtomicBool,
) -> io::Result<bool> {
    match unlinkat(directory, temporary, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = File::from(openat(directory, temporary, flags, Mode::from_raw_mode(0o640))?);
    let source = File::from(source);
    let target = if form == Form::Gzip {
        let mut encoder = GzEncoder::new(target, flate2::Compression::new(u32::from(level)));
        if !copy(source, &mut encoder, stop)? {
            return Ok(false);
        }
        encoder.finish()?
    } else {
        let mut encoder = zstd::stream::Encoder::new(target, i32::from(level))?;
        encoder.include_checksum(true)?;
        if !copy(source, &mut encoder, stop)? {
            return Ok(false);
        }
        encoder.finish()?
    };
    target.sync_all()?;
    Ok(true)
}

fn copy(mut source: File, target: &mut impl Write, stop: &AtomicBool) -> io::Result<bool> {
    let mut buffer = vec![0; CHUNK];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match source.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(count) => target.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
