//! Index templates and policies of retention, as each kind of server takes them.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::Settings;
use crate::record::Class;

/// Above what Elasticsearch has of its own for `logs-*-*`, which would make data streams of all such names.
const PRIORITY: u64 = 500;
/// Longer values of a keyword are kept, but not found by: an index takes at most 32766 bytes.
const IGNORE_ABOVE: u64 = 1024;

/// Whose server it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Distribution {
    Elasticsearch,
    OpenSearch,
}

/// What a server says of itself (`GET /`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Server {
    pub(super) distribution: Distribution,
    /// As it says it.
    pub(super) number: String,
    /// Major and minor version; zeros where they are not known.
    version: (u32, u32),
    /// Another one is another cluster, or one that has lost its disk.
    pub(super) uuid: String,
}

impl Server {
    /// Reads the answer to `GET /`.
    ///
    /// # Errors
    /// It is not of such a server.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Root {
            #[serde(default)]
            cluster_uuid: String,
            #[serde(default)]
            tagline: String,
            version: Version,
        }
        #[derive(Deserialize)]
        struct Version {
            number: String,
            #[serde(default)]
            distribution: String,
        }
        let root: Root = serde_json::from_slice(body)
            .map_err(|cause| format!("`GET /` is not answered as Elasticsearch and OpenSearch do: {cause}"))?;
        // OpenSearch can be told to say 7.10.2 and no distribution (`compatibility.override_main_response_version`).
        let is_open = root.version.distribution == "opensearch" || root.tagline.contains("OpenSearch");
        let is_known = !is_open || !root.version.distribution.is_empty();
        let mut numbers = root.version.number.split(['.', '-']).map_while(|number| number.parse().ok());
        let mut next = || numbers.next().unwrap_or(0);
        let version = (next(), next());
        Ok(Self {
            distribution: if is_open { Distribution::OpenSearch } else { Distribution::Elasticsearch },
            number: root.version.number,
            version: if is_known { version } else { (0, 0) },
            uuid: root.cluster_uuid,
        })
    }

    /// One line of a log: found by its words, without what it takes to score.
    fn body(&self) -> Value {
        let has_match_only = match self.distribution {
            Distribution::Elasticsearch => self.version >= (7, 14),
            Distribution::OpenSearch => self.version >= (2, 12),
        };
        if has_match_only {
            json!({ "type": "match_only_text" })
        } else {
            json!({ "type": "text", "norms": false, "index_options": "freqs" })
        }
    }

    /// Attributes under whatever names: one field of the mapping, so that lines can't make it grow without an end, and
    /// nothing of two lines can be in conflict.
    fn attributes(&self) -> Value {
        match self.distribution {
            Distribution::Elasticsearch if self.version >= (7, 3) => {
                json!({ "type": "flattened", "ignore_above": IGNORE_ABOVE })
            }
            Distribution::OpenSearch if self.version >= (2, 7) => json!({ "type": "flat_object" }),
            // Kept, and found by only where they are always there.
            _ => json!({ "type": "object", "dynamic": false, "properties": {
                "log": { "properties": { "iostream": keyword(), "file": { "properties": {
                    "path": keyword(), "name": keyword(),
                } } } },
            } }),
        }
    }

    /// Labels under whatever keys, by the same rule.
    fn labels(&self) -> Value {
        match self.attributes() {
            object if object["type"] == "object" => json!({ "type": "object", "enabled": false }),
            flat => flat,
        }
    }

    /// The mapping of records; see `docs/records.md`.
    fn mappings(&self) -> Value {
        let date = json!({ "type": "date_nanos" });
        json!({
            "dynamic": true,
            "date_detection": false,
            "dynamic_templates": [{ "names": { "match_mapping_type": "string", "mapping": keyword() } }],
            "properties": {
                "@timestamp": date, "timestamp": date, "observed_timestamp": date,
                "severity_text": keyword(), "severity_number": { "type": "short" },
                "body": self.body(), "position": { "type": "long" }, "length": { "type": "long" },
                "flags": keyword(), "class": keyword(), "stream": keyword(),
                "resource": { "type": "object", "properties": { "k8s": { "properties": {
                    "pod": { "properties": { "label": self.labels(), "annotation": self.labels() } },
                    "namespace": { "properties": { "label": self.labels() } },
                } } } },
                "attributes": self.attributes(),
            },
        })
    }
}

