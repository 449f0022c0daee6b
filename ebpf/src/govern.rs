//! What a Pod may do: its lists and its limits.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated::bpf_get_current_ancestor_cgroup_id},
    maps::lpm_trie::Key,
};
use sidestep_abi::{
    govern::{
        ALLOWED_BITS, AllowedKey, AskerKey, BucketKey, CONNECTIONS_OUT, ClientKey, Governed, GovernedKey, LISTS_EGRESS,
        MAX_RANGES, PER_CLIENT, REASON_CONNECTION_RATE, REASON_NOT_ALLOWED, Rate, TIERS, WORKLOADS, state_of,
    },
    http::ConnectionKey,
};

use crate::{
    emit,
    generation::{self, Order},
    maps::{ALLOWED, ASKERS, BUCKETS, CLIENTS, GOVERNED, GOVERNING},
    packet::IPPROTO_TCP,
    refusals::{self, Counted, Detail, What},
};

/// Depth to which a cgroup's ancestors are searched for a Pod's.
const MAX_ANCESTORS: usize = 12;
/// By which the clocks of two CPUs may differ, in nanoseconds, and more.
pub(crate) const MAX_SKEW: u64 = 1_000_000;
/// For so long may a datagram be answered: as long as `nf_conntrack_udp_timeout_stream` has it, and more.
pub(crate) const ANSWERED_FOR: u64 = 180_000_000_000;
/// Tries to change the state of a limit: each failure means that another CPU has succeeded.
pub(crate) const MAX_TRIES: usize = 16;

/// The other end.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    /// Mapped when it is of IPv4.
    pub(crate) address: [u8; 16],
    pub(crate) port: u16,
    pub(crate) protocol: u8,
}

/// Something that a Pod does.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Act {
    /// It opens a connection, or names the only peer of a socket.
    Connect,
    /// It sends a datagram to somebody.
    Send,
}

/// Whether the current process may do that.
#[inline(always)]
pub(crate) fn may(act: Act, peer: &Peer) -> bool {
    let mut counted = Counted::NOTHING;
    let may = judge(act, peer, &mut counted);
    if counted.is_any() {
        let Peer { address: client, port: client_port, protocol } = *peer;
        let ends = ConnectionKey { client, pod: [0; 16], client_port, pod_port: 0, interface: 0 };
        counted.tell(&ends, protocol, Detail::Process(bpf_get_current_pid_tgid()));
    }
    may
}

#[inline(always)]
fn judge(act: Act, peer: &Peer, counted: &mut Counted) -> bool {
    let Some((cgroup, governed)) = current() else { return true };
    // While the programs of two agents are attached, both go by the lists, and one of them takes tokens and counts.
    let acts = generation::acts(Order::OldestFirst);
    // Lists come first: what one of them refuses takes no token.
    for index in 0..TIERS {
        let tier = &governed.tiers[index];
        if tier.flags & LISTS_EGRESS != 0
            && is_allowed(peer, tier.egress) == 0
            && !has_asked(cgroup, peer)
            && !counted.let_through(cgroup, index, tier, What::egress(REASON_NOT_ALLOWED), acts)
        {
            return false;
        }
    }
    // A socket of datagrams that has a peer is no connection: a look-up of a name makes several.
    if !acts || act != Act::Connect || peer.protocol != IPPROTO_TCP {
        return true;
    }
    for index in 0..TIERS {
        let tier = &governed.tiers[index];
        let rate = &tier.limits[CONNECTIONS_OUT];
        if rate.interval != 0
            && take(&BucketKey { cgroup, limit: state_of(CONNECTIONS_OUT, index), _pad: 0 }, rate, &peer.address) == 0
            && !counted.let_through(cgroup, index, tier, What::egress(REASON_CONNECTION_RATE), acts)
        {
            return false;
        }
    }
    true
}

/// Whether the peer has sent a datagram to the Pod a while ago, which may be answered.
#[inline(always)]
fn has_asked(cgroup: u64, peer: &Peer) -> bool {
    if peer.protocol == IPPROTO_TCP {
        return false;
    }
    let Peer { address, port, protocol } = *peer;
    let Some(seen) = ASKERS.get_ptr(&AskerKey { cgroup, address, port, protocol, _pad: [0; 5] }) else { return false };
    // SAFETY: a map value of one word, and a helper without arguments.
    unsafe { bpf_ktime_get_ns().saturating_sub(seen.read_volatile()) < ANSWERED_FOR }
}

/// The Pod of the current process and what holds for it.
#[inline(always)]
fn current() -> Option<(u64, &'static Governed)> {
    in_force(find)
}

/// What holds for a Pod, and the generation that says so.
#[inline(always)]
pub(crate) fn of(cgroup: u64) -> Option<(u32, &'static Governed)> {
    in_force(|generation| Some((generation, get(cgroup, generation)?)))
}

/// Another generation may come while something of the one in force is looked for, and this one go.
#[inline(always)]
fn in_force<T>(find: impl Fn(u32) -> Option<T>) -> Option<T> {
    let mut generation = governing()?;
    for _ in 0..2 {
        if let Some(found) = find(generation) {
            return Some(found);
        }
        let now = governing()?;
        if now == generation {
            return None;
        }
        generation = now;
    }
    None
}

/// The generation that is in force.
#[inline(always)]
fn governing() -> Option<u32> {
    let generation = GOVERNING.get_ptr(0)?;
    // SAFETY: a map value of one word.
    let generation = unsafe { generation.read_volatile() } as u32;
    (generation != 0).then_some(generation)
}

