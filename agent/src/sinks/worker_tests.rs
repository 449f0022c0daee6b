//! Tests of the worker and the set of sinks, with a sink whose every move the test decides.

use std::{
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use bytesize::ByteSize;

use super::{
    config::{QueueSettings, WhenFull, all_classes},
    testing::{LONG, Script, deliver, outcomes},
    *,
};
use crate::{ledger::Reason, record::Class};

fn start(queue: &QueueSettings) -> (Script, Sinks, Receiver<Settlement>) {
    let script = Script::default();
    let (sender, settled) = mpsc::channel();
    let mut sinks = Sinks::new(sender);
    sinks.add(script.sink(), &all_classes(), queue).expect("starts");
    (script, sinks, settled)
}

#[test]
fn everything_arrives_in_order_and_is_counted() {
    let (script, sinks, settled) = start(&QueueSettings::default());
    deliver(&sinks, 0..1000);
    let outcomes = outcomes(&settled, 1000);
    assert!(outcomes.iter().all(|(_, outcome)| outcome.is_none()));
    assert_eq!(script.with(|state| state.positions.clone()), (0..1000).collect::<Vec<_>>());
    script.wait("a tick", |state| state.ticks > 0);
    let stats = sinks.stats().remove(0);
    assert_eq!(
        (stats.delivered_records, stats.delivered_bytes, stats.queued_batches, stats.queued_bytes),
        (1000, 11_000, 0, 0)
    );
    assert!(stats.last_success.is_some() && stats.last_error.is_none());
    let left = sinks.close(LONG);
    assert_eq!(left, [("scripted".to_owned(), Leftover { batches: 0, bytes: 0, finished: true })]);
    assert!(script.with(|state| state.closed));
}

#[test]
fn an_error_keeps_the_rest_queued_until_it_works_again() {
    let (script, sinks, settled) = start(&QueueSettings::default());
    script.with(|state| state.failing = true);
    deliver(&sinks, 0..10);
    script.wait("several attempts", |state| state.calls >= 3);
    let stats = sinks.stats().remove(0);
    assert!(stats.errors >= 2);
    assert_eq!(stats.queued_batches, 10);
    assert!(stats.last_error.expect("an error").starts_with("writing: "));
    assert!(settled.try_recv().is_err());
    script.with(|state| state.failing = false);
    assert!(outcomes(&settled, 10).iter().all(|(_, outcome)| outcome.is_none()));
    assert_eq!(script.with(|state| state.positions.clone()), (0..10).collect::<Vec<_>>());
    drop(sinks.close(LONG));
}

#[test]
fn a_full_queue_drops_the_newest_where_the_rule_says_so() {
    let queue = QueueSettings { max_batches: 3, when_full: WhenFull::DropNewest, ..QueueSettings::default() };
    let (script, sinks, settled) = start(&queue);
    script.with(|state| state.blocked = true);
    deliver(&sinks, 0..8);
    let dropped = outcomes(&settled, 5);
    assert_eq!(dropped, (3..8).map(|at| (at, Some(Reason::QueueFull))).collect::<Vec<_>>());
    script.with(|state| state.blocked = false);
    assert_eq!(outcomes(&settled, 3), (0..3).map(|at| (at, None)).collect::<Vec<_>>());
    assert_eq!(sinks.stats()[0].dropped_records(), 5);
    drop(sinks.close(LONG));
}

#[test]
fn a_full_queue_blocks_until_there_is_room_and_takes_a_batch_larger_than_itself() {
    let queue = QueueSettings { max_bytes: ByteSize::b(1), ..QueueSettings::default() };
    let (script, sinks, settled) = start(&queue);
    script.with(|state| state.blocked = true);
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| deliver(&sinks, 0..3));
        script.wait("the first batch", |state| state.calls == 1);
        assert!(!producer.is_finished());
        assert_eq!(sinks.stats()[0].queued_batches, 1);
        script.with(|state| state.blocked = false);
    });
    assert_eq!(outcomes(&settled, 3), (0..3).map(|at| (at, None)).collect::<Vec<_>>());
    drop(sinks.close(LONG));
}

#[test]
fn a_close_that_runs_out_of_time_reports_what_is_left() {
    let (script, sinks, settled) = start(&QueueSettings::default());
    script.with(|state| state.failing = true);
    deliver(&sinks, 0..4);
    let start = Instant::now();
    let left = sinks.close(Duration::from_millis(300));
    assert!(start.elapsed() < LONG);
    assert_eq!(left[0].1, Leftover { batches: 4, bytes: 44, finished: true });
    let expected: Vec<_> = (0..4).map(|at| (at, Some(Reason::Shutdown))).collect();
    assert_eq!(outcomes(&settled, 4), expected);
}

#[test]
fn a_sink_that_is_stuck_does_not_hold_up_the_end() {
    let (script, sinks, settled) = start(&QueueSettings::default());
    script.with(|state| state.blocked = true);
    deliver(&sinks, 0..1);
    script.wait("the call", |state| state.calls == 1);
    deliver(&sinks, 1..2);
    let left = sinks.close(Duration::from_millis(50));
    assert_eq!((left[0].1.batches, left[0].1.finished), (2, false));
    assert_eq!(outcomes(&settled, 1), [(1, Some(Reason::Shutdown))]);
    script.with(|state| state.blocked = false);
}

#[test]
fn a_close_lets_go_of_those_who_wait_for_room() {
    let queue = QueueSettings { max_batches: 1, ..QueueSettings::default() };
    let (script, sinks, settled) = start(&queue);
    script.with(|state| state.blocked = true);
    std::thread::scope(|scope| {
        scope.spawn(|| deliver(&sinks, 0..2));
        script.wait("the first batch", |state| state.calls == 1);
        sinks.begin_close(LONG);
    });
    assert_eq!(outcomes(&settled, 1), [(1, Some(Reason::Shutdown))]);
    script.with(|state| state.blocked = false);
    assert_eq!(outcomes(&settled, 1), [(0, None)]);
    drop(sinks.close(LONG));
}

#[test]
fn a_batch_goes_to_the_sinks_that_want_its_class() {
    let (script, mut sinks, settled) = start(&QueueSettings::default());
    let other = Script::default();
    sinks.add(other.sink(), &[Class::Server], &QueueSettings::default()).expect("starts");
    deliver(&sinks, 0..2);
    assert_eq!(outcomes(&settled, 2).len(), 2);
    assert_eq!(script.with(|state| state.positions.len()), 2);
    assert_eq!(other.with(|state| state.positions.len()), 0);
    drop(sinks.close(LONG));
}
