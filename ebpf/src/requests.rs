//! Limits of HTTP/1 requests, kept at the Pod's interface on the node. A request that is let through is not touched. One that is
//! too much is answered here, and the Pod's socket sees the end of the connection instead of it; from then on these programs
//! are the other end for both, without any state but what is in the segments themselves and one entry of a map: what is lost
//! is sent again by who misses an acknowledgement.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST},
    helpers::bpf_ktime_get_ns,
};
use sidestep_abi::{
    govern::{BucketKey, Governed, OBSERVES, REASON_REQUEST_RATE, TIERS},
    http::{
        Connection, HAS_REQUEST, HttpRule, IS_HEAD, IS_LIMITED, Interface, MAX_PATH, MAX_RULES, MAY_HAVE_BODY,
        METHOD_DELETE, METHOD_GET, METHOD_HEAD, METHOD_OPTIONS, METHOD_PATCH, METHOD_POST, METHOD_PUT,
    },
};

use crate::{
    flows, govern,
    maps::{CONNECTIONS, REQUEST_RULES},
    packet::{
        self, ACK, DROP, ESTABLISHED, FIN, HANDSHAKE, HEAD, IPPROTO_TCP, PASS, PSH, Packet, RST, SYN, Segment, volatile,
    },
    refusals::What,
};

/// What a limit refuses, but for its number.
const OVER_RATE: What = What::ingress(REASON_REQUEST_RATE);

/// How long after its last refusal a Pod's connections are looked up for segments that are no requests, in nanoseconds.
const LIMITED_FOR: u64 = 60_000_000_000;
/// Bytes of a client that are thrown away, before its connection is reset.
const MAX_SWALLOWED: u32 = 1024 * 1024;
/// A request of these has no body that says anything (RFC 9110, 9.3).
const WITHOUT_BODY: u16 = METHOD_GET | METHOD_HEAD | METHOD_DELETE | METHOD_OPTIONS;
/// How far a segment may be ahead of what the Pod has got: who does not know the connection would have to guess this.
const MAX_AHEAD: u32 = 1024 * 1024;
/// The longest name of a method.
const MAX_METHOD: usize = 16;
/// The longest scheme of a URI.
const MAX_SCHEME: usize = 16;
/// Bytes of a scheme and an authority, in a request's line with an absolute URI.
const MAX_AUTHORITY: usize = 96;

/// A mask of as many bytes as are there begins so many before the middle.
static THERE: [u8; 2 * MAX_PATH] = {
    let mut mask = [0; 2 * MAX_PATH];
    let mut at = 0;
    while at < MAX_PATH {
        mask[at] = 0xff;
        at += 1;
    }
    mask
};

/// A packet on its way to the Pod.
#[inline(always)]
pub(crate) fn to_pod(skb: *mut __sk_buff, packet: &mut Packet, interface: &mut Interface) -> i32 {
    if packet.protocol != IPPROTO_TCP || packet.is_fragment != 0 {
        return PASS;
    }
    if packet.flags & (SYN | ACK) != ACK {
        if packet.flags & SYN != 0 {
            // The ports are used again.
            let _ = CONNECTIONS.remove(&packet.key);
        }
        return PASS;
    }
    let is_request = packet.payload_len != 0 && packet.read_head(skb) && read_line(packet) != 0;
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if !is_request && now.saturating_sub(interface.limited_at) > LIMITED_FOR {
        return PASS;
    }
    let mut known = CONNECTIONS.get_ptr_mut(&packet.key);
    let mut is_outstanding = false;
    if let Some(connection) = known {
        // SAFETY: a map value.
        let connection = unsafe { &mut *connection };
        if connection.flags & IS_LIMITED != 0 {
            if now.saturating_sub(connection.limited_at) <= LIMITED_FOR {
                return stand_in(skb, packet, connection);
            }
            let _ = CONNECTIONS.remove(&packet.key);
            known = None;
        } else {
            is_outstanding = connection.flags & HAS_REQUEST != 0 && connection.request_ack == packet.ack;
            if is_outstanding && connection.request_seq == packet.seq {
                // The same once more.
                return PASS;
            }
            if is_outstanding && connection.flags & MAY_HAVE_BODY != 0 && (!is_request || has_version(packet) == 0) {
                return PASS;
            }
        }
    }
    // What nobody has opened, or the Pod itself, is no request to it.
    if !is_request || packet.find_socket(skb, interface.pod_network) == 0 {
        return PASS;
    }
    let ahead = packet.seq.wrapping_sub(packet.rcv_nxt);
    let is_under_way = packet.state == HANDSHAKE;
    if !is_under_way && (packet.state != ESTABLISHED || ahead > MAX_AHEAD) {
        // Its end is under way, or the Pod has had it, or it is of nobody who knows the connection.
        return PASS;
    }
    // An answer here would stand in the middle of what the Pod sends, or is about to send.
    let is_behind = is_under_way || is_outstanding || ahead != 0 || packet.ack != packet.snd_nxt;
    let Some((_, governed)) = govern::of(interface.cgroup) else { return PASS };
    if flows::is_from_node(skb) != 0 {
        return PASS;
    }
    let refused = ask(packet, governed, interface.cgroup, u64::from(is_behind)) as u32;
    if refused != 0 {
        give_back(packet, governed, interface.cgroup);
        if is_behind {
            return DROP;
        }
        interface.limited_at = now;
        let is_head = packet.method == u32::from(METHOD_HEAD);
        return answer(skb, packet, refused, is_head, now);
    }
    let is_whole = packet.method & u32::from(WITHOUT_BODY) != 0 && packet.ends_head(skb);
    let body = if is_whole { 0 } else { MAY_HAVE_BODY };
    let connection = Connection {
        flags: HAS_REQUEST | body,
        request_ack: packet.ack,
        request_seq: packet.seq,
        ..Connection::default()
    };
    match known {
        // SAFETY: a map value.
        Some(known) => unsafe {
            ((*known).request_ack, (*known).request_seq) = (connection.request_ack, connection.request_seq);
            (*known).flags = connection.flags;
        },
        None => {
            let _ = CONNECTIONS.insert(&packet.key, &connection, u64::from(BPF_NOEXIST));
        }
    }
    PASS
}

