//! Governance: what a Pod may reach and how often, and what was refused.
//!
//! What holds for all Pods together is a generation. The agent writes a generation beside the one that is in force, and then
//! one word makes it act, so there is no moment with half of it. Lists have numbers that are never used again, and do not
//! change: a generation that has the same list names it by the same number.

use crate::{Header, assert_layout, http::ConnectionKey, pod};

/// Peers of connections that the Pod opens are those of its list alone.
pub const LISTS_EGRESS: u32 = 1;
/// What would be refused is counted, and let through.
pub const OBSERVES: u32 = 2;
/// Peers who open connections to the Pod are those of its list alone.
pub const LISTS_INGRESS: u32 = 4;

/// The number of a list that has nothing.
pub const NOTHING: u32 = 0;

/// The peer is on no list.
pub const REASON_NOT_ALLOWED: u8 = 1;
/// There were too many new connections.
pub const REASON_CONNECTION_RATE: u8 = 2;
/// There were too many HTTP requests.
pub const REASON_REQUEST_RATE: u8 = 3;
/// There were too many packets.
pub const REASON_PACKET_RATE: u8 = 4;
/// There were too many bytes.
pub const REASON_BYTE_RATE: u8 = 5;

/// It was refused.
pub const OUTCOME_REFUSED: u8 = 0;
/// It was let through, as what is observed is.
pub const OUTCOME_OBSERVED: u8 = 1;
/// It was let through, and the other end is told to send less (RFC 3168).
pub const OUTCOME_MARKED: u8 = 2;

/// The Pod opens the connection, or sends.
pub const EGRESS: u8 = 1;
/// Somebody opens the connection to the Pod, or sends to it.
pub const INGRESS: u8 = 2;

/// New TCP connections that a Pod opens; of [`Tier::limits`], as those that follow.
pub const CONNECTIONS_OUT: usize = 0;
/// New TCP connections that others open to it.
pub const CONNECTIONS_IN: usize = 1;
/// Packets that it sends.
pub const PACKETS_OUT: usize = 2;
/// Packets that come to it.
pub const PACKETS_IN: usize = 3;
/// Bytes of the packets that it sends; a [`Rate`] of these is one of [`BYTES`].
pub const BYTES_OUT: usize = 4;
/// Bytes of the packets that come to it.
pub const BYTES_IN: usize = 5;
/// Limits of which a tier has one each.
pub const LIMITS: usize = 6;

/// What a rate of bytes counts, so that a nanosecond is short enough.
pub const BYTES: u64 = 1 << 16;

/// The state of a limit of [`Tier::limits`], as [`BucketKey::limit`].
#[must_use]
pub const fn state_of(limit: usize, tier: usize) -> u32 {
    (limit as u32 + 1) << 8 | tier as u32
}

/// Records of refusals ([`Refusal`]); direction and mode are added.
pub const LIMIT_RECORDS: u32 = 1 << 16;
/// This bit is that of rules of HTTP requests: [`crate::http::HttpRule::limit`].
pub const LIMIT_REQUESTS: u32 = 1 << 31;

/// Tiers of policies: a Pod may do what all of them let it do.
pub const TIERS: usize = 4;

/// A Pod in a generation.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(C, align(8))]
pub struct GovernedKey {
    /// The Pod's cgroup, or that of a container that has none.
    pub cgroup: u64,
    /// The generation.
    pub generation: u32,
    /// Zero.
    pub _pad: u32,
}
assert_layout!(GovernedKey, size 16);

/// A rate as the generic cell rate algorithm has it (ITU-T I.371, annex A); no limit when `interval` is 0.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct Rate {
    /// Nanoseconds for each.
    pub interval: u64,
    /// Nanoseconds by which they may come too early: intervals of the burst but one.
    pub tolerance: u64,
    /// [`PER_POD`], [`PER_CLIENT`], or the number of a workload, from [`WORKLOADS`] on: all of its Pods of the node together have it.
    pub per: u64,
}
assert_layout!(Rate, size 24);

/// All together have the rate.
pub const PER_POD: u64 = 0;
/// Each address of the other end has it.
pub const PER_CLIENT: u64 = 1;
/// The numbers of workloads, which stand in the place of a Pod's cgroup in [`BucketKey::cgroup`]: more than there are cgroups.
pub const WORKLOADS: u64 = 1 << 63;

/// What holds for a Pod.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct Governed {
    /// By tier.
    pub tiers: [Tier; TIERS],
}
assert_layout!(Governed, size 640);

/// What the policies of one tier say.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct Tier {
    /// `LISTS_*` and [`OBSERVES`].
    pub flags: u32,
    /// The list of peers of connections that it opens.
    pub egress: u32,
    /// The list of peers who open connections to it.
    pub ingress: u32,
    /// The set of rules for HTTP requests that come to it.
    pub requests: u32,
    /// Its limits, by their indices.
    pub limits: [Rate; LIMITS],
}
assert_layout!(Tier, size 160);

