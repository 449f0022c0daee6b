//! The sink against a small server that answers what a test says; real counterparts are in the end-to-end tests.

mod random;
mod requests;
mod server;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use self::server::{Got, Reply, Server};
use super::{
    config::{Compression, Encoding},
    *,
};
use crate::{
    ledger::Reason,
    sinks::{
        Delivery, Outcome, Receipt, Settled, Settlement, Sink as _, SinkError,
        testing::{LONG, all_settled, batch, pod_stream},
    },
};

fn settings(server: &Server) -> Settings {
    Settings { url: server.url(), linger: Duration::from_millis(1), ..Settings::default() }
}

/// One delivery for each list of lines, all of one stream, and where they settle.
fn deliveries(batches: &[Vec<String>]) -> (VecDeque<Delivery>, Receiver<Settlement>) {
    let (sender, settled) = channel();
    let stream = pod_stream("shop", "cart", "app");
    let mut position = 0;
    let mut queue = VecDeque::new();
    for lines in batches {
        let bodies: Vec<_> = lines.iter().map(String::as_bytes).collect();
        let batch = Arc::new(batch(&stream, position, &bodies));
        position = batch.end();
        let receipt = Receipt::for_sinks(&batch, 1, &sender, None).pop().expect("one receipt");
        queue.push_back(Delivery { batch, receipt });
    }
    (queue, settled)
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("line {number}")).collect()
}

/// Drives the sink as its thread does, until everything is settled; the errors that it named.
fn drive(
    sink: &mut HttpSink,
    queue: &mut VecDeque<Delivery>,
    settled: &Receiver<Settlement>,
) -> (Vec<Settled>, Vec<String>) {
    let (count, end) = (queue.len(), Instant::now() + LONG);
    let mut all = Vec::new();
    let mut errors: Vec<String> = Vec::new();
    let mut note = |result: Result<(), SinkError>| errors.extend(result.err().map(|error| error.to_string()));
    while all.len() < count {
        assert!(Instant::now() < end, "{} of {count} are settled", all.len());
        note(sink.write(queue));
        note(sink.flush());
        note(sink.tick());
        all.extend(all_settled(settled));
    }
    (all, errors)
}

fn lost(settled: &[Settled]) -> (u64, Option<Reason>) {
    let losses = settled.iter().filter_map(|settled| settled.lost);
    losses.fold((0, None), |(lines, _), loss| (lines + loss.lines, Some(loss.reason)))
}

#[test]
fn lines_arrive_in_order_in_every_encoding_and_compression() {
    for encoding in [Encoding::Ndjson, Encoding::OtlpProto] {
        for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
            let server = Server::start(|_| Reply::status(200));
            let mut sink = HttpSink::new(Settings { encoding, compression, ..settings(&server) }).expect("a sink");
            let lines = numbered(50);
            let (mut queue, settled) = deliveries(&[lines[..20].to_vec(), lines[20..].to_vec()]);
            let (settled, errors) = drive(&mut sink, &mut queue, &settled);
            assert_eq!((lost(&settled), errors), ((0, None), Vec::new()), "{encoding:?} {compression:?}");
            let got = server.got();
            assert_eq!(got.iter().flat_map(Got::bodies).collect::<Vec<_>>(), lines);
            let is_compressed = got[0].header("content-encoding").is_some();
            assert_eq!(is_compressed, compression != Compression::None);
        }
    }
}

#[test]
fn a_request_is_never_larger_than_it_may_be() {
    for encoding in [Encoding::Ndjson, Encoding::OtlpProto] {
        let server = Server::start(|_| Reply::status(204));
        let max_request_bytes = bytesize::ByteSize::kib(16);
        let compression = Compression::None;
        let settings = Settings { encoding, compression, max_request_bytes, ..settings(&server) };
        let mut sink = HttpSink::new(settings).expect("a sink");
        let mut lines = numbered(300);
        lines.insert(150, "x".repeat(17_000));
        let (mut queue, settled) = deliveries(&[lines.clone()]);
        let (settled, errors) = drive(&mut sink, &mut queue, &settled);
        assert_eq!(lost(&settled), (1, Some(Reason::Oversize)));
        assert!(
            errors[0].contains("a line of 17000 bytes is dropped: it makes more than `max_request_bytes`"),
            "{errors:?}"
        );
        let got = server.got();
        assert!(got.len() > 2 && got.iter().all(|got| got.length <= 16 * 1024), "{}", got.len());
        lines.remove(150);
        let mut bodies: Vec<_> = got.iter().flat_map(Got::bodies).collect();
        // Two may be under way at once.
        bodies.sort_by_key(|body| lines.iter().position(|line| line == body));
        assert_eq!(bodies, lines);
    }
}

