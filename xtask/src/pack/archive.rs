//! The archive: an OCI image layout (image-spec 1.0), with the `manifest.json` of `docker save` beside it.

use std::{env, io::Write as _};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What the image says about itself.
#[derive(Debug)]
pub struct Description<'a> {
    /// Registry, repository and tag.
    pub name: &'a str,
    /// How its containers run by default: `Entrypoint`, `Env`, `Labels` and the rest, by the specification.
    pub config: Value,
    /// How hard the layer is compressed: 0 (not at all, for an image that stays on this machine) to 9.
    pub level: u32,
}

/// A content-addressed part of the image.
struct Blob {
    /// SHA-256, in hexadecimal.
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(content: Vec<u8>) -> Self {
        Self { digest: digest(&content), content }
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.content.len() })
    }
}

/// Packs `layer`, an uncompressed tar.
///
/// # Errors
/// The name has no tag.
pub fn archive(layer: &[u8], description: &Description<'_>) -> Result<Vec<u8>> {
    let (_, tag) = description.name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).with_context(|| {
        format!("{} has no tag: it would be `latest`, which Kubernetes pulls each time", description.name)
    })?;
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(description.level));
    gzip.write_all(layer)?;
    let compressed = Blob::new(gzip.finish()?);
    let config = Blob::new(serde_json::to_vec(&config(&digest(layer), &description.config))?);
    let manifest = Blob::new(serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG),
        "layers": [compressed.descriptor(LAYER)],
    }))?);
    let mut reference = manifest.descriptor(MANIFEST);
    reference["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    reference["annotations"] = json!({
        // The specification knows a tag only; containerd takes the whole name from its own annotation.
        "org.opencontainers.image.ref.name": tag,
        "io.containerd.image.name": description.name,
    });
    let index =
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [reference] });
    let docker = json!([{ "Config": config.path(), "RepoTags": [description.name], "Layers": [compressed.path()] }]);

    let mut tar = Builder::new(Vec::new());
    append(&mut tar, "oci-layout", &serde_json::to_vec(&json!({ "imageLayoutVersion": "1.0.0" }))?)?;
    append(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
    append(&mut tar, "manifest.json", &serde_json::to_vec(&docker)?)?;
    for blob in [&config, &manifest, &compressed] {
        append(&mut tar, &blob.path(), &blob.content)?;
    }
    Ok(tar.into_inner()?)
}

fn config(diff_id: &str, config: &Value) -> Value {
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        "history": [{ "created_by": "cargo xtask image" }],
    })
}

/// The platform in Go's words, which are those of the specification.
fn architecture() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn append(tar: &mut Builder<Vec<u8>>, path: &str, content: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    Ok(tar.append_data(&mut header, path, content)?)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use super::*;

    fn described(name: &str) -> Description<'_> {
        Description { name, config: json!({ "Entrypoint": ["/bin/true"] }), level: 6 }
    }

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    }

    #[test]
    fn every_reference_leads_to_a_blob_of_that_digest_and_size() {
        let layer = b"not really a tar".repeat(1000);
        let files = files(&archive(&layer, &described("example.org/sidestep:1.2.3")).unwrap());
        let blob = |descriptor: &Value| {
            let hash = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let content = &files[&format!("blobs/sha256/{hash}")];
            assert_eq!(digest(content), hash);
            assert_eq!(descriptor["size"], content.len());
            content.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&blob(&manifest["layers"][0])[..]).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, layer);
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", digest(&layer)));

        let docker: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(docker[0]["RepoTags"][0], "example.org/sidestep:1.2.3");
        assert!(files.contains_key(docker[0]["Config"].as_str().unwrap()));
        assert!(files.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
    }

    #[test]
    fn name_without_tag_is_refused() {
        for name in ["sidestep", "localhost:5000/sidestep"] {
            assert!(archive(b"", &described(name)).unwrap_err().to_string().contains("tag"), "{name}");
        }
    }
}
