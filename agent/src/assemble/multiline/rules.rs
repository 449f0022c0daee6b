//! Which line begins a record, and which one goes on with it.

use super::{
    super::settings::{Multiline, Pattern, SettingsError},
    dotnet,
    expression::{self, Budget, Expression},
    go, java, node, python, ruby, text,
};

/// How many lines of an exception's message, behind its first, are waited through for the first frame. Each is joined
/// only when the frame comes.
pub(super) const MAX_MESSAGE_LINES: u8 = 8;

/// A language whose stack traces have built-in rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq, schemars::JsonSchema, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// Java and other languages of its virtual machine: causes, suppressed exceptions, messages of several lines.
    Java,
    /// Python: chained exceptions, exception groups, syntax errors.
    Python,
    /// Go: panics and fatal errors with all their goroutines.
    Go,
    /// Ruby: uncaught exceptions with their causes, Rails' exceptions.
    Ruby,
    /// Node.js: uncaught exceptions, printed errors with their properties and causes.
    Node,
    /// .NET: inner and aggregate exceptions, and the entries of its console logger.
    Dotnet,
}

/// What a line is to the record under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step<S> {
    /// Part of it, and with it every line that was held on trial.
    Join(S),
    /// Part of it if a later line joins.
    Hold(S),
    /// No part of it: the record has ended before.
    End,
}

impl<S> Step<S> {
    fn map<T>(self, into: impl FnOnce(S) -> T) -> Step<T> {
        match self {
            Self::Join(state) => Step::Join(into(state)),
            Self::Hold(state) => Step::Hold(into(state)),
            Self::End => Step::End,
        }
    }
}

/// Which record is under way, and where in it the last line was. It is kept on disk over restarts of the agent: a change
/// here, or of a language's states, needs another version of the journal.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub(super) enum State {
    Java(java::State),
    Python(python::State),
    Go(go::State),
    Ruby(ruby::State),
    Node(node::State),
    Dotnet(dotnet::State),
    /// Of the pattern with this index.
    Pattern(usize),
}

/// Bounds of what is held for one record.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Limits {
    pub(in super::super) lines: usize,
    pub(in super::super) bytes: u64,
    pub(in super::super) flush_nanos: u64,
}

/// The rules of [`super::super::settings::Multiline`], compiled.
#[derive(Debug)]
pub(in super::super) struct Rules {
    languages: Vec<Language>,
    patterns: Vec<CompiledPattern>,
    pub(super) limits: Limits,
    /// Whether a line with this first byte can begin a record.
    starts: [bool; 256],
    /// Whether an empty line can.
    empty_starts: bool,
    /// Whether a language is among them whose traces begin with the name of an exception.
    exceptions: bool,
}

#[derive(Debug)]
struct CompiledPattern {
    start: Option<Expression>,
    continuation: Option<Expression>,
}

impl Rules {
    /// `None` when there is no rule.
    pub(in super::super) fn compile(multiline: &Multiline, limits: Limits) -> Result<Option<Self>, Vec<SettingsError>> {
        let Multiline { rules: languages, patterns, is_declared, .. } = multiline;
        if languages.is_empty() && patterns.is_empty() {
            return Ok(None);
        }
        let mut compiled = Vec::with_capacity(patterns.len());
        let mut errors = Vec::new();
        for (index, pattern) in patterns.iter().enumerate() {
            match CompiledPattern::new(index, pattern, *is_declared) {
                Ok(pattern) => compiled.push(pattern),
                Err(wrong) => errors.extend(wrong),
            }
        }
        errors.extend(stands_alone(multiline));
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut starts = [!patterns.is_empty(); 256];
        for (byte, starts) in (0..=u8::MAX).zip(&mut starts) {
            *starts |= languages.iter().any(|language| language.may_start(byte));
        }
        let empty_starts = !patterns.is_empty();
        let exceptions =
            languages.iter().any(|language| matches!(language, Language::Java | Language::Node | Language::Dotnet));
        Ok(Some(Self { languages: languages.clone(), patterns: compiled, limits, starts, empty_starts, exceptions }))
    }

    /// Whether a line with this first byte can begin a record: what most lines cost.
    pub(super) fn may_start(&self, first: Option<&u8>) -> bool {
        first.map_or(self.empty_starts, |&byte| self.starts[usize::from(byte)])
    }

