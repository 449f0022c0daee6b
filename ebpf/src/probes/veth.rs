//! The Pod's interface on the node: what the node sends there goes to the Pod, and what it receives there comes from it.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use sidestep_abi::http::{Interface, LOOKS_FLOWS, LOOKS_REQUESTS, LOOKS_VOLUME_IN, LOOKS_VOLUME_OUT};

use crate::{
    flows::Rules,
    generation,
    maps::{INTERFACES, PACKET},
    packet::{self, DROP, PASS, Packet},
    requests,
    volume::{self, Way},
};

/// The interface of a packet that is for this set of programs, and room to read the packet to.
#[inline(always)]
fn enter(skb: *mut __sk_buff) -> Option<(&'static mut Packet, &'static mut Interface)> {
    // A packet that the programs of another set have made is theirs to know.
    if !generation::is_active() || packet::is_ours(skb) {
        return None;
    }
    let (packet, interface) = reenter(skb)?;
    packet.counted.clear();
    Some((packet, interface))
}

#[inline(always)]
fn reenter(skb: *mut __sk_buff) -> Option<(&'static mut Packet, &'static mut Interface)> {
    // SAFETY: the context of the program.
    let index = unsafe { (*skb).ifindex };
    let interface = INTERFACES.get_ptr_mut(&index)?;
    let packet = PACKET.get_ptr_mut(0)?;
    // SAFETY: this CPU's own: what these programs send meets them again with a mark, by which they let it pass unread; and a map
    // value.
    Some(unsafe { (&mut *packet, &mut *interface) })
}

/// What a packet that could not be read gets.
#[inline(always)]
fn unread(packet: &Packet, interface: &Interface) -> i32 {
    if packet.is_broken != 0 && interface.looks & LOOKS_FLOWS != 0 { DROP } else { PASS }
}

#[classifier]
pub(crate) fn to_pod(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some((packet, interface)) = enter(skb) else { return PASS };
    let mut verdict = PASS;
    if packet.read(skb, 1) == 0 {
        verdict = unread(packet, interface);
    } else {
        if interface.looks & LOOKS_FLOWS != 0 {
            verdict = judge_to_pod(skb);
        }
        // Who was answered is stood in for when the limit has gone, too.
        if verdict == PASS && (interface.looks & LOOKS_REQUESTS != 0 || requests::has_limited(interface)) {
            verdict = limit_to_pod(skb);
        }
    }
    if verdict == PASS && interface.looks & LOOKS_VOLUME_IN != 0 {
        verdict = measure_to_pod(skb);
    }
    if packet.counted.is_any() {
        tell(skb);
    }
    verdict
}

#[classifier]
pub(crate) fn from_pod(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some((packet, interface)) = enter(skb) else { return PASS };
    let has_limited = requests::has_limited(interface);
    if interface.looks & (LOOKS_FLOWS | LOOKS_VOLUME_OUT) == 0 && !has_limited {
        return PASS;
    }
    let mut verdict = PASS;
    if packet.read(skb, 0) == 0 {
        verdict = unread(packet, interface);
    } else {
        if interface.looks & LOOKS_FLOWS != 0 {
            verdict = judge_from_pod(skb);
        }
        if verdict == PASS && has_limited {
            verdict = requests::from_pod(skb, packet);
        }
    }
    if verdict == PASS && interface.looks & LOOKS_VOLUME_OUT != 0 {
        verdict = measure_from_pod(skb);
    }
    if packet.counted.is_any() {
        tell(skb);
    }
    verdict
}

/// Lists and limits of connections, of the packet that was read and goes to the Pod. A function that is visible outside of
/// the object is verified once, on its own (`BPF_FUNC_GLOBAL`, Linux 5.6); the rest of the program would be verified after
/// each way through it otherwise.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn judge_to_pod(skb: *mut __sk_buff) -> i32 {
    let Some((packet, interface)) = reenter(skb) else { return PASS };
    let Some(rules) = Rules::of(interface) else { return PASS };
    rules.to_pod(skb, packet)
}

/// Limits of requests, of the packet that was read and goes to the Pod.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn limit_to_pod(skb: *mut __sk_buff) -> i32 {
    let Some((packet, interface)) = reenter(skb) else { return PASS };
    requests::to_pod(skb, packet, interface)
}

/// Lists, of the packet that was read and comes from the Pod.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn judge_from_pod(skb: *mut __sk_buff) -> i32 {
    let Some((packet, interface)) = reenter(skb) else { return PASS };
    let Some(rules) = Rules::of(interface).filter(Rules::has_lists) else { return PASS };
    rules.from_pod(skb, packet)
}

/// Limits of packets and bytes, of a packet that all else has let through to the Pod.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn measure_to_pod(skb: *mut __sk_buff) -> i32 {
    let Some((packet, interface)) = reenter(skb) else { return PASS };
    volume::judge(skb, packet, interface, Way::ToPod)
}

/// The same of one that comes from it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn measure_from_pod(skb: *mut __sk_buff) -> i32 {
    let Some((packet, interface)) = reenter(skb) else { return PASS };
    volume::judge(skb, packet, interface, Way::FromPod)
}

/// Tells of what was refused of the packet that was read.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tell(skb: *mut __sk_buff) -> i32 {
    let Some((packet, _)) = reenter(skb) else { return PASS };
    packet.tell();
    PASS
}
