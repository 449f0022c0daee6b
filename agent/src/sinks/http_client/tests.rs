//! Against small servers that answer what a test says.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

use super::*;

fn options() -> Options<'static> {
    Options {
        sink: "test",
        tls: None,
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(1),
        max_answer_bytes: 1000,
    }
}

/// Asks a server that takes one connection and answers `answer`; `None` for no answer. Also what it was asked.
fn ask(answer: Option<&'static [u8]>, scheme: &str, auth: Option<&Auth>) -> (Result<Answer, Failure>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("{scheme}://{}/path", listener.local_addr().expect("bound"));
    let server = thread::spawn(move || {
        let (mut connection, _) = listener.accept().expect("a connection");
        let mut asked = vec![0; 4096];
        let length = connection.read(&mut asked).expect("a request");
        match answer {
            Some(answer) => connection.write_all(answer).expect("writes"),
            // The end of the connection is the client's.
            None => while connection.read(&mut [0; 1024]).is_ok_and(|length| length > 0) {},
        }
        String::from_utf8_lossy(&asked[..length]).into_owned()
    });
    let client = HttpClient::new(&options()).expect("a client");
    let result = client.ask(Request::new(Method::GET, url.parse().expect("a URL"), auth));
    (result, server.join().expect("no panic"))
}

fn failure(answer: Option<&'static [u8]>, scheme: &str) -> Failure {
    ask(answer, scheme, None).0.expect_err("no answer")
}

#[test]
fn an_answer_is_whole() {
    let (answer, asked) =
        ask(Some(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 6\r\n\r\nlat\ner"), "http", None);
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.is_success(), answer.excerpt().as_str()), (503, false, "lat er"));
    assert_eq!(answer.retry_after(), Some(Duration::from_secs(7)));
    assert!(asked.starts_with("GET /path HTTP/1.1\r\n") && asked.contains("user-agent: sidestep/"), "{asked}");
}

#[test]
fn what_is_no_answer_says_why() {
    for (answer, scheme, kind, part) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\nshort"[..], "http", FailureKind::Broken, "server's own log"),
        (b"", "http", FailureKind::Broken, "tried again"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "http", FailureKind::Garbage, "another service"),
        // The settings with which HTTP/2 begins.
        (b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64", "http", FailureKind::Garbage, "another service"),
        (b"HTTP/1.1 400 No TLS here\r\n\r\n", "https", FailureKind::Tls, "write `http://`"),
    ] {
        let failure = failure(Some(answer), scheme);
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.text.contains(part) && failure.text.contains("127.0.0.1:"), "{failure}");
    }
    let silent = failure(None, "http");
    assert_eq!(silent.kind, FailureKind::Timeout, "{silent}");
}