    /// The record that a line begins.
    pub(super) fn start(&self, text: &[u8]) -> Option<State> {
        let first = text.first();
        // Three languages ask for it, and it is the dearest question: it is asked once.
        let names_exception = self.exceptions && text::names_exception(text);
        let language = |language: &Language| match first {
            Some(&byte) if language.may_start(byte) => language.start(text, names_exception),
            _ => None,
        };
        let pattern = |pattern: &CompiledPattern| pattern.starts(text);
        self.languages.iter().find_map(language).or_else(|| self.patterns.iter().position(pattern).map(State::Pattern))
    }

    /// What a line is to the record under way.
    pub(super) fn next(&self, state: State, text: &[u8]) -> Step<State> {
        match state {
            State::Java(state) => state.next(text).map(State::Java),
            State::Python(state) => state.next(text).map(State::Python),
            State::Go(state) => state.next(text).map(State::Go),
            State::Ruby(state) => state.next(text).map(State::Ruby),
            State::Node(state) => state.next(text).map(State::Node),
            State::Dotnet(state) => state.next(text).map(State::Dotnet),
            State::Pattern(index) if self.patterns[index].continues(text) => Step::Join(state),
            State::Pattern(_) => Step::End,
        }
    }
}

/// Whether a pattern that takes every line has others beside it.
fn stands_alone(Multiline { rules, patterns, .. }: &Multiline) -> Option<SettingsError> {
    let index = patterns.iter().position(Pattern::takes_every_line)?;
    (rules.len() + patterns.len() > 1).then_some(SettingsError::NotAlone { index })
}

/// What is wrong with rules that somebody has declared: the first of it. Nothing is compiled that was compiled before.
pub(crate) fn declared_problem(multiline: &Multiline, budget: &mut Budget) -> Option<String> {
    for (index, Pattern { start, continuation }) in multiline.patterns.iter().enumerate() {
        if start.is_none() && continuation.is_none() {
            return Some(SettingsError::EmptyPattern { index }.to_string());
        }
        for (field, expression) in [("start", start), ("continuation", continuation)] {
            if let Some(Err(error)) = expression.as_deref().map(|expression| expression::check(expression, budget)) {
                return Some(format!("multiline.patterns[{index}].{field}: {error}"));
            }
        }
    }
    stands_alone(multiline).map(|error| error.to_string())
}

impl Language {
    fn may_start(self, first: u8) -> bool {
        match self {
            Self::Java => java::may_start(first),
            Self::Python => python::may_start(first),
            Self::Go => go::may_start(first),
            Self::Ruby => ruby::may_start(first),
            Self::Node => node::may_start(first),
            Self::Dotnet => dotnet::may_start(first),
        }
    }

    fn start(self, text: &[u8], names_exception: bool) -> Option<State> {
        match self {
            Self::Java => java::start(text, names_exception).map(State::Java),
            Self::Python => python::start(text).map(State::Python),
            Self::Go => go::start(text).map(State::Go),
            Self::Ruby => ruby::start(text).map(State::Ruby),
            Self::Node => node::start(text, names_exception).map(State::Node),
            Self::Dotnet => dotnet::start(text, names_exception).map(State::Dotnet),
        }
    }
}

impl CompiledPattern {
    fn new(index: usize, pattern: &Pattern, is_declared: bool) -> Result<Self, Vec<SettingsError>> {
        if pattern.start.is_none() && pattern.continuation.is_none() {
            return Err(vec![SettingsError::EmptyPattern { index }]);
        }
        let new = if is_declared { Expression::declared } else { Expression::trusted };
        let compile = |field, expression: &Option<String>| {
            expression.as_deref().map(new).transpose().map_err(|source| SettingsError::Pattern {
                index,
                field,
                source: Box::new(source),
            })
        };
        match (compile("start", &pattern.start), compile("continuation", &pattern.continuation)) {
            (Ok(start), Ok(continuation)) => Ok(Self { start, continuation }),
            (start, continuation) => Err(start.err().into_iter().chain(continuation.err()).collect()),
        }
    }

    fn takes_every_line(&self) -> bool {
        self.start.is_none() || self.continuation.is_none()
    }

    /// With one expression, every line that does not go on with a record begins one.
    fn starts(&self, text: &[u8]) -> bool {
        self.takes_every_line() || self.start.as_ref().is_some_and(|start| start.is_match(text))
    }

    fn continues(&self, text: &[u8]) -> bool {
        match (&self.start, &self.continuation) {
            (_, Some(continuation)) => continuation.is_match(text),
            (Some(start), None) => !start.is_match(text),
            (None, None) => false,
        }
    }
}
