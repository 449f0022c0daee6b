//! What the file sink has written, read back strictly: a line that is no record is an error.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The file that it stands in, below the sink's directory.
    pub file: PathBuf,
    /// The whole record.
    pub value: Value,
}

impl Record {
    /// A string by its JSON pointer, or "" when it isn't there.
    #[must_use]
    pub fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// An attribute, or "" when it isn't there.
    #[must_use]
    pub fn attribute(&self, name: &str) -> &str {
        self.value["attributes"][name].as_str().unwrap_or_default()
    }

    /// A resource attribute, or "" when it isn't there.
    #[must_use]
    pub fn resource(&self, name: &str) -> &str {
        self.value["resource"][name].as_str().unwrap_or_default()
    }

    /// The class: `pod`, `business` or `server`.
    #[must_use]
    pub fn class(&self) -> &str {
        self.text("/class")
    }

    /// The stream's key.
    #[must_use]
    pub fn stream(&self) -> &str {
        self.text("/stream")
    }

    /// Position of the first byte in its stream.
    ///
    /// # Panics
    /// The record has none.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.value["position"].as_u64().unwrap_or_else(|| panic!("a position in {}", self.value))
    }

    /// Whether the record carries this flag: `cut`, `continuation`, `unterminated`, `after_gap` or `multiline`.
    #[must_use]
    pub fn has_flag(&self, flag: &str) -> bool {
        self.value["flags"].as_array().is_some_and(|flags| flags.iter().any(|name| name == flag))
    }

    /// The bytes of the stream that the record stands for: the body, and the newline that ended it.
    ///
    /// # Errors
    /// The record isn't of the documented form, or its length doesn't fit.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = match self.attribute("sidestep.body.base64") {
            "" => self.value["body"].as_str().context("a record without body")?.as_bytes().to_vec(),
            encoded => data_encoding::BASE64.decode(encoded.as_bytes()).context("the exact body")?,
        };
        if !self.has_flag("cut") && !self.has_flag("unterminated") {
            bytes.push(b'\n');
        }
        let length = self.value["length"].as_u64();
        ensure!(length == Some(bytes.len() as u64), "{} bytes in a record of length {length:?}", bytes.len());
        Ok(bytes)
    }

    /// `stdout` or `stderr`, or the path of the log file as the writer sees it; the class of what nobody wrote.
    #[must_use]
    pub fn source(&self) -> &str {
        let sources = [self.attribute("log.file.path"), self.attribute("log.iostream")];
        sources.into_iter().find(|source| !source.is_empty()).unwrap_or_else(|| self.class())
    }
}

/// All records of the files below `directory`, files in the order of their names.
///
/// # Errors
/// A file can't be read, isn't UTF-8, or has a line that isn't an object.
pub fn read(directory: &Path) -> Result<Vec<Record>> {
    Tail::default().poll(directory)
}

/// Appends the records of `text`, whose lines are complete.
fn parse(text: &str, file: &Path, records: &mut Vec<Record>) -> Result<()> {
    for line in text.lines() {
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("{}: no record: {line:?}", file.display()))?;
        ensure!(value.is_object(), "{}: no record: {line:?}", file.display());
        records.push(Record { file: file.to_owned(), value });
    }
    Ok(())
}

/// Reads the records that come in while the agent runs, each once.
#[derive(Debug, Default)]
pub struct Tail {
    /// How much of each file has been read.
    read: HashMap<PathBuf, u64>,
}

impl Tail {
    /// The records since the last call.
    ///
    /// # Errors
    /// As [`read`].
    pub fn poll(&mut self, directory: &Path) -> Result<Vec<Record>> {
        let mut files = Vec::new();
        find(directory, &mut files)?;
        files.sort_unstable();
        let mut records = Vec::new();
        for path in files {
            let shown = path.strip_prefix(directory).unwrap_or(&path).to_owned();
            let read = self.read.entry(path.clone()).or_default();
            let mut file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            file.seek(SeekFrom::Start(*read))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            *read += complete as u64;
            let text = std::str::from_utf8(&bytes[..complete]);
            parse(text.with_context(|| format!("{} is not UTF-8", path.display()))?, &shown, &mut records)?;
        }
        Ok(records)
    }
}

/// Files named `*.ndjson`, wherever they are; the directory may not be there yet.
fn find(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            find(&entry.path(), files)?;
        } else if entry.path().extension().is_some_and(|extension| extension == "ndjson") {
            files.push(entry.path());
        }
    }
    Ok(())
}
