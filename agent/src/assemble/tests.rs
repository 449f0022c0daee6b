//! The invariants of the assembler, with any bytes, cut in any way.

use std::sync::Arc;

use bytesize::ByteSize;
use proptest::prelude::*;

use super::*;
use crate::record::{Batch, Class, IoStream, LineFlags, Origin, Stream};

const SECOND: u64 = 1_000_000_000;
const NONE: LineFlags = LineFlags(0);
const CUT: LineFlags = LineFlags::CUT;
const UNTERMINATED: LineFlags = LineFlags::UNTERMINATED;
const AFTER_GAP: LineFlags = LineFlags::AFTER_GAP;
const CONTINUATION: LineFlags = LineFlags::CONTINUATION;
const MULTILINE: LineFlags = LineFlags::MULTILINE;

pub(super) fn stream() -> Arc<Stream> {
    Arc::new(Stream {
        key: "c/stdout".into(),
        class: Class::Pod,
        origin: Origin::Stdio(IoStream::Stdout),
        resource: Arc::default(),
        account: Arc::default(),
        source: None,
    })
}

/// A line as tests compare it: body, position, span, flags.
type Seen = (Vec<u8>, u64, u64, LineFlags);

fn seen(batch: &Batch) -> Vec<Seen> {
    batch.lines.iter().map(|line| (batch.body(line).to_vec(), line.position, line.span, line.flags)).collect()
}

fn take(assembler: &mut Assembler) -> Vec<Seen> {
    assembler.take_batch(&stream()).as_ref().map(seen).unwrap_or_default()
}

/// Bodies and flags of what is ready.
fn take_bodies(assembler: &mut Assembler) -> Vec<(String, LineFlags)> {
    let text = |body: Vec<u8>| String::from_utf8(body).expect("UTF-8");
    take(assembler).into_iter().map(|(body, _, _, flags)| (text(body), flags)).collect()
}

fn assembler(settings: &Settings) -> Assembler {
    Assembler::new(&settings.compile().expect("valid settings"))
}

fn short_lines() -> Settings {
    Settings { max_line_bytes: ByteSize::b(64), ..Settings::default() }
}

fn body(text: &str, flags: LineFlags) -> (String, LineFlags) {
    (text.to_owned(), flags)
}

#[test]
fn many_lines_in_one_write_and_one_line_in_many_writes() {
    let mut lines = assembler(&Settings::default());
    lines.push(10, 11, 100, b"one\r\n\ntw");
    lines.push(20, 21, 108, b"");
    lines.push(30, 31, 108, b"o");
    assert_eq!((lines.ready_lines(), lines.ready_bytes(), lines.pending()), (2, 6, 9));
    assert_eq!(lines.unfinished_position(), Some(106));
    lines.push(40, 41, 109, b"\nthree");
    let batch = lines.take_batch(&stream()).expect("lines");
    assert_eq!(
        seen(&batch),
        [(b"one\r".to_vec(), 100, 5, NONE), (Vec::new(), 105, 1, NONE), (b"two".to_vec(), 106, 4, NONE)]
    );
    let times: Vec<_> = batch.lines.iter().map(|line| (line.time_unix_nano, line.observed_time_unix_nano)).collect();
    assert_eq!(times, [(10, 11), (10, 11), (10, 41)], "a line has the time of the write that began it");
    assert_eq!((batch.span(), batch.end(), lines.pending()), (10, 110, 5));
    assert!(lines.take_batch(&stream()).is_none());
    lines.finish();
    assert_eq!(take(&mut lines), [(b"three".to_vec(), 110, 5, UNTERMINATED)]);
    assert_eq!(lines.pending(), 0);
}

#[test]
fn a_line_over_the_limit_is_cut_and_marked() {
    let mut lines = assembler(&short_lines());
    let exact = "x".repeat(64);
    lines.push(1, 1, 0, exact.as_bytes());
    assert_eq!(lines.ready_lines(), 0, "the next byte may be the newline");
    lines.push(1, 1, 64, format!("\n{exact}y\n{}", "z".repeat(130)).as_bytes());
    assert_eq!(
        take_bodies(&mut lines),
        [
            body(&exact, NONE),
            body(&exact, CUT),
            body("y", CONTINUATION),
            body(&"z".repeat(64), CUT),
            body(&"z".repeat(64), CUT.with(CONTINUATION)),
        ]
    );
    lines.finish();
    assert_eq!(take_bodies(&mut lines), [body("zz", UNTERMINATED.with(CONTINUATION))]);
}

