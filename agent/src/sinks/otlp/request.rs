//! Many records as one `ExportLogsServiceRequest`.

use std::{collections::HashMap, sync::Arc};

use super::record::{Constant, Encoder};
use crate::record::{Batch, Line, Stream};

/// A request that is being filled: one `ResourceLogs` for each stream, in the order of the streams' first records.
#[derive(Debug, Default)]
pub struct Request {
    parts: Vec<Part>,
    /// Where the part of a stream is, by the stream's address.
    indices: HashMap<usize, usize>,
    /// Bytes of all parts.
    length: usize,
    /// One record, before it is known whether it has room.
    record: Vec<u8>,
}

/// Whether a record has room in a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fit {
    /// It is in.
    In,
    /// Not in this one any more.
    Full,
    /// Not in any.
    TooLarge,
}

/// The records of one stream.
#[derive(Debug)]
struct Part {
    constant: Arc<Constant>,
    records: Vec<u8>,
    /// The stream lives as long as the part: its address stays its own.
    _stream: Arc<Stream>,
}

impl Part {
    fn length(&self) -> usize {
        self.constant.resource_logs_len(self.records.len())
    }
}

impl Request {
    /// Adds a record after all others of its stream, if the request has no more than `limit` bytes then.
    pub fn add(&mut self, encoder: &mut Encoder, batch: &Batch, line: &Line, limit: usize) -> Fit {
        self.record.clear();
        let constant = encoder.append_record(batch, line, &mut self.record);
        let alone = constant.resource_logs_len(self.record.len());
        if alone > limit {
            return Fit::TooLarge;
        }
        let address = Arc::as_ptr(&batch.stream).addr();
        let part = self.indices.get(&address).and_then(|index| self.parts.get_mut(*index));
        let length = match &part {
            Some(part) => {
                self.length - part.length() + constant.resource_logs_len(part.records.len() + self.record.len())
            }
            None => self.length + alone,
        };
        if length > limit {
            return Fit::Full;
        }
        self.length = length;
        if let Some(part) = part {
            part.records.extend_from_slice(&self.record);
        } else {
            self.indices.insert(address, self.parts.len());
            self.parts.push(Part { constant, records: self.record.clone(), _stream: Arc::clone(&batch.stream) });
        }
        Fit::In
    }

    /// Bytes that [`Request::finish`] makes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no record in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The request in bytes; it begins anew, empty.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.length);
        for part in self.parts.drain(..) {
            part.constant.append_resource_logs(&part.records, &mut out);
        }
        self.indices.clear();
        self.length = 0;
        out
    }
}
