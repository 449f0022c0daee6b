//! Whole chains of processors.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    record::{Line, Severity},
    sinks::testing::{batch, pod_stream},
};

fn processors(value: serde_json::Value) -> Processors {
    let settings: Vec<ProcessorSettings> = serde_json::from_value(value).expect("parses");
    Processors::new(&settings, None).expect("valid")
}

fn bodies(batch: &Batch) -> Vec<String> {
    batch.lines.iter().map(|line| String::from_utf8_lossy(batch.body(line)).into_owned()).collect()
}

fn batch_of(bodies: &[&str]) -> Arc<Batch> {
    let bodies: Vec<_> = bodies.iter().map(|body| body.as_bytes()).collect();
    Arc::new(batch(&pod_stream("shop", "web-1", "app"), 100, &bodies))
}

#[test]
fn without_processors_a_batch_is_handed_on_as_it_is() {
    assert!(Processors::default().apply(&batch_of(&["a"])).is_none());
    let other = processors(json!([{"type": "drop", "match": {"namespace": ["other"]}}]));
    assert!(other.apply(&batch_of(&["a"])).is_none());
    let unmatched = processors(json!([{"type": "redact", "rules": ["email"]}]));
    assert!(unmatched.apply(&batch_of(&["a", "b"])).is_none());
}

#[test]
fn lines_are_dropped_and_the_rest_shares_the_bytes() {
    let processors = processors(json!([{"type": "drop", "match": {"body": "^debug", "pod": ["web-*"]}}]));
    let before = batch_of(&["one of them", "debug x", "two of them"]);
    let Processed { batch, dropped } = processors.apply(&before).expect("changed");
    assert_eq!(bodies(&batch), ["one of them", "two of them"]);
    assert_eq!(batch.lines.iter().map(|line| line.position).collect::<Vec<_>>(), [100, 120]);
    assert_eq!(dropped, [(Reason::Filtered, 8)]);
    assert_eq!(batch.data.as_ptr(), before.data.as_ptr(), "nothing is copied");
    assert_eq!(processors.stats()[0].dropped_lines, [(Reason::Filtered, 1)]);
    // One of many: the others' bytes are let go of.
    let before = batch_of(&["debug 11111111111111", "debug 22222222222222", "x"]);
    let Processed { batch, .. } = processors.apply(&before).expect("changed");
    assert_eq!((bodies(&batch), batch.data.len()), (vec!["x".to_owned()], 2));
}

/// Records of refusals are the agent's, and hold what clients have sent: all but the rates of lines is for them.
#[test]
fn refusals_are_redacted_and_dropped_and_not_limited() {
    let told = || {
        let pod = pod_stream("a", "b", "c");
        let mut batch = batch(
            &pod.renewed(Arc::clone(&pod.resource), Class::Governance),
            0,
            &[b"refused: GET /to/a@b.example", b"x"],
        );
        for line in &mut batch.lines {
            (line.flags, line.span) = (LineFlags::SYNTHETIC, 0);
        }
        Arc::new(batch)
    };
    let redacted = processors(json!([{"type": "redact", "rules": ["email"], "replacement": "<mail>"}]));
    assert_eq!(bodies(&redacted.apply(&told()).expect("changed").batch), ["refused: GET /to/<mail>", "x"]);
    let dropped = processors(json!([{"type": "drop", "match": {"classes": ["governance"], "body": "^x"}}]));
    assert_eq!(bodies(&dropped.apply(&told()).expect("changed").batch), ["refused: GET /to/a@b.example"]);
    let limited = processors(json!([{"type": "rate_limit", "lines_per_second": 1, "burst": 1}]));
    assert!(limited.apply(&told()).is_none() && limited.apply(&told()).is_none());
}

