//! Limits of which a tier has one each.

use sha2::{Digest, Sha256};
use sidestep_abi::govern::{
    BYTES, BYTES_IN, BYTES_OUT, CONNECTIONS_IN, CONNECTIONS_OUT, EGRESS, LIMITS, PACKETS_IN, PACKETS_OUT, PER_CLIENT,
    PER_POD, REASON_BYTE_RATE, REASON_CONNECTION_RATE, REASON_PACKET_RATE, Rate, RefusedKey, WORKLOADS,
};

use super::{
    byte_limit::ByteLimit,
    compile::Name,
    settings::{Direction, Limits, Per, RateLimit},
};
use crate::config::byte_size;

/// What is limited.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// New TCP connections.
    Connections,
    /// Packets, as they pass the Pod's interface.
    Packets,
    /// Bytes of these.
    Bytes,
}

/// What is limited, in which direction.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Limit {
    /// What.
    pub kind: Kind,
    /// Of who opens a connection, or sends: with `Egress` the Pod.
    pub direction: Direction,
}

impl Limit {
    /// All, as [`sidestep_abi::govern::Tier::limits`] has them.
    pub const ALL: [Self; LIMITS] = {
        let mut all = [Self { kind: Kind::Connections, direction: Direction::Egress }; LIMITS];
        all[CONNECTIONS_IN].direction = Direction::Ingress;
        (all[PACKETS_OUT].kind, all[BYTES_OUT].kind) = (Kind::Packets, Kind::Bytes);
        all[PACKETS_IN] = Self { kind: Kind::Packets, direction: Direction::Ingress };
        all[BYTES_IN] = Self { kind: Kind::Bytes, direction: Direction::Ingress };
        assert!(CONNECTIONS_OUT == 0, "what none of the others is");
        all
    };

    /// The limit that has refused something; `None` when it was none of these.
    #[must_use]
    pub fn of(refused: &RefusedKey) -> Option<Self> {
        let kind = match refused.reason {
            REASON_CONNECTION_RATE => Kind::Connections,
            REASON_PACKET_RATE => Kind::Packets,
            REASON_BYTE_RATE => Kind::Bytes,
            _ => return None,
        };
        let direction = if refused.direction == EGRESS { Direction::Egress } else { Direction::Ingress };
        Some(Self { kind, direction })
    }

