//! The annotations of OCI bundles, and Docker's labels, in which CRI implementations write down the Pod.
//!
//! Sources: containerd `internal/cri/annotations`, CRI-O `pkg/annotations/internal.go`, the kubelet's
//! `pkg/kubelet/types/labels.go`, cri-dockerd `core/docker_service.go`, Podman `pkg/annotations`.

use std::{collections::HashMap, path::Path};

use super::{
    Runtime,
    finding::{Finding, node_path},
};

/// Annotations or labels by their key.
pub(super) type Annotations = HashMap<String, String>;

const CONTAINER_NAME: [&str; 3] = ["io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name"];
const POD: [&str; 3] = ["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name", "io.kubernetes.cri-o.KubeName"];
const NAMESPACE: [&str; 3] =
    ["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace", "io.kubernetes.cri-o.Namespace"];
const POD_UID: [&str; 2] = ["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"];
const CONTAINER_TYPE: [&str; 3] =
    ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType", "io.kubernetes.docker.type"];
const SANDBOX_ID: [&str; 3] =
    ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID", "io.kubernetes.sandbox.id"];
/// What the runtime was asked for comes before what it found; see [`image`] for ids.
const IMAGE: [&str; 4] = [
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri-o.Image",
    "io.kubernetes.cri-o.ImageName",
    "org.opencontainers.image.ref.name",
];
const LOG_DIRECTORY: &str = "io.kubernetes.cri.sandbox-log-directory";
const LOG_PATH: [&str; 2] = ["io.kubernetes.cri-o.LogPath", "io.kubernetes.container.logpath"];
const MANAGER: &str = "io.container.manager";
/// CRI-O's copy of the metadata in the CRI request; the only place of some names when the client is not the kubelet.
const METADATA: &str = "io.kubernetes.cri-o.Metadata";

#[derive(serde::Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    namespace: String,
}

/// All that annotations say.
pub(super) fn read(annotations: &Annotations) -> Finding {
    let text =
        |keys: &[&str]| keys.iter().filter_map(|key| annotations.get(*key)).find(|value| !value.is_empty()).cloned();
    let sandbox = text(&CONTAINER_TYPE).is_some_and(|kind| kind == "sandbox" || kind == "podsandbox");
    let log_path = text(&LOG_PATH).and_then(node_path);
    let mut finding = Finding {
        runtime: match annotations.get(MANAGER).map(String::as_str) {
            Some("cri-o") => Some(Runtime::CriO),
            Some("libpod") => Some(Runtime::Podman),
            _ => None,
        },
        container_name: text(&CONTAINER_NAME),
        image: image(annotations),
        namespace: text(&NAMESPACE),
        pod: text(&POD),
        pod_uid: text(&POD_UID),
        sandbox,
        sandbox_id: text(&SANDBOX_ID).filter(|id| super::cgroup::is_id(id)),
        log_directory: annotations
            .get(LOG_DIRECTORY)
            .and_then(node_path)
            .or_else(|| log_path.as_deref().and_then(|path| log_directory(path, sandbox))),
        log_path: log_path.filter(|_| !sandbox),
        ..Finding::default()
    };
    if let Some(metadata) = annotations.get(METADATA).and_then(|json| serde_json::from_str::<Metadata>(json).ok()) {
        let fill = |slot: &mut Option<String>, value: String| {
            if slot.is_none() && !value.is_empty() {
                *slot = Some(value);
            }
        };
        if sandbox {
            fill(&mut finding.pod, metadata.name);
            fill(&mut finding.namespace, metadata.namespace);
            fill(&mut finding.pod_uid, metadata.uid);
        } else {
            fill(&mut finding.container_name, metadata.name);
        }
    }
    finding
}

/// The first that is a name; the kubelet often asks for the id that it has resolved a name to, and then the name is
/// elsewhere. An id is better than nothing.
fn image(annotations: &Annotations) -> Option<String> {
    let mut candidates = IMAGE.iter().filter_map(|key| annotations.get(*key)).filter(|image| !image.is_empty());
    let first = candidates.next()?;
    let is_id = |image: &str| {
        let digits = image.strip_prefix("sha256:").unwrap_or(image);
        digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    if !is_id(first) {
        return Some(first.clone());
    }
    Some(candidates.find(|image| !is_id(image)).unwrap_or(first).clone())
}

/// `/var/log/pods/NS_NAME_UID` from `.../CONTAINER/0.log`, or from a sandbox's `.../ID.log`.
fn log_directory(log_path: &Path, sandbox: bool) -> Option<std::path::PathBuf> {
    let directory = log_path.parent()?;
    let directory = if sandbox { directory } else { directory.parent()? };
    // A container that was not given a path has its log directly in the directory of all Pods.
    directory.file_name().is_some_and(|name| name.as_encoded_bytes().contains(&b'_')).then(|| directory.to_owned())
}
