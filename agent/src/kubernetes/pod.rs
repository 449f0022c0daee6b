//! A Pod as the API server tells of it: only what is used, bounded in size.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::is_name;
use crate::{
    config::Globs,
    policy::{
        Subject,
        annotations::{self, Declared},
    },
};

/// Annotations with this are always kept: what users declare for a Pod, or `CONTAINER.` in front for a container.
pub const ANNOTATION_PREFIX: &str = "sidestep.dev/";

/// The UID that the kubelet, and so the runtime, knows a static Pod by; its mirror has another one.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// The same value, on the mirror that the kubelet makes of it.
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// The label by which a Deployment tells its `ReplicaSet`s apart; it stands at the end of their names.
const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// Bytes of the labels of one Pod or namespace, keys and values, and the same of its annotations. The API server limits
/// one label to 380 bytes, all annotations to 256 KiB, and the number of labels not at all.
const MAX_BYTES: usize = 32 * 1024;
/// Bytes of one annotation, key and value.
const MAX_ANNOTATION: usize = 8 * 1024;

/// The most characters of the kind of a controller, as the API server has it for definitions of resources.
const MAX_KIND: usize = 63;
/// The most characters of the UID of a controller: three times those of any there is.
const MAX_UID: usize = 128;

/// Annotations of ours that are remembered as left out.
const MAX_OVERSIZED: usize = 8;

/// Labels, or annotations.
pub type Labels = BTreeMap<String, String>;

/// A Pod. It does not change: when the API server tells something new, another one takes its place.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Pod {
    /// `metadata.uid`, as the API server has it.
    pub uid: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// All labels.
    pub labels: Labels,
    /// Annotations below [`ANNOTATION_PREFIX`], and those that the configuration asks for.
    pub annotations: Labels,
    /// All labels of the namespace; empty where namespaces are not watched.
    pub namespace_labels: Arc<Labels>,
    /// Who made it: its controller, and the controller of that. Empty for a Pod that nobody else has made.
    pub owners: Vec<Owner>,
    /// Whether `owners` is all there is to know.
    pub owners_known: bool,
    /// The UID that the runtime has of a static Pod.
    pub static_uid: Option<Arc<str>>,
    /// Labels and annotations that are left out because there is too much of them.
    pub left_out: usize,
    /// Those of them that are below [`ANNOTATION_PREFIX`]: who wrote them is told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub oversized: Vec<Oversized>,
    /// What its annotations declare; those that were too much are told of.
    #[serde(skip)]
    pub declared: Arc<Declared>,
}

/// An annotation of ours that is left out.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Oversized {
    /// Its key.
    pub key: Box<str>,
    /// How its value begins, for people.
    pub shown: Box<str>,
    /// Bytes of its value.
    pub bytes: usize,
}

impl Oversized {
    fn new(key: &str, value: &str) -> Self {
        Self { key: key.into(), shown: annotations::shown(value).into(), bytes: value.len() }
    }
}