    /// Its place in [`Self::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        Self::ALL.iter().position(|limit| *limit == self).unwrap_or_default()
    }

    /// Its field of `limits` in a policy.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match (self.kind, self.direction) {
            (Kind::Connections, Direction::Egress) => "connectionsOut",
            (Kind::Connections, Direction::Ingress) => "connectionsIn",
            (Kind::Packets, Direction::Egress) => "packetsOut",
            (Kind::Packets, Direction::Ingress) => "packetsIn",
            (Kind::Bytes, Direction::Egress) => "bytesOut",
            (Kind::Bytes, Direction::Ingress) => "bytesIn",
        }
    }

    /// Whether it is measured at the Pod's interface, packet by packet.
    #[must_use]
    pub const fn is_volume(self) -> bool {
        !matches!(self.kind, Kind::Connections)
    }

    /// Whether it is kept at the Pod's interface alone.
    #[must_use]
    pub const fn is_at_interface(self) -> bool {
        self.is_volume() || matches!(self.direction, Direction::Ingress)
    }

    /// What the Pod does with so many in a second: `opens 100 connections a second, 50 at once`.
    #[must_use]
    pub fn in_words(self, rate: &Rate) -> String {
        let verb = match (self.kind, self.direction) {
            (Kind::Connections, Direction::Egress) => "may open",
            (_, Direction::Egress) => "may send",
            (_, Direction::Ingress) => "gets",
        };
        let shared = per_of(rate).in_words();
        format!("{verb} {}{shared}, {} at once", self.per_second_in_words(rate), self.burst_in_words(rate))
    }

    /// So many in a second: `100 connections a second`, `12MiB a second`.
    #[must_use]
    pub fn per_second_in_words(self, rate: &Rate) -> String {
        let per_second = self.per_second(rate);
        match self.kind {
            Kind::Connections => format!("{per_second:.0} connections a second"),
            Kind::Packets => format!("{per_second:.0} packets a second"),
            Kind::Bytes => format!("{} a second", bytes_in_words(per_second)),
        }
    }

    fn burst_in_words(self, rate: &Rate) -> String {
        match self.kind {
            Kind::Connections | Kind::Packets => burst(rate).to_string(),
            Kind::Bytes => bytes_in_words(self.burst(rate)),
        }
    }

    /// How many in a second.
    #[must_use]
    pub fn per_second(self, rate: &Rate) -> f64 {
        match self.kind {
            Kind::Connections | Kind::Packets => per_second(rate),
            Kind::Bytes => per_second(rate) * BYTES as f64,
        }
    }

    /// How many at once.
    #[must_use]
    pub fn burst(self, rate: &Rate) -> f64 {
        match self.kind {
            Kind::Connections | Kind::Packets => burst(rate) as f64,
            Kind::Bytes => rate.tolerance as f64 / rate.interval.max(1) as f64 * BYTES as f64,
        }
    }

    /// What a policy says of it, as the kernel programs have it.
    #[must_use]
    pub fn declared(self, limits: &Limits, workload: Option<u64>) -> Option<Rate> {
        let (rate, byte_rate) = (|limit: &_| rate(limit, workload), |limit: &_| byte_rate(limit, workload));
        match (self.kind, self.direction) {
            (Kind::Connections, Direction::Egress) => limits.connections_out.as_ref().map(rate),
            (Kind::Connections, Direction::Ingress) => limits.connections_in.as_ref().map(rate),
            (Kind::Packets, Direction::Egress) => limits.packets_out.as_ref().map(rate),
            (Kind::Packets, Direction::Ingress) => limits.packets_in.as_ref().map(rate),
            (Kind::Bytes, Direction::Egress) => limits.bytes_out.as_ref().map(byte_rate),
            (Kind::Bytes, Direction::Ingress) => limits.bytes_in.as_ref().map(byte_rate),
        }
    }
}

/// Bytes as people write them: to three digits, since the kernel programs have what is near to what was declared.
fn bytes_in_words(bytes: f64) -> String {
    let bytes = bytes.round() as u64;
    let exact = byte_size::format(bytes);
    let rounded = || bytesize::ByteSize::b(bytes).display().si().to_string().replace(".0 ", " ");
    if exact.ends_with('B') { exact } else { rounded() }
}

/// How many in a second, of what is counted one by one.
#[must_use]
pub fn per_second(rate: &Rate) -> f64 {
    1e9 / rate.interval as f64
}

/// How many at once.
#[must_use]
pub fn burst(rate: &Rate) -> u64 {
    rate.tolerance / rate.interval.max(1) + 1
}

/// Both, in words.
#[must_use]
pub fn rate_in_words(rate: &Rate) -> String {
    let shared = per_of(rate).in_words();
    format!("{:.0} ({} at once{shared})", per_second(rate), burst(rate))
}

/// The rate of a Pod of this [`workload`] as the kernel programs have it. The burst is what may come at once.
#[must_use]
pub fn rate(limit: &RateLimit, workload: Option<u64>) -> Rate {
    let interval = 1_000_000_000 / u64::from(limit.per_second.max(1));
    let burst = u64::from(limit.burst.unwrap_or(limit.per_second).max(1));
    Rate { interval, tolerance: interval * (burst - 1), per: per(limit.per, workload) }
}

/// The same of bytes: a rate of [`BYTES`].
#[must_use]
pub fn byte_rate(limit: &ByteLimit, workload: Option<u64>) -> Rate {
    let nanoseconds_of = |bytes: u64| {
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(limit.per_second.max(1));
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    };
    Rate { interval: nanoseconds_of(BYTES), tolerance: nanoseconds_of(limit.burst()), per: per(limit.per, workload) }
}

