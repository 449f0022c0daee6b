//! Who has decided what of the containers of a Pod.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    kubernetes::Kubernetes,
    pipeline::{container::Profile, known::Known},
    policy::{Field, annotations::shown, settings::MultilineSettings},
};

/// Which Pod.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ExplainRequest {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Only this container.
    pub container: Option<String>,
}

impl ExplainRequest {
    /// The containers of the Pod that are known here.
    pub(crate) fn containers(&self, known: &Known) -> Vec<Arc<Profile>> {
        let is_of_pod = |settled: &Arc<Profile>| {
            let resource = &settled.identity.resource;
            let is_named = resource.namespace.as_deref() == Some(&self.namespace);
            is_named && resource.pod.as_deref() == Some(&self.pod) && !settled.identity.sandbox
        };
        known.all().into_iter().filter(is_of_pod).collect()
    }
}

/// What was decided of a Pod's containers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ExplainReport {
    /// The node that answers.
    pub node: String,
    /// The Pod's namespace.
    pub namespace: String,
    /// The Pod's name.
    pub pod: String,
    /// `live`, `stale`, `never`: how fresh what the API server tells is; `off` when it is not asked.
    pub api_server: String,
    /// The same of policies.
    #[serde(default)]
    pub policies: String,
    /// Whether labels and annotations of the Pod are known: without them only the configuration counts.
    pub is_known: bool,
    /// Its containers, those that have ended too while they are known.
    pub containers: Vec<ExplainedContainer>,
}

/// What was decided of a container.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ExplainedContainer {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its records wait for what the API server tells.
    pub awaits: bool,
    /// Each field.
    pub fields: Vec<ExplainedField>,
    /// What was declared and does not hold.
    pub problems: Vec<ExplainedProblem>,
}

/// What was decided of a field.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ExplainedField {
    /// Its path below `spec.logs`.
    pub field: String,
    /// What is in force.
    pub value: String,
    /// Who has decided it; `None` when nobody has declared anything.
    pub decided_by: Option<String>,
    /// Who has declared it too.
    pub overridden: Vec<ExplainedLoser>,
}

/// A declaration that does not count.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ExplainedLoser {
    /// Who.
    pub by: String,
    /// What.
    pub value: String,
    /// Only age or name has decided against it.
    pub conflict: bool,
}

/// What was declared and does not hold.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ExplainedProblem {
    /// The annotation, or the policy and its field.
    pub key: String,
    /// The value, shortened.
    pub value: String,
    /// The cause and the remedy.
    pub message: String,
}

impl ExplainReport {
    /// Answers a request.
    ///
    /// # Errors
    /// No container of the Pod is known, and what to do.
    pub fn of(known: &Known, kubernetes: &Kubernetes, node: &str, request: &ExplainRequest) -> Result<Self, String> {
        let ExplainRequest { namespace, pod, container } = request;
        let of_pod = request.containers(known);
        if of_pod.is_empty() {
            let (namespace, pod) = (shown(namespace), shown(pod));
            return Err(format!(
                "no container of Pod {namespace}/{pod} is known on node {node}; `kubectl -n {namespace} get pod {pod} -o \
                 wide` says on which node it is: ask the agent there"
            ));
        }
        let is_asked = |name: &str| container.as_deref().is_none_or(|asked| asked == name);
        let name = |settled: &Profile| settled.identity.resource.container_name.as_deref().unwrap_or("?").to_owned();
        let containers: Vec<_> =
            of_pod.iter().filter(|settled| is_asked(&name(settled))).map(|settled| explained(settled)).collect();
        if containers.is_empty() {
            let names: Vec<_> = of_pod.iter().map(|settled| name(settled)).collect();
            return Err(format!("Pod {namespace}/{pod} has no such container here; there are {}", names.join(", ")));
        }
        Ok(Self {
            node: node.to_owned(),
            namespace: namespace.clone(),
            pod: pod.clone(),
            api_server: kubernetes.freshness().to_owned(),
            policies: kubernetes.policies_freshness().to_owned(),
            is_known: of_pod.iter().any(|settled| settled.resource.metadata.is_some()),
            containers,
        })
    }
}

fn explained(settled: &Profile) -> ExplainedContainer {
    let resource = &settled.identity.resource;
    let field = |field: &Field| {
        let decision = settled.effective.decision(*field);
        let overridden = decision.map(|decision| &decision.overridden[..]).unwrap_or_default().iter();
        ExplainedField {
            field: field.as_str().to_owned(),
            value: in_force(settled, *field),
            decided_by: decision.map(|decision| decision.origin.to_string()),
            overridden: overridden
                .map(|lost| ExplainedLoser {
                    by: lost.origin.to_string(),
                    value: lost.value.clone(),
                    conflict: lost.conflicts_with.is_some(),
                })
                .collect(),
        }
    };
    let problem = |problem: &crate::policy::annotations::Problem| ExplainedProblem {
        key: problem.key.clone(),
        value: problem.value.clone(),
        message: problem.message.clone(),
    };
    ExplainedContainer {
        name: resource.container_name.as_deref().unwrap_or("?").to_owned(),
        id: resource.container_id.as_deref().unwrap_or_default().to_owned(),
        awaits: settled.awaits,
        fields: Field::ALL.iter().map(field).collect(),
        problems: settled.problems.iter().map(problem).collect(),
    }
}

/// What is in force, declared or not, and with it what was refused.
fn in_force(settled: &Profile, field: Field) -> String {
    let route = settled.resource.route.as_deref();
    // Each sink takes the first that it permits.
    let chosen = |chosen: Option<&crate::record::Chosen>| {
        let names = std::iter::successors(chosen, |chosen| chosen.otherwise.as_deref()).map(|chosen| &*chosen.name);
        names.map(str::to_owned).reduce(|first, next| format!("{first}, where a sink permits it; else {next}"))
    };
    let of_template = || "as the sink's template says".to_owned();
    match field {
        Field::Enabled => settled.is_captured.to_string(),
        Field::Include => settled.files.as_ref().map_or_else(String::new, |files| json(&files.include.patterns())),
        Field::Exclude => settled.files.as_ref().map_or_else(String::new, |files| json(&files.exclude.patterns())),
        Field::StartAt => settled.files.as_ref().map_or_else(String::new, |files| json(&files.start_at)),
        Field::Class => settled
            .class
            .map_or_else(|| "pod for stdout and stderr, business for files".to_owned(), |class| class.to_string()),
        Field::Multiline => json(&MultilineSettings::of(&settled.lines.settings().multiline)),
        Field::Parse => json(&settled.lines.settings().parse.format),
        Field::Topic => chosen(route.and_then(|route| route.topic.as_ref())).unwrap_or_else(of_template),
        Field::Index => chosen(route.and_then(|route| route.index.as_ref())).unwrap_or_else(of_template),
        Field::Tenant => route.and_then(|route| route.tenant.as_deref()).unwrap_or("none").to_owned(),
        Field::Sinks => {
            route.and_then(|route| route.sinks.as_ref()).map_or_else(|| "all".to_owned(), |sinks| sinks.join(", "))
        }
    }
}

/// As in YAML, on one line.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default().trim_matches('"').to_owned()
}