/// Whether there may be connections at the interface that are stood in for, so that what the Pod sends is looked at.
#[inline(always)]
pub(crate) fn has_limited(interface: &Interface) -> bool {
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    now.saturating_sub(interface.limited_at) <= LIMITED_FOR
}

/// A packet that comes from the Pod.
#[inline(always)]
pub(crate) fn from_pod(skb: *mut __sk_buff, packet: &mut Packet) -> i32 {
    if packet.protocol != IPPROTO_TCP || packet.is_fragment != 0 {
        return PASS;
    }
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(connection) = CONNECTIONS.get_ptr(&packet.key) else { return PASS };
    // SAFETY: a map value.
    let connection = unsafe { &*connection };
    if connection.flags & IS_LIMITED == 0 {
        return PASS;
    }
    if now.saturating_sub(connection.limited_at) > LIMITED_FOR {
        let _ = CONNECTIONS.remove(&packet.key);
        return PASS;
    }
    if packet.flags & RST != 0 {
        return DROP;
    }
    // How far the Pod's socket is with the end that it was sent.
    let past = packet.ack.wrapping_sub(connection.request_seq);
    let flags = match past {
        0 => ACK | FIN,
        1 if packet.span() == 0 => return DROP,
        1 => ACK,
        _ => RST,
    };
    let (seq, ack) = (packet.ack, packet.seq.wrapping_add(packet.span()));
    let segment = Segment { to_client: false, seq, ack, flags, answer: 0, is_head: false };
    if packet.write(skb, &segment) == 0 { DROP } else { packet::turn_round(skb, false) }
}

/// Answers a request in the Pod's place, and ends the connection on both sides.
#[inline(always)]
fn answer(skb: *mut __sk_buff, packet: &mut Packet, answer: u32, is_head: bool, now: u64) -> i32 {
    let (seq, ack) = (packet.seq, packet.ack);
    let len = packet::answer_len(answer, is_head);
    let connection = Connection {
        flags: IS_LIMITED | if is_head { IS_HEAD } else { 0 },
        request_seq: seq,
        answer_start: ack,
        answer_end: ack.wrapping_add(len).wrapping_add(1),
        answer,
        swallowed: packet.payload_len,
        limited_at: now,
        ..Connection::default()
    };
    // Without an entry the client's next segments would go to a Pod that knows nothing of them.
    if CONNECTIONS.insert(&packet.key, &connection, u64::from(BPF_ANY)).is_err() {
        return DROP;
    }
    let end = seq.wrapping_add(packet.span());
    let segment = Segment { to_client: true, seq: ack, ack: end, flags: PSH | ACK | FIN, answer, is_head };
    if packet.write(skb, &segment) == 0 || !packet::send_copy(skb, true) {
        // The client sends it again.
        let _ = CONNECTIONS.remove(&packet.key);
        return DROP;
    }
    let segment = Segment { to_client: false, seq, ack, flags: ACK | FIN, answer: 0, is_head: false };
    // What the Pod sends next shows whether it has got it.
    if packet.write(skb, &segment) == 0 { DROP } else { PASS }
}

