//! Docker: `<data-root>/containers/<id>/config.v2.json`, written when the container is created. Under cri-dockerd
//! (and the old dockershim) the Pod is in the labels.

use std::path::{Path, PathBuf};

use super::{
    Files, Runtime, Settings,
    annotations::{self, Annotations},
    containerd,
    finding::{Finding, ReadError, node_path, read_json},
    oci::Spec,
};

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(default)]
    name: String,
    #[serde(default)]
    log_path: PathBuf,
    config: Config,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    image: String,
    #[serde(default)]
    labels: Option<Annotations>,
}

/// A container by its id. `pod_uid` is what its cgroup says.
pub(super) fn find(
    files: &dyn Files,
    settings: &Settings,
    id: &str,
    pod_uid: Option<&str>,
) -> Result<Option<Finding>, ReadError> {
    let bundle = containerd::docker_bundle(files, settings, id)?;
    let moved = bundle.as_ref().and_then(|(spec, _)| containers_directory(spec));
    let roots = settings.docker_root.iter().map(|root| root.join("containers"));
    let mut found = None;
    for containers in roots.chain(moved) {
        if let Some(container) = read_json::<Container>(files, &containers.join(id).join("config.v2.json"))? {
            found = Some(finding(container, pod_uid));
            break;
        }
    }
    if found.is_none() && bundle.is_none() {
        return Ok(None);
    }
    // Without its own file there is still the bundle, and so it is Docker's.
    let mut finding = found.unwrap_or_default();
    finding.runtime = Some(Runtime::Docker);
    finding.container_id = Some(id.to_owned());
    if let Some((spec, path)) = &bundle {
        let of_bundle = spec.finding(path);
        finding.bundle = of_bundle.bundle;
        finding.rootfs = of_bundle.rootfs;
    }
    Ok(Some(finding))
}

fn finding(container: Container, pod_uid: Option<&str>) -> Finding {
    let mut finding = container.config.labels.as_ref().map(annotations::read).unwrap_or_default();
    // An image can bring any label. cri-dockerd's labels replace an image's, and its containers are in the cgroup of
    // the Pod that they name; a container that is elsewhere names a Pod that is not its own.
    if pod_uid.is_none() || finding.pod_uid.as_deref() != pod_uid {
        finding = Finding::default();
    }
    if finding.container_name.is_none() {
        finding.container_name = Some(container.name.strip_prefix('/').unwrap_or(&container.name).to_owned());
    }
    finding.image = Some(container.config.image);
    // The label names a link to this file, for the kubelet.
    finding.log_path = node_path(container.log_path);
    finding
}

/// Docker mounts files of its `containers` directory into every container, so a bundle shows where that is, whatever
/// `data-root` and `userns-remap` say. Containers of a Pod have those of their sandbox.
fn containers_directory(spec: &Spec) -> Option<PathBuf> {
    const MOUNTED: [(&str, &str); 3] =
        [("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf"), ("/etc/hosts", "hosts")];
    spec.mounts().iter().find_map(|mount| {
        let (_, file) = MOUNTED.iter().find(|(destination, _)| *destination == mount.destination)?;
        let source = node_path(&mount.source)?;
        let directory = source.parent().filter(|_| source.ends_with(file))?;
        let containers = directory.parent().filter(|containers| containers.ends_with(Path::new("containers")))?;
        Some(containers.to_owned())
    })
}
