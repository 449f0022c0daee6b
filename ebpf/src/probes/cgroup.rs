//! Life of cgroups below the governed roots: made, empty, removed. The tracepoints fire for every hierarchy; only v2
//! counts, since ids of another hierarchy mean other cgroups.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use sidestep_abi::{
    container::{ContainerEvent, INIT_NONE},
    event,
    stdio::InodeKey,
};

use crate::{
    emit,
    generation::{self, Order},
    kernel::Cgroup,
    maps::{CONTAINERS, MEMBERS},
    policy,
};

#[inline(always)]
fn life(kind: u16, cgroup: Cgroup) -> Option<ContainerEvent> {
    if !generation::acts(Order::OldestFirst) {
        return None;
    }
    let control = policy::control()?;
    if control.roots_len == 0 || !cgroup.is_v2() || !policy::is_governed(control, cgroup) {
        return None;
    }
    let none = InodeKey { ino: 0, dev: 0, _pad: 0 };
    Some(ContainerEvent { header: emit::header(kind, cgroup.id(), 0, 0), stdio: [none, none] })
}

/// `cgroup_mkdir(cgroup, path)`
#[raw_tracepoint]
pub(crate) fn cgroup_mkdir(ctx: RawTracePointContext) -> i32 {
    if let Some(event) = life(event::CGROUP_MADE, Cgroup::at(ctx.arg::<u64>(0))) {
        emit::cgroup(&event, ctx.arg::<u64>(1) as *const u8);
    }
    0
}

/// `cgroup_notify_populated(cgroup, path, populated)`
#[raw_tracepoint]
pub(crate) fn cgroup_notify_populated(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<u64>(2) as u32 == 0
        && let Some(event) = life(event::CGROUP_EMPTY, Cgroup::at(ctx.arg::<u64>(0)))
    {
        // The next first process is that of another life.
        if let Some(container) = CONTAINERS.get_ptr_mut(&event.header.cgroup) {
            // SAFETY: a map value, checked by the verifier.
            unsafe { (&raw mut (*container).init).write_volatile(INIT_NONE) };
        }
        emit::container(&event);
    }
    0
}

/// `cgroup_rmdir(cgroup, path)`
#[raw_tracepoint]
pub(crate) fn cgroup_rmdir(ctx: RawTracePointContext) -> i32 {
    if let Some(event) = life(event::CGROUP_REMOVED, Cgroup::at(ctx.arg::<u64>(0))) {
        let _ = MEMBERS.remove(&event.header.cgroup);
        emit::container(&event);
    }
    0
}
