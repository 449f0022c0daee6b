//! Lines that the sink is owed: the buffer was full when they came, and their files have them still.
//!
//! Of such a line only its place is kept, a few bytes, and the receipt of its batch, so that the position in the file
//! stays before it: an agent that is killed leaves them to the next one, which reads the file from there.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    ledger::Reason,
    process::Redo,
    record::{Batch, Line, LineFlags, Origin, Stream},
    sinks::{Delivery, Outcome, Receipt},
};

/// The most memory that places and receipts take, roughly, in bytes.
const MAX_MEMORY: usize = 16 * 1024 * 1024;
/// What a batch takes besides the places of its lines.
const BATCH_MEMORY: usize = 512;
/// The most streams: each keeps its file open.
const MAX_STREAMS: usize = 1024;

/// All that one sink is owed, oldest first.
#[derive(Debug, Default)]
pub(in crate::sinks) struct Owed {
    entries: VecDeque<(Places, Receipt)>,
    /// How many of them each stream has.
    streams: HashMap<Arc<str>, usize>,
    memory: usize,
    bytes: u64,
}

/// Where the lines of a batch are.
#[derive(Debug)]
pub(super) struct Places {
    stream: Arc<Stream>,
    file: Arc<File>,
    /// Position of the first line.
    start: u64,
    /// A [`Place`] for each line.
    encoded: Vec<u8>,
    /// Lines that are in no file, with their bytes and where they stand.
    own: Vec<(usize, Line, Bytes)>,
    /// Of the bodies of all lines.
    checksum: u32,
    redo: Option<Redo>,
    bytes: u64,
}

/// What can't be read again, each as the difference to what the line before makes likely.
#[derive(Deserialize, Serialize)]
struct Place {
    /// Bytes between the line before and this one.
    gap: u64,
    span: u64,
    flags: u8,
    /// To the time that the line before was seen.
    observed: i64,
    /// To the time that it was seen.
    time: i64,
}

impl Owed {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of streams that it is owed.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether lines of the stream are owed, so that later ones have to wait for them.
    pub(super) fn has(&self, stream: &Stream) -> bool {
        !self.streams.is_empty() && self.streams.contains_key(&stream.key)
    }

    /// Keeps the places of a batch; gives it back when its lines are in no file that can be read again, or too much is
    /// owed. `redo` is what was done to the lines.
    pub(super) fn owe(&mut self, delivery: Delivery, redo: Option<Redo>) -> Result<(), Delivery> {
        let is_new = !self.has(&delivery.batch.stream);
        let is_full = self.memory >= MAX_MEMORY || is_new && self.streams.len() >= MAX_STREAMS;
        // What only the ring has is of a file that was deleted.
        if is_full || delivery.receipt.promise().is_held() {
            return Err(delivery);
        }
        let Some(places) = Places::of(&delivery.batch, redo) else { return Err(delivery) };
        self.memory += places.memory();
        self.bytes += places.bytes;
        *self.streams.entry(Arc::clone(&places.stream.key)).or_default() += 1;
        self.entries.push_back((places, delivery.receipt));
        Ok(())
    }

    /// Takes out the oldest.
    pub(super) fn take(&mut self) -> Option<(Places, Receipt)> {
        let (places, receipt) = self.entries.pop_front()?;
        self.memory -= places.memory();
        self.bytes -= places.bytes;
        if let Some(count) = self.streams.get_mut(&places.stream.key) {
            *count -= 1;
            if *count == 0 {
                self.streams.remove(&places.stream.key);
            }
        }
        Some((places, receipt))
    }

    /// Puts back what was taken out last.
    pub(super) fn put_back(&mut self, places: Places, receipt: Receipt) {
        self.memory += places.memory();
        self.bytes += places.bytes;
        *self.streams.entry(Arc::clone(&places.stream.key)).or_default() += 1;
        self.entries.push_front((places, receipt));
    }

    /// Gives up all.
    pub(super) fn drop_for(mut self, reason: Reason) {
        self.entries.drain(..).for_each(|(_, receipt)| receipt.settle(Outcome::Dropped(reason)));
    }
}

