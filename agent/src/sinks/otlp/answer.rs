//! What a server of OTLP/HTTP answers.

use prost::Message as _;

/// What is wrong with some records of a request that was taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PartialSuccess {
    /// How many records the server has refused; it does not say which.
    pub rejected: u64,
    /// Why; not empty with no record refused is a warning.
    pub message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExportLogsServiceResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<ExportLogsPartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExportLogsPartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_log_records: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// `google.rpc.Status`, the body of an error.
#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// The same in JSON, with the integer as text, as protobuf's JSON has it, or as a number.
fn from_json(body: &[u8]) -> Option<PartialSuccess> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let partial = answer.get("partialSuccess").or_else(|| answer.get("partial_success"))?;
    let rejected = partial.get("rejectedLogRecords").or_else(|| partial.get("rejected_log_records"));
    let rejected = rejected.and_then(|count| count.as_u64().or_else(|| count.as_str()?.parse().ok())).unwrap_or(0);
    let message = partial.get("errorMessage").or_else(|| partial.get("error_message"));
    let message = message.and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    Some(PartialSuccess { rejected, message })
}

/// What a server has to say of a request that it has taken, if anything. An answer that is no message of OTLP says
/// nothing: the status alone counts then.
#[must_use]
pub fn partial_success(is_json: bool, body: &[u8]) -> Option<PartialSuccess> {
    let partial = if is_json {
        from_json(body)?
    } else {
        let partial = ExportLogsServiceResponse::decode(body).ok()?.partial_success?;
        let rejected = partial.rejected_log_records.try_into().unwrap_or(0);
        PartialSuccess { rejected, message: partial.error_message }
    };
    (partial.rejected > 0 || !partial.message.is_empty()).then_some(partial)
}

/// The message in the body of an error, when it is a `google.rpc.Status` in protobuf.
#[must_use]
pub fn status_message(body: &[u8]) -> Option<String> {
    Status::decode(body).ok().map(|status| status.message).filter(|message| !message.is_empty())
}
