//! Who is captured, and how much of the ring one container may hold.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST, BPF_RB_CONS_POS, BPF_RB_PROD_POS},
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_probe_read_kernel_str_bytes,
        generated::{bpf_get_current_ancestor_cgroup_id, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id},
    },
};
use sidestep_abi::{
    container::{Container, INIT_NONE},
    event,
    kernel::{Control, Limits, MAX_ROOTS, PREFIX_SPACE, Root, START_UNIT},
};

use crate::{
    emit,
    generation::{self, Order},
    kernel::{self, Cgroup},
    maps::{CONTAINERS, CONTROL, DECISION_SLOTS, DECISIONS, MEMBERS, RING, ROOT_INDEX},
};

/// Depth to which a cgroup's ancestors are searched for a governed root.
const MAX_ANCESTORS: usize = 12;

/// A process below a governed root.
#[derive(Clone, Copy)]
pub(crate) struct Governed {
    pub(crate) control: &'static Control,
    pub(crate) cgroup: u64,
    pub(crate) tgid: u32,
    pub(crate) tid: u32,
}

#[inline(always)]
pub(crate) fn control() -> Option<&'static Control> {
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: the map has one entry, which lives as long as the program; the agent replaces it word by word, and each
    // word stands for itself.
    Some(unsafe { &*control })
}

/// The current process, when it is below a governed root and not the agent itself, and the event is for this set of
/// programs.
#[inline(always)]
pub(crate) fn governed(order: Order) -> Option<Governed> {
    if !generation::acts(order) {
        return None;
    }
    let control = control()?;
    // SAFETY: the helper has no arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if !is_current_governed(control, cgroup) {
        return None;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if tgid == control.agent_tgid && is_agent(control) != 0 {
        return None;
    }
    Some(Governed { control, cgroup, tgid, tid: pid_tgid as u32 })
}

/// Whether the current process, which has the agent's number, is the agent: while none runs, the number may be another's.
#[inline(never)]
fn is_agent(control: &Control) -> u64 {
    u64::from(kernel::current_started() / START_UNIT == control.agent_started)
}

/// Whether `cgroup`, the current process' own, is governed: remembered by its id, since the answer holds for as long
/// as the roots do, and a search costs a call of a helper for each of them. A slot is one word (generation, id,
/// answer), so what another CPU writes at the same time is as good.
#[inline(always)]
fn is_current_governed(control: &Control, cgroup: u64) -> bool {
    // Read before the roots are: the agent raises it after it has written them.
    // SAFETY: a map value.
    let generation = unsafe { (&raw const control.generation).read_volatile() };
    // Ids are counted up from 1 and stay far below 2^47.
    let question = generation << 48 | cgroup << 1;
    let Some(slot) = DECISIONS.get_ptr_mut(cgroup as u32 & (DECISION_SLOTS - 1)) else { return false };
    // SAFETY: a map value of one word.
    let known = unsafe { slot.read_volatile() };
    if known & !1 == question {
        return known & 1 != 0;
    }
    // SAFETY: the helper takes any level and returns 0 where there is no such ancestor.
    let ancestor = |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    let governed = cgroup != control.agent_cgroup && is_below_root(control, ancestor);
    // SAFETY: as above.
    unsafe { slot.write_volatile(question | u64::from(governed)) };
    governed
}

/// Whether the cgroup whose ancestors these are is below a governed root.
#[inline(always)]
fn is_below_root(control: &Control, ancestor: impl Fn(i32) -> u64) -> bool {
    for index in 0..MAX_ROOTS {
        if index >= control.roots_len as usize {
            break;
        }
        let root = &control.roots[index];
        if ancestor(root.level as i32) != root.id {
            continue;
        }
        if root.prefix_len == 0 || MEMBERS.get_ptr(&ancestor(root.level as i32 + 1)).is_some() {
            return true;
        }
    }
    false
}

/// Whether a packet has the socket of a process that is below no governed root. What comes from elsewhere has none here.
#[inline(always)]
pub(crate) fn is_sent_by_node(control: &Control, skb: *mut __sk_buff) -> bool {
    // SAFETY: the context of the program; the helpers return 0 where there is no socket, or no such ancestor.
    if unsafe { bpf_skb_cgroup_id(skb) } == 0 {
        return false;
    }
    // SAFETY: as above.
    !is_below_root(control, |level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) })
}

/// Whether `cgroup`, the current process' own, lies below that of a container, which has made it: it is part of that
/// container then, whose standard streams are known.
#[inline(always)]
pub(crate) fn is_current_inside_container(cgroup: u64) -> bool {
    for level in 1..MAX_ANCESTORS {
        // SAFETY: the helper takes any level and returns 0 where there is no such ancestor.
        let above = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if above == 0 || above == cgroup {
            return false;
        }
        // SAFETY: a map value, checked by the verifier.
        if CONTAINERS.get_ptr(&above).is_some_and(|container| unsafe { (*container).init } != INIT_NONE) {
            return true;
        }
    }
    false
}

