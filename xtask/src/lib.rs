//! What the tasks share with the crate of tests: images made without a container engine, and the Kubernetes programs
//! that a test cluster runs.

pub mod cache;
pub mod command;
pub mod kubernetes;
pub mod libraries;
pub mod pack;
pub mod ui;
