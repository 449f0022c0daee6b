//! Sidestep's agent: one per node, in the place of the sidecars of every Pod.
//!
//! Reading order is data order: `drain` -> `decode` -> `attribute` -> `assemble` -> `pipeline` -> `sinks`.

pub mod assemble;
pub mod attribute;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod decode;
pub mod doctor;
pub mod drain;
pub mod events;
pub mod files;
pub mod kubernetes;
pub mod ledger;
pub mod load;
pub mod observe;
pub mod own_log;
pub mod pipeline;
pub mod policy;
pub mod process;
pub mod record;
pub mod reload;
pub mod run;
pub mod runtime_log;
pub mod sinks;
mod state_file;
pub mod telemetry;
