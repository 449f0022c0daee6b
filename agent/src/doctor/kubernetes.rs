//! The API server: whether it answers, and what it lets the agent do.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};
use tokio::{runtime, time::timeout};

use super::Finding;
use crate::kubernetes::{
    Settings,
    client::{connect, is_wanted},
};

const AREA: &str = "kubernetes";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Something that the agent asks the API server for.
struct Access {
    /// The API group; empty for the core's.
    group: &'static str,
    resource: &'static str,
    /// Empty for the resource itself.
    subresource: &'static str,
    /// Whether the agent's own namespace is meant, and not all.
    is_own: bool,
    verbs: &'static [&'static str],
    /// What does not work without it.
    purpose: &'static str,
}

/// What the roles of the chart give; a test compares them.
static ACCESS: [Access; 13] = [
    access("", "pods", &["list", "watch"], "labels, annotations and workloads of Pods stay unknown"),
    access("", "namespaces", &["list", "watch"], "labels of namespaces stay unknown"),
    access("apps", "replicasets", &["get"], "what made a ReplicaSet that is no Deployment's stays unknown"),
    access("batch", "jobs", &["get"], "the CronJob of a Job stays unknown"),
    access("events.k8s.io", "events", &["create"], "nobody is told of a wrong annotation at its Pod"),
    access("sidestep.dev", "sidesteppolicies", &["list", "watch"], POLICIES),
    access("sidestep.dev", "clustersidesteppolicies", &["list", "watch"], POLICIES),
    Access { subresource: "status", ..access("sidestep.dev", "sidesteppolicies", &["patch"], STATUS) },
    Access { subresource: "status", ..access("sidestep.dev", "clustersidesteppolicies", &["patch"], STATUS) },
    access("sidestep.dev", "sidestepnodes", &["list", "watch", "create", "patch"], STATUS),
    Access { subresource: "status", ..access("sidestep.dev", "sidestepnodes", &["patch"], STATUS) },
    access("", "nodes", &["get"], "the SidestepNode of a node that is removed stays"),
    Access { is_own: true, ..access("coordination.k8s.io", "leases", &["get", "create", "update"], STATUS) },
];

const POLICIES: &str = "policies are not in force";
const STATUS: &str = "the conditions of policies do not tell whether they are in force on this node";

const fn access(
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    purpose: &'static str,
) -> Access {
    Access { group, resource, subresource: "", is_own: false, verbs, purpose }
}

impl Access {
    /// As `kubectl auth can-i` takes it.
    fn name(&self) -> String {
        let mut name = self.resource.to_owned();
        if !self.group.is_empty() {
            name = format!("{name}.{}", self.group);
        }
        if self.subresource.is_empty() { name } else { format!("{name}/{}", self.subresource) }
    }
}

pub(super) fn examine(settings: &Settings) -> Vec<Finding> {
    match is_wanted(settings) {
        Err(error) => {
            let advice = "`sidestep run` would not start";
            vec![Finding::failed(AREA, "api_server", error.to_string(), advice)]
        }
        Ok(false) => {
            let found = "not asked: `kubernetes.enabled` is false, or this is no Pod with a service account";
            vec![Finding::healthy(AREA, "api_server", found)]
        }
        Ok(true) => ask(settings).unwrap_or_else(|error| vec![unreachable(&error)]),
    }
}

/// Asks about everything; the first request that is not answered ends it.
fn ask(settings: &Settings) -> Result<Vec<Finding>, String> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let client = connect(settings, &Arc::default()).await.map_err(|error| error.to_string())?;
        let mut missing: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for access in &ACCESS {
            for verb in access.verbs {
                if !is_allowed(&client, access, verb).await? {
                    missing.entry(access.name()).or_default().push(verb);
                }
            }
        }
        Ok(judge(&missing))
    })
}

async fn is_allowed(client: &Client, access: &Access, verb: &str) -> Result<bool, String> {
    let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let attributes = ResourceAttributes {
        namespace: access.is_own.then(|| client.default_namespace().to_owned()),
        group: named(access.group),
        resource: named(access.resource),
        subresource: named(access.subresource),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    match timeout(PATIENCE, reviews.create(&PostParams::default(), &review)).await {
        Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(answer)) => Ok(answer.status.is_some_and(|status| status.allowed)),
    }
}

fn unreachable(error: &str) -> Finding {
    let advice = "records have node, namespace, Pod and container without it; labels, workloads and policies are as old as \
                  the last answer. See whether a NetworkPolicy or a proxy is between, and whether the service account \
                  still exists";
    Finding::degraded(AREA, "api_server", error, advice)
}

/// `missing` has the verbs that are refused, by the names of resources.
fn judge(missing: &BTreeMap<String, Vec<&str>>) -> Vec<Finding> {
    let mut findings = vec![Finding::healthy(AREA, "api_server", "answers")];
    let refused = ACCESS.iter().filter_map(|access| {
        let verbs = missing.get(&access.name())?;
        let advice = format!(
            "{}; give the service account a ClusterRole with it, as `rbac.create` of the chart does",
            access.purpose
        );
        Some(Finding::degraded(AREA, &access.name(), format!("refused: {}", verbs.join(", ")), advice))
    });
    findings.extend(refused);
    if findings.len() == 1 {
        findings.push(Finding::healthy(AREA, "rbac", "every verb that is needed is allowed"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Role {
        rules: Vec<Rule>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Rule {
        api_groups: Vec<String>,
        resources: Vec<String>,
        verbs: Vec<String>,
    }

    /// What the doctor asks about is what the chart gives, verb by verb.
    #[test]
    fn the_roles_of_the_chart_have_every_verb_and_no_other() {
        let manifest = include_str!("../../../deploy/kustomize/base/sidestep.yaml");
        let is_role = |text: &&str| text.contains("\nkind: ClusterRole\n") || text.contains("\nkind: Role\n");
        let roles = manifest.split("\n---\n").filter(is_role);
        let rules = roles.flat_map(|document| serde_saphyr::from_str::<Role>(document).expect("a role").rules);
        let mut given = BTreeSet::new();
        for rule in rules {
            for (group, resource) in
                rule.api_groups.iter().flat_map(|group| rule.resources.iter().map(move |r| (group, r)))
            {
                given.extend(rule.verbs.iter().map(|verb| format!("{verb} {group}/{resource}")));
            }
        }
        let mut asked = BTreeSet::new();
        for access in &ACCESS {
            let resource = match access.subresource {
                "" => access.resource.to_owned(),
                subresource => format!("{}/{subresource}", access.resource),
            };
            asked.extend(access.verbs.iter().map(|verb| format!("{verb} {}/{resource}", access.group)));
        }
        assert_eq!(given, asked);
    }

    #[test]
    fn refused_verbs_are_told_with_what_follows() {
        let findings = judge(&BTreeMap::from([("jobs.batch".to_owned(), vec!["get"])]));
        assert_eq!(findings.len(), 2);
        assert_eq!((findings[1].check.as_str(), findings[1].found.as_str()), ("jobs.batch", "refused: get"));
        assert!(findings[1].advice.contains("CronJob") && findings[1].advice.contains("rbac.create"), "{findings:?}");
        let findings = judge(&BTreeMap::new());
        assert_eq!(findings[1].found, "every verb that is needed is allowed");
        let finding = unreachable("connection refused");
        assert!(finding.advice.contains("labels"), "{finding:?}");
    }
}
