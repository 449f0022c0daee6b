use std::sync::mpsc::channel;

use super::*;
use crate::{
    record::{Class, IoStream, Line, Origin},
    sinks::testing::next_settled,
};

fn batch() -> Arc<Batch> {
    batch_of(Origin::Stdio(IoStream::Stdout))
}

fn batch_of(origin: Origin) -> Arc<Batch> {
    let stream = Arc::new(Stream {
        key: "c/stdout".into(),
        class: Class::Pod,
        origin,
        resource: Arc::default(),
        account: Arc::default(),
        source: None,
    });
    let line = Line { body: 0..2, position: 7, span: 3, ..Line::default() };
    Arc::new(Batch { stream, data: "hi\n".into(), lines: vec![line] })
}

#[test]
fn settles_once_after_the_last_sink() {
    let (sender, settled) = channel();
    let mut receipts = Receipt::for_sinks(&batch(), 2, &sender, None);
    receipts.pop().expect("two receipts").settle(Outcome::Delivered);
    assert!(settled.try_recv().is_err());
    receipts.pop().expect("one receipt").settle(Outcome::Delivered);
    let got = next_settled(&settled);
    assert_eq!((got.start, got.end, got.span, got.lines, got.lost), (7, 10, 3, 1, None));
    assert!(settled.try_recv().is_err());
}

#[test]
fn a_hold_ends_when_every_sink_has_secured_the_batch() {
    let (sender, settled) = channel();
    let hold: Hold = Arc::new(());
    let mut receipts = Receipt::for_sinks(&batch(), 2, &sender, Some(&hold));
    let buffered = receipts.pop().expect("two receipts");
    let promise = Arc::clone(buffered.promise());
    promise.secure();
    assert_eq!(Arc::strong_count(&hold), 2, "the other sink has it in memory only");
    receipts.pop().expect("one receipt").settle(Outcome::Delivered);
    assert_eq!(Arc::strong_count(&hold), 1);
    assert!(settled.try_recv().is_err(), "one sink is not done with it");
    drop(buffered);
    assert!(!promise.is_settled());
    let got = next_settled(&settled);
    assert!(got.kept && got.lost.is_none(), "the next agent finds it in the buffer");
}

#[test]
fn what_a_stopping_agent_leaves_is_read_again() {
    let (sender, settled) = channel();
    let hold: Hold = Arc::new(());
    drop(Receipt::for_sinks(&batch(), 1, &sender, Some(&hold)));
    assert_eq!(next_settled(&settled).lost_for(), Some(Reason::Shutdown));
    assert_eq!(Arc::strong_count(&hold), 2, "never let go of");
}

#[test]
fn a_file_moves_on_when_every_sink_has_stored_the_batch() {
    let (sender, settled) = channel();
    let batch = batch_of(Origin::File { path: "/a".into() });
    let mut receipts = Receipt::for_sinks(&batch, 2, &sender, None);
    let buffered = receipts.pop().expect("two receipts");
    receipts.pop().expect("one receipt").settle(Outcome::Dropped(Reason::Rejected));
    buffered.promise().secure();
    assert!(settled.try_recv().is_err(), "not synced");
    buffered.promise().store();
    let Ok(Settlement::Stored(span)) = settled.try_recv() else { panic!("stored") };
    assert_eq!((span.start, span.end), (7, 10));
    let is_kept = |promise: fn(&Promise)| {
        let receipt = Receipt::for_sinks(&batch, 1, &sender, None).remove(0);
        promise(receipt.promise());
        drop(receipt);
        let told: Vec<_> = settled.try_iter().collect();
        let [Settlement::Settled(left)] = &told[..] else { panic!("read again: {told:?}") };
        left.kept
    };
    assert!(!is_kept(|_| {}));
    assert!(is_kept(Promise::secure), "not synced, the disk may not have it");
}

#[test]
fn what_several_sinks_have_on_disk_is_booked_once() {
    let (sender, settled) = channel();
    let mut receipts = Receipt::for_sinks(&batch(), 3, &sender, None);
    receipts.pop().expect("a receipt").settle(Outcome::Dropped(Reason::QueueFull));
    for receipt in receipts {
        receipt.promise().secure();
        drop(receipt);
    }
    let got = next_settled(&settled);
    assert_eq!((got.kept, got.kept_span, got.lost.map(|lost| lost.span)), (true, 6, Some(3)));
}

#[test]
fn a_buffer_is_told_once() {
    let (sender, told) = channel();
    let sender = Mutex::new(sender);
    let receipt = || {
        let sender = sender.lock().expect("not poisoned").clone();
        Receipt::for_buffer(move |outcome| sender.send(outcome).expect("the test listens"))
    };
    receipt().settle(Outcome::Delivered);
    drop(receipt());
    let told: Vec<_> = told.try_iter().collect();
    assert_eq!(told, [Outcome::Delivered, Outcome::Dropped(Reason::Shutdown)]);
}

#[test]
fn what_is_read_back_from_a_buffer_moves_no_position() {
    let (sender, settled) = channel();
    let batch = batch_of(Origin::File { path: "/a".into() });
    let mut receipts = Receipt::for_sinks(&batch, 2, &sender, None);
    let (buffered, other) = (receipts.pop().expect("two"), receipts.pop().expect("one"));
    buffered.promise().store();
    drop(buffered);
    let again = Receipt::read_back(&batch, &sender);
    assert!(again.promise().is_secured());
    again.settle(Outcome::Delivered);
    let Ok(Settlement::Settled(got)) = settled.try_recv() else { panic!("booked") };
    assert_eq!((got.span, got.lost, got.kept), (3, None, false));
    assert!(settled.try_recv().is_err(), "the other sink does not have it");
    other.settle(Outcome::Delivered);
    assert!(settled.try_iter().any(|settlement| matches!(settlement, Settlement::Stored(_))));
}

#[test]
fn a_forgotten_receipt_is_a_drop() {
    let (sender, settled) = channel();
    let mut receipts = Receipt::for_sinks(&batch(), 2, &sender, None);
    drop(receipts.pop());
    receipts.pop().expect("one receipt").settle(Outcome::Delivered);
    let lost = next_settled(&settled).lost;
    assert_eq!(lost, Some(Loss { reason: Reason::Shutdown, lines: 1, span: 3 }));
}
