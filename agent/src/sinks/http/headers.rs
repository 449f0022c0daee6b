//! Headers of the operator's own.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::config::{Encoding, Settings};
use crate::sinks::{NamedFile, config::InvalidSetting, http_client};

/// Headers that say how a request is made, which is not the operator's to say.
const OURS: [&str; 5] = ["connection", "content-encoding", "content-length", "host", "transfer-encoding"];

/// The value of a header.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum HeaderText {
    /// As it stands there.
    Plain(String),
    /// What the file holds, read for each request; a newline at its end does not count.
    File(FromFile),
}

/// A value that is not to be seen in the configuration.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FromFile {
    /// The file, as Kubernetes mounts a Secret.
    pub file: PathBuf,
}

/// By hand, as serde's own way forgets what is wrong, and where.
impl<'de> Deserialize<'de> for HeaderText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HeaderTextVisitor)
    }
}

struct HeaderTextVisitor;

impl<'de> Visitor<'de> for HeaderTextVisitor {
    type Value = HeaderText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, or `file: /path`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<HeaderText, E> {
        Ok(HeaderText::Plain(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, options: A) -> Result<HeaderText, A::Error> {
        FromFile::deserialize(MapAccessDeserializer::new(options)).map(HeaderText::File)
    }
}

impl HeaderText {
    /// The file of the header of this name, where it has one.
    pub(super) fn file(&self, name: &str) -> Option<NamedFile<'_>> {
        match self {
            Self::Plain(_) => None,
            Self::File(FromFile { file }) => Some(NamedFile::new(format!("headers.{name}.file"), file)),
        }
    }

    fn value(&self, name: &str) -> Result<HeaderValue, String> {
        match self {
            Self::Plain(text) => HeaderValue::from_str(text.strip_suffix('\n').unwrap_or(text))
                .map_err(|_| format!("the header {name} has characters that no header may have")),
            Self::File(FromFile { file }) => {
                let file = NamedFile::new(format!("headers.{name}.file"), file);
                http_client::secret_header(&file, |secret| secret).map_err(|fault| fault.to_string())
            }
        }
    }
}

/// The headers with their values of now.
///
/// # Errors
/// A file can't be read, or a name or value is none.
pub(super) fn read(headers: &BTreeMap<String, HeaderText>) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, text) in headers {
        let value = text.value(name)?;
        let name = HeaderName::try_from(name).map_err(|_| format!("{name:?} is no header's name"))?;
        map.insert(name, value);
    }
    Ok(map)
}

/// What makes no sense.
pub(super) fn problem(settings: &Settings) -> Option<InvalidSetting> {
    let find = || {
        for (name, text) in &settings.headers {
            let lower = name.to_ascii_lowercase();
            if HeaderName::try_from(name).is_err() {
                return Some(format!("has {name:?}, which is no header's name"));
            }
            let is_otlp = settings.encoding == Encoding::OtlpProto;
            if OURS.contains(&&*lower) || is_otlp && lower == "content-type" {
                return Some(format!("must not have {name:?}: the agent says that itself"));
            }
            if lower == "authorization" && settings.auth.is_some() {
                return Some("must not have \"Authorization\" beside `auth`: one of the two".to_owned());
            }
            match text {
                HeaderText::Plain(_) => {
                    if let Err(problem) = text.value(name) {
                        return Some(problem);
                    }
                }
                HeaderText::File(FromFile { file })
                    if Url::parse(&settings.url).is_ok_and(|url| http_client::is_clear_text(&url)) =>
                {
                    let file = file.display();
                    return Some(format!("would send what is in {file} in clear text: it needs `https://` in `url`"));
                }
                HeaderText::File(_) => {}
            }
        }
        None
    };
    find().map(|problem| InvalidSetting { option: "headers", problem })
}
