//! Addresses of a cluster. Each cluster has a network of its own, so all have the same ones.

use std::net::Ipv4Addr;

use super::Place;

/// Where the API server listens on the first node.
pub(super) const API_PORT: u16 = 6443;

/// The service `kubernetes`: the first address of [`SERVICES`].
pub(super) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Addresses of services.
pub(super) const SERVICES: &str = "10.96.0.0/16";

/// Addresses of all Pods.
pub(super) const PODS: &str = "10.244.0.0/16";

/// A node's address.
pub(super) fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 200, 0, node)
}

/// The addresses of a node's Pods.
pub(super) fn pods(node: u8) -> String {
    format!("10.244.{node}.0/24")
}

/// The name of a node, which is its host name too.
pub(super) fn node_name(place: &Place, node: u8) -> String {
    format!("{}-{node}", place.name())
}
