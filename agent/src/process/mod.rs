//! What is done with lines between `assemble` and the sinks, for all sinks alike: drop, sample, redact, add fields, limit
//! the rate. See `docs/processing.md`.
//!
//! Nothing here does I/O or asks for the time. A batch of which nothing changes is handed on as it is, without a copy;
//! positions and spans of lines are always those of the stream's own bytes.

mod card;
mod limit;
pub(crate) mod pattern;
mod redact;
mod sample;
mod select;
mod settings;
mod stats;
#[cfg(test)]
mod tests;
mod work;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

pub use limit::Workload;
pub use redact::{Pattern, Rule};
pub use select::{Selection, Selector, SelectorProblem};
pub use settings::{AddFields, Drop, MAX_PROCESSORS, ProcessorProblem, ProcessorSettings, RateLimit, Redact, Sample};
pub use stats::ProcessorStats;

use self::{
    limit::{Limiter, Suppressed},
    redact::Redactor,
    sample::Sampler,
    stats::Counters,
    work::Work,
};
use crate::{
    ledger::Reason,
    record::{Attributes, Batch, Class, Line, LineFlags},
    sinks::stream_cache::StreamCache,
};

/// How many streams' answers are kept.
const STREAMS: usize = 4096;

/// The processors of a configuration, in order.
#[derive(Default)]
pub struct Processors {
    steps: Arc<[Step]>,
    /// Which steps are for each stream, a bit each.
    streams: Mutex<StreamCache<u64, STREAMS>>,
}

/// The processors that are in force.
#[derive(Clone, Debug, Default)]
pub struct InForce(Arc<RwLock<Option<Arc<Processors>>>>);

impl InForce {
    /// `None` while none is configured.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Processors>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts others in their place, and returns those before.
    pub fn replace(&self, next: Option<Arc<Processors>>) -> Option<Arc<Processors>> {
        std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), next)
    }

    /// What they do to lines that were read again.
    #[must_use]
    pub fn redo(&self) -> Option<Redo> {
        self.get().map(|processors| Redo(Arc::clone(&processors.steps)))
    }
}

/// Does to lines that were read again what was done to them before: they are redacted and get their fields. Which of them
/// stay was decided then.
#[derive(Clone)]
pub struct Redo(Arc<[Step]>);

impl Redo {
    /// The lines as they were then.
    #[must_use]
    pub fn apply(&self, batch: &Arc<Batch>) -> Arc<Batch> {
        let mut work = Work::new(batch);
        for step in &*self.0 {
            let changes_lines = matches!(step.action, Action::Redact(_) | Action::AddFields(_));
            if changes_lines && step.selection.matches_stream(&batch.stream) {
                step.apply(&mut work);
            }
        }
        work.finish().map_or_else(|| Arc::clone(batch), |processed| processed.batch)
    }
}

impl fmt::Debug for Redo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|step| &step.name)).finish()
    }
}

/// What became of a batch.
#[derive(Debug)]
pub struct Processed {
    /// What is left of it, perhaps no line at all.
    pub batch: Arc<Batch>,
    /// Bytes of the stream that were dropped, by reason.
    pub dropped: Vec<(Reason, u64)>,
}

struct Step {
    name: Arc<str>,
    selection: Selection,
    action: Action,
    counters: Arc<Counters>,
}

enum Action {
    Drop,
    Sample(u64),
    Redact(Redactor),
    AddFields(Attributes),
    RateLimit(Limiter),
}

impl Processors {
    /// Compiles the processors of a configuration, which go on where those before were: what has the same name keeps its
    /// figures, and a rate limit what it knows of workloads.
    ///
    /// # Errors
    /// For the processor at this index, what is wrong with it.
    pub fn new(settings: &[ProcessorSettings], before: Option<&Self>) -> Result<Self, (usize, ProcessorProblem)> {
        let steps = settings.iter().enumerate().map(|(index, settings)| {
            let mut step = Step::new(settings).ok_or_else(|| {
                let unnamed = || ProcessorProblem { option: String::new(), problem: "does not compile".to_owned() };
                (index, settings.problems().into_iter().next().unwrap_or_else(unnamed))
            })?;
            let same = before.and_then(|before| before.steps.iter().find(|other| other.name == step.name));
            if let Some(same) = same {
                step.counters = Arc::clone(&same.counters);
                if let (Action::RateLimit(new), Action::RateLimit(old)) = (&mut step.action, &same.action) {
                    new.adopt(old);
                }
            }
            Ok(step)
        });
        // One bit each.
        let steps = steps.take(MAX_PROCESSORS).collect::<Result<_, _>>()?;
        Ok(Self { steps, streams: Mutex::default() })
    }

    /// Takes a batch through all steps; `None` when it is as it was.
    pub fn apply(&self, batch: &Arc<Batch>) -> Option<Processed> {
        if self.steps.is_empty() {
            return None;
        }
        let applicable = {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            *streams.get_or_insert_with(&batch.stream, |stream| {
                let bit = |(index, step): (usize, &Step)| u64::from(step.selection.matches_stream(stream)) << index;
                self.steps.iter().enumerate().map(bit).sum()
            })
        };
        if applicable == 0 {
            return None;
        }
        let mut work = Work::new(batch);
        for (index, step) in self.steps.iter().enumerate() {
            if applicable >> index & 1 == 1 {
                step.apply(&mut work);
            }
        }
        work.finish()
    }

    /// Summaries of what was suppressed and has not been told for as long as it may be at `now`, in nanoseconds since
    /// the Unix epoch; of everything that was not told, for `None`.
    pub fn due(&self, now: Option<u64>) -> Vec<Batch> {
        let summaries = self.steps.iter().enumerate().filter_map(|(index, step)| match &step.action {
            Action::RateLimit(limiter) => Some((index, step, limiter.due(now))),
            _ => None,
        });
        summaries
            .flat_map(|(index, step, due)| due.into_iter().map(move |due| self.summary(index, step, &due)))
            .collect()
    }

