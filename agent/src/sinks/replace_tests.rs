//! Tests of sinks that take the place of others.

use std::{
    fs,
    path::Path,
    sync::mpsc::{self, Receiver, Sender},
    time::Instant,
};

use super::{
    config::{QueueSettings, WhenFull, all_classes},
    reopen::Reopen,
    replace::Removed,
    testing::{LONG, Script, batch, deliver, outcomes, pod_stream},
    *,
};
use crate::ledger::Reason;

/// A file sink that takes few batches at a time.
fn file(name: &str, path: &Path) -> SinkSettings {
    let queue = QueueSettings { max_batches: 4, ..QueueSettings::default() };
    let sync = file::Sync::Never;
    SinkSettings::File(file::Settings {
        name: name.to_owned(),
        path: path.to_owned(),
        queue,
        sync,
        ..Default::default()
    })
}

fn text(name: &str, path: &Path) -> SinkSettings {
    let SinkSettings::File(settings) = file(name, path) else { panic!("a file sink") };
    SinkSettings::File(file::Settings { format: file::Format::Text, ..settings })
}

fn scripted(queue: &QueueSettings) -> (Script, Arc<Sinks>, Receiver<Settlement>) {
    let script = Script::default();
    let (sender, settled) = mpsc::channel();
    let mut sinks = Sinks::new(sender);
    sinks.add(script.sink(), &all_classes(), queue).expect("starts");
    (script, Arc::new(sinks), settled)
}

fn started(settings: &[SinkSettings]) -> (Arc<Sinks>, Receiver<Settlement>) {
    let (sender, settled): (Sender<Settlement>, _) = mpsc::channel();
    (Arc::new(Sinks::start(settings, buffer::Home::none(sender)).expect("starts")), settled)
}

fn replace(sinks: &Sinks, new: &[SinkSettings]) -> (Arc<Sinks>, Removed) {
    let (sinks, removed) = sinks.replace(new, Instant::now() + LONG).expect("all can be started");
    (Arc::new(sinks), removed)
}

fn delivered(settled: &Receiver<Settlement>, positions: std::ops::Range<u64>) {
    let count = usize::try_from(positions.end - positions.start).expect("few");
    assert_eq!(outcomes(settled, count), positions.map(|at| (at, None)).collect::<Vec<_>>());
}

/// The contents of all files of an extension below a folder, one after the other.
fn contents(folder: &Path, extension: &str) -> String {
    let mut found = String::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found += &contents(&path, extension);
        } else if path.extension().is_some_and(|found| found == extension) {
            found += &fs::read_to_string(path).expect("readable");
        }
    }
    found
}

/// Positions of the records in a folder, in the order of the file.
fn positions(folder: &Path) -> Vec<u64> {
    let position = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["position"].as_u64();
    contents(folder, "ndjson").lines().map(|line| position(line).expect("a position")).collect()
}

#[test]
fn what_waited_for_a_failing_sink_goes_to_the_new_one_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let (script, sinks, settled) = scripted(&QueueSettings { max_batches: 5, ..QueueSettings::default() });
    script.with(|state| state.failing = true);
    let (new, removed) = std::thread::scope(|scope| {
        let producer = scope.spawn(|| deliver(&sinks, 0..20));
        script.wait("an attempt with a full queue", |state| state.calls > 0 && sinks.stats()[0].queued_batches == 5);
        assert!(!producer.is_finished());
        replace(&sinks, &[file("scripted", folder.path())])
    });
    deliver(&new, 20..25);
    delivered(&settled, 0..25);
    assert!(script.with(|state| state.closed));
    assert!(removed.close(&sinks, LONG).is_empty());
    drop(new.close(LONG));
    let stats = new.stats().remove(0);
    assert_eq!((stats.delivered_records, stats.queued_batches, stats.queued_bytes), (25, 0, 0));
    assert_eq!(positions(folder.path()), (0..25).collect::<Vec<_>>());
}

#[test]
fn what_a_sink_has_taken_and_not_settled_goes_along() {
    let folder = tempfile::tempdir().expect("a folder");
    let (script, sinks, settled) = scripted(&QueueSettings::default());
    script.with(|state| state.unacknowledged = true);
    deliver(&sinks, 0..3);
    script.wait("all three", |state| state.positions.len() == 3);
    // Of another name: it wants all that the old one wanted.
    let (new, removed) = replace(&sinks, &[file("other", folder.path())]);
    delivered(&settled, 0..3);
    assert!(removed.close(&sinks, LONG).is_empty());
    drop(new.close(LONG));
    let stats = new.stats().remove(0);
    assert_eq!((stats.name.as_str(), stats.delivered_records), ("other", 3));
    assert_eq!(positions(folder.path()), [0, 1, 2]);
}

