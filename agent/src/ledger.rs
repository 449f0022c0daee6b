//! The count that must balance for each container: produced = delivered + pending + dropped{stage, reason}.
//!
//! Unit: bytes of the stream as the application wrote them, newlines included. Each figure is counted where it
//! happens, none is derived from the others, so that a mistake in one shows as a ledger that does not balance.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use crate::record::Resource;

/// Where bytes were lost.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// In the kernel, before the ring.
    Capture,
    /// Reading back from a file what the ring does not hold.
    Repair,
    /// Cutting into lines.
    Assemble,
    /// The configured processors.
    Process,
    /// Between the stages.
    Pipeline,
    /// In a sink.
    Sink,
}

/// Why bytes were lost: a closed set.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The container has used up its share of the ring.
    Quota,
    /// The ring was full.
    RingFull,
    /// A map of the kernel programs was full.
    MapFull,
    /// The writer's memory could not be read.
    Fault,
    /// The bytes have a place in the stream and never came, and nothing says why.
    Unknown,
    /// Written by a call that shows no bytes (`splice`, `sendfile`, `vmsplice`, `tee`, io_uring) into a pipe.
    Unreadable,
    /// One write larger than a record may be.
    Oversize,
    /// The file was truncated, or overwritten, before the missing bytes were read back.
    Truncated,
    /// The file could not be opened or read.
    Unavailable,
    /// The agent stopped before the sinks had taken everything.
    Shutdown,
    /// A sink's queue was full and its rule says drop.
    QueueFull,
    /// A sink refused the record for good.
    Rejected,
    /// The disk is full, or its quota.
    DiskFull,
    /// A reload took the sink away before it had taken everything.
    SinkRemoved,
    /// Left out on purpose: by a processor, by the filters of all sinks, or as the logs of its container are off.
    Filtered,
    /// Left out on purpose: a sample was kept.
    Sampled,
    /// Beyond a configured rate of lines.
    Suppressed,
    /// An agent of another build has left it, in a layout that this one can't read.
    Layout,
    /// A sink's buffer on disk was full and its rule says drop.
    BufferFull,
    /// A record in a sink's buffer on disk was damaged, or is of a form that this version can't read; or the journal of
    /// streams held what can't be.
    Damaged,
    /// Its place in the store is blocked for a time, and there is no more room to hold what waits for that.
    Blocked,
}

impl Stage {
    /// Every stage, in the order of the data path.
    pub const ALL: [Self; 6] = [Self::Capture, Self::Repair, Self::Assemble, Self::Process, Self::Pipeline, Self::Sink];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Repair => "repair",
            Self::Assemble => "assemble",
            Self::Process => "process",
            Self::Pipeline => "pipeline",
            Self::Sink => "sink",
        }
    }
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 21] = [
        Self::Quota,
        Self::RingFull,
        Self::MapFull,
        Self::Fault,
        Self::Unknown,
        Self::Unreadable,
        Self::Oversize,
        Self::Truncated,
        Self::Unavailable,
        Self::Shutdown,
        Self::QueueFull,
        Self::Rejected,
        Self::DiskFull,
        Self::SinkRemoved,
        Self::Filtered,
        Self::Sampled,
        Self::Suppressed,
        Self::Layout,
        Self::BufferFull,
        Self::Damaged,
        Self::Blocked,
    ];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::RingFull => "ring_full",
            Self::MapFull => "map_full",
            Self::Fault => "fault",
            Self::Unknown => "unknown",
            Self::Unreadable => "unreadable",
            Self::Oversize => "oversize",
            Self::Truncated => "truncated",
            Self::Unavailable => "unavailable",
            Self::Shutdown => "shutdown",
            Self::QueueFull => "queue_full",
            Self::Rejected => "rejected",
            Self::DiskFull => "disk_full",
            Self::SinkRemoved => "sink_removed",
            Self::Filtered => "filtered",
            Self::Sampled => "sampled",
            Self::Suppressed => "suppressed",
            Self::Layout => "layout",
            Self::BufferFull => "buffer_full",
            Self::Damaged => "damaged",
            Self::Blocked => "blocked",
        }
    }
}

/// The account of one container, or of the node itself.
#[derive(Debug, Default)]
pub struct Account {
    /// Id of the container's cgroup; 0 for the node itself.
    pub cgroup: u64,
    /// Whose account it is.
    pub resource: Arc<Resource>,
    produced: AtomicU64,
    delivered: AtomicU64,
    delivered_lines: AtomicU64,
    pending: AtomicI64,
    /// What will be booked as delivered or lost too much: batches that several buffers on disk hold are booked by each.
    overbooked: AtomicU64,
    /// What came as delivered while nothing was pending.
    excess: AtomicU64,
    dropped: [[AtomicU64; Reason::ALL.len()]; Stage::ALL.len()],
}

/// One reading of an [`Account`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Balance {
    /// Bytes that the container wrote to its streams since the agent knows it.
    pub produced: u64,
    /// Bytes that every sink which wants them has acknowledged.
    pub delivered: u64,
    /// Lines that those bytes made.
    pub delivered_lines: u64,
    /// Bytes on their way.
    pub pending: i64,
    /// Bytes lost; only entries that are not zero.
    pub dropped: Vec<(Stage, Reason, u64)>,
}

impl Balance {
    /// Bytes lost, in all.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(|(_, _, bytes)| bytes).sum()
    }

    /// Produced minus all that is accounted for; zero when the ledger balances.
    #[must_use]
    pub fn difference(&self) -> i128 {
        i128::from(self.produced)
            - i128::from(self.delivered)
            - i128::from(self.pending)
            - i128::from(self.dropped_total())
    }
}

