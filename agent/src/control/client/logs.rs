//! `sidestep logs`: lines of the running agent, past and live.

use std::{
    io::Write,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, value::RawValue};

use super::{
    ClientError, Connection, quiet_on_broken_pipe,
    status::fetch,
    terminal::{Screen, append_escaped, append_json, escaped_word},
    write_out,
};
use crate::{
    control::{
        filter::{Filter, Matcher},
        protocol::{Ask, Frame, LogsRequest},
    },
    sinks::json::exact_body,
};

/// Output is written in pieces of about this size while there is more to read.
const WRITE_BYTES: usize = 64 * 1024;

/// What `sidestep logs` is asked for.
#[derive(Clone, Debug, Default)]
pub struct LogsOptions {
    /// Go on with new lines until interrupted.
    pub follow: bool,
    /// Start with the lines of the agent's recent history from this time on. `None` is the whole history, or with
    /// `follow` none of it. See [`super::since::parse`].
    pub since: Option<SystemTime>,
    /// Which lines.
    pub filter: Filter,
    /// In which form.
    pub output: LogsOutput,
}

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogsOutput {
    /// Time, who wrote, and the line with control characters escaped.
    #[default]
    Pretty,
    /// One record a line, in the form of the sinks that write JSON.
    Json,
    /// The line's bytes alone; exact, unless they go to a terminal, where control characters are escaped.
    Raw,
}

/// Prints lines until the history is over, or with `follow` until the agent ends. Notices of lost lines, and why there can
/// be none, go to `notices`.
///
/// # Errors
/// The agent does not run or refuses, or the output cannot be written (a closed pipe is not an error).
pub fn logs(
    socket: &Path,
    options: &LogsOptions,
    screen: Screen,
    out: &mut dyn Write,
    notices: &mut dyn Write,
) -> Result<(), ClientError> {
    quiet_on_broken_pipe(print(socket, options, screen, out, notices))
}

fn print(
    socket: &Path,
    options: &LogsOptions,
    screen: Screen,
    out: &mut dyn Write,
    notices: &mut dyn Write,
) -> Result<(), ClientError> {
    // The agent would refuse a bad filter too, but this error is the user's and not the agent's.
    Matcher::new(&options.filter)?;
    let since_unix_nano = options.since.map(|since| {
        let nanos = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    });
    let request = LogsRequest { follow: options.follow, since_unix_nano, filter: options.filter.clone() };
    let mut connection = Connection::ask(socket, Ask::Logs(request))?;
    let mut buffer = Vec::with_capacity(WRITE_BYTES * 2);
    let mut is_empty = true;
    if options.follow {
        tell_of_absent_roots(socket, notices)?;
    }
    loop {
        if buffer.len() >= WRITE_BYTES || (!buffer.is_empty() && connection.is_drained()) {
            write_out(out, &buffer)?;
            buffer.clear();
        }
        match connection.next() {
            Ok(Frame::Record(record)) => {
                is_empty = false;
                append(record, options.output, screen, &mut buffer)?;
            }
            Ok(Frame::Lost { lines }) => {
                // The notice comes after the lines before it, also when both go to one terminal.
                write_out(out, &buffer)?;
                buffer.clear();
                let notice = format!("sidestep: {lines} lines lost here, because this client reads too slowly\n");
                notices.write_all(notice.as_bytes()).map_err(ClientError::Output)?;
            }
            Ok(Frame::End {}) => {
                write_out(out, &buffer)?;
                return if is_empty && !options.follow { tell_of_absent_roots(socket, notices) } else { Ok(()) };
            }
            Ok(_) => {}
            Err(error) => {
                write_out(out, &buffer)?;
                return Err(error);
            }
        }
    }
}

/// Says so when no Pod is captured: silence would look as if none had written.
fn tell_of_absent_roots(socket: &Path, notices: &mut dyn Write) -> Result<(), ClientError> {
    // What was asked for is the lines: an agent that ends meanwhile, or is older than roots are, has none to tell of.
    let roots = fetch(socket).map(|report| report.roots).unwrap_or_default();
    if roots.is_empty() || roots.iter().any(|root| root.present) {
        return Ok(());
    }
    let names: Vec<_> = roots.iter().map(|root| escaped_word(&root.path)).collect();
    let names = names.join(", ");
    let notice = format!(
        "sidestep: no container is captured, as none of the cgroups {names} is there (`capture.cgroup_roots`); see `sidestep doctor`\n"
    );
    notices.write_all(notice.as_bytes()).map_err(ClientError::Output)
}

fn append(record: &RawValue, output: LogsOutput, screen: Screen, out: &mut Vec<u8>) -> Result<(), ClientError> {
    if output == LogsOutput::Json {
        append_json(record.get(), screen, out);
        out.push(b'\n');
        return Ok(());
    }
    let record: Value = serde_json::from_str(record.get())?;
    let body = exact_body(&record).unwrap_or_default();
    match output {
        LogsOutput::Raw if !screen.terminal => out.extend_from_slice(&body),
        LogsOutput::Raw => append_escaped(&body, out),
        LogsOutput::Pretty | LogsOutput::Json => append_pretty(&record, &body, screen, out),
    }
    out.push(b'\n');
    Ok(())
}

/// `TIME NAMESPACE/POD/CONTAINER ORIGIN [SEVERITY] BODY`
fn append_pretty(record: &Value, body: &[u8], screen: Screen, out: &mut Vec<u8>) {
    let text = |object: &str, field: &str| record.get(object)?.get(field)?.as_str();
    let time = record.get("timestamp").and_then(Value::as_str).unwrap_or("-");
    screen.paint(out, "2", time);
    out.push(b' ');

    let who = ["k8s.namespace.name", "k8s.pod.name", "container.name"].map(|field| text("resource", field));
    let mut who: Vec<String> = who.into_iter().flatten().map(escaped_word).collect();
    if who.is_empty() {
        let short = |id: &str| escaped_word(&id.chars().take(12).collect::<String>());
        // The path of its cgroup is the only name of a container that no runtime knows.
        let other = text("resource", "container.id").map(short);
        let other = other.or_else(|| text("resource", "process.linux.cgroup").map(escaped_word));
        let is_node = record.get("class").and_then(Value::as_str) == Some("server");
        who.push(other.unwrap_or_else(|| if is_node { "node" } else { "-" }.to_owned()));
    }
    let who = who.join("/");
    screen.paint(out, color_of(&who), &who);
    out.push(b' ');

    let origin = text("attributes", "log.iostream").or_else(|| text("attributes", "log.file.path"));
    let origin = origin.or_else(|| record.get("class").and_then(Value::as_str)).unwrap_or("-");
    screen.paint(out, if origin == "stderr" { "31" } else { "2" }, &escaped_word(origin));
    out.push(b' ');

    if let Some(severity) = record.get("severity_text").and_then(Value::as_str) {
        let style = match severity {
            "ERROR" | "FATAL" => "1;31",
            "WARN" => "33",
            "INFO" => "32",
            _ => "2",
        };
        screen.paint(out, style, &format!("{:<5}", escaped_word(severity)));
        out.push(b' ');
    }
    append_escaped(body, out);
}

/// The same colour for the same container, without a memory of containers.
fn color_of(who: &str) -> &'static str {
    const COLORS: [&str; 6] = ["36", "35", "34", "32", "33", "96"];
    let sum = who.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
    COLORS[sum % COLORS.len()]
}