/// A client's segment on a connection that was answered.
#[inline(always)]
fn stand_in(skb: *mut __sk_buff, packet: &mut Packet, connection: &mut Connection) -> i32 {
    if packet.flags & RST != 0 || packet.span() == 0 {
        return DROP;
    }
    connection.swallowed = connection.swallowed.saturating_add(packet.payload_len);
    let is_head = connection.flags & IS_HEAD != 0;
    let is_reset = connection.swallowed > MAX_SWALLOWED || packet::answer_len(connection.answer, is_head) == 0;
    let has_it_all = packet.ack == connection.answer_end;
    let is_plain = is_reset || has_it_all;
    let segment = Segment {
        to_client: true,
        seq: if is_plain { packet.ack } else { connection.answer_start },
        ack: packet.seq.wrapping_add(packet.span()),
        flags: if is_reset {
            RST | ACK
        } else if has_it_all {
            ACK
        } else {
            PSH | ACK | FIN
        },
        answer: if is_plain { 0 } else { connection.answer },
        is_head,
    };
    if packet.write(skb, &segment) == 0 { DROP } else { packet::turn_round(skb, true) }
}

/// Takes a token of each limit that the request matches; the number of what is answered when one has none, else 0. An answer to
/// a request that `is_behind` would stand before what the Pod has sent, or is about to send: the client sends it again, and
/// then it is counted.
#[inline(never)]
fn ask(packet: &mut Packet, governed: &Governed, cgroup: u64, is_behind: u64) -> u64 {
    packet.forget_taken();
    for index in 0..TIERS {
        let tier = &governed.tiers[index];
        let Some(rules) = REQUEST_RULES.get_ptr(&tier.requests) else { continue };
        // SAFETY: a map value; it does not change, and goes only long after the last generation that names it.
        let rules = unsafe { &*rules };
        for number in 0..MAX_RULES {
            if number as u64 >= rules.len {
                break;
            }
            let rule = &rules.rules[number];
            if matches(packet, rule) == 0 {
                continue;
            }
            if govern::take(&BucketKey { cgroup, limit: rule.limit, _pad: 0 }, &rule.rate, &packet.key.client) != 0 {
                packet.note_taken(index * MAX_RULES + number);
                continue;
            }
            if is_behind != 0 && tier.flags & OBSERVES == 0
                || !packet.counted.let_through(cgroup, index, tier, What { limit: rule.limit, ..OVER_RATE }, true)
            {
                return u64::from(rule.answer);
            }
            break;
        }
    }
    0
}

/// A request that is refused takes nothing from the limits that it was within.
#[inline(never)]
fn give_back(packet: &Packet, governed: &Governed, cgroup: u64) -> u64 {
    for index in 0..TIERS {
        let Some(rules) = REQUEST_RULES.get_ptr(&governed.tiers[index].requests) else { continue };
        // SAFETY: as in `ask`.
        let rules = unsafe { &*rules };
        for number in 0..MAX_RULES {
            if packet.taken >> (index * MAX_RULES + number) & 1 != 0 {
                let HttpRule { rate, limit, .. } = &rules.rules[number];
                let key = BucketKey { cgroup, limit: *limit, _pad: 0 };
                govern::give_back(&key, rate, &packet.key.client, rate.interval);
            }
        }
    }
    0
}

/// Whether a rule is for the request. What a segment does not have any more of a path that is cut is taken for what it would have to
/// be: a client gains nothing by cutting it. A path that ends sooner has what follows it instead, which is in no rule's path.
#[inline(never)]
fn matches(packet: &Packet, rule: &HttpRule) -> u64 {
    if rule.port != 0 && rule.port != packet.key.pod_port {
        return 0;
    }
    if rule.methods != 0 && packet.is_cut == 0 && u32::from(rule.methods) & packet.method == 0 {
        return 0;
    }
    let (path, len) = (packet.path as usize, rule.path_len as usize);
    let head_len = packet.head_len as usize;
    if len == 0 || path >= HEAD || path >= head_len {
        return 1;
    }
    let there = if head_len - path < MAX_PATH { head_len - path } else { MAX_PATH };
    let mut differs = 0;
    for word in 0..MAX_PATH / 8 {
        let at = 8 * word;
        let (path_at, head_at) = (rule.path.as_ptr(), packet.head.as_ptr());
        // SAFETY: `head` has `MAX_PATH` bytes behind any place below `HEAD`, and `THERE` behind any up to `MAX_PATH`.
        unsafe {
            let (head, path) = (head_at.add(path + at).cast::<u64>(), path_at.add(at).cast::<u64>());
            let mask = rule.mask.as_ptr().add(at).cast::<u64>();
            let known = THERE.as_ptr().add(MAX_PATH - there + at).cast::<u64>();
            differs |= (head.read_unaligned() ^ path.read_unaligned()) & mask.read_unaligned() & known.read_unaligned();
        }
    }
    if differs != 0 {
        return 0;
    }
    let end = path + len;
    if end >= packet.head_len as usize || end >= HEAD || rule.path[(len - 1) & (MAX_PATH - 1)] == b'/' {
        return 1;
    }
    u64::from(matches!(packet.head[end], b'/' | b'?' | b'#' | b' ' | b'\r' | b'\n' | b';'))
}

