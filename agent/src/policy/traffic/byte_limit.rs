//! A rate of bytes, as policies give it.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::settings::Per;
use crate::config::byte_size;

/// The least and the most bytes in a second: 100 Gbit/s, at which a small packet takes some nanoseconds.
const LEAST_BYTES: u64 = 1 << 10;
const MOST_BYTES: u64 = 12_500_000_000;
/// Two of the largest packets that there usually are (`GSO_LEGACY_MAX_SIZE`).
const LEAST_BURST: u64 = 128 << 10;
/// The longest text of a number of bytes.
const MAX_BYTES_TEXT: usize = 32;

/// A rate of bytes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ByteLimit {
    /// How many in a second, in the long run: a number, or one with a unit, as `12.5MB`, `100Mi`.
    #[serde(with = "byte_count")]
    #[schemars(schema_with = "bytes_schema")]
    pub per_second: u64,
    /// How many at once, after a time without any; by default those of one second, and 128 KiB at least.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "byte_count::optional")]
    #[schemars(schema_with = "bytes_schema")]
    pub burst: Option<u64>,
    /// Who has it: the Pod, for all of its clients together, each of these, or all Pods of its workload on the node together.
    #[serde(default, skip_serializing_if = "Per::is_pod")]
    pub per: Per,
}

impl ByteLimit {
    /// Bytes that may come at once.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst.unwrap_or_else(|| self.per_second.max(LEAST_BURST))
    }

    pub(super) fn problems(&self, path: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if !(LEAST_BYTES..=MOST_BYTES).contains(&self.per_second) {
            problems.push(format!(
                "{path}.perSecond: is from {} to {}",
                byte_size::format(LEAST_BYTES),
                byte_size::format(MOST_BYTES)
            ));
        }
        // The state of a limit is a time, of an hour at most; below the least one lucky packet in many comes.
        let least = LEAST_BURST.max(self.per_second / 100);
        let most = self.per_second.saturating_mul(3600).max(least);
        if self.burst.is_some_and(|burst| !(least..=most).contains(&burst)) {
            problems.push(format!(
                "{path}.burst: is from {} (the largest packets, and what comes in 10 ms) to {} (what comes in an hour)",
                byte_size::format(least),
                byte_size::format(most)
            ));
        }
        problems
    }
}

/// Bytes with a unit whose letters count: `m` is a thousandth in quantities of Kubernetes, and `b` often a bit.
mod byte_count {
    use serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{self, Visitor},
    };

    use super::byte_size;

    const UNITS: [&str; 15] = ["", "B", "k", "kB", "Ki", "KiB", "M", "MB", "Mi", "MiB", "G", "GB", "Gi", "GiB", "T"];

    pub(super) use byte_size::serialize;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        struct Count;
        impl Visitor<'_> for Count {
            type Value = u64;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of bytes such as `12.5MB` or `100Mi` (bytes, not bits: 100 Mbit/s is `12.5MB`)")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
                Ok(value)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
                let unit = text.trim_start_matches(|of: char| of.is_ascii_digit() || of == '.').trim();
                let size = text.parse::<bytesize::ByteSize>().ok().filter(|_| UNITS.contains(&unit));
                size.map(|size| size.as_u64()).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Count)
    }

    pub(super) mod optional {
        use super::{Deserialize, Deserializer, Serialize, Serializer};

        #[derive(Deserialize, Serialize)]
        struct Bytes(#[serde(with = "super")] u64);

        #[expect(clippy::ref_option, reason = "as serde calls it")]
        pub(crate) fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
            value.map(Bytes).serialize(serializer)
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
            Ok(Option::<Bytes>::deserialize(deserializer)?.map(|Bytes(bytes)| bytes))
        }
    }
}

/// As quantities of Kubernetes are described.
fn bytes_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [{ "type": "integer" }, { "type": "string" }],
        "maxLength": MAX_BYTES_TEXT,
        "x-kubernetes-int-or-string": true,
    })
}

#[cfg(test)]
mod tests {
    use crate::policy::traffic::TrafficSettings;

    #[test]
    fn bytes_have_units_that_mean_bytes() {
        let read = |limit: &str| {
            let text = format!(r#"{{"limits": {{"bytesIn": {limit}}}}}"#);
            serde_json::from_str::<TrafficSettings>(&text).map_err(|error| error.to_string())
        };
        for (text, bytes) in [
            (r#"{"perSecond": 4096}"#, 4096),
            (r#"{"perSecond": "12.5MB"}"#, 12_500_000),
            (r#"{"perSecond": "100Mi"}"#, 100 << 20),
            (r#"{"perSecond": "1G", "burst": "64 MiB"}"#, 1_000_000_000),
        ] {
            let settings = read(text).expect(text);
            assert_eq!(settings.limits.bytes_in.map(|limit| limit.per_second), Some(bytes), "{text}");
            assert_eq!(settings.problems(), Vec::<String>::new(), "{text}");
            let again = serde_json::to_string(&settings).expect("JSON");
            assert_eq!(serde_json::from_str::<TrafficSettings>(&again).ok(), Some(settings), "{again}");
        }
        for text in ["100m", "12.5Mb", "12.5Mbit", "-1", "much"] {
            let error = read(&format!(r#"{{"perSecond": "{text}"}}"#)).expect_err(text);
            assert!(error.contains("bytes, not bits: 100 Mbit/s is `12.5MB`"), "{error}");
        }
        for (text, problem) in [
            (r#"{"perSecond": 1023}"#, "limits.bytesIn.perSecond: is from 1KiB to 12500000000"),
            (r#"{"perSecond": "10MB", "burst": "64KiB"}"#, "limits.bytesIn.burst: is from 128KiB (the largest packets"),
            (r#"{"perSecond": "10G", "burst": "1MiB"}"#, "limits.bytesIn.burst: is from 100000000 ("),
            (r#"{"perSecond": "1MB", "burst": "1T"}"#, "limits.bytesIn.burst: is from 128KiB ("),
        ] {
            let problems = read(text).expect(text).problems();
            assert!(matches!(&problems[..], [only] if only.starts_with(problem)), "{problems:?}");
        }
    }
}
