//! Names of directories and files. What a Pod chooses is encoded so that it stays one component of a path, that it
//! can be read and decoded, and that two different names never meet, not even where case is not told apart.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::{
    record::{Origin, Stream},
    sinks::timestamp::{NANOS_PER_SECOND, Utc},
};

/// The longest encoded name: a file name may have 255 bytes, and time, number and endings follow.
const LONGEST: usize = 200;

/// Stands for a name that is not known; a name `_` is encoded.
const UNKNOWN: &str = "_";

/// Encodes any bytes as one component of a path.
///
/// `a-z 0-9 . _ -` stand for themselves, `+` for `/`, `=x` for `X`, `%20` for any other byte. A `.` or `-` in front,
/// and a `_` alone, are encoded as bytes; the empty name is `%`. A name that gets longer than 200 bytes is cut, and
/// `~` with 128 bits of its SHA-256 added: that alone cannot be decoded.
#[must_use]
pub fn encode_component(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len() + 8);
    for (index, &byte) in name.iter().enumerate() {
        match byte {
            b'.' | b'-' if index == 0 => push_byte(byte, &mut out),
            b'_' if name.len() == 1 => push_byte(byte, &mut out),
            b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => out.push(char::from(byte)),
            b'A'..=b'Z' => {
                out.push('=');
                out.push(char::from(byte.to_ascii_lowercase()));
            }
            b'/' => out.push('+'),
            _ => push_byte(byte, &mut out),
        }
    }
    if out.is_empty() {
        out.push('%');
    }
    if out.len() > LONGEST {
        let digest = Sha256::digest(name);
        out.truncate(LONGEST - 33);
        out.push('~');
        out.push_str(&data_encoding::HEXLOWER.encode(&digest[..16]));
    }
    out
}

fn push_byte(byte: u8, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push('%');
    out.push(char::from(HEX[usize::from(byte >> 4)]));
    out.push(char::from(HEX[usize::from(byte & 15)]));
}

/// The name that [`encode_component`] made `component` from; `None` for one that was cut, or that it did not make.
#[must_use]
pub fn decode_component(component: &str) -> Option<Vec<u8>> {
    if component == "%" {
        return Some(Vec::new());
    }
    let mut name = Vec::with_capacity(component.len());
    let mut bytes = component.bytes();
    while let Some(byte) = bytes.next() {
        name.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                data_encoding::HEXLOWER.decode(&digits).ok()?[0]
            }
            b'=' => bytes.next()?.to_ascii_uppercase(),
            b'+' => b'/',
            b'~' => return None,
            plain => plain,
        });
    }
    (encode_component(&name) == component).then_some(name)
}

/// Where the records of a stream go: four directories below the root, and how the files' names begin.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Target {
    /// Class, namespace, Pod, container.
    pub(super) directories: [String; 4],
    /// `stdout`, `stderr`, or a log file's encoded path.
    pub(super) base: String,
}

impl Target {
    pub(super) fn of(stream: &Stream) -> Self {
        let resource = &stream.resource;
        let known =
            |name: Option<&str>| name.map_or_else(|| UNKNOWN.to_owned(), |name| encode_component(name.as_bytes()));
        let container =
            [&resource.container_name, &resource.container_id, &resource.cgroup].into_iter().flatten().next();
        let base = match &stream.origin {
            Origin::Stdio(iostream) => iostream.as_str().to_owned(),
            // Encoded, an absolute path begins with `+`, so it is never taken for a standard stream; any other
            // path gets a mark that no encoded name has.
            Origin::File { path } if path.starts_with('/') => encode_component(path.as_bytes()),
            Origin::File { path } => format!("@{}", encode_component(path.as_bytes())),
            Origin::Refusals => "refusals".to_owned(),
        };
        Self {
            directories: [
                stream.class.as_str().to_owned(),
                known(resource.namespace.as_deref()),
                known(resource.pod.as_deref()),
                known(container.map(|name| &**name)),
            ],
            base,
        }
    }
}

/// An hour in UTC, as file names have it: `20261121T05`. Hours compare as their texts do.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Hour([u8; 11]);

impl Hour {
    /// Nanoseconds in an hour.
    pub(super) const NANOS: u64 = 3600 * NANOS_PER_SECOND;

    pub(super) fn of(unix_nano: u64) -> Self {
        let utc = Utc::from_unix_nano(unix_nano);
        let text = format!("{:04}{:02}{:02}T{:02}", utc.year, utc.month, utc.day, utc.hour);
        let mut hour = [b'0'; 11];
        hour.copy_from_slice(text.as_bytes());
        Self(hour)
    }

    fn parse(text: &str) -> Option<Self> {
        let hour: [u8; 11] = text.as_bytes().try_into().ok()?;
        let well_formed =
            hour.iter().enumerate().all(|(at, byte)| if at == 8 { *byte == b'T' } else { byte.is_ascii_digit() });
        well_formed.then_some(Self(hour))
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How far a file is on its way.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Form {
    /// Written to, or waiting to be compressed.
    Plain,
    /// Compressed with zstd.
    Zstd,
    /// Compressed with gzip.
    Gzip,
    /// Left over from a compression that did not come to its end.
    Temporary,
}

impl Form {
    pub(super) const fn ending(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
            Self::Temporary => ".tmp",
        }
    }
}

/// A file's name without the ending that tells its form: `stdout-20261121T05-000.ndjson`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct FileName {
    pub(super) base: String,
    pub(super) hour: Hour,
    pub(super) number: u32,
    pub(super) extension: &'static str,
}

impl FileName {
    pub(super) fn with(&self, form: Form) -> String {
        format!("{self}{}", form.ending())
    }

    /// Reads a name back; `None` for a file that is not ours.
    pub(super) fn parse(text: &str) -> Option<(Self, Form)> {
        let forms = [Form::Temporary, Form::Zstd, Form::Gzip];
        let (stem, form) = forms
            .into_iter()
            .find_map(|form| text.strip_suffix(form.ending()).map(|stem| (stem, form)))
            .unwrap_or((text, Form::Plain));
        let (stem, extension) =
            ["ndjson", "log"].into_iter().find_map(|extension| Some((stem.strip_suffix(extension)?, extension)))?;
        let mut parts = stem.strip_suffix('.')?.rsplitn(3, '-');
        let (number, hour, base) = (parts.next()?, parts.next()?, parts.next()?);
        if base.is_empty() || number.len() < 3 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let name = Self { base: base.to_owned(), hour: Hour::parse(hour)?, number: number.parse().ok()?, extension };
        (name.with(form) == text).then_some((name, form))
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{:03}.{}", self.base, self.hour, self.number, self.extension)
    }
}
