//! The inside of a JSON string: bulk copies where nothing needs an escape, a table where something does.

/// What one byte becomes: the first `length` of eight bytes. Eight are copied whatever the length, because a copy
/// of constant size is one instruction.
#[derive(Clone, Copy)]
struct Escape {
    text: [u8; 8],
    length: u8,
}

const ESCAPES: [Escape; 256] = {
    let mut table = [Escape { text: [0; 8], length: 1 }; 256];
    let hex = b"0123456789abcdef";
    let mut byte = 0;
    while byte < 256 {
        table[byte].text[0] = byte as u8;
        if byte < 0x20 {
            table[byte].text = [b'\\', b'u', b'0', b'0', hex[byte >> 4], hex[byte & 15], 0, 0];
            table[byte].length = 6;
        }
        byte += 1;
    }
    let short = [(b'"', b'"'), (b'\\', b'\\'), (b'\n', b'n'), (b'\r', b'r'), (b'\t', b't'), (0x08, b'b'), (0x0c, b'f')];
    let mut index = 0;
    while index < short.len() {
        let (from, to) = short[index];
        table[from as usize] = Escape { text: [b'\\', to, 0, 0, 0, 0, 0, 0], length: 2 };
        index += 1;
    }
    table
};

/// The longest that one byte becomes.
const LONGEST: usize = 6;

/// How much is escaped between two checks of the output's capacity; bounds the memory that the worst case reserves.
const PIECE: usize = 4096;

/// Appends `text` to `out` as the inside of a JSON string.
pub(super) fn append(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let clean = clean_prefix(bytes);
    out.extend_from_slice(&bytes[..clean]);
    for piece in bytes[clean..].chunks(PIECE) {
        append_piece(piece, out);
    }
}

/// How many bytes at the front, in whole blocks, need no escape. The loop over a block has no branch, so that the
/// compiler makes vector instructions of it.
fn clean_prefix(bytes: &[u8]) -> usize {
    let (blocks, tail) = bytes.as_chunks::<32>();
    for (index, block) in blocks.iter().enumerate() {
        if block.iter().fold(false, |dirty, &byte| dirty | needs_escape(byte)) {
            return index * 32;
        }
    }
    let dirty = tail.iter().fold(false, |dirty, &byte| dirty | needs_escape(byte));
    if dirty { bytes.len() - tail.len() } else { bytes.len() }
}

const fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn append_piece(piece: &[u8], out: &mut Vec<u8>) {
    // Eight more than the worst case, because eight bytes are copied whatever their length.
    out.reserve(piece.len() * LONGEST + 8);
    let start = out.len();
    let mut length = start;
    for word in piece.chunks(8) {
        if let Ok(word) = <&[u8; 8]>::try_from(word)
            && !any_needs_escape(u64::from_le_bytes(*word))
        {
            // SAFETY: as below; eight bytes move `length` on by eight, no more than `LONGEST` each.
            unsafe { out.as_mut_ptr().add(length).cast::<[u8; 8]>().write_unaligned(*word) };
            length += 8;
            continue;
        }
        for &byte in word {
            let escape = &ESCAPES[usize::from(byte)];
            // SAFETY: each byte of `piece` before this one has moved `length` on by at most `LONGEST`, so that at
            // least `LONGEST + 8` of the bytes reserved above are left, and eight are written.
            unsafe { out.as_mut_ptr().add(length).cast::<[u8; 8]>().write_unaligned(escape.text) };
            length += usize::from(escape.length);
        }
    }
    // SAFETY: `length` is within the reserved capacity, and every byte before it has been written, because each
    // write covers more than the step that follows it.
    unsafe { out.set_len(length) };
}

/// Whether one of eight bytes needs an escape. Exact: no carry crosses from one byte to the next.
const fn any_needs_escape(word: u64) -> bool {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    const HIGH: u64 = !LOW;
    const fn equal(word: u64, byte: u8) -> u64 {
        let difference = word ^ (0x0101_0101_0101_0101 * byte as u64);
        !(((difference & LOW) + LOW) | difference)
    }
    let control = !(((word & LOW) + 0x6060_6060_6060_6060) | word);
    (control | equal(word, b'"') | equal(word, b'\\')) & HIGH != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = b"\"".to_vec();
        append(text, &mut out);
        out.push(b'"');
        String::from_utf8(out).expect("escaping keeps UTF-8")
    }

    #[test]
    fn each_byte_alone_and_amid_others_reads_back() {
        for byte in 0..=0x7f_u8 {
            for front in 0..40 {
                let text = format!("{}{}{}", "a".repeat(front), char::from(byte), "é".repeat(40 - front));
                assert_eq!(serde_json::from_str::<String>(&escaped(&text)).expect("valid JSON"), text);
            }
        }
    }

    proptest! {
        #[test]
        fn is_what_serde_json_writes(text in "(.|\\PC|[\"\\\\\n\r\t\x00-\x1f\x7f]){0,300}") {
            prop_assert_eq!(escaped(&text), serde_json::to_string(&text).expect("a string"));
        }
    }

    #[test]
    fn a_long_text_of_the_worst_case_fits() {
        let text = "\0".repeat(3 * PIECE + 5);
        assert_eq!(escaped(&text).len(), text.len() * LONGEST + 2);
    }
}