#[test]
fn a_compressed_answer_stays_as_it_is() {
    // A megabyte of zeros.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&[0; 1 << 20]).expect("compresses");
    let bomb = bomb.finish().expect("compresses");
    assert!(bomb.len() > 1000, "longer than an answer may be");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", bomb.len());
    let whole = [head.as_bytes(), &bomb].concat();
    assert_eq!(failure(Some(whole.leak()), "http").kind, FailureKind::TooLong);
    let (answer, asked) =
        ask(Some(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"), "http", None);
    assert_eq!(answer.expect("an answer").body, b"abc");
    assert!(!asked.to_lowercase().contains("accept-encoding"), "{asked}");
}

/// Asks a server at `address` that goes on as long as the client is there: `first`, and then `rest` again and again.
fn ask_dripping(address: &str, first: &'static [u8], rest: &'static [u8], pause: Duration) -> Failure {
    let listener = TcpListener::bind(address).expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let server = thread::spawn(move || {
        let (mut connection, _) = listener.accept().expect("a connection");
        assert!(connection.read(&mut [0; 4096]).expect("a request") > 0);
        connection.write_all(first).expect("writes");
        while connection.write_all(rest).is_ok() {
            thread::sleep(pause);
        }
    });
    let client = HttpClient::new(&options()).expect("a client");
    let failure = client.ask(Request::new(Method::GET, url.parse().expect("a URL"), None)).expect_err("no answer");
    server.join().expect("no panic");
    failure
}

#[test]
fn headers_without_an_end_take_neither_time_nor_memory_without_an_end() {
    let slow = ask_dripping("[::1]:0", b"HTTP/1.1 200 OK\r\nA: ", b"b", Duration::from_millis(50));
    assert!(slow.kind == FailureKind::Timeout && slow.text.contains("http://[::1]:"), "{slow}");
    let fast = ask_dripping("127.0.0.1:0", b"HTTP/1.1 200 OK\r\nA: ", &[b'b'; 4096], Duration::ZERO);
    assert_eq!(fast.kind, FailureKind::Garbage, "{fast}");
}

#[test]
fn an_endless_answer_is_cut_short() {
    const ENDLESS: [u8; 4096] = [b' '; 4096];
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let server = thread::spawn(move || {
        let (mut connection, _) = listener.accept().expect("a connection");
        assert!(connection.read(&mut [0; 4096]).expect("a request") > 0);
        connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("writes");
        while connection.write_all(&ENDLESS).is_ok() {}
    });
    let client = HttpClient::new(&options()).expect("a client");
    let result = client.ask(Request::new(Method::GET, url.parse().expect("a URL"), None));
    assert_eq!(result.expect_err("too long").kind, FailureKind::TooLong);
    server.join().expect("no panic");
}

#[test]
fn nobody_there_is_told_with_the_remedy() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let client = HttpClient::new(&options()).expect("a client");
    let refused = client.ask(Request::new(Method::GET, format!("http://{free}").parse().expect("a URL"), None));
    let refused = refused.expect_err("nobody there");
    assert_eq!(refused.kind, FailureKind::Connect);
    assert!(refused.text.contains("Connection refused") && refused.text.contains("that the server runs"), "{refused}");
    let unknown = Request::new(Method::GET, "http://no-such-host.invalid".parse().expect("a URL"), None);
    let unknown = client.ask(unknown).expect_err("no such host");
    assert!(matches!(unknown.kind, FailureKind::Resolve | FailureKind::Connect), "{unknown}");
}

#[test]
fn secrets_are_read_for_each_request() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("secret");
    let basic = Auth::Basic { username: "agent".to_owned(), password_file: file.clone() };
    let missing = basic.header().expect_err("no file");
    assert_eq!(missing.kind, FailureKind::Credentials);
    let begin = format!("auth.basic.password_file {}: No such file", file.display());
    assert!(missing.text.starts_with(&begin) && missing.text.contains("see that its Secret is mounted"), "{missing}");
    fs::write(&file, "pass\n").expect("writes");
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let (_, asked) = ask(Some(ok), "http", Some(&basic));
    assert!(asked.contains("authorization: Basic YWdlbnQ6cGFzcw=="), "{asked}");
    fs::write(&file, "key").expect("writes");
    assert_eq!(Auth::ApiKey { key_file: file.clone() }.header().expect("a key"), "ApiKey key");
    assert_eq!(Auth::Bearer { token_file: file }.header().expect("a token"), "Bearer key");
}

#[test]
fn files_of_tls_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("ca.pem");
    fs::write(&file, "no certificate").expect("writes");
    for (ca_file, part) in
        [(file, "there is no certificate in PEM; write it anew"), (directory.path().join("none"), "No such file")]
    {
        let tls = Tls { ca_file: Some(ca_file.clone()), ..Tls::default() };
        let error = HttpClient::new(&Options { tls: Some(&tls), ..options() }).expect_err("not usable").to_string();
        assert!(error.contains("tls.ca_file") && error.contains(&*ca_file.to_string_lossy()), "{error}");
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn urls_that_make_no_sense_are_told() {
    let auth = Auth::Bearer { token_file: "/run/secrets/token".into() };
    for (url, part) in [
        ("logs:9200", "http://host:port"),
        ("/logs", "is no URL"),
        ("https://agent:pass@logs", "use `auth`"),
        ("http://logs:9200", "in clear text to http://logs:9200"),
    ] {
        let problem = url_problem("urls", url, Some(&auth)).expect(url).problem;
        assert!(problem.contains(part), "{problem}");
    }
    assert_eq!(url_problem("urls", "http://logs:9200", None), None);
    assert_eq!(url_problem("urls", "http://[::1]:9200", Some(&auth)), None);
    assert_eq!(url_problem("urls", "https://logs:9200/prefix", Some(&auth)), None);
}