impl Places {
    /// `None` when there is no file.
    fn of(batch: &Arc<Batch>, redo: Option<Redo>) -> Option<Self> {
        let file = batch.stream.source.as_ref()?.file()?;
        let is_own = |line: &&Line| line.flags.contains(LineFlags::SYNTHETIC);
        let start = batch.lines.iter().find(|line| !is_own(line))?.position;
        let (mut position, mut seen, mut encoded) = (start, 0, Vec::new());
        for line in batch.lines.iter().filter(|line| !is_own(line)) {
            let place = Place {
                gap: line.position.checked_sub(position)?,
                span: line.span,
                flags: line.flags.0,
                observed: line.observed_time_unix_nano.wrapping_sub(seen).cast_signed(),
                time: line.time_unix_nano.wrapping_sub(line.observed_time_unix_nano).cast_signed(),
            };
            encoded = postcard::to_extend(&place, encoded).ok()?;
            (position, seen) = (line.position + line.span, line.observed_time_unix_nano);
        }
        encoded.shrink_to_fit();
        let own = batch.lines.iter().enumerate().filter(|(_, line)| is_own(line));
        let own =
            own.map(|(index, line)| (index, line.clone(), Bytes::copy_from_slice(&batch.data[line.body.clone()])));
        Some(Self {
            stream: Arc::clone(&batch.stream),
            file,
            start,
            encoded,
            own: own.collect(),
            checksum: checksum(batch),
            redo,
            bytes: batch.span(),
        })
    }

    /// The file, as its writer sees it.
    pub(super) fn path(&self) -> &str {
        match &self.stream.origin {
            Origin::File { path } => path,
            Origin::Stdio(_) | Origin::Refusals => &self.stream.key,
        }
    }

    fn memory(&self) -> usize {
        self.encoded.len() + BATCH_MEMORY
    }

    /// The batch again.
    ///
    /// # Errors
    /// Why it can't be had: the file can't be read, or what is there now is something else.
    pub(super) fn read(&self) -> Result<Arc<Batch>, Reason> {
        let (mut lines, length) = self.lines();
        let mut data = vec![0; length];
        self.file.read_exact_at(&mut data, self.start).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Reason::Truncated,
            _ => Reason::Unavailable,
        })?;
        for line in &mut lines {
            let has_end = data[line.body.clone()].last() == Some(&b'\n');
            line.body.end -= usize::from(has_end);
            if let Some(source) = &self.stream.source {
                let time = line.time_unix_nano;
                source.parse(&data[line.body.clone()], line);
                line.time_unix_nano = time;
            }
        }
        let batch = Arc::new(Batch { stream: Arc::clone(&self.stream), data: data.into(), lines });
        let batch = self.redo.as_ref().map_or_else(|| Arc::clone(&batch), |redo| redo.apply(&batch));
        let batch = self.with_own(batch);
        if checksum(&batch) == self.checksum { Ok(batch) } else { Err(Reason::Truncated) }
    }

    /// The lines with the bytes that they span as bodies, and how long all of that is.
    fn lines(&self) -> (Vec<Line>, usize) {
        let (mut rest, mut lines) = (&*self.encoded, Vec::new());
        let (mut end, mut seen) = (0, 0_u64);
        // What this process has written itself it can read.
        while let Ok((place, left)) = postcard::take_from_bytes::<Place>(rest) {
            rest = left;
            seen = seen.wrapping_add(place.observed.cast_unsigned());
            let start = end + place.gap;
            end = start + place.span;
            lines.push(Line {
                time_unix_nano: seen.wrapping_add(place.time.cast_unsigned()),
                observed_time_unix_nano: seen,
                body: start as usize..end as usize,
                position: self.start + start,
                span: place.span,
                flags: LineFlags(place.flags),
                ..Line::default()
            });
        }
        (lines, end as usize)
    }

    fn with_own(&self, batch: Arc<Batch>) -> Arc<Batch> {
        if self.own.is_empty() {
            return batch;
        }
        let (mut data, mut lines) = (batch.data.to_vec(), batch.lines.clone());
        for (index, line, body) in &self.own {
            let start = data.len();
            data.extend_from_slice(body);
            lines.insert((*index).min(lines.len()), Line { body: start..data.len(), ..line.clone() });
        }
        Arc::new(Batch { stream: Arc::clone(&self.stream), data: data.into(), lines })
    }
}

fn checksum(batch: &Batch) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for line in &batch.lines {
        hasher.update(&batch.data[line.body.clone()]);
        // Where one ends counts too.
        hasher.update(&line.body.len().to_le_bytes());
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests;