#[test]
fn a_cut_does_not_tear_a_character() {
    for before in 60..64 {
        let mut lines = assembler(&short_lines());
        let text = format!("{}😀tail", "a".repeat(before));
        lines.push(1, 1, 0, text.as_bytes());
        lines.finish();
        let got = take_bodies(&mut lines);
        assert_eq!(got.iter().map(|(body, _)| body.as_str()).collect::<String>(), text);
        let expected = if before + 4 > 64 { before } else { 64 };
        assert_eq!(got[0], body(&text[..expected], CUT));
    }
}

#[test]
fn a_gap_ends_the_line_before_and_marks_the_one_after() {
    let mut lines = assembler(&Settings::default());
    lines.push(1, 1, 0, b"a\nbro");
    lines.gap(5, 100);
    lines.push(2, 2, 105, b"ken\nnext\n");
    assert_eq!(
        take(&mut lines),
        [
            (b"a".to_vec(), 0, 2, NONE),
            (b"bro".to_vec(), 2, 3, UNTERMINATED),
            (b"ken".to_vec(), 105, 4, AFTER_GAP),
            (b"next".to_vec(), 109, 5, NONE),
        ]
    );
    lines.gap(114, 0);
    lines.push(3, 3, 114, b"no gap\n");
    lines.push(3, 3, 500, b"elsewhere\n");
    assert_eq!(take_bodies(&mut lines), [body("no gap", NONE), body("elsewhere", AFTER_GAP)]);
}

#[test]
fn an_idle_last_line_comes_out_once() {
    let mut lines = assembler(&Settings::default());
    assert_eq!(lines.next_deadline(), None);
    lines.push(SECOND, SECOND, 0, b"prompt> ");
    assert_eq!(lines.next_deadline(), Some(6 * SECOND));
    lines.idle(6 * SECOND - 1);
    assert_eq!(lines.ready_lines(), 0);
    lines.idle(6 * SECOND);
    assert_eq!(take_bodies(&mut lines), [body("prompt> ", UNTERMINATED)]);
    assert_eq!((lines.next_deadline(), lines.pending()), (None, 0));
    lines.push(9 * SECOND, 9 * SECOND, 8, b"yes\nnext\n");
    assert_eq!(take_bodies(&mut lines), [body("yes", CONTINUATION), body("next", NONE)]);
}

#[test]
fn a_clock_set_back_delays_by_one_interval() {
    let settings = Settings {
        multiline: Multiline { rules: vec![Language::Java], ..Multiline::default() },
        ..Settings::default()
    };
    let mut lines = assembler(&settings);
    lines.push(1_000 * SECOND, 1_000 * SECOND, 0, b"java.lang.Error: x\npartial");
    lines.idle(10 * SECOND);
    assert_eq!(lines.next_deadline(), Some(15 * SECOND));
    lines.idle(15 * SECOND);
    assert_eq!(take_bodies(&mut lines), [body("java.lang.Error: x", NONE), body("partial", UNTERMINATED)]);
    lines.push(1_000 * SECOND, 1_000 * SECOND, 26, b"\njava.lang.Error: y\n");
    lines.idle(10 * SECOND);
    assert_eq!(lines.next_deadline(), Some(11 * SECOND));
}

/// Whether a tick comes between the trace's time and the line's makes no difference; the time of a later write does.
#[test]
fn a_trace_waits_for_the_unfinished_line_behind_it() {
    let settings = Settings {
        multiline: Multiline { rules: vec![Language::Java], ..Multiline::default() },
        ..Settings::default()
    };
    let trace = body("java.lang.Error: x\n\tat a.b", MULTILINE.with(UNTERMINATED));
    for ticks in [&[6 * SECOND][..], &[2 * SECOND, 6 * SECOND], &[2 * SECOND], &[]] {
        let mut lines = assembler(&settings);
        lines.push(SECOND, SECOND, 0, b"java.lang.Error: x\n\tat a.b");
        ticks.iter().for_each(|tick| lines.idle(*tick));
        lines.finish();
        assert_eq!(take_bodies(&mut lines), std::slice::from_ref(&trace), "{ticks:?}");
    }
    for ticks in [&[][..], &[2 * SECOND]] {
        let mut lines = assembler(&settings);
        lines.push(SECOND, SECOND, 0, b"java.lang.Error: x\n\tat a.b");
        ticks.iter().for_each(|tick| lines.idle(*tick));
        lines.push(3 * SECOND, 3 * SECOND, 26, b".c\n");
        assert_eq!(take_bodies(&mut lines), [body("java.lang.Error: x", NONE), body("\tat a.b.c", NONE)], "{ticks:?}");
    }
}

#[test]
fn a_batch_does_not_keep_a_large_arena() {
    let mut lines = assembler(&Settings::default());
    lines.push(1, 1, 0, &[b"x\n".repeat(100_000), b"y".repeat(500_000)].concat());
    let batch = lines.take_batch(&stream()).expect("lines");
    let data: Vec<u8> = batch.data.into();
    assert!(data.capacity() <= 2 * data.len() + 1024, "{} for {}", data.capacity(), data.len());
    assert_eq!(lines.pending(), 500_000);
}

