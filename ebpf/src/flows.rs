//! Lists of peers, and limits of the connections that others open, kept at the Pod's interface on the node.
//!
//! What comes to the Pod is asked for here alone. What the Pod sends was asked for at its system calls, and is once more here:
//! there are sockets that no such call is made for (raw ones), and connections that were there before a policy was.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY},
    helpers::bpf_ktime_get_ns,
};
use sidestep_abi::{
    govern::{
        AskerKey, BucketKey, CONNECTIONS_IN, EGRESS, FLOW_EXEMPT, FLOW_FROM_POD, FLOW_OBSERVED, FLOW_REFUSED,
        FLOW_TO_POD, Flow, FlowKey, Governed, INGRESS, LISTS_EGRESS, LISTS_INGRESS, OBSERVES, REASON_CONNECTION_RATE,
        REASON_NOT_ALLOWED, TIERS, state_of,
    },
    http::Interface,
};

use crate::{
    govern::{self, ANSWERED_FOR, Peer},
    maps::{ASKERS, FLOWS},
    packet::{self, ACK, DROP, HANDSHAKE, IPPROTO_TCP, PASS, Packet, RST, SYN, Segment},
    policy,
    refusals::{Counted, What},
};

const LISTS: u32 = LISTS_EGRESS | LISTS_INGRESS;
/// A tier has a limit of connections that others open; beside `LISTS_*`.
const LIMITS_IN: u32 = 1 << 31;
/// How exactly it is known when the last one came.
const SEEN_UNIT: u64 = 1_000_000_000;

/// Which way a packet goes, and what is asked for in this direction.
#[derive(Clone, Copy)]
struct Way {
    to_pod: bool,
    /// Who has begun what is judged here.
    begun: u32,
    /// The lists that it is judged by.
    lists: u32,
}

const TO_POD: Way = Way { to_pod: true, begun: FLOW_TO_POD, lists: LISTS_INGRESS };
const FROM_POD: Way = Way { to_pod: false, begun: FLOW_FROM_POD, lists: LISTS_EGRESS };

/// What holds for the packets of a Pod.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    cgroup: u64,
    /// The number of the Pod's network.
    network: u32,
    generation: u32,
    governed: &'static Governed,
    /// What all tiers together say of: `LISTS_*` and [`LIMITS_IN`].
    said: u32,
}

impl Rules {
    /// `None` when nothing is said.
    #[inline(always)]
    pub(crate) fn of(interface: &Interface) -> Option<Self> {
        let (generation, governed) = govern::of(interface.cgroup)?;
        let mut said = 0;
        for tier in &governed.tiers {
            said |= tier.flags & LISTS;
            if tier.limits[CONNECTIONS_IN].interval != 0 {
                said |= LIMITS_IN;
            }
        }
        let (cgroup, network) = (interface.cgroup, interface.pod_network);
        (said != 0).then_some(Self { cgroup, network, generation, governed, said })
    }

    /// Whether what the Pod sends is looked at.
    #[inline(always)]
    pub(crate) fn has_lists(&self) -> bool {
        self.said & LISTS != 0
    }

    /// Whether a packet that comes to the Pod is let through.
    #[inline(always)]
    pub(crate) fn to_pod(self, skb: *mut __sk_buff, packet: &mut Packet) -> i32 {
        self.judge(skb, packet, TO_POD)
    }

    /// The same of one that the Pod sends.
    #[inline(always)]
    pub(crate) fn from_pod(self, skb: *mut __sk_buff, packet: &mut Packet) -> i32 {
        self.judge(skb, packet, FROM_POD)
    }

    #[inline(always)]
    fn judge(self, skb: *mut __sk_buff, packet: &mut Packet, way: Way) -> i32 {
        let key = FlowKey { ends: packet.key, protocol: u32::from(packet.protocol), _pad: 0 };
        let judged = Judged { rules: self, key: &key, way };
        if packet.protocol != IPPROTO_TCP {
            return judged.datagram(skb, packet);
        }
        if packet.flags & (SYN | ACK) == SYN {
            return judged.begins(skb, packet);
        }
        judged.goes_on(skb, packet)
    }

    /// Whether there is a token for a new connection; one that is begun again has its own already, and one to a port at which nobody
    /// listens takes none.
    #[inline(always)]
    fn is_within(&self, skb: *mut __sk_buff, packet: &mut Packet) -> bool {
        self.said & LIMITS_IN == 0
            || packet.look_up(skb, self.network, 1) == 0
            || packet.state == HANDSHAKE
            || take_connection(self.governed, self.cgroup, packet) != 0
    }
}

/// Whether a process of the node sends it, and no Pod: the kubelet's probes.
#[inline(never)]
pub(crate) fn is_from_node(skb: *mut __sk_buff) -> u64 {
    let Some(control) = policy::control() else { return 0 };
    u64::from(control.exempts_node != 0 && policy::is_sent_by_node(control, skb))
}

