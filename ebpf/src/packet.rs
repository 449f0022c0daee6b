//! A packet: what of it is looked at, and, of a segment of TCP, what is written over it.
//!
//! The network header stays as it is, but for addresses, length and time to live: so the sum that a device computes later
//! (`CHECKSUM_PARTIAL`) begins where it did, whatever options or extension headers there are.

use core::{
    ffi::c_void,
    ptr::{addr_of, read_volatile},
};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_INVALIDATE_HASH, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{
        bpf_clone_redirect, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_sk_fullsock, bpf_sk_release,
        bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skc_lookup_tcp, bpf_tcp_sock,
    },
};
use sidestep_abi::{
    govern::REQUEST_SPACE,
    http::{Answer, ConnectionKey, MAX_ANSWER},
};

use crate::{
    maps::ANSWERS,
    refusals::{Counted, Detail},
};

/// `include/uapi/linux/if_ether.h`
const ETH_HLEN: u32 = 14;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
/// `include/uapi/linux/in.h`, `in6.h`
const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_IGMP: u8 = 2;
/// That of MPTCP has the same low byte.
pub(crate) const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_DCCP: u8 = 33;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_DSTOPTS: u8 = 60;
const IPPROTO_SCTP: u8 = 132;
const IPPROTO_UDPLITE: u8 = 136;
/// Headers between that of IPv6 and TCP's.
const MAX_EXTENSIONS: usize = 4;
/// Options of TCP that are looked at: there are 40 bytes of them.
const MAX_OPTIONS: usize = 12;
const OPTION_NOP: u8 = 1;
/// RFC 7323
const OPTION_TIMESTAMPS: u8 = 8;
const HOP_LIMIT: u8 = 64;
/// Types of ICMPv6 that find neighbours and routers (RFC 4861, 4).
const ND: core::ops::RangeInclusive<u8> = 133..=137;
/// Who sends it understands marks, or has one already (RFC 3168, 5).
const ECN: u8 = 3;

/// Families of sockets (`include/linux/socket.h`), and kinds (`include/linux/net.h`).
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// Protocols whose sockets ask at `connect` and `sendmsg` (`include/uapi/linux/in.h`).
const PROTOCOL_TCP: u32 = 6;
const PROTOCOL_UDP: u32 = 17;
const PROTOCOL_MPTCP: u32 = 262;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

/// States of a socket (`include/net/tcp_states.h`).
pub(crate) const ESTABLISHED: u32 = 1;
pub(crate) const HANDSHAKE: u32 = 12;
const LISTEN: u32 = 10;

/// RFC 9293, 3.1
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 1 << 1;
pub(crate) const RST: u8 = 1 << 2;
pub(crate) const PSH: u8 = 1 << 3;
pub(crate) const ACK: u8 = 1 << 4;

/// What programs at an interface return: what is passed goes to the next program there.
pub(crate) const PASS: i32 = TC_ACT_UNSPEC;
pub(crate) const DROP: i32 = TC_ACT_SHOT;

/// Bytes of a request that are looked at; a power of two.
pub(crate) const HEAD: usize = 256;
/// The longest header that is read or written at once.
const RAW: usize = 40;
/// Room behind them, so that a path may be compared at any place.
const SLACK: usize = 64;

/// Tells the programs of the other direction of the same interface that a packet is one of ours. It is on a packet for that moment
/// alone, so that it meets nobody else's marks. Set by the agent before load, to what nobody can guess who may set a mark.
#[unsafe(no_mangle)]
static MARK: u32 = 0;

