//! Events on Pods whose annotations do not hold: what `kubectl describe pod` shows to who wrote them.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::Notify;

use super::pod::Pod;
use crate::{
    events,
    policy::annotations::{Problem, Reason},
};

/// Who tells.
const CONTROLLER: &str = "sidestep.dev/agent";
/// What is told of a Pod.
const REASON: &str = "SidestepDeclaration";
/// The most characters of a note that the API server takes are 1024.
const MAX_NOTE: usize = 1000;
/// Pause between two of them.
const PAUSE: Duration = Duration::from_secs(1);
/// So many wait; of what is more, the log tells alone.
const MAX_WAITING: usize = 256;
/// So many of one namespace: the others have their turn.
const MAX_OF_NAMESPACE: usize = 32;
/// So many are remembered as told.
const MAX_TOLD: usize = 4096;

/// Problems of Pods, each told once.
#[derive(Debug, Default)]
pub struct PodEvents {
    state: Mutex<State>,
    is_new: Notify,
}

#[derive(Debug, Default)]
struct State {
    told: HashSet<(Arc<str>, Problem)>,
    waiting: VecDeque<(Arc<Pod>, Problem)>,
    /// How many were told, by what kind they are.
    counts: BTreeMap<Reason, u64>,
}

impl PodEvents {
    /// Tells of problems of a Pod that were not told of yet.
    pub fn tell(&self, pod: &Arc<Pod>, problems: &[Problem]) {
        if problems.is_empty() {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.told.len() >= MAX_TOLD {
            state.told.clear();
        }
        for problem in problems {
            if !state.told.insert((Arc::clone(&pod.uid), problem.clone())) {
                continue;
            }
            *state.counts.entry(problem.reason).or_default() += 1;
            let (namespace, name, reason) = (&*pod.namespace, &*pod.name, problem.reason.as_str());
            events::Event::DeclarationRefused { namespace, name, reason, problem }.report();
            let of_namespace = state.waiting.iter().filter(|(other, _)| other.namespace == pod.namespace).count();
            if state.waiting.len() < MAX_WAITING && of_namespace < MAX_OF_NAMESPACE {
                state.waiting.push_back((Arc::clone(pod), problem.clone()));
            }
        }
        drop(state);
        self.is_new.notify_one();
    }

    /// How many problems there were since the start, by what kind they are.
    #[must_use]
    pub fn counts(&self) -> Vec<(Reason, u64)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Reason::ALL.into_iter().map(|reason| (reason, state.counts.get(&reason).copied().unwrap_or(0))).collect()
    }

    fn next(&self) -> Option<(Arc<Pod>, Problem)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).waiting.pop_front()
    }
}

/// Writes them, for ever. One that can't be written is left: the log and the metric have told.
pub(super) async fn send(client: Client, node: Arc<str>, problems: Arc<PodEvents>) {
    let mut is_refused = false;
    loop {
        let Some((pod, problem)) = problems.next() else {
            problems.is_new.notified().await;
            continue;
        };
        let api = Api::<v1::Event>::namespaced(client.clone(), &pod.namespace);
        match api.create(&PostParams::default(), &event(&pod, &problem, &node)).await {
            Ok(_) => is_refused = false,
            Err(error) if !is_refused && is_for_want_of_a_right(&error) => {
                is_refused = true;
                let error = super::chain(&error);
                events::Event::KubernetesForbidden { verb: "create", resource: "events", error: &error }.report();
            }
            Err(error) => tracing::debug!(%error, "an Event can't be written"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Nothing new may be made in a namespace that is being deleted either, whatever rights one has.
fn is_for_want_of_a_right(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    matches!(status.code, 401 | 403) && !causes.any(|cause| cause.reason == "NamespaceTerminating")
}

fn event(pod: &Pod, problem: &Problem, node: &str) -> v1::Event {
    let text = |text: &str| Some(text.to_owned());
    v1::Event {
        metadata: ObjectMeta {
            generate_name: text("sidestep-"),
            namespace: text(&pod.namespace),
            ..ObjectMeta::default()
        },
        action: text("ReadDeclarations"),
        event_time: Some(MicroTime(Timestamp::now())),
        note: Some(problem.to_string().chars().take(MAX_NOTE).collect()),
        reason: text(REASON),
        regarding: Some(ObjectReference {
            api_version: text("v1"),
            kind: text("Pod"),
            namespace: text(&pod.namespace),
            name: text(&pod.name),
            uid: text(&pod.uid),
            ..ObjectReference::default()
        }),
        reporting_controller: text(CONTROLLER),
        reporting_instance: text(node),
        type_: text("Warning"),
        ..v1::Event::default()
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{
        Status,
        response::{StatusCause, StatusDetails},
    };

    use super::*;

    #[test]
    fn each_problem_of_a_pod_is_told_once() {
        let events = PodEvents::default();
        let pod = |uid: &str| Arc::new(Pod { uid: uid.into(), ..Pod::default() });
        let problem = |value: &str| Problem::new("sidestep.dev/logs", value, Reason::InvalidValue, "no");
        events.tell(&pod("a"), &[problem("x"), problem("y")]);
        events.tell(&pod("a"), &[problem("x")]);
        events.tell(&pod("b"), &[problem("x")]);
        let told: Vec<_> = std::iter::from_fn(|| events.next()).map(|(pod, _)| pod.uid.to_string()).collect();
        assert_eq!(told, ["a", "a", "b"]);
        let counts = events.counts();
        assert!(counts.contains(&(Reason::InvalidValue, 3)) && counts.contains(&(Reason::TooLong, 0)), "{counts:?}");
        let note = event(&pod("a"), &problem(&"x".repeat(5000)), "n").note.expect("a note");
        assert!(note.starts_with("`sidestep.dev/logs: xxx") && note.len() < 1024);
    }

    #[test]
    fn what_is_refused_in_a_namespace_that_goes_is_no_want_of_a_right() {
        let refused = |code, cause: &str| {
            let causes = vec![StatusCause { reason: cause.to_owned(), message: String::new(), field: String::new() }];
            let status = Status::failure("no", "Forbidden").with_code(code);
            let none = String::new;
            let details = StatusDetails {
                causes,
                name: none(),
                group: none(),
                kind: none(),
                uid: none(),
                retry_after_seconds: 0,
            };
            let status = status.with_details(details);
            is_for_want_of_a_right(&kube::Error::Api(status.boxed()))
        };
        assert!(refused(403, "") && refused(401, ""));
        assert!(!refused(403, "NamespaceTerminating") && !refused(500, ""));
        let unreachable = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(!is_for_want_of_a_right(&kube::Error::Service(unreachable.into())));
    }
}
