//! Writes to standard output, and stands a reader that goes away.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, ErrorKind, IsTerminal, Write},
};

use super::{
    config::{Color, Format, Settings},
    encode::{TextEncoder, append_json_for_terminal},
};
use crate::{
    ledger::Reason,
    sinks::{Delivery, Outcome, Sink, SinkError, json},
};

/// How much is written at a time.
const CHUNK: usize = 64 * 1024;

/// The console sink.
pub struct ConsoleSink {
    name: String,
    out: Box<dyn Write + Send>,
    encoder: Encoder,
    buffer: Vec<u8>,
    /// The deliveries whose bytes are in `buffer`, each with the length of `buffer` after it.
    buffered: VecDeque<(usize, Delivery)>,
    /// How much of `buffer` is written.
    written: usize,
    /// The reader is gone: nothing can be written any more, ever.
    closed: bool,
}

#[derive(Debug)]
enum Encoder {
    Text(TextEncoder),
    Json { encoder: json::Encoder, terminal: bool, scratch: Vec<u8> },
}

impl fmt::Debug for ConsoleSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleSink").field("name", &self.name).field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl ConsoleSink {
    /// Writes to standard output; with colours when that is a terminal and `NO_COLOR` does not forbid them.
    #[must_use]
    pub fn stdout(settings: &Settings) -> Self {
        let terminal = io::stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self::new(settings, Box::new(io::stdout()), terminal, no_color)
    }

    /// Writes to `out`, which is a terminal or not.
    #[must_use]
    pub fn new(settings: &Settings, out: Box<dyn Write + Send>, terminal: bool, no_color: bool) -> Self {
        let color = match settings.color {
            Color::Auto => terminal && !no_color,
            Color::Always => true,
            Color::Never => false,
        };
        let encoder = match settings.format {
            Format::Text => Encoder::Text(TextEncoder::new(color, settings.raw)),
            Format::Json => Encoder::Json { encoder: json::Encoder::default(), terminal, scratch: Vec::new() },
        };
        Self {
            name: settings.name.clone(),
            out,
            encoder,
            buffer: Vec::new(),
            buffered: VecDeque::new(),
            written: 0,
            closed: false,
        }
    }

    fn encode(&mut self, delivery: Delivery) {
        match &mut self.encoder {
            Encoder::Text(encoder) => encoder.append_batch(&delivery.batch, &mut self.buffer),
            Encoder::Json { encoder, terminal: false, .. } => encoder.append_batch(&delivery.batch, &mut self.buffer),
            Encoder::Json { encoder, terminal: true, scratch } => {
                scratch.clear();
                encoder.append_batch(&delivery.batch, scratch);
                append_json_for_terminal(scratch, &mut self.buffer);
            }
        }
        self.buffered.push_back((self.buffer.len(), delivery));
    }

    /// Writes what is buffered and settles what is written.
    fn drain(&mut self) -> Result<(), SinkError> {
        let result = self.write_buffer();
        while self.buffered.front().is_some_and(|(end, _)| *end <= self.written) {
            if let Some((_, delivery)) = self.buffered.pop_front() {
                delivery.receipt.settle(Outcome::Delivered);
            }
        }
        match result {
            Ok(()) => {
                self.buffer.clear();
                self.written = 0;
                Ok(())
            }
            Err(source) if source.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                self.give_up();
                let action = "writing to standard output: its reader is gone; the console sink stops and drops what \
                              it is given, restart the agent to use it again";
                Err(SinkError { action: action.to_owned(), source })
            }
            Err(source) => Err(SinkError { action: "writing to standard output".to_owned(), source }),
        }
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        while self.written < self.buffer.len() {
            match self.out.write(&self.buffer[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.flush()
    }

    fn give_up(&mut self) {
        for (_, delivery) in self.buffered.drain(..) {
            delivery.receipt.settle(Outcome::Dropped(Reason::Rejected));
        }
        self.buffer = Vec::new();
        self.written = 0;
    }
}

impl Sink for ConsoleSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn write(&mut self, queue: &mut VecDeque<Delivery>) -> Result<(), SinkError> {
        if self.closed {
            for delivery in queue.drain(..) {
                delivery.receipt.settle(Outcome::Dropped(Reason::Rejected));
            }
            return Ok(());
        }
        // What an earlier error left comes first; until it is out, nothing more is taken.
        if self.buffer.len() >= CHUNK {
            self.drain()?;
        }
        while let Some(delivery) = queue.pop_front() {
            self.encode(delivery);
            if self.buffer.len() >= CHUNK {
                self.drain()?;
            }
        }
        self.drain()
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        if self.closed { Ok(()) } else { self.drain() }
    }

    fn give_back(&mut self) -> VecDeque<Delivery> {
        self.buffer.clear();
        self.written = 0;
        self.buffered.drain(..).map(|(_, delivery)| delivery).collect()
    }
}
