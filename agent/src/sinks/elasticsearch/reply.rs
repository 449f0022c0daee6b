//! What a bulk reply says of each line. <https://www.elastic.co/guide/en/elasticsearch/reference/8.19/docs-bulk.html>

use serde::Deserialize;
use serde_json::Value;

/// Which parts of a reply are asked for (`filter_path`); a status is in every item, so none is left out.
pub(super) const FILTER: &str = "errors,items.*.status,items.*.error.type,items.*.error.reason,items.*.error.caused_by";

/// Why an index does not take a document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Rejection {
    /// The index.
    pub(super) index: String,
    /// The server's name for it.
    pub(super) kind: String,
    /// In words.
    pub(super) reason: String,
}

/// Why an index takes no document at all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Refusal {
    /// The server's name for it.
    pub(super) kind: String,
    /// In words, with what to do about it; `INDEX` stands for the index.
    pub(super) why: String,
    /// Whether the index is only blocked for a time, which is no reason to give its lines up.
    pub(super) is_blocked: bool,
    /// Whether the cause may be one that other indices have as well, as a full disk.
    pub(super) is_common: bool,
}

/// What becomes of one line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    /// It is there.
    Delivered,
    /// The server has no time for it now.
    Again(String),
    /// Its index takes nothing, and never will before somebody does what the text says.
    Hold(Refusal),
    /// Its index does not take this document.
    Refused { kind: String, reason: String },
}

#[derive(Debug, Deserialize)]
struct Reply {
    errors: bool,
    items: Vec<Item>,
}

#[derive(Debug, Deserialize)]
enum Item {
    #[serde(rename = "index")]
    Index(Status),
    #[serde(rename = "create")]
    Create(Status),
}

#[derive(Debug, Deserialize)]
struct Status {
    status: u16,
    #[serde(default)]
    error: Value,
}

/// Reads the reply to a request of `count` lines: what becomes of each of them.
///
/// # Errors
/// It is no reply to this request, and why.
pub(super) fn read(body: &[u8], count: usize) -> Result<Vec<Fate>, String> {
    let reply: Reply = serde_json::from_slice(body).map_err(|cause| format!("the answer is no bulk reply: {cause}"))?;
    if reply.items.len() != count {
        return Err(format!("the reply is about {} documents, but {count} were sent", reply.items.len()));
    }
    let fates: Vec<_> = reply.items.into_iter().map(Item::fate).collect();
    if !reply.errors && fates.iter().any(|fate| *fate != Fate::Delivered) {
        return Err("the reply says that there are no errors, and names some".to_owned());
    }
    Ok(fates)
}

impl Item {
    fn fate(self) -> Fate {
        let (Status { status, error }, is_create) = match self {
            Self::Index(status) => (status, false),
            Self::Create(status) => (status, true),
        };
        let has_error = !error.is_null();
        if (200..300).contains(&status) && !has_error {
            return Fate::Delivered;
        }
        let (kind, reason) = describe(&error);
        let text = || format!("{status} {kind}: {reason}");
        let refusal = |remedy: &str| Refusal {
            kind: kind.clone(),
            why: format!("{}; {remedy}", text()),
            is_blocked: false,
            is_common: false,
        };
        let hold = |remedy: &str| Fate::Hold(refusal(remedy));
        let block = |remedy: &str, is_common| Fate::Hold(Refusal { is_blocked: true, is_common, ..refusal(remedy) });
        match (status, &*kind) {
            // Something with this id is there, which can only be this line.
            (409, _) if is_create => Fate::Delivered,
            (_, "cluster_block_exception") => match block_remedy(&reason) {
                Some((remedy, is_common)) => block(remedy, is_common),
                None => Fate::Again(text()),
            },
            // It waited for the primary as long as it was told.
            (_, "unavailable_shards_exception") => {
                block("see why the primary has no place (`GET /_cluster/allocation/explain`)", true)
            }
            (408 | 409 | 425 | 429 | 500..=599, _) | (_, "es_rejected_execution_exception") => Fate::Again(text()),
            (401 | 403, _) => hold("give the agent's user the rights `create_index`, `create` and `index` on it"),
            (404, _) => hold("create it, or let the server do so (`action.auto_create_index`)"),
            (400..500, _) => match index_remedy(&kind, &reason) {
                Some(remedy) => hold(remedy),
                None => Fate::Refused { kind, reason },
            },
            _ => Fate::Again(text()),
        }
    }
}

