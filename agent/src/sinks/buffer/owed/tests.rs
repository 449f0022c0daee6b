//! What is owed comes out of its file as it went in.

use std::{fs, io::Write as _, sync::mpsc};

use proptest::prelude::*;
use serde_json::json;
use tempfile::NamedTempFile;

use super::*;
use crate::{
    assemble::{Assembler, Settings},
    files::Source,
    process::{InForce, ProcessorSettings, Processors},
    record::{Class, Origin},
    sinks::Hold,
};

/// A file with these bytes, and the batch that became of them.
fn written(bytes: &[u8], settings: serde_json::Value) -> (NamedTempFile, Option<Arc<Batch>>) {
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("written");
    let settings: Settings = serde_json::from_value(settings).expect("settings");
    let lines = settings.compile().expect("compiles");
    let stream = Arc::new(Stream {
        key: "file/1".into(),
        class: Class::Business,
        origin: Origin::File { path: "/a".into() },
        resource: Arc::default(),
        account: Arc::default(),
        source: Some(Arc::new(Source::new(Some(Arc::new(file.reopen().expect("opens"))), &lines))),
    });
    let mut assembler = Assembler::new(&lines);
    for (index, part) in bytes.chunks(7).enumerate() {
        let index = index as u64;
        assembler.push(1_000 + index, 2_000 + index, index * 7, part);
    }
    assembler.finish();
    (file, assembler.take_batch(&stream).map(Arc::new))
}

fn delivery(batch: &Arc<Batch>, hold: Option<&Hold>) -> Delivery {
    let (sender, _) = mpsc::channel();
    Delivery { batch: Arc::clone(batch), receipt: Receipt::for_sinks(batch, 1, &sender, hold).remove(0) }
}

/// What is read again after it was owed.
fn again(batch: &Arc<Batch>, redo: Option<Redo>) -> Result<Arc<Batch>, Reason> {
    let mut owed = Owed::default();
    owed.owe(delivery(batch, None), redo).expect("there is a file");
    assert!(owed.has(&batch.stream) && owed.bytes() == batch.span());
    let (places, _) = owed.take().expect("one");
    assert!(!owed.has(&batch.stream) && owed.bytes() == 0 && owed.memory == 0);
    places.read()
}

fn bodies(batch: &Batch) -> Vec<&[u8]> {
    batch.lines.iter().map(|line| &batch.data[line.body.clone()]).collect()
}

/// Lines without the place of their bodies.
fn lines(batch: &Batch) -> Vec<Line> {
    batch.lines.iter().map(|line| Line { body: 0..0, ..line.clone() }).collect()
}

proptest! {
    #[test]
    fn lines_are_read_again_as_they_were(
        text in proptest::collection::vec(prop_oneof![
            8 => Just(b'a'), 2 => Just(b' '), 3 => Just(b'\n'), 1 => Just(b'{'), 1 => Just(0xC3), 1 => any::<u8>(),
        ], 1..400),
        wanted in any::<u64>(),
        multiline in any::<bool>(),
    ) {
        let joined = json!({"multiline": {"patterns": [{"start": "^[a-z]", "continuation": "^ "}]}});
        let (_file, batch) = written(&text, if multiline { joined } else { json!({}) });
        let Some(batch) = batch else { return Ok(()) };
        // The sink wants some of them.
        let mut wanted = wanted;
        let part = crate::process::keep_lines(&batch, |_, _| {
            wanted = wanted.rotate_left(1);
            wanted & 1 == 1
        });
        if part.lines.is_empty() {
            return Ok(());
        }
        let read = again(&part, None).expect("read");
        prop_assert_eq!(bodies(&read), bodies(&part));
        prop_assert_eq!(lines(&read), lines(&part));
    }
}

#[test]
fn what_was_redacted_and_parsed_is_so_again() {
    let text = b"{\"level\":\"error\",\"mail\":\"someone@example.com\"}\n{\"level\":\"info\"}\n";
    let (_file, batch) = written(text, json!({"parse": {"format": "json"}}));
    let processors: Vec<ProcessorSettings> = serde_json::from_value(json!([
        {"type": "redact", "rules": ["email"]},
        {"type": "add_fields", "fields": {"team": "a"}},
    ]))
    .expect("settings");
    let in_force = InForce::default();
    in_force.replace(Some(Arc::new(Processors::new(&processors, None).expect("compiles"))));
    let batch = batch.expect("lines");
    let processed = in_force.get().and_then(|processors| processors.apply(&batch)).expect("changed").batch;
    assert!(!bodies(&processed)[0].windows(7).any(|bytes| bytes == b"someone"));
    let read = again(&processed, in_force.redo()).expect("read");
    assert_eq!(bodies(&read), bodies(&processed));
    assert_eq!(lines(&read), lines(&processed));
}

#[test]
fn what_is_in_no_file_is_kept_and_what_only_the_ring_has_is_not_owed() {
    let (_file, batch) = written(b"one\ntwo\n", json!({}));
    let batch = batch.expect("lines");
    let summary = Line { flags: LineFlags::SYNTHETIC, body: 8..13, position: 4, ..Line::default() };
    let mut lines = batch.lines.clone();
    lines.insert(1, summary);
    let data = [&batch.data[..], b"three"].concat().into();
    let with_summary = Arc::new(Batch { stream: Arc::clone(&batch.stream), data, lines });
    let read = again(&with_summary, None).expect("read");
    assert_eq!(bodies(&read), [&b"one"[..], b"three", b"two"]);
    let hold: Hold = Arc::new(());
    assert!(Owed::default().owe(delivery(&batch, Some(&hold)), None).is_err());
}

#[test]
fn another_content_is_not_taken_for_it() {
    let (file, batch) = written(b"one\ntwo\n", json!({}));
    let batch = batch.expect("lines");
    fs::write(file.path(), b"one\nTWO\nthree\n").expect("written");
    assert_eq!(again(&batch, None).err(), Some(Reason::Truncated));
    fs::write(file.path(), b"one\n").expect("written");
    assert_eq!(again(&batch, None).err(), Some(Reason::Truncated));
}