/// Of a Pod that no workload has made, or none that is known, it is its own.
fn per(per: Per, workload: Option<u64>) -> u64 {
    match per {
        Per::Pod => PER_POD,
        Per::Client => PER_CLIENT,
        Per::Workload => workload.unwrap_or(PER_POD),
    }
}

/// Who has a rate.
#[must_use]
pub const fn per_of(rate: &Rate) -> Per {
    match rate.per {
        PER_POD => Per::Pod,
        PER_CLIENT => Per::Client,
        _ => Per::Workload,
    }
}

/// The number of a workload for the kernel programs, as far as a policy says something of it: always the same, whatever agent. Pods of
/// which another policy says something share nothing with those.
#[must_use]
pub fn workload(policy: &Name, namespace: &str, (kind, name): (&str, &str)) -> u64 {
    let hash = Sha256::digest(format!("{policy} {namespace}/{kind}/{name}"));
    let number = hash.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    number | WORKLOADS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::precedence::Key;

    #[test]
    fn a_rate_admits_its_burst_at_once() {
        let rate = rate(&RateLimit { per_second: 100, burst: Some(5), per: Per::Pod }, None);
        assert_eq!((rate.interval, rate.tolerance), (10_000_000, 40_000_000));
    }

    #[test]
    fn each_limit_is_at_its_place() {
        for (place, limit) in [
            (CONNECTIONS_OUT, "connectionsOut"),
            (CONNECTIONS_IN, "connectionsIn"),
            (PACKETS_OUT, "packetsOut"),
            (PACKETS_IN, "packetsIn"),
            (BYTES_OUT, "bytesOut"),
            (BYTES_IN, "bytesIn"),
        ] {
            assert_eq!((Limit::ALL[place].field(), Limit::ALL[place].index()), (limit, place));
        }
    }

    #[test]
    fn limits_are_told_in_words() {
        let bytes = |per_second| byte_rate(&ByteLimit { per_second, burst: None, per: Per::Pod }, None);
        let limit = |place: usize| Limit::ALL[place];
        assert_eq!(limit(BYTES_IN).in_words(&bytes(16 << 20)), "gets 16MiB a second, 16MiB at once");
        assert_eq!(limit(BYTES_OUT).in_words(&bytes(12_500_000)), "may send 12.5 MB a second, 12.5 MB at once");
        let policy = Name { key: Key { namespace: Some("shop".into()), name: "web".into() }, is_file: false };
        let rate = |per| {
            rate(
                &RateLimit { per_second: 10, burst: None, per },
                Some(workload(&policy, "shop", ("Deployment", "web"))),
            )
        };
        let connections = |per| limit(CONNECTIONS_IN).in_words(&rate(per));
        assert_eq!(connections(Per::Client), "gets 10 connections a second for each client, 10 at once");
        assert_eq!(
            connections(Per::Workload),
            "gets 10 connections a second with all Pods of its workload on this node, 10 at once"
        );
        assert_eq!(limit(PACKETS_OUT).in_words(&rate(Per::Pod)), "may send 10 packets a second, 10 at once");
    }

    proptest! {
        /// What the kernel programs have is what was declared, within a tenth of a percent.
        #[test]
        fn bytes_are_exact_enough(per_second in 1_024u64..=12_500_000_000) {
            let limit = ByteLimit { per_second, burst: None, per: Per::Pod };
            let (rate, bytes_in) = (byte_rate(&limit, None), Limit::ALL[BYTES_IN]);
            let is_near = |one: f64, two: f64| (one / two - 1.0).abs() < 2e-3;
            prop_assert!(is_near(bytes_in.per_second(&rate), per_second as f64), "{rate:?}");
            prop_assert!(is_near(bytes_in.burst(&rate), limit.burst() as f64), "{rate:?}");
            // What the kernel programs multiply fits: the largest packet of 512 KiB.
            prop_assert!(rate.interval.checked_mul(8 << 16).is_some());
        }
    }
}
