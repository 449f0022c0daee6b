//! Putting together what a path and the runtimes' files say.

use std::{path::PathBuf, sync::Arc};

use super::{
    Files, Identity, Runtime, Settings,
    cgroup::{self, CgroupPath},
    containerd, docker,
    finding::{Finding, ReadError, node_path, value},
    kubelet, runc, storage,
};
use crate::record::Resource;

/// Everything that can be known now of the container behind a cgroup of the v2 hierarchy.
///
/// `pid` is a process in it; where the path tells nothing, its cgroups in v1 hierarchies may. What cannot be found
/// out is left out; [`Identity::complete`] says whether asking again is worth it.
#[must_use]
pub fn resolve(
    files: &dyn Files,
    settings: &Settings,
    host_name: Option<&Arc<str>>,
    path: &str,
    pid: Option<u32>,
) -> Identity {
    let parsed = cgroup::parse(path);
    let other_path = match (&parsed.container_id, pid) {
        (None, Some(pid)) => v1_path(files, pid),
        _ => None,
    };
    // A path of a v1 hierarchy says who the container is, but its cgroup stays that of v2.
    let (names, container_cgroup) = match &other_path {
        Some(other) => (cgroup::parse(other), path),
        None => (parsed.clone(), parsed.container),
    };
    let (finding, container_cgroup) = match find(files, settings, &names, path) {
        Some((finding, Some(cgroup))) => (Some(finding), cgroup),
        Some((finding, None)) => (Some(finding), container_cgroup),
        None => (None, container_cgroup),
    };
    assemble(files, settings, host_name, &names, finding, container_cgroup)
}

/// The path of a process in the first v1 hierarchy where it names a container.
fn v1_path(files: &dyn Files, pid: u32) -> Option<String> {
    let content = files.process_cgroups(pid).ok()?;
    let content = std::str::from_utf8(&content).ok()?;
    let paths = content.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.filter(|path| cgroup::parse(path).container_id.is_some()).map(str::to_owned).next()
}

/// What the runtimes' files say, with the container's cgroup where it was found by that.
fn find<'a>(
    files: &dyn Files,
    settings: &Settings,
    names: &CgroupPath<'_>,
    path: &'a str,
) -> Option<(Finding, Option<&'a str>)> {
    // Below `user.slice` a user makes cgroups with names of his choice, so there an id proves nothing.
    if let Some(id) = names.container_id
        && !path.starts_with("/user.slice/")
    {
        // Only the kubelet's containers are in the cgroup of a Pod.
        let of_kubelet = || names.pod_uid.as_deref().and_then(|_| heard(kubelet::find(files, settings, id)));
        if let Some(finding) = find_by_id(files, settings, names, id).or_else(of_kubelet) {
            return Some((finding, None));
        }
    }
    let found = heard(containerd::find_by_cgroup(files, settings, path))
        .or_else(|| heard(runc::find_by_cgroup(files, settings, path)));
    found.map(|(finding, cgroup)| (finding, Some(cgroup)))
}

/// Asks the runtime that the path points to, then the others: an absent file costs a microsecond.
fn find_by_id(files: &dyn Files, settings: &Settings, names: &CgroupPath<'_>, id: &str) -> Option<Finding> {
    let containerd = || heard(containerd::find(files, settings, id));
    let storage = || heard(storage::find(files, settings, id));
    let docker = || heard(docker::find(files, settings, id, names.pod_uid.as_deref()));
    match names.runtime {
        Some(Runtime::Docker) => docker().or_else(containerd).or_else(storage),
        Some(Runtime::CriO | Runtime::Podman) => storage().or_else(containerd).or_else(docker),
        _ => containerd().or_else(storage).or_else(docker),
    }
}

/// A file that cannot be read or understood may be half written: it is as good as absent, and asked for again.
fn heard<T>(result: Result<Option<T>, ReadError>) -> Option<T> {
    result.unwrap_or_else(|error| {
        tracing::debug!(%error, "no identity from this file");
        None
    })
}

fn assemble(
    files: &dyn Files,
    settings: &Settings,
    host_name: Option<&Arc<str>>,
    names: &CgroupPath<'_>,
    finding: Option<Finding>,
    container_cgroup: &str,
) -> Identity {
    let found = finding.is_some();
    let mut finding = finding.unwrap_or_default();
    if !finding.sandbox && (finding.log_directory.is_none() || finding.pod.is_none()) {
        ask_sandbox(files, settings, names, &mut finding);
    }
    // The kubelet made the cgroup, so its UID is right whatever a file says.
    let pod_uid = names.pod_uid.as_deref().map(str::to_owned).or(finding.pod_uid);
    let runtime = finding.runtime.or(names.runtime);
    let text = |text: &Option<String>| text.as_deref().and_then(value);
    let resource = Resource {
        host_name: host_name.cloned(),
        container_runtime: runtime.map(|runtime| runtime.as_str().into()),
        container_id: finding.container_id.as_deref().or(names.container_id).and_then(value),
        // What runtimes call the sandbox (`POD`, or its whole path) is the name of no container of the Pod.
        container_name: if finding.sandbox { None } else { text(&finding.container_name) },
        image: text(&finding.image),
        namespace: text(&finding.namespace),
        pod: text(&finding.pod),
        pod_uid: pod_uid.as_deref().and_then(value),
        cgroup: value(container_cgroup),
        metadata: None,
        route: None,
    };
    let log_directory = finding.log_directory.or_else(|| usual_log_directory(files, settings, &resource));
    Identity {
        complete: found && (resource.pod_uid.is_none() || resource.pod.is_some()),
        container_cgroup: container_cgroup.into(),
        runtime,
        qos: names.qos,
        sandbox: finding.sandbox,
        log_directory,
        log_path: finding.log_path,
        bundle: finding.bundle,
        rootfs: finding.rootfs,
        resource: Arc::new(resource),
    }
}

/// The Pod's sandbox knows the log directory, and in CRI-O the Pod's names when they are not in labels.
fn ask_sandbox(files: &dyn Files, settings: &Settings, names: &CgroupPath<'_>, finding: &mut Finding) {
    let Some(id) = finding.sandbox_id.as_deref() else { return };
    if finding.container_id.as_deref() == Some(id) {
        return;
    }
    let names = CgroupPath { runtime: finding.runtime, ..names.clone() };
    let Some(sandbox) = find_by_id(files, settings, &names, id).filter(|sandbox| sandbox.sandbox) else { return };
    finding.log_directory = finding.log_directory.take().or(sandbox.log_directory);
    finding.pod = finding.pod.take().or(sandbox.pod);
    finding.namespace = finding.namespace.take().or(sandbox.namespace);
    finding.pod_uid = finding.pod_uid.take().or(sandbox.pod_uid);
}

/// Where the kubelet has it by convention, when there is such a directory.
fn usual_log_directory(files: &dyn Files, settings: &Settings, resource: &Resource) -> Option<PathBuf> {
    let (namespace, pod, uid) = (resource.namespace.as_ref()?, resource.pod.as_ref()?, resource.pod_uid.as_ref()?);
    let name = format!("{namespace}_{pod}_{uid}");
    if name.contains(['/', '\0']) {
        return None;
    }
    let path = node_path(settings.pod_logs.join(name))?;
    files.list(&path).is_ok().then_some(path)
}
