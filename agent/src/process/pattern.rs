//! Regular expressions of the configuration: bounded in what they may cost, and refused with the place of the mistake.

use regex::bytes::{Regex, RegexBuilder};
use regex_automata::{dfa::dense, nfa::thompson, util::syntax};

/// The largest compiled regular expression, in bytes.
const COMPILED_BYTES: usize = 1 << 20;
/// What one search may keep of its automaton, in bytes.
const CACHE_BYTES: usize = 2 << 20;

/// The largest automaton of what anybody may declare, in bytes: half of what a search keeps of one.
const AUTOMATON_BYTES: usize = 1 << 20;

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

/// Whether an expression that anybody may declare costs about as much for each byte whatever lines there are: its automaton as
/// a whole is small, so that a search never has to build it anew.
///
/// # Errors
/// It is not, and what helps.
pub(crate) fn check_speed(pattern: &str) -> Result<(), String> {
    let config =
        dense::Config::new().dfa_size_limit(Some(AUTOMATON_BYTES)).determinize_size_limit(Some(AUTOMATON_BYTES));
    let built = dense::Builder::new()
        .configure(config)
        .thompson(thompson::Config::new().nfa_size_limit(Some(AUTOMATON_BYTES)).utf8(false))
        .syntax(syntax::Config::new().utf8(false))
        .build(pattern);
    built.map(drop).map_err(|_| {
        format!(
            "`{pattern}` takes too long on some lines; begin it with `^`, make its repetitions smaller, or write `(?-u:\\b)`, \
             `(?-u:\\w)`, `[0-9]` where letters of all scripts are not meant"
        )
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
    fn what_is_slow_on_some_lines_is_told_apart() {
        let usual = [
            r"^\d{4}-\d{2}-\d{2}",
            r"^\[?\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}[.,]\d{3}",
            r"^\s+at ",
            r"^(Caused by|\s)",
            r"^\S",
            "ERROR|WARN",
            r"^[A-Z][a-z]{2} [ 0-9]{2} \d{2}:\d{2}",
            r"^\w+ \w+:",
            r"(?-u:\b)panic(?-u:\b)",
        ];
        for pattern in usual {
            check_speed(pattern).expect("fast");
        }
        for pattern in ["1[01]{9000}Z", "1[01]{30}Z", r"\w{40}x", r"\bpanic"] {
            assert!(check_speed(pattern).expect_err("slow").contains("takes too long"), "{pattern}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_matched() {
        assert!(compile(r"(?-u)\xff+ error").expect("valid").is_match(b"\xff\xff error"));
    }
}
