//! librdkafka's own statistics as figures of the sink.

use rdkafka::{Statistics, statistics::Broker};

use crate::sinks::Figure;

/// Bootstrap entries and the coordinators' doubles are no brokers.
fn is_broker(broker: &Broker) -> bool {
    broker.nodeid >= 0
}

/// Whether it knows nobody to connect to: neither a broker nor a bootstrap entry, only its own helpers.
pub(super) fn is_without_brokers(statistics: &Statistics) -> bool {
    statistics.brokers.values().all(|broker| matches!(broker.source.as_str(), "internal" | "logical"))
}

/// How many brokers have a working connection. Before one has told who they are, the bootstrap entries stand for them.
pub(super) fn brokers_up(statistics: &Statistics) -> usize {
    let up = |broker: &&Broker| broker.state == "UP";
    let known = statistics.brokers.values().filter(|broker| is_broker(broker)).filter(up).count();
    if known > 0 { known } else { statistics.brokers.values().filter(up).count() }
}

/// The figures of one reading, with the topics that have trouble and the bytes that are held for them.
pub(super) fn figures(statistics: &Statistics, held: (usize, usize)) -> Vec<Figure> {
    let brokers = || statistics.brokers.values();
    let sum = |figure: fn(&Broker) -> u64| brokers().map(figure).sum::<u64>() as f64;
    let slowest = |figure: fn(&Broker) -> Option<i64>| brokers().filter_map(figure).max().unwrap_or_default() as f64;
    let values = [
        ("sidestep_kafka_brokers", brokers().filter(|broker| is_broker(broker)).count() as f64),
        ("sidestep_kafka_brokers_up", brokers_up(statistics) as f64),
        ("sidestep_kafka_buffered_messages", statistics.msg_cnt as f64),
        ("sidestep_kafka_buffered_bytes", statistics.msg_size as f64),
        // It is -1 for a broker without a connection.
        ("sidestep_kafka_requests_in_flight", sum(|broker| broker.waitresp_cnt.try_into().unwrap_or_default())),
        ("sidestep_kafka_round_trip_median_seconds", slowest(|broker| Some(broker.rtt.as_ref()?.p50)) / 1e6),
        ("sidestep_kafka_round_trip_p99_seconds", slowest(|broker| Some(broker.rtt.as_ref()?.p99)) / 1e6),
        ("sidestep_kafka_throttle_seconds", slowest(|broker| Some(broker.throttle.as_ref()?.max)) / 1e3),
        ("sidestep_kafka_transmit_errors_total", sum(|broker| broker.txerrs + broker.rxerrs)),
        ("sidestep_kafka_transmit_retries_total", sum(|broker| broker.txretries)),
        ("sidestep_kafka_request_timeouts_total", sum(|broker| broker.req_timeouts)),
        ("sidestep_kafka_transmitted_bytes_total", sum(|broker| broker.txbytes)),
        ("sidestep_kafka_held_topics", held.0 as f64),
        ("sidestep_kafka_held_bytes", held.1 as f64),
    ];
    values.map(|(name, value)| Figure { name, value }).to_vec()
}