#[test]
fn a_server_that_cannot_now_gets_it_later() {
    for (first, part) in [
        (Reply::status(503).header("Retry-After", "1"), "503 Service Unavailable"),
        (Reply::status(429).header("Retry-After", "1"), "429 Too Many Requests"),
        (Reply::status(500).body("out of order: later"), "500 Internal Server Error: out of order: later"),
        (Reply::status(408), "408 Request Timeout"),
        (Reply::raw(""), "the server's own log"),
        (Reply::raw("SSH-2.0-OpenSSH_9.2\r\n"), "another service may listen there"),
        (Reply::endless(), "longer than 65536 bytes"),
        (Reply::silent(), "no complete answer in time"),
    ] {
        let waits = part.starts_with("503") || part.starts_with("429");
        let server = Server::start(move |number| if number == 0 { first.clone() } else { Reply::status(200) });
        let request_timeout = Duration::from_millis(500);
        let mut sink = HttpSink::new(Settings { request_timeout, ..settings(&server) }).expect("a sink");
        let (mut queue, settled) = deliveries(&[numbered(3)]);
        let begin = Instant::now();
        let (settled, errors) = drive(&mut sink, &mut queue, &settled);
        assert_eq!(lost(&settled), (0, None));
        assert!(errors.iter().all(|error| error.contains(part)) && !errors.is_empty(), "{part}: {errors:?}");
        assert!(!waits || begin.elapsed() >= Duration::from_secs(1), "it asked for a second");
        assert_eq!(server.got().last().expect("requests").bodies(), numbered(3));
        sink.tick().expect("all is well again");
    }
}

#[test]
fn a_server_that_is_back_is_noticed_by_the_sinks_own_calls() {
    let server = Server::start(|number| if number < 4 { Reply::status(503) } else { Reply::status(200) });
    let mut sink = HttpSink::new(settings(&server)).expect("a sink");
    let (mut queue, settled) = deliveries(&[numbered(3)]);
    // Taken, and nothing more is asked of it.
    while !queue.is_empty() {
        let _ = sink.write(&mut queue);
    }
    let end = Instant::now() + LONG;
    let settled = loop {
        let at = sink.next_call().expect("it wants to be called as long as something waits");
        assert!(at <= Instant::now() + Duration::from_secs(10) && Instant::now() < end);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        let called = sink.call();
        let settled = all_settled(&settled);
        if !settled.is_empty() {
            called.expect("all is well again");
            break settled;
        }
    };
    assert_eq!((lost(&settled), server.got().len(), sink.next_call()), ((0, None), 5, None));
}

#[test]
fn the_line_that_the_server_refuses_is_dropped_alone() {
    let server = Server::answering(|got| {
        let bad = got.bodies().iter().any(|body| body.contains('7'));
        if bad { Reply::status(400).body("no sevens") } else { Reply::status(200) }
    });
    let mut sink = HttpSink::new(settings(&server)).expect("a sink");
    let (mut queue, settled) = deliveries(&[numbered(20), numbered(3)]);
    let (settled, errors) = drive(&mut sink, &mut queue, &settled);
    assert_eq!(lost(&settled), (2, Some(Reason::Rejected)));
    assert!(
        errors.iter().any(|error| error.contains("a line is dropped") && error.contains("no sevens")),
        "{errors:?}"
    );
    let taken = server.got().into_iter().filter(|got| got.status == 200);
    let mut bodies: Vec<_> = taken.flat_map(|got| got.bodies()).collect();
    bodies.sort();
    let mut expected: Vec<_> = numbered(20).into_iter().chain(numbered(3)).filter(|line| !line.contains('7')).collect();
    expected.sort();
    assert_eq!(bodies, expected);
}

