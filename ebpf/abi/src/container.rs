//! Containers: birth, end, and each one's share of the ring.

use crate::{Header, assert_layout, pod, stdio::InodeKey};

/// Space for a cgroup's path.
pub const CGROUP_PATH_SPACE: usize = 512;

/// What the kernel keeps for each cgroup below a governed root that writes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Container {
    /// Bytes reserved in the ring since [`Container::mark`] was set.
    pub newer: u64,
    /// Bytes reserved between the mark before and [`Container::mark`].
    pub older: u64,
    /// Producer position when the last window began: once the consumer has passed it, `older` is drained.
    pub mark: u64,
    /// Up to where `newer` may come before it is asked again what the ring holds.
    pub unasked: u64,
    /// One of the `INIT_*`: whether its standard streams are registered.
    pub init: u32,
    /// Zero.
    pub _pad: u32,
}
assert_layout!(Container, size 40);

/// No first process has been executed yet.
pub const INIT_NONE: u32 = 0;
/// The standard streams are those of the first process that was executed, in a PID namespace that is not its own: the
/// first process of one may still prove to be the container's.
pub const INIT_PRESUMED: u32 = 1;
/// The standard streams are those of the first process of the container's PID namespace.
pub const INIT_CERTAIN: u32 = 2;
/// The first process has been executed, and the map of streams was full.
pub const INIT_UNREGISTERED: u32 = 3;

/// Birth or end of a container or its cgroup; for [`crate::event::CGROUP_MADE`] the path in the v2 hierarchy follows.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ContainerEvent {
    /// `kind` is one of the container and cgroup kinds.
    pub header: Header,
    /// What file descriptors 1 and 2 of the first process are; `ino` 0 when neither pipe nor terminal.
    pub stdio: [InodeKey; 2],
}
assert_layout!(ContainerEvent, size 64);

pod!(Container);