/// Whether what a socket of the Pod sends was asked for at its system call, and may have another address since: where programs of others
/// lead a Service's address to one of its Pods there (as Cilium's do), and not on the way.
#[inline(never)]
fn is_asked_before(skb: *mut __sk_buff) -> u64 {
    let Some(control) = policy::control() else { return 0 };
    u64::from(control.trusts_sockets != 0 && packet::has_asking_socket(skb) != 0)
}

/// A packet, and what it is judged by.
struct Judged<'a> {
    rules: Rules,
    key: &'a FlowKey,
    way: Way,
}

impl Judged<'_> {
    /// The first segment of a connection.
    #[inline(always)]
    fn begins(&self, skb: *mut __sk_buff, packet: &mut Packet) -> i32 {
        let mut flags = self.way.begun;
        if self.way.to_pod && self.rules.said & (LISTS_INGRESS | LIMITS_IN) != 0 {
            if is_from_node(skb) != 0 {
                flags |= FLOW_EXEMPT;
            } else {
                // A segment that is sent again is counted once.
                let listed = self.listed(skb, packet, self.known().flags);
                if listed & FLOW_REFUSED != 0 {
                    return refuse(skb, packet, self.way);
                }
                if !self.rules.is_within(skb, packet) {
                    return refuse(skb, packet, self.way);
                }
                flags |= listed;
            }
        }
        if !self.way.to_pod {
            // What is observed of a socket was counted when it was asked for at its system call.
            let listed = self.listed(skb, packet, FLOW_OBSERVED);
            if listed & FLOW_REFUSED != 0 {
                return refuse(skb, packet, self.way);
            }
            flags |= listed;
        }
        if self.rules.said & LISTS != 0 {
            self.note(flags, self.rules.generation, 0);
        }
        PASS
    }

    /// A segment of a connection that has begun, before the lists had perhaps: it is judged once by each generation, in the
    /// direction in which it was opened.
    #[inline(always)]
    fn goes_on(&self, skb: *mut __sk_buff, packet: &mut Packet) -> i32 {
        if self.rules.said & self.way.lists == 0 || packet.flags & RST != 0 && packet.payload_len == 0 {
            return PASS;
        }
        let known = self.known();
        let begun = known.flags & (FLOW_TO_POD | FLOW_FROM_POD);
        if begun == 0 {
            // Of a segment to the Pod that no connection of others' is there for, the Pod says what it is.
            let is_to_pod = packet.find_socket(skb, self.rules.network) != 0;
            if is_to_pod != self.way.to_pod {
                if is_to_pod {
                    self.note(FLOW_TO_POD, 0, 0);
                }
                return PASS;
            }
        } else if begun != self.way.begun {
            return PASS;
        }
        let mut flags = known.flags;
        if known.generation != self.rules.generation {
            flags = self.way.begun;
            flags |= if self.way.to_pod && is_from_node(skb) != 0 {
                FLOW_EXEMPT
            } else {
                self.listed(skb, packet, known.flags)
            };
            self.note(flags, self.rules.generation, 0);
        }
        if flags & FLOW_REFUSED == 0 { PASS } else { cut(skb, packet, self.way) }
    }

    /// What has no connection: who began it is who sent first.
    #[inline(always)]
    fn datagram(&self, skb: *mut __sk_buff, packet: &mut Packet) -> i32 {
        if self.rules.said & LISTS == 0 {
            return PASS;
        }
        // SAFETY: the helper has no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        let known = self.known();
        let since = now.saturating_sub(known.seen);
        let is_known = known.flags != 0 && since < ANSWERED_FOR;
        if is_known && known.flags & self.way.begun == 0 {
            if since >= SEEN_UNIT {
                self.note(known.flags, known.generation, now);
                if !self.way.to_pod {
                    self.note_asker(packet, now);
                }
            }
            return PASS;
        }
        let is_judged = is_known && known.generation == self.rules.generation;
        if is_judged && since < SEEN_UNIT {
            return PASS;
        }
        let mut flags = known.flags;
        if !is_judged {
            let is_exempt = self.way.to_pod && is_from_node(skb) != 0;
            // What is observed of a socket was counted at its system call.
            let counted = if self.way.to_pod { known.flags } else { FLOW_OBSERVED };
            flags = if is_exempt { FLOW_EXEMPT } else { self.listed(skb, packet, counted) };
            if flags & FLOW_REFUSED != 0 {
                return DROP;
            }
        }
        self.note(flags | self.way.begun, self.rules.generation, now);
        if self.way.to_pod {
            self.note_asker(packet, now);
        }
        PASS
    }

    /// Lets `sendmsg` know that the other end may be answered.
    #[inline(always)]
    fn note_asker(&self, packet: &Packet, now: u64) {
        if self.rules.said & LISTS_EGRESS == 0 {
            return;
        }
        let ends = &self.key.ends;
        let (cgroup, protocol) = (self.rules.cgroup, packet.protocol);
        let asker = AskerKey { cgroup, address: ends.client, port: ends.client_port, protocol, _pad: [0; 5] };
        let _ = ASKERS.insert(&asker, &now, u64::from(BPF_ANY));
    }

    /// What is known of it. An entry that is used anew at this moment is judged by what it says then, this once.
    #[inline(always)]
    fn known(&self) -> Flow {
        // SAFETY: a map value.
        FLOWS.get_ptr(self.key).map_or(Flow { generation: 0, flags: 0, seen: 0 }, |flow| unsafe { *flow })
    }

    #[inline(always)]
    fn note(&self, flags: u32, generation: u32, seen: u64) {
        let _ = FLOWS.insert(self.key, &Flow { generation, flags, seen }, u64::from(BPF_ANY));
    }

    /// What the lists say of the other end: `FLOW_REFUSED`, `FLOW_OBSERVED` when it would be, or 0. What is `known` to be observed is not
    /// counted again.
    #[inline(always)]
    fn listed(&self, skb: *mut __sk_buff, packet: &mut Packet, known: u32) -> u32 {
        if !self.way.to_pod && is_asked_before(skb) != 0 {
            return 0;
        }
        let known = known & FLOW_OBSERVED;
        let ends = &packet.key;
        let (port, direction) = if self.way.to_pod { (ends.pod_port, INGRESS) } else { (ends.client_port, EGRESS) };
        let peer = Peer { address: ends.client, port, protocol: packet.protocol };
        ask_lists(&peer, &self.rules, u64::from(direction), u64::from(known), &mut packet.counted) as u32
    }
}

