//! What is kept, for how long, and how often files are read for it.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn cache(node: &Node) -> Identities<Node> {
    Identities::new(node.clone(), Settings::default(), None)
}

#[test]
fn a_hit_reads_nothing() {
    let node = containerd();
    let (mut identities, now) = (cache(&node), Instant::now());
    let first = Arc::clone(identities.lookup(1, &pod_cgroup(APP), None, now).identity);
    let reads = node.reads.get();
    let second = identities.lookup(1, &pod_cgroup(APP), None, now + Duration::from_secs(3600));
    assert!(second.settled);
    assert!(Arc::ptr_eq(&first, second.identity));
    // What the container makes below its cgroup is the same container.
    let below = identities.lookup(2, &format!("{}/init.scope", pod_cgroup(APP)), None, now);
    assert!(Arc::ptr_eq(&first, below.identity));
    assert_eq!(node.reads.get(), reads);
    assert!(identities.get(2).is_some_and(|identity| Arc::ptr_eq(&first, identity)));
    assert!(identities.get(3).is_none());
}

#[test]
fn metadata_that_comes_late_is_found_with_fewer_and_fewer_reads() {
    let node = Node::default();
    let (mut identities, start) = (cache(&node), Instant::now());
    let path = pod_cgroup(APP);
    assert!(!identities.lookup(1, &path, None, start).settled);
    // One question each millisecond for a minute.
    for milliseconds in 1..60_000 {
        let found = identities.lookup(1, &path, None, start + Duration::from_millis(milliseconds));
        assert_eq!(found.settled, milliseconds >= 2000, "at {milliseconds}");
    }
    // 10 ms, doubled up to 30 s: due at 10, 30, 70, 150 ... 20,470, 40,950 ms.
    assert_eq!(identities.statistics().resolutions, 1 + 12);
    assert_eq!(identities.statistics().incomplete, 1);
    let late = containerd();
    node.files.borrow_mut().clone_from(&late.files.borrow());
    let found = identities.lookup(1, &path, None, start + Duration::from_secs(120));
    assert_eq!((found.settled, found.identity.resource.pod.as_deref()), (true, Some("web-0")));
    assert_eq!(identities.statistics().incomplete, 0);
}

#[test]
fn exited_containers_are_known_until_released() {
    let node = containerd();
    let (mut identities, now) = (cache(&node), Instant::now());
    identities.lookup(1, &pod_cgroup(APP), None, now);
    node.clear();
    identities.exited(1, now);
    identities.exited(1, now);
    identities.exited(99, now);
    assert_eq!((identities.statistics().live, identities.statistics().exited), (0, 1));
    let found = identities.lookup(1, &pod_cgroup(APP), None, now + Duration::from_secs(600));
    assert_eq!((found.settled, found.identity.resource.pod.as_deref()), (true, Some("web-0")));
    // A container that is started at the same path is another one.
    assert_eq!(identities.lookup(2, &pod_cgroup(APP), None, now).identity.resource.pod, None);
    identities.release(1);
    identities.release(1);
    assert!(identities.get(1).is_none());
    assert_eq!(identities.statistics().exited, 0);
}

#[test]
fn the_end_of_a_container_is_the_last_chance_for_its_files() {
    let node = Node::default();
    let (mut identities, now) = (cache(&node), Instant::now());
    identities.lookup(1, &pod_cgroup(APP), None, now);
    node.files.borrow_mut().clone_from(&containerd().files.borrow());
    identities.exited(1, now + Duration::from_millis(1));
    let found = identities.lookup(1, &pod_cgroup(APP), None, now + Duration::from_millis(2));
    assert_eq!((found.settled, found.identity.resource.pod.as_deref()), (true, Some("web-0")));
}

#[test]
fn both_ends_of_the_cache_are_bounded() {
    let node = Node::default();
    let settings = Settings { exited_containers: 10, live_cgroups: 20, ..Settings::default() };
    let mut identities = Identities::new(node, settings, None);
    let now = Instant::now();
    for id in 0..10_000 {
        identities.lookup(id, &format!("/pods/{id}"), None, now);
        if id % 2 == 0 {
            identities.exited(id, now);
        }
    }
    let statistics = identities.statistics();
    assert_eq!((statistics.live, statistics.exited), (20, 10));
    assert_eq!(statistics.evictions, 10_000 - 30);
    assert!(identities.get(9_998).is_some(), "the newest stay");
    assert!(identities.get(9_978).is_none());
    for id in 0..10_000 {
        identities.release(id);
    }
    assert_eq!((identities.statistics().live, identities.statistics().exited), (0, 0));
}

proptest! {
    /// The bounds hold, and nothing is left, after any order of calls.
    #[test]
    fn the_cache_stays_consistent(calls in prop::collection::vec((0u8..4, 0u64..12, 0u64..5000), 0..200)) {
        let settings = Settings { exited_containers: 3, live_cgroups: 5, ..Settings::default() };
        let mut identities = Identities::new(containerd(), settings, None);
        let start = Instant::now();
        for (call, id, milliseconds) in calls {
            let now = start + Duration::from_millis(milliseconds);
            match call {
                0 | 1 => {
                    let path = if id % 3 == 0 { pod_cgroup(APP) } else { format!("{}/{id}", pod_cgroup(APP)) };
                    prop_assert_eq!(identities.lookup(id, &path, None, now).identity.resource.pod.as_deref(), Some("web-0"));
                }
                2 => identities.exited(id, now),
                _ => identities.release(id),
            }
            let statistics = identities.statistics();
            prop_assert!(statistics.live <= 5 && statistics.exited <= 3);
            let known = (0..12).filter(|id| identities.get(*id).is_some()).count();
            prop_assert_eq!(known, statistics.live + statistics.exited);
        }
    }
}
