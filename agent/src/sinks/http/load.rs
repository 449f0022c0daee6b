//! What one request carries: lines, and the body that they make.

use std::io::Write as _;

use bytes::Bytes;

use super::config::{Compression, Encoding};
use crate::{
    ledger::Reason,
    sinks::{
        json,
        otlp::{self, Fit},
        receipt::LineReceipt,
    },
};

/// Level of both compressions: the lowest, since it is paid on the node.
const LEVEL: u8 = 1;

/// The lines of a request, ready to be sent.
#[derive(Debug)]
pub(super) struct Load {
    /// Number of the first line among all that the sink has taken: requests are sent in this order.
    pub(super) first: u64,
    pub(super) lines: Vec<LineReceipt>,
    /// The body; sent again without being made again.
    pub(super) body: Bytes,
    pub(super) is_compressed: bool,
    /// It is a part of one that was refused.
    pub(super) was_refused: bool,
    /// It was held as the server seemed to be at fault that refused it.
    pub(super) was_held: bool,
}

impl Load {
    /// All lines are acknowledged, but for so many of unknown place.
    pub(super) fn settle(self, rejected: u64) {
        for (line, index) in self.lines.into_iter().zip(0..) {
            // The server does not say which lines it has refused. They are taken for the first ones, so that the number is
            // right, and the bytes are about right.
            if index < rejected { line.give_up(Reason::Rejected) } else { line.deliver() }
        }
    }

    /// Bytes of its lines.
    pub(super) fn bytes(&self) -> usize {
        self.lines.iter().map(|line| line.line().body.len()).sum()
    }

    /// All lines are given up.
    pub(super) fn give_up(self, reason: Reason) {
        self.lines.into_iter().for_each(|line| line.give_up(reason));
    }
}

/// Makes bodies of lines.
#[derive(Debug)]
pub(super) struct Filler {
    encoding: Encoding,
    compression: Compression,
    max_bytes: usize,
    body: Body,
    lines: Vec<LineReceipt>,
    /// Number of the next line.
    next: u64,
}

/// A body that is being filled.
#[derive(Debug)]
enum Body {
    Ndjson(json::Encoder, Vec<u8>),
    OtlpProto(otlp::Encoder, otlp::Request),
}

impl Filler {
    pub(super) fn new(encoding: Encoding, compression: Compression, max_bytes: usize) -> Self {
        let body = match encoding {
            Encoding::Ndjson => Body::Ndjson(json::Encoder::default(), Vec::new()),
            Encoding::OtlpProto => Body::OtlpProto(otlp::Encoder::default(), otlp::Request::default()),
        };
        Self { encoding, compression, max_bytes, body, lines: Vec::new(), next: 0 }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Adds a line if it has room; gives it back if it has none.
    pub(super) fn add(&mut self, receipt: LineReceipt) -> Result<(), (Fit, LineReceipt)> {
        let (batch, line) = (receipt.batch(), receipt.line());
        let fit = match &mut self.body {
            Body::Ndjson(encoder, body) => {
                let before = body.len();
                encoder.append_line(batch, line, body);
                body.push(b'\n');
                let fit = match body.len() {
                    after if after <= self.max_bytes => Fit::In,
                    after if after - before > self.max_bytes => Fit::TooLarge,
                    _ => Fit::Full,
                };
                if fit != Fit::In {
                    body.truncate(before);
                }
                fit
            }
            Body::OtlpProto(encoder, request) => request.add(encoder, batch, line, self.max_bytes),
        };
        if fit != Fit::In {
            return Err((fit, receipt));
        }
        self.lines.push(receipt);
        self.next += 1;
        Ok(())
    }

    /// Makes a request of the lines that were added; none if there are none.
    pub(super) fn finish(&mut self) -> Option<Load> {
        let first = self.next - self.lines.len() as u64;
        (!self.lines.is_empty()).then(|| self.finish_as(first))
    }

    fn finish_as(&mut self, first: u64) -> Load {
        let body = match &mut self.body {
            Body::Ndjson(_, body) => std::mem::take(body),
            Body::OtlpProto(_, request) => request.finish(),
        };
        let lines = std::mem::take(&mut self.lines);
        let (body, is_compressed) = match compress(self.compression, &body) {
            Some(body) => (body, true),
            None => (body, false),
        };
        Load { first, lines, body: body.into(), is_compressed, was_refused: false, was_held: false }
    }

    /// Makes two requests of the lines of one.
    pub(super) fn halves(&self, load: Load) -> [Load; 2] {
        // A part of what had room has room.
        let mut filler = Self::new(self.encoding, self.compression, usize::MAX);
        let mut front = load.lines;
        let middle = front.len().div_ceil(2);
        let back = front.split_off(middle);
        let mut half = |lines: Vec<LineReceipt>, first| {
            for line in lines {
                if let Err((_, line)) = filler.add(line) {
                    line.give_up(Reason::Oversize);
                }
            }
            Load { was_refused: true, ..filler.finish_as(first) }
        };
        [half(front, load.first), half(back, load.first + middle as u64)]
    }

    /// Takes out the lines that no request was made of.
    pub(super) fn take_lines(&mut self) -> Vec<LineReceipt> {
        std::mem::take(&mut self.lines)
    }
}

/// Compresses a body; none if it stays as it is.
fn compress(compression: Compression, body: &[u8]) -> Option<Vec<u8>> {
    // Neither fails as long as there is memory; a body as it is does no harm.
    match compression {
        Compression::None => None,
        Compression::Zstd => zstd::bulk::compress(body, LEVEL.into()).ok(),
        Compression::Gzip => {
            let out = Vec::with_capacity(body.len() / 8 + 64);
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(LEVEL.into()));
            encoder.write_all(body).and_then(|()| encoder.finish()).ok()
        }
    }
}