/// Whether a cgroup that was just made, or is about to go, is below a governed root. Children that match a root's
/// prefix become members here, before any process can be in them.
#[inline(always)]
pub(crate) fn is_governed(control: &Control, cgroup: Cgroup) -> bool {
    let mut child = cgroup;
    for _ in 0..MAX_ANCESTORS {
        let Some(parent) = child.parent() else { return false };
        if let Some(index) = ROOT_INDEX.get_ptr(&parent.id()) {
            // SAFETY: a map value, checked by the verifier.
            let index = unsafe { *index } as usize;
            if index >= MAX_ROOTS {
                return false;
            }
            let root = &control.roots[index];
            if root.prefix_len == 0 {
                return true;
            }
            if matches_prefix(root, child) {
                if MEMBERS.insert(&child.id(), &1, 0).is_err() {
                    // The agent looks at all cgroups then, and enters it as soon as there is room.
                    emit::lose(event::CGROUP_MADE);
                }
                return true;
            }
        }
        child = parent;
    }
    false
}

#[inline(never)]
fn matches_prefix(root: &Root, child: Cgroup) -> bool {
    let mut name = [0u8; PREFIX_SPACE];
    // SAFETY: the helper reads at most the size of the buffer and fails on a bad address.
    let _ = unsafe { bpf_probe_read_kernel_str_bytes(child.name(), &mut name) };
    // The loop neither ends early nor branches: with an end that depends on data, the optimiser compares the index
    // with the smaller bound for equality, in which the verifier of Linux 6.1 sees no bound; and each branch would
    // double the verifier's work.
    let mut difference = 0;
    for index in 0..PREFIX_SPACE {
        let inside = (index as i64 - i64::from(root.prefix_len)) >> 63;
        difference |= (name[index] ^ root.prefix[index]) & inside as u8;
    }
    difference == 0
}

/// The container of a cgroup, entered when it is new. `None` when the map is full.
#[inline(always)]
pub(crate) fn container(cgroup: u64) -> Option<*mut Container> {
    if let Some(container) = CONTAINERS.get_ptr_mut(&cgroup) {
        return Some(container);
    }
    let empty = Container { newer: 0, older: 0, mark: 0, unasked: 0, init: INIT_NONE, _pad: 0 };
    // Another CPU may have been first; what it entered is as good.
    let _ = CONTAINERS.insert(&cgroup, &empty, u64::from(BPF_NOEXIST));
    CONTAINERS.get_ptr_mut(&cgroup)
}

/// What a container may hold of the ring with records of one kind.
#[derive(Clone, Copy)]
pub(crate) struct Share<'a> {
    limits: &'a Limits,
    container: *mut Container,
}

/// This part of the ring at most is reserved before it is asked again what all hold: until then a container pays one
/// addition.
const UNASKED: u64 = 64;

impl<'a> Share<'a> {
    /// For standard streams: all that the container has. `None` when the map of containers is full.
    #[inline(always)]
    pub(crate) fn of_stdio(control: &'a Control, cgroup: u64) -> Option<Self> {
        Some(Self { limits: &control.stdio, container: container(cgroup)? })
    }

    /// For files and their announcements: half of it at most, since what the ring does not hold of a file is read back,
    /// and what it does not hold of stdout is lost.
    #[inline(always)]
    pub(crate) fn of_files(control: &'a Control, cgroup: u64) -> Option<Self> {
        Some(Self { limits: &control.files, container: container(cgroup)? })
    }

    /// Books `size` bytes of the ring; `false` when the container holds its share already.
    #[inline(always)]
    pub(crate) fn take(&self, size: u64) -> bool {
        // SAFETY: a pointer to a map value, checked by the verifier.
        let (newer, unasked) = unsafe { ((*self.container).newer, (*self.container).unasked) };
        if newer + size > unasked && take_asking(self.limits, self.container, size) == 0 {
            return false;
        }
        // SAFETY: as above.
        emit::add(unsafe { &raw mut (*self.container).newer }, size);
        true
    }
}

/// Whether a container may hold `size` bytes more; 0 when it may not.
///
/// Its limit is a part of what is free, so it sinks as others take more: however many flood, some of the ring stays free
/// for those that write little (dynamic thresholds: Choudhury and Hahne, 1998).
///
/// What a container holds is bounded from above without the reader's help: all it reserved since a mark in the ring,
/// and in the window before. When the consumer has passed the mark, the older window is drained, and the newer one takes
/// its place.
///
/// A container that holds nothing may always have one record, or one that is larger than the share never came through.
#[inline(never)]
fn take_asking(limits: &Limits, container: *mut Container, size: u64) -> u64 {
    // SAFETY: a pointer to a map value, checked by the verifier; windows of other CPUs may be seen half turned, which
    // makes the bound wrong by one window at most.
    let state = unsafe { &mut *container };
    let consumed = RING.query(u64::from(BPF_RB_CONS_POS));
    let produced = RING.query(u64::from(BPF_RB_PROD_POS));
    if produced == consumed {
        state.older = 0;
        state.newer = 0;
        state.mark = produced;
    } else if consumed >= state.mark {
        state.older = state.newer;
        state.newer = 0;
        state.mark = produced;
    }
    let free = limits.ring_size.saturating_sub(produced.saturating_sub(consumed));
    let dynamic = (free * limits.free_share) >> 10;
    let limit = if dynamic < limits.share { dynamic } else { limits.share };
    let held = state.older + state.newer;
    if held > 0 && held + size > limit {
        state.unasked = state.newer;
        return 0;
    }
    // Half of what is left, so that it is asked the more often the less that is.
    let left = limit.saturating_sub(held + size) / 2;
    let most = limits.ring_size / UNASKED;
    state.unasked = state.newer + size + if left < most { left } else { most };
    1
}
