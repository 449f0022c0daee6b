//! runc and crun with nothing above them, or with something that nobody knows: their state names the cgroup, so a
//! container is found by it even when the path holds no id.
//!
//! runc: `<root>/[<namespace>/]<id>/state.json`. crun: `<root>/<id>/status`.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use super::{
    Files, Runtime, Settings,
    annotations::{self, Annotations},
    finding::{Finding, ReadError, list_ids, node_path, read_json},
    oci::Spec,
};

#[derive(serde::Deserialize)]
struct RuncState {
    #[serde(default)]
    cgroup_paths: Option<HashMap<String, String>>,
    config: RuncConfig,
}

#[derive(serde::Deserialize)]
struct RuncConfig {
    #[serde(default)]
    rootfs: PathBuf,
    /// `key=value`: the annotations, and `bundle`.
    #[serde(default)]
    labels: Option<Vec<String>>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CrunStatus {
    #[serde(default)]
    cgroup_path: String,
    #[serde(default)]
    bundle: PathBuf,
}

/// A container of one of the two, with its cgroup.
struct Container {
    id: String,
    runtime: Runtime,
    cgroup: String,
    bundle: Option<PathBuf>,
    rootfs: Option<PathBuf>,
    annotations: Annotations,
}

/// The outermost container whose cgroup is `path` or holds it, and that cgroup.
pub(super) fn find_by_cgroup<'a>(
    files: &dyn Files,
    settings: &Settings,
    path: &'a str,
) -> Result<Option<(Finding, &'a str)>, ReadError> {
    let mut best: Option<Container> = None;
    let mut failed = None;
    let mut consider = |container: Result<Option<Container>, ReadError>| match container {
        Ok(Some(container)) => {
            if holds(&container.cgroup, path)
                && best.as_ref().is_none_or(|best| container.cgroup.len() < best.cgroup.len())
            {
                best = Some(container);
            }
            true
        }
        Ok(None) => false,
        // The state of one container must not hide the others.
        Err(error) => {
            failed = Some(error);
            true
        }
    };
    for root in &settings.runc_state {
        for name in list_ids(files, root)? {
            let directory = root.join(&name);
            if !consider(runc(files, &directory, &name)) {
                for id in list_ids(files, &directory)? {
                    consider(runc(files, &directory.join(&id), &id));
                }
            }
        }
    }
    for root in &settings.crun_state {
        for id in list_ids(files, root)? {
            consider(crun(files, &root.join(&id), &id));
        }
    }
    match (best, failed) {
        (Some(container), _) => {
            let cgroup = &path[..container.cgroup.len()];
            Ok(Some((finding(files, container), cgroup)))
        }
        (None, Some(error)) => Err(error),
        (None, None) => Ok(None),
    }
}

/// Whether a cgroup is `path` or an ancestor of it. The root holds everything, and says nothing.
fn holds(cgroup: &str, path: &str) -> bool {
    cgroup.len() > 1 && path.strip_prefix(cgroup).is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

fn runc(files: &dyn Files, directory: &Path, id: &str) -> Result<Option<Container>, ReadError> {
    let Some(state) = read_json::<RuncState>(files, &directory.join("state.json"))? else { return Ok(None) };
    let mut annotations: Annotations = state
        .config
        .labels
        .unwrap_or_default()
        .iter()
        .filter_map(|label| label.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let bundle = annotations.remove("bundle").and_then(node_path);
    Ok(Some(Container {
        id: id.to_owned(),
        runtime: Runtime::Runc,
        cgroup: state.cgroup_paths.and_then(|paths| v2_path(&paths)).unwrap_or_default(),
        bundle,
        rootfs: node_path(state.config.rootfs),
        annotations,
    }))
}

/// The path in the v2 hierarchy from the mounted directories: the key is empty for it.
fn v2_path(paths: &HashMap<String, String>) -> Option<String> {
    let mounted = paths.get("")?.strip_prefix("/sys/fs/cgroup")?;
    // Where v1 and v2 are both mounted.
    let path = match mounted.strip_prefix("/unified/") {
        Some(_) => &mounted["/unified".len()..],
        None => mounted,
    };
    Some(path.to_owned())
}

fn crun(files: &dyn Files, directory: &Path, id: &str) -> Result<Option<Container>, ReadError> {
    Ok(read_json::<CrunStatus>(files, &directory.join("status"))?.map(|status| Container {
        id: id.to_owned(),
        runtime: Runtime::Crun,
        cgroup: status.cgroup_path,
        bundle: node_path(status.bundle),
        rootfs: None,
        annotations: Annotations::new(),
    }))
}

fn finding(files: &dyn Files, container: Container) -> Finding {
    // A bundle may be gone while its container runs; the state has a copy of the annotations.
    let spec = container.bundle.as_deref().and_then(|bundle| Some((Spec::read(files, bundle).ok()??, bundle)));
    let mut finding = match spec {
        Some((spec, bundle)) => spec.finding(bundle),
        None => annotations::read(&container.annotations),
    };
    finding.bundle = container.bundle;
    finding.rootfs = container.rootfs.or(finding.rootfs);
    finding.runtime = Some(finding.runtime.unwrap_or(container.runtime));
    if finding.container_name.is_none() && finding.pod.is_none() {
        finding.container_name = Some(container.id.clone());
    }
    finding.container_id = Some(container.id);
    finding
}