/// A packet, in either direction.
#[repr(C)]
pub(crate) struct Packet {
    /// Its connection.
    pub(crate) key: ConnectionKey,
    /// Sequence numbers, in the order of the host.
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// Bytes behind TCP's header.
    pub(crate) payload_len: u32,
    /// Where they begin.
    pub(crate) payload: u32,
    /// How many of `head` there are.
    pub(crate) head_len: u32,
    l3: u32,
    l4: u32,
    /// Length in the network header, as it is there.
    length: u16,
    pub(crate) flags: u8,
    is_ipv6: u8,
    /// Option of timestamps: whose was sent, and whose is repeated, as they are there.
    stamp: [u8; 8],
    has_stamp: u8,
    /// A device computes the sum.
    is_partial: u8,
    /// It goes to the Pod.
    from_client: u8,
    /// `IPPROTO_*`; of others than TCP there are addresses and, where it has such, ports.
    pub(crate) protocol: u8,
    /// The first part of a packet whose other parts come on their own.
    pub(crate) is_fragment: u8,
    /// To and from.
    macs: [u8; 12],
    /// It could not be read as far as its ends, and is none that has no ends.
    pub(crate) is_broken: u8,
    /// It finds neighbours: nothing comes without it.
    pub(crate) is_vital: u8,
    /// It may be marked in place of being dropped (RFC 3168).
    pub(crate) is_ecn: u8,
    /// Of a request: `METHOD_*`, where its path begins, and whether the segment ends before. Here and not in registers: the verifier
    /// follows each value that it knows on a way of its own.
    pub(crate) method: u32,
    pub(crate) path: u32,
    pub(crate) is_cut: u32,
    /// Which limits have given a token, by tier and number.
    pub(crate) taken: u32,
    /// Of the Pod's socket: its state, and what it expects and has sent. See [`Packet::find_socket`].
    pub(crate) state: u32,
    pub(crate) rcv_nxt: u32,
    pub(crate) snd_nxt: u32,
    /// Bytes from the network's header on, of all segments that are sent together, and how many these are. See [`Packet::measure`].
    pub(crate) len: u32,
    pub(crate) segments: u32,
    /// These programs have written it.
    pub(crate) is_made: u32,
    /// What of it was refused.
    pub(crate) counted: Counted,
    /// What is read of a header, and what is written of one.
    raw: [u8; RAW],
    /// The payload's beginning.
    pub(crate) head: [u8; HEAD + SLACK],
}

const _: () = assert!(core::mem::offset_of!(Packet, raw) % 8 == 0 && core::mem::offset_of!(Packet, head) % 8 == 0);

/// What is made of a packet.
pub(crate) struct Segment {
    /// To whom.
    pub(crate) to_client: bool,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    /// The number of an answer, without its body for `HEAD`; 0 for none.
    pub(crate) answer: u32,
    pub(crate) is_head: bool,
}

#[inline(always)]
fn own_mark() -> u32 {
    // SAFETY: a load from a static of this object.
    unsafe { read_volatile(addr_of!(MARK)) }
}

/// Whether the packet is one that these programs have made; the mark is taken off.
#[inline(always)]
pub(crate) fn is_ours(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context of the program.
    unsafe {
        let is_ours = (*skb).mark == own_mark();
        if is_ours {
            (*skb).mark = 0;
        }
        is_ours
    }
}

/// Writes a value that the compiler does not keep in a register.
#[inline(always)]
pub(crate) fn volatile(place: &mut u32, value: u32) {
    // SAFETY: a reference.
    unsafe { core::ptr::from_mut(place).write_volatile(value) }
}