#[test]
fn settings_are_read_and_checked() {
    let settings: Settings = serde_json::from_str(
        r#"{"max_line_bytes": "64KiB", "idle_flush": "500ms", "parse": {"format": "auto"},
            "multiline": {"rules": ["java", "dotnet"], "patterns": [{"start": "^a", "continuation": "^ "}]}}"#,
    )
    .expect("valid");
    assert_eq!(settings.max_line_bytes, ByteSize::kib(64));
    assert_eq!(settings.multiline.rules, [Language::Java, Language::Dotnet]);
    let again = serde_json::to_string(&settings).expect("serializes");
    assert_eq!(serde_json::from_str::<Settings>(&again).expect("round trip"), settings);
    settings.compile().expect("valid");
    assert!(serde_json::from_str::<Settings>(r#"{"max_line": 1}"#).is_err());

    for (text, message) in [
        (r#"{"max_line_bytes": 1}"#, "max_line_bytes: `1` is not between `64` and `1GiB`"),
        (r#"{"idle_flush": "0s"}"#, "idle_flush: `0s` is not between `1ms` and `1day`"),
        (r#"{"multiline": {"max_lines": 1}}"#, "multiline.max_lines: `1` is not between `2` and `1000000`"),
        (r#"{"multiline": {"patterns": [{}]}}"#, "multiline.patterns[0]: needs `start`, `continuation` or both"),
        (r#"{"multiline": {"patterns": [{"start": "("}]}}"#, "multiline.patterns[0].start: regex parse error"),
        (r#"{"multiline": {"rules": ["go"], "patterns": [{"start": "x"}]}}"#, "must be the only rule"),
        (r#"{"parse": {"time_keys": [""]}}"#, "parse.time_keys: a key is empty"),
    ] {
        let errors = serde_json::from_str::<Settings>(text).expect("well formed").compile().expect_err(text);
        assert!(errors.len() == 1 && errors[0].to_string().contains(message), "{errors:?}");
    }
}

/// What happens to a stream: bytes come, or are missing.
#[derive(Clone, Debug)]
enum Event {
    Bytes(Vec<u8>),
    Missing(u64),
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    const LINES: [&str; 22] = [
        "java.lang.IllegalStateException: x\n",
        "\tat a.b.C(D.java:1)\r\n",
        "Caused by: a.B: y\n",
        "\t... 12 more\n",
        "Traceback (most recent call last):\n",
        "  File \"a.py\", line 1, in f\n",
        "KeyError: 'a'\n",
        "During handling of the above exception, another exception occurred:\n",
        "panic: x\n",
        "goroutine 1 [running]:\n",
        "main.main()\n",
        "a.rb:1:in `f': bad (ArgumentError)\n",
        "\tfrom a.rb:2:in `g'\n",
        "/app/a.js:1\n",
        "    ^\n",
        "TypeError: x\n",
        "    at f (a.js:1:2) {\n",
        "}\n",
        "Node.js v20.1.0\n",
        "Unhandled exception. System.Exception: x\n",
        " ---> System.Exception: y\n",
        "plain text\n",
    ];
    let piece = prop_oneof![
        6 => prop::sample::select(&LINES[..]).prop_map(|line| line.as_bytes().to_vec()),
        3 => Just(b"\n".to_vec()),
        2 => (0_usize..200).prop_map(|count| "aé€😀".repeat(count / 4).into_bytes()),
        2 => prop::collection::vec(any::<u8>(), 0..80),
        1 => Just(vec![0, 0xFF, 0xC3, b'\r', b'\n']),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![3 => bytes().prop_map(Event::Bytes), 1 => (1_u64..1000).prop_map(Event::Missing)];
    prop::collection::vec(event, 1..6)
}

fn any_settings() -> impl Strategy<Value = Settings> {
    use Language::{Dotnet, Go, Java, Node, Python, Ruby};
    let patterns = |start: Option<&str>, continuation: Option<&str>| {
        vec![Pattern { start: start.map(str::to_owned), continuation: continuation.map(str::to_owned) }]
    };
    let rules = prop_oneof![
        Just((vec![], vec![])),
        Just((vec![Java, Python, Go, Ruby, Node, Dotnet], vec![])),
        Just((vec![Go], patterns(Some("^p"), Some("^\\s")))),
        Just((vec![], patterns(Some("^[a-z]"), None))),
        Just((vec![], patterns(None, Some("^\\s")))),
    ];
    (rules, 2_usize..8).prop_map(|((rules, patterns), max_lines)| Settings {
        multiline: Multiline { rules, patterns, max_lines, max_bytes: ByteSize::kib(1), ..Multiline::default() },
        ..short_lines()
    })
}

/// Runs the events, each run of bytes cut at the given places (as fractions of 1000), with batches taken under way.
fn run(settings: &Settings, events: &[Event], cuts: &[(u16, bool)]) -> Vec<Seen> {
    let mut assembler = assembler(settings);
    let mut lines = Vec::new();
    let (mut position, mut pushed) = (7, 0);
    let mut check = |assembler: &mut Assembler, pushed: u64, batch: bool| {
        if batch {
            lines.extend(take(assembler));
        }
        let spans: u64 = lines.iter().map(|(_, _, span, _)| span).sum();
        assert_eq!(spans + assembler.pending() as u64, pushed);
        let unfinished = assembler.pending() - assembler.ready_bytes();
        assert!(unfinished <= 64 + if settings.multiline == Multiline::default() { 0 } else { 1024 }, "{unfinished}");
    };
    for event in events {
        match event {
            Event::Missing(missing) => {
                assembler.gap(position, *missing);
                position += missing;
            }
            Event::Bytes(bytes) => {
                let place = |cut: u16| usize::from(cut) * bytes.len() / 1000;
                let mut places: Vec<_> = cuts.iter().map(|&(cut, batch)| (place(cut), batch)).collect();
                places.push((bytes.len(), false));
                places.sort_unstable();
                let mut from = 0;
                for (to, batch) in places {
                    assembler.push(1, 1, position, &bytes[from..to]);
                    position += (to - from) as u64;
                    pushed += (to - from) as u64;
                    from = to;
                    check(&mut assembler, pushed, batch);
                }
            }
        }
    }
    assembler.finish();
    check(&mut assembler, pushed, true);
    assert_eq!(assembler.pending(), 0);
    lines
}

/// The lines account for each byte that came, in order, and each is what its flags say.
fn assert_complete(settings: &Settings, events: &[Event], lines: &[Seen]) {
    let mut position = 7;
    let mut lines = lines.iter().peekable();
    let mut missing = false;
    for event in merge(events) {
        let bytes = match event {
            Event::Missing(count) => {
                position += count;
                missing = true;
                continue;
            }
            Event::Bytes(bytes) => bytes,
        };
        let (start, end) = (position, position + bytes.len() as u64);
        while position < end {
            let (body, at, span, flags) = lines.next().expect("a line for each byte");
            assert_eq!(*at, position);
            let from = usize::try_from(position - start).expect("small");
            let raw = &bytes[from..from + usize::try_from(*span).expect("small")];
            // A record of several lines is cut between two of them.
            let newline = !flags.contains(UNTERMINATED) && (!flags.contains(CUT) || raw.ends_with(b"\n"));
            assert_eq!(raw, [body, &b"\n"[..usize::from(newline)]].concat());
            assert_eq!(flags.contains(MULTILINE), body.contains(&b'\n'));
            assert_eq!(flags.contains(AFTER_GAP), std::mem::take(&mut missing));
            assert!(body.split(|&byte| byte == b'\n').all(|line| line.len() <= 64));
            assert!(body.split(|&byte| byte == b'\n').count() <= settings.multiline.max_lines);
            if flags.contains(CUT) {
                assert!(lines.peek().is_some_and(|next| next.3.contains(CONTINUATION)), "what was cut goes on");
                assert!(newline || body.len() > 60);
            }
            position += span;
            assert_eq!(flags.contains(UNTERMINATED), position == end && !raw.ends_with(b"\n"));
        }
    }
    assert_eq!(lines.next(), None);
}

/// Neighbouring runs of bytes as one, so that a run ends at a gap or at the end of the stream.
fn merge(events: &[Event]) -> Vec<Event> {
    let mut merged: Vec<Event> = Vec::new();
    for event in events {
        match (merged.last_mut(), event) {
            (Some(Event::Bytes(before)), Event::Bytes(bytes)) => before.extend_from_slice(bytes),
            (_, Event::Bytes(bytes)) if bytes.is_empty() => {}
            _ => merged.push(event.clone()),
        }
    }
    merged
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lines_do_not_depend_on_the_cutting(
        settings in any_settings(),
        events in events(),
        cuts in prop::collection::vec((0_u16..1000, any::<bool>()), 0..60),
    ) {
        let whole = run(&settings, &merge(&events), &[]);
        assert_complete(&settings, &events, &whole);
        prop_assert_eq!(run(&settings, &events, &cuts), whole);
    }

    #[test]
    fn one_byte_at_a_time(settings in any_settings(), bytes in bytes()) {
        let whole = run(&settings, &[Event::Bytes(bytes.clone())], &[]);
        let single: Vec<_> = bytes.iter().map(|&byte| Event::Bytes(vec![byte])).collect();
        prop_assert_eq!(run(&settings, &single, &[(0, true)]), whole);
    }
}