/// Type and reason of an error, of bounded length, with what caused it.
fn describe(error: &Value) -> (String, String) {
    const MOST: usize = 500;
    let cut = |text: &str| text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(MOST).collect();
    let kind = error["type"].as_str().unwrap_or("error");
    let reason = error["reason"].as_str().or_else(|| error.as_str()).unwrap_or_default();
    let reason = match error.pointer("/caused_by/reason").and_then(Value::as_str) {
        Some(cause) => format!("{reason}: {cause}"),
        None => reason.to_owned(),
    };
    (cut(kind), cut(&reason))
}

/// What to do about a blocked index (`ClusterBlock`'s numbers), and whether others may be blocked for the same cause; `None`
/// where the whole cluster is just starting.
fn block_remedy(reason: &str) -> Option<(&'static str, bool)> {
    let is = |block: &str| reason.contains(&format!("/{block}/"));
    if is("12") {
        let remedy = "the server's disk is almost full (`cluster.routing.allocation.disk.watermark.flood_stage`): make \
                      room there, and where the server does not lift the block itself after that, \
                      `PUT /INDEX/_settings {\"index.blocks.read_only_allow_delete\": null}`";
        Some((remedy, true))
    } else if is("5") {
        Some(("lift it by `PUT /INDEX/_settings {\"index.blocks.read_only\": false}`", false))
    } else if is("8") {
        Some(("lift it by `PUT /INDEX/_settings {\"index.blocks.write\": false}`", false))
    } else if is("4") {
        Some(("open the index (`POST /INDEX/_open`)", false))
    } else if is("10") {
        let remedy = "lift it by `PUT /_cluster/settings {\"persistent\": {\"cluster.blocks.create_index\": null}}`";
        Some((remedy, true))
    } else if reason.contains("FORBIDDEN") {
        Some(("see the blocks of the index and of the cluster (`GET /_cluster/state/blocks`)", true))
    } else {
        None
    }
}