#[test]
fn redaction_keeps_places_and_changes_bodies_and_attributes() {
    let processors = processors(json!([{"type": "redact", "rules": ["email"], "replacement": "<mail>"}]));
    let mut before = batch(&pod_stream("a", "b", "c"), 0, &[b"plain", b"to a@b.example now", b"after"]);
    let attributes = json!({"to": "a@b.example", "n": 1});
    before.lines[1].attributes = attributes.as_object().cloned().map(Box::new);
    let before = Arc::new(before);
    let Processed { batch, dropped } = processors.apply(&before).expect("changed");
    assert_eq!(bodies(&batch), ["plain", "to <mail> now", "after"]);
    assert!(dropped.is_empty());
    let places = |batch: &Batch| batch.lines.iter().map(|line| (line.position, line.span)).collect::<Vec<_>>();
    assert_eq!(places(&batch), places(&before));
    assert_eq!(json!(batch.lines[1].attributes), json!({"to": "<mail>", "n": 1}));
    assert_eq!(processors.stats()[0].redactions, 2);
}

#[test]
fn fields_are_added_in_the_order_of_the_list() {
    let processors = processors(json!([
        {"type": "add_fields", "name": "all", "fields": {"team": "shop", "stage": "test"}},
        {"type": "add_fields", "name": "grave", "match": {"severity_at_least": "error"}, "fields": {"page": "yes"}},
        {"type": "drop", "match": {"body": "^x"}},
    ]));
    let mut before = batch(&pod_stream("a", "b", "c"), 0, &[b"one", b"two", b"x"]);
    before.lines[1].severity = Some(Severity::Fatal);
    before.lines[1].attributes = json!({"team": "forged", "own": 1}).as_object().cloned().map(Box::new);
    let Processed { batch, .. } = processors.apply(&Arc::new(before)).expect("changed");
    let attributes: Vec<_> = batch.lines.iter().map(|line| json!(line.attributes)).collect();
    let expected =
        [json!({"team": "shop", "stage": "test"}), json!({"team": "shop", "stage": "test", "own": 1, "page": "yes"})];
    assert_eq!(attributes, expected);
}

