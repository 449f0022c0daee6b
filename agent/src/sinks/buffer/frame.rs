//! One frame of a segment: a header with a checksum of its own, and a payload.
//!
//! Each segment has a random marker at the start of each frame. After damage the next frame is looked for by it; what a
//! Pod writes can't pass for a frame, as it never sees the marker.

/// Bytes at the start of each frame of one segment.
pub(super) type Marker = [u8; 8];

/// Size of a header: marker, then little-endian length (4), records (4), sequence (8), cgroup (8), span (8), checksum of
/// the payload (4), checksum of the header (4).
pub(super) const HEADER: usize = 48;

/// A longer payload is not written, and not believed.
pub(super) const MAX_PAYLOAD: usize = 1 << 30;

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

/// A header that has passed its checksum.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) meta: Meta,
    /// Bytes of the payload.
    pub(super) length: usize,
    checksum: u32,
}

impl Header {
    /// Reads a header; `None` if it is none, or damaged.
    pub(super) fn parse(bytes: &[u8; HEADER], marker: Marker) -> Option<Self> {
        let (fields, checksum) = bytes.split_last_chunk::<4>()?;
        if !fields.starts_with(&marker) || crc32fast::hash(fields) != u32::from_le_bytes(*checksum) {
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
        Some(Self { meta, length, checksum: u32::try_from(number(4)).ok()? })
    }

    /// Whether this is the payload.
    pub(super) fn accepts(&self, payload: &[u8]) -> bool {
        payload.len() == self.length && crc32fast::hash(payload) == self.checksum
    }
}

/// Makes a frame of `out`, which begins with room for the header and goes on with the payload.
pub(super) fn seal(out: &mut [u8], marker: Marker, meta: Meta) {
    let (header, payload) = out.split_at_mut(HEADER);
    let mut fields = Vec::with_capacity(HEADER);
    fields.extend_from_slice(&marker);
    fields.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    fields.extend_from_slice(&meta.records.to_le_bytes());
    for number in [meta.sequence, meta.cgroup, meta.span] {
        fields.extend_from_slice(&number.to_le_bytes());
    }
    fields.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    fields.extend_from_slice(&crc32fast::hash(&fields).to_le_bytes());
    header.copy_from_slice(&fields);
}