/// What to do about an index that takes no document at all as things are.
fn index_remedy(kind: &str, reason: &str) -> Option<&'static str> {
    let says = |text: &str| reason.contains(text);
    if says("only write ops with an op_type of create are allowed in data streams") {
        Some("it is a data stream: set `data_stream: true`, or another `index`")
    } else if says("no write index is defined for alias") || says("has more than one index associated") {
        Some("give the alias a write index (`is_write_index`)")
    } else if says("maximum normal shards open") || says("maximum shards open") {
        Some("the cluster has as many shards as it may: delete indices, or raise `cluster.max_shards_per_node`")
    } else if says("action.auto_create_index") {
        Some("create it, or let the server do so (`action.auto_create_index`)")
    } else {
        match kind {
            "index_closed_exception" => Some("open the index (`POST /INDEX/_open`)"),
            "invalid_index_name_exception" => Some("mend the template `index`"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn fate(operation: &str, status: u16, kind: &str, reason: &str) -> Fate {
        let error = if kind.is_empty() { Value::Null } else { json!({ "type": kind, "reason": reason }) };
        let reply =
            json!({ "errors": !kind.is_empty(), "items": [{ operation: { "status": status, "error": error } }] });
        read(reply.to_string().as_bytes(), 1).expect("a reply").remove(0)
    }

    #[test]
    fn each_line_has_its_own_fate() {
        assert_eq!(fate("index", 201, "", ""), Fate::Delivered);
        assert_eq!(fate("index", 200, "", ""), Fate::Delivered);
        assert_eq!(fate("create", 409, "version_conflict_engine_exception", ""), Fate::Delivered);
        for (status, kind) in [(429, "es_rejected_execution_exception"), (503, "cluster_block_exception"), (500, "x")] {
            assert!(matches!(fate("index", status, kind, ""), Fate::Again(_)), "{kind}");
        }
        for kind in ["mapper_parsing_exception", "document_parsing_exception", "illegal_argument_exception"] {
            let refused = Fate::Refused { kind: kind.to_owned(), reason: "no".to_owned() };
            assert_eq!(fate("index", 400, kind, "no"), refused);
        }
    }

    #[test]
    fn indices_that_take_nothing_are_held_with_the_remedy() {
        for (status, kind, reason, part, blocked) in [
            (403, "cluster_block_exception", "blocked by: [FORBIDDEN/12/index read-only];", "make room", true),
            (429, "cluster_block_exception", "[TOO_MANY_REQUESTS/12/disk usage exceeded]", "make room", true),
            (403, "cluster_block_exception", "[FORBIDDEN/8/index write (api)];", "index.blocks.write", true),
            (403, "cluster_block_exception", "[FORBIDDEN/5/index read-only (api)];", "index.blocks.read_only", true),
            (403, "cluster_block_exception", "[FORBIDDEN/4/index closed];", "/INDEX/_open", true),
            (503, "unavailable_shards_exception", "primary shard is not active", "allocation/explain", true),
            (403, "security_exception", "unauthorized", "rights", false),
            (404, "index_not_found_exception", "no such index", "auto_create_index", false),
            (
                400,
                "illegal_argument_exception",
                "only write ops with an op_type of create are allowed in data streams",
                "data_stream: true",
                false,
            ),
        ] {
            let Fate::Hold(refusal) = fate("index", status, kind, reason) else { panic!("{kind} held") };
            assert!(refusal.why.contains(part) && refusal.is_blocked == blocked, "{refusal:?}");
        }
        assert!(matches!(fate("index", 503, "cluster_block_exception", "SERVICE_UNAVAILABLE/1/state"), Fate::Again(_)));
    }

    #[test]
    fn what_is_no_reply_is_never_taken_for_success() {
        for (body, part) in [
            ("", "no bulk reply"),
            ("<html>welcome</html>", "no bulk reply"),
            ("{}", "no bulk reply"),
            (r#"{"errors":false,"items":[{"index":{}}]}"#, "no bulk reply"),
            (r#"{"errors":false,"items":[{"index":{"status":201}}"#, "no bulk reply"),
            (r#"{"errors":false,"items":[]}"#, "0 documents, but 1"),
            (r#"{"errors":false,"items":[{"delete":{"status":200}}]}"#, "no bulk reply"),
            (r#"{"errors":false,"items":[{"index":{"status":500}}]}"#, "no errors, and names some"),
        ] {
            let error = read(body.as_bytes(), 1).expect_err(body);
            assert!(error.contains(part), "{error}");
        }
    }

    fn item() -> impl Strategy<Value = Value> {
        let error = prop_oneof![
            Just(Value::Null),
            any::<String>().prop_map(Value::from),
            ("[a-z_]{0,40}", any::<String>()).prop_map(|(kind, reason)| json!({ "type": kind, "reason": reason })),
        ];
        (any::<bool>(), 0u16..1000, error).prop_map(|(create, status, error)| {
            let operation = if create { "create" } else { "index" };
            json!({ operation: { "status": status, "error": error } })
        })
    }

    proptest! {
        #[test]
        fn only_2xx_without_an_error_and_409_of_create_are_delivered(items in prop::collection::vec(item(), 0..20)) {
            let reply = json!({ "errors": true, "items": items }).to_string();
            let fates = read(reply.as_bytes(), items.len()).expect("a reply");
            for (fate, item) in fates.iter().zip(&items) {
                let status = item.as_object().and_then(|item| item.values().next()).expect("a status");
                let code = status["status"].as_u64().expect("a number");
                let well = (200..300).contains(&code) && status["error"].is_null();
                prop_assert_eq!(*fate == Fate::Delivered, well || (code == 409 && item.get("create").is_some()));
            }
        }

        #[test]
        fn a_reply_that_is_cut_or_changed_is_no_success_for_another_count(
            count in 1usize..20, cut in 0usize..2000, noise in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let items: Vec<_> = (0..count).map(|_| json!({ "index": { "status": 201 } })).collect();
            let mut reply = json!({ "errors": false, "items": items }).to_string().into_bytes();
            prop_assert!(read(&reply, count + 1).is_err());
            let cut = cut % reply.len();
            reply.truncate(cut);
            reply.extend(&noise);
            // Whatever it is, it never says more than there is.
            if let Ok(fates) = read(&reply, count) {
                prop_assert_eq!(fates.len(), count);
            }
        }
    }
}
