//! What policies say of a Pod's traffic: read ([`settings`]), brought together ([`compile`]), written to the kernel
//! ([`program`]).

pub mod compile;
pub mod program;
pub mod request_sets;
pub mod requests;
pub mod settings;

pub use settings::TrafficSettings;