/// Lines written at this time.
fn at(time: u64, batch: &Arc<Batch>) -> Arc<Batch> {
    let lines = batch.lines.iter().map(|line| Line { observed_time_unix_nano: time, ..line.clone() }).collect();
    Arc::new(Batch { stream: Arc::clone(&batch.stream), data: batch.data.clone(), lines })
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn a_rate_limit_tells_what_it_suppressed() {
    let processors = processors(json!([
        {"type": "rate_limit", "name": "flood", "lines_per_second": 1, "burst": 2},
        {"type": "add_fields", "fields": {"team": "shop"}},
    ]));
    let flood = batch_of(&["0", "1", "2", "3", "4"]);
    let Processed { batch, dropped } = processors.apply(&at(SECOND, &flood)).expect("changed");
    assert_eq!((bodies(&batch), dropped), (vec!["0".to_owned(), "1".to_owned()], vec![(Reason::Suppressed, 6)]));
    // Ten seconds later the next lines bring the summary, at the place of the last suppressed line.
    let later = Arc::new(crate::sinks::testing::batch(&flood.stream, 200, &[b"5"]));
    let Processed { batch, dropped } = processors.apply(&at(11 * SECOND, &later)).expect("changed");
    assert_eq!(bodies(&batch), ["sidestep: 3 lines suppressed in 1s by rate limit flood", "5"]);
    assert!(dropped.is_empty());
    let summary = &batch.lines[0];
    assert_eq!((summary.position, summary.span), (108, 0));
    assert!(summary.flags.contains(LineFlags::SYNTHETIC));
    let expected = json!({
        "sidestep.processor.name": "flood", "sidestep.suppressed.lines": 3, "sidestep.suppressed.bytes": 6, "team": "shop",
    });
    assert_eq!(json!(summary.attributes), expected);
    assert_eq!(processors.stats()[0].dropped_lines, [(Reason::Suppressed, 3)]);
}

#[test]
fn a_stream_that_falls_silent_tells_all_the_same() {
    let chain = |rate: u64| {
        json!([
            {"type": "rate_limit", "name": "flood", "lines_per_second": rate, "burst": 1},
            {"type": "add_fields", "fields": {"team": "shop"}},
        ])
    };
    let first = processors(chain(1));
    first.apply(&at(SECOND, &batch_of(&["0", "1", "2"]))).expect("changed");
    assert!(first.due(Some(2 * SECOND)).is_empty());
    // A new configuration goes on with it; one without the limit has it told.
    let settings: Vec<ProcessorSettings> = serde_json::from_value(chain(2)).expect("parses");
    let second = Processors::new(&settings, Some(&first)).expect("valid");
    assert!(first.left_behind(&second).is_empty());
    assert_eq!(second.stats()[0].dropped_lines, [(Reason::Suppressed, 2)]);
    let told = second.left_behind(&Processors::default());
    assert_eq!(told.len(), 1);
    assert_eq!(bodies(&told[0]), ["sidestep: 2 lines suppressed in 1s by rate limit flood"]);
    assert_eq!(json!(told[0].lines[0].attributes)["team"], "shop");
    assert!(second.due(None).is_empty(), "told once");
}

#[test]
fn summaries_of_two_limits_are_different_records() {
    let processors = processors(json!([
        {"type": "rate_limit", "name": "one", "match": {"body": "[02468]$"}, "lines_per_second": 1, "burst": 1},
        {"type": "rate_limit", "name": "two", "lines_per_second": 1, "burst": 1},
    ]));
    let lines: Vec<String> = (0..20).map(|number| format!("{number:04}")).collect();
    let flood = batch_of(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    processors.apply(&at(SECOND, &flood)).expect("changed");
    let told = processors.due(None);
    let places: Vec<_> = told.iter().map(|batch| batch.lines[0].position).collect();
    assert_eq!(places.len(), 2);
    assert_ne!(places[0], places[1]);
}

proptest! {
    /// What is kept and what is dropped is the whole, and what is kept is in order, with its own bytes.
    #[test]
    fn kept_and_dropped_are_the_whole(
        bodies in proptest::collection::vec("[a-c@. ]{0,12}", 1..60),
        one_of in 2_u64..5,
        burst in 1_u64..40,
    ) {
        let processors = processors(json!([
            {"type": "drop", "match": {"body": "^a"}},
            {"type": "sample", "match": {"body": "^b"}, "keep_one_of": one_of},
            {"type": "redact", "patterns": [{"pattern": "c+"}], "replacement": "#"},
            {"type": "rate_limit", "lines_per_second": 1, "burst": burst},
        ]));
        let before = batch_of(&bodies.iter().map(String::as_str).collect::<Vec<_>>());
        let (after, dropped) = match processors.apply(&before) {
            Some(Processed { batch, dropped }) => (batch, dropped),
            None => (Arc::clone(&before), Vec::new()),
        };
        let dropped: u64 = dropped.iter().map(|(_, span)| span).sum();
        prop_assert_eq!(after.span() + dropped, before.span());
        prop_assert!(after.lines.len() as u64 <= burst);
        prop_assert!(after.lines.is_sorted_by_key(|line| line.position));
        for line in &after.lines {
            let original = before.lines.iter().find(|original| original.position == line.position).expect("its line");
            prop_assert_eq!(line.span, original.span);
            let text = String::from_utf8_lossy(before.body(original)).into_owned();
            let mut expected = text.clone();
            while let Some(start) = expected.find('c') {
                let end = expected[start..].find(|letter| letter != 'c').map_or(expected.len(), |length| start + length);
                expected.replace_range(start..end, "#");
            }
            prop_assert_eq!(after.body(line), expected.as_bytes());
            prop_assert!(!text.starts_with('a'));
        }
        // A repeat is sampled the same way.
        let sample = Sampler::new(&before.stream.key, one_of);
        for line in after.lines.iter().filter(|line| after.body(line).starts_with(b"b")) {
            prop_assert!(sample.keeps(line.position));
        }
    }
}
