//! Regular expressions that are searched for in lines: those of an administrator on the engine that is fastest for most, those
//! that anybody may have declared on the one that was checked.
//!
//! The crate `regex` chooses among engines by the expression and by the line, and goes on with a slow one when a fast one needs
//! too much memory: what it costs can't be told before. A declared one runs on one automaton alone, forwards, and is
//! refused when that automaton as a whole, or finding it out, is too large; so each byte of each line costs one step.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use regex::bytes::Regex;
use regex_automata::{
    Input,
    hybrid::{
        LazyStateID,
        dfa::{Builder, Cache, DFA},
    },
    nfa::thompson::{self, WhichCaptures},
    util::syntax,
};
use regex_syntax::{
    ast::{self, Ast, ClassSetItem, Flag, FlagsItemKind, GroupKind, Visitor},
    hir::translate::TranslatorBuilder,
};

/// The largest automaton of an expression, in bytes.
const AUTOMATON_BYTES: usize = 1 << 20;
/// The largest description that it is made of, in bytes.
const COMPILED_BYTES: usize = 256 << 10;
/// The most work of finding out how large an automaton is: some ten milliseconds. See [`walk`] for the unit.
const WORK: usize = 8_000_000;
/// The most classes of characters, such as `\w` or `\p{L}`: each of them takes up to a millisecond to be read.
const CLASSES: usize = 48;
/// What takes as long to be read as a class: so many characters of a range of which upper and lower case are looked for.
const CASED: usize = 32 << 10;
/// How many classes one costs of which upper and lower case are looked for, letter by letter.
const CASED_CLASS: usize = 6;
/// A class in the unit of [`WORK`].
const CLASS_WORK: usize = 100_000;
/// What the expressions of all Pods and policies of the node may keep in memory.
const NODE_BYTES: usize = 64 << 20;
/// So many results of [`check`] are remembered.
const MAX_CHECKED: usize = 1024;

/// An expression, ready for use.
#[derive(Debug)]
pub(super) enum Expression {
    /// Of the configuration.
    Trusted(Regex),
    /// Of anybody.
    Declared(Arc<Automaton>),
}

/// What was checked, which is found out as far as lines ask for it.
#[derive(Debug)]
pub(super) struct Automaton {
    dfa: DFA,
    /// Two threads at most ask at once, rarely: of one container those that read the ring and the files.
    cache: Mutex<Cache>,
    /// What it may take of [`NODE_BYTES`].
    bytes: usize,
}

/// What living automatons may take.
static LIVING: AtomicUsize = AtomicUsize::new(0);

impl Drop for Automaton {
    fn drop(&mut self) {
        LIVING.fetch_sub(self.bytes, Relaxed);
    }
}

/// What the expressions of one that declares may cost together: the memory is all tenants', and so is the time.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes: usize,
    work: usize,
}

/// What an expression takes of a [`Budget`].
#[derive(Clone, Copy, Debug)]
struct Cost {
    bytes: usize,
    work: usize,
}

/// What was found out, by the expression.
type Checked = HashMap<Box<str>, Result<Cost, Refusal>>;

static CHECKED: LazyLock<Mutex<Checked>> = LazyLock::new(Mutex::default);

/// Why an expression is refused that somebody has declared.
#[derive(Clone, Debug)]
enum Refusal {
    /// It is none.
    NoExpression(regex::Error),
    /// It looks for ends of words of all scripts.
    UnicodeWords,
    /// It has too many classes.
    Classes,
    /// Its automaton is too large.
    TooLarge,
    /// It is too large beside the others that the same one declares.
    Together,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: 2 * AUTOMATON_BYTES, work: 2 * WORK }
    }
}

impl Expression {
    /// One of the configuration.
    pub(super) fn trusted(text: &str) -> Result<Self, regex::Error> {
        Regex::new(text).map(Self::Trusted)
    }

