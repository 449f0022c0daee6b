//! What one runtime's files say, before it is believed and put together.

use std::{
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use super::{Files, Runtime};

/// The longest value that is taken over, in bytes; the rest is cut. An image's name with its digest has some 330.
const MAX_VALUE: usize = 1024;

/// What a runtime's files say of one container. Texts are as found: empty, too long, or made by a person.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Finding {
    pub(super) runtime: Option<Runtime>,
    pub(super) container_id: Option<String>,
    pub(super) container_name: Option<String>,
    pub(super) image: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) pod: Option<String>,
    pub(super) pod_uid: Option<String>,
    pub(super) sandbox: bool,
    pub(super) sandbox_id: Option<String>,
    pub(super) log_directory: Option<PathBuf>,
    pub(super) log_path: Option<PathBuf>,
    pub(super) bundle: Option<PathBuf>,
    pub(super) rootfs: Option<PathBuf>,
}

/// Why a runtime's file says nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// It is there and cannot be read.
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// It is not what the runtime writes; or not yet, for it is not written at once.
    #[error("cannot understand {path}: {source}")]
    Malformed { path: PathBuf, source: serde_json::Error },
}

/// The value in a JSON file, or `None` when there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(files: &dyn Files, path: &Path) -> Result<Option<T>, ReadError> {
    let content = match files.read(path) {
        Ok(content) => content,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(source) => return Err(ReadError::Io { path: path.to_owned(), source }),
    };
    serde_json::from_slice(&content).map(Some).map_err(|source| ReadError::Malformed { path: path.to_owned(), source })
}

/// The names in a directory that can be ids, sorted; none when there is no such directory.
pub(super) fn list_ids(files: &dyn Files, path: &Path) -> Result<Vec<String>, ReadError> {
    let names = match files.list(path) {
        Ok(names) => names,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(source) => return Err(ReadError::Io { path: path.to_owned(), source }),
    };
    let mut ids: Vec<_> = names
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| super::cgroup::is_id(name))
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A value for a record: `None` when empty, cut when too long. Control characters stay; encoders escape them.
pub(super) fn value(text: &str) -> Option<Arc<str>> {
    let end = text.floor_char_boundary(MAX_VALUE);
    (end > 0).then(|| Arc::from(&text[..end]))
}

/// A path of the node that may be opened: absolute, without `..`, below the usual limit.
pub(super) fn node_path(path: impl Into<PathBuf>) -> Option<PathBuf> {
    let path = path.into();
    let sound = path.is_absolute()
        && path.as_os_str().len() < 4096
        && path.components().all(|component| matches!(component, Component::RootDir | Component::Normal(_)));
    sound.then_some(path)
}