/// A network of a list, behind a prefix length that counts from `list` on. IPv4 addresses are mapped (RFC 4291, 2.5.5.2).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct AllowedKey {
    /// The list's number, and in the lowest bit whether the network is of IPv4: `::/0` has none of those.
    pub list: u32,
    /// The address.
    pub address: [u8; 16],
}
const _: () = assert!(size_of::<AllowedKey>() == 20 && align_of::<AllowedKey>() == 4);

/// Bits of [`AllowedKey`] before the address.
pub const ALLOWED_BITS: u32 = 32;

/// Ranges of ports of one network, its wider networks' included.
pub const MAX_RANGES: usize = 16;

/// What is allowed to a network.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct Allowed {
    /// How many of `ranges` count.
    pub len: u64,
    /// Protocols and ports.
    pub ranges: [PortRange; MAX_RANGES],
}
assert_layout!(Allowed, size 136);

/// Ports of a protocol.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
    /// `IPPROTO_*`; 0 stands for all.
    pub protocol: u8,
    /// Zero.
    pub _pad: [u8; 3],
}
const _: () = assert!(size_of::<PortRange>() == 8);

/// Names the state of a limit: it outlives generations.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(C, align(8))]
pub struct BucketKey {
    /// As [`GovernedKey::cgroup`], or the number of a workload.
    pub cgroup: u64,
    /// `LIMIT_*`
    pub limit: u32,
    /// Zero.
    pub _pad: u32,
}
assert_layout!(BucketKey, size 16);

/// The same of one client.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(C, align(8))]
pub struct ClientKey {
    /// Whose limit.
    pub bucket: BucketKey,
    /// The client's address, mapped when it is of IPv4.
    pub client: [u8; 16],
}
assert_layout!(ClientKey, size 32);

/// A connection, or datagrams between two ends, of a Pod that has lists.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// Its ends.
    pub ends: ConnectionKey,
    /// `IPPROTO_*`
    pub protocol: u32,
    /// Zero.
    pub _pad: u32,
}
assert_layout!(FlowKey, size 48);

/// What is known of one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct Flow {
    /// The generation by whose list it was judged; 0 for none.
    pub generation: u32,
    /// `FLOW_*`
    pub flags: u32,
    /// When the last datagram of either end passed, within a second: nanoseconds of `CLOCK_MONOTONIC`.
    pub seen: u64,
}
assert_layout!(Flow, size 16);

/// The other end began it.
pub const FLOW_TO_POD: u32 = 1;
/// The Pod began it.
pub const FLOW_FROM_POD: u32 = 2;
/// Its list does not have the other end.
pub const FLOW_REFUSED: u32 = 4;
/// The other end is the node itself.
pub const FLOW_EXEMPT: u32 = 8;
/// A list that is observed does not have the other end, and that was counted.
pub const FLOW_OBSERVED: u32 = 16;

/// Somebody who has sent datagrams to a Pod, and may have an answer.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(C, align(8))]
pub struct AskerKey {
    /// As [`GovernedKey::cgroup`].
    pub cgroup: u64,
    /// The address, mapped when it is of IPv4.
    pub address: [u8; 16],
    /// The port.
    pub port: u16,
    /// `IPPROTO_*`
    pub protocol: u8,
    /// Zero.
    pub _pad: [u8; 5],
}
assert_layout!(AskerKey, size 32);

/// What was refused, or would have been.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(C, align(8))]
pub struct RefusedKey {
    /// As [`GovernedKey::cgroup`].
    pub cgroup: u64,
    /// `REASON_*`
    pub reason: u8,
    /// [`EGRESS`] or [`INGRESS`]
    pub direction: u8,
    /// Whether it was refused, `OUTCOME_*`.
    pub outcome: u8,
    /// Whose policies have refused it.
    pub tier: u8,
    /// The rule, [`crate::http::HttpRule::limit`]; 0 where a tier has one of a kind.
    pub limit: u32,
}
assert_layout!(RefusedKey, size 16);

/// Who was told of lately: the same peer is once a second, so that one who hammers leaves room for others.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(C, align(8))]
pub struct ToldKey {
    /// What was refused.
    pub refused: RefusedKey,
    /// To whom; mapped when it is of IPv4.
    pub peer: [u8; 16],
}
assert_layout!(ToldKey, size 32);

/// A refusal: those that are told of are a sample. Behind it stand the first `header.len` bytes of an HTTP request.
///
/// `header.cgroup` is the Pod's, as in [`GovernedKey`]; the process is the one that has asked at a system call.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Refusal {
    /// Of kind [`crate::event::REFUSED`].
    pub header: Header,
    /// What was refused.
    pub refused: RefusedKey,
    /// How many of the kind with this one.
    pub count: u64,
    /// The peer as the client; the Pod's end, which is all zero where it has none yet.
    pub ends: ConnectionKey,
    /// `IPPROTO_*`
    pub protocol: u32,
    /// Zero.
    pub _pad: u32,
}
assert_layout!(Refusal, size 104);

/// The most bytes of a request in a record.
pub const REQUEST_SPACE: usize = 128;

pod!(
    GovernedKey,
    Rate,
    Governed,
    Tier,
    AllowedKey,
    Allowed,
    PortRange,
    BucketKey,
    ClientKey,
    FlowKey,
    Flow,
    AskerKey,
    RefusedKey,
    ToldKey,
);
