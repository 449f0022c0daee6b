//! The custom resources `SidestepPolicy` and `ClusterSidestepPolicy`: one resource for what is decided of a workload.
//! Logs stand in `spec.logs`, limits and allowlists in `spec.traffic`.

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time},
};
use kube::{CustomResource, CustomResourceExt};
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{precedence::Key, settings::Settings, traffic::TrafficSettings};

/// The most labels of a selector, requirements of one, and values of a requirement: far more than anybody writes.
const MAX_LABELS: usize = 64;
/// The most characters of a label's key: a DNS name, `/` and a name.
const MAX_LABEL_KEY: usize = 253 + 1 + 63;
/// The most characters of a label's value.
const MAX_LABEL_VALUE: usize = 63;
/// The most characters of an operator: more than the longest, `DoesNotExist`.
const MAX_OPERATOR: usize = 16;

/// What is decided for some Pods of the policy's namespace.
#[derive(Clone, CustomResource, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[expect(clippy::duplicated_attributes, reason = "each printed column has a type")]
#[kube(
    group = "sidestep.dev",
    version = "v1alpha1",
    kind = "SidestepPolicy",
    plural = "sidesteppolicies",
    shortname = "ssp",
    category = "sidestep",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    doc = "How Sidestep treats logs and traffic of some Pods of this namespace. Wins over ClusterSidestepPolicy; annotations `sidestep.dev/` of a Pod win over it.",
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority", priority = 1),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.programmed"),
    printcolumn(
        name = "Pods",
        type_ = "integer",
        json_path = ".status.selectedPods",
        description = "Pods that it selects"
    ),
    printcolumn(
        name = "Conflicted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Conflicted\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.logs) || has(self.traffic)", "message": "declares nothing: give logs, traffic or both",
}]))]
pub struct SidestepPolicySpec {
    /// Which Pods, by their labels; `{}` selects all of the namespace.
    #[schemars(transform = bound_selector)]
    pub selector: LabelSelector,
    /// Globs over names of containers, init containers too; all of them when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 253)))]
    pub containers: Option<Vec<String>>,
    /// Among policies of one kind the higher one wins, then the older.
    #[serde(default)]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: i32,
    /// What is declared for their logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<Settings>,
    /// What is declared for their traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficSettings>,
}

/// What is decided for some Pods of all namespaces.
#[derive(Clone, CustomResource, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[expect(clippy::duplicated_attributes, reason = "each printed column has a type")]
#[kube(
    group = "sidestep.dev",
    version = "v1alpha1",
    kind = "ClusterSidestepPolicy",
    plural = "clustersidesteppolicies",
    shortname = "cssp",
    category = "sidestep",
    status = "Status",
    derive = "PartialEq",
    doc = "How Sidestep treats logs and traffic of some Pods of the cluster. SidestepPolicy and annotations `sidestep.dev/` of a Pod win over it.",
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority", priority = 1),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.programmed"),
    printcolumn(
        name = "Pods",
        type_ = "integer",
        json_path = ".status.selectedPods",
        description = "Pods that it selects"
    ),
    printcolumn(
        name = "Conflicted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Conflicted\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.logs) || has(self.traffic)", "message": "declares nothing: give logs, traffic or both",
}]))]
pub struct ClusterSidestepPolicySpec {
    /// Which namespaces, by their labels; all of them when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = bound_selector)]
    pub namespace_selector: Option<LabelSelector>,
    /// Which Pods, by their labels; `{}` selects all.
    #[schemars(transform = bound_selector)]
    pub selector: LabelSelector,
    /// Globs over names of containers, init containers too; all of them when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 253)))]
    pub containers: Option<Vec<String>>,
    /// Among policies of one kind the higher one wins, then the older.
    #[serde(default)]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: i32,
    /// What is declared for their logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<Settings>,
    /// What is declared for their traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficSettings>,
}

/// What has become of a policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    /// The generation of the policy that the rest is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pods that it selects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected_pods: Option<i32>,
    /// Nodes with an agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i32>,
    /// Nodes where this generation is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub programmed_nodes: Option<i32>,
    /// Both, as `2/3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub programmed: Option<String>,
    /// `Accepted`: it can be in force. `Programmed`: it is, on all nodes with an agent. `Conflicted`: another policy of
    /// the same kind and priority has decided a field of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What an agent reports: one object a node, which agents alone write.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "sidestep.dev",
    version = "v1alpha1",
    kind = "SidestepNode",
    plural = "sidestepnodes",
    category = "sidestep",
    status = "NodeStatus",
    derive = "PartialEq",
    doc = "What the Sidestep agent of a node reports of policies. Written by agents alone.",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct SidestepNodeSpec {}

/// What is in force on a node.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeStatus {
    /// When the agent has reported last, by its clock; it does so every ten minutes at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_time: Option<Time>,
    /// The policies that the agent knows: those of the cluster first, then by namespace and name.
    pub policies: Vec<NodePolicy>,
    /// How many more it knows, for which the report has no room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<i32>,
}

