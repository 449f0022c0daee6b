//! Images as OCI archives, made without a container engine: `docker load` and `ctr image import` take them.

mod agent;
mod archive;
mod layer;

pub use agent::agent;
pub use archive::{Description, archive};
pub use layer::Layer;