#[inline(always)]
fn mapped(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

impl Packet {
    /// Reads a packet that comes from the Pod, or goes to it; 0 when it is none that is looked at: parts of packets but the first,
    /// whose ends are not in them, and what networks tell of themselves (ICMP, IGMP); or when it can't be read.
    #[inline(never)]
    pub(crate) fn read(&mut self, skb: *mut __sk_buff, to_pod: u64) -> u64 {
        u64::from(self.parse(skb, to_pod != 0).is_some())
    }

    /// Finds out how long it is.
    #[inline(always)]
    pub(crate) fn measure(&mut self, skb: *mut __sk_buff) {
        // SAFETY: the context of the program.
        let (len, segments) = unsafe { ((*skb).len, (*skb).gso_segs) };
        self.len = len.saturating_sub(self.l3);
        self.segments = if segments == 0 { 1 } else { segments };
    }

    /// Forgets which limits have given a token.
    #[inline(always)]
    pub(crate) fn forget_taken(&mut self) {
        volatile(&mut self.taken, 0);
    }

    /// A limit has given a token.
    #[inline(always)]
    pub(crate) fn note_taken(&mut self, number: usize) {
        let taken = self.taken | 1 << number;
        volatile(&mut self.taken, taken);
    }

    /// Tells of what was refused of it.
    #[inline(always)]
    pub(crate) fn tell(&self) {
        let detail = if self.counted.is_request() {
            // SAFETY: `head` is longer.
            Detail::Request(unsafe { &*self.head.as_ptr().cast::<[u8; REQUEST_SPACE]>() }, self.head_len)
        } else {
            Detail::Nothing
        };
        self.counted.tell(&self.key, self.protocol, detail);
    }

    /// Reads bytes of the packet to where they are looked at.
    #[inline(always)]
    fn fetch(&mut self, skb: *mut __sk_buff, offset: u32, len: u32) -> Option<()> {
        let to = self.raw.as_mut_ptr().cast::<c_void>();
        // SAFETY: the helper checks the offset, and writes so many bytes, at most those of `raw`.
        let failed = unsafe { bpf_skb_load_bytes(skb.cast(), offset, to, len) };
        (failed == 0).then_some(())
    }

    /// Bytes that were fetched.
    #[inline(always)]
    fn at<const N: usize>(&self, at: usize) -> [u8; N] {
        // SAFETY: they are within `raw`.
        unsafe { self.raw.as_ptr().add(at).cast::<[u8; N]>().read() }
    }

    #[inline(always)]
    fn parse(&mut self, skb: *mut __sk_buff, to_pod: bool) -> Option<()> {
        (self.is_broken, self.is_vital, self.is_made, self.is_ecn) = (0, 0, 0, 0);
        self.set_addresses([0; 16], [0; 16]);
        self.fetch(skb, 0, ETH_HLEN)?;
        self.macs = self.at(0);
        let mut kind = u16::from_be_bytes(self.at(12));
        (self.l3, self.from_client) = (ETH_HLEN, u8::from(to_pod));
        if kind == ETH_P_8021Q || kind == ETH_P_8021AD {
            self.fetch(skb, ETH_HLEN, 4)?;
            kind = u16::from_be_bytes(self.at(2));
            self.l3 += 4;
        }
        match kind {
            ETH_P_IP => self.parse_ipv4(skb)?,
            ETH_P_IPV6 => self.parse_ipv6(skb)?,
            _ => {
                (self.protocol, self.is_vital) = (0, u8::from(kind == ETH_P_ARP));
                return None;
            }
        }
        // SAFETY: the context of the program.
        self.key.interface = unsafe { (*skb).ifindex };
        let header = match self.protocol {
            IPPROTO_TCP => 20,
            IPPROTO_UDP | IPPROTO_UDPLITE | IPPROTO_SCTP | IPPROTO_DCCP => 4,
            IPPROTO_ICMPV6 => {
                let is_read = self.fetch(skb, self.l4, 1).is_some();
                self.is_vital = u8::from(is_read && ND.contains(&self.raw[0]));
                return None;
            }
            IPPROTO_ICMP | IPPROTO_IGMP => return None,
            _ => return Some(()),
        };
        self.is_broken = 1;
        self.fetch(skb, self.l4, header)?;
        let (from, to) = (u16::from_be_bytes(self.at(0)), u16::from_be_bytes(self.at(2)));
        (self.key.client_port, self.key.pod_port) = if to_pod { (from, to) } else { (to, from) };
        if self.protocol != IPPROTO_TCP {
            self.is_broken = 0;
            return Some(());
        }
        self.seq = u32::from_be_bytes(self.at(4));
        self.ack = u32::from_be_bytes(self.at(8));
        self.flags = self.raw[13];
        let header = u32::from(self.raw[12] >> 4) * 4;
        if header < 20 {
            return None;
        }
        self.payload = self.l4 + header;
        // SAFETY: the context of the program.
        let len = unsafe { (*skb).len };
        // A length of 0 is that of a packet that is cut later (`BIG TCP`).
        let length = u32::from(u16::from_be(self.length));
        let end = if length == 0 { len } else { self.l3 + length + if self.is_ipv6 == 0 { 0 } else { 40 } };
        if end < self.payload || end > len {
            return None;
        }
        self.payload_len = end - self.payload;
        self.is_broken = 0;
        self.read_stamp(skb, header);
        Some(())
    }

    /// Whose addresses were fetched.
    #[inline(always)]
    fn set_addresses(&mut self, from: [u8; 16], to: [u8; 16]) {
        (self.key.client, self.key.pod) = if self.from_client == 0 { (to, from) } else { (from, to) };
        (self.key.client_port, self.key.pod_port) = (0, 0);
    }

    #[inline(always)]
    fn parse_ipv4(&mut self, skb: *mut __sk_buff) -> Option<()> {
        self.fetch(skb, self.l3, 20)?;
        let (header, fragment) = (u32::from(self.raw[0] & 0xf) * 4, u16::from_be_bytes(self.at(6)));
        (self.protocol, self.is_fragment) = (self.raw[9], u8::from(fragment & 0x2000 != 0));
        (self.is_ipv6, self.length) = (0, u16::from_ne_bytes(self.at(2)));
        self.is_ecn = u8::from(self.raw[1] & ECN != 0);
        self.l4 = self.l3 + header;
        self.set_addresses(mapped(self.at(12)), mapped(self.at(16)));
        (header >= 20 && fragment & 0x1fff == 0).then_some(())
    }

    #[inline(always)]
    fn parse_ipv6(&mut self, skb: *mut __sk_buff) -> Option<()> {
        self.fetch(skb, self.l3, 40)?;
        (self.is_ipv6, self.length) = (1, u16::from_ne_bytes(self.at(4)));
        self.is_ecn = u8::from(self.raw[1] >> 4 & ECN != 0);
        self.l4 = self.l3 + 40;
        self.set_addresses(self.at(8), self.at(24));
        (self.protocol, self.is_fragment, self.is_broken) = (self.raw[6], 0, 1);
        for _ in 0..MAX_EXTENSIONS {
            match self.protocol {
                IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS => self.fetch(skb, self.l4, 2)?,
                IPPROTO_FRAGMENT => {
                    self.fetch(skb, self.l4, 8)?;
                    if u16::from_be_bytes(self.at(2)) & 0xfff8 != 0 {
                        self.is_broken = 0;
                        return None;
                    }
                    // Its length is no length.
                    (self.is_fragment, self.raw[1]) = (1, 0);
                }
                _ => break,
            }
            self.l4 += (u32::from(self.raw[1]) + 1) * 8;
            self.protocol = self.raw[0];
        }
        self.is_broken =
            u8::from(matches!(self.protocol, IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS | IPPROTO_FRAGMENT));
        (self.is_broken == 0).then_some(())
    }

    /// Linux pads the option so that it lies here (`tcp_options_write`), and so do most others.
    #[inline(always)]
    fn read_stamp(&mut self, skb: *mut __sk_buff, header: u32) {
        self.has_stamp = 0;
        let end = self.l4 + header;
        let mut at = self.l4 + 20;
        for _ in 0..MAX_OPTIONS {
            if at + 10 > end || self.fetch(skb, at, 10).is_none() {
                return;
            }
            let (kind, len) = (self.raw[0], self.raw[1]);
            if kind == OPTION_TIMESTAMPS && len == 10 {
                (self.stamp, self.has_stamp) = (self.at(2), 1);
                return;
            }
            at += match kind {
                0 => return,
                OPTION_NOP => 1,
                _ if len < 2 => return,
                _ => u32::from(len),
            };
        }
    }

    /// Reads the beginning of the payload.
    #[inline(always)]
    pub(crate) fn read_head(&mut self, skb: *mut __sk_buff) -> bool {
        let len = if self.payload_len < HEAD as u32 { self.payload_len } else { HEAD as u32 };
        if len == 0 || len > HEAD as u32 {
            return false;
        }
        self.head_len = len;
        // SAFETY: the helper checks the offset, and writes so many bytes, which `head` has.
        unsafe { bpf_skb_load_bytes(skb.cast(), self.payload, self.head.as_mut_ptr().cast::<c_void>(), len) == 0 }
    }

    /// Whether the payload ends as the head of a request does.
    #[inline(always)]
    pub(crate) fn ends_head(&mut self, skb: *mut __sk_buff) -> bool {
        if self.payload_len < 4 || self.fetch(skb, self.payload + self.payload_len - 3, 3).is_none() {
            return false;
        }
        self.raw[2] == b'\n' && (self.raw[1] == b'\n' || self.raw[0] == b'\n')
    }

    /// Looks for the Pod's socket of the connection, which the client has opened; 0 when there is none.
    #[inline(never)]
    pub(crate) fn find_socket(&mut self, skb: *mut __sk_buff, network: u32) -> u64 {
        // Only who listens has connections that others have opened.
        if self.look_up(skb, network, 0) == 0 || self.state != LISTEN {
            return 0;
        }
        u64::from(self.look_up(skb, network, 1) != 0 && self.state != LISTEN)
    }

    /// Reads the state of the socket of the connection, or of who listens at its port; 0 when there is none.
    #[inline(never)]
    pub(crate) fn look_up(&mut self, skb: *mut __sk_buff, network: u32, of_connection: u64) -> u64 {
        // `struct bpf_sock_tuple`: addresses, then ports, as they are in the packet.
        let mut tuple = [0_u32; 9];
        let client_port = if of_connection == 0 { 0 } else { self.key.client_port.to_be() };
        let ports = u32::from(client_port) | u32::from(self.key.pod_port.to_be()) << 16;
        let (client, pod) = (words(&self.key.client), words(&self.key.pod));
        let len = if self.is_ipv6 == 0 {
            (tuple[0], tuple[1], tuple[2]) = (client[3], pod[3], ports);
            12
        } else {
            for index in 0..4 {
                (tuple[index], tuple[4 + index]) = (client[index], pod[index]);
            }
            tuple[8] = ports;
            36
        };
        // SAFETY: the helper reads `len` bytes of the tuple; what it returns is released below.
        unsafe {
            let socket = bpf_skc_lookup_tcp(skb.cast(), tuple.as_mut_ptr().cast(), len, u64::from(network), 0);
            if socket.is_null() {
                return 0;
            }
            self.state = (*socket).state;
            let tcp = bpf_tcp_sock(socket);
            if !tcp.is_null() {
                // Each on its own: the verifier takes no load of both at once.
                self.rcv_nxt = (&raw const (*tcp).rcv_nxt).read_volatile();
                self.snd_nxt = (&raw const (*tcp).snd_nxt).read_volatile();
            }
            bpf_sk_release(socket.cast());
        }
        1
    }

    /// What the segment takes of the sequence.
    #[inline(always)]
    pub(crate) fn span(&self) -> u32 {
        self.payload_len + u32::from(self.flags & FIN != 0) + u32::from(self.flags & SYN != 0)
    }

    /// Finds out whether a device computes the sum later; before anything is written.
    #[inline(always)]
    fn read_partial(&mut self, skb: *mut __sk_buff) -> Option<()> {
        let at = self.l4 + 16;
        self.fetch(skb, at, 2)?;
        let before: [u8; 2] = self.at(0);
        // SAFETY: the helper checks the offset. Without `BPF_F_PSEUDO_HDR` it changes nothing in that case.
        unsafe { bpf_l4_csum_replace(skb, at, 0, 0x0100, 2) };
        self.fetch(skb, at, 2)?;
        self.is_partial = u8::from(before == self.at(0));
        Some(())
    }

    /// Writes a segment over the packet; 0 when the kernel has no memory for it. What was read of it stays.
    #[inline(never)]
    pub(crate) fn write(&mut self, skb: *mut __sk_buff, segment: &Segment) -> u64 {
        u64::from(self.overwrite(skb, segment).is_some())
    }

    #[inline(always)]
    fn overwrite(&mut self, skb: *mut __sk_buff, segment: &Segment) -> Option<()> {
        self.is_made = 1;
        self.read_partial(skb)?;
        let answer = match segment.answer {
            0 => None,
            // SAFETY: a map value; it does not change.
            number => Some(unsafe { &*ANSWERS.get_ptr(&number)? }),
        };
        let (len, answer_sum) = match answer {
            Some(answer) if segment.is_head => (answer.head_len, answer.head_sum),
            Some(answer) => (answer.len, answer.sum),
            None => (0, 0),
        };
        let header = self.header_len();
        // SAFETY: the helper checks the length.
        if unsafe { bpf_skb_change_tail(skb, self.l4 + header + len, 0) } != 0 {
            return None;
        }
        if self.write_ethernet(skb, u64::from(segment.to_client)) == 0
            || self.write_network(skb, u64::from(segment.to_client), header + len) == 0
            || self.write_tcp(skb, segment, len, answer_sum) == 0
        {
            return None;
        }
        let Some(answer) = answer else { return Some(()) };
        store_answer(skb, self.l4 + header, answer, len)
    }

    /// Puts bytes where they are written from.
    #[inline(always)]
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        // SAFETY: they are within `raw`.
        unsafe { self.raw.as_mut_ptr().add(at).cast::<[u8; N]>().write(bytes) }
    }

    #[inline(always)]
    fn store(&self, skb: *mut __sk_buff, offset: u32, len: u32) -> bool {
        let from = self.raw.as_ptr().cast::<c_void>();
        // SAFETY: the helper checks the offset, and reads so many bytes, at most those of `out`.
        unsafe { bpf_skb_store_bytes(skb, offset, from, len, u64::from(BPF_F_INVALIDATE_HASH)) == 0 }
    }

    #[inline(never)]
    fn write_tcp(&mut self, skb: *mut __sk_buff, segment: &Segment, len: u32, answer_sum: u32) -> u64 {
        let header = self.header_len();
        let (from, to) = if segment.to_client {
            (self.key.pod_port, self.key.client_port)
        } else {
            (self.key.client_port, self.key.pod_port)
        };
        self.put(0, from.to_be_bytes());
        self.put(2, to.to_be_bytes());
        self.put(4, segment.seq.to_be_bytes());
        self.put(8, segment.ack.to_be_bytes());
        // A window that no answer fills, and the sum, of which it is no part yet.
        self.put(12, [(header as u8 / 4) << 4, segment.flags, 0x40, 0, 0, 0, 0, 0]);
        self.put(20, [OPTION_NOP, OPTION_NOP, OPTION_TIMESTAMPS, 10]);
        // Who sent it has its own time repeated, and what it repeated as the time of the other end.
        let [a, b, c, d, e, f, g, h] = self.stamp;
        let is_turned = u8::from(segment.to_client) == self.from_client;
        self.put(24, if is_turned { [e, f, g, h, a, b, c, d] } else { [a, b, c, d, e, f, g, h] });
        let mut sum = self.pseudo_sum(header + len);
        if self.is_partial == 0 {
            for index in 0..10 {
                sum += u64::from(u16::from_ne_bytes([self.raw[2 * index], self.raw[2 * index + 1]]));
            }
            if self.has_stamp != 0 {
                for index in 10..16 {
                    sum += u64::from(u16::from_ne_bytes([self.raw[2 * index], self.raw[2 * index + 1]]));
                }
            }
            sum += u64::from(answer_sum);
        }
        let folded = fold(sum);
        let sum = if self.is_partial == 0 { !folded } else { folded };
        self.put(16, sum.to_ne_bytes());
        u64::from(self.store(skb, self.l4, header))
    }

    /// Of TCP, as it is written.
    #[inline(always)]
    fn header_len(&self) -> u32 {
        if self.has_stamp == 0 { 20 } else { 32 }
    }

    #[inline(never)]
    fn write_ethernet(&mut self, skb: *mut __sk_buff, to_client: u64) -> u64 {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.macs;
        self.put(0, self.macs);
        if to_client == u64::from(self.from_client) {
            self.put(0, [g, h, i, j, k, l, a, b, c, d, e, f]);
        }
        u64::from(self.store(skb, 0, 12))
    }

    #[inline(never)]
    fn write_network(&mut self, skb: *mut __sk_buff, to_client: u64, tcp_len: u32) -> u64 {
        u64::from(self.overwrite_network(skb, to_client != 0, tcp_len).is_some())
    }

    #[inline(always)]
    fn overwrite_network(&mut self, skb: *mut __sk_buff, to_client: bool, tcp_len: u32) -> Option<()> {
        if self.is_ipv6 != 0 {
            self.put(0, ((self.l4 - self.l3 - 40 + tcp_len) as u16).to_be_bytes());
            let is_stored = self.store(skb, self.l3 + 4, 2);
            self.put(0, [HOP_LIMIT]);
            let is_stored = is_stored && self.store(skb, self.l3 + 7, 1);
            self.put(0, if to_client { self.key.pod } else { self.key.client });
            self.put(16, if to_client { self.key.client } else { self.key.pod });
            return (is_stored && self.store(skb, self.l3 + 8, 32)).then_some(());
        }
        let sum_at = self.l3 + 10;
        let length = ((self.l4 - self.l3 + tcp_len) as u16).to_be();
        self.fetch(skb, self.l3 + 8, 2)?;
        let hops: [u8; 2] = self.at(0);
        let new_hops = [HOP_LIMIT, IPPROTO_TCP];
        let (old, new) = (u64::from(u16::from_ne_bytes(hops)), u64::from(u16::from_ne_bytes(new_hops)));
        // SAFETY: the helper checks the offset. The addresses' order does not change the sum.
        let is_replaced = unsafe {
            bpf_l3_csum_replace(skb, sum_at, u64::from(self.length), u64::from(length), 2) == 0
                && bpf_l3_csum_replace(skb, sum_at, old, new, 2) == 0
        };
        self.length = length;
        self.put(0, length.to_ne_bytes());
        let is_stored = is_replaced && self.store(skb, self.l3 + 2, 2);
        self.put(0, new_hops);
        let is_stored = is_stored && self.store(skb, self.l3 + 8, 2);
        let [.., a, b, c, d] = if to_client { self.key.pod } else { self.key.client };
        let [.., e, f, g, h] = if to_client { self.key.client } else { self.key.pod };
        self.put(0, [a, b, c, d, e, f, g, h]);
        (is_stored && self.store(skb, self.l3 + 12, 8)).then_some(())
    }

    /// Of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1). What a mapped address has before the address is 0 in this sum.
    #[inline(always)]
    fn pseudo_sum(&self, tcp_len: u32) -> u64 {
        let mut sum = u64::from((IPPROTO_TCP as u16).to_be()) + u64::from((tcp_len as u16).to_be());
        for index in 0..8 {
            let at = 2 * index;
            sum += u64::from(u16::from_ne_bytes([self.key.client[at], self.key.client[at + 1]]));
            sum += u64::from(u16::from_ne_bytes([self.key.pod[at], self.key.pod[at + 1]]));
        }
        sum
    }
}

