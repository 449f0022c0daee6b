//! Which lines a sink wants: classes, and its own filter.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{SinkError, SinkSettings, stream_cache::StreamCache};
use crate::{
    process::{Selection, keep_lines},
    record::{Batch, Class, Stream},
};

/// How many streams' answers are kept.
const STREAMS: usize = 4096;

/// What a sink wants.
#[derive(Debug)]
pub(super) struct Wants {
    pub(super) classes: Vec<Class>,
    /// The sink's name, which streams may be meant for; `None` for what wants all of them.
    name: Option<String>,
    filter: Option<Filter>,
}

#[derive(Debug)]
struct Filter {
    selection: Selection,
    /// Whether lines of a stream can be wanted at all.
    streams: Mutex<StreamCache<bool, STREAMS>>,
}

impl Wants {
    /// What a sink with these settings wants.
    ///
    /// # Errors
    /// A filter that does not compile, which a checked configuration does not have.
    pub(super) fn new(settings: &SinkSettings) -> Result<Self, SinkError> {
        let mut wants = Self { name: Some(settings.name().to_owned()), ..Self::classes(settings.classes()) };
        if !settings.filter().is_everything() {
            let selection = settings.filter().compile().map_err(|problems| SinkError {
                action: format!("reading `filter` of sink `{}`", settings.name()),
                source: io::Error::other(problems.first().map_or_else(String::new, |problem| problem.problem.clone())),
            })?;
            wants.filter = Some(Filter { selection, streams: Mutex::default() });
        }
        Ok(wants)
    }

    /// All lines of these classes.
    pub(super) fn classes(classes: &[Class]) -> Self {
        Self { classes: classes.to_vec(), name: None, filter: None }
    }

    /// Whether the stream is for this sink, where annotations or policies name sinks.
    fn is_meant(&self, stream: &Stream) -> bool {
        let named = stream.resource.route.as_ref().and_then(|route| route.sinks.as_ref());
        named.zip(self.name.as_ref()).is_none_or(|(sinks, name)| sinks.iter().any(|sink| **sink == **name))
    }

    /// The lines of the batch that are wanted: the batch itself when all are, `None` when none is.
    pub(super) fn part(&self, batch: &Arc<Batch>) -> Option<Arc<Batch>> {
        if !self.classes.contains(&batch.stream.class) || batch.lines.is_empty() || !self.is_meant(&batch.stream) {
            return None;
        }
        let Some(Filter { selection, streams }) = &self.filter else { return Some(Arc::clone(batch)) };
        let matches = {
            let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
            *streams.get_or_insert_with(&batch.stream, |stream| selection.matches_stream(stream))
        };
        if !matches {
            return None;
        }
        if selection.takes_whole_streams() {
            return Some(Arc::clone(batch));
        }
        let part = keep_lines(batch, |line, body| selection.matches_line(line.severity, body));
        (!part.lines.is_empty()).then_some(part)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::mpsc};

    use super::*;
    use crate::{
        ledger::{Reason, Stage},
        process::Selector,
        record::Origin,
        sinks::{
            Settlement, Sinks,
            buffer::Home,
            file,
            testing::{LONG, batch, stream},
        },
    };

    fn file_sink(name: &str, folder: &Path, filter: Selector) -> SinkSettings {
        SinkSettings::File(file::Settings {
            name: name.to_owned(),
            path: folder.join(name),
            filter,
            format: file::Format::Text,
            compression: file::Compression::None,
            ..file::Settings::default()
        })
    }

    fn body(pattern: &str) -> Selector {
        Selector { body: Some(pattern.to_owned()), ..Selector::default() }
    }

    /// All that a sink wrote.
    fn text(folder: &Path) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                text += &self::text(&entry);
            } else if entry.extension().is_some_and(|extension| extension == "log") {
                text += &fs::read_to_string(entry).expect("text");
            }
        }
        text
    }

    #[test]
    fn each_sink_gets_its_lines_and_the_ledger_has_all_of_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let (sender, settled) = mpsc::channel();
        let settings = [file_sink("one", folder.path(), body("a")), file_sink("two", folder.path(), body("b"))];
        let sinks = Sinks::start(&settings, Home::none(sender)).expect("starts");
        let origin = Origin::File { path: "/var/log/app.log".into() };
        let stream = stream(Class::Business, origin, "shop", "web", "app");
        let account = Arc::clone(&stream.account);
        let bodies: [&[u8]; 5] = [b"neither", b"a", b"a and b", b"b", b"nothing"];
        let batch = Arc::new(batch(&stream, 100, &bodies));
        account.produce(batch.span());
        let (start, end, span) = (batch.start(), batch.end(), batch.span());
        sinks.deliver(&batch, None);
        assert!(sinks.close(LONG).iter().all(|(_, leftover)| leftover.finished));
        drop((sinks, batch));
        assert_eq!(text(&folder.path().join("one")), "a\na and b\n");
        assert_eq!(text(&folder.path().join("two")), "a and b\nb\n");
        let (mut stored, mut booked) = (0, 0);
        for settlement in settled.try_iter() {
            match settlement {
                Settlement::Stored(covers) => {
                    assert_eq!((covers.start, covers.end), (start, end), "the position moves over what was left out");
                    stored += 1;
                }
                Settlement::Settled(settled) => {
                    assert_eq!((settled.start, settled.end, settled.lost), (start, end, None));
                    assert_eq!((settled.lines, settled.span), (3, 12));
                    booked += 1;
                    account.deliver(settled.span, settled.lines);
                }
            }
        }
        assert_eq!((stored, booked), (1, 1));
        let balance = account.balance();
        assert_eq!(balance.dropped, [(Stage::Sink, Reason::Filtered, span - 12)]);
        assert_eq!((balance.pending, balance.difference()), (0, 0));
    }

    #[test]
    fn a_stream_that_is_not_meant_costs_nothing_and_moves_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let (sender, settled) = mpsc::channel();
        let filter = Selector { namespace: vec!["other".to_owned()], ..Selector::default() };
        let sinks = Sinks::start(&[file_sink("one", folder.path(), filter)], Home::none(sender)).expect("starts");
        let origin = Origin::File { path: "/var/log/app.log".into() };
        let stream = stream(Class::Business, origin, "shop", "web", "app");
        let batch = Arc::new(batch(&stream, 0, &[b"x"]));
        stream.account.produce(2);
        sinks.deliver(&batch, None);
        let is_stored = |settlement: &Settlement| matches!(settlement, Settlement::Stored(covers) if covers.end == 2);
        assert!(settled.try_iter().any(|settlement| is_stored(&settlement)));
        assert_eq!(stream.account.balance().dropped, [(Stage::Sink, Reason::Filtered, 2)]);
        assert_eq!(sinks.stats()[0].delivered_records, 0);
    }
}
