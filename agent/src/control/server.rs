//! Answers clients of the control socket.

use std::{collections::VecDeque, convert::Infallible, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    explain::ExplainRequest,
    filter::Matcher,
    judgement::JudgeRequest,
    protocol::{Ask, Frame, LogsRequest, REQUEST_BYTES, Request, VERSION},
    socket::Listener,
    status::StatusReport,
    tap::Tap,
};
use crate::{record::Batch, sinks::json::Encoder, telemetry::Observe};

#[cfg(test)]
pub(super) mod tests;

/// Clients of the tap at a time: each may hold a queue for as long as it likes.
const LOGS_CLIENTS: usize = 16;

/// Connections at a time. Those beyond the clients of the tap end within [`TIMEOUT`], so `sidestep status` gets its turn.
const CLIENTS: usize = 2 * LOGS_CLIENTS;

/// Time for a client to send its request, and to take an answer that is not a stream.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Frames are written in pieces of about this size.
const WRITE_BYTES: usize = 64 * 1024;

/// Serves clients until the future is dropped, which closes every connection and removes the socket file.
pub async fn serve(listener: Listener, observe: Arc<dyn Observe>, tap: Arc<Tap>) -> Infallible {
    let mut clients = JoinSet::new();
    let agent = Arc::new(Agent { observe, tap, logs_clients: Semaphore::new(LOGS_CLIENTS) });
    loop {
        while clients.try_join_next().is_some() {}
        if clients.len() >= CLIENTS {
            clients.join_next().await;
            continue;
        }
        match listener.listener.accept().await {
            Ok((stream, _)) => {
                clients.spawn(serve_client(stream, Arc::clone(&agent)));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the control socket could not be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What clients ask about.
struct Agent {
    observe: Arc<dyn Observe>,
    tap: Arc<Tap>,
    logs_clients: Semaphore,
}

async fn serve_client(stream: UnixStream, agent: Arc<Agent>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let result = match timeout(TIMEOUT, read_request(&mut reader)).await {
        Ok(Ok(request)) => answer(request, &mut reader, &mut writer, &agent).await,
        Ok(Err(message)) => send(&mut writer, &[Frame::Error { message }]).await,
        Err(_too_slow) => return,
    };
    // A client that goes away in the middle is normal: `sidestep logs -f` ends so.
    if let Err(error) = result {
        tracing::debug!(%error, "a client of the control socket went away");
    }
}

/// Reads one request, or says what is wrong with it.
async fn read_request(reader: &mut BufReader<OwnedReadHalf>) -> Result<Request, String> {
    let mut line = Vec::new();
    let read = reader.take(REQUEST_BYTES).read_until(b'\n', &mut line).await;
    read.map_err(|error| format!("the request could not be read: {error}"))?;
    if !line.ends_with(b"\n") {
        return Err(format!("the request is not one line of at most {REQUEST_BYTES} bytes"));
    }
    // The version comes first: a request of another version may look different everywhere else.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } =
        serde_json::from_slice(&line).map_err(|error| format!("the request has no version: {error}"))?;
    if version != VERSION {
        return Err(format!(
            "the client speaks version {version} of the protocol and the running agent {VERSION}; use the agent's own binary"
        ));
    }
    serde_json::from_slice(&line).map_err(|error| format!("the request is malformed: {error}"))
}

async fn answer(
    request: Request,
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    agent: &Agent,
) -> io::Result<()> {
    match request.ask {
        Ask::Status => {
            let report =
                Box::new(StatusReport::of(&agent.observe.snapshot(), agent.observe.streams(), agent.observe.roots()));
            send(writer, &[Frame::Status(report), Frame::End {}]).await
        }
        Ask::Explain(request) => {
            let frame = match agent.observe.explain(&request) {
                Ok(report) => Frame::Explain(Box::new(report)),
                Err(message) => Frame::Error { message: agent.observe.whereabouts(&request).await.unwrap_or(message) },
            };
            send(writer, &[frame, Frame::End {}]).await
        }
        Ask::Governance => {
            let report = Box::new(agent.observe.governance());
            send(writer, &[Frame::Governance(report), Frame::End {}]).await
        }
        Ask::Judge(request) => {
            // Of a Pod that is not here nothing is known, which is not that nothing is said.
            let JudgeRequest { namespace, pod, .. } = &request;
            let pod = ExplainRequest { namespace: namespace.clone(), pod: pod.clone(), container: None };
            let frame = match agent.observe.explain(&pod) {
                Ok(_) => Frame::Judgement(Box::new(agent.observe.judge(&request))),
                Err(message) => Frame::Error { message: agent.observe.whereabouts(&pod).await.unwrap_or(message) },
            };
            send(writer, &[frame, Frame::End {}]).await
        }
        Ask::PolicySources => {
            send(writer, &[Frame::PolicySources(agent.observe.policy_sources()), Frame::End {}]).await
        }
        Ask::ReadPolicies => {
            let frame = match agent.observe.read_policies().await {
                Ok(version) => Frame::PoliciesRead { version },
                Err(message) => Frame::Error { message },
            };
            send(writer, &[frame, Frame::End {}]).await
        }
        Ask::Refusals => {
            let report = Box::new(agent.observe.refusals());
            send(writer, &[Frame::Refusals(report), Frame::End {}]).await
        }
        Ask::Logs(logs) => {
            let Ok(_permit) = agent.logs_clients.try_acquire() else {
                let message = format!("{LOGS_CLIENTS} clients read the logs already; end one of them");
                return send(writer, &[Frame::Error { message }]).await;
            };
            match Matcher::new(&logs.filter) {
                Ok(matcher) => stream_logs(&logs, Arc::new(matcher), reader, writer, &agent.tap).await,
                Err(error) => send(writer, &[Frame::Error { message: error.to_string() }]).await,
            }
        }
    }
}

async fn stream_logs(
    logs: &LogsRequest,
    matcher: Arc<Matcher>,
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    tap: &Arc<Tap>,
) -> io::Result<()> {
    let mut records = Records { since: logs.since_unix_nano.unwrap_or(0), matcher, encoder: Encoder::default() };
    if !logs.follow {
        let history = tap.history(&records.matcher);
        records.send(history, writer).await?;
        return send(writer, &[Frame::End {}]).await;
    }
    let (history, subscription) = tap.follow(Arc::clone(&records.matcher));
    if logs.since_unix_nano.is_some() {
        records.send(history, writer).await?;
    } else {
        drop(history);
    }
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            taken = subscription.next() => {
                records.send(taken.batches, writer).await?;
                if taken.lost_lines > 0 {
                    // Without a time limit: a client that reads slowly is told, not cut off.
                    let mut out = Vec::new();
                    Frame::Lost { lines: taken.lost_lines }.append(&mut out);
                    writer.write_all(&out).await?;
                }
            }
            // The client has nothing more to say; reading shows when it is gone.
            read = reader.read(&mut ignored) => if read? == 0 { return Ok(()) },
        }
    }
}

/// Renders the lines that one client wants.
struct Records {
    since: u64,
    matcher: Arc<Matcher>,
    encoder: Encoder,
}

impl Records {
    async fn send(&mut self, batches: VecDeque<Arc<Batch>>, writer: &mut OwnedWriteHalf) -> io::Result<()> {
        let mut out = Vec::new();
        for batch in batches {
            for line in &batch.lines {
                if line.observed_time_unix_nano < self.since || !self.matcher.matches_body(batch.body(line)) {
                    continue;
                }
                // The record is JSON already; parsing it to put it into a `Frame` would only cost time.
                out.extend_from_slice(b"{\"record\":");
                self.encoder.append_line(&batch, line, &mut out);
                out.extend_from_slice(b"}\n");
                if out.len() >= WRITE_BYTES {
                    writer.write_all(&out).await?;
                    out.clear();
                }
            }
        }
        writer.write_all(&out).await
    }
}

async fn send(writer: &mut OwnedWriteHalf, frames: &[Frame<'_>]) -> io::Result<()> {
    let mut out = Vec::new();
    for frame in frames {
        frame.append(&mut out);
    }
    match timeout(TIMEOUT, writer.write_all(&out)).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
