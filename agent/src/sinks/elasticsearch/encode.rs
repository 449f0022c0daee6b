//! Lines as the body of a bulk request.
//!
//! The id of a document is made of the stream's key, the line's position and its length, so that the same line sent again
//! is the same document. The length is in it because a line may be cut at another place when it is read again after a
//! restart: with the position alone its second half would be taken for a repeat of the whole, and be lost.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use bytes::Bytes;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use super::{
    config::{Compression, Settings},
    index::{IndexTemplate, day},
    reply::Rejection,
};
use crate::{
    policy::Allowed,
    record::{Line, Stream},
    sinks::{json::Encoder, receipt::LineReceipt, stream_cache::StreamCache, timestamp::Rfc3339},
};

/// How many streams' constant parts are kept.
const STREAMS: usize = 2048;
/// Bytes of a hash that go into an id: 128 bits, so that no two streams ever have the same.
const HASH_BYTES: usize = 16;
/// Speed over size: of text like logs, level 1 leaves hardly more than level 6, in a third of the time.
const GZIP_LEVEL: u32 = 1;

/// A line that is to become a document.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) receipt: LineReceipt,
    /// Why its own index does not take it: then it goes to the dead-letter index.
    pub(super) rejection: Option<Box<Rejection>>,
    /// Since when it is held, as its index takes nothing: by [`Uptime`](crate::sinks::uptime::Uptime).
    pub(super) held_since: Option<Duration>,
    /// It is sent to show whether its index takes lines again.
    pub(super) is_trial: bool,
}

impl Entry {
    /// A line that was never sent.
    pub(super) const fn new(receipt: LineReceipt) -> Self {
        Self { receipt, rejection: None, held_since: None, is_trial: false }
    }
}

/// A request.
#[derive(Debug)]
pub(super) struct Bulk {
    /// Its lines, in the order of its items.
    pub(super) entries: Vec<Entry>,
    /// Its body, compressed where that is set.
    pub(super) body: Bytes,
    /// It is a part of one that was refused.
    pub(super) was_refused: bool,
    /// It was held as the server seemed to be at fault that refused it.
    pub(super) was_held: bool,
}

impl Bulk {
    /// Bytes of its lines.
    pub(super) fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.receipt.line().body.len()).sum()
    }
}

/// Why a line can't go into the request.
#[derive(Debug)]
pub(super) enum NoRoom {
    /// It goes into the next one.
    Full(Entry),
    /// It is larger than a request may be: so many bytes.
    TooLarge(Entry, usize),
}

/// Fills requests.
pub(super) struct Filler {
    index: Index,
    operation: &'static str,
    dead_letter_index: String,
    compression: Compression,
    max_bytes: usize,
    encoder: Encoder,
    time: Rfc3339,
    streams: StreamCache<Constant, STREAMS>,
    entries: Vec<Entry>,
    body: Vec<u8>,
}

/// The names of indices.
struct Index {
    template: IndexTemplate,
    allow_declared: Allowed,
}

impl Index {
    /// The index of the records of `stream`: what is declared for it, where that may be chosen.
    fn of(&self, stream: &Stream, day: u64) -> String {
        let declared = stream.resource.route.as_ref().and_then(|route| route.index.as_ref());
        let declared = self.allow_declared.permitted(declared, &stream.resource);
        declared.map_or_else(|| self.template.index(stream, day), str::to_owned)
    }
}

/// What is the same for all lines of a stream on a day.
struct Constant {
    day: u64,
    index: String,
    id: String,
}

impl Filler {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            index: Index { template: settings.index(), allow_declared: settings.allow_declared.clone() },
            operation: if settings.data_stream { "create" } else { "index" },
            dead_letter_index: settings.dead_letter_index.clone(),
            compression: settings.compression,
            max_bytes: usize::try_from(settings.max_request_bytes.as_u64()).unwrap_or(usize::MAX),
            encoder: Encoder::grouping_labels(),
            time: Rfc3339::default(),
            streams: StreamCache::default(),
            entries: Vec::new(),
            body: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The index that a line goes to.
    pub(super) fn index_of(&mut self, entry: &Entry) -> &str {
        if entry.rejection.is_some() {
            return &self.dead_letter_index;
        }
        let Self { index, streams, .. } = self;
        &constant(streams, index, &entry.receipt).index
    }

    /// Adds a line to the request.
    pub(super) fn add(&mut self, entry: Entry) -> Result<(), NoRoom> {
        let start = self.body.len();
        match &entry.rejection {
            None => self.append(&entry.receipt),
            Some(rejection) => self.append_dead_letter(&entry.receipt, rejection),
        }
        let size = self.body.len() - start;
        if self.body.len() <= self.max_bytes {
            self.entries.push(entry);
            return Ok(());
        }
        self.body.truncate(start);
        Err(if size > self.max_bytes { NoRoom::TooLarge(entry, size) } else { NoRoom::Full(entry) })
    }

