//! Identity against real containers: what runc, containerd, Docker and Podman write is the truth, and the path of the
//! cgroup is the one that the kernel tells.
//!
//! Each test has its own daemon, directories and cgroups, and removes them also when it fails. It needs root. It is
//! skipped, and says so, when a runtime is not installed.

mod containerd;
mod docker;
mod harness;
mod podman;
mod runc;
