//! Policies as the API server writes them, read within bounds: everybody with rights in a namespace writes there, and every
//! agent reads all of it.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{
    Resource,
    core::{ApiResource, DynamicResourceScope},
};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Bytes of JSON that are read of a policy's `spec`, and of its `status`: a page of globs and expressions is 4 KiB.
pub(super) const MAX_PART: usize = 64 << 10;

/// Any policy. What it is made of is text, and understood later: one that is not must not keep others from being read.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Written")]
pub(super) struct PolicyObject {
    /// Only what names and orders it.
    pub(super) metadata: ObjectMeta,
    /// What it declares.
    pub(super) spec: Part,
    /// What was told of it.
    pub(super) status: Part,
}

/// A part of an object, as text.
#[derive(Clone, Debug, Default)]
pub(super) enum Part {
    /// It is not there.
    #[default]
    Absent,
    /// It is this.
    Text(Box<RawValue>),
    /// It has so many bytes, more than [`MAX_PART`], and was let go of at once.
    TooLarge(usize),
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Part,
    #[serde(default)]
    status: Part,
}

/// All else (annotations, `managedFields`, which repeat the `spec`) is passed over where it stands.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    generation: Option<i64>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let bytes = text.get().len();
        Ok(if bytes > MAX_PART { Self::TooLarge(bytes) } else { Self::Text(text) })
    }
}

impl Part {
    /// The text, if it is there and not too large.
    pub(super) fn text(&self) -> Option<&RawValue> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::TooLarge(_) => None,
        }
    }
}

impl From<Written> for PolicyObject {
    fn from(Written { metadata, spec, status }: Written) -> Self {
        let Metadata { name, namespace, uid, generation, resource_version, creation_timestamp } = metadata;
        let metadata = ObjectMeta {
            name,
            namespace,
            uid,
            generation,
            resource_version,
            creation_timestamp,
            ..ObjectMeta::default()
        };
        Self { metadata, spec, status }
    }
}

impl Resource for PolicyObject {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectList, WatchEvent};
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_and_watches_are_read_without_what_is_not_used() {
        let fields = "x".repeat(2 * MAX_PART);
        let object = json!({
            "apiVersion": "sidestep.dev/v1alpha1", "kind": "SidestepPolicy",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "generation": 3, "resourceVersion": "7",
                "creationTimestamp": "2026-01-02T03:04:05Z", "annotations": { "a": fields },
                "managedFields": [{ "manager": "kubectl", "fieldsType": "FieldsV1", "fieldsV1": { "f:spec": fields } }],
            },
            "spec": { "selector": {} }, "status": { "of": fields },
        });
        let list =
            json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "9" }, "items": [object] });
        let list: ObjectList<PolicyObject> = serde_json::from_str(&list.to_string()).expect("a list");
        // As the API server writes it: the type comes first.
        let line = format!("{{\"type\":\"ADDED\",\"object\":{object}}}");
        let Ok(WatchEvent::Added(watched)) = serde_json::from_str::<WatchEvent<PolicyObject>>(&line) else {
            panic!("not read: {line}");
        };
        for found in [&list.items[0], &watched] {
            let metadata = &found.metadata;
            assert_eq!((metadata.name.as_deref(), metadata.uid.as_deref()), (Some("web"), Some("u")));
            assert_eq!((metadata.generation, metadata.resource_version.as_deref()), (Some(3), Some("7")));
            assert!(metadata.creation_timestamp.is_some());
            assert!(metadata.annotations.is_none() && metadata.managed_fields.is_none());
            assert_eq!(found.spec.text().map(RawValue::get), Some("{\"selector\":{}}"));
            assert!(matches!(found.status, Part::TooLarge(bytes) if bytes > MAX_PART));
        }
    }
}
