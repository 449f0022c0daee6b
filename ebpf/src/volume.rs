//! Limits of packets and of bytes, kept at the Pod's interface on the node.
//!
//! A limit of bytes that drops what is too much, and nothing before, drops many packets in a row, of all who send: those who
//! send much slow down late, and who asks for little waits for a time-out. So large packets are dropped more and more often
//! before the limit is used up (random early detection: Floyd and Jacobson, 1993), or marked where both ends understand that
//! (RFC 3168), and the last of it is left to small packets: requests, answers of names, acknowledgements.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_prandom_u32, bpf_skb_ecn_set_ce},
    },
};
use sidestep_abi::{
    govern::{
        BYTES, BYTES_IN, BYTES_OUT, BucketKey, Governed, OBSERVES, PACKETS_IN, PACKETS_OUT, REASON_BYTE_RATE,
        REASON_PACKET_RATE, Rate, TIERS, Tier, state_of,
    },
    http::Interface,
};

use crate::{
    emit, flows,
    govern::{self, MAX_SKEW, MAX_TRIES},
    packet::{DROP, PASS, Packet},
    refusals::{self, What},
};

/// Packets of fewer bytes have all of a limit.
const SMALL: u32 = 1024;
/// The largest packet is not larger than so many times [`BYTES`] (`GSO_MAX_SIZE`, `include/linux/netdevice.h`).
const LARGEST: u64 = 8;

/// Nor has it more segments, of the usual size.
const MOST_SEGMENTS: u64 = 512;

/// What a limit says of a packet.
const REFUSED: u64 = 0;
const WITHIN: u64 = 1;
/// It is within, and who sends is to be told to send less.
const CROWDED: u64 = 2;

/// Behind the bits of all limits, those of the tiers for which a packet is to be marked.
const CROWDED_BIT: usize = 2 * TIERS;

/// A packet goes to the Pod, or comes from it.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    ToPod,
    FromPod,
}

/// What a packet takes of a limit.
struct Taking<'a> {
    key: BucketKey,
    rate: &'a Rate,
    what: What,
    /// Nanoseconds of the rate.
    cost: u64,
}

/// A packet that all else has let through.
#[inline(always)]
pub(crate) fn judge(skb: *mut __sk_buff, packet: &mut Packet, interface: &Interface, way: Way) -> i32 {
    // What finds neighbours is nothing that comes again, and what these programs have made is in the place of what was refused.
    if packet.is_vital != 0 || packet.is_made != 0 {
        return PASS;
    }
    let cgroup = interface.cgroup;
    let Some((_, governed)) = govern::of(cgroup) else { return PASS };
    packet.measure(skb);
    packet.forget_taken();
    for index in 0..TIERS {
        let tier = &governed.tiers[index];
        for of_bytes in [false, true] {
            let Some(taking) = taking(packet, cgroup, (index, tier), way, of_bytes) else { continue };
            let said = if of_bytes {
                take_bytes(&taking.key, taking.rate, packet, taking.cost)
            } else {
                govern::take_some(
                    &taking.key,
                    taking.rate,
                    &packet.key.client,
                    u64::from(packet.segments),
                    MOST_SEGMENTS,
                )
            };
            if said == REFUSED {
                let is_exempt = matches!(way, Way::ToPod) && flows::is_from_node(skb) != 0;
                if is_exempt || packet.counted.let_through(cgroup, index, tier, taking.what, true) {
                    continue;
                }
                give_back(packet, governed, cgroup, way);
                return DROP;
            }
            packet.note_taken(number(index, of_bytes));
            if said == CROWDED && tier.flags & OBSERVES == 0 {
                packet.note_taken(CROWDED_BIT + index);
            }
        }
    }
    mark(skb, packet, cgroup, way);
    PASS
}

/// Marks a packet that is let through by all, for those limits of bytes that are nearly used up.
#[inline(always)]
fn mark(skb: *mut __sk_buff, packet: &Packet, cgroup: u64, way: Way) {
    // SAFETY: the context of the program.
    if packet.taken >> CROWDED_BIT == 0 || unsafe { bpf_skb_ecn_set_ce(skb) } == 0 {
        return;
    }
    for index in 0..TIERS {
        if packet.taken >> (CROWDED_BIT + index) & 1 != 0 {
            refusals::mark(cgroup, index, what(way, REASON_BYTE_RATE));
        }
    }
}

