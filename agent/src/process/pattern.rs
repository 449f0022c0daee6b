//! Regular expressions of the configuration: bounded in what they may cost, and refused with the place of the mistake.

use regex::bytes::{Regex, RegexBuilder};

/// The largest compiled regular expression, in bytes.
const COMPILED_BYTES: usize = 1 << 20;
/// What one search may keep of its automaton, in bytes.
const CACHE_BYTES: usize = 2 << 20;

/// Compiles a regular expression over a line's bytes.
///
/// # Errors
/// What is wrong with it, and where, in a sentence.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    if let Err(error) = regex_syntax::ParserBuilder::new().utf8(false).build().parse(pattern) {
        return Err(format!("`{pattern}` is not a regular expression: {}", reason(&error)));
    }
    let built = RegexBuilder::new(pattern).size_limit(COMPILED_BYTES).dfa_size_limit(CACHE_BYTES).build();
    built.map_err(|_| {
        format!("`{pattern}` takes more than {COMPILED_BYTES} bytes compiled; make its repetitions smaller")
    })
}

fn reason(error: &regex_syntax::Error) -> String {
    let at = |column: usize, kind: &dyn std::fmt::Display| format!("{kind}, at character {column}");
    match error {
        regex_syntax::Error::Parse(error) => at(error.span().start.column, error.kind()),
        regex_syntax::Error::Translate(error) => at(error.span().start.column, error.kind()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let error = compile("abc(d").expect_err("not closed");
        assert_eq!(error, "`abc(d` is not a regular expression: unclosed group, at character 4");
        let error = compile("é[z-a]").expect_err("backwards");
        assert!(error.ends_with("at character 3"), "{error}");
    }

    #[test]
    fn what_would_take_too_much_memory_is_refused() {
        let error = compile("(a{1000}){1000}").expect_err("too large");
        assert!(error.contains("takes more than"), "{error}");
    }

    #[test]
    fn bytes_that_are_no_text_are_matched() {
        assert!(compile(r"(?-u)\xff+ error").expect("valid").is_match(b"\xff\xff error"));
    }
}