    /// The request with all lines that were added.
    pub(super) fn finish(&mut self) -> Option<Bulk> {
        if self.entries.is_empty() {
            return None;
        }
        let entries = std::mem::take(&mut self.entries);
        let body = match self.compression {
            Compression::Gzip => compress(&self.body).into(),
            Compression::None => Bytes::copy_from_slice(&self.body),
        };
        self.body.clear();
        Some(Bulk { entries, body, was_refused: false, was_held: false })
    }

    /// Takes out the lines that were added.
    pub(super) fn take_entries(&mut self) -> Vec<Entry> {
        self.body.clear();
        std::mem::take(&mut self.entries)
    }

    fn append_action(&mut self, receipt: &LineReceipt, is_dead_letter: bool) {
        let Self { index, streams, body, dead_letter_index, operation, .. } = self;
        let constant = constant(streams, index, receipt);
        // A data stream is made of `create`; the dead-letter index is none.
        let (operation, index) =
            if is_dead_letter { ("index", &*dead_letter_index) } else { (*operation, &constant.index) };
        let Line { position, span, .. } = receipt.line();
        // Nothing of it has to be escaped, and writing to a vector can't fail.
        let id = &constant.id;
        let _ = writeln!(body, r#"{{"{operation}":{{"_index":"{index}","_id":"{id}-{position}-{span}"}}}}"#);
    }

    fn append(&mut self, receipt: &LineReceipt) {
        self.append_action(receipt, false);
        self.append_time(receipt.line().time_unix_nano);
        let start = self.body.len();
        self.encoder.append_line(receipt.batch(), receipt.line(), &mut self.body);
        // The brace of the record becomes the comma after the first field.
        self.body[start] = b',';
        self.body.push(b'\n');
    }

    /// Begins a document with the field that tools expect the time in, and data streams must have.
    fn append_time(&mut self, unix_nano: u64) {
        self.body.extend_from_slice(b"{\"@timestamp\":\"");
        self.time.append(unix_nano, &mut self.body);
        self.body.push(b'"');
    }

    fn append_dead_letter(&mut self, receipt: &LineReceipt, rejection: &Rejection) {
        self.append_action(receipt, true);
        self.append_time(receipt.line().observed_time_unix_nano);
        let mut original = Vec::new();
        self.encoder.append_line(receipt.batch(), receipt.line(), &mut original);
        let stream = &receipt.batch().stream;
        let fields = [
            ("class", stream.class.as_str()),
            ("stream", &*stream.key),
            ("index", &*rejection.index),
            ("error.type", &*rejection.kind),
            ("error.message", &*rejection.reason),
            // As text, so that nothing of it can be in conflict again.
            ("original", &*String::from_utf8_lossy(&original)),
        ];
        for (name, value) in fields {
            // `Display` of a value is its JSON.
            let _ = write!(self.body, ",\"{name}\":{}", serde_json::Value::from(value));
        }
        let _ = writeln!(self.body, ",\"position\":{}}}", receipt.line().position);
    }
}

fn constant<'cache>(
    streams: &'cache mut StreamCache<Constant, STREAMS>,
    index: &Index,
    receipt: &LineReceipt,
) -> &'cache Constant {
    let day = day(receipt.line().observed_time_unix_nano);
    let stream = &receipt.batch().stream;
    let make = |stream: &Stream| Constant { day, index: index.of(stream, day), id: id(stream) };
    let constant = streams.get_or_insert_with(stream, make);
    if constant.day != day {
        *constant = make(stream);
    }
    constant
}

/// The part of an id that is the same for all lines of a stream: its key is unique on its node only, and long.
fn id(stream: &Stream) -> String {
    let mut hash = Sha256::new();
    hash.update(stream.resource.host_name.as_deref().unwrap_or_default());
    hash.update([0]);
    hash.update(&*stream.key);
    data_encoding::BASE64URL_NOPAD.encode(&hash.finalize()[..HASH_BYTES])
}