impl Account {
    /// An account for `resource`, all zero.
    #[must_use]
    pub fn new(cgroup: u64, resource: Arc<Resource>) -> Self {
        Self { cgroup, resource, ..Self::default() }
    }

    /// Books bytes that the container wrote and that are now on their way, or already known to be lost.
    pub fn produce(&self, bytes: u64) {
        self.produced.fetch_add(bytes, Relaxed);
        self.pending.fetch_add(bytes.cast_signed(), Relaxed);
    }

    /// Books pending bytes as acknowledged by every sink. What is more than is pending was delivered by several sinks, from
    /// their buffers: it is kept for [`Account::overbook`], which tells of it when the last of them is heard of.
    pub fn deliver(&self, bytes: u64, lines: u64) {
        let most = |pending: i64| bytes.min(pending.max(0).cast_unsigned());
        let before = self.pending.fetch_update(Relaxed, Relaxed, |pending| Some(pending - most(pending).cast_signed()));
        let booked = before.map_or(0, most);
        self.excess.fetch_add(bytes - booked, Relaxed);
        self.delivered.fetch_add(booked, Relaxed);
        if booked > 0 || bytes == 0 {
            self.delivered_lines.fetch_add(lines, Relaxed);
        }
    }

    /// Books pending bytes as lost.
    pub fn drop_bytes(&self, stage: Stage, reason: Reason, bytes: u64) {
        self.pending.fetch_sub(bytes.cast_signed(), Relaxed);
        self.dropped[stage as usize][reason as usize].fetch_add(bytes, Relaxed);
    }

    /// Notes bytes that will be booked once too often, or have been.
    pub fn overbook(&self, bytes: u64) {
        let been = take(&self.excess, bytes);
        self.overbooked.fetch_add(bytes - been, Relaxed);
    }

    /// How many of `bytes` that are to be booked are not, since they are booked elsewhere.
    pub fn take_overbooked(&self, bytes: u64) -> u64 {
        take(&self.overbooked, bytes)
    }

    /// The figures now. They are read one after the other: a reading under load may be off by what moved meanwhile.
    #[must_use]
    pub fn balance(&self) -> Balance {
        let mut dropped = Vec::new();
        for stage in Stage::ALL {
            for reason in Reason::ALL {
                let bytes = self.dropped[stage as usize][reason as usize].load(Relaxed);
                if bytes > 0 {
                    dropped.push((stage, reason, bytes));
                }
            }
        }
        Balance {
            produced: self.produced.load(Relaxed),
            delivered: self.delivered.load(Relaxed),
            delivered_lines: self.delivered_lines.load(Relaxed),
            pending: self.pending.load(Relaxed),
            dropped,
        }
    }
}

/// Takes up to `bytes` out of a counter; returns how many.
fn take(counter: &AtomicU64, bytes: u64) -> u64 {
    let before = counter.fetch_update(Relaxed, Relaxed, |left| Some(left - left.min(bytes)));
    before.map_or(0, |before| before.min(bytes))
}

/// All accounts by the container's cgroup id; 0 is the node itself.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: Mutex<HashMap<u64, Arc<Account>>>,
}

impl Ledger {
    /// The account of a cgroup, opened with `resource` when there is none.
    pub fn open(&self, cgroup_id: u64, resource: &Arc<Resource>) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(accounts.entry(cgroup_id).or_insert_with(|| Arc::new(Account::new(cgroup_id, Arc::clone(resource)))))
    }

    /// Closes the account of a container that is gone and whose last record is out.
    pub fn close(&self, cgroup_id: u64) {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).remove(&cgroup_id);
    }

    /// The account of a cgroup, when it has one.
    #[must_use]
    pub fn account(&self, cgroup_id: u64) -> Option<Arc<Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).get(&cgroup_id).map(Arc::clone)
    }

    /// All accounts now.
    #[must_use]
    pub fn accounts(&self) -> Vec<(u64, Arc<Account>)> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.iter().map(|(id, account)| (*id, Arc::clone(account))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balances_when_each_byte_is_booked_once() {
        let account = Account::default();
        account.produce(100);
        account.deliver(60, 3);
        account.drop_bytes(Stage::Capture, Reason::RingFull, 30);
        let balance = account.balance();
        assert_eq!(balance.pending, 10);
        assert_eq!(balance.dropped, [(Stage::Capture, Reason::RingFull, 30)]);
        assert_eq!(balance.difference(), 0);
    }

    #[test]
    fn what_several_buffers_deliver_is_booked_once_in_whatever_order() {
        // Four sinks have the same 100 bytes on disk; the batch is over when the last of them has let go of it.
        for told_after in 0..=4 {
            let account = Account::default();
            account.produce(100);
            for delivery in 0..4 {
                if delivery == told_after {
                    account.overbook(300);
                }
                let elsewhere = account.take_overbooked(100);
                account.deliver(100 - elsewhere, 1);
            }
            if told_after == 4 {
                account.overbook(300);
            }
            let balance = account.balance();
            assert_eq!(
                (balance.delivered, balance.pending, balance.difference()),
                (100, 0, 0),
                "told after {told_after}"
            );
            account.produce(50);
            account.deliver(50 - account.take_overbooked(50), 1);
            assert_eq!(account.balance().delivered, 150);
        }
    }

    #[test]
    fn every_stage_and_reason_has_its_own_cell() {
        let account = Account::default();
        for stage in Stage::ALL {
            for reason in Reason::ALL {
                account.drop_bytes(stage, reason, 1);
            }
        }
        let balance = account.balance();
        assert_eq!(balance.dropped.len(), Stage::ALL.len() * Reason::ALL.len());
        assert!(balance.dropped.iter().all(|(_, _, bytes)| *bytes == 1));
    }
}
