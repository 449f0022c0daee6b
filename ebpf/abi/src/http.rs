//! Limits of HTTP requests: their rules, their answers, and the connections that were answered.

use crate::{assert_layout, govern::Rate, pod};

/// Rules of one set.
pub const MAX_RULES: usize = 8;
/// Bytes of a rule's path.
pub const MAX_PATH: usize = 64;
/// Bytes of an answer: it has to fit into one segment of the smallest path (RFC 8200: 1280 bytes with all headers).
pub const MAX_ANSWER: usize = 1024;

/// The number of no set of rules.
pub const NO_RULES: u32 = 0;

/// `GET`, of [`HttpRule::methods`].
pub const METHOD_GET: u16 = 1;
/// `HEAD`: its answer has no body.
pub const METHOD_HEAD: u16 = 1 << 1;
/// `POST`
pub const METHOD_POST: u16 = 1 << 2;
/// `PUT`
pub const METHOD_PUT: u16 = 1 << 3;
/// `DELETE`
pub const METHOD_DELETE: u16 = 1 << 4;
/// `PATCH`
pub const METHOD_PATCH: u16 = 1 << 5;
/// `OPTIONS`
pub const METHOD_OPTIONS: u16 = 1 << 6;

/// A Pod's interface on the node, by its index there.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct Interface {
    /// The Pod's cgroup, as [`crate::govern::GovernedKey::cgroup`].
    pub cgroup: u64,
    /// When a connection was answered last: nanoseconds of `CLOCK_MONOTONIC`.
    pub limited_at: u64,
    /// The network that the index is of: the inode of its namespace.
    pub network: u64,
    /// The number that this network has for the Pod's (`rtnetlink(7)`, `RTM_GETNSID`).
    pub pod_network: u32,
    /// What programs are there for, `LOOKS_*`.
    pub looks: u32,
}
assert_layout!(Interface, size 32);

/// Requests are limited.
pub const LOOKS_REQUESTS: u32 = 1;
/// Connections and datagrams are judged.
pub const LOOKS_FLOWS: u32 = 2;
/// What goes to the Pod is measured: packets and bytes.
pub const LOOKS_VOLUME_IN: u32 = 4;
/// What comes from it is.
pub const LOOKS_VOLUME_OUT: u32 = 8;

/// Limits of requests. A request has to be within all that match it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct HttpRules {
    /// How many of `rules` count.
    pub len: u64,
    /// The rules.
    pub rules: [HttpRule; MAX_RULES],
}
assert_layout!(HttpRules, size 8 + 168 * MAX_RULES);

/// A limit of requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct HttpRule {
    /// How many.
    pub rate: Rate,
    /// The number of its state, of [`crate::govern::BucketKey::limit`].
    pub limit: u32,
    /// The number of what is answered.
    pub answer: u32,
    /// `METHOD_*`; 0 stands for all.
    pub methods: u16,
    /// How many bytes of `path` count: 0 matches every path. Where it is not, and `path` does not end with a slash, what follows in a
    /// request has to be the end of a segment.
    pub path_len: u16,
    /// The Pod's port; 0 stands for all.
    pub port: u16,
    /// Zero.
    pub _pad: u16,
    /// What the path begins with.
    pub path: [u8; MAX_PATH],
    /// 0xff for each byte of it that counts.
    pub mask: [u8; MAX_PATH],
}
assert_layout!(HttpRule, size 168);

/// What is sent to a client that is limited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct Answer {
    /// Bytes of head and body.
    pub len: u32,
    /// Bytes of the head, which is all that `HEAD` gets.
    pub head_len: u32,
    /// One's complement sum of all, as 16-bit words in the order of memory (RFC 1071), not folded.
    pub sum: u32,
    /// The same of the head.
    pub head_sum: u32,
    /// Head and body.
    pub bytes: [u8; MAX_ANSWER],
}
assert_layout!(Answer, size 16 + MAX_ANSWER);

/// A TCP connection to a Pod. IPv4 addresses are mapped.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(C, align(8))]
pub struct ConnectionKey {
    /// The client's address.
    pub client: [u8; 16],
    /// The Pod's address.
    pub pod: [u8; 16],
    /// The client's port.
    pub client_port: u16,
    /// The Pod's port.
    pub pod_port: u16,
    /// Index of the Pod's interface on the node: addresses are not unique in all networks of a node.
    pub interface: u32,
}
assert_layout!(ConnectionKey, size 40);

/// A request was let through on it, and [`Connection::request_ack`] counts.
pub const HAS_REQUEST: u32 = 1;
/// It was limited: the kernel programs are the Pod's side for the client, and the client's side for the Pod.
pub const IS_LIMITED: u32 = 2;
/// The answer has no body.
pub const IS_HEAD: u32 = 4;
/// The last request that was let through has a body, or the rest of its head, in segments that may look like requests.
pub const MAY_HAVE_BODY: u32 = 8;

/// What is known of a connection. Sequence numbers are those of TCP (RFC 9293), in the order of the host.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct Connection {
    /// See above.
    pub flags: u32,
    /// What the client had acknowledged when it sent the last request that was let through: as long as it acknowledges no
    /// more, its answer is outstanding.
    pub request_ack: u32,
    /// Where the last request begins; of one that was limited, where the Pod's socket has its end instead.
    pub request_seq: u32,
    /// Where the answer begins.
    pub answer_start: u32,
    /// Where it ends, its FIN included.
    pub answer_end: u32,
    /// The number of the answer.
    pub answer: u32,
    /// Bytes of the client that were acknowledged and thrown away.
    pub swallowed: u32,
    /// Zero.
    pub _pad: u32,
    /// When it was limited: nanoseconds of `CLOCK_MONOTONIC`.
    pub limited_at: u64,
}
assert_layout!(Connection, size 40);

pod!(Interface, HttpRules, HttpRule, Answer, ConnectionKey, Connection);
