//! Connections that a Pod opens and datagrams that it sends: asked before anything leaves, so that a refusal is an error of
//! the system call (`EPERM`) and no time-out.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::govern::{self, Act, Peer};

/// What the kernel takes for yes.
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

#[inline(always)]
fn peer4(ctx: &SockAddrContext) -> Peer {
    // SAFETY: the context of the program; the verifier checks the access.
    let (address, port, protocol) =
        unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    let [a, b, c, d] = address.to_ne_bytes();
    let address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d];
    Peer { address, port: u16::from_be(port as u16), protocol: protocol as u8 }
}

#[inline(always)]
fn peer6(ctx: &SockAddrContext) -> Peer {
    // SAFETY: as in `peer4`.
    let (words, port, protocol) = unsafe {
        let words = [
            (*ctx.sock_addr).user_ip6[0],
            (*ctx.sock_addr).user_ip6[1],
            (*ctx.sock_addr).user_ip6[2],
            (*ctx.sock_addr).user_ip6[3],
        ];
        (words, (*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol)
    };
    let [w0, w1, w2, w3] = words.map(u32::to_ne_bytes);
    let address = [
        w0[0], w0[1], w0[2], w0[3], w1[0], w1[1], w1[2], w1[3], w2[0], w2[1], w2[2], w2[3], w3[0], w3[1], w3[2], w3[3],
    ];
    Peer { address, port: u16::from_be(port as u16), protocol: protocol as u8 }
}

#[inline(always)]
fn answer(act: Act, peer: &Peer) -> i32 {
    if govern::may(act, peer) { ALLOW } else { REFUSE }
}

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    answer(Act::Connect, &peer4(&ctx))
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    answer(Act::Connect, &peer6(&ctx))
}

/// A socket that has a peer, and sends with control messages, is asked without an address (`udp_sendmsg`): its peer was asked
/// when it was named.
#[inline(always)]
fn is_connected(peer: &Peer, from: usize) -> bool {
    let mut any = u16::from(peer.port != 0);
    for byte in &peer.address[from..] {
        any |= u16::from(*byte);
    }
    any == 0
}

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let peer = peer4(&ctx);
    if is_connected(&peer, 12) { ALLOW } else { answer(Act::Send, &peer) }
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let peer = peer6(&ctx);
    if is_connected(&peer, 0) { ALLOW } else { answer(Act::Send, &peer) }
}
