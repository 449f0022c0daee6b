//! Against a server that answers what a test says.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use serde_json::{Value, json};

use super::{ElasticsearchSink, Settings, config::Compression};
use crate::{
    ledger::Reason,
    sinks::{
        Delivery, Receipt, Settlement, Sink,
        testing::{LONG, all_settled, batch, pod_stream},
    },
};

/// The lines of one bulk request: the action and the document of each.
type Documents = Vec<(Value, Value)>;
/// What a server answers to its bulk requests, by their number.
type Script = dyn Fn(usize, &Documents) -> Option<(u16, String)> + Send + Sync;

/// So many attempts that go wrong in a row take longer than a call waits, so that it has to say why.
const BUSY: usize = 3;

/// A server of one test, and what it was asked.
struct Server {
    url: String,
    bulks: Arc<Mutex<Vec<Documents>>>,
}

impl Server {
    /// Answers setup by what OpenSearch would, and bulk requests by the script; `None` is no answer at all.
    fn start(script: impl Fn(usize, &Documents) -> Option<(u16, String)> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let bulks = Arc::<Mutex<Vec<Documents>>>::default();
        let (asked, script): (_, Arc<Script>) = (Arc::clone(&bulks), Arc::new(script));
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (asked, script) = (Arc::clone(&asked), Arc::clone(&script));
                thread::spawn(move || serve(&connection, &asked, &*script));
            }
        });
        Self { url, bulks }
    }

    fn sizes(&self) -> Vec<usize> {
        self.bulks.lock().expect("not poisoned").iter().map(Vec::len).collect()
    }
}

/// Answers one request.
fn serve(connection: &TcpStream, asked: &Mutex<Vec<Documents>>, script: &Script) {
    let mut reader = BufReader::new(connection);
    let mut first = String::new();
    reader.read_line(&mut first).expect("a request");
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        length = line.strip_prefix("content-length: ").map_or(length, |text| text.parse().expect("a length"));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    let answer = if first.starts_with("POST /_bulk") {
        let lines = || body.split(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap_or_default());
        let documents: Documents = lines().step_by(2).zip(lines().skip(1).step_by(2)).collect();
        let mut asked = asked.lock().expect("not poisoned");
        let answer = script(asked.len(), &documents);
        asked.push(documents);
        answer
    } else if first.starts_with("GET / ") {
        Some((200, json!({ "version": { "number": "2.19.0", "distribution": "opensearch" } }).to_string()))
    } else {
        Some((200, "{}".to_owned()))
    };
    let mut connection = connection;
    let Some((status, body)) = answer else {
        thread::sleep(LONG);
        return;
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    // A client that is gone needs no answer.
    let _ = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(body.as_bytes()));
}

