//! What needs no broker; the rest is in the end-to-end tests.

use std::{collections::VecDeque, net::TcpListener, sync::Arc, sync::mpsc::channel, time::Duration};

use super::*;
use crate::sinks::{
    Delivery, Outcome, Receipt, Sink as _,
    testing::{all_settled, batch, outcomes, pod_stream},
};

/// A sink whose brokers are not there.
fn without_brokers() -> KafkaSink {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    KafkaSink::new(Settings { brokers: vec![free.to_string()], ..Settings::default() }).expect("makes the producer")
}

#[test]
fn what_is_not_acknowledged_is_given_back_in_order() {
    let (sender, settled) = channel();
    let mut queue = VecDeque::new();
    for (name, position) in [("one", 0), ("other", 500), ("one", 100), ("one", 200)] {
        let batch = Arc::new(batch(&pod_stream("shop", name, "app"), position, &[b"first", b"second"]));
        let receipt = Receipt::for_sinks(&batch, 1, &sender, None).pop().expect("one receipt");
        queue.push_back(Delivery { batch, receipt });
    }
    let mut sink = without_brokers();
    // It may have noticed by now that nobody is there.
    let _ = sink.write(&mut queue);
    assert!(queue.is_empty(), "the producer has room");
    let error = sink.close(Duration::from_millis(50)).expect_err("nobody acknowledges").to_string();
    assert!(error.contains("waiting for the brokers' acknowledgements"), "{error}");
    let back = sink.give_back();
    drop(sink);
    assert!(all_settled(&settled).is_empty());
    let mut found: Vec<_> =
        back.iter().map(|delivery| (delivery.batch.lines[0].position, delivery.batch.lines.len())).collect();
    found.sort_unstable();
    assert_eq!(found, [(0, 2), (100, 2), (200, 2), (500, 2)]);
    back.into_iter().for_each(|delivery| delivery.receipt.settle(Outcome::Delivered));
    assert_eq!(outcomes(&settled, 4), [(0, None), (100, None), (200, None), (500, None)]);
}

#[test]
fn every_figure_is_a_metric_and_every_kafka_metric_a_figure() {
    use rdkafka::Statistics;

    use crate::telemetry::names::SINK_FIGURES;
    let given: Vec<_> = figures::figures(&Statistics::default(), (0, 0)).iter().map(|figure| figure.name).collect();
    let metrics =
        SINK_FIGURES.iter().map(|definition| definition.name).filter(|name| name.starts_with("sidestep_kafka_"));
    assert_eq!(given, metrics.collect::<Vec<_>>());
}