    /// One that was checked. What many containers have is there once.
    ///
    /// # Errors
    /// It was not, or those of the node's other Pods leave no room.
    pub(super) fn declared(text: &str) -> Result<Self, regex::Error> {
        static KNOWN: LazyLock<Mutex<HashMap<Box<str>, Weak<Automaton>>>> = LazyLock::new(Mutex::default);
        if let Some(known) = lock(&KNOWN).get(text).and_then(Weak::upgrade) {
            return Ok(Self::Declared(known));
        }
        let dfa = compile(text).map_err(|refusal| match refusal {
            Refusal::NoExpression(error) => error,
            _ => regex::Error::CompiledTooBig(COMPILED_BYTES),
        })?;
        let bytes = match lock(&CHECKED).get(text) {
            Some(Ok(cost)) => cost.bytes,
            _ => AUTOMATON_BYTES,
        };
        if LIVING.fetch_add(bytes, Relaxed) + bytes > NODE_BYTES {
            LIVING.fetch_sub(bytes, Relaxed);
            tracing::warn!("a declared expression is left out: those of this node's Pods take more than 64 MiB");
            return Err(regex::Error::CompiledTooBig(NODE_BYTES));
        }
        let automaton = Arc::new(Automaton { cache: Mutex::new(dfa.create_cache()), dfa, bytes });
        let mut known = lock(&KNOWN);
        if known.len() == known.capacity() {
            known.retain(|_, automaton| automaton.strong_count() > 0);
        }
        known.insert(text.into(), Arc::downgrade(&automaton));
        Ok(Self::Declared(automaton))
    }

    /// Whether it is found in the line.
    pub(super) fn is_match(&self, line: &[u8]) -> bool {
        match self {
            Self::Trusted(regex) => regex.is_match(line),
            Self::Declared(automaton) => {
                let input = Input::new(line).earliest(true);
                // It never gives up: nothing tells it to.
                automaton.dfa.try_search_fwd(&mut lock(&automaton.cache), &input).is_ok_and(|found| found.is_some())
            }
        }
    }
}

/// Whether an expression that anybody may declare costs one step for each byte, whatever lines there are; it is charged to the
/// budget of who declares it. How much that is follows from the text alone.
///
/// # Errors
/// It does not, and what helps.
pub(crate) fn check(text: &str, budget: &mut Budget) -> Result<(), String> {
    if budget.work == 0 {
        return Err(Refusal::Together.told(text));
    }
    let known = lock(&CHECKED).get(text).cloned();
    // Each change of a Pod, and of a policy, asks again.
    let result = known.unwrap_or_else(|| {
        let result = measure(text);
        let mut checked = lock(&CHECKED);
        if checked.len() >= MAX_CHECKED {
            checked.clear();
        }
        checked.insert(text.into(), result.clone());
        result
    });
    budget.charge(&result).and(result.map(drop)).map_err(|refusal| refusal.told(text))
}

impl Budget {
    /// Takes what an expression costs. One that is refused costs, too: to find that out has taken its time.
    fn charge(&mut self, result: &Result<Cost, Refusal>) -> Result<(), Refusal> {
        let Cost { bytes, work } = match result {
            Ok(cost) => *cost,
            Err(Refusal::TooLarge) => Cost { bytes: 0, work: WORK },
            Err(_) => Cost { bytes: 0, work: WORK / 4 },
        };
        if result.is_err() {
            self.work = self.work.saturating_sub(work);
            return Ok(());
        }
        let left = self.bytes.checked_sub(bytes).zip(self.work.checked_sub(work));
        let (bytes, work) = left.unwrap_or_default();
        (self.bytes, self.work) = (bytes, work);
        left.map(drop).ok_or(Refusal::Together)
    }
}

