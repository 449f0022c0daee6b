//! Whose turn it is, while the programs of two agents are attached: a takeover flips one word, and every event is
//! handled by one of both, and by one only.
//!
//! Comparing a program's own generation with the word is not enough: both programs look at it one after the other, and
//! between two looks it may change. So while two are attached, the first of them that an event reaches notes what the
//! word says for this CPU, and both go by the note. Which one is first is fixed by the kernel (see [`Order`]), and nothing
//! else runs on the CPU between the two.

use core::ptr::{addr_of, read_volatile};

use crate::maps::{ACTIVE, LATCH};

/// The generation of this set of programs; set by the agent before load, from 1 on.
#[unsafe(no_mangle)]
static GENERATION: u64 = 0;

/// In which order the kernel calls programs at the same point.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    /// Tracepoints, raw or not: as they were attached (`bpf_prog_array_copy`, `tracepoint_add_func`).
    OldestFirst,
    /// `fexit`: the other way round (`bpf_trampoline_link_prog`).
    NewestFirst,
}

/// Whether this set of programs is the one that acts, as it is known at this moment: for packets, which may come between two
/// programs of another event, and of which one more or less while a takeover flips the word is none the worse.
#[inline(always)]
pub(crate) fn is_active() -> bool {
    // SAFETY: a load from a static of this object.
    let own = unsafe { read_volatile(addr_of!(GENERATION)) };
    let Some(generations) = ACTIVE.get_ptr(0) else { return false };
    // SAFETY: a map value; the agent writes it word by word.
    unsafe { (&raw const (*generations).active).read_volatile() == own }
}

/// Whether this set of programs is to handle the current event.
#[inline(always)]
pub(crate) fn acts(order: Order) -> bool {
    // SAFETY: a load from a static of this object.
    let own = unsafe { read_volatile(addr_of!(GENERATION)) };
    let Some(generations) = ACTIVE.get_ptr(0) else { return false };
    // SAFETY: a map value; the agent writes it word by word, and each word stands for itself.
    let (active, lowest, highest) = unsafe {
        (
            (&raw const (*generations).active).read_volatile(),
            (&raw const (*generations).lowest).read_volatile(),
            (&raw const (*generations).highest).read_volatile(),
        )
    };
    if lowest == highest {
        return active == own;
    }
    let first = match order {
        Order::OldestFirst => lowest,
        Order::NewestFirst => highest,
    };
    let Some(latch) = LATCH.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own value of one word.
    unsafe {
        if own == first {
            latch.write_volatile(active);
            return active == own;
        }
        // One that is below the lowest is about to be detached.
        own >= lowest && latch.read_volatile() == own
    }
}
