//! CRI-O and Podman: `<storage>/<driver>-containers/<id>/userdata/config.json` is the bundle; Podman's names are in
//! `<storage>/<driver>-containers/containers.json` (containers/storage `containers.go`).

use std::path::Path;

use super::{
    Files, Runtime, Settings,
    finding::{Finding, ReadError, read_json},
    oci::Spec,
};

/// Storage drivers, the usual one first.
const DRIVERS: [&str; 5] = ["overlay", "vfs", "btrfs", "zfs", "aufs"];
/// The list of containers; the second is of those that do not survive a restart of the machine (`podman run --rm`).
const LISTS: [&str; 2] = ["containers.json", "volatile-containers.json"];

#[derive(serde::Deserialize)]
struct Entry {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    /// JSON within JSON, as the user of the library wants it.
    #[serde(default)]
    metadata: String,
}

#[derive(Default, serde::Deserialize)]
struct Metadata {
    #[serde(default, rename = "image-name")]
    image_name: String,
}

/// A container by its id.
pub(super) fn find(files: &dyn Files, settings: &Settings, id: &str) -> Result<Option<Finding>, ReadError> {
    for storage in &settings.container_storage {
        for driver in DRIVERS {
            let bundle = storage.join(format!("{driver}-containers")).join(id).join("userdata");
            let Some(spec) = Spec::read(files, &bundle)? else { continue };
            let mut finding = spec.finding(&bundle);
            finding.container_id = Some(id.to_owned());
            if finding.runtime == Some(Runtime::Podman) {
                name(files, settings, driver, id, &mut finding)?;
            }
            return Ok(Some(finding));
        }
    }
    Ok(None)
}

/// Podman's name and image of a container. The list may be in another storage directory than the bundle.
fn name(
    files: &dyn Files,
    settings: &Settings,
    driver: &str,
    id: &str,
    finding: &mut Finding,
) -> Result<(), ReadError> {
    for storage in &settings.container_storage {
        for list in LISTS {
            let path = storage.join(format!("{driver}-containers")).join(list);
            if let Some(entry) = entry(files, &path, id)? {
                let metadata: Metadata = serde_json::from_str(&entry.metadata).unwrap_or_default();
                if finding.container_name.is_none() {
                    finding.container_name = entry.names.and_then(|names| names.into_iter().next());
                }
                if !metadata.image_name.is_empty() {
                    finding.image = Some(metadata.image_name);
                }
                return Ok(());
            }
        }
    }
    Ok(())
}

fn entry(files: &dyn Files, path: &Path, id: &str) -> Result<Option<Entry>, ReadError> {
    let entries = read_json::<Vec<Entry>>(files, path)?.unwrap_or_default();
    Ok(entries.into_iter().find(|entry| entry.id == id))
}