#[test]
fn a_server_that_refuses_every_line_is_at_fault_itself() {
    for status in [400, 413, 422] {
        // Long enough for ten lines to be refused alone, and for attempts after that.
        let server = Server::start(move |number| if number < 26 { Reply::status(status) } else { Reply::status(200) });
        let mut sink = HttpSink::new(Settings { max_in_flight: 1, ..settings(&server) }).expect("a sink");
        let (mut queue, settled) = deliveries(&[numbered(50)]);
        let (settled, errors) = drive(&mut sink, &mut queue, &settled);
        assert_eq!(lost(&settled), (0, None), "{errors:?}");
        let status = status.to_string();
        let tells = |error: &String| error.contains(&status) && error.contains("it refuses every line so");
        assert!(errors.iter().any(tells), "{errors:?}");
    }
}

#[test]
fn many_bad_lines_in_a_row_hold_the_good_ones_for_a_while_only() {
    let server = Server::answering(|got| {
        let bad = got.bodies().iter().any(|body| body.starts_with("bad"));
        if bad { Reply::status(422) } else { Reply::status(200) }
    });
    let mut sink = HttpSink::new(settings(&server)).expect("a sink");
    let mut lines = numbered(100);
    lines.splice(40..40, (0..25).map(|number| format!("bad {number}")));
    let mut batches = vec![lines];
    batches.extend((0..20).map(|number| vec![format!("later {number}")]));
    let (mut queue, settled) = deliveries(&batches);
    let mut later = queue.split_off(1);
    let (end, mut errors) = (Instant::now() + LONG, Vec::new());
    // Others come, one by one, until all is settled that came first.
    let mut outstanding = 0;
    let settled = loop {
        assert!(Instant::now() < end, "{:?}, {} are left", errors.last(), later.len());
        errors.extend([sink.write(&mut queue), sink.flush(), sink.tick()].into_iter().filter_map(Result::err));
        let (mut first, others): (Vec<_>, Vec<_>) =
            all_settled(&settled).into_iter().partition(|settled| settled.lines == 125);
        outstanding -= others.len();
        match first.pop() {
            Some(settled) => break settled,
            None if outstanding == 0 && !errors.is_empty() => {
                queue.push_back(later.pop_front().expect("few are enough"));
                outstanding += 1;
            }
            None => {}
        }
    };
    assert_eq!(lost(&[settled]), (25, Some(Reason::Rejected)));
    let taken = server.got().into_iter().filter(|got| got.status == 200);
    let lines = taken.flat_map(|got| got.bodies()).filter(|body| body.starts_with("line"));
    assert_eq!(lines.count(), 100, "each good line once");
}

#[test]
fn a_bad_line_that_comes_first_waits_for_a_good_one() {
    let server = Server::answering(|got| {
        let bad = got.bodies().iter().any(|body| body == "bad");
        if bad { Reply::status(400) } else { Reply::status(200) }
    });
    let mut sink = HttpSink::new(settings(&server)).expect("a sink");
    let (mut queue, settled) = deliveries(&[vec!["bad".to_owned()], vec!["good".to_owned()]]);
    let mut later = queue.split_off(1);
    let end = Instant::now() + LONG;
    loop {
        let _ = sink.write(&mut queue).and_then(|()| sink.flush());
        match sink.tick() {
            Err(error) if error.to_string().contains("it refuses every line so") => break,
            _ => assert!(Instant::now() < end),
        }
    }
    assert!(all_settled(&settled).is_empty(), "the server has taken nothing yet");
    let _ = sink.write(&mut later);
    assert!(later.is_empty(), "it may show that the first one is at fault");
    let (settled, _) = drive_on(&mut sink, &settled, 2);
    assert_eq!(lost(&settled), (1, Some(Reason::Rejected)));
}

#[test]
fn what_is_too_large_for_the_server_goes_in_parts() {
    let server = Server::answering(|got| if got.length > 5_000 { Reply::status(413) } else { Reply::status(200) });
    let mut sink = HttpSink::new(Settings { compression: Compression::None, ..settings(&server) }).expect("a sink");
    let mut lines = numbered(60);
    lines[30] = "x".repeat(6_000);
    let (mut queue, settled) = deliveries(&[lines]);
    let (settled, errors) = drive(&mut sink, &mut queue, &settled);
    assert_eq!(lost(&settled), (1, Some(Reason::Oversize)));
    assert!(errors.iter().any(|error| error.contains("lower `max_request_bytes`")), "{errors:?}");
    let taken = server.got().into_iter().filter(|got| got.status == 200);
    assert_eq!(taken.map(|got| got.bodies().len()).sum::<usize>(), 59);
}