impl Refusal {
    fn told(&self, text: &str) -> String {
        match self {
            Self::NoExpression(error) => {
                // It quotes the expression and marks a place; what is wrong is in its last line.
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default();
                format!("not a regular expression: {}", reason.strip_prefix("error: ").unwrap_or(reason))
            }
            Self::Together => format!(
                "`{text}`: all expressions that are declared together take too much memory, or too long to be checked; \
                 write `[0-9]`, `(?-u:\\w)` where digits and letters of all scripts are not meant, or fewer of them"
            ),
            Self::UnicodeWords => {
                let better = text.replace(r"\b", r"(?-u:\b)").replace(r"\B", r"(?-u:\B)");
                let better = if better != text && compile(&better).is_ok() {
                    format!("write `{better}`")
                } else {
                    r"write it as `(?-u:\b)`, which knows the letters of ASCII".to_owned()
                };
                format!("`{text}` looks for ends of words of all scripts, which takes too long on some lines; {better}")
            }
            Self::Classes => {
                format!("`{text}` has more than {CLASSES} classes of characters; write `\\d{{4}}` for `\\d\\d\\d\\d`")
            }
            Self::TooLarge => format!(
                "`{text}` takes too long on some lines; begin it with `^`, make its repetitions smaller, or write \
                 `(?-u:\\w)`, `[0-9]` where letters and digits of all scripts are not meant"
            ),
        }
    }
}

/// The automaton, of which nothing is found out yet.
fn compile(text: &str) -> Result<DFA, Refusal> {
    let no_expression = |error: String| Refusal::NoExpression(regex::Error::Syntax(error));
    let written = ast::parse::Parser::new().parse(text).map_err(|error| no_expression(error.to_string()))?;
    if classes(&written) > CLASSES {
        return Err(Refusal::Classes);
    }
    let parsed = TranslatorBuilder::new().utf8(false).build().translate(text, &written);
    let parsed = parsed.map_err(|error| no_expression(error.to_string()))?;
    if parsed.properties().look_set().contains_word_unicode() {
        return Err(Refusal::UnicodeWords);
    }
    let described = thompson::Compiler::new()
        .configure(
            thompson::Config::new()
                .nfa_size_limit(Some(COMPILED_BYTES))
                .utf8(false)
                .which_captures(WhichCaptures::None),
        )
        .syntax(syntax::Config::new().utf8(false))
        .build_from_hir(&parsed);
    let Ok(nfa) = described else { return Err(Refusal::TooLarge) };
    // All of it has room, and what a search adds.
    let config = DFA::config().cache_capacity(2 * AUTOMATON_BYTES).skip_cache_capacity_check(true);
    Builder::new().configure(config).build_from_nfa(nfa).map_err(|_| Refusal::TooLarge)
}

fn measure(text: &str) -> Result<Cost, Refusal> {
    let dfa = compile(text)?;
    let Cost { bytes, work } = walk(&dfa).ok_or(Refusal::TooLarge)?;
    // It was parsed just now.
    let classes = ast::parse::Parser::new().parse(text).map_or(CLASSES, |written| classes(&written));
    Ok(Cost { bytes: bytes + dfa.get_nfa().memory_usage(), work: work + classes * CLASS_WORK })
}

/// How long an expression takes to be read, in classes of characters.
fn classes(written: &Ast) -> usize {
    /// Sums up, and notes whether upper and lower case are looked for anywhere: it is not worth while to know where.
    #[derive(Default)]
    struct Count {
        classes: usize,
        /// Those in which each letter may have another case.
        cased: usize,
        characters: usize,
        is_cased: bool,
    }

    impl Visitor for Count {
        type Output = usize;
        type Err = Infallible;

        fn finish(self) -> Result<usize, Infallible> {
            let cased = self.cased * (CASED_CLASS - 1) + self.characters / CASED;
            Ok(self.classes + if self.is_cased { cased } else { 0 })
        }

        fn visit_pre(&mut self, ast: &Ast) -> Result<(), Infallible> {
            let flags = match ast {
                Ast::Flags(flags) => Some(&flags.flags),
                Ast::Group(group) => match &group.kind {
                    GroupKind::NonCapturing(flags) => Some(flags),
                    _ => None,
                },
                Ast::ClassPerl(_) => {
                    self.classes += 1;
                    None
                }
                Ast::ClassUnicode(_) => {
                    (self.classes, self.cased) = (self.classes + 1, self.cased + 1);
                    None
                }
                _ => None,
            };
            let cased = FlagsItemKind::Flag(Flag::CaseInsensitive);
            self.is_cased |= flags.is_some_and(|flags| flags.items.iter().any(|item| item.kind == cased));
            Ok(())
        }

        fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Infallible> {
            match item {
                ClassSetItem::Perl(_) | ClassSetItem::Unicode(_) => {
                    (self.classes, self.cased) = (self.classes + 1, self.cased + 1);
                }
                // All but a few are most of all.
                ClassSetItem::Bracketed(set) if set.negated => self.cased += 1,
                ClassSetItem::Range(range) => {
                    self.characters += range.end.c as usize - (range.start.c as usize).min(range.end.c as usize);
                }
                _ => {}
            }
            Ok(())
        }
    }

    // It can't fail.
    ast::visit(written, Count::default()).unwrap_or(CLASSES)
}