#[test]
fn a_sink_that_is_stuck_in_a_call_gives_back_when_it_returns() {
    let folder = tempfile::tempdir().expect("a folder");
    let (script, sinks, settled) = scripted(&QueueSettings { max_batches: 2, ..QueueSettings::default() });
    script.with(|state| state.blocked = true);
    deliver(&sinks, 0..1);
    script.wait("the call", |state| state.calls == 1);
    let settings = [file("scripted", folder.path())];
    let (new, _) = sinks.replace(&settings, Instant::now() + Duration::from_millis(100)).expect("starts");
    // What the old one holds takes no room.
    deliver(&new, 1..6);
    delivered(&settled, 1..6);
    script.with(|state| (state.failing, state.blocked) = (true, false));
    delivered(&settled, 0..1);
    assert_eq!(new.close(LONG)[0].1, Leftover { batches: 0, bytes: 0, finished: true });
    assert_eq!(positions(folder.path()), [1, 2, 3, 4, 5, 0]);
}

#[test]
fn a_sink_that_did_not_change_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
    let (sinks, settled) = started(&[file("kept", &a), file("moved", &b)]);
    deliver(&sinks, 0..3);
    let (new, _) = replace(&sinks, &[file("moved", &c), file("kept", &a)]);
    assert!(Arc::ptr_eq(&sinks.members[0], &new.members[1]));
    deliver(&new, 3..5);
    delivered(&settled, 0..5);
    drop(new.close(LONG));
    assert_eq!(positions(&a), [0, 1, 2, 3, 4]);
    assert_eq!(positions(&b).into_iter().chain(positions(&c)).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[test]
fn a_sink_that_can_not_be_started_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let [a, b, wall] = ["a", "b", "wall"].map(|name| folder.path().join(name));
    fs::write(&wall, "").expect("written");
    let old = [file("first", &a)];
    let (sinks, settled) = started(&old);
    deliver(&sinks, 0..2);
    let new = [text("first", &a), file("good", &b), file("bad", &wall.join("below"))];
    let error = sinks.replace(&new, Instant::now() + LONG).expect_err("a file stands in the way");
    assert!(error.to_string().contains("wall/below"), "{error}");
    deliver(&sinks, 2..4);
    delivered(&settled, 0..4);
    // The good one has let go of its folder, and the first one is as it was.
    let (new, _) = replace(&sinks, &[file("first", &b)]);
    drop(new.close(LONG));
    assert_eq!((positions(&a), contents(&a, "log")), (vec![0, 1, 2, 3], String::new()));
}

#[test]
fn a_sink_with_other_settings_takes_over_the_folder_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    let (sinks, settled) = started(&[file("one", &a), file("two", &b)]);
    deliver(&sinks, 0..3);
    delivered(&settled, 0..3);
    // One changes its format, then both change places.
    let (sinks, _) = replace(&sinks, &[text("one", &a), file("two", &b)]);
    deliver(&sinks, 3..5);
    delivered(&settled, 3..5);
    let (sinks, _) = replace(&sinks, &[text("one", &b), file("two", &a)]);
    deliver(&sinks, 5..6);
    delivered(&settled, 5..6);
    drop(sinks.close(LONG));
    assert_eq!(positions(&a), [0, 1, 2, 5]);
    assert_eq!(positions(&b), [0, 1, 2, 3, 4]);
    assert_eq!((contents(&a, "log").lines().count(), contents(&b, "log").lines().count()), (2, 1));
}

#[test]
fn a_sink_that_gave_way_in_vain_is_started_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (sinks, settled) = started(&[file("one", folder.path())]);
    deliver(&sinks, 0..2);
    // Both are to have the folder, which only one of them gets.
    let new = [text("one", folder.path()), text("two", folder.path())];
    let error = sinks.replace(&new, Instant::now() + Duration::from_millis(500)).expect_err("the folder is taken");
    assert_eq!(error.source.kind(), std::io::ErrorKind::ResourceBusy);
    deliver(&sinks, 2..4);
    delivered(&settled, 0..4);
    drop(sinks.close(LONG));
    assert_eq!((positions(folder.path()), contents(folder.path(), "log")), (vec![0, 1, 2, 3], String::new()));
}

