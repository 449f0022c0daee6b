//! Looks at files: how far they have grown, whether they are still of use, and how they are reached.

use std::path::PathBuf;

use sidestep_abi::stdio::InodeKey;

use super::{Id, LOOK_NANOS, Open, Tailer};
use crate::{
    files::{
        find,
        handle::Settings,
        open::{self, Whereabouts},
    },
    load::cgroups,
    pipeline::container::Profile,
    record::Class,
};

/// A file that has not grown for so long, and that no name leads to, is done with.
const RETIRE_NANOS: u64 = 60_000_000_000;

impl Tailer {
    pub(super) fn close_least_recent(&mut self, count: usize) {
        let mut idle: Vec<_> = self
            .files
            .values_mut()
            .filter(|open| open.log.file().is_some() && !open.log.is_behind() && !open.log.is_deleted())
            .collect();
        idle.sort_by_key(|open| open.grown);
        idle.into_iter().take(count).for_each(|open| open.log.close());
    }
}

/// Looks at a file's size, and whether it is still of use.
pub(super) fn look(settings: &Settings, id: &Id, open: &mut Open, now: u64) {
    let behind = open.log.is_behind();
    if open.log.file().is_none() {
        // It was closed because others are more lively: looked at seldom.
        reopen(settings, open);
    }
    open.log.look(now);
    if open.log.is_behind() && !behind {
        open.grown = now;
        open.look_interval = LOOK_NANOS.start;
    } else if id.0 == Class::Business {
        open.look_interval = (open.look_interval * 2).min(LOOK_NANOS.end);
    }
    if id.0 == Class::Server {
        open.look_interval = settings.server.poll_interval.as_nanos().try_into().unwrap_or(u64::MAX);
    }
    open.next_look = now.saturating_add(open.look_interval);
    let idle = now.saturating_sub(open.grown);
    if idle > RETIRE_NANOS && !open.log.is_behind() {
        if open.log.is_deleted() || is_renamed(settings, id, open) {
            open.ending = true;
        } else {
            // Asked again after as long a time.
            open.grown = now;
        }
    }
}

/// Whether the path leads to another file, or to none. A path that can't be followed tells nothing.
pub(super) fn is_renamed(settings: &Settings, id: &Id, open: &Open) -> bool {
    let path = &open.log.about.path;
    let (root, pid) = match id.0 {
        Class::Server => (settings.host_root.clone(), None),
        _ => {
            let Some(pid) = open.users.first().and_then(|user| pids(settings, &*user.settled()?).into_iter().next())
            else {
                return false;
            };
            (PathBuf::from(format!("/proc/{pid}/root")), Some(pid))
        }
    };
    match open::open_below(&root, path) {
        Ok(file) => !open::is(&file, &id.1, pid),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Opens a file again that was closed for others. One that is found no more goes on with what the ring brings.
pub(super) fn reopen(settings: &Settings, open: &mut Open) {
    let about = &open.log.about;
    let file = match open.users.first().and_then(|user| user.settled()) {
        Some(settled) => open_of(settings, &about.key, &open.log.whereabouts, &settled),
        None => find::again(&settings.host_root, &about.path, &about.key, None),
    };
    open.log.reopened(file);
}

pub(super) fn open_of(
    settings: &Settings,
    key: &InodeKey,
    whereabouts: &Whereabouts,
    settled: &Profile,
) -> Option<std::fs::File> {
    open::open(key, whereabouts, || pids(settings, settled), rootfs(settings, settled).as_deref())
}

/// A container's root directory, as the node has it.
pub(super) fn rootfs(settings: &Settings, settled: &Profile) -> Option<PathBuf> {
    let rootfs = settled.identity.rootfs.as_ref()?;
    Some(settings.host_root.join(rootfs.strip_prefix("/").unwrap_or(rootfs)))
}

pub(super) fn pids(settings: &Settings, settled: &Profile) -> Vec<u32> {
    cgroups::processes(&settings.cgroup_mount, &settled.identity.container_cgroup)
}
