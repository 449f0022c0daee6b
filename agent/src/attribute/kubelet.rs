//! The names of the kubelet's links to containers' logs. They are there for as long as it remembers a container, so also
//! when the runtime has forgotten it: of a container that lived and ended while no agent ran, nothing else tells.
//!
//! Source: the kubelet's `pkg/kubelet/kuberuntime/legacy.go`, `logSymlink`.

use std::path::Path;

use super::{
    Files, Settings,
    finding::{Finding, ReadError, is_absent},
};

/// The names in `/var/log/containers`: `POD_NAMESPACE_CONTAINER-ID.log`. None of the three has a `_`.
pub(super) fn find(files: &dyn Files, settings: &Settings, id: &str) -> Result<Option<Finding>, ReadError> {
    let directory = settings.pod_logs.parent().unwrap_or(Path::new("/")).join("containers");
    let names = match files.list(&directory) {
        Ok(names) => names,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(source) => return Err(ReadError::Io { path: directory, source }),
    };
    let suffix = format!("-{id}.log");
    let found = names.iter().find_map(|name| {
        let (pod, rest) = name.to_str()?.strip_suffix(&suffix)?.split_once('_')?;
        let (namespace, container) = rest.split_once('_')?;
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Some(Finding {
            container_id: Some(id.to_owned()),
            container_name: Some(text(container)?),
            namespace: Some(text(namespace)?),
            pod: Some(text(pod)?),
            ..Finding::default()
        })
    });
    Ok(found)
}
