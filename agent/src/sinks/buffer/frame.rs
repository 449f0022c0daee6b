//! One frame of a segment: a header with a checksum of its own, and a payload.
//!
//! Each segment has a random marker at the start of each frame. After damage the next frame is looked for by it; what a
//! Pod writes can't pass for a frame, as it never sees the marker.

/// Bytes at the start of each frame of one segment.
pub(super) type Marker = [u8; 8];

/// One copy of a header: marker, then little-endian length (4), records (4), sequence (8), cgroup (8), span (8), records
/// and span of all frames before it (8 each), checksum of the payload (4), checksum of the copy (4).
const COPY: usize = 64;

/// Size of a header: it is there twice, so that no single damage hides what the frame was. The second copy has its
/// checksum inverted, which tells it from the first.
pub(super) const HEADER: usize = 2 * COPY;

/// A longer payload is not written, and not believed.
pub(super) const MAX_PAYLOAD: usize = 1 << 30;

/// Records, and the bytes of streams that they account for.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Totals {
    pub(super) records: u64,
    pub(super) span: u64,
}

impl Totals {
    /// Both of them and those of `other`.
    pub(super) const fn plus(self, other: Self) -> Self {
        Self { records: self.records.saturating_add(other.records), span: self.span.saturating_add(other.span) }
    }

    /// What is more than in `other`.
    pub(super) const fn beyond(self, other: Self) -> Self {
        Self { records: self.records.saturating_sub(other.records), span: self.span.saturating_sub(other.span) }
    }
}

/// What is known of a frame without its payload, so that a damaged one can be booked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Meta {
    /// Rises from frame to frame; some are left out.
    pub(super) sequence: u64,
    /// Lines in it.
    pub(super) records: u32,
    /// The account that they are booked on.
    pub(super) cgroup: u64,
    /// Bytes of the stream that they account for.
    pub(super) span: u64,
}

impl Meta {
    /// What the frame adds to its log.
    pub(super) const fn totals(&self) -> Totals {
        Totals { records: self.records as u64, span: self.span }
    }
}

/// A header that has passed its checksum.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) meta: Meta,
    /// Of all frames that were appended to the log before it: what is missing between two frames shows.
    pub(super) before: Totals,
    /// Bytes of the payload.
    pub(super) length: usize,
    checksum: u32,
}

impl Header {
    /// Reads a header by the better of its copies; `None` if it is none, or both are damaged.
    pub(super) fn parse(bytes: &[u8; HEADER], marker: Marker) -> Option<Self> {
        let (first, second) = bytes.split_at(COPY);
        [(first, false), (second, true)].into_iter().find_map(|(copy, is_second)| {
            Self::parse_copy(copy, marker).filter(|found| found.1 == is_second).map(|(header, _)| header)
        })
    }

    /// The bytes from the start of the header to `bytes`, which begin with one of its copies.
    pub(super) fn offset_of_copy(bytes: &[u8], marker: Marker) -> Option<usize> {
        let (_, is_second) = Self::parse_copy(bytes.get(..COPY)?, marker)?;
        Some(if is_second { COPY } else { 0 })
    }

    /// Reads a copy, and whether it is a second one.
    fn parse_copy(bytes: &[u8], marker: Marker) -> Option<(Self, bool)> {
        let (fields, checksum) = bytes.split_last_chunk::<4>()?;
        let (computed, checksum) = (crc32fast::hash(fields), u32::from_le_bytes(*checksum));
        if !fields.starts_with(&marker) || (checksum != computed && checksum != !computed) {
            return None;
        }
        let mut rest = &fields[marker.len()..];
        let mut number = |size: usize| {
            let (field, after) = rest.split_at(size);
            rest = after;
            field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        let length = usize::try_from(number(4)).ok().filter(|length| *length <= MAX_PAYLOAD)?;
        let records = u32::try_from(number(4)).ok()?;
        let meta = Meta { records, sequence: number(8), cgroup: number(8), span: number(8) };
        let before = Totals { records: number(8), span: number(8) };
        let header = Self { meta, before, length, checksum: u32::try_from(number(4)).ok()? };
        Some((header, checksum != computed))
    }

    /// Whether this is the payload.
    pub(super) fn accepts(&self, payload: &[u8]) -> bool {
        payload.len() == self.length && crc32fast::hash(payload) == self.checksum
    }

    /// Of all frames up to this one.
    pub(super) const fn after(&self) -> Totals {
        self.before.plus(self.meta.totals())
    }
}

/// Makes a frame of `out`, which begins with room for the header and goes on with the payload.
pub(super) fn seal(out: &mut [u8], marker: Marker, meta: Meta, before: Totals) {
    let (header, payload) = out.split_at_mut(HEADER);
    let mut fields = Vec::with_capacity(HEADER);
    fields.extend_from_slice(&marker);
    fields.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    fields.extend_from_slice(&meta.records.to_le_bytes());
    for number in [meta.sequence, meta.cgroup, meta.span, before.records, before.span] {
        fields.extend_from_slice(&number.to_le_bytes());
    }
    fields.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let checksum = crc32fast::hash(&fields);
    for (copy, checksum) in header.chunks_mut(COPY).zip([checksum, !checksum]) {
        copy[..fields.len()].copy_from_slice(&fields);
        copy[fields.len()..].copy_from_slice(&checksum.to_le_bytes());
    }
}
