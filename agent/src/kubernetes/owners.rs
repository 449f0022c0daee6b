//! Who made the controller of a Pod: a Job's `CronJob`, and the owner of a `ReplicaSet` that no Deployment's label names.
//!
//! One request for each controller, not for each Pod, and few in a second: a thousand Jobs cost the API server no more
//! than it can spare, and only the name of the `CronJob` comes later.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::{apps::v1::ReplicaSet, batch::v1::Job};
use kube::{Api, Client, core::ObjectMeta};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{health::Health, is_name, pod::Owner, pods::Pods};
use crate::events::Event;

/// Controllers that may wait to be asked for; one that finds no room is asked for with the next change of its Pod.
const QUEUE: usize = 1024;
/// Answers that are kept.
const MAX_KNOWN: usize = 4096;
/// Pause between two requests.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause after a failed one.
const RETRY: Duration = Duration::from_secs(10);
/// How long nobody asks again after the API server has refused.
const FORBIDDEN: Duration = Duration::from_secs(600);

/// The way to the task that asks.
#[derive(Clone, Debug)]
pub(super) struct Owners {
    questions: Sender<Question>,
    /// Controllers that are on their way.
    asked: Arc<Mutex<HashSet<Named>>>,
}

/// Namespace and UID of a controller: who claims that of another namespace's for a Pod of his gets an answer of his own.
type Named = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Question {
    namespace: Arc<str>,
    controller: Owner,
}

impl Owners {
    /// A new one, and what [`answer`] takes.
    pub(super) fn new() -> (Self, Questions) {
        let (sender, questions) = channel(QUEUE);
        let asked = Arc::default();
        (Self { questions: sender, asked: Arc::clone(&asked) }, Questions { questions, asked })
    }

    /// Asks for the owner of a controller, if nobody has.
    pub(super) fn ask(&self, namespace: &Arc<str>, controller: &Owner) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let question = Question { namespace: Arc::clone(namespace), controller: controller.clone() };
        let named = question.named();
        if asked.insert(named.clone()) && self.questions.try_send(question).is_err() {
            asked.remove(&named);
        }
    }
}

/// What is asked.
#[derive(Debug)]
pub(super) struct Questions {
    questions: Receiver<Question>,
    asked: Arc<Mutex<HashSet<Named>>>,
}

impl Question {
    fn named(&self) -> Named {
        (Arc::clone(&self.namespace), Arc::clone(&self.controller.uid))
    }
}

impl Questions {
    /// The next one; when there is none, one of those that were asked in vain.
    async fn next(&mut self, again: &mut VecDeque<Question>) -> Option<Question> {
        match self.questions.try_recv() {
            Ok(question) => Some(question),
            Err(_) => match again.pop_front() {
                Some(question) => Some(question),
                None => self.questions.recv().await,
            },
        }
    }
}

/// Asks the API server, one after the other, for ever.
pub(super) async fn answer(client: Client, mut questions: Questions, pods: Arc<Pods>, health: Arc<Health>) {
    let mut known: HashMap<Named, Option<Owner>> = HashMap::new();
    let mut forbidden: HashMap<Arc<str>, Instant> = HashMap::new();
    let mut again = VecDeque::new();
    while let Some(question) = questions.next(&mut again).await {
        let Question { namespace, controller } = &question;
        let named = question.named();
        let owner = match known.get(&named) {
            Some(owner) => Some(owner.clone()),
            None => {
                tokio::time::sleep(PAUSE.max(health.pause_left(Instant::now()))).await;
                ask(&client, namespace, controller, &mut forbidden).await
            }
        };
        // A Pod that comes between the two asks once more, and is answered from here.
        if let Some(owner) = owner {
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(named.clone(), owner.clone());
            pods.set_owner(namespace, &controller.uid, owner.as_ref());
        } else if again.len() < QUEUE && pods.lack_owner(namespace, &controller.uid) {
            again.push_back(question);
            continue;
        }
        questions.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&named);
    }
}

/// The owner of a controller; `None` when that can't be found out now.
async fn ask(
    client: &Client,
    namespace: &str,
    controller: &Owner,
    forbidden: &mut HashMap<Arc<str>, Instant>,
) -> Option<Option<Owner>> {
    let now = Instant::now();
    if forbidden.get(&controller.kind).is_some_and(|since| now.saturating_duration_since(*since) < FORBIDDEN) {
        return Some(None);
    }
    // Who makes a Pod writes what he likes, and a path is made of it.
    if !is_name(&controller.name) {
        return Some(None);
    }
    let (resource, metadata) = match &*controller.kind {
        "Job" => ("jobs", metadata::<Job>(client, namespace, &controller.name).await),
        "ReplicaSet" => ("replicasets", metadata::<ReplicaSet>(client, namespace, &controller.name).await),
        _ => return Some(None),
    };
    match metadata {
        // Another one of the same name tells nothing.
        Ok(metadata) if metadata.uid.as_deref() != Some(&controller.uid) => Some(None),
        Ok(metadata) => {
            let owners = metadata.owner_references.unwrap_or_default();
            let owner = owners.into_iter().find(|owner| owner.controller == Some(true));
            // Who may make a Job writes its owner, too.
            Some(owner.and_then(Owner::claimed))
        }
        // No such object, or a question that has no answer.
        Err(kube::Error::Api(status))
            if (400..500).contains(&status.code) && ![401, 403, 429].contains(&status.code) =>
        {
            Some(None)
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
            forbidden.insert(Arc::clone(&controller.kind), now);
            Event::KubernetesForbidden { verb: "get", resource, error: &status.message }.report();
            // No record waits for what will not come.
            Some(None)
        }
        Err(error) => {
            tracing::debug!(resource, namespace, name = %controller.name, error = super::chain(&error), "owner not found out");
            tokio::time::sleep(RETRY).await;
            None
        }
    }
}

async fn metadata<K>(client: &Client, namespace: &str, name: &str) -> kube::Result<ObjectMeta>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    Api::<K>::namespaced(client.clone(), namespace).get_metadata(name).await.map(|object| object.metadata)
}