/// A policy on a node.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePolicy {
    /// `None` for a `ClusterSidestepPolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its UID: one that was made anew under the name has another, and the same generations. Older agents do not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Its generation that the agent knows.
    pub generation: i64,
    /// What has become of that.
    pub state: NodeState,
    /// Pods of the node that it selects.
    #[serde(default)]
    pub pods: i32,
    /// Fields that another policy of the same kind and priority has decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<String>,
    /// Fields that do not hold for a Pod: what they name is not there, or may not be chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// How many more fields another policy has decided, for which the report has no room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflicts_left_out: Option<i32>,
    /// How many more fields do not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problems_left_out: Option<i32>,
}

/// What has become of a policy on a node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum NodeState {
    /// It is in force.
    Programmed,
    /// It can't be.
    Refused,
}

impl NodePolicy {
    /// One that selects nothing.
    #[must_use]
    pub fn new(key: &Key, uid: Option<&str>, generation: i64, state: NodeState) -> Self {
        let (namespace, name) = (key.namespace.as_deref().map(str::to_owned), key.name.to_string());
        let uid = uid.map(str::to_owned);
        Self {
            namespace,
            name,
            uid,
            generation,
            state,
            pods: 0,
            conflicts: Vec::new(),
            problems: Vec::new(),
            conflicts_left_out: None,
            problems_left_out: None,
        }
    }

    /// Whether it is about this generation of the policy with this UID, as far as both are known.
    #[must_use]
    pub fn is_about(&self, uid: Option<&str>, generation: i64) -> bool {
        let is_another = self.uid.as_deref().zip(uid).is_some_and(|(known, uid)| known != uid);
        self.generation == generation && !is_another
    }

    /// Whether it is this policy.
    #[must_use]
    pub fn is(&self, key: &Key) -> bool {
        self.namespace.as_deref() == key.namespace.as_deref() && self.name == *key.name
    }
}

/// Bounds what Kubernetes does not: a selector costs every agent memory, and each Pod the time to hold it against that.
pub(super) fn bound_selector(schema: &mut Schema) {
    let mut set = |pointer: &str, keyword: &str, value: serde_json::Value| {
        if let Some(part) = schema.pointer_mut(pointer).and_then(|part| part.as_object_mut()) {
            part.insert(keyword.to_owned(), value);
        }
    };
    let labels = "/properties/matchLabels";
    set(labels, "maxProperties", json!(MAX_LABELS));
    set("/properties/matchLabels/additionalProperties", "maxLength", json!(MAX_LABEL_VALUE));
    set(
        labels,
        "x-kubernetes-validations",
        json!([{
            "rule": format!("self.all(key, size(key) <= {MAX_LABEL_KEY})"),
            "message": format!("the key of a label has at most {MAX_LABEL_KEY} characters"),
        }]),
    );
    set("/properties/matchExpressions", "maxItems", json!(MAX_LABELS));
    let requirement = "/properties/matchExpressions/items/properties";
    set(&format!("{requirement}/key"), "maxLength", json!(MAX_LABEL_KEY));
    set(&format!("{requirement}/operator"), "maxLength", json!(MAX_OPERATOR));
    set(&format!("{requirement}/values"), "maxItems", json!(MAX_LABELS));
    set(&format!("{requirement}/values/items"), "maxLength", json!(MAX_LABEL_VALUE));
}

/// The definitions of all resources, to be applied before any of them.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![SidestepPolicy::crd(), ClusterSidestepPolicy::crd(), SidestepNode::crd()]
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Paths of what a user may write without end.
    fn unbounded(path: &str, schema: &Value, found: &mut Vec<String>) {
        let is_quantity = schema["x-kubernetes-int-or-string"] == true && !schema["maxLength"].is_null();
        let is_bounded = is_quantity
            || match schema["type"].as_str() {
                Some("string") => !schema["maxLength"].is_null() || !schema["enum"].is_null(),
                Some("array") => !schema["maxItems"].is_null(),
                Some("object") => !schema["properties"].is_null() || !schema["maxProperties"].is_null(),
                kind => matches!(kind, Some("boolean" | "integer")),
            };
        if !is_bounded {
            found.push(path.to_owned());
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            unbounded(&format!("{path}.{name}"), property, found);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                unbounded(&format!("{path}[]"), &schema[inner], found);
            }
        }
    }

    #[test]
    fn nothing_of_a_policy_is_without_a_bound() {
        for definition in [SidestepPolicy::crd(), ClusterSidestepPolicy::crd()] {
            let definition = serde_json::to_value(&definition).expect("JSON");
            let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
            let selector = &spec["properties"]["selector"]["properties"];
            assert_eq!(selector["matchLabels"]["maxProperties"], json!(MAX_LABELS));
            assert_eq!(selector["matchExpressions"]["items"]["properties"]["values"]["maxItems"], json!(MAX_LABELS));
            let peers = &spec["properties"]["traffic"]["properties"]["allow"]["properties"]["ingress"]["items"];
            let peer = &peers["properties"]["pods"]["items"]["properties"];
            for selector in ["selector", "namespaceSelector"] {
                assert_eq!(peer[selector]["properties"]["matchLabels"]["maxProperties"], json!(MAX_LABELS));
            }
            let mut found = Vec::new();
            unbounded("spec", spec, &mut found);
            assert!(found.is_empty(), "{found:#?}");
        }
    }
}
