//! What policies say of a Pod's traffic: read ([`settings`]), brought together ([`compile`]), written to the kernel
//! ([`program`]), explained ([`judge`]).

pub mod compile;
pub mod judge;
pub mod limit;
pub mod program;
pub mod request_sets;
pub mod requests;
pub mod settings;
pub mod window;

pub use settings::TrafficSettings;
