//! Events on Pods whose annotations do not hold: what `kubectl describe pod` shows to who wrote them.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
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
/// So many of one Pod: the others have their turn.
const MAX_OF_POD: usize = 8;
/// So many of one Pod are remembered as told.
const MAX_TOLD: usize = 64;
/// Of so many Pods.
const MAX_TOLD_PODS: usize = 4096;

/// Problems of Pods, each told once.
#[derive(Debug, Default)]
pub struct PodEvents {
    state: Mutex<State>,
    is_new: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By the UIDs of Pods: the hashes of their problems, of which each may be some kilobytes.
    told: HashMap<Arc<str>, HashSet<u64>>,
    waiting: Waiting,
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
        for problem in problems {
            if !state.is_new(pod, problem) {
                continue;
            }
            *state.counts.entry(problem.reason).or_default() += 1;
            let (namespace, name, reason) = (&*pod.namespace, &*pod.name, problem.reason.as_str());
            events::Event::DeclarationRefused { namespace, name, reason, problem }.report();
            state.waiting.push(pod, problem);
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner).waiting.pop()
    }
}

impl State {
    /// Whether it was not told yet. Who has too many to be remembered is told of his own again; where too many Pods have some,
    /// any of them, when it changes.
    fn is_new(&mut self, pod: &Pod, problem: &Problem) -> bool {
        if self.told.len() >= MAX_TOLD_PODS && !self.told.contains_key(&pod.uid) {
            let any = self.told.keys().next().cloned();
            any.and_then(|uid| self.told.remove(&uid));
        }
        let told = self.told.entry(Arc::clone(&pod.uid)).or_default();
        let mut hasher = DefaultHasher::new();
        problem.hash(&mut hasher);
        let hash = hasher.finish();
        if told.len() >= MAX_TOLD && !told.contains(&hash) {
            told.clear();
        }
        told.insert(hash)
    }
}

/// What waits to be written: namespaces in turn, and in each of them its Pods.
#[derive(Debug, Default)]
struct Waiting {
    by_namespace: BTreeMap<Arc<str>, VecDeque<(Arc<Pod>, Problem)>>,
    count: usize,
    /// The namespace that had its turn last.
    last: Option<Arc<str>>,
}

impl Waiting {
    /// Takes one, if its Pod has not too many. When there is no room, who has the most gives way.
    fn push(&mut self, pod: &Arc<Pod>, problem: &Problem) {
        let queue = self.by_namespace.entry(Arc::clone(&pod.namespace)).or_default();
        let of_pod = queue.iter().filter(|(other, _)| other.uid == pod.uid).count();
        if of_pod >= MAX_OF_POD {
            return;
        }
        queue.push_back((Arc::clone(pod), problem.clone()));
        self.count += 1;
        if self.count > MAX_WAITING {
            self.drop_one();
        }
    }

    /// Drops the last one of the Pod that has the most, in the namespace that has the most.
    fn drop_one(&mut self) {
        let Some((namespace, queue)) = self.by_namespace.iter_mut().max_by_key(|(_, queue)| queue.len()) else {
            return;
        };
        let mut counts: HashMap<Arc<str>, usize> = HashMap::new();
        queue.iter().for_each(|(pod, _)| *counts.entry(Arc::clone(&pod.uid)).or_default() += 1);
        let most = counts.values().max().copied();
        if let Some(last) = queue.iter().rposition(|(pod, _)| counts.get(&pod.uid).copied() == most) {
            queue.remove(last);
            self.count -= 1;
            // One that waits for nothing would have its turn for ever.
            if queue.is_empty() {
                let namespace = Arc::clone(namespace);
                self.by_namespace.remove(&namespace);
            }
        }
    }

    /// The next one. What else its Pod has stands behind the others of the namespace.
    fn pop(&mut self) -> Option<(Arc<Pod>, Problem)> {
        let namespaces = || self.by_namespace.keys();
        let next =
            namespaces().find(|name| Some(*name) > self.last.as_ref()).or_else(|| namespaces().next()).cloned()?;
        let queue = self.by_namespace.get_mut(&next)?;
        let (pod, problem) = queue.pop_front()?;
        let (own, others): (VecDeque<_>, VecDeque<_>) = queue.drain(..).partition(|(other, _)| other.uid == pod.uid);
        queue.extend(others.into_iter().chain(own));
        if queue.is_empty() {
            self.by_namespace.remove(&next);
        }
        (self.last, self.count) = (Some(next), self.count - 1);
        Some((pod, problem))
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
        assert_eq!(told, ["a", "b", "a"], "each Pod has its turn");
        let counts = events.counts();
        assert!(counts.contains(&(Reason::InvalidValue, 3)) && counts.contains(&(Reason::TooLong, 0)), "{counts:?}");
        let note = event(&pod("a"), &problem(&"x".repeat(5000)), "n").note.expect("a note");
        assert!(note.starts_with("`sidestep.dev/logs: xxx") && note.len() < 1024);
    }

    #[test]
    fn one_that_is_noisy_does_not_hide_what_another_has() {
        let events = PodEvents::default();
        let pod = |namespace: &str, uid: &str| {
            Arc::new(Pod { namespace: namespace.into(), uid: uid.into(), ..Pod::default() })
        };
        let problem = |value: &str| Problem::new("sidestep.dev/logs", value, Reason::InvalidValue, "no");
        let quiet = [("noisy", "beside"), ("other", "elsewhere")];
        // Before the noise.
        events.tell(&pod("noisy", "before"), &[problem("x")]);
        for number in 0..3000 {
            // One Pod that is written again and again, and many of a few namespaces.
            events.tell(&pod("noisy", "loud"), &[problem(&number.to_string())]);
            let namespace = format!("noisy-{}", number % 9);
            events.tell(&pod(&namespace, &number.to_string()), &[problem("a"), problem("b"), problem("c")]);
        }
        for (namespace, uid) in quiet {
            events.tell(&pod(namespace, uid), &[problem("x")]);
        }
        let waiting = events.state.lock().expect("locked").waiting.count;
        assert_eq!(waiting, MAX_WAITING);
        let order: Vec<_> = std::iter::from_fn(|| events.next()).map(|(pod, _)| pod.uid.to_string()).collect();
        assert_eq!(order.len(), MAX_WAITING);
        for uid in ["before", "beside", "elsewhere"] {
            let place = order.iter().position(|told| told == uid).expect(uid);
            assert!(place < 3 * 12, "{uid} is told at {place}");
        }
        assert!(order.iter().filter(|told| *told == "loud").count() <= MAX_OF_POD);
        // More namespaces than have room.
        for number in 0..2 * MAX_WAITING {
            events.tell(&pod(&format!("one-of-many-{number:03}"), &format!("m{number}")), &[problem("x")]);
        }
        assert_eq!(std::iter::from_fn(|| events.next()).count(), MAX_WAITING);
        // What was told stays told, whatever others have had since.
        events.tell(&pod("noisy", "before"), &[problem("x")]);
        assert!(events.next().is_none());
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
