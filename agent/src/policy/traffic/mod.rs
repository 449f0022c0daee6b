//! What policies say of a Pod's traffic: read ([`settings`]), brought together ([`compile`], with the addresses of the
//! Pods that they name: [`pod_peers`]), written to the kernel ([`program`]), explained ([`judge`]).

pub mod byte_limit;
pub mod compile;
pub mod judge;
pub mod limit;
pub mod pod_peers;
pub mod program;
pub mod request_sets;
pub mod requests;
pub mod settings;
pub mod window;

pub use settings::TrafficSettings;
