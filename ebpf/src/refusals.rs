//! What was refused: each is counted, and some are told of.

use aya_ebpf::bindings::BPF_NOEXIST;
use sidestep_abi::{
    event,
    govern::{
        BucketKey, EGRESS, INGRESS, LIMIT_RECORDS, OBSERVES, OUTCOME_MARKED, OUTCOME_OBSERVED, OUTCOME_REFUSED,
        PER_POD, REASON_REQUEST_RATE, REQUEST_SPACE, Rate, Refusal, RefusedKey, Tier, ToldKey,
    },
    http::ConnectionKey,
};

use crate::{
    emit, govern,
    maps::{REFUSED, TOLD},
};

/// The same peer of the same Pod is told of once in so many nanoseconds.
const AGAIN: u64 = 1_000_000_000;
/// For one Pod, direction and mode: ten records in a second, a hundred at once.
const RECORDS: Rate = Rate { interval: 100_000_000, tolerance: 99 * 100_000_000, per: PER_POD };

/// What is refused.
#[derive(Clone, Copy)]
pub(crate) struct What {
    /// `REASON_*`
    pub(crate) reason: u8,
    /// `EGRESS` or `INGRESS`
    pub(crate) direction: u8,
    /// As [`RefusedKey::limit`].
    pub(crate) limit: u32,
}

impl What {
    /// The Pod's own doing, by what a tier has one of.
    pub(crate) const fn egress(reason: u8) -> Self {
        Self { reason, direction: EGRESS, limit: 0 }
    }

    /// Others', in the same way.
    pub(crate) const fn ingress(reason: u8) -> Self {
        Self { reason, direction: INGRESS, limit: 0 }
    }

    #[inline(always)]
    const fn key(self, cgroup: u64, tier: usize, outcome: u8) -> RefusedKey {
        let Self { reason, direction, limit } = self;
        RefusedKey { cgroup, reason, direction, outcome, tier: tier as u8, limit }
    }
}

/// What else is known of a refusal.
#[derive(Clone, Copy)]
pub(crate) enum Detail<'a> {
    Nothing,
    /// Who has asked, at a system call: `bpf_get_current_pid_tgid`.
    Process(u64),
    /// The beginning of a request, and how many bytes of it there are.
    Request(&'a [u8; REQUEST_SPACE], u32),
}

/// What was counted last of a packet or call, and is to be told of.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Counted {
    refused: RefusedKey,
    /// How many of the kind; 0 when nothing was counted.
    count: u64,
}

impl Counted {
    pub(crate) const NOTHING: Self =
        Self { refused: RefusedKey { cgroup: 0, reason: 0, direction: 0, outcome: 0, tier: 0, limit: 0 }, count: 0 };

    /// Forgets it.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        self.count = 0;
    }

    /// Whether there is anything to tell of.
    #[inline(always)]
    pub(crate) fn is_any(&self) -> bool {
        self.count != 0
    }

    /// Whether it was a request.
    #[inline(always)]
    pub(crate) fn is_request(&self) -> bool {
        self.refused.reason == REASON_REQUEST_RATE
    }

    /// Counts that a tier does not let something through, where this set of programs `acts`; whether it is let through all the same.
    #[inline(always)]
    pub(crate) fn let_through(&mut self, cgroup: u64, index: usize, tier: &Tier, what: What, acts: bool) -> bool {
        let observes = tier.flags & OBSERVES != 0;
        if acts {
            let outcome = if observes { OUTCOME_OBSERVED } else { OUTCOME_REFUSED };
            let refused = what.key(cgroup, index, outcome);
            let count = count(&refused);
            // What could not be counted takes the place of nothing.
            if count != 0 {
                (self.refused, self.count) = (refused, count);
            }
        }
        observes
    }

    /// Whether the peer was not told of a moment ago; of several CPUs that ask one is the first.
    #[inline(always)]
    fn is_first(&self, peer: &[u8; 16], now: u64) -> bool {
        let key = ToldKey { refused: self.refused, peer: *peer };
        let Some(told) = TOLD.get_ptr_mut(&key) else {
            return TOLD.insert(&key, &now, u64::from(BPF_NOEXIST)).is_ok();
        };
        // SAFETY: a map value of one word.
        let known = unsafe { told.read_volatile() };
        now.saturating_sub(known) >= AGAIN && emit::exchange(told, known, now).1
    }

    /// Tells of what was counted, unless the peer was told of a moment ago, or many others of this Pod were.
    #[inline(always)]
    pub(crate) fn tell(&self, ends: &ConnectionKey, protocol: u8, detail: Detail<'_>) {
        let cgroup = self.refused.cgroup;
        let (pid_tgid, request) = match detail {
            Detail::Process(pid_tgid) => (pid_tgid, None),
            Detail::Request(bytes, len) => (0, Some((bytes, len))),
            Detail::Nothing => (0, None),
        };
        let mut header = emit::header(event::REFUSED, cgroup, (pid_tgid >> 32) as u32, pid_tgid as u32);
        if !self.is_first(&ends.client, header.time) || !emit::has_room() {
            return;
        }
        // So that what others do to the Pod does not hide what it does, nor what is observed what is refused.
        let limit = LIMIT_RECORDS | u32::from(self.refused.direction) << 1 | u32::from(self.refused.outcome);
        if govern::take(&BucketKey { cgroup, limit, _pad: 0 }, &RECORDS, &ends.client) == 0 {
            return;
        }
        if let Some((_, len)) = request {
            header.len = if len < REQUEST_SPACE as u32 { len } else { REQUEST_SPACE as u32 };
        }
        let (refused, count, ends) = (self.refused, self.count, *ends);
        let refusal = Refusal { header, refused, count, ends, protocol: u32::from(protocol), _pad: 0 };
        emit::refusal(&refusal, request.map(|(bytes, _)| bytes));
    }
}

/// Counts that the other end of something was told to send less.
#[inline(always)]
pub(crate) fn mark(cgroup: u64, index: usize, what: What) {
    count(&what.key(cgroup, index, OUTCOME_MARKED));
}

/// Counts what could not be counted by its Pod, or limited: a map is full.
#[inline(always)]
pub(crate) fn lose() {
    if let Some(counter) = REFUSED.get_ptr_mut(&Counted::NOTHING.refused) {
        emit::add(counter, 1);
    }
}

/// Counts one; returns how many there are with it.
#[inline(always)]
fn count(refused: &RefusedKey) -> u64 {
    if let Some(counter) = REFUSED.get_ptr_mut(refused) {
        return emit::add(counter, 1) + 1;
    }
    if REFUSED.insert(refused, &1, u64::from(BPF_NOEXIST)).is_ok() {
        return 1;
    }
    match REFUSED.get_ptr_mut(refused) {
        Some(counter) => emit::add(counter, 1) + 1,
        None => {
            lose();
            0
        }
    }
}