#[test]
fn a_sink_that_can_not_be_started_again_is_tried_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = file("one", folder.path());
    let mut holder = settings.build().expect("opens");
    let (sender, settled) = mpsc::channel();
    let mut sinks = Sinks::new(sender);
    sinks
        .add(
            Box::new(Reopen::new("one", {
                let settings = settings.clone();
                move || settings.build()
            })),
            settings.classes(),
            settings.queue(),
        )
        .expect("starts");
    deliver(&sinks, 0..2);
    let deadline = Instant::now() + LONG;
    while sinks.stats()[0].errors < 2 {
        assert!(Instant::now() < deadline, "no error shows");
        std::thread::yield_now();
    }
    assert!(sinks.stats()[0].last_error.as_ref().expect("an error").contains("another file sink"));
    holder.close(LONG).expect("closes");
    drop(holder);
    delivered(&settled, 0..2);
    drop(sinks.close(LONG));
    assert_eq!(positions(folder.path()), [0, 1]);
}

#[test]
fn a_new_sink_whose_file_is_missing_is_refused_by_name_and_the_old_ones_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = file("one", folder.path());
    let (sinks, settled) = started(std::slice::from_ref(&old));
    let late = SinkSettings::Http(http::Settings {
        name: "late".to_owned(),
        url: "https://127.0.0.1/logs".to_owned(),
        tls: Some(config::Tls { ca_file: Some(folder.path().join("ca.pem")), ..Default::default() }),
        buffer: buffer::BufferSettings { enabled: false, ..Default::default() },
        ..Default::default()
    });
    let error = sinks.replace(&[old, late], Instant::now() + LONG).expect_err("no such file").to_string();
    for part in ["sink `late`: ", "tls.ca_file", "ca.pem: No such file"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    deliver(&sinks, 0..2);
    delivered(&settled, 0..2);
    drop(sinks.close(LONG));
}

#[test]
fn what_a_removed_sink_has_not_taken_is_dropped_as_such_and_nobody_waits_for_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (script, sinks, settled) = scripted(&QueueSettings { max_batches: 2, ..QueueSettings::default() });
    script.with(|state| state.failing = true);
    std::thread::scope(|scope| {
        scope.spawn(|| deliver(&sinks, 0..3));
        script.wait("a full queue", |state| state.calls > 0 && sinks.stats()[0].queued_batches == 2);
        // It wants less than the old one, so it does not go on for it.
        let SinkSettings::File(less) = file("less", folder.path()) else { panic!("a file sink") };
        let less = file::Settings { classes: vec![crate::record::Class::Server], ..less };
        let (new, removed) = replace(&sinks, &[SinkSettings::File(less)]);
        let left = removed.close(&sinks, Duration::from_millis(200));
        assert_eq!(left, [("scripted".to_owned(), Leftover { batches: 3, bytes: 33, finished: true })]);
        drop(new.close(LONG));
    });
    let dropped = Some(Reason::SinkRemoved);
    assert_eq!(outcomes(&settled, 3), (0..3).map(|at| (at, dropped)).collect::<Vec<_>>());
}

#[test]
fn a_removed_sink_that_works_takes_all_that_it_was_given() {
    let (script, sinks, settled) = scripted(&QueueSettings::default());
    script.with(|state| state.blocked = true);
    deliver(&sinks, 0..5);
    let (new, removed) = replace(&sinks, &[]);
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| removed.close(&sinks, LONG));
        deliver(&new, 5..6);
        script.with(|state| state.blocked = false);
        assert_eq!(closing.join().expect("no panic")[0].1, Leftover { batches: 0, bytes: 0, finished: true });
    });
    delivered(&settled, 0..6);
    assert_eq!(script.with(|state| state.positions.clone()), [0, 1, 2, 3, 4], "none wants the last one");
}

#[test]
fn after_a_limit_nobody_waits_for_room() {
    let queue = QueueSettings { max_batches: 1, when_full: WhenFull::Block, ..QueueSettings::default() };
    let (script, sinks, settled) = scripted(&queue);
    script.with(|state| state.blocked = true);
    std::thread::scope(|scope| {
        scope.spawn(|| deliver(&sinks, 0..3));
        script.wait("the first batch", |state| state.calls == 1);
        sinks.limit_waits(Instant::now() + Duration::from_millis(50));
    });
    let dropped = Some(Reason::Shutdown);
    assert_eq!(outcomes(&settled, 2), [(1, dropped), (2, dropped)]);
    script.with(|state| state.blocked = false);
    delivered(&settled, 0..1);
    // There is room again: what comes is taken.
    sinks.deliver(&Arc::new(batch(&pod_stream("a", "b", "c"), 3, &[b"0123456789"])), None);
    delivered(&settled, 3..4);
    assert_eq!(sinks.close(LONG)[0].1, Leftover { batches: 2, bytes: 22, finished: true });
}
