//! Wiring of the stages: threads, queues and their bounds, what happens when one is full, order of shutdown.
pub mod container;