/// Goes to every state that any line can lead to. Finding out where a byte leads to takes as long as the state is large, which
/// is the unit of work; so states of many parts and automatons of many states are both found out soon enough.
fn walk(dfa: &DFA) -> Option<Cost> {
    let mut cache = dfa.create_cache();
    let begin = cache.memory_usage();
    let transitions = size_of::<LazyStateID>() << dfa.byte_classes().stride2();
    let units: Vec<_> = dfa.byte_classes().representatives(..).collect();
    let start = dfa.start_state_forward(&mut cache, &Input::new(b"")).ok()?;
    let mut known = HashSet::from([start]);
    let mut ahead = vec![(start, cache.memory_usage() - begin)];
    let mut work = 0_usize;
    while let Some((state, size)) = ahead.pop() {
        // A search ends at the first match.
        if state.is_dead() || state.is_match() {
            continue;
        }
        for unit in &units {
            let before = cache.memory_usage();
            let next = match unit.as_u8() {
                Some(byte) => dfa.next_state(&mut cache, state, byte).ok()?,
                None => dfa.next_eoi_state(&mut cache, state).ok()?,
            };
            if known.insert(next) {
                ahead.push((next, (cache.memory_usage() - before).saturating_sub(transitions)));
            }
            work += size;
            if work > WORK || cache.memory_usage() - begin > AUTOMATON_BYTES {
                return None;
            }
        }
    }
    Some(Cost { bytes: cache.memory_usage() - begin, work })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Whether it may be declared, alone.
    fn checked(text: &str) -> Result<(), String> {
        check(text, &mut Budget::default())
    }

    /// As slow to find out as 570 characters can be.
    fn nested() -> String {
        let others: String = (0x80..0xf8).map(|byte| format!("\\x{byte:02x}")).collect();
        format!(r"(?s-u)(?:.?.?.?){{0,90}}{{0,6}}Z!|0123456789abcdefghijklmnopqrstuvwxyz{others}")
    }

    #[test]
    fn what_people_write_is_taken_and_finds_what_it_should() {
        for (text, line) in [
            (r"^\d{4}-\d{2}-\d{2}", "2026-01-02 x"),
            (r"^\[?\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}[.,]\d{3}", "[2026-01-02T03:04:05.678"),
            (r"^\s+at ", "\tat org.example.A(A.java:1)"),
            (r"^(Caused by|\s)", "Caused by: x"),
            (r"^\S", "x"),
            (r"^\s*$", "  "),
            (r"\\$", r"goes on \"),
            (r"(?i)error|warn", "a WARNing"),
            (r"^[A-Z][a-z]{2} [ 0-9]{2} \d{2}:\d{2}", "Jan  2 03:04:05"),
            (r"^\w+ \w+:", "größe zwei:"),
            (r"(?-u:\b)panic(?-u:\b)", "a panic"),
            (r"(?-u:\b)\d{3}-\d{4}(?-u:\b)", "call 555-1234"),
            (r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}", "to a.b@example.com"),
            (r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", "token eyJa.b.c"),
            (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", "from 10.0.0.1"),
            (r#"^\S+ \S+ \S+ \[[^\]]+\] ""#, r#"a b c [d] "GET"#),
            (r"^(?:\w+\.)+\w+Exception", "org.example.AException: x"),
            (r"^1[01]{30}Z", &format!("1{}Z", "0".repeat(30))),
        ] {
            checked(text).expect(text);
            let declared = Expression::declared(text).expect(text);
            assert!(declared.is_match(line.as_bytes()), "{text}: {line}");
            assert!(Regex::new(text).expect(text).is_match(line.as_bytes()), "{text}: {line}");
        }
        let declared = Expression::declared(r"(?-u)\xff+ error").expect("bytes");
        assert!(declared.is_match(b"\xff\xff error") && !declared.is_match(b"error"));
    }

    #[test]
    fn what_is_slow_on_some_lines_is_refused_with_what_helps() {
        for text in ["1[01]{9000}Z", "1[01]{30}Z", r"\w{40}x", &nested()] {
            assert!(checked(text).expect_err("slow").contains("takes too long"), "{text}");
        }
        let words = checked(r"\bpanic\b").expect_err("of all scripts");
        assert!(words.ends_with(r"write `(?-u:\b)panic(?-u:\b)`"), "{words}");
        let start = checked(r"\b{start}panic").expect_err("of all scripts");
        assert!(start.ends_with("the letters of ASCII"), "{start}");
        // Upper and lower case are looked for letter by letter, also of what then comes not even once.
        let cased = format!("(?i){}", "[!-\u{1e943}]{0}".repeat(90));
        for text in [r"\pL".repeat(300), cased, format!("(?i){}", r"\pL{0}".repeat(40))] {
            assert!(checked(&text).expect_err("too many").contains("classes of characters"), "{text}");
        }
        checked(r"(?i)^\[?(error|warn)\]? [a-zß-ž]+ \d{4}").expect("usual");
    }

    #[test]
    fn a_line_costs_one_step_a_byte_backwards_too() {
        // Their own automatons are small; the crate `regex` would look for them from behind, with ones of 2^30 states.
        for text in ["Z[01]{30}1[01]*$", "[A-Z][01]{30}1[01]*END", "(?-u)[A-Z](?:[01]?){0,30}{0,8}[01]{16}1[01]*END"] {
            checked(text).expect(text);
            let Expression::Declared(automaton) = Expression::declared(text).expect(text) else {
                panic!("it is declared");
            };
            let mut bits = 1_u64;
            let line: Vec<u8> = (0..256 << 10)
                .map(|_| {
                    bits ^= bits << 13;
                    bits ^= bits >> 7;
                    bits ^= bits << 17;
                    b"01Z"[usize::try_from(bits >> 33).unwrap_or_default() % 3]
                })
                .chain(*b"END")
                .collect();
            let _ = Expression::Declared(Arc::clone(&automaton)).is_match(&line);
            let cache = lock(&automaton.cache);
            assert!(cache.clear_count() == 0 && cache.memory_usage() <= 2 * AUTOMATON_BYTES, "{text}");
        }
    }

    #[test]
    fn all_that_one_declares_costs_a_bounded_time_and_memory() {
        let begin = Instant::now();
        let mut budget = Budget::default();
        let taken = (0..400).filter(|number| check(&format!("{}{number}", nested()), &mut budget).is_ok()).count();
        // Without a bound it is minutes.
        assert!(taken == 0 && begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        let mut budget = Budget::default();
        let refused = (0..400).find_map(|number| check(&format!(r"^\w\d{number}"), &mut budget).err());
        assert!(refused.expect("too much of it").contains("together take too much memory"));
        // Who comes next has his own.
        checked(r"^\d{4}").expect("fast");
    }

    #[test]
    fn what_many_containers_have_is_there_once() {
        let [one, other] = [0, 1].map(|_| Expression::declared("^many ").expect("valid"));
        let (Expression::Declared(one), Expression::Declared(other)) = (one, other) else { panic!("declared") };
        assert!(Arc::ptr_eq(&one, &other));
    }
}
