//! The Pods on disk, for an agent that starts while the API server does not answer.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    pod::Pod,
    pods::{MAX_PODS, Pods},
};
use crate::events::Event;

const NAME: &str = "pods.json";
const VERSION: u32 = 1;
/// Far more than Pods of one node take.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Pause between looks at whether there is something new.
const PAUSE: Duration = Duration::from_secs(5);

/// The file: the content is text of its own, so that its checksum is that of its bytes.
#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    checksum: u32,
    content: &'a RawValue,
}

#[derive(Deserialize)]
struct Read<'a> {
    version: u32,
    checksum: u32,
    #[serde(borrow)]
    content: &'a RawValue,
}

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
enum SavedError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    #[error("damaged: the checksum of its content does not match")]
    Checksum,
    #[error("damaged: larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("of version {0}, which this agent does not know")]
    Version(u32),
}

/// Takes over what an agent before has saved in `state_dir`. What can't be read is passed over with a warning: the API server
/// has all of it.
pub(super) fn load(state_dir: &Path, pods: &Pods) {
    let path = state_dir.join(NAME);
    match read(&path) {
        Ok(saved) => saved.into_iter().take(MAX_PODS).for_each(|pod| pods.apply(pod)),
        Err(SavedError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => Event::KubernetesStateUnusable { path: &path, error: &error }.report(),
    }
}

/// Writes the Pods when they have changed, for ever.
pub(super) async fn keep(state_dir: PathBuf, pods: Arc<Pods>) {
    let path = state_dir.join(NAME);
    let mut written = pods.version();
    let mut is_failing = false;
    loop {
        tokio::time::sleep(PAUSE).await;
        pods.sweep(std::time::Instant::now());
        let version = pods.version();
        if version == written {
            continue;
        }
        let (path, all) = (path.clone(), pods.all());
        let result = tokio::task::spawn_blocking(move || write(&path, &all)).await;
        match result.map_err(io::Error::other).and_then(|result| result) {
            Ok(()) => (written, is_failing) = (version, false),
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    Event::KubernetesStateUnusable { path: &state_dir.join(NAME), error: &error }.report();
                }
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<Pod>, SavedError> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(SavedError::TooLarge);
    }
    let text = fs::read(path)?;
    let Read { version, checksum, content } = serde_json::from_slice(&text)?;
    if version != VERSION {
        return Err(SavedError::Version(version));
    }
    if crc32fast::hash(content.get().as_bytes()) != checksum {
        return Err(SavedError::Checksum);
    }
    Ok(serde_json::from_str(content.get())?)
}

/// After a crash there is the old file or the new one.
fn write(path: &Path, pods: &[Arc<Pod>]) -> io::Result<()> {
    let content = serde_json::value::to_raw_value(pods)?;
    let checksum = crc32fast::hash(content.get().as_bytes());
    let text = serde_json::to_vec(&Written { version: VERSION, checksum, content: &content })?;
    let temporary = path.with_extension("json.new");
    let written = (|| {
        let mut file = fs::File::create(&temporary)?;
        io::Write::write_all(&mut file, &text)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // It takes space that there may not be.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::{Labels, Owner};

    fn pod() -> Pod {
        Pod {
            uid: "u".into(),
            namespace: "shop".into(),
            name: "web".into(),
            labels: Labels::from([("app".to_owned(), "web".to_owned())]),
            namespace_labels: Arc::new(Labels::from([("env".to_owned(), "prod".to_owned())])),
            owners: vec![Owner { kind: "Job".into(), name: "j".into(), uid: "o".into() }],
            static_uid: Some("hash".into()),
            ..Pod::default()
        }
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(NAME);
        write(&path, &[Arc::new(pod())]).expect("written");
        let pods = Pods::default();
        load(directory.path(), &pods);
        assert_eq!(*pods.get("hash").expect("the Pod"), pod());
    }

    #[test]
    fn damage_costs_no_more_than_the_file() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(NAME);
        write(&path, &[Arc::new(pod())]).expect("written");
        let whole = fs::read_to_string(&path).expect("read");
        let wrong = [
            (whole.replace("shop", "shap"), "checksum"),
            (whole[..whole.len() / 2].to_owned(), "damaged"),
            (whole.replace("\"version\":1", "\"version\":7"), "version 7"),
        ];
        for (text, expected) in wrong {
            fs::write(&path, text).expect("written");
            let error = read(&path).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
            let pods = Pods::default();
            load(directory.path(), &pods);
            assert_eq!(pods.count(), (0, 0));
        }
    }
}
