//! The Pods on disk, for an agent that starts while the API server does not answer.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    pod::Pod,
    pods::{MAX_PODS, Pods},
};
use crate::{events::Event, state_file};

const NAME: &str = "pods.json";
const VERSION: u32 = 1;
/// Pause between looks at whether there is something new.
const PAUSE: Duration = Duration::from_secs(5);

/// Takes over what an agent before has saved in `state_dir`. What can't be read is passed over with a warning: the API server
/// has all of it.
pub(super) fn load(state_dir: &Path, pods: &Pods) {
    let path = state_dir.join(NAME);
    match state_file::read::<Vec<Pod>>(&path, VERSION, None) {
        Ok(saved) => saved.into_iter().take(MAX_PODS).for_each(|pod| pods.apply(pod)),
        Err(error) if error.is_absent() => {}
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
        let result = tokio::task::spawn_blocking(move || state_file::replace(&path, VERSION, &all)).await;
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

#[cfg(test)]
mod tests {
    use std::fs;

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
        state_file::replace(&path, VERSION, &[pod()]).expect("written");
        let pods = Pods::default();
        load(directory.path(), &pods);
        assert_eq!(*pods.get("hash").expect("the Pod"), pod());
    }

    #[test]
    fn damage_costs_no_more_than_the_file() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(NAME);
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
            load(directory.path(), &pods);
            assert_eq!(pods.count(), (0, 0));
        }
    }
}
