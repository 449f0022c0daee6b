//! Where a Pod is that is not here, for who has asked the wrong agent.

use std::{fmt, sync::OnceLock, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use tokio::time::timeout;

use super::is_name;

/// How long somebody at a terminal waits for it.
const PATIENCE: Duration = Duration::from_secs(3);
/// What the Pods of agents have, by the chart's default.
const AGENTS: &str = "app.kubernetes.io/name=sidestep";

/// The client, once there is one.
#[derive(Default)]
pub(super) struct LateClient(OnceLock<Client>);

impl LateClient {
    /// There is one now.
    pub(super) fn set(&self, client: Client) {
        // Only one is ever made.
        let _ = self.0.set(client);
    }

    pub(super) fn get(&self) -> Option<&Client> {
        self.0.get()
    }
}

impl fmt::Debug for LateClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LateClient").field(&self.0.get().is_some()).finish()
    }
}

/// Which Pod, for whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    /// The node of this agent.
    pub(super) here: &'a str,
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
}

impl Question<'_> {
    /// What is to be said of a Pod of which no container is known here; `None` when the API server does not tell.
    pub(super) async fn answer(self, client: &Client) -> Option<String> {
        // They become part of a request's path.
        if ![self.namespace, self.pod].iter().all(|name| is_name(name)) {
            return None;
        }
        timeout(PATIENCE, self.ask(client)).await.ok()?
    }

    async fn ask(self, client: &Client) -> Option<String> {
        // With the rights of the watch: to `get` a Pod is not among them.
        let of_name = ListParams::default().fields(&format!("metadata.name={}", self.pod)).limit(1);
        let found = Api::<Pod>::namespaced(client.clone(), self.namespace).list(&of_name).await.ok()?.items.pop();
        let node = found.as_ref().and_then(node_of).filter(|node| *node != self.here);
        let agent = match node {
            Some(node) => agent_of(client, node).await,
            None => None,
        };
        let agent = agent.map(|agent| (agent.namespace().unwrap_or_default(), agent.name_any()));
        Some(self.text(found.as_ref(), agent.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()))))
    }

    /// `agent`: namespace and name of the Pod of the agent that has to be asked.
    fn text(self, found: Option<&Pod>, agent: Option<(&str, &str)>) -> String {
        let Self { here, namespace, pod } = self;
        let Some(found) = found else { return format!("there is no Pod {namespace}/{pod}") };
        match (node_of(found), agent) {
            (None, _) => format!("Pod {namespace}/{pod} is on no node yet"),
            (Some(node), _) if node == here => {
                let phase = found.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("unknown");
                format!(
                    "Pod {namespace}/{pod} is on this node, {node}, and none of its containers is known here (phase \
                     {phase}): they have not run yet, or ended long ago"
                )
            }
            (Some(node), Some((agents, agent))) => format!(
                "Pod {namespace}/{pod} is on node {node}, and this is the agent of node {here}; ask there: `kubectl -n \
                 {agents} exec {agent} -- sidestep explain pod {namespace}/{pod}`"
            ),
            (Some(node), None) => format!(
                "Pod {namespace}/{pod} is on node {node}, and this is the agent of node {here}; run `sidestep explain pod \
                 {namespace}/{pod}` there (`kubectl get pods -A -o wide -l {AGENTS}` shows the agents' Pods)"
            ),
        }
    }
}

/// The Pod of the agent of a node; agents are in one namespace.
async fn agent_of(client: &Client, node: &str) -> Option<Pod> {
    let there = ListParams::default().labels(AGENTS).fields(&format!("spec.nodeName={node}")).limit(1);
    Api::<Pod>::default_namespaced(client.clone()).list(&there).await.ok()?.items.pop()
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_asked_the_wrong_agent_is_told_whom_to_ask() {
        let question = Question { here: "node-1", namespace: "shop", pod: "cart-0" };
        let pod = |node: Option<&str>| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": { "name": "cart-0" }, "status": { "phase": "Pending" },
                "spec": { "nodeName": node, "containers": [] },
            }))
            .expect("a Pod")
        };
        let there = pod(Some("node-2"));
        let text = question.text(Some(&there), Some(("sidestep", "sidestep-x2")));
        assert!(text.contains("is on node node-2"), "{text}");
        assert!(text.ends_with("`kubectl -n sidestep exec sidestep-x2 -- sidestep explain pod shop/cart-0`"), "{text}");
        let text = question.text(Some(&there), None);
        assert!(text.contains("is on node node-2") && text.contains("-l app.kubernetes.io/name=sidestep"), "{text}");
        assert!(question.text(Some(&pod(None)), None).ends_with("is on no node yet"));
        assert!(question.text(Some(&pod(Some("node-1"))), None).contains("(phase Pending)"));
        assert_eq!(question.text(None, None), "there is no Pod shop/cart-0");
    }
}