/// The controller of a Pod, or of such a controller.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Owner {
    /// `kind`, such as `ReplicaSet`.
    pub kind: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.uid`; empty when only the name is known.
    pub uid: Arc<str>,
}

impl Owner {
    /// Of a reference that somebody has written, who may claim any controller, of any size: `None` when that can't be one.
    pub(super) fn claimed(reference: OwnerReference) -> Option<Self> {
        let OwnerReference { kind, name, uid, .. } = reference;
        let is_bounded = kind.len() <= MAX_KIND && uid.len() <= MAX_UID && is_name(&name);
        is_bounded.then(|| Self { kind: kind.into(), name: name.into(), uid: uid.into() })
    }

    /// The attribute of OpenTelemetry's semantic conventions that has its name; `None` for kinds that they don't know.
    #[must_use]
    pub fn attribute(&self) -> Option<&'static str> {
        Some(match &*self.kind {
            "CronJob" => "k8s.cronjob.name",
            "DaemonSet" => "k8s.daemonset.name",
            "Deployment" => "k8s.deployment.name",
            "Job" => "k8s.job.name",
            "ReplicaSet" => "k8s.replicaset.name",
            "ReplicationController" => "k8s.replicationcontroller.name",
            "StatefulSet" => "k8s.statefulset.name",
            _ => return None,
        })
    }
}

impl Pod {
    /// Takes what is used of an object's metadata. `annotations`: those to keep beside our own.
    #[must_use]
    pub fn new(object: ObjectMeta, annotations: &Globs) -> Self {
        let mut left_out = 0;
        let all_annotations = object.annotations.unwrap_or_default();
        let references = object.owner_references.unwrap_or_default();
        let controller = references.into_iter().find(|reference| reference.controller == Some(true));
        // Of the mirror of a static Pod alone, which the kubelet makes: anybody can write the annotation.
        let is_mirror = controller.as_ref().is_some_and(|owner| owner.kind == "Node")
            && all_annotations.get(CONFIG_MIRROR) == all_annotations.get(CONFIG_HASH);
        let static_uid = all_annotations.get(CONFIG_HASH).filter(|_| is_mirror).map(|hash| hash.as_str().into());
        let is_wanted = |key: &str| key.contains(ANNOTATION_PREFIX) || annotations.is_match(key);
        let wanted = all_annotations.into_iter().filter(|(key, _)| is_wanted(key));
        // Those of others must not take the room of ours.
        let (ours, others): (Vec<_>, Vec<_>) = wanted.partition(|(key, _)| key.contains(ANNOTATION_PREFIX));
        let mut oversized = Vec::new();
        let annotations = bounded(ours.into_iter().chain(others), MAX_ANNOTATION, |key, value| {
            left_out += 1;
            if key.contains(ANNOTATION_PREFIX) && oversized.len() < MAX_OVERSIZED {
                oversized.push(Oversized::new(key, value));
            }
        });
        let labels = bounded_labels(object.labels.unwrap_or_default(), &mut left_out);
        // The node owns the mirror of a static Pod, and is no workload.
        let controller = controller.filter(|reference| reference.kind != "Node");
        let mut owners: Vec<_> = controller.and_then(Owner::claimed).into_iter().collect();
        let deployment = owners.first().and_then(|owner| deployment_of(owner, &labels));
        owners.extend(deployment);
        let owners_known = !matches!(&owners[..], [only] if has_owner(only));
        Self {
            uid: object.uid.unwrap_or_default().into(),
            namespace: object.namespace.unwrap_or_default().into(),
            name: object.name.unwrap_or_default().into(),
            labels,
            annotations,
            namespace_labels: Arc::default(),
            owners,
            owners_known,
            static_uid,
            left_out,
            oversized,
            declared: Arc::default(),
        }
        .understood()
    }

    /// What made it in the end, as far as is known: a Deployment, a `CronJob`, ...
    #[must_use]
    pub fn workload(&self) -> Option<&Owner> {
        self.owners.last()
    }

    /// Whether the controller with this UID, in this namespace, has made it.
    pub(super) fn is_of(&self, namespace: &str, controller: &str) -> bool {
        *self.namespace == *namespace && self.owners.first().is_some_and(|first| &*first.uid == controller)
    }

    /// With what its annotations declare: once for each Pod, where it is read, as expressions take their time and the pipeline
    /// asks for each container, again and again.
    #[must_use]
    pub(super) fn understood(mut self) -> Self {
        let mut declared = annotations::parse(&self.annotations);
        for Oversized { key, shown, bytes } in &self.oversized {
            declared.refuse_oversized(key, shown, *bytes);
        }
        self.declared = Arc::new(declared);
        self
    }

    /// Memory that it holds, in bytes; roughly.
    #[must_use]
    pub fn memory(&self) -> usize {
        const ENTRY: usize = 96;
        let labels = self.labels.iter().chain(&self.annotations).map(|(key, value)| ENTRY + key.len() + value.len());
        size_of::<Self>() + labels.sum::<usize>()
    }

    /// What policies select by; `declared` is what its annotations say.
    #[must_use]
    pub fn subject<'a>(&'a self, declared: &'a Declared) -> Subject<'a> {
        Subject {
            namespace: &self.namespace,
            namespace_labels: (!self.namespace_labels.is_empty()).then_some(&*self.namespace_labels),
            labels: &self.labels,
            declared,
            workload: self.workload().map(|owner| (&*owner.kind, &*owner.name)),
        }
    }
}

/// Labels without what is too much of them.
pub(super) fn bounded_labels(labels: Labels, left_out: &mut usize) -> Labels {
    bounded(labels.into_iter(), MAX_BYTES, |_, _| *left_out += 1)
}

fn bounded(
    entries: impl Iterator<Item = (String, String)>,
    most: usize,
    mut leave_out: impl FnMut(&str, &str),
) -> Labels {
    let mut bytes = 0;
    let mut kept = Labels::new();
    for (key, value) in entries {
        let length = key.len() + value.len();
        if length > most || bytes + length > MAX_BYTES {
            leave_out(&key, &value);
        } else {
            bytes += length;
            kept.insert(key, value);
        }
    }
    kept
}

/// The Deployment of a `ReplicaSet`, where the label that only a Deployment's Pods have says how it is called.
fn deployment_of(owner: &Owner, labels: &Labels) -> Option<Owner> {
    let hash = labels.get(POD_TEMPLATE_HASH).filter(|_| &*owner.kind == "ReplicaSet")?;
    let name = owner.name.strip_suffix(hash.as_str())?.strip_suffix('-').filter(|name| !name.is_empty())?;
    Some(Owner { kind: "Deployment".into(), name: name.into(), uid: "".into() })
}

/// Whether something else may have made what made the Pod.
fn has_owner(owner: &Owner) -> bool {
    matches!(&*owner.kind, "Job" | "ReplicaSet")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Slash;

    fn pod(object: serde_json::Value) -> Pod {
        let annotations = Globs::new(&["team.example/*".to_owned()], Slash::IsPlain).expect("globs");
        Pod::new(serde_json::from_value(object).expect("metadata"), &annotations)
    }

    fn owner(kind: &str, name: &str) -> serde_json::Value {
        json!([
            {"apiVersion": "v1", "kind": "Other", "name": "x", "uid": "u0"},
            {"apiVersion": "v1", "kind": kind, "name": name, "uid": "u1", "controller": true},
        ])
    }

    fn names(pod: &Pod) -> Vec<(&str, &str)> {
        pod.owners.iter().map(|owner| (&*owner.kind, &*owner.name)).collect()
    }

    #[test]
    fn the_deployment_of_a_replica_set_is_told_by_the_label() {
        let labels = json!({"pod-template-hash": "6d4cf56db6"});
        let web = pod(json!({"labels": labels, "ownerReferences": owner("ReplicaSet", "web-6d4cf56db6")}));
        assert_eq!(names(&web), [("ReplicaSet", "web-6d4cf56db6"), ("Deployment", "web")]);
        assert!(web.owners_known);
        assert_eq!(web.workload().and_then(Owner::attribute), Some("k8s.deployment.name"));
        // A ReplicaSet that something else has made, or nobody.
        for (labels, name) in [(json!({}), "web-6d4cf56db6"), (labels.clone(), "web"), (labels, "6d4cf56db6")] {
            let other = pod(json!({"labels": labels, "ownerReferences": owner("ReplicaSet", name)}));
            assert_eq!((names(&other), other.owners_known), (vec![("ReplicaSet", name)], false));
        }
    }

    #[test]
    fn a_job_may_have_an_owner_and_others_have_none() {
        let job = pod(json!({"ownerReferences": owner("Job", "backup-28000000")}));
        assert_eq!((names(&job), job.owners_known), (vec![("Job", "backup-28000000")], false));
        let database = pod(json!({"ownerReferences": owner("StatefulSet", "db")}));
        assert_eq!((names(&database), database.owners_known), (vec![("StatefulSet", "db")], true));
        let mirror = pod(json!({
            "uid": "of-the-mirror", "ownerReferences": owner("Node", "n"),
            "annotations": {"kubernetes.io/config.hash": "0123", "kubernetes.io/config.mirror": "0123"},
        }));
        for thief in [
            json!({"annotations": {"kubernetes.io/config.hash": "0123", "kubernetes.io/config.mirror": "0123"}}),
            json!({"annotations": {"kubernetes.io/config.hash": "0123"}, "ownerReferences": owner("Node", "n")}),
        ] {
            assert_eq!(pod(thief).static_uid, None);
        }
        assert!(mirror.owners.is_empty() && mirror.owners_known);
        assert_eq!(mirror.static_uid.as_deref(), Some("0123"));
        assert!(mirror.annotations.is_empty());
    }

    #[test]
    fn a_controller_that_can_not_be_is_none() {
        let huge = "x".repeat(1 << 20);
        let of = |kind: &str, name: &str, uid: &str| {
            let owner = json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": true});
            pod(json!({ "ownerReferences": [owner] }))
        };
        assert_eq!(names(&of("StatefulSet", "db", "u")), [("StatefulSet", "db")]);
        for claimed in
            [of("StatefulSet", &huge, "u"), of(&huge, "db", "u"), of("Job", "db", &huge), of("Job", "a\n/b", "u")]
        {
            assert!(claimed.owners.is_empty() && claimed.owners_known && claimed.memory() < 1024);
        }
    }

    #[test]
    fn only_annotations_that_are_used_are_kept_and_none_that_is_huge() {
        let huge = "x".repeat(200 * 1024);
        let pod = pod(json!({"annotations": {
            "sidestep.dev/logs": "off", "team.example/name": "a", "other.example/name": huge.clone(),
            "team.example/huge": huge.clone(), "sidestep.dev/huge": huge,
        }}));
        let kept: Vec<_> = pod.annotations.keys().collect();
        assert_eq!(kept, ["sidestep.dev/logs", "team.example/name"]);
        assert_eq!(pod.left_out, 2);
        let [huge] = &pod.oversized[..] else { panic!("{:?}", pod.oversized) };
        assert!(&*huge.key == "sidestep.dev/huge" && huge.bytes == 200 * 1024 && huge.shown.len() < 100);
        let [problem] = &pod.declared.problems[..] else { panic!("it is told") };
        assert!(problem.message.contains("204800 bytes"), "{problem}");
    }

    #[test]
    fn annotations_of_others_do_not_take_the_room_of_ours() {
        let many =
            |count: usize, key: fn(usize) -> String| (0..count).map(move |number| (key(number), "x".repeat(300)));
        let others = many(100, |number| format!("team.example/{number:03}"));
        let ours = many(100, |number| format!("c{number}.sidestep.dev/topic"));
        let all: Labels = others.chain(ours).collect();
        let pod_of = |annotations: &Labels| pod(json!({ "annotations": annotations }));
        let bounded = pod_of(&all);
        assert!(bounded.left_out > 0 && bounded.oversized.is_empty());
        let more: Labels = all.into_iter().chain(many(100, |number| format!("d{number}.sidestep.dev/topic"))).collect();
        assert_eq!(pod_of(&more).oversized.len(), MAX_OVERSIZED);
    }

    #[test]
    fn more_labels_than_anybody_has_are_bounded() {
        let labels: Labels = (0..10_000).map(|number| (format!("label-{number:05}"), "value".to_owned())).collect();
        let pod = pod(json!({ "labels": labels }));
        assert!(pod.left_out > 0 && pod.labels.len() + pod.left_out == 10_000);
        let bytes: usize = pod.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert!(bytes <= MAX_BYTES && bytes > MAX_BYTES / 2, "{bytes}");
    }
}
