//! Records of another build, which has their fields in other places: they are rewritten as this build has them, by what
//! that build has pinned of its layout.

use sidestep_abi::layout::{HEADER, MEANING, RECORDS};

use super::DecodeError;
use crate::load::pins::{Layout, Shape};

/// A layout that can't be read: what lies in its ring is lost, and counted.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unreadable {
    /// Flags or codes mean something else.
    #[error("flags and codes mean something else (meaning {0}, this agent knows {MEANING})")]
    Meaning(u32),
    /// The head of records differs.
    #[error("the head of records has another shape")]
    Header,
    /// A field is not there, or does not fit.
    #[error("field `{field}` of `{record}` is not there, or has another size")]
    Field {
        /// The record.
        record: &'static str,
        /// The field.
        field: String,
    },
}

/// Rewrites records of one other layout.
#[derive(Debug)]
pub struct Foreign {
    kinds: Vec<Rewrite>,
}

#[derive(Debug)]
struct Rewrite {
    /// The kind as they number it.
    theirs: u16,
    /// The kind as this agent does.
    own: u16,
    /// Bytes of their fixed part.
    fixed: usize,
    /// Bytes of this agent's.
    size: usize,
    /// For each field: where it is, where it goes, its bytes.
    copies: Vec<(usize, usize, usize)>,
}

impl Foreign {
    /// For records of a layout. Kinds that this agent does not know are left for the decoder to refuse one by one.
    ///
    /// # Errors
    /// A record lacks what this agent needs.
    pub fn new(layout: &Layout) -> Result<Self, Unreadable> {
        if layout.meaning != MEANING {
            return Err(Unreadable::Meaning(layout.meaning));
        }
        // The kind has to be found before it tells where all else is.
        if layout.header != Shape::from(&HEADER) {
            return Err(Unreadable::Header);
        }
        let mut kinds = Vec::with_capacity(RECORDS.len());
        for (own, shape) in &RECORDS {
            let Some((theirs, their_shape)) = layout.records.get(shape.name) else { continue };
            let mut copies = Vec::with_capacity(shape.fields.len());
            for (field, (to, size)) in Shape::from(shape).fields {
                let missing = || Unreadable::Field { record: shape.name, field: field.clone() };
                let (from, their_size) = *their_shape.fields.get(&field).ok_or_else(missing)?;
                if their_size != size || from.checked_add(size).is_none_or(|end| end > their_shape.size) {
                    return Err(missing());
                }
                copies.push((from, to, size));
            }
            kinds.push(Rewrite { theirs: *theirs, own: *own, fixed: their_shape.size, size: shape.size, copies });
        }
        Ok(Self { kinds })
    }

    /// Rewrites a record into `out`.
    ///
    /// # Errors
    /// It is too short, or of a kind that this agent does not know.
    pub fn rewrite(&self, record: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
        let kind = record.first_chunk().copied().map(u16::from_ne_bytes).ok_or(DecodeError::Short(record.len()))?;
        let rewrite = self.kinds.iter().find(|known| known.theirs == kind).ok_or(DecodeError::UnknownKind(kind))?;
        let (fixed, rest) = record.split_at_checked(rewrite.fixed).ok_or(DecodeError::Short(record.len()))?;
        out.clear();
        out.resize(rewrite.size, 0);
        for &(from, to, size) in &rewrite.copies {
            out[to..to + size].copy_from_slice(&fixed[from..from + size]);
        }
        out[..2].copy_from_slice(&rewrite.own.to_ne_bytes());
        out.extend_from_slice(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sidestep_abi::event;

    use super::*;
    use crate::decode::{Event, decode};

    /// The own layout, with eight bytes more before the position of a piece of a stream, and another number of its kind.
    fn other() -> Layout {
        let mut layout = Layout::own();
        let (kind, shape) = layout.records.get_mut("stdio_data").expect("record");
        *kind = 77;
        shape.size += 8;
        let at = shape.fields["position"].0;
        shape.fields.values_mut().filter(|(offset, _)| *offset >= at).for_each(|(offset, _)| *offset += 8);
        layout
    }

    #[test]
    fn fields_are_found_where_the_other_build_has_them() {
        let layout = other();
        let shape = &layout.records["stdio_data"].1;
        let mut record = vec![0; shape.size];
        let mut set = |field: &str, value: u64| {
            let (offset, size) = shape.fields[field];
            record[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
        };
        set("header.kind", 77);
        set("header.len", 3);
        set("ino", 11);
        set("position", 4711);
        record.extend_from_slice(b"abc-rest");
        let mut out = Vec::new();
        Foreign::new(&layout).expect("readable").rewrite(&record, &mut out).expect("rewritten");
        let Ok(Event::Stdio(event, bytes)) = decode(&out) else { panic!("no stdio event") };
        assert_eq!((event.header.kind, event.ino, event.position, bytes), (event::STDIO_DATA, 11, 4711, &b"abc"[..]));
    }

    #[test]
    fn what_lacks_a_field_is_unreadable() {
        let mut layout = Layout::own();
        layout.records.get_mut("file_data").expect("record").1.fields.remove("position");
        let error = Foreign::new(&layout).expect_err("unreadable");
        assert_eq!(error, Unreadable::Field { record: "file_data", field: "position".to_owned() });
        assert_eq!(Foreign::new(&Layout { meaning: 99, ..Layout::own() }).expect_err("no"), Unreadable::Meaning(99));
    }

    #[test]
    fn short_and_unknown_records_are_refused() {
        let foreign = Foreign::new(&other()).expect("readable");
        let mut out = Vec::new();
        assert_eq!(foreign.rewrite(&[1], &mut out), Err(DecodeError::Short(1)));
        assert_eq!(foreign.rewrite(&[77, 0, 0], &mut out), Err(DecodeError::Short(3)));
        assert_eq!(foreign.rewrite(&[200, 0, 0], &mut out), Err(DecodeError::UnknownKind(200)));
    }
}