/// Reads the line of a request; 0 when the payload does not begin as one does. Servers take more for one than RFC 9112 has: a
/// line before it that is empty, several spaces, a method in other letters.
#[inline(never)]
fn read_line(packet: &mut Packet) -> u64 {
    let len = packet.head_len as usize;
    volatile(&mut packet.is_cut, 1);
    volatile(&mut packet.path, HEAD as u32);
    volatile(&mut packet.method, 0);
    if matches!(packet.head[0], b'\r' | b'\n') {
        return 1;
    }
    for space in 0..MAX_METHOD {
        if space >= len {
            // Nothing but the beginning of a method.
            return 1;
        }
        let byte = packet.head[space];
        if byte == b' ' || byte == b'\t' {
            if space == 0 {
                return 0;
            }
            volatile(&mut packet.is_cut, 0);
            volatile(&mut packet.path, space as u32 + 1);
            break;
        }
        if !byte.is_ascii_alphabetic() && byte != b'-' && byte != b'_' {
            return 0;
        }
    }
    if packet.is_cut != 0 {
        return 0;
    }
    let path = packet.path as usize;
    let method = u32::from(method(packet));
    volatile(&mut packet.method, method);
    if path >= len || path >= HEAD {
        volatile(&mut packet.path, HEAD as u32);
        return 1;
    }
    match packet.head[path] {
        b'/' => 1,
        // The preface of HTTP/2 (RFC 9113, 3.4), which is no request of HTTP/1.
        b'*' => u64::from(packet.head[0] != b'P'),
        b' ' | b'\t' => {
            volatile(&mut packet.path, HEAD as u32);
            1
        }
        byte if byte.is_ascii_alphabetic() => skip_authority(packet),
        _ => 0,
    }
}

/// Whether the version of HTTP/1 is among what was read of the payload.
#[inline(never)]
fn has_version(packet: &Packet) -> u64 {
    let version = u64::from_le_bytes(*b" HTTP/1.");
    for at in 0..HEAD - 8 {
        if at + 8 > packet.head_len as usize {
            break;
        }
        // SAFETY: it is within `head`.
        let word = unsafe { packet.head.as_ptr().add(at).cast::<u64>().read_unaligned() };
        if word.to_le() == version {
            return 1;
        }
    }
    0
}

#[inline(always)]
fn method(packet: &Packet) -> u16 {
    // SAFETY: `head` is longer.
    let word = unsafe { packet.head.as_ptr().cast::<u64>().read_unaligned() }.to_le();
    let begins = |name: &[u8; 8], len: u32| (word ^ u64::from_le_bytes(*name)) << (64 - 8 * len) == 0;
    if begins(b"GET     ", 4) {
        METHOD_GET
    } else if begins(b"POST    ", 5) {
        METHOD_POST
    } else if begins(b"HEAD    ", 5) {
        METHOD_HEAD
    } else if begins(b"PUT     ", 4) {
        METHOD_PUT
    } else if begins(b"DELETE  ", 7) {
        METHOD_DELETE
    } else if begins(b"PATCH   ", 6) {
        METHOD_PATCH
    } else if begins(b"OPTIONS ", 8) {
        METHOD_OPTIONS
    } else {
        0
    }
}

/// The path of an absolute URI begins at its third slash. 0 when it is none.
#[inline(never)]
fn skip_authority(packet: &mut Packet) -> u64 {
    let uri = packet.path as usize;
    volatile(&mut packet.path, HEAD as u32);
    if uri > MAX_METHOD {
        return 0;
    }
    // `://`, so far.
    let mut found = 0;
    for index in 1..MAX_AUTHORITY {
        let at = uri + index;
        if at >= packet.head_len as usize {
            // It is cut.
            return 1;
        }
        let byte = packet.head[at];
        found = match (found, byte) {
            (0, b':') | (1 | 2, b'/') => found + 1,
            (3, b'/') => {
                volatile(&mut packet.path, at as u32);
                return 1;
            }
            (0, _) if index > MAX_SCHEME || !byte.is_ascii_alphanumeric() => return 0,
            (1 | 2, _) => return 0,
            _ => found,
        };
    }
    1
}
