//! Where everything that outlives an agent lies: records that wait in a pinned ring, values of pinned maps. An agent pins
//! this beside them, so that the next one, of whatever build, finds out whether it can go on with them.

use core::mem::{MaybeUninit, offset_of};

use crate::{
    Header,
    container::{Container, ContainerEvent},
    event,
    file::{FileSeen, FileState, RetiredKey, Verdict},
    govern::{
        Allowed, AllowedKey, AskerKey, BucketKey, ClientKey, Flow, FlowKey, Governed, GovernedKey, PortRange, Rate,
        Refusal, RefusedKey, Tier,
    },
    http::{Answer, Connection, ConnectionKey, HttpRule, HttpRules, Interface},
    log::LogEvent,
    stdio::{InodeKey, Stdio},
};

/// What the bits of `flags`, and codes such as those of `iostream`, mean. To be raised when one of them changes its
/// meaning: an agent that knows another number leaves the records unread, and says so.
pub const MEANING: u32 = 1;

/// A field of a structure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Field {
    /// Its path.
    pub name: &'static str,
    /// Bytes before it.
    pub offset: usize,
    /// Its bytes.
    pub size: usize,
}

/// A structure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    /// The record's or the map's name.
    pub name: &'static str,
    /// Its bytes.
    pub size: usize,
    /// Its fields, without the padding that has a name.
    pub fields: &'static [Field],
}

const fn size_behind<T>(_: *const T) -> usize {
    size_of::<T>()
}

macro_rules! shape {
    ($name:literal, $type:ty, $($($part:ident).+),+ $(,)?) => {
        Shape {
            name: $name,
            size: size_of::<$type>(),
            fields: const { &[$(
                Field {
                    name: stringify!($($part).+),
                    offset: offset_of!($type, $($part).+),
                    size: {
                        let value = MaybeUninit::<$type>::uninit();
                        // SAFETY: only the address of the field is taken, and it is inside the value.
                        size_behind(unsafe { &raw const (*value.as_ptr()).$($part).+ })
                    },
                },
            )+] },
        }
    };
}

/// A record: its head, and what follows it.
macro_rules! record {
    ($name:literal, $type:ty, $($($part:ident).+),+ $(,)?) => {
        shape!(
            $name, $type, header.kind, header.flags, header.len, header.time, header.cgroup, header.tgid, header.tid,
            $($($part).+),+
        )
    };
}

/// The head that every record starts with.
pub const HEADER: Shape = shape!("header", Header, kind, flags, len, time, cgroup, tgid, tid);

/// Kinds of records by name, and the fixed part of each.
pub const RECORDS: [(u16, Shape); 8] = [
    (event::STDIO_DATA, log("stdio_data")),
    (event::FILE_DATA, log("file_data")),
    (event::FILE_SEEN, record!("file_seen", FileSeen, ino, dev, fd, position, name_hash,)),
    (event::CONTAINER_STARTED, container("container_started")),
    (event::CGROUP_MADE, container("cgroup_made")),
    (event::CGROUP_EMPTY, container("cgroup_empty")),
    (event::CGROUP_REMOVED, container("cgroup_removed")),
    (
        event::REFUSED,
        record!(
            "refused",
            Refusal,
            refused.cgroup,
            refused.reason,
            refused.direction,
            refused.outcome,
            refused.tier,
            refused.limit,
            count,
            ends.client,
            ends.pod,
            ends.client_port,
            ends.pod_port,
            protocol,
        ),
    ),
];

const fn log(name: &'static str) -> Shape {
    // What was added is nothing that another build needs.
    let shape = record!("", LogEvent, ino, dev, iostream, position, description,);
    Shape { name, ..shape }
}

const fn container(name: &'static str) -> Shape {
    let shape = record!("", ContainerEvent, stdio,);
    Shape { name, ..shape }
}

/// Keys and values of the maps that one set of programs can take over from another, by the map's name.
pub const VALUES: [Shape; 27] = [
    shape!("CONTAINERS", Container, newer, older, mark, unasked, init),
    shape!("STDIO", Stdio, cgroup, registered, written, dropped, iostream),
    shape!("STDIO key", InodeKey, ino, dev),
    shape!("FILES", FileState, verdict, name_hash, announced, captured, written, reach),
    shape!("FILES key", InodeKey, ino, dev),
    shape!("RETIRED", FileState, verdict, name_hash, announced, captured, written, reach),
    shape!("RETIRED key", RetiredKey, ino, dev, announced),
    shape!("VERDICTS", Verdict, announced, verdict),
    shape!("GOVERNED", Governed, tiers),
    shape!("GOVERNED item", Tier, flags, egress, ingress, requests, limits,),
    shape!("GOVERNED item item", Rate, interval, tolerance, per),
    shape!("GOVERNED key", GovernedKey, cgroup, generation),
    shape!("ALLOWED", Allowed, len, ranges),
    shape!("ALLOWED item", PortRange, first, last, protocol),
    shape!("ALLOWED key", AllowedKey, list, address),
    shape!("BUCKETS key", BucketKey, cgroup, limit),
    shape!("CLIENTS key", ClientKey, bucket.cgroup, bucket.limit, client),
    shape!("FLOWS", Flow, generation, flags, seen),
    shape!("FLOWS key", FlowKey, ends, protocol),
    shape!("ASKERS key", AskerKey, cgroup, address, port, protocol),
    shape!("REFUSED key", RefusedKey, cgroup, reason, direction, outcome, tier, limit),
    shape!("INTERFACES", Interface, cgroup, limited_at, network, pod_network, looks),
    shape!("REQUEST_RULES", HttpRules, len, rules),
    shape!(
        "REQUEST_RULES item",
        HttpRule,
        rate.interval,
        rate.tolerance,
        rate.per,
        limit,
        answer,
        methods,
        path_len,
        port,
        path,
        mask,
    ),
    shape!("ANSWERS", Answer, len, head_len, sum, head_sum, bytes),
    shape!(
        "CONNECTIONS",
        Connection,
        flags,
        request_ack,
        request_seq,
        answer_start,
        answer_end,
        answer,
        swallowed,
        limited_at,
    ),
    shape!("CONNECTIONS key", ConnectionKey, client, pod, client_port, pod_port, interface),
];