/// A reply with one status for each document; of an error, also its type.
fn reply(documents: &Documents, status: impl Fn(usize, &Value) -> (u16, &'static str)) -> Option<(u16, String)> {
    let items = documents.iter().enumerate().map(|(index, (action, document))| {
        let operation = action.as_object().and_then(|action| action.keys().next()).expect("an operation");
        match status(index, document) {
            (status, "") => json!({ operation: { "status": status } }),
            (status, kind) => {
                json!({ operation: { "status": status, "error": { "type": kind, "reason": "so, FORBIDDEN/8/" } } })
            }
        }
    });
    Some((200, json!({ "errors": true, "items": items.collect::<Vec<_>>() }).to_string()))
}

fn sink(server: &Server, change: impl FnOnce(&mut Settings)) -> ElasticsearchSink {
    let mut settings = Settings {
        urls: vec![server.url.clone()],
        compression: Compression::None,
        linger: Duration::ZERO,
        ..Settings::default()
    };
    change(&mut settings);
    ElasticsearchSink::new(settings).expect("a sink")
}

fn deliveries(bodies: &[&[u8]]) -> (VecDeque<Delivery>, Receiver<Settlement>) {
    let (sender, settled) = channel();
    let batch = Arc::new(batch(&pod_stream("a", "b", "c"), 0, bodies));
    let receipt = Receipt::for_sinks(&batch, 1, &sender, None).pop().expect("one receipt");
    (VecDeque::from([Delivery { batch, receipt }]), settled)
}

/// Lets the sink work until its batch is settled: what of it was lost, and the errors on the way.
fn work(
    sink: &mut ElasticsearchSink,
    queue: &mut VecDeque<Delivery>,
    settled: &Receiver<Settlement>,
) -> (Option<(Reason, u64)>, String) {
    let mut errors = String::new();
    let end = Instant::now() + LONG;
    loop {
        for result in [sink.write(queue), sink.flush(), sink.tick()] {
            let Err(error) = result else { continue };
            let error = error.to_string();
            if !errors.contains(&error) {
                errors.push_str(&error);
            }
        }
        if let Some(settled) = all_settled(settled).pop() {
            return (settled.lost.map(|lost| (lost.reason, lost.lines)), errors);
        }
        assert!(Instant::now() < end, "not settled: {errors}");
    }
}

#[test]
fn lines_that_the_server_has_no_time_for_are_sent_again_alone() {
    let server = Server::start(|number, documents| {
        let busy = |index, _: &Value| {
            if number == 0 && index == 1 || (1..BUSY).contains(&number) {
                (429, "es_rejected_execution_exception")
            } else {
                (201, "")
            }
        };
        reply(documents, busy)
    });
    let mut sink = sink(&server, |_| {});
    let (mut queue, settled) = deliveries(&[b"one", b"two", b"three"]);
    let (lost, errors) = work(&mut sink, &mut queue, &settled);
    assert_eq!((lost, server.sizes()), (None, vec![3, 1, 1, 1]));
    assert!(errors.contains("es_rejected_execution_exception"), "{errors}");
    let bulks = server.bulks.lock().expect("not poisoned");
    assert_eq!((&bulks[1][0].0, &bulks[1][0].1["body"]), (&bulks[0][1].0, &json!("two")), "the same id");
    assert!(sink.figures().iter().any(|figure| figure.name.contains("retried") && figure.value == 3.0));
}

#[test]
fn what_no_index_takes_is_dropped_alone() {
    let server = Server::start(|_, documents| {
        let refuse = |_, document: &Value| {
            let is_two = document["body"] == "two" || document.get("original").is_some();
            if is_two { (400, "mapper_parsing_exception") } else { (201, "") }
        };
        reply(documents, refuse)
    });
    let mut sink = sink(&server, |_| {});
    let (mut queue, settled) = deliveries(&[b"one", b"two", b"three"]);
    let (lost, errors) = work(&mut sink, &mut queue, &settled);
    assert_eq!((lost, server.sizes()), (Some((Reason::Rejected, 1)), vec![3, 1]));
    assert!(errors.contains("sidestep-dead-letter is dropped: mapper_parsing_exception"), "{errors}");
}

#[test]
fn a_request_that_is_too_large_for_the_server_goes_in_halves() {
    let server = Server::start(|_, documents| {
        let is_large = |(_, document): &(Value, Value)| document["body"].as_str().is_some_and(|body| body.len() > 99);
        if documents.iter().any(is_large) { Some((413, String::new())) } else { reply(documents, |_, _| (201, "")) }
    });
    let mut sink = sink(&server, |settings| settings.max_in_flight = 1);
    let large = vec![b'x'; 100];
    let (mut queue, settled) = deliveries(&[b"one", b"two", &large, b"four"]);
    let (lost, errors) = work(&mut sink, &mut queue, &settled);
    assert_eq!((lost, server.sizes()), (Some((Reason::Oversize, 1)), vec![4, 2, 2, 1, 1]));
    assert!(errors.contains("http.max_content_length"), "{errors}");
}

#[test]
fn a_request_that_is_refused_goes_in_halves_to_the_line_at_fault() {
    let server = Server::start(|_, documents| {
        let is_bad = |(_, document): &(Value, Value)| document["body"] == "bad";
        if documents.iter().any(is_bad) { Some((400, "no".into())) } else { reply(documents, |_, _| (201, "")) }
    });
    let mut sink = sink(&server, |settings| settings.max_in_flight = 1);
    let (mut queue, settled) = deliveries(&[b"one", b"two", b"bad", b"four"]);
    let (lost, errors) = work(&mut sink, &mut queue, &settled);
    assert_eq!((lost, server.sizes()), (Some((Reason::Rejected, 1)), vec![4, 2, 2, 1, 1]));
    assert!(errors.contains("is dropped") && errors.contains("the request is refused: 400 no"), "{errors}");
}

#[test]
fn a_server_that_refuses_every_line_is_at_fault_itself() {
    for status in [400, 413, 422] {
        let server =
            Server::start(
                move |number, documents| {
                    if number < 26 { Some((status, String::new())) } else { reply(documents, |_, _| (201, "")) }
                },
            );
        let mut sink = sink(&server, |settings| settings.max_in_flight = 1);
        let bodies: Vec<_> = (0..50).map(|number| format!("line {number}")).collect();
        let (mut queue, settled) = deliveries(&bodies.iter().map(String::as_bytes).collect::<Vec<_>>());
        let (lost, errors) = work(&mut sink, &mut queue, &settled);
        assert_eq!(lost, None, "{errors}");
        assert!(errors.contains("it refuses every line so"), "{errors}");
    }
}

#[test]
fn a_line_above_the_limit_is_dropped_alone() {
    let server = Server::start(|_, documents| reply(documents, |_, _| (201, "")));
    let mut sink = sink(&server, |settings| settings.max_request_bytes = ByteSize::kib(2));
    let large = vec![b'x'; 3000];
    let (mut queue, settled) = deliveries(&[b"one", &large, b"three"]);
    let (lost, errors) = work(&mut sink, &mut queue, &settled);
    assert_eq!(lost, Some((Reason::Oversize, 1)));
    assert!(errors.contains("raise `max_request_bytes`"), "{errors}");
}

#[test]
fn an_answer_to_the_whole_request_is_no_lines_fault() {
    for (status, body, part) in [
        (401, "who are you", "who are you; see `auth`"),
        (200, "<html>", "no bulk reply"),
        (200, r#"{"errors":false,"items":[]}"#, "0 documents, but 2"),
        (503, "", "503"),
    ] {
        let server = Server::start(move |number, documents| {
            if number < BUSY { Some((status, body.to_owned())) } else { reply(documents, |_, _| (201, "")) }
        });
        let mut sink = sink(&server, |_| {});
        let (mut queue, settled) = deliveries(&[b"one", b"two"]);
        let (lost, errors) = work(&mut sink, &mut queue, &settled);
        assert_eq!((lost, server.sizes()), (None, vec![2; BUSY + 1]));
        assert!(errors.contains(part), "{errors}");
    }
}

#[test]
fn lines_of_an_index_that_takes_nothing_are_held_and_others_are_not() {
    let server = Server::start(|_, documents| {
        let missing = |_, document: &Value| {
            if document["body"] == "two" { (404, "index_not_found_exception") } else { (201, "") }
        };
        reply(documents, missing)
    });
    let mut sink = sink(&server, |settings| settings.give_up_after = Duration::from_millis(500));
    let (mut queue, settled) = deliveries(&[b"one", b"two", b"three"]);
    let (lost, errors) = work(&mut sink, &mut queue, &settled);
    assert_eq!(lost, Some((Reason::Rejected, 1)));
    assert!(errors.contains("1 lines are held and tried again: 404 index_not_found_exception"), "{errors}");
    assert!(errors.contains("is dropped: held for 500ms") && errors.contains("auto_create_index"), "{errors}");
    assert!(server.sizes().len() > 2 && server.sizes().iter().skip(1).all(|size| *size == 1), "{:?}", server.sizes());
}

#[test]
fn where_every_index_is_blocked_lines_wait_and_nothing_is_lost() {
    let server = Server::start(|number, documents| {
        let kind = if number < 5 { (403, "cluster_block_exception") } else { (201, "") };
        reply(documents, |_, _| kind)
    });
    let mut sink = sink(&server, |settings| {
        settings.buffer.max_unacknowledged = ByteSize::kib(64);
        settings.give_up_after = Duration::from_millis(1);
    });
    let body = vec![b'x'; 30_000];
    let (mut queue, settled) = deliveries(&[&*body; 3]);
    let (lost, errors) = work(&mut sink, &mut queue, &settled);
    assert_eq!(lost, None, "{errors}");
    assert!(errors.contains("index logs-pod-2026.11.21: 3 lines are held and tried again"), "{errors}");
    assert!(server.sizes()[1..5].iter().all(|size| *size == 1), "one line shows it: {:?}", server.sizes());
}

#[test]
fn an_outage_is_no_reason_to_give_up_what_is_held() {
    let server = Server::start(|number, documents| match number {
        0 => reply(documents, |_, _| (404, "index_not_found_exception")),
        1..=4 => Some((503, String::new())),
        _ => reply(documents, |_, _| (201, "")),
    });
    let mut sink = sink(&server, |settings| settings.give_up_after = Duration::from_millis(500));
    let (mut queue, settled) = deliveries(&[b"one"]);
    let begin = Instant::now();
    let (lost, errors) = work(&mut sink, &mut queue, &settled);
    assert!(begin.elapsed() > Duration::from_millis(500), "it was away for longer than there is patience");
    assert_eq!(lost, None, "{errors}");
}

#[test]
fn a_server_that_is_back_is_noticed_by_the_sinks_own_calls() {
    let server =
        Server::start(
            |number, documents| {
                if number < 4 { Some((503, String::new())) } else { reply(documents, |_, _| (201, "")) }
            },
        );
    let mut sink = sink(&server, |_| {});
    let (mut queue, settled) = deliveries(&[b"one", b"two"]);
    while !queue.is_empty() {
        let _ = sink.write(&mut queue);
    }
    let end = Instant::now() + LONG;
    while all_settled(&settled).is_empty() {
        let at = sink.next_call().expect("it wants to be called as long as something waits");
        assert!(at <= Instant::now() + Duration::from_secs(10) && Instant::now() < end);
        thread::sleep(at.saturating_duration_since(Instant::now()));
        let _ = sink.call();
    }
    assert_eq!((server.sizes(), sink.next_call()), (vec![2; 5], None));
}

#[test]
fn what_is_not_acknowledged_is_given_back() {
    let server = Server::start(|_, _| None);
    let mut sink = sink(&server, |_| {});
    let (mut queue, settled) = deliveries(&[b"one", b"two"]);
    while server.sizes().is_empty() {
        let _ = sink.write(&mut queue).and_then(|()| sink.flush());
    }
    let error = sink.close(Duration::from_millis(50)).expect_err("no answer").to_string();
    assert!(error.contains("2 lines are not acknowledged"), "{error}");
    let back = sink.give_back();
    assert_eq!(back.iter().map(|delivery| delivery.batch.lines.len()).collect::<Vec<_>>(), [2]);
    drop(sink);
    assert!(all_settled(&settled).is_empty());
}