#[test]
fn what_an_operator_can_mend_is_held_with_the_remedy() {
    for (reply, part) in [
        (Reply::status(401), "see `auth` and `headers`"),
        (Reply::status(403), "the right to write"),
        (Reply::status(404), "see the path in `url`"),
        (Reply::status(405), "takes logs by POST"),
        (Reply::status(400).body("400 No required SSL certificate was sent"), "see `tls.cert_file`"),
        (Reply::status(400).body("Client sent an HTTP request to an HTTPS server."), "write `https://`"),
        (Reply::status(200).body("\n<!DOCTYPE html><title>Log in</title>"), "a page for people"),
        (Reply::status(415), "neither this `encoding` nor this `compression`"),
        (
            Reply::status(308).header("Location", "https://elsewhere/v1/logs"),
            "to \"https://elsewhere/v1/logs\"; redirects",
        ),
    ] {
        let server = Server::start(move |number| if number < 2 { reply.clone() } else { Reply::status(200) });
        let mut sink = HttpSink::new(settings(&server)).expect("a sink");
        let (mut queue, settled) = deliveries(&[numbered(3)]);
        let (settled, errors) = drive(&mut sink, &mut queue, &settled);
        assert_eq!(lost(&settled), (0, None));
        let tells = |error: &String| error.contains(part) && error.contains("lines are held until that is mended");
        assert!(errors.iter().all(tells) && !errors.is_empty(), "{part}: {errors:?}");
        assert_eq!(server.got().len(), 3);
    }
}

#[test]
fn partly_refused_counts_what_the_server_counts() {
    // rejected_log_records 2, error_message "old"
    let server =
        Server::start(|_| Reply::status(200).body_bytes(&[0x0a, 0x07, 0x08, 0x02, 0x12, 0x03, b'o', b'l', b'd']));
    let settings = Settings { encoding: Encoding::OtlpProto, ..settings(&server) };
    let mut sink = HttpSink::new(settings).expect("a sink");
    let (mut queue, settled) = deliveries(&[numbered(5)]);
    let (settled, errors) = drive(&mut sink, &mut queue, &settled);
    assert_eq!(lost(&settled), (2, Some(Reason::Rejected)));
    assert!(
        errors.len() == 1 && errors[0].contains("2 of 5 lines are dropped, as the server refuses them: old"),
        "{errors:?}"
    );
    assert_eq!(server.got().len(), 1, "it is not sent again");
}

#[test]
fn what_is_not_acknowledged_is_given_back() {
    let server = Server::start(|number| if number == 0 { Reply::status(200) } else { Reply::silent() });
    let mut sink = HttpSink::new(settings(&server)).expect("a sink");
    let (mut queue, settled) = deliveries(&[numbered(5), numbered(7), numbered(9)]);
    let mut later = queue.split_off(1);
    sink.write(&mut queue).expect("taken");
    sink.flush().expect("answered");
    assert_eq!(all_settled(&settled).len(), 1);
    sink.write(&mut later).expect("taken");
    sink.flush().expect("sent");
    let error = sink.close(Duration::from_millis(100)).expect_err("no answer").to_string();
    assert!(error.contains("16 lines are not acknowledged"), "{error}");
    let back = sink.give_back();
    drop(sink);
    assert!(all_settled(&settled).is_empty());
    assert_eq!(back.iter().map(|delivery| delivery.batch.lines.len()).collect::<Vec<_>>(), [7, 9]);
    back.into_iter().for_each(|delivery| delivery.receipt.settle(Outcome::Delivered));
    assert_eq!(lost(&all_settled(&settled)), (0, None));
}

