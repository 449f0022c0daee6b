//! The custom resources `SidestepPolicy` and `ClusterSidestepPolicy`: one resource for what is decided of a workload.
//! Logs stand in `spec.logs`; limits and allowlists get a field beside it.

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time},
};
use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{precedence::Key, settings::Settings};

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
    doc = "How Sidestep treats the logs of some Pods of this namespace. Wins over ClusterSidestepPolicy; annotations `sidestep.dev/` of a Pod win over it.",
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
pub struct SidestepPolicySpec {
    /// Which Pods, by their labels; `{}` selects all of the namespace.
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
    pub logs: Settings,
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
    doc = "How Sidestep treats the logs of some Pods of the cluster. SidestepPolicy and annotations `sidestep.dev/` of a Pod win over it.",
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
pub struct ClusterSidestepPolicySpec {
    /// Which namespaces, by their labels; all of them when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Which Pods, by their labels; `{}` selects all.
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
    pub logs: Settings,
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
    /// All policies that the agent knows.
    pub policies: Vec<NodePolicy>,
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
    pub fn new(key: &Key, generation: i64, state: NodeState) -> Self {
        let (namespace, name) = (key.namespace.as_deref().map(str::to_owned), key.name.to_string());
        Self { namespace, name, generation, state, pods: 0, conflicts: Vec::new(), problems: Vec::new() }
    }

    /// Whether it is this policy.
    #[must_use]
    pub fn is(&self, key: &Key) -> bool {
        self.namespace.as_deref() == key.namespace.as_deref() && self.name == *key.name
    }
}

/// The definitions of all resources, to be applied before any of them.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![SidestepPolicy::crd(), ClusterSidestepPolicy::crd(), SidestepNode::crd()]
}