/// Whether a packet has a socket whose peers are asked for at system calls; raw ones and those of packets are not.
#[inline(never)]
pub(crate) fn has_asking_socket(skb: *mut __sk_buff) -> u64 {
    // SAFETY: the context of the program; the verifier checks each access.
    unsafe {
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return 0;
        }
        let socket = bpf_sk_fullsock(socket);
        if socket.is_null() {
            return 0;
        }
        let has_call = matches!((*socket).protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_MPTCP);
        let is_usual = matches!((*socket).type_, SOCK_STREAM | SOCK_DGRAM);
        u64::from(matches!((*socket).family, AF_INET | AF_INET6) && is_usual && has_call)
    }
}

/// An address in words, as it is there.
#[inline(always)]
fn words(address: &[u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}

#[inline(always)]
fn store_answer(skb: *mut __sk_buff, offset: u32, answer: &Answer, len: u32) -> Option<()> {
    if len == 0 || len > MAX_ANSWER as u32 {
        return None;
    }
    let from = answer.bytes.as_ptr().cast::<c_void>();
    // SAFETY: the helper checks the offset, and reads so many bytes, which the answer has.
    let failed = unsafe { bpf_skb_store_bytes(skb, offset, from, len, u64::from(BPF_F_INVALIDATE_HASH)) };
    (failed == 0).then_some(())
}

/// Bytes of an answer.
#[inline(always)]
pub(crate) fn answer_len(number: u32, is_head: bool) -> u32 {
    let Some(answer) = ANSWERS.get_ptr(&number) else { return 0 };
    // SAFETY: a map value; it does not change.
    unsafe { if is_head { (*answer).head_len } else { (*answer).len } }
}

#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Sends a copy of the packet back: to the client, as if it came from the Pod, when it was on its way to the Pod, and else to the
/// Pod. Whether there was memory for it.
#[inline(always)]
pub(crate) fn send_copy(skb: *mut __sk_buff, was_to_pod: bool) -> bool {
    // SAFETY: the context of the program.
    unsafe {
        let mark = (*skb).mark;
        (*skb).mark = own_mark();
        let flags = if was_to_pod { BPF_F_INGRESS } else { 0 };
        let failed = bpf_clone_redirect(skb, (*skb).ifindex, u64::from(flags));
        (*skb).mark = mark;
        failed == 0
    }
}

/// Turns the packet round: to the client, when it was on its way to the Pod, and else to the Pod. Returns what the program returns.
#[inline(always)]
pub(crate) fn turn_round(skb: *mut __sk_buff, was_to_pod: bool) -> i32 {
    // SAFETY: the context of the program.
    unsafe {
        (*skb).mark = own_mark();
        let flags = if was_to_pod { BPF_F_INGRESS } else { 0 };
        bpf_redirect((*skb).ifindex, u64::from(flags)) as i32
    }
}
