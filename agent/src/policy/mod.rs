//! What users and administrators decide: read, checked, brought together, and carried out.
//!
//! Pure (no I/O, no clock): [`settings`] is what can be declared, [`annotations`] and [`resource`] where, [`precedence`]
//! who wins, [`route`] what of it may be chosen. [`verdicts`] writes to the kernel's maps what follows for files.

pub mod allowed;
pub mod annotations;
pub mod precedence;
pub mod resource;
pub mod route;
pub mod selection;
pub mod settings;
pub mod status;
pub mod traffic;
pub mod verdicts;

pub use allowed::Allowed;
pub use precedence::{Decision, Effective, Origin};
pub use route::Permits;
pub use selection::{Policies, Policy, Subject};
pub use settings::{Field, Settings};
pub use verdicts::{KernelVerdicts, Unannounced, Verdicts};
