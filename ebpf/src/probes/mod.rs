//! Attach points, one event family per file. A probe is thin: may it, what is it, hand it over.

mod cgroup;
mod connect;
mod exec;
mod open;
mod transfer;
mod uring;
mod veth;
mod write;
