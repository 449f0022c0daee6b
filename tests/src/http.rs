//! The few HTTP requests that tests send to the agent's own endpoint.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::DEADLINE;

/// An answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// `GET path`.
///
/// # Errors
/// No connection, or something that isn't HTTP.
pub fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    ask(address, "GET", path, "", DEADLINE)
}

/// A request with a body of JSON; HTTP/1.0, so that the answer is never chunked and ends with the connection.
///
/// # Errors
/// No connection, or something that isn't HTTP.
pub fn ask(address: SocketAddr, method: &str, path: &str, body: &str, limit: Duration) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, limit).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    let length = body.len();
    let content = match length {
        0 => String::new(),
        _ => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n{content}\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).with_context(|| format!("reading {path} from {address}"))?;
    let text = String::from_utf8(text).with_context(|| format!("{path}: not UTF-8"))?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("{path}: no end of headers in {text:?}") };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer { status: status.with_context(|| format!("{path}: no status in {head:?}"))?, body: body.to_owned() })
}

/// A loopback port that was free a moment ago, and that nobody else of this process has been given: the kernel may choose one
/// once more before a server has it.
///
/// # Errors
/// No port is free.
pub fn free_port() -> Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return Ok(port);
        }
    }
}
