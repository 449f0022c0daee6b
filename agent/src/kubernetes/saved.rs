//! The Pods and the policies on disk, for an agent that starts while the API server does not answer.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::{
    lease::Ending,
    pod::Pod,
    pods::{MAX_PODS, Pods},
    policies::SharedPolicies,
};
use crate::{events::Event, state_file};

/// The file of Pods in `state_dir`.
pub(crate) const PODS: &str = "pods.json";
/// The file of policies in `state_dir`.
pub(crate) const POLICIES: &str = "policies.json";
/// Of both files.
const VERSION: u32 = 1;
/// Pause between looks at whether there is something new.
const PAUSE: Duration = Duration::from_secs(5);
/// Bytes of policies that are kept: what is read may have twice of it.
const MAX_POLICIES: usize = 32 << 20;

/// Takes over the Pods that an agent before has saved in `state_dir`; says when it has. What can't be read is passed over with a
/// warning: the API server has all of it.
pub(super) fn load_pods(state_dir: &Path, pods: &Pods) -> Option<SystemTime> {
    let (saved, when) = load::<Vec<Pod>>(&state_dir.join(PODS))?;
    saved.into_iter().take(MAX_PODS).for_each(|pod| pods.apply(pod.understood()));
    Some(when)
}

/// The same of policies.
pub(super) fn load_policies(state_dir: &Path, policies: &SharedPolicies) -> Option<SystemTime> {
    let (saved, when) = load(&state_dir.join(POLICIES))?;
    policies.restore(saved);
    Some(when)
}

fn load<T: DeserializeOwned>(path: &Path) -> Option<(T, SystemTime)> {
    let when = || fs::metadata(path)?.modified();
    match state_file::read(path, VERSION, None) {
        Ok(content) => Some((content, when().unwrap_or(SystemTime::UNIX_EPOCH))),
        Err(error) if error.is_absent() => None,
        Err(error) => {
            Event::KubernetesStateUnusable { path, error: &error }.report();
            None
        }
    }
}

/// Writes the Pods when they have changed, and once more when the agent ends.
pub(super) async fn keep_pods(state_dir: PathBuf, pods: Arc<Pods>, mut ending: Ending) {
    let mut file = File::new(state_dir.join(PODS), pods.version());
    let mut is_over = false;
    while !is_over {
        is_over = timeout(PAUSE, ending.begun()).await.is_ok();
        file.keep(pods.version(), || pods.with_deleted()).await;
    }
}

/// The same of the policies.
pub(super) async fn keep_policies(state_dir: PathBuf, policies: Arc<SharedPolicies>, mut ending: Ending) {
    let path = state_dir.join(POLICIES);
    let mut file = File::new(path.clone(), policies.sources().0);
    let (mut is_told, mut is_over) = (false, false);
    while !is_over {
        is_over = timeout(PAUSE, ending.begun()).await.is_ok();
        let (version, sources) = policies.sources();
        let fitting = fitting(&sources);
        if fitting < sources.len() && !std::mem::replace(&mut is_told, true) {
            let error = format!("of {} policies only {fitting} are kept, as there is too much of them", sources.len());
            Event::KubernetesStateUnusable { path: &path, error: &error }.report();
        }
        file.keep(version, || sources.into_iter().take(fitting).collect::<Vec<_>>()).await;
    }
}

/// How many of them are not too much.
fn fitting(sources: &[Arc<RawValue>]) -> usize {
    let mut bytes = 0;
    let fits = |source: &&Arc<RawValue>| {
        bytes += source.get().len();
        bytes <= MAX_POLICIES
    };
    sources.iter().take_while(fits).count()
}

/// A file that follows what changes.
struct File {
    path: PathBuf,
    /// Which version of it is there.
    written: u64,
    is_failing: bool,
}

impl File {
    /// One that has this version already.
    const fn new(path: PathBuf, written: u64) -> Self {
        Self { path, written, is_failing: false }
    }

    /// Writes `content`, if it is of another version than the file.
    async fn keep<T: Serialize + Send + 'static>(&mut self, version: u64, content: impl FnOnce() -> T) {
        if version == self.written {
            return;
        }
        let (path, content) = (self.path.clone(), content());
        let result = tokio::task::spawn_blocking(move || state_file::replace(&path, VERSION, &content)).await;
        match result.map_err(io::Error::other).and_then(|result| result) {
            Ok(()) => (self.written, self.is_failing) = (version, false),
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    Event::KubernetesStateUnusable { path: &self.path, error: &error }.report();
                }
            }
        }
    }
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
        let path = directory.path().join(PODS);
        state_file::replace(&path, VERSION, &[pod()]).expect("written");
        let pods = Pods::default();
        load_pods(directory.path(), &pods);
        assert_eq!(*pods.get("hash").expect("the Pod"), pod());
    }

    #[test]
    fn damage_costs_no_more_than_the_file() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(PODS);
        state_file::replace(&path, VERSION, &[pod()]).expect("written");
        let whole = fs::read_to_string(&path).expect("read");
        let wrong = [
            (whole.replace("shop", "shap"), "checksum"),
            (whole[..whole.len() / 2].to_owned(), "damaged"),
            (whole.replace("\"version\":1", "\"version\":7"), "version 7"),
        ];
        for (text, expected) in wrong {
            fs::write(&path, text).expect("written");
            let error = state_file::read::<Vec<Pod>>(&path, VERSION, None).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
            let pods = Pods::default();
            load_pods(directory.path(), &pods);
            assert_eq!(pods.count(), (0, 0));
        }
    }

    #[test]
    fn a_damaged_file_of_policies_costs_no_more_than_itself() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(POLICIES);
        let policies = || SharedPolicies::new(Arc::default());
        assert!(load_policies(directory.path(), &policies()).is_none(), "there is none");
        let policy = |name: &str| {
            let logs = serde_json::json!({ "enabled": false });
            serde_json::json!({ "metadata": { "name": name }, "spec": { "selector": {}, "logs": logs } })
        };
        state_file::replace(&path, VERSION, &[policy("one"), policy("two")]).expect("written");
        let found = policies();
        assert!(load_policies(directory.path(), &found).is_some());
        assert_eq!((found.get().all().count(), found.version()), (2, 1));
        let whole = fs::read_to_string(&path).expect("read");
        for text in [whole.replace("\"two\"", "\"TWO\""), whole[..whole.len() - 9].to_owned(), String::new()] {
            fs::write(&path, text).expect("written");
            let found = policies();
            assert!(load_policies(directory.path(), &found).is_none());
            assert_eq!((found.get().all().count(), found.version()), (0, 0));
        }
        // One that is no policy any more costs itself alone.
        let other = serde_json::json!({ "metadata": { "name": "other" }, "spec": { "of": "a later agent" } });
        state_file::replace(&path, VERSION, &[policy("one"), other]).expect("written");
        let found = policies();
        assert!(load_policies(directory.path(), &found).is_some());
        assert_eq!((found.get().all().count(), found.get().refused().count()), (1, 1));
    }

    #[test]
    fn more_policies_than_anybody_has_are_kept_in_part() {
        let of = |bytes: usize| -> Arc<RawValue> {
            Arc::from(serde_json::value::to_raw_value(&"x".repeat(bytes - 2)).expect("JSON"))
        };
        let policy = of(MAX_POLICIES / 4);
        assert_eq!(fitting(&vec![Arc::clone(&policy); 4]), 4);
        assert_eq!(fitting(&vec![policy; 6]), 4);
    }
}
