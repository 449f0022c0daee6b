//! containerd: `<state>/io.containerd.runtime.v2.task/<namespace>/<id>/config.json`.

use std::path::{Path, PathBuf};

use super::{
    Files, Runtime, Settings,
    finding::{Finding, ReadError, list_ids},
    oci::Spec,
};

const TASKS: &str = "io.containerd.runtime.v2.task";
/// The namespace of CRI, tried first.
const KUBERNETES: &str = "k8s.io";
/// The namespace of Docker, which knows more than its bundles say.
pub(super) const DOCKER: &str = "moby";
/// How many namespaces are looked into; there are rarely more than three.
const MAX_NAMESPACES: usize = 64;

/// A container by its id, in any namespace but Docker's.
pub(super) fn find(files: &dyn Files, settings: &Settings, id: &str) -> Result<Option<Finding>, ReadError> {
    for state in &settings.containerd_state {
        let tasks = state.join(TASKS);
        if let Some(finding) = read(files, &tasks.join(KUBERNETES).join(id))? {
            return Ok(Some(finding));
        }
        for namespace in list_ids(files, &tasks)?.into_iter().take(MAX_NAMESPACES) {
            if namespace == KUBERNETES || namespace == DOCKER {
                continue;
            }
            if let Some(finding) = read(files, &tasks.join(namespace).join(id))? {
                return Ok(Some(finding));
            }
        }
    }
    Ok(None)
}

/// A container by the path `/<namespace>/<id>` that `ctr` and nerdctl give to its cgroup. The names are free, so the
/// bundle must name the same cgroup. Gives the cgroup as well.
pub(super) fn find_by_cgroup<'a>(
    files: &dyn Files,
    settings: &Settings,
    path: &'a str,
) -> Result<Option<(Finding, &'a str)>, ReadError> {
    let mut components = path.strip_prefix('/').unwrap_or_default().splitn(3, '/');
    let (Some(namespace), Some(id)) = (components.next(), components.next()) else { return Ok(None) };
    if !super::cgroup::is_id(namespace) || !super::cgroup::is_id(id) {
        return Ok(None);
    }
    let cgroup = &path[..1 + namespace.len() + 1 + id.len()];
    for state in &settings.containerd_state {
        let bundle = state.join(TASKS).join(namespace).join(id);
        if let Some(spec) = Spec::read(files, &bundle)?
            && spec.cgroups_path() == Some(cgroup)
        {
            return Ok(Some((finding(&spec, &bundle, id), cgroup)));
        }
    }
    Ok(None)
}

/// A bundle of Docker's, with where it is.
pub(super) fn docker_bundle(
    files: &dyn Files,
    settings: &Settings,
    id: &str,
) -> Result<Option<(Spec, PathBuf)>, ReadError> {
    for state in &settings.containerd_state {
        let bundle = state.join(TASKS).join(DOCKER).join(id);
        if let Some(spec) = Spec::read(files, &bundle)? {
            return Ok(Some((spec, bundle)));
        }
    }
    Ok(None)
}

fn read(files: &dyn Files, bundle: &Path) -> Result<Option<Finding>, ReadError> {
    let id = bundle.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Ok(Spec::read(files, bundle)?.map(|spec| finding(&spec, bundle, id)))
}

fn finding(spec: &Spec, bundle: &Path, id: &str) -> Finding {
    let mut finding = spec.finding(bundle);
    finding.runtime = Some(Runtime::Containerd);
    finding.container_id = Some(id.to_owned());
    // Whoever has no name of his own is known by the id that he chose.
    if finding.container_name.is_none() && finding.pod.is_none() && id.len() < 64 {
        finding.container_name = Some(id.to_owned());
    }
    finding
}
