//! One line of a runtime's log file: what of it is content of the container's stream.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::record::IoStream;

/// Content of one stream. It is used again for the next line.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// When the runtime wrote it, as it stands there.
    time: String,
    /// Its bytes, the newline included where the container wrote one.
    pub(super) bytes: Vec<u8>,
    /// Whether each byte is the one that the container wrote. Docker writes U+FFFD in the place of a byte that is no
    /// UTF-8: then the length is right, and the byte is not known.
    pub(super) exact: bool,
}

impl Entry {
    /// Takes a line without its own end; returns whose content it is. `None` when no runtime writes such a line.
    pub(super) fn decode(&mut self, line: &[u8]) -> Option<IoStream> {
        self.bytes.clear();
        self.time.clear();
        self.exact = true;
        if line.first() == Some(&b'{') { self.json(line) } else { self.cri(line) }
    }

    /// When the runtime wrote it: nanoseconds since the Unix epoch.
    pub(super) fn time(&self) -> Option<u64> {
        u64::try_from(self.time.parse::<jiff::Timestamp>().ok()?.as_nanosecond()).ok()
    }

    /// `2024-01-01T00:00:00.000000000Z stdout F content`: `F` where the container wrote a newline, `P` where the runtime has
    /// cut a long line, or the stream has ended without one. Further tags may follow, after colons.
    fn cri(&mut self, line: &[u8]) -> Option<IoStream> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (time, iostream, tags, content) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        self.time.push_str(std::str::from_utf8(time).ok()?);
        self.bytes.extend_from_slice(content);
        match tags.split(|byte| *byte == b':').next()? {
            b"F" => self.bytes.push(b'\n'),
            b"P" => {}
            _ => return None,
        }
        iostream_of(iostream)
    }

    fn json(&mut self, line: &[u8]) -> Option<IoStream> {
        let line: JsonLine<'_> = serde_json::from_slice(line).ok()?;
        self.time.push_str(line.time);
        if let Some(log) = line.log {
            self.exact = unescape(log.get(), &mut self.bytes)?;
        }
        iostream_of(line.stream.as_bytes())
    }
}

/// A line of Docker's `json-file`, `daemon/logger/jsonfilelog/jsonlog`.
#[derive(Deserialize)]
struct JsonLine<'a> {
    #[serde(borrow, default)]
    log: Option<&'a RawValue>,
    #[serde(default)]
    stream: &'a str,
    time: &'a str,
}

fn iostream_of(name: &[u8]) -> Option<IoStream> {
    match name {
        b"stdout" => Some(IoStream::Stdout),
        b"stderr" => Some(IoStream::Stderr),
        _ => None,
    }
}

/// The bytes of a JSON string as Docker writes it; returns whether all are known. An escaped U+FFFD stands for one byte that
/// was no UTF-8, one that the container wrote is not escaped: only here they can be told apart.
fn unescape(text: &str, bytes: &mut Vec<u8>) -> Option<bool> {
    let mut rest = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut exact = true;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let escaped = *rest.as_bytes().get(at + 1)?;
        let mut length = 2;
        match escaped {
            b'n' => bytes.push(b'\n'),
            b'r' => bytes.push(b'\r'),
            b't' => bytes.push(b'\t'),
            b'b' => bytes.push(8),
            b'f' => bytes.push(12),
            b'"' | b'\\' | b'/' => bytes.push(escaped),
            b'u' => {
                length = 6;
                let code = u32::from_str_radix(rest.get(at + 2..at + 6)?, 16).ok()?;
                if code == 0xFFFD {
                    bytes.push(b'?');
                    exact = false;
                } else {
                    // Docker writes no pairs of surrogates.
                    let character = char::from_u32(code)?;
                    bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
            _ => return None,
        }
        rest = rest.get(at + length..)?;
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(exact)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stream, content, whether it is exact, time.
    fn of(line: &[u8]) -> Option<(IoStream, Vec<u8>, bool, Option<u64>)> {
        let mut entry = Entry::default();
        let iostream = entry.decode(line)?;
        Some((iostream, entry.bytes.clone(), entry.exact, entry.time()))
    }

    const TIME: Option<u64> = Some(1_704_067_200_000_000_001);

    #[test]
    fn a_line_of_cri() {
        let line = |rest: &str| of(format!("2024-01-01T00:00:00.000000001Z {rest}").as_bytes());
        assert_eq!(line("stdout F a b "), Some((IoStream::Stdout, b"a b \n".to_vec(), true, TIME)));
        assert_eq!(line("stderr P a"), Some((IoStream::Stderr, b"a".to_vec(), true, TIME)));
        assert_eq!(line("stdout P:x a"), Some((IoStream::Stdout, b"a".to_vec(), true, TIME)));
        assert_eq!(line("stdout F "), Some((IoStream::Stdout, b"\n".to_vec(), true, TIME)));
        for none in ["stdout F", "stdin F a", "stdout X a", ""] {
            assert_eq!(line(none), None, "{none:?}");
        }
        let zone = of(b"2024-01-01T01:00:00.000000001+01:00 stdout F a").expect("a line of CRI-O");
        assert_eq!(zone.3, TIME);
    }

    #[test]
    fn a_line_of_json_file() {
        let line = |log: &str| {
            of(format!(
                r#"{{"log":{log},"stream":"stdout","attrs":{{"a":"b"}},"time":"2024-01-01T00:00:00.000000001Z"}}"#
            )
            .as_bytes())
        };
        let content = |log: &str| line(log).map(|(_, bytes, exact, _)| (bytes, exact));
        assert_eq!(line(r#""a\n""#), Some((IoStream::Stdout, b"a\n".to_vec(), true, TIME)));
        assert_eq!(content(r#""\u003c\\\"\r\u2028\u0000""#), Some(("<\\\"\r\u{2028}\0".into(), true)));
        assert_eq!(content("\"\u{fffd}\""), Some(("\u{fffd}".into(), true)), "the container wrote it");
        assert_eq!(content(r#""a\ufffdb""#), Some((b"a?b".to_vec(), false)), "one byte that nobody knows");
        assert_eq!(content(r#""\ud800""#), None);
        assert_eq!(of(br#"{"log":"a"#), None);
    }
}