fn keyword() -> Value {
    json!({ "type": "keyword", "ignore_above": IGNORE_ABOVE })
}

/// Every class: the template of an index is the same whichever of them a sink sends, so that two sinks do not take each
/// other's patterns away.
const CLASSES: [Class; 4] = Class::ALL;

/// The name of the records' template and policy. It is made of the index alone: all who write to it make the same, while
/// the server refuses a second template for the same indices.
pub(super) fn name(settings: &Settings) -> String {
    format!("sidestep-{}", settings.index().to_string().replace(['{', '}'], ""))
}

/// The name of the dead letters' template, by the same rule.
pub(super) fn dead_letter_name(settings: &Settings) -> String {
    format!("sidestep-for-{}", settings.dead_letter_index)
}

/// The index template of the records, with a policy of retention or without.
pub(super) fn records(settings: &Settings, server: &Server, has_policy: bool) -> Value {
    let mut template = json!({ "mappings": server.mappings() });
    // Of OpenSearch, the policy itself says which indices it is for.
    if has_policy && server.distribution == Distribution::Elasticsearch {
        template["settings"] = json!({ "index": { "lifecycle": { "name": name(settings) } } });
    }
    let mut body = json!({
        "index_patterns": settings.index().patterns(&CLASSES),
        "priority": PRIORITY,
        "template": template,
        "_meta": { "description": "Records of Sidestep", "managed_by": "sidestep" },
    });
    if settings.data_stream {
        body["data_stream"] = json!({});
    }
    body
}

/// The index template of dead letters: what they hold of the original is kept as it is, and not looked into.
pub(super) fn dead_letters(settings: &Settings) -> Value {
    let date = json!({ "type": "date_nanos" });
    json!({
        "index_patterns": [settings.dead_letter_index],
        "priority": PRIORITY,
        "template": { "mappings": { "dynamic": false, "properties": {
            "@timestamp": date, "class": keyword(), "stream": keyword(), "index": keyword(),
            "error": { "properties": { "type": keyword(), "message": { "type": "text" } } },
            "position": { "type": "long" },
        } } },
        "_meta": { "description": "What Sidestep could not put where it belongs", "managed_by": "sidestep" },
    })
}

/// The age in the servers' units.
fn age(retention: Duration) -> String {
    let seconds = retention.as_secs();
    if seconds.is_multiple_of(86400) { format!("{}d", seconds / 86400) } else { format!("{seconds}s") }
}

/// A policy of ILM (Elasticsearch).
pub(super) fn ilm(settings: &Settings) -> Value {
    // Indices with a date end with their day; a data stream goes on in a new index.
    let hot = if settings.data_stream {
        json!({ "rollover": { "max_age": "1d", "max_primary_shard_size": "50gb" } })
    } else {
        json!({})
    };
    json!({ "policy": {
        "_meta": { "managed_by": "sidestep" },
        "phases": {
            "hot": { "actions": hot },
            "delete": { "min_age": age(settings.retention), "actions": { "delete": {} } },
        },
    } })
}

