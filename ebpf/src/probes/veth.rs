//! The Pod's interface on the node: what the node sends there goes to the Pod, and what it receives there comes from it.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::requests;

#[classifier]
pub(crate) fn to_pod(ctx: TcContext) -> i32 {
    requests::to_pod(ctx.skb.skb)
}

#[classifier]
pub(crate) fn from_pod(ctx: TcContext) -> i32 {
    requests::from_pod(ctx.skb.skb)
}
