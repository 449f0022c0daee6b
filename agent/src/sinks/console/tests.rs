use std::{
    io,
    sync::{Arc, Mutex, mpsc},
};

use super::*;
use crate::{
    ledger::Reason,
    record::{Severity, Stream},
    sinks::{
        Delivery, Receipt, Settled, Sink,
        testing::{all_settled, batch, next_settled, pod_stream},
    },
};

/// A writer whose output the test sees, and which can fail.
#[derive(Clone, Default)]
struct Shared {
    bytes: Arc<Mutex<Vec<u8>>>,
    fail: Arc<Mutex<Option<io::ErrorKind>>>,
}

impl io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(kind) = *self.fail.lock().expect("not poisoned") {
            return Err(kind.into());
        }
        // Fewer than were offered, as a pipe does.
        let count = bytes.len().min(7);
        self.bytes.lock().expect("not poisoned").extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.bytes.lock().expect("not poisoned").clone()).expect("UTF-8")
    }
}

fn offer(sink: &mut ConsoleSink, stream: &Arc<Stream>, bodies: &[&[u8]]) -> (Result<(), String>, Vec<Settled>) {
    let (sender, settled) = mpsc::channel();
    let batch = Arc::new(batch(stream, 0, bodies));
    let mut queue = Receipt::for_sinks(&batch, 1, &sender, None)
        .into_iter()
        .map(|receipt| Delivery { batch: Arc::clone(&batch), receipt })
        .collect();
    drop(batch);
    let result = sink.write(&mut queue).map_err(|error| error.to_string());
    (result, all_settled(&settled))
}

fn settings(format: Format) -> Settings {
    Settings { format, ..Settings::default() }
}

#[test]
fn a_line_for_people_has_time_source_and_body() {
    let out = Shared::default();
    let mut sink = ConsoleSink::new(&settings(Format::Text), Box::new(out.clone()), false, false);
    let (result, settled) = offer(&mut sink, &pod_stream("shop", "cart-0", "app"), &[b"hello", "größer".as_bytes()]);
    assert_eq!(result, Ok(()));
    assert_eq!(settled.iter().map(Settled::lost_for).collect::<Vec<_>>(), [None]);
    assert_eq!(
        out.text(),
        "2026-11-21T05:00:00.000Z shop/cart-0/app stdout hello\n2026-11-21T05:00:00.000Z shop/cart-0/app stdout größer\n"
    );
}

#[test]
fn colours_only_where_they_are_wanted() {
    for (color, terminal, no_color, wanted) in [
        (Color::Auto, true, false, true),
        (Color::Auto, true, true, false),
        (Color::Auto, false, false, false),
        (Color::Always, false, true, true),
        (Color::Never, true, false, false),
    ] {
        let out = Shared::default();
        let settings = Settings { color, ..Settings::default() };
        let mut sink = ConsoleSink::new(&settings, Box::new(out.clone()), terminal, no_color);
        offer(&mut sink, &pod_stream("a", "b", "c"), &[b"x"]).0.expect("written");
        assert_eq!(out.text().contains("\x1b["), wanted, "{color:?} {terminal} {no_color}");
    }
}

#[test]
fn nothing_from_a_pod_drives_the_terminal() {
    let hostile = "\x1b]0;title\x07\x1b[2J\r\u{9b}2J\u{202e}txt\0\x7f\x08";
    let mut body = hostile.as_bytes().to_vec();
    body.push(0x9b);
    for format in [Format::Text, Format::Json] {
        let out = Shared::default();
        let mut sink = ConsoleSink::new(&settings(format), Box::new(out.clone()), true, true);
        offer(&mut sink, &pod_stream(hostile, hostile, hostile), &[&body, hostile.as_bytes()]).0.expect("written");
        let text = out.text();
        let bad: Vec<char> = text.chars().filter(|c| c.is_control() && *c != '\n' || *c == '\u{202e}').collect();
        assert!(bad.is_empty(), "{format:?}: {text:?} has {bad:?}");
        assert_eq!(text.lines().count(), 2);
        if format == Format::Json {
            let record: serde_json::Value = serde_json::from_str(text.lines().nth(1).expect("two")).expect("JSON");
            assert_eq!(record["body"], hostile);
        }
    }
    let out = Shared::default();
    let mut sink =
        ConsoleSink::new(&Settings { raw: true, ..Settings::default() }, Box::new(out.clone()), false, false);
    offer(&mut sink, &pod_stream("a", "b", "c"), &[hostile.as_bytes()]).0.expect("written");
    assert!(out.text().contains(hostile));
}

#[test]
fn a_reader_that_goes_away_is_one_error() {
    let out = Shared::default();
    let mut sink = ConsoleSink::new(&settings(Format::Json), Box::new(out.clone()), false, false);
    *out.fail.lock().expect("not poisoned") = Some(io::ErrorKind::BrokenPipe);
    let stream = pod_stream("a", "b", "c");
    let (first, settled) = offer(&mut sink, &stream, &[b"x"]);
    assert!(first.expect_err("gone").contains("its reader is gone"));
    assert_eq!(settled[0].lost_for(), Some(Reason::Rejected));
    let (second, settled) = offer(&mut sink, &stream, &[b"y"]);
    assert_eq!(second, Ok(()));
    assert_eq!(settled[0].lost_for(), Some(Reason::Rejected));
    assert!(sink.flush().is_ok());
}

#[test]
fn what_fails_for_a_while_is_written_once_afterwards() {
    let out = Shared::default();
    let mut sink = ConsoleSink::new(&settings(Format::Text), Box::new(out.clone()), false, false);
    *out.fail.lock().expect("not poisoned") = Some(io::ErrorKind::Other);
    let stream = pod_stream("a", "b", "c");
    let (sender, settled) = mpsc::channel();
    let mut batch = batch(&stream, 0, &[b"once"]);
    batch.lines[0].severity = Some(Severity::Warn);
    let batch = Arc::new(batch);
    let receipt = Receipt::for_sinks(&batch, 1, &sender, None).remove(0);
    let mut queue = [Delivery { batch, receipt }].into();
    sink.write(&mut queue).expect_err("fails");
    assert!(settled.try_recv().is_err());
    *out.fail.lock().expect("not poisoned") = None;
    sink.flush().expect("written");
    assert_eq!(next_settled(&settled).lost_for(), None);
    assert_eq!(out.text(), "2026-11-21T05:00:00.000Z a/b/c stdout WARN once\n");
}
