use std::{
    sync::mpsc::{self, Receiver},
    thread,
};

use super::*;
use crate::{
    ledger::Reason,
    record::Class,
    sinks::{
        Settlement,
        config::{QueueSettings, SinkSettings},
        file,
        testing::{LONG, Script, batch, outcomes, pod_stream},
    },
};

#[derive(Debug)]
struct Nobody;

impl Watch for Nobody {
    fn watch(&self, _batch: &Arc<Batch>) {}
}

/// An outlet with one sink, which takes nothing until the test lets it, and one batch in its queue.
fn outlet() -> (Script, Outlet, Receiver<Settlement>) {
    let script = Script::default();
    script.with(|state| state.failing = true);
    let (sender, settled) = mpsc::channel();
    let mut sinks = Sinks::new(sender);
    let queue = QueueSettings { max_batches: 1, ..QueueSettings::default() };
    sinks.add(script.sink(), &[Class::Pod], &queue).expect("starts");
    let outlet = Outlet::with_sinks(sinks, Arc::new(Nobody));
    deliver(&outlet, 0);
    script.wait("an attempt", |state| state.calls > 0);
    (script, outlet, settled)
}

fn deliver(outlet: &Outlet, position: u64) {
    outlet.deliver(&Arc::new(batch(&pod_stream("a", "b", "c"), position, &[b"line"])), None);
}

fn file_sink(path: &std::path::Path) -> [SinkSettings; 1] {
    let settings = file::Settings { name: "scripted".to_owned(), path: path.to_owned(), ..file::Settings::default() };
    [SinkSettings::File(settings)]
}

#[test]
fn a_replacement_frees_who_waits_for_a_sink_that_takes_nothing() {
    let (_script, outlet, settled) = outlet();
    let folder = tempfile::tempdir().expect("a folder");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| deliver(&outlet, 1));
        let bad = file_sink(std::path::Path::new("/dev/null/below"));
        outlet.replace(&bad, LONG).expect_err("no folder can be there");
        assert!(!waiting.is_finished());
        assert_eq!(outlet.stats()[0].queued_batches, 1, "figures wait for nobody");
        outlet.replace(&file_sink(folder.path()), LONG).expect("starts");
        waiting.join().expect("no panic");
    });
    assert_eq!(outcomes(&settled, 2), [(0, None), (1, None)]);
    assert_eq!(outlet.close(LONG), 0);
}

#[test]
fn an_end_during_a_replacement_is_no_later_for_it() {
    let (script, outlet, settled) = outlet();
    // Until it is stuck it goes on failing, and so comes back.
    script.with(|state| state.blocked = true);
    script.wait("a call that does not return", |state| state.stuck);
    script.with(|state| state.failing = false);
    let folder = tempfile::tempdir().expect("a folder");
    let start = Instant::now();
    thread::scope(|scope| {
        let replacing = scope.spawn(|| outlet.replace(&file_sink(folder.path()), Duration::from_secs(2)));
        let waiting = scope.spawn(|| deliver(&outlet, 1));
        outlet.limit_waits(Instant::now() + Duration::from_millis(50));
        waiting.join().expect("no panic");
        assert_eq!(outlet.close(Duration::from_millis(50)), 10, "one in the sink's hands, one turned away");
        assert!(start.elapsed() < Duration::from_secs(2), "the end waited for the replacement");
        assert_eq!(outcomes(&settled, 1), [(1, Some(Reason::Shutdown))]);
        script.with(|state| state.blocked = false);
        replacing.join().expect("no panic").expect("starts");
    });
    assert_eq!(outcomes(&settled, 1), [(0, None)]);
}

/// Remembers what passes.
#[derive(Debug, Default)]
struct Witness(Mutex<Vec<String>>);

impl Watch for Witness {
    fn watch(&self, batch: &Arc<Batch>) {
        let bodies = batch.lines.iter().map(|line| String::from_utf8_lossy(batch.body(line)).into_owned());
        self.0.lock().expect("no panic").extend(bodies);
    }
}

fn processors(value: serde_json::Value) -> Vec<ProcessorSettings> {
    serde_json::from_value(value).expect("parses")
}

#[test]
fn what_is_processed_is_what_everybody_sees_and_the_ledger_balances() {
    let script = Script::default();
    let (sender, settled) = mpsc::channel();
    let mut sinks = Sinks::new(sender);
    sinks.add(script.sink(), &[Class::Pod], &QueueSettings::default()).expect("starts");
    let witness = Arc::new(Witness::default());
    let outlet = Outlet::with_sinks(sinks, Arc::clone(&witness) as _);
    let chain = serde_json::json!([
        {"type": "drop", "match": {"body": "^debug"}},
        {"type": "redact", "rules": ["email"]},
        {"type": "rate_limit", "lines_per_second": 1, "burst": 2, "name": "flood"},
    ]);
    outlet.process_with(&processors(chain)).expect("valid");
    let stream = pod_stream("a", "b", "c");
    let bodies: [&[u8]; 5] = [b"debug x", b"to a@b.example", b"two", b"three", b"four"];
    let one = Arc::new(batch(&stream, 0, &bodies));
    stream.account.produce(one.span());
    outlet.deliver(&one, None);
    // Of a stream that falls silent it is told later.
    outlet.tick(one.lines[0].observed_time_unix_nano + 60_000_000_000);
    outlet.tick(one.lines[0].observed_time_unix_nano + 120_000_000_000);
    let seen = witness.0.lock().expect("no panic").clone();
    assert_eq!(seen, ["to [REDACTED]", "two", "sidestep: 2 lines suppressed in 1s by rate limit flood"]);
    let stats = outlet.processor_stats();
    assert_eq!((stats[0].dropped_lines.len(), stats[1].redactions), (1, 1));
    // Without processors all goes as before.
    outlet.process_with(&[]).expect("valid");
    assert!(outlet.processor_stats().is_empty());
    assert_eq!(outlet.close(LONG), 0);
    drop(outlet);
    for settled in crate::sinks::testing::all_settled(&settled) {
        assert_eq!(settled.lost, None);
        stream.account.deliver(settled.span, settled.lines);
    }
    let balance = stream.account.balance();
    assert_eq!((balance.delivered, balance.pending, balance.difference()), (19, 0, 0));
    let dropped = [(Stage::Process, Reason::Filtered, 8), (Stage::Process, Reason::Suppressed, 11)];
    assert_eq!(balance.dropped, dropped);
}

#[test]
fn a_position_moves_over_what_was_dropped() {
    let (sender, settled) = mpsc::channel();
    let outlet = Outlet::with_sinks(Sinks::new(sender), Arc::new(Nobody));
    outlet.process_with(&processors(serde_json::json!([{"type": "drop", "match": {"body": "x"}}]))).expect("valid");
    let origin = crate::record::Origin::File { path: "/a".into() };
    let stream = crate::sinks::testing::stream(Class::Business, origin, "a", "b", "c");
    outlet.deliver(&Arc::new(batch(&stream, 7, &[b"x", b"xx"])), None);
    let stored = settled.try_iter().find_map(|settlement| match settlement {
        Settlement::Stored(covers) => Some((covers.start, covers.end)),
        Settlement::Settled(_) => None,
    });
    assert_eq!(stored, Some((7, 12)));
}