    /// What rate limits that `next` does not go on with have not told.
    pub fn left_behind(&self, next: &Self) -> Vec<Batch> {
        let limiters = || next.steps.iter().filter_map(Step::limiter);
        let mut left = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            if let Some(limiter) = step.limiter().filter(|own| !limiters().any(|other| own.is_adopted_by(other))) {
                left.extend(limiter.due(None).iter().map(|due| self.summary(index, step, due)));
            }
        }
        left
    }

    /// A batch of the summary alone, with the fields that processors after its own add.
    fn summary(&self, index: usize, step: &Step, suppressed: &Suppressed) -> Batch {
        let (mut line, body) = work::summary(&step.name, suppressed);
        line.body = 0..body.len();
        for later in &self.steps[index + 1..] {
            if let Action::AddFields(fields) = &later.action
                && later.selection.matches_stream(&suppressed.stream)
                && later.selection.matches_line(line.severity, body.as_bytes())
            {
                work::add_fields(&mut line.attributes, fields);
            }
        }
        Batch { stream: Arc::clone(&suppressed.stream), data: body.into(), lines: vec![line] }
    }

    /// The figures of each processor, in order.
    #[must_use]
    pub fn stats(&self) -> Vec<ProcessorStats> {
        self.steps.iter().map(|step| step.counters.snapshot(&step.name)).collect()
    }
}

impl Step {
    /// `None` for settings with problems.
    fn new(settings: &ProcessorSettings) -> Option<Self> {
        let action = match settings {
            ProcessorSettings::Drop(_) => Action::Drop,
            ProcessorSettings::Sample(settings) => Action::Sample(settings.keep_one_of.max(1)),
            ProcessorSettings::Redact(settings) => {
                Action::Redact(Redactor::new(&settings.rules, &settings.patterns, &settings.replacement).ok()?)
            }
            ProcessorSettings::AddFields(settings) => Action::AddFields(settings.attributes()),
            ProcessorSettings::RateLimit(settings) => Action::RateLimit(Limiter::new(
                settings.lines_per_second,
                settings.burst(),
                settings.per,
                settings.summary_interval,
            )),
        };
        let selection = settings.matches().compile().ok()?;
        Some(Self { name: settings.name().into(), selection, action, counters: Arc::default() })
    }

    fn limiter(&self) -> Option<&Limiter> {
        match &self.action {
            Action::RateLimit(limiter) => Some(limiter),
            _ => None,
        }
    }

    fn apply(&self, work: &mut Work<'_>) {
        let whole = self.selection.takes_whole_streams();
        let stream = work.stream();
        let meant = |item: &work::Item<'_>, data: &[u8]| {
            whole || self.selection.matches_line(item.line().severity, item.body(data))
        };
        // Records of refusals are the agent's, and hold what clients have sent; summaries are the agent's alone.
        let keeps_own = stream.class != Class::Governance;
        match &self.action {
            Action::Drop => self.drop_unless(work, keeps_own, Reason::Filtered, |item, data| !meant(item, data)),
            Action::Sample(one_of) => {
                let sampler = Sampler::new(&stream.key, *one_of);
                self.drop_unless(work, keeps_own, Reason::Sampled, |item, data| {
                    !meant(item, data) || sampler.keeps(item.line().position)
                });
            }
            Action::Redact(redactor) => {
                let mut count = 0;
                work.change(|item, data| {
                    if !(keeps_own && item.is_synthetic()) && meant(item, data) {
                        count += item.redact(redactor, data);
                    }
                });
                self.counters.note_redactions(count);
            }
            Action::AddFields(fields) => work.change(|item, data| {
                if meant(item, data) {
                    item.add_fields(fields);
                }
            }),
            Action::RateLimit(limiter) => {
                let mut gate = limiter.open(&stream);
                let mut summaries = Vec::new();
                self.drop_unless(work, true, Reason::Suppressed, |item, data| {
                    if item.is_synthetic() {
                        // The rate is that of lines.
                        return true;
                    }
                    if let Some(due) = gate.due(item.line()) {
                        summaries.push(work::summary(&self.name, &due));
                    }
                    !meant(item, data) || gate.admits(item.line())
                });
                work.insert(summaries);
            }
        }
    }

    /// Drops lines that `keep` is false for; our own stay, if it `keeps_own`.
    fn drop_unless(
        &self,
        work: &mut Work<'_>,
        keeps_own: bool,
        reason: Reason,
        mut keep: impl FnMut(&work::Item<'_>, &[u8]) -> bool,
    ) {
        let lines = work.drop_unless(reason, |item, data| {
            let kept = keep(item, data);
            kept || keeps_own && item.is_synthetic()
        });
        self.counters.note_dropped(reason, lines);
    }
}

impl fmt::Debug for Processors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|step| &step.name)).finish()
    }
}

/// The lines of a batch that `keep` is true for, with their bytes; the batch itself when that is all of them.
pub fn keep_lines(batch: &Arc<Batch>, mut keep: impl FnMut(&Line, &[u8]) -> bool) -> Arc<Batch> {
    let mut work = Work::new(batch);
    work.drop_unless(Reason::Filtered, |item, data| keep(item.line(), item.body(data)));
    work.finish().map_or_else(|| Arc::clone(batch), |processed| processed.batch)
}

/// Whether a line is the agent's own.
const fn is_synthetic(flags: LineFlags) -> bool {
    flags.contains(LineFlags::SYNTHETIC)
}