#[inline(never)]
fn ask_lists(peer: &Peer, rules: &Rules, direction: u64, known: u64, counted: &mut Counted) -> u64 {
    let mut listed = 0;
    for index in 0..TIERS {
        let tier = &rules.governed.tiers[index];
        let is_in = direction == u64::from(INGRESS);
        let (flag, list) = if is_in { (LISTS_INGRESS, tier.ingress) } else { (LISTS_EGRESS, tier.egress) };
        if tier.flags & flag == 0 || govern::is_allowed(peer, list) != 0 {
            continue;
        }
        let counts = known == 0 || tier.flags & OBSERVES == 0;
        let what = What { direction: direction as u8, ..What::ingress(REASON_NOT_ALLOWED) };
        if !counted.let_through(rules.cgroup, index, tier, what, counts) {
            return u64::from(FLOW_REFUSED);
        }
        listed = FLOW_OBSERVED;
    }
    u64::from(listed)
}

/// Takes a token of each tier's limit; none, and 0, when one has none.
#[inline(never)]
fn take_connection(governed: &Governed, cgroup: u64, packet: &mut Packet) -> u64 {
    let key = |index: usize| BucketKey { cgroup, limit: state_of(CONNECTIONS_IN, index), _pad: 0 };
    for index in 0..TIERS {
        let tier = &governed.tiers[index];
        let rate = &tier.limits[CONNECTIONS_IN];
        if rate.interval == 0 || govern::take(&key(index), rate, &packet.key.client) != 0 {
            continue;
        }
        if !packet.counted.let_through(cgroup, index, tier, What::ingress(REASON_CONNECTION_RATE), true) {
            for before in 0..index {
                let rate = &governed.tiers[before & (TIERS - 1)].limits[CONNECTIONS_IN];
                if rate.interval != 0 {
                    govern::give_back(&key(before), rate, &packet.key.client, rate.interval);
                }
            }
            return 0;
        }
    }
    1
}

/// Refuses a connection as a port does at which nobody listens (RFC 9293, 3.10.7.1).
#[inline(always)]
fn refuse(skb: *mut __sk_buff, packet: &mut Packet, way: Way) -> i32 {
    if packet.is_fragment != 0 {
        return DROP;
    }
    let ack = packet.seq.wrapping_add(packet.span());
    let segment = Segment { to_client: way.to_pod, seq: 0, ack, flags: RST | ACK, answer: 0, is_head: false };
    if packet.write(skb, &segment) == 0 { DROP } else { packet::turn_round(skb, way.to_pod) }
}

/// Ends a connection for both: who sent the segment gets a reset that answers it, and the other end one in its place.
#[inline(always)]
fn cut(skb: *mut __sk_buff, packet: &mut Packet, way: Way) -> i32 {
    if packet.is_fragment != 0 || packet.flags & RST != 0 {
        return DROP;
    }
    let (seq, ack) = (packet.seq, packet.ack);
    let end = seq.wrapping_add(packet.span());
    let back = Segment { to_client: way.to_pod, seq: ack, ack: end, flags: RST | ACK, answer: 0, is_head: false };
    // Whoever gets none of the two gets one when it sends again.
    if packet.write(skb, &back) == 0 || !packet::send_copy(skb, way.to_pod) {
        return DROP;
    }
    let on = Segment { to_client: !way.to_pod, seq, ack, flags: RST | ACK, answer: 0, is_head: false };
    if packet.write(skb, &on) == 0 { DROP } else { PASS }
}
