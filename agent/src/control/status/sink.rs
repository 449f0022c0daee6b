//! What is shown of a sink.

use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::unix_seconds;
use crate::{ledger::Reason, sinks::receipt::Amount, telemetry::snapshot::SinkReading};

/// One sink.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SinkStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Batches in its queue.
    pub queued_batches: u64,
    /// Bytes in its queue.
    pub queued_bytes: u64,
    /// How long ago the oldest record was written that it was given and has not settled; 0 when there is none. This and
    /// the figures up to the rates are 0 from an agent that is older than they are here.
    #[serde(default)]
    pub lag_seconds: f64,
    /// Records that it was given and has not settled: in its queue, on their way, in its buffer on disk.
    #[serde(default)]
    pub behind_records: u64,
    /// Bytes in these; what is on disk only counts as it is there.
    #[serde(default)]
    pub behind_bytes: u64,
    /// All that it was given and that was written before this is acknowledged or given up, in seconds since the Unix
    /// epoch; none before it was given anything.
    #[serde(default)]
    pub acknowledged_up_to_unix_seconds: Option<f64>,
    /// Records acknowledged a second, in the last ten.
    #[serde(default)]
    pub records_per_second: f64,
    /// Bytes acknowledged a second, in the last ten.
    #[serde(default)]
    pub bytes_per_second: f64,
    /// Records acknowledged.
    pub delivered_records: u64,
    /// Bytes acknowledged.
    pub delivered_bytes: u64,
    /// What it has given up, by reason.
    #[serde(default)]
    pub dropped: Vec<SinkDroppedStatus>,
    /// Errors so far.
    pub errors: u64,
    /// The last error.
    pub last_error: Option<String>,
    /// When that was, in seconds since the Unix epoch.
    #[serde(default)]
    pub last_error_unix_seconds: Option<u64>,
    /// The last write without an error, in seconds since the Unix epoch.
    pub last_success_unix_seconds: Option<u64>,
    /// For how long every attempt has failed.
    pub failing_seconds: Option<u64>,
    /// The buffer on disk, where there is one.
    #[serde(default)]
    pub buffer: Option<BufferStatus>,
}

/// What a sink has given up for one reason.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SinkDroppedStatus {
    /// Why.
    pub reason: String,
    /// How many records.
    pub records: u64,
    /// Bytes of the streams in these.
    pub bytes: u64,
}

/// A sink's buffer on disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BufferStatus {
    /// Bytes on disk.
    pub bytes: u64,
    /// The most bytes on disk.
    pub capacity_bytes: u64,
    /// Records on disk that are not acknowledged.
    pub records: u64,
    /// Age of its oldest file; `None` while it is empty.
    pub oldest_seconds: Option<u64>,
    /// Places that could not be read.
    pub damaged: u64,
    /// Bytes of log files that are left there until the buffer has room for them.
    pub in_files: u64,
}

impl SinkDroppedStatus {
    fn of(reason: Reason, amount: Amount) -> Self {
        Self { reason: reason.as_str().to_owned(), records: amount.lines, bytes: amount.span }
    }
}

impl SinkStatus {
    pub(super) fn of(sink: &SinkReading) -> Self {
        Self {
            name: sink.name.as_ref().to_owned(),
            kind: sink.kind.to_owned(),
            queued_batches: sink.queued_batches,
            queued_bytes: sink.queued_bytes,
            lag_seconds: sink.lag.as_secs_f64(),
            behind_records: sink.behind_records,
            behind_bytes: sink.behind_bytes,
            acknowledged_up_to_unix_seconds: sink
                .acknowledged_up_to
                .map(|time| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()),
            records_per_second: sink.rate.records,
            bytes_per_second: sink.rate.bytes,
            delivered_records: sink.delivered_records,
            delivered_bytes: sink.delivered_bytes,
            dropped: sink.dropped.iter().map(|(reason, amount)| SinkDroppedStatus::of(*reason, *amount)).collect(),
            errors: sink.errors,
            last_error: sink.last_error.clone(),
            last_error_unix_seconds: sink.last_error_at.map(unix_seconds),
            last_success_unix_seconds: sink.last_success.map(unix_seconds),
            failing_seconds: sink.failing_for.map(|failing| failing.as_secs()),
            buffer: sink.buffer.map(|buffer| BufferStatus {
                bytes: buffer.bytes,
                capacity_bytes: buffer.capacity_bytes,
                records: buffer.records,
                oldest_seconds: buffer.oldest.map(|oldest| oldest.as_secs()),
                damaged: buffer.damaged,
                in_files: buffer.in_files,
            }),
        }
    }
}
