//! What goes over the socket: one JSON object a line. The client sends one [`Request`]; the agent answers with
//! [`Frame`]s and closes.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    explain::{ExplainReport, ExplainRequest},
    filter::Filter,
    governance::{GovernanceReport, PolicySources, RefusalsReport},
    judgement::{JudgeRequest, Judgement},
    status::StatusReport,
};

/// Version of the protocol. Client and agent come from one binary, so they differ only while the agent that runs is
/// older or newer than the file on disk.
pub const VERSION: u32 = 1;

/// The longest request, in bytes.
pub const REQUEST_BYTES: u64 = 64 * 1024;

/// What a client asks for.
#[derive(Debug, Deserialize, Serialize)]
pub struct Request {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What is asked for.
    pub ask: Ask,
}

/// What is asked for.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// One [`Frame::Status`].
    Status,
    /// A [`Frame::Record`] for each line that matches.
    Logs(LogsRequest),
    /// One [`Frame::Explain`].
    Explain(ExplainRequest),
    /// One [`Frame::Governance`].
    Governance,
    /// One [`Frame::Refusals`].
    Refusals,
    /// One [`Frame::Judgement`].
    Judge(JudgeRequest),
    /// One [`Frame::PolicySources`].
    PolicySources,
    /// Reads the policies of files again; one [`Frame::PoliciesRead`].
    ReadPolicies,
}

/// Which lines, and for how long.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct LogsRequest {
    /// Go on with new lines instead of ending after the history.
    pub follow: bool,
    /// Lines of the history that the kernel saw at this time or later (nanoseconds since the Unix epoch). `None` is the
    /// whole history, or with `follow` none of it.
    pub since_unix_nano: Option<u64>,
    /// Which lines.
    pub filter: Filter,
}

/// What the agent answers.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame<'a> {
    /// One line's record, as the sinks that write JSON render it.
    #[serde(borrow)]
    Record(&'a RawValue),
    /// Lines of matching streams that this client lost because it read too slowly.
    Lost {
        /// How many.
        lines: u64,
    },
    /// The answer to [`Ask::Status`].
    Status(Box<StatusReport>),
    /// The answer to [`Ask::Explain`].
    Explain(Box<ExplainReport>),
    /// The answer to [`Ask::Governance`].
    Governance(Box<GovernanceReport>),
    /// The answer to [`Ask::Refusals`].
    Refusals(Box<RefusalsReport>),
    /// The answer to [`Ask::Judge`].
    Judgement(Box<Judgement>),
    /// The answer to [`Ask::PolicySources`].
    PolicySources(PolicySources),
    /// The answer to [`Ask::ReadPolicies`]: they were read, and are in force when [`GovernanceReport::files_version`] is this.
    PoliciesRead {
        /// Raised with each reading.
        version: u64,
    },
    /// The request cannot be answered.
    Error {
        /// Why, in one line.
        message: String,
    },
    /// Nothing more follows.
    End {},
}

impl Frame<'_> {
    /// Appends the frame as one line.
    pub(super) fn append(&self, out: &mut Vec<u8>) {
        // Writing to memory cannot fail, and every part of a frame has a JSON form.
        let written = serde_json::to_writer(&mut *out, self);
        debug_assert!(written.is_ok(), "{written:?}");
        out.push(b'\n');
    }
}