#[test]
fn headers_and_credentials_go_with_each_request() {
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    let server = Server::start(|_| Reply::status(200));
    let settings = serde_json::from_value(json!({
        "url": server.url(), "linger": "1ms", "encoding": "otlp_proto",
        "auth": {"bearer": {"token_file": &token}},
        "headers": {"X-Scope-OrgID": "shop", "X-Key": {"file": &token}},
    }));
    let settings: Settings = settings.expect("valid");
    assert_eq!(settings.problems(), []);
    let mut sink = HttpSink::new(settings).expect("a sink");
    let (mut queue, settled) = deliveries(&[numbered(1)]);
    sink.write(&mut queue).expect("taken");
    let missing = sink.flush().expect_err("no token").to_string();
    assert!(missing.contains(&*token.to_string_lossy()) && missing.contains("Secret is mounted"), "{missing}");
    std::fs::write(&token, "secret\n").expect("writes");
    let (settled, _) = drive_on(&mut sink, &settled, 1);
    assert_eq!(lost(&settled), (0, None));
    let got = &server.got()[0];
    assert_eq!(got.header("x-scope-orgid"), Some("shop"));
    assert_eq!(got.header("x-key"), Some("secret"));
    assert_eq!(got.header("authorization"), Some("Bearer secret"));
    assert_eq!(got.header("content-type"), Some("application/x-protobuf"));
}

/// As [`drive`], when the sink has taken all already.
fn drive_on(sink: &mut HttpSink, settled: &Receiver<Settlement>, count: usize) -> (Vec<Settled>, usize) {
    let end = Instant::now() + LONG;
    let mut all = Vec::new();
    let mut errors = 0;
    while all.len() < count {
        assert!(Instant::now() < end, "{} of {count} are settled", all.len());
        errors += usize::from(sink.tick().is_err());
        all.extend(all_settled(settled));
    }
    (all, errors)
}

#[test]
fn the_server_is_asked_whether_it_is_there() {
    for (encoding, reply, expected) in [
        (Encoding::OtlpProto, Reply::status(200), Ok("answers")),
        (Encoding::OtlpProto, Reply::status(404), Err("see the path in `url`")),
        (Encoding::Ndjson, Reply::status(405), Ok("with the first request")),
        (Encoding::Ndjson, Reply::status(401), Err("see `auth`")),
    ] {
        let server = Server::start(move |_| reply.clone());
        let found = reach(&Settings { encoding, ..settings(&server) }).map_err(|error| error.to_string());
        match (&found, expected) {
            (Ok(text), Ok(part)) | (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
            _ => panic!("{found:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let token = json!({"bearer": {"token_file": "/token"}});
    for (option, part, value) in [
        ("url", "must be given", json!({})),
        ("url", "is no URL", json!({"url": "collector"})),
        ("url", "in clear text", json!({"url": "http://logs/", "auth": token})),
        ("tls", "has no effect", json!({"url": "http://localhost/", "tls": {}})),
        ("tls", "together", json!({"url": "https://logs/", "tls": {"cert_file": "/a"}})),
        ("max_in_flight", "from 1 to 64", json!({"url": "https://logs/", "max_in_flight": 0})),
        ("max_request_bytes", "from 16KiB", json!({"url": "https://logs/", "max_request_bytes": 1000})),
        ("request_timeout", "from 10ms", json!({"url": "https://logs/", "request_timeout": "0s"})),
        ("connect_timeout", "from 10ms", json!({"url": "https://logs/", "connect_timeout": "2h"})),
        ("linger", "at most 1m", json!({"url": "https://logs/", "linger": "2m"})),
        ("headers", "no header's name", json!({"url": "https://logs/", "headers": {"a b": "c"}})),
        ("headers", "no header may have", json!({"url": "https://logs/", "headers": {"a": "b\nc"}})),
        (
            "headers",
            "the agent says that itself",
            json!({"url": "https://logs/", "encoding": "otlp_proto", "headers": {"Content-Type": "c"}}),
        ),
        (
            "headers",
            "one of the two",
            json!({"url": "https://logs/", "auth": token, "headers": {"Authorization": "c"}}),
        ),
        ("headers", "in clear text", json!({"url": "http://logs/", "headers": {"a": {"file": "/token"}}})),
    ] {
        let settings: Settings = serde_json::from_value(value).expect("parses");
        let problems = settings.problems();
        assert!(
            problems.iter().any(|problem| problem.option == option && problem.problem.contains(part)),
            "{option} {part}: {problems:?}"
        );
    }
}