fn compress(body: &[u8]) -> Vec<u8> {
    let compressed = || -> io::Result<Vec<u8>> {
        let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), flate2::Compression::new(GZIP_LEVEL));
        encoder.write_all(body)?;
        encoder.finish()
    };
    compressed().unwrap_or_else(|_| unreachable!("writing to a vector can't fail"))
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, sync::Arc, sync::mpsc::channel};

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        record::Batch,
        sinks::{
            Receipt,
            receipt::Lines,
            testing::{batch, pod_stream},
        },
    };

    fn entries(batch: Batch) -> Vec<Entry> {
        let batch = Arc::new(batch);
        let (settled, _) = channel();
        let receipt = Receipt::for_sinks(&batch, 1, &settled, None).pop().expect("one receipt");
        let lines = Lines::new(&batch, receipt);
        (0..batch.lines.len()).map(|index| Entry::new(lines.line(index))).collect()
    }

    fn filler(data_stream: bool) -> Filler {
        Filler::new(&Settings { compression: Compression::None, data_stream, ..Settings::default() })
    }

    fn lines(bulk: &Bulk) -> Vec<Value> {
        bulk.body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect()
    }

    #[test]
    fn a_request_is_an_action_and_a_record_for_each_line() {
        let mut filler = filler(false);
        for entry in entries(batch(&pod_stream("shop", "cart", "app"), 7, &[b"one", b"t\"wo"])) {
            assert!(filler.add(entry).is_ok());
        }
        let bulk = filler.finish().expect("a request");
        let lines = lines(&bulk);
        assert_eq!(lines.len(), 4);
        let action = &lines[0]["index"];
        assert_eq!(action["_index"], "logs-pod-2026.11.21");
        let id = action["_id"].as_str().expect("an id");
        assert!(id.ends_with("-7-4") && id.len() <= 512, "{id}");
        assert_eq!(lines[1]["@timestamp"], "2026-11-21T05:00:00.000000000Z");
        assert_eq!((&lines[1]["timestamp"], &lines[1]["body"]), (&lines[1]["@timestamp"], &json!("one")));
        assert_eq!(lines[3]["body"], "t\"wo");
        assert!(bulk.body.ends_with(b"}\n"), "the server wants a newline at the end");
        assert!(filler.finish().is_none());
    }

    #[test]
    fn an_id_tells_streams_nodes_and_lines_apart_and_nothing_else() {
        let stream = |node: Option<&str>, key: &str| {
            let mut stream = Arc::into_inner(pod_stream("a", "b", "c")).expect("alone");
            let mut resource = (*stream.resource).clone();
            resource.host_name = node.map(Into::into);
            (stream.resource, stream.key) = (Arc::new(resource), key.into());
            stream
        };
        let first = id(&stream(Some("n"), "k"));
        assert_eq!(first, id(&stream(Some("n"), "k")));
        for other in
            [stream(None, "k"), stream(Some("nk"), ""), stream(Some("m"), "k"), stream(Some("n"), &"k".repeat(9000))]
        {
            assert_ne!(first, id(&other));
            assert_eq!(id(&other).len(), 22);
        }
    }

    #[test]
    fn data_streams_are_made_of_create() {
        let mut filler = filler(true);
        let entry = entries(batch(&pod_stream("shop", "cart", "app"), 7, &[b"one"])).remove(0);
        assert!(filler.add(entry).is_ok());
        assert_eq!(lines(&filler.finish().expect("a request"))[0]["create"]["_index"], "logs-pod-default");
    }

    #[test]
    fn a_dead_letter_holds_the_record_as_text() {
        let mut filler = filler(true);
        let mut entry = entries(batch(&pod_stream("shop", "cart", "app"), 7, &[b"one"])).remove(0);
        let rejection = Rejection { index: "logs".into(), kind: "a".into(), reason: "\"b\"".into() };
        entry.rejection = Some(Box::new(rejection));
        assert!(filler.add(entry).is_ok());
        let lines = lines(&filler.finish().expect("a request"));
        assert_eq!(lines[0]["index"]["_index"], "sidestep-dead-letter");
        assert_eq!(lines[1]["error.message"], "\"b\"");
        let original: Value = serde_json::from_str(lines[1]["original"].as_str().expect("text")).expect("JSON");
        assert_eq!((&original["body"], &original["position"]), (&json!("one"), &json!(7)));
    }

    #[test]
    fn a_request_has_its_limit_and_a_line_above_it_is_told() {
        let mut filler = filler(false);
        filler.max_bytes = 1000;
        let stream = pod_stream("shop", "cart", "app");
        let large = vec![b'x'; 2000];
        let mut entries = entries(batch(&stream, 0, &[b"one", b"two", b"three", &large])).into_iter();
        assert!(filler.add(entries.next().expect("a line")).is_ok());
        let Some(NoRoom::Full(two)) = entries.by_ref().find_map(|entry| filler.add(entry).err()) else {
            panic!("full")
        };
        assert!(filler.finish().expect("a request").body.len() <= 1000);
        assert!(filler.add(two).is_ok());
        let Some(NoRoom::TooLarge(_, size)) = entries.last().and_then(|entry| filler.add(entry).err()) else {
            panic!("too large")
        };
        assert!(size > 2000);
        assert_eq!(filler.finish().expect("what fitted").entries.len(), 1);
    }

    #[test]
    fn what_is_compressed_is_read_back() {
        let text = vec![b'x'; 100_000];
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&*compress(&text)).read_to_end(&mut read).expect("reads");
        assert_eq!(read, text);
    }
}
