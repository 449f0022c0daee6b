//! Sizes, durations and shares as people write them.
//!
//! Each format is a module for serde's `with`; what is written is what is read, exactly.

use std::{fmt, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Unexpected, Visitor},
};

/// A share of something, in percent: 1 to 100, written `25%`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Percent(u8);

impl Percent {
    /// `None` unless `value` is 1 to 100.
    #[must_use]
    pub const fn new(value: u8) -> Option<Self> {
        if value >= 1 && value <= 100 { Some(Self(value)) } else { None }
    }

    /// The share of `whole`, rounded down.
    #[must_use]
    pub fn of(self, whole: u64) -> u64 {
        let share = u128::from(whole) * u128::from(self.0) / 100;
        u64::try_from(share).unwrap_or(whole)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PercentVisitor;
        impl Visitor<'_> for PercentVisitor {
            type Value = Percent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share from `1%` to `100%`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Percent, E> {
                text.strip_suffix('%')
                    .and_then(|number| number.trim().parse().ok())
                    .and_then(Percent::new)
                    .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(PercentVisitor)
    }
}

/// A duration such as `500ms`, `10s`, `1h 30m`, `7days`.
pub mod duration {
    use super::{Deserializer, Duration, Serializer, Unexpected, Visitor, de, fmt};

    /// Writes `10s`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    /// Reads `10s`. A number without unit is refused: nobody can see whether seconds or milliseconds were meant.
    ///
    /// # Errors
    /// What is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        struct DurationVisitor;
        impl Visitor<'_> for DurationVisitor {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with its unit, such as `500ms`, `10s` or `1h 30m`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                humantime::parse_duration(text).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(DurationVisitor)
    }
}

/// An IP address and a port, or nothing.
pub mod address {
    use std::net::SocketAddr;

    use super::{Deserializer, Serialize, Serializer, Unexpected, Visitor, de, fmt};

    /// Writes `127.0.0.1:9464`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }

    /// Reads `127.0.0.1:9464`. A host name is refused: what it stands for may change under the agent.
    ///
    /// # Errors
    /// What is no address with a port.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
        struct AddressVisitor;
        impl Visitor<'_> for AddressVisitor {
            type Value = Option<SocketAddr>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an IP address and a port, such as `127.0.0.1:9464`")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Option<SocketAddr>, E> {
                Ok(None)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<SocketAddr>, E> {
                text.parse().map(Some).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(AddressVisitor)
    }
}

/// A number of bytes such as `64KiB`, `16MiB`, `1.5GB` or `4096`.
pub mod byte_size {
    use super::{Deserializer, Serializer, Unexpected, Visitor, de, fmt};

    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];

    /// The shortest way to write it exactly.
    #[must_use]
    pub fn format(bytes: u64) -> String {
        let unit = UNITS.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
        unit.map_or_else(|| bytes.to_string(), |(unit, name)| format!("{}{name}", bytes / unit))
    }

    /// Writes `16MiB`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format(*value))
    }

    /// Reads `16MiB`, or a plain number of bytes.
    ///
    /// # Errors
    /// What is not a size.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = u64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as `64KiB`, `16MiB` or `1GiB`")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
                Ok(value)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
                let size = text.parse::<bytesize::ByteSize>();
                size.map(|size| size.as_u64()).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// [`byte_size`] for settings that hold a [`bytesize::ByteSize`], whose own form rounds.
pub mod size {
    use bytesize::ByteSize;

    use super::{Deserializer, Serializer, byte_size};

    /// Writes `16MiB`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
        byte_size::serialize(&value.as_u64(), serializer)
    }

    /// Reads `16MiB`, or a plain number of bytes.
    ///
    /// # Errors
    /// What is not a size.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        byte_size::deserialize(deserializer).map(ByteSize::b)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    struct All {
        #[serde(with = "duration")]
        time: Duration,
        #[serde(with = "byte_size")]
        size: u64,
        share: Percent,
    }

    fn read(text: &str) -> Result<All, String> {
        serde_saphyr::from_str(text).map_err(|error: serde_saphyr::Error| error.without_snippet().to_string())
    }

    #[test]
    fn reads_what_people_write() {
        let all = read("time: 1h 30m\nsize: 1.5GiB\nshare: 25%").expect("valid");
        assert_eq!(all.time, Duration::from_secs(5400));
        assert_eq!(all.size, 3 << 29);
        assert_eq!(all.share.of(1000), 250);
        assert_eq!(read("time: 500ms\nsize: 16 MB\nshare: 100 %").expect("valid").size, 16_000_000);
        assert_eq!(read("time: 0s\nsize: 4096\nshare: 1%").expect("valid").size, 4096);
    }

    #[test]
    fn refuses_what_is_ambiguous_or_out_of_range() {
        for (text, part) in [
            ("time: 10\nsize: 1\nshare: 1%", "a duration with its unit"),
            ("time: ten\nsize: 1\nshare: 1%", "a duration with its unit"),
            ("time: 1s\nsize: -1\nshare: 1%", "a size such as"),
            ("time: 1s\nsize: 16 MMB\nshare: 1%", "a size such as"),
            ("time: 1s\nsize: 1\nshare: 0%", "`1%` to `100%`"),
            ("time: 1s\nsize: 1\nshare: 101%", "`1%` to `100%`"),
            ("time: 1s\nsize: 1\nshare: 25", "`1%` to `100%`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(millis in 0u64..u64::from(u32::MAX), size: u64, share in 1u8..=100) {
            let all = All { time: Duration::from_millis(millis), size: size >> 11, share: Percent(share) };
            let text = serde_saphyr::to_string(&all).expect("serializes");
            prop_assert_eq!(read(&text), Ok(all));
        }
    }
}
