//! What needs no broker; the rest is in the end-to-end tests.

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        mpsc::channel,
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{ClientContext as _, Statistics, producer::Producer as _};

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
    use crate::telemetry::names::SINK_FIGURES;
    let given: Vec<_> = figures::figures(&Statistics::default(), (0, 0)).iter().map(|figure| figure.name).collect();
    let metrics =
        SINK_FIGURES.iter().map(|definition| definition.name).filter(|name| name.starts_with("sidestep_kafka_"));
    assert_eq!(given, metrics.collect::<Vec<_>>());
}

/// A broker that tells of itself when it is first asked who there is, and then says that there is none, as brokers do
/// which their controller has not heard of for a while, until it knows itself again.
struct Forgetful {
    address: String,
    state: Arc<Memory>,
}

#[derive(Default)]
struct Memory {
    is_back: AtomicBool,
    /// How often it was asked.
    asked: AtomicUsize,
    /// How often it was asked since it knows itself again.
    asked_since: AtomicUsize,
}

impl Forgetful {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let state = Arc::<Memory>::default();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let memory = Arc::clone(&shared);
                thread::spawn(move || answer(stream, port, &memory));
            }
        });
        Self { address: format!("127.0.0.1:{port}"), state }
    }
}

/// Answers the requests of one connection, of which it knows three (<https://kafka.apache.org/protocol>).
fn answer(mut stream: TcpStream, port: u16, memory: &Memory) -> io::Result<()> {
    fn string(text: &str) -> Vec<u8> {
        [&i16::try_from(text.len()).expect("short").to_be_bytes(), text.as_bytes()].concat()
    }
    loop {
        let mut size = [0; 4];
        stream.read_exact(&mut size)?;
        let mut request = vec![0; u32::from_be_bytes(size) as usize];
        stream.read_exact(&mut request)?;
        let number = |at: usize| i16::from_be_bytes([request[at], request[at + 1]]);
        let body = match (number(0), number(2)) {
            // ApiVersions: which requests there are, and in which versions.
            (18, 0) => {
                let known: [[i16; 3]; 6] = [[0, 0, 7], [1, 0, 11], [3, 0, 1], [18, 0, 0], [22, 0, 1], [2, 0, 1]];
                let known = known.iter().flatten().flat_map(|number| number.to_be_bytes());
                [0, 0, 0, 0, 0, 6].into_iter().chain(known).collect()
            }
            // Of a later version: UNSUPPORTED_VERSION.
            (18, _) => vec![0, 35, 0, 0, 0, 0],
            // Metadata: the brokers (number, name, port, no rack), the controller, and one topic that nobody leads.
            (3, _) => {
                let is_back = memory.is_back.load(Relaxed);
                memory.asked_since.fetch_add(usize::from(is_back), Relaxed);
                let brokers = if memory.asked.fetch_add(1, Relaxed) == 0 || is_back {
                    [&[0, 0, 0, 1, 0, 0, 0, 1], &string("127.0.0.1")[..], &u32::from(port).to_be_bytes(), &[255; 2]]
                        .concat()
                } else {
                    vec![0; 4]
                };
                [&brokers[..], &[0, 0, 0, 1], &[0, 0, 0, 1, 0, 5], &string("logs.pod"), &[0; 5]].concat()
            }
            // InitProducerId: no throttling, no error, producer 1, epoch 0.
            (22, _) => [&[0; 13][..], &[1, 0, 0]].concat(),
            _ => return Ok(()),
        };
        let answer = [&request[4..8], &body].concat();
        stream.write_all(&[&u32::try_from(answer.len()).expect("short").to_be_bytes()[..], &answer].concat())?;
    }
}

/// librdkafka takes brokers at their word that there are none, and then may connect to nobody for ever.
#[test]
fn brokers_that_say_that_there_is_none_are_asked_again() {
    let broker = Forgetful::start();
    let mut sink =
        KafkaSink::new(Settings { brokers: vec![broker.address.clone()], ..Settings::default() }).expect("a producer");
    write_one(&mut sink);
    let memory = &broker.state;
    let (start, deadline) = (Instant::now(), Instant::now() + Duration::from_secs(60));
    while memory.asked_since.load(Relaxed) == 0 {
        assert!(Instant::now() < deadline, "asked {} times, and nobody asks any more", memory.asked.load(Relaxed));
        // Long enough for it to have given up.
        memory.is_back.store(start.elapsed() > Duration::from_secs(3), Relaxed);
        let _ = sink.tick();
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(give_back_all(&mut sink), 1, "the line is lost");
}

#[test]
fn a_producer_that_knows_no_broker_any_more_is_replaced_and_its_lines_stay() {
    // Statistics of its own must not come between.
    let options = [("statistics.interval.ms".to_owned(), "3600000".to_owned())].into();
    let settings = Settings { brokers: vec!["127.0.0.1:1".to_owned()], options, ..Settings::default() };
    let mut sink = KafkaSink::new(settings).expect("makes the producer");
    write_one(&mut sink);
    let first = Arc::as_ptr(sink.producer.client().context());
    sink.producer.client().context().stats(Statistics::default());
    let _ = sink.tick();
    assert_eq!(first, Arc::as_ptr(sink.producer.client().context()), "it may have been between two lists");
    sink.producer.client().context().stats(Statistics::default());
    let _ = sink.tick();
    assert_ne!(first, Arc::as_ptr(sink.producer.client().context()));
    assert_eq!(give_back_all(&mut sink), 1, "the line is lost");
}

/// Gives it one line, whose outcome nobody hears of.
fn write_one(sink: &mut KafkaSink) {
    let (sender, _) = channel();
    let batch = Arc::new(batch(&pod_stream("shop", "one", "app"), 0, &[b"first"]));
    let receipt = Receipt::for_sinks(&batch, 1, &sender, None).pop().expect("one receipt");
    // It may have noticed by now that nobody is there.
    let _ = sink.write(&mut VecDeque::from([Delivery { batch, receipt }]));
}

/// How many lines it gives back at its end.
fn give_back_all(sink: &mut KafkaSink) -> usize {
    let _ = sink.close(Duration::from_millis(1));
    let back = sink.give_back();
    let lines = back.iter().map(|delivery| delivery.batch.lines.len()).sum();
    back.into_iter().for_each(|delivery| delivery.receipt.settle(Outcome::Delivered));
    lines
}
