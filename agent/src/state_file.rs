//! What the agent keeps in its state directory: small files of JSON with a version and a checksum.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

/// A file of this size holds far more than is ever written.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The file: the content is text of its own, so that its checksum is that of its bytes.
#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    checksum: u32,
    content: &'a RawValue,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Read<'a> {
    checksum: u32,
    #[serde(borrow)]
    content: &'a RawValue,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateFileError {
    /// The file can't be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The content makes no sense.
    #[error("damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// Something of it was changed.
    #[error("damaged: the checksum of its content does not match")]
    Checksum,
    /// It is larger than any that was ever written.
    #[error("damaged: larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// A later agent wrote it.
    #[error("of version {0}, which this agent does not know: a later sidestep has written it")]
    Version(u32),
}

impl StateFileError {
    /// Whether there is no file.
    #[must_use]
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// The content of the file at `path`, which must be of `version`, or of `plain`: a version that had no checksum.
///
/// # Errors
/// The file can't be used.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, version: u32, plain: Option<u32>) -> Result<T, StateFileError> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(StateFileError::TooLarge);
    }
    let text = fs::read(path)?;
    let found: Version = serde_json::from_slice(&text)?;
    if Some(found.version) == plain {
        return Ok(serde_json::from_slice(&text)?);
    }
    if found.version != version {
        return Err(StateFileError::Version(found.version));
    }
    let Read { checksum, content } = serde_json::from_slice(&text)?;
    if crc32fast::hash(content.get().as_bytes()) != checksum {
        return Err(StateFileError::Checksum);
    }
    Ok(serde_json::from_str(content.get())?)
}

/// Writes the file at `path`: after a crash there is the old one or the new one.
///
/// # Errors
/// It can't be written.
pub(crate) fn replace<T: Serialize + ?Sized>(path: &Path, version: u32, content: &T) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let content = serde_json::value::to_raw_value(content)?;
    let checksum = crc32fast::hash(content.get().as_bytes());
    let text = serde_json::to_vec(&Written { version, checksum, content: &content })?;
    replace_text(path, &path.with_extension("json.new"), &text, 0o666)
}

/// Writes the file at `path` by way of a temporary one beside it: after a crash there is the old one or the new one.
///
/// # Errors
/// It can't be written.
pub(crate) fn replace_text(path: &Path, temporary: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let written = (|| {
        // Whatever lies there, a link of somebody else's too, is not written to.
        let _ = fs::remove_file(temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(temporary)?;
        file.write_all(text)?;
        file.sync_data()?;
        fs::rename(temporary, path)
    })();
    if written.is_err() {
        // It takes space that there may not be.
        let _ = fs::remove_file(temporary);
    }
    written?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
