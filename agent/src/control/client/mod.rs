//! The other end of the socket: what `sidestep logs`, `sidestep status` and `sidestep explain` do.

pub mod apply;
pub mod explain;
pub mod governance;
pub mod judgement;
pub mod logs;
pub mod since;
pub mod status;
mod table;
pub mod terminal;
pub mod top;

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use super::{
    filter::FilterError,
    protocol::{Ask, Frame, Request, VERSION},
};
use crate::config::policy_directory::DirectoryError;

/// A command that talks to the agent cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no agent answers on {0}: start it with `sidestep run`, or name the socket that it uses with `--socket PATH` or \
         SIDESTEP_SOCKET, or its configuration with `--config FILE` or SIDESTEP_CONFIG"
    )]
    NotRunning(PathBuf),
    /// The socket is for root.
    #[error("not allowed to use {0}: run this command as root, for example with sudo")]
    PermissionDenied(PathBuf),
    /// Connecting failed otherwise.
    #[error("cannot connect to the agent on {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// What the user asked for is not valid.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The agent refuses the request.
    #[error("the agent answers: {0}")]
    Refused(String),
    /// Policies can't be put where the agent reads them, or taken away.
    #[error(transparent)]
    Policies(#[from] DirectoryError),
    /// Policies are the API server's.
    #[error(
        "the agent has its policies from the API server: use `kubectl apply -f FILE` and `kubectl delete`; for policies of this node \
         alone name a directory in `policies.files` of its configuration, and restart it"
    )]
    OfApiServer,
    /// What policies say does not hold.
    #[error("not all of it is in force: {0}")]
    NotInForce(String),
    /// The agent went away in the middle.
    #[error("the agent has closed the connection; see its own log, and whether it still runs")]
    Closed,
    /// The agent says something that this version does not know.
    #[error("the agent's answer cannot be read ({0}): use the binary that the agent runs from")]
    Malformed(#[from] serde_json::Error),
    /// Reading the answer failed.
    #[error("cannot read from the agent: {0}")]
    Read(#[source] io::Error),
    /// Writing the output failed.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
}

impl ClientError {
    /// The exit code of the command: 2 for what the user asked, 3 when no agent runs, 4 without permission, else 1.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Filter(_) => 2,
            Self::NotRunning(_) => 3,
            Self::PermissionDenied(_) => 4,
            _ => 1,
        }
    }
}

/// A connection with one request sent.
struct Connection {
    reader: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Connection {
    fn ask(socket: &Path, ask: Ask) -> Result<Self, ClientError> {
        let mut stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(socket.to_owned()),
            io::ErrorKind::PermissionDenied => ClientError::PermissionDenied(socket.to_owned()),
            _ => ClientError::Connect { path: socket.to_owned(), source },
        })?;
        let mut request = serde_json::to_vec(&Request { version: VERSION, ask })?;
        request.push(b'\n');
        stream.write_all(&request).map_err(ClientError::Read)?;
        Ok(Self { reader: BufReader::with_capacity(64 * 1024, stream), line: Vec::new() })
    }

    /// The next frame; a refusal and a lost connection are errors.
    fn next(&mut self) -> Result<Frame<'_>, ClientError> {
        self.line.clear();
        let read = self.reader.read_until(b'\n', &mut self.line);
        match read {
            Ok(0) => return Err(ClientError::Closed),
            Ok(_) if !self.line.ends_with(b"\n") => return Err(ClientError::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ClientError::Closed),
            Err(error) => return Err(ClientError::Read(error)),
        }
        match serde_json::from_slice(&self.line)? {
            Frame::Error { message } => Err(ClientError::Refused(message)),
            frame => Ok(frame),
        }
    }

    /// Whether the next frame may have to be waited for.
    fn is_drained(&self) -> bool {
        !self.reader.buffer().contains(&b'\n')
    }
}

/// The one frame of an answer.
fn fetch<T>(socket: &Path, ask: Ask, take: impl Fn(Frame<'_>) -> Option<T>) -> Result<T, ClientError> {
    let mut connection = Connection::ask(socket, ask)?;
    loop {
        match connection.next()? {
            Frame::End {} => return Err(ClientError::Closed),
            frame => {
                if let Some(answer) = take(frame) {
                    return Ok(answer);
                }
            }
        }
    }
}

/// Writes at once what there is.
fn write_out(out: &mut dyn Write, bytes: &[u8]) -> Result<(), ClientError> {
    out.write_all(bytes).and_then(|()| out.flush()).map_err(ClientError::Output)
}

/// Ends quietly when whoever reads the output has had enough, as `| head` does.
fn quiet_on_broken_pipe(result: Result<(), ClientError>) -> Result<(), ClientError> {
    match result {
        Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
