//! The watches: Pods of this node, and namespaces. Only the metadata of objects is asked for.

use std::{
    collections::HashSet,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1;
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::watcher::{self, DefaultBackoff, Event, watcher},
};

use super::{
    health::Health,
    owners::Owners,
    pod::{Pod, bounded_labels},
    pods::Pods,
    projection::Projection,
};
use crate::events;

/// The resource of the watch of Pods.
pub(super) const PODS: &str = "pods";
/// The resource of the watch of namespaces.
pub(super) const NAMESPACES: &str = "namespaces";

/// Pause before what answered as no API server does is asked again.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(30);

/// Follows the Pods of `node`, for ever.
pub(super) async fn pods(
    client: Client,
    node: &str,
    pods: Arc<Pods>,
    health: Arc<Health>,
    projection: Projection,
    owners: Owners,
) {
    let api = Api::<PartialObjectMeta<v1::Pod>>::all(client);
    // From the API server's cache: a list of what is in etcd costs it more, and the watch brings what is newer.
    let config = watcher::Config::default().any_semantic().fields(&format!("spec.nodeName={node}"));
    let mut listed = Vec::new();
    let read = |object: PartialObjectMeta<v1::Pod>| {
        let pod = Pod::new(object.metadata, projection.annotations());
        if pod.left_out > 0 {
            health.count_left_out(pod.left_out);
            let (namespace, name) = (&*pod.namespace, &*pod.name);
            events::Event::KubernetesMetadataLeftOut { namespace, name, count: pod.left_out }.report();
        }
        if let Some(owner) = pod.owners.first().filter(|_| !pod.owners_known) {
            owners.ask(&pod.namespace, owner);
        }
        pod
    };
    let take = |event| match event {
        Event::Init => listed.clear(),
        Event::InitApply(object) => listed.push(read(object)),
        Event::InitDone => pods.replace(std::mem::take(&mut listed), Instant::now()),
        Event::Apply(object) => pods.apply(read(object)),
        Event::Delete(object) => pods.delete(&object.metadata.uid.unwrap_or_default(), Instant::now()),
    };
    follow_always(|| watcher(api.clone(), config.clone()), PODS, &health, take).await;
}

/// Follows all namespaces, for ever.
pub(super) async fn namespaces(client: Client, pods: Arc<Pods>, health: Arc<Health>) {
    let api = Api::<PartialObjectMeta<v1::Namespace>>::all(client);
    let config = watcher::Config::default().any_semantic();
    let name = |object: &PartialObjectMeta<v1::Namespace>| object.metadata.name.clone().unwrap_or_default();
    let set = |object: PartialObjectMeta<v1::Namespace>| {
        let (name, mut left_out) = (name(&object), 0);
        let labels = bounded_labels(object.metadata.labels.unwrap_or_default(), &mut left_out);
        health.count_left_out(left_out);
        pods.set_namespace(&name, Some(labels));
    };
    let mut listed = HashSet::new();
    let take = |event| match event {
        Event::Init => listed.clear(),
        Event::InitApply(object) => {
            listed.insert(name(&object));
            set(object);
        }
        Event::InitDone => pods.retain_namespaces(&std::mem::take(&mut listed)),
        Event::Apply(object) => set(object),
        Event::Delete(object) => pods.set_namespace(&name(&object), None),
    };
    follow_always(|| watcher(api.clone(), config.clone()), NAMESPACES, &health, take).await;
}

/// As [`follow`], for ever: every API server knows the resource. What answers that it does not stands in front of one, or
/// has not come up yet.
pub(super) async fn follow_always<K, S: Stream<Item = watcher::Result<Event<K>>>>(
    watch: impl Fn() -> S,
    resource: &'static str,
    health: &Health,
    mut take: impl FnMut(Event<K>),
) {
    loop {
        follow(&watch, resource, health, &mut take).await;
        health.failed(resource, "list", false, "what answers does not know the resource", Instant::now());
        tokio::time::sleep(UNKNOWN_PAUSE).await;
    }
}

/// Takes what a watch tells, for ever; returns only when the API server does not know the resource. One that fails is tried
/// again after a pause that grows, or that the API server asks for; what it can't tell any more (410) is listed anew.
pub(super) async fn follow<K, S: Stream<Item = watcher::Result<Event<K>>>>(
    watch: impl Fn() -> S,
    resource: &'static str,
    health: &Health,
    mut take: impl FnMut(Event<K>),
) {
    let mut backoff = DefaultBackoff::default();
    loop {
        let mut events = pin!(watch());
        let mut is_usable = true;
        while is_usable {
            let Some(event) = events.next().await else { break };
            let now = Instant::now();
            match event {
                Ok(event) => {
                    let is_list = matches!(event, Event::InitDone);
                    // A list begins before anything was answered.
                    let is_answer = !matches!(event, Event::Init);
                    take(event);
                    if is_list {
                        health.listed(resource, now);
                    } else if is_answer {
                        health.event(resource, now);
                    }
                    if is_answer {
                        backoff = DefaultBackoff::default();
                    }
                    // To understand a policy may take some tenths of a second, and news may come faster: the thread is also that
                    // of `/healthz`.
                    tokio::task::yield_now().await;
                }
                Err(watcher::Error::InitialListFailed(error)) if api_status(&error) == Some(404) => return,
                Err(error) => {
                    is_usable = note(&error, resource, health, now);
                    let pause = backoff.next().unwrap_or(Duration::from_secs(30));
                    tokio::time::sleep(pause.max(health.pause_left(now))).await;
                }
            }
        }
    }
}

/// Tells of a failed request; `false` when the same request would fail for ever.
fn note(error: &watcher::Error, resource: &'static str, health: &Health, now: Instant) -> bool {
    let (verb, status) = match error {
        watcher::Error::InitialListFailed(error) => ("list", api_status(error)),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => ("watch", api_status(error)),
        watcher::Error::WatchError(status) => ("watch", Some(status.code)),
        watcher::Error::NoResourceVersion => ("watch", None),
    };
    // Changes since then are not kept; everything is listed anew, which is all there is to do. A definition that may have been
    // deleted (404): only a list that is answered the same is certain of that.
    if status == Some(410) || (verb == "watch" && status == Some(404)) {
        return false;
    }
    let error = super::chain(error);
    health.failed(resource, verb, matches!(status, Some(401 | 403)), &error, now);
    // 504: a version of a time to come, of an etcd that was set back.
    !(verb == "watch" && status == Some(504))
}

fn api_status(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
