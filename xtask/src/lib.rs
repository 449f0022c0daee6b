//! What the tasks share with the crate of tests: images made without a container engine, and the programs in Go
//! that a test cluster takes: Kubernetes and helm.

pub mod cache;
pub mod command;
pub mod go;
pub mod helm;
pub mod kubernetes;
pub mod libraries;
pub mod pack;
pub mod ui;