/// The Pod of the current process and what holds for it in a generation.
#[inline(always)]
fn find(generation: u32) -> Option<(u64, &'static Governed)> {
    for level in 1..=MAX_ANCESTORS {
        // SAFETY: the helper takes any level and returns 0 where there is no such ancestor.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if cgroup == 0 {
            return None;
        }
        if let Some(governed) = get(cgroup, generation) {
            return Some((cgroup, governed));
        }
    }
    None
}

#[inline(always)]
fn get(cgroup: u64, generation: u32) -> Option<&'static Governed> {
    let governed = GOVERNED.get_ptr(&GovernedKey { cgroup, generation, _pad: 0 })?;
    // SAFETY: a map value; it does not change, and goes only seconds after its generation.
    Some(unsafe { &*governed })
}

/// Whether a list has the peer; 0 when it has not.
#[inline(never)]
pub(crate) fn is_allowed(peer: &Peer, list: u32) -> u64 {
    let list = list << 1 | u32::from(is_mapped(&peer.address));
    let key = Key::new(ALLOWED_BITS + 128, AllowedKey { list, address: peer.address });
    let Some(allowed) = ALLOWED.get(&key) else { return 0 };
    for index in 0..MAX_RANGES {
        if index as u64 >= allowed.len {
            break;
        }
        let range = &allowed.ranges[index];
        if (range.protocol == 0 || range.protocol == peer.protocol)
            && range.first <= peer.port
            && peer.port <= range.last
        {
            return 1;
        }
    }
    0
}

/// Whether it is an IPv4 address, mapped.
#[inline(always)]
fn is_mapped(address: &[u8; 16]) -> bool {
    let mut zeros = 0;
    for byte in &address[..10] {
        zeros |= *byte;
    }
    zeros == 0 && address[10] == 0xff && address[11] == 0xff
}

/// Takes one from a limit; 0 when none is left.
#[inline(always)]
pub(crate) fn take(key: &BucketKey, rate: &Rate, client: &[u8; 16]) -> u64 {
    take_some(key, rate, client, 1, 1)
}

/// Takes several where there is one left; no more than the `largest` number at once that there is.
#[inline(never)]
pub(crate) fn take_some(key: &BucketKey, rate: &Rate, client: &[u8; 16], count: u64, largest: u64) -> u64 {
    match bucket(key, rate, client) {
        Some(bucket) => spend(bucket, rate, count, largest),
        None => unlimited(rate),
    }
}

/// When there is no room for its state it has no limit; a client's may have been evicted this moment.
#[inline(always)]
pub(crate) fn unlimited(rate: &Rate) -> u64 {
    if rate.per != PER_CLIENT {
        refusals::lose();
    }
    1
}

/// The state of a limit.
#[inline(always)]
pub(crate) fn bucket(key: &BucketKey, rate: &Rate, client: &[u8; 16]) -> Option<*mut u64> {
    if rate.per == PER_CLIENT {
        let key = ClientKey { bucket: *key, client: *client };
        if let Some(bucket) = CLIENTS.get_ptr_mut(&key) {
            return Some(bucket);
        }
        // Another CPU may have been first.
        let _ = CLIENTS.insert(&key, &0, u64::from(BPF_NOEXIST));
        return CLIENTS.get_ptr_mut(&key);
    }
    let key = &shared(key, rate);
    if let Some(bucket) = BUCKETS.get_ptr_mut(key) {
        return Some(bucket);
    }
    let _ = BUCKETS.insert(key, &0, u64::from(BPF_NOEXIST));
    BUCKETS.get_ptr_mut(key)
}

/// Whose state it is that a rate of a Pod has: the Pod's own, or its workload's.
#[inline(always)]
fn shared(key: &BucketKey, rate: &Rate) -> BucketKey {
    BucketKey { cgroup: if rate.per >= WORKLOADS { rate.per } else { key.cgroup }, ..*key }
}

/// The state is one word, the theoretical arrival time of the next, so that it is exact whatever number of CPUs takes.
#[inline(always)]
fn spend(bucket: *mut u64, rate: &Rate, count: u64, largest: u64) -> u64 {
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a map value of one word.
    let mut known = unsafe { bucket.read_volatile() };
    for _ in 0..MAX_TRIES {
        // Debts of a rate that was lower, or of a burst that was larger, are no more than this one could have.
        let most = now + rate.tolerance + largest * rate.interval;
        if known > most + MAX_SKEW {
            // When another CPU was first, it has done this or more.
            let _ = emit::exchange(bucket, known, most);
            return 0;
        }
        let arrival = if known > now { known } else { now };
        if arrival - now > rate.tolerance {
            return 0;
        }
        let (before, changed) = emit::exchange(bucket, known, arrival + count * rate.interval);
        if changed {
            return 1;
        }
        known = before;
    }
    // So many were faster.
    0
}

/// Gives back what was taken: nanoseconds of the rate.
#[inline(always)]
pub(crate) fn give_back(key: &BucketKey, rate: &Rate, client: &[u8; 16], cost: u64) {
    let bucket = match rate.per {
        PER_CLIENT => CLIENTS.get_ptr_mut(&ClientKey { bucket: *key, client: *client }),
        _ => BUCKETS.get_ptr_mut(&shared(key, rate)),
    };
    if let Some(bucket) = bucket {
        emit::add(bucket, cost.wrapping_neg());
    }
}
