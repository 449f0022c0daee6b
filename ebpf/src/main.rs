#![no_std]
#![no_main]
// The target has no `AtomicU64::fetch_add`; the instruction exists since Linux 5.12.
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "core::intrinsics is the only way to the BPF atomic instructions")]

//! Kernel programs of Sidestep. Reading order: `probes` (attach points) -> `generation` (is it its turn) -> `policy`
//! (may it, must it) -> `emit` (ring).

mod emit;
mod files;
mod flows;
mod generation;
mod govern;
mod kernel;
mod maps;
mod packet;
mod policy;
mod probes;
mod refusals;
mod requests;
mod volume;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which a panic is reachable, so this is never run.
    loop {}
}

/// The helpers that read memory are for programs under a GPL-compatible licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
