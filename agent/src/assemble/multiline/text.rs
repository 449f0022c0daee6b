//! Shapes of lines that several languages share.

/// A line without the CR of its CR LF.
pub(super) fn without_carriage_return(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\r").unwrap_or(text)
}

/// The text behind leading spaces and tabs, when there are any.
pub(super) fn indented(text: &[u8]) -> Option<&[u8]> {
    let rest = text.trim_ascii_start();
    (rest.len() < text.len()).then_some(rest)
}

/// Whether a line is a frame as Java, Node and .NET print it: indented, `at `.
pub(super) fn is_at_frame(text: &[u8]) -> bool {
    indented(text).is_some_and(|rest| rest.starts_with(b"at "))
}

/// Whether a line only marks a place in the line of source above it.
pub(super) fn is_carets(text: &[u8]) -> bool {
    let carets = text.trim_ascii();
    !carets.is_empty() && carets.iter().all(|byte| matches!(byte, b'^' | b'~'))
}

/// Whether a line looks like the beginning of a log entry, so that it is not a further line of a message: a date, a
/// bracket, a brace, a level, a klog header, a key.
pub(super) fn is_entry(text: &[u8]) -> bool {
    match text {
        [b'0'..=b'9' | b'[' | b'{' | b'<', ..] => true,
        [b'I' | b'W' | b'E' | b'F', b'0' | b'1', b'0'..=b'9', b'0'..=b'3', b'0'..=b'9', b' ', ..] => true,
        _ => {
            let word = &text[..text.iter().take(8).take_while(|byte| byte.is_ascii_alphabetic()).count()];
            match text.get(word.len()) {
                Some(b'=') => word == b"time" || word == b"ts" || word == b"level",
                _ => {
                    const LEVELS: [&str; 9] =
                        ["TRACE", "DEBUG", "INFO", "NOTICE", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL"];
                    LEVELS.iter().any(|level| level.as_bytes() == word)
                }
            }
        }
    }
}

/// How much of a line is searched for the name of an exception.
const SEARCHED_BYTES: usize = 2048;

/// Whether a line has the name of an exception somewhere, as the head of a trace that was logged behind a message:
/// `...Exception: text`, `...Error [CODE]: text`, `Name [Error]: text`, or the name alone at its end.
pub(super) fn names_exception(text: &[u8]) -> bool {
    let searched = &text[..text.len().min(SEARCHED_BYTES)];
    ends_with_exception(text)
        || memchr::memchr_iter(b':', searched).any(|colon| ends_with_exception(&searched[..colon]))
}

fn ends_with_exception(text: &[u8]) -> bool {
    let is_name = |text: &[u8]| [&b"Exception"[..], b"Error", b"Throwable"].iter().any(|name| text.ends_with(name));
    match text {
        [.., b'n' | b'r' | b'e'] => is_name(text),
        [inner @ .., b']'] => {
            let near = &inner[inner.len().saturating_sub(64)..];
            let bracket = memchr::memrchr(b'[', near);
            is_name(inner) || bracket.is_some_and(|at| near[..at].strip_suffix(b" ").is_some_and(is_name))
        }
        _ => false,
    }
}

/// The length of a dotted name (`java.lang.Error`, `a.b.C$D`) at the beginning of a line, with at least one dot and a
/// last part in upper case, when a colon or the end of the line follows.
pub(super) fn qualified_type(text: &[u8]) -> Option<usize> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.' | b'`' | b'+');
    let length = text.iter().take(512).take_while(|&&byte| is_part(byte)).count();
    let name = &text[..length];
    let ends = matches!(text.get(length), None | Some(b':'));
    let dot = memchr::memrchr(b'.', name)?;
    let parts = name.split(|&byte| byte == b'.');
    let mut heads = parts.map(|part| part.first());
    let named = heads.all(|head| head.is_some_and(|head| head.is_ascii_alphabetic() || matches!(head, b'_' | b'$')));
    (ends && named && name.get(dot + 1).is_some_and(u8::is_ascii_uppercase)).then_some(length)
}

/// Whether `text` begins with at least one digit and `rest` behind the digits.
pub(super) fn number_then(text: &[u8], rest: &[u8]) -> bool {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    digits > 0 && text[digits..].starts_with(rest)
}