/// A policy of ISM (a plugin of OpenSearch). The description tells whether the one that is there is the same.
pub(super) fn ism(settings: &Settings) -> Value {
    let (patterns, age) = (settings.index().patterns(&CLASSES), age(settings.retention));
    let hot = if settings.data_stream {
        json!([{ "rollover": { "min_index_age": "1d", "min_primary_shard_size": "50gb" } }])
    } else {
        json!([])
    };
    json!({ "policy": {
        "description": format!("Sidestep: deletes {} after {age}", patterns.join(", ")),
        "default_state": "hot",
        "states": [
            { "name": "hot", "actions": hot,
              "transitions": [{ "state_name": "delete", "conditions": { "min_index_age": age } }] },
            { "name": "delete", "actions": [{ "delete": {} }], "transitions": [] },
        ],
        "ism_template": [{ "index_patterns": patterns, "priority": PRIORITY }],
    } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(distribution: &str, number: &str) -> Server {
        let root = json!({ "cluster_uuid": "u", "version": { "distribution": distribution, "number": number } });
        Server::read(root.to_string().as_bytes()).expect("a server")
    }

    #[test]
    fn servers_are_told_apart() {
        let elastic = Server::read(br#"{"cluster_uuid":"u","version":{"number":"8.19.0","build_flavor":"default"}}"#);
        assert_eq!(elastic.expect("a server"), server("", "8.19.0"));
        assert_eq!(server("opensearch", "2.19.0").distribution, Distribution::OpenSearch);
        assert_eq!(server("opensearch", "3.0.0-beta1").version, (3, 0));
        let disguised =
            br#"{"version":{"number":"7.10.2"},"tagline":"The OpenSearch Project: https://opensearch.org/"}"#;
        let disguised = Server::read(disguised).expect("a server");
        assert_eq!((disguised.distribution, disguised.version), (Distribution::OpenSearch, (0, 0)));
        assert!(Server::read(b"<html>").expect_err("none").contains("GET /"));
    }

    #[test]
    fn each_server_gets_the_types_that_it_has() {
        for (distribution, number, body, attributes) in [
            ("", "8.19.0", "match_only_text", "flattened"),
            ("", "7.2.0", "text", "object"),
            ("opensearch", "2.19.0", "match_only_text", "flat_object"),
            ("opensearch", "2.5.0", "text", "object"),
        ] {
            let template = records(&Settings::default(), &server(distribution, number), true);
            let of = |field: &str| template.pointer(&format!("/template/mappings/properties/{field}/type")).cloned();
            assert_eq!((of("body"), of("attributes")), (Some(body.into()), Some(attributes.into())), "{number}");
            let has_policy = template.pointer("/template/settings/index/lifecycle/name").is_some();
            assert_eq!(has_policy, distribution.is_empty());
        }
    }

    #[test]
    fn templates_match_what_is_written_and_nothing_else() {
        let template = records(&Settings::default(), &server("", "8.19.0"), false);
        assert_eq!(
            template["index_patterns"],
            json!(["logs-pod-*", "logs-business-*", "logs-server-*", "logs-governance-*"])
        );
        assert!(template.pointer("/template/settings").is_none() && template.get("data_stream").is_none());
        let streams = Settings { data_stream: true, ..Settings::default() };
        let template = records(&streams, &server("", "8.19.0"), false);
        assert_eq!(template["index_patterns"][0], "logs-pod-default");
        assert!(template.get("data_stream").is_some());
        assert_eq!(dead_letters(&streams)["index_patterns"], json!(["sidestep-dead-letter"]));
    }

    #[test]
    fn policies_say_the_age() {
        let settings = Settings::default();
        assert_eq!(ilm(&settings).pointer("/policy/phases/delete/min_age"), Some(&json!("7d")));
        let policy = ism(&settings);
        assert_eq!(policy.pointer("/policy/states/0/transitions/0/conditions/min_index_age"), Some(&json!("7d")));
        assert!(policy["policy"]["description"].as_str().is_some_and(|text| text.contains("logs-pod-*")));
        let hours = Settings { retention: Duration::from_secs(36 * 3600), ..settings };
        assert_eq!(ilm(&hours).pointer("/policy/phases/delete/min_age"), Some(&json!("129600s")));
    }
}
