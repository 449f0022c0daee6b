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