/// As [`What`] has it.
#[inline(always)]
fn what(way: Way, reason: u8) -> What {
    match way {
        Way::ToPod => What::ingress(reason),
        Way::FromPod => What::egress(reason),
    }
}

/// What the packet takes of a tier's limit; `None` when there is none.
#[inline(always)]
fn taking<'a>(
    packet: &Packet,
    cgroup: u64,
    (index, tier): (usize, &'a Tier),
    way: Way,
    of_bytes: bool,
) -> Option<Taking<'a>> {
    let (limit, reason) = match (way, of_bytes) {
        (Way::ToPod, false) => (PACKETS_IN, REASON_PACKET_RATE),
        (Way::ToPod, true) => (BYTES_IN, REASON_BYTE_RATE),
        (Way::FromPod, false) => (PACKETS_OUT, REASON_PACKET_RATE),
        (Way::FromPod, true) => (BYTES_OUT, REASON_BYTE_RATE),
    };
    let rate = &tier.limits[limit];
    if rate.interval == 0 {
        return None;
    }
    let key = BucketKey { cgroup, limit: state_of(limit, index), _pad: 0 };
    let cost = if of_bytes {
        (u64::from(packet.len) * rate.interval + BYTES - 1) / BYTES
    } else {
        u64::from(packet.segments) * rate.interval
    };
    Some(Taking { key, rate, what: what(way, reason), cost })
}

/// A limit among those of all tiers, as a bit of what was taken.
#[inline(always)]
const fn number(tier: usize, of_bytes: bool) -> usize {
    tier * 2 + of_bytes as usize
}

/// A packet that is dropped takes nothing from the limits that it was within.
#[inline(always)]
fn give_back(packet: &Packet, governed: &Governed, cgroup: u64, way: Way) {
    for index in 0..TIERS {
        for of_bytes in [false, true] {
            if packet.taken >> number(index, of_bytes) & 1 == 0 {
                continue;
            }
            if let Some(taking) = taking(packet, cgroup, (index, &governed.tiers[index]), way, of_bytes) {
                govern::give_back(&taking.key, taking.rate, &packet.key.client, taking.cost);
            }
        }
    }
}

/// Takes a packet's bytes from a limit.
#[inline(never)]
fn take_bytes(key: &BucketKey, rate: &Rate, packet: &Packet, cost: u64) -> u64 {
    let Some(bucket) = govern::bucket(key, rate, &packet.key.client) else { return govern::unlimited(rate) };
    let is_small = packet.len < SMALL;
    // SAFETY: helpers without arguments.
    let (now, chance) = unsafe { (bpf_ktime_get_ns(), bpf_get_prandom_u32() & 0xffff) };
    // SAFETY: a map value of one word.
    let mut known = unsafe { bucket.read_volatile() };
    for _ in 0..MAX_TRIES {
        // As in `govern::spend`; one packet may be larger than what is let through at once.
        let most = now + rate.tolerance + LARGEST * rate.interval;
        if known > most + MAX_SKEW {
            let _ = emit::exchange(bucket, known, most);
            return REFUSED;
        }
        let arrival = if known > now { known } else { now };
        let owed = arrival - now + cost;
        // What is larger than all that may come at once comes when nothing is owed.
        let most = if is_small { rate.tolerance } else { rate.tolerance - rate.tolerance / 8 };
        if owed > most && arrival != now {
            return REFUSED;
        }
        let is_crowded = !is_small && arrival != now && is_crowded(owed, rate.tolerance, u64::from(chance));
        if is_crowded && packet.is_ecn == 0 {
            return REFUSED;
        }
        let (before, changed) = emit::exchange(bucket, known, arrival + cost);
        if changed {
            return if is_crowded { CROWDED } else { WITHIN };
        }
        known = before;
    }
    // So many were faster.
    REFUSED
}

/// Whether a packet, by `chance` of 2^16, is one of those that tell who sends to slow down: none before three quarters of what may
/// come at once are used, all where seven eighths are.
#[inline(always)]
fn is_crowded(owed: u64, tolerance: u64, chance: u64) -> bool {
    let begin = tolerance - tolerance / 4;
    owed > begin && (owed - begin) << 16 > chance * (tolerance / 8)
}
