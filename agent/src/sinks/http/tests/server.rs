//! A server of HTTP/1.1 that does what a test says.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use super::requests;

/// What it does with a request.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Answer,
    /// The body and nothing else, and the end of the connection.
    Raw,
    Endless,
    Silent,
}

impl Reply {
    fn new(status: u16, kind: Kind) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), kind }
    }

    /// An answer without a body.
    pub(super) fn status(status: u16) -> Self {
        Self::new(status, Kind::Answer)
    }

    /// No HTTP, and the end of the connection.
    pub(super) fn raw(text: &str) -> Self {
        Self::new(0, Kind::Raw).body(text)
    }

    /// An answer that has no end.
    pub(super) fn endless() -> Self {
        Self::new(0, Kind::Endless)
    }

    /// No answer, for as long as the client has patience.
    pub(super) fn silent() -> Self {
        Self::new(0, Kind::Silent)
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn body(self, text: &str) -> Self {
        self.body_bytes(text.as_bytes())
    }

    pub(super) fn body_bytes(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    fn send(&self, connection: &mut TcpStream) -> std::io::Result<()> {
        match self.kind {
            Kind::Answer => {
                let mut head = format!("HTTP/1.1 {} Said\r\nContent-Length: {}\r\n", self.status, self.body.len());
                for (name, value) in &self.headers {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                connection.write_all(head.as_bytes())?;
                connection.write_all(b"\r\n")?;
                connection.write_all(&self.body)
            }
            Kind::Raw => {
                connection.write_all(&self.body)?;
                Err(std::io::ErrorKind::ConnectionAborted.into())
            }
            Kind::Endless => {
                connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
                loop {
                    connection.write_all(&[b' '; 4096])?;
                }
            }
            Kind::Silent => {
                // The client ends it.
                connection.read_to_end(&mut Vec::new())?;
                Err(std::io::ErrorKind::ConnectionAborted.into())
            }
        }
    }
}

/// A request, and what was answered.
#[derive(Clone, Debug)]
pub(super) struct Got {
    pub(super) status: u16,
    /// Bytes of the body as it came.
    pub(super) length: usize,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Got {
    /// A header by its name in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// The bodies of the records in it.
    pub(super) fn bodies(&self) -> Vec<String> {
        requests::bodies(self.header("content-type"), self.header("content-encoding"), &self.body)
    }
}

type Decide = dyn FnMut(&Got) -> Reply + Send;

struct State {
    decide: Box<Decide>,
    got: Vec<Got>,
}

/// A server; its threads end with their connections.
pub(super) struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Answers by the number of a request.
    pub(super) fn start(mut reply: impl FnMut(usize) -> Reply + Send + 'static) -> Self {
        let mut number = 0;
        Self::answering(move |_| {
            number += 1;
            reply(number - 1)
        })
    }

    /// Answers these, and then what it decides.
    pub(super) fn scripted(first: Vec<Reply>, decide: impl Fn(&Got) -> Reply + Send + 'static) -> Self {
        let mut first = VecDeque::from(first);
        Self::answering(move |got| first.pop_front().unwrap_or_else(|| decide(got)))
    }

    /// Answers by what is in a request.
    pub(super) fn answering(decide: impl FnMut(&Got) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(Mutex::new(State { decide: Box::new(decide), got: Vec::new() }));
        let weak = Arc::downgrade(&state);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (Some(state), Ok(connection)) = (weak.upgrade(), connection) else { return };
                thread::spawn(move || serve(connection, &state));
            }
        });
        Self { address, state }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/v1/logs", self.address)
    }

    /// All requests so far, in the order in which they were complete.
    pub(super) fn got(&self) -> Vec<Got> {
        self.state.lock().expect("not poisoned").got.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Lets the listener see that nobody is there any more.
        self.state = Arc::new(Mutex::new(State { decide: Box::new(|_| Reply::status(500)), got: Vec::new() }));
        drop(TcpStream::connect(self.address));
    }
}

/// Takes requests until the connection ends.
fn serve(mut connection: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(connection.try_clone().expect("a handle"));
    while let Some(mut got) = read(&mut reader) {
        let mut state = state.lock().expect("not poisoned");
        let reply = (state.decide)(&got);
        got.status = reply.status;
        state.got.push(got);
        drop(state);
        if reply.send(&mut connection).is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Got> {
    let mut headers = Vec::new();
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(0, |(_, value)| value.parse().expect("a length"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Got { status: 0, length, headers, body })
}
