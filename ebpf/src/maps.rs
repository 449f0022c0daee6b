//! Every map, declared once. Sizes are defaults: the agent sets them at load.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};
use sidestep_abi::{
    container::Container,
    file::{FileState, RetiredKey, Verdict},
    govern::{
        Allowed, AllowedKey, AskerKey, BucketKey, ClientKey, Flow, FlowKey, Governed, GovernedKey, RefusedKey, ToldKey,
    },
    http::{Answer, Connection, ConnectionKey, HttpRules, Interface},
    kernel::{Control, Generations, MAX_ROOTS, Reader},
    stdio::{InodeKey, Stdio},
};

use crate::packet::Packet;

/// All records for the agent, in the order in which their space was reserved.
#[map]
pub(crate) static RING: RingBuf = RingBuf::with_byte_size(16 * 1024 * 1024, 0);

/// One entry: which generation of programs acts. Shared by all that are attached.
#[map]
pub(crate) static ACTIVE: Array<Generations> = Array::with_max_entries(1, 0);

/// One entry: the generation that acts on this CPU while two are attached; see `generation`. Shared as `ACTIVE` is.
#[map]
pub(crate) static LATCH: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// One entry: what may change while the programs run.
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// One entry: what the reader of the ring is doing.
#[map]
pub(crate) static READER: Array<Reader> = Array::with_max_entries(1, 0);

/// Containers by cgroup id.
#[map]
pub(crate) static CONTAINERS: HashMap<u64, Container> = HashMap::with_max_entries(16384, 0);

/// Index in [`Control::roots`] of each governed root, by cgroup id.
#[map]
pub(crate) static ROOT_INDEX: HashMap<u64, u32> = HashMap::with_max_entries(MAX_ROOTS as u32, 0);

/// Children of a governed root with a prefix that match it, by cgroup id.
#[map]
pub(crate) static MEMBERS: HashMap<u64, u32> = HashMap::with_max_entries(4096, 0);

/// Whether a cgroup is governed, by the low bits of its id: see `policy::is_current_governed`.
#[map]
pub(crate) static DECISIONS: Array<u64> = Array::with_max_entries(DECISION_SLOTS, 0);
/// A power of two.
pub(crate) const DECISION_SLOTS: u32 = 1024;

/// Registered standard streams by inode.
#[map]
pub(crate) static STDIO: HashMap<InodeKey, Stdio> = HashMap::with_max_entries(32768, 0);

/// Regular files that governed processes write, by inode. A judged file that is evicted is judged again.
#[map]
pub(crate) static FILES: LruHashMap<InodeKey, FileState> = LruHashMap::with_max_entries(65536, 0);

/// Files that may be logs and whose inode number another name has by now, with what was written to them. The agent takes
/// them out.
#[map]
pub(crate) static RETIRED: LruHashMap<RetiredKey, FileState> = LruHashMap::with_max_entries(16384, 0);

/// The agent's verdicts, by inode. An entry is needed until the next write to the file.
#[map]
pub(crate) static VERDICTS: LruHashMap<InodeKey, Verdict> = LruHashMap::with_max_entries(16384, 0);

/// Events that could not be handed over, by event kind; what they were about is found by the agent's sweeps.
#[map]
pub(crate) static LOST: Array<u64> = Array::with_max_entries(16, 0);

/// One entry: the generation of policies that is in force; 0 when there is none.
#[map]
pub(crate) static GOVERNING: Array<u64> = Array::with_max_entries(1, 0);

/// What holds for a Pod, of the generation that is in force and of one that is being written.
#[map]
pub(crate) static GOVERNED: HashMap<GovernedKey, Governed> = HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);

/// Lists of networks, of two generations.
#[map]
pub(crate) static ALLOWED: LpmTrie<AllowedKey, Allowed> = LpmTrie::with_max_entries(262_144, 0);

/// State of limits: the theoretical arrival time of the next.
#[map]
pub(crate) static BUCKETS: HashMap<BucketKey, u64> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// State of limits that each client has. One that is evicted begins anew.
#[map]
pub(crate) static CLIENTS: LruHashMap<ClientKey, u64> = LruHashMap::with_max_entries(65536, 0);

/// How many were refused.
#[map]
pub(crate) static REFUSED: HashMap<RefusedKey, u64> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// When somebody's refusal was told of: nanoseconds of `CLOCK_MONOTONIC`.
#[map]
pub(crate) static TOLD: LruHashMap<ToldKey, u64> = LruHashMap::with_max_entries(16384, 0);

/// Connections of Pods that have lists. One that is evicted is judged once more.
#[map]
pub(crate) static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(65536, 0);

/// Who has sent datagrams to a Pod that may not send to all, and when.
#[map]
pub(crate) static ASKERS: LruHashMap<AskerKey, u64> = LruHashMap::with_max_entries(16384, 0);

/// Interfaces of Pods whose packets are looked at, by their index on the node.
#[map]
pub(crate) static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Limits of HTTP requests, by the set's number.
#[map]
pub(crate) static REQUEST_RULES: HashMap<u32, HttpRules> = HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);

/// What is answered to who is limited, by number.
#[map]
pub(crate) static ANSWERS: HashMap<u32, Answer> = HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);

/// Connections to Pods whose requests are limited. One that is evicted is as one that has just begun.
#[map]
pub(crate) static CONNECTIONS: LruHashMap<ConnectionKey, Connection> = LruHashMap::with_max_entries(65536, 0);

/// What is too large for the stack.
#[map]
pub(crate) static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);
