//! The wire format of protobuf, as far as a log record needs it: <https://protobuf.dev/programming-guides/encoding/>.

/// The most bytes of a [`varint`].
const LONGEST_VARINT: usize = 10;

/// Wire types, in the lowest three bits of a tag.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH_DELIMITED: u32 = 2;

/// Appends an integer, seven bits a byte.
pub(super) fn varint(mut value: u64, out: &mut Vec<u8>) {
    let mut text = [0; LONGEST_VARINT];
    let mut length = 0;
    while value >= 0x80 {
        text[length] = value as u8 | 0x80;
        value >>= 7;
        length += 1;
    }
    text[length] = value as u8;
    out.extend_from_slice(&text[..=length]);
}

/// How many bytes [`varint`] appends.
pub(super) const fn varint_len(value: u64) -> usize {
    // Zero takes a byte too.
    (u64::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

fn tag(field: u32, wire_type: u32, out: &mut Vec<u8>) {
    varint(u64::from(field << 3 | wire_type), out);
}

/// Appends an integer, enumeration or `bool`.
pub(super) fn integer(field: u32, value: u64, out: &mut Vec<u8>) {
    tag(field, VARINT, out);
    varint(value, out);
}

/// Appends a `fixed64`.
pub(super) fn fixed64(field: u32, value: u64, out: &mut Vec<u8>) {
    tag(field, FIXED64, out);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends the head of a string, of bytes or of a message; its `length` bytes follow.
pub(super) fn head(field: u32, length: usize, out: &mut Vec<u8>) {
    tag(field, LENGTH_DELIMITED, out);
    varint(length as u64, out);
}

/// Appends a string, bytes or a message.
pub(super) fn bytes(field: u32, value: &[u8], out: &mut Vec<u8>) {
    head(field, value.len(), out);
    out.extend_from_slice(value);
}

/// How many bytes [`bytes`] appends, for a field below 16, for `length` of them.
pub(super) const fn bytes_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_integer_is_as_long_as_said_and_as_prost_writes_it(value in any::<u64>(), shift in 0..64_u32) {
            for value in [value >> shift, 1 << shift, (1 << shift) - 1, u64::MAX] {
                let mut out = Vec::new();
                varint(value, &mut out);
                prop_assert_eq!(out.len(), varint_len(value));
                prop_assert_eq!(&out[..], &prost_varint(value)[..]);
            }
        }
    }

    fn prost_varint(value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        prost::encode_length_delimiter(value as usize, &mut out).expect("room");
        out
    }
}
