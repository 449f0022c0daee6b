//! The sinks of a new configuration take the place of those that run.
//!
//! A sink that did not change goes on. For one that did, the new sink takes over the queue of the old one, so what
//! waited there goes to it, in order and before all that comes later. Whatever can fail is done before anything is
//! given up: a sink that can't be started leaves everything as it was.

use std::{
    fs, io,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Leftover, Sink, SinkError, SinkSettings, Sinks, buffer::Home, handover::Seat, reopen::Reopen, set::Member,
    stats::Counters, wants::Wants, worker::Worker,
};
use crate::{events::Event, ledger::Reason};

/// How long those who are just delivering may need to be done with a sink that is taken away.
const ON_THE_WAY: Duration = Duration::from_secs(1);
/// Pause between looks at what nobody signals.
const PAUSE: Duration = Duration::from_millis(5);

/// Sinks that are in the configuration no more.
#[derive(Debug)]
pub struct Removed {
    members: Vec<Arc<Member>>,
    home: Home,
}

/// What becomes of one entry of the new configuration.
struct Step<'new> {
    settings: &'new SinkSettings,
    /// The running sink that it goes on with, or takes the place of.
    old: Option<Arc<Member>>,
    /// The worker that `old` has, or a new one.
    worker: Worker,
    seat: Option<Seat>,
    wants: Option<Wants>,
    /// `None` where the folder is still another's.
    sink: Option<Box<dyn Sink>>,
    /// Its old sink has the folder that a new one needs, and has to end before that can be made.
    gives_way: bool,
}

impl Step<'_> {
    fn is_unchanged(&self) -> bool {
        self.old.as_ref().is_some_and(|old| old.settings.as_ref() == Some(self.settings))
    }

    fn old_worker(&self) -> Option<&Worker> {
        self.old.as_ref().map(|old| &old.worker)
    }
}

impl Sinks {
    /// Starts the sinks of a new configuration in the place of these. Those that run have until `deadline` to end the
    /// call that they are in. The new set is to be used in this one's place, and what was removed is to be ended.
    ///
    /// # Errors
    /// The new sink that can't be started; then this set goes on as before.
    pub fn replace(&self, new: &[SinkSettings], deadline: Instant) -> Result<(Self, Removed), SinkError> {
        let (mut steps, removed) = self.plan(new);
        let prepared = prepare(&mut steps, &self.home).and_then(|()| take_folders(&mut steps, &self.home, deadline));
        if let Err(error) = prepared {
            close_new(&mut steps);
            restore(&mut steps, &self.home);
            return Err(error);
        }
        let members = hand_over(steps, deadline);
        for settings in new.iter().filter(|settings| settings.buffer().is_none()) {
            self.home.forget_owed(settings.name());
        }
        Ok((Self { members, home: self.home.clone() }, Removed { members: removed, home: self.home.clone() }))
    }

    /// Finds the running sink that each new one goes on with: that of its name, else one that is gone from the
    /// configuration, when the new one wants all that it wanted or has its folder.
    fn plan<'new>(&self, new: &'new [SinkSettings]) -> (Vec<Step<'new>>, Vec<Arc<Member>>) {
        let mut left = self.members.clone();
        let mut take = |fits: &dyn Fn(&Member) -> bool| {
            left.iter().position(|member| fits(member)).map(|index| left.remove(index))
        };
        let mut old: Vec<_> =
            new.iter().map(|settings| take(&|member| member.worker.name() == settings.name())).collect();
        let same_folder = |member: &Member, settings: &SinkSettings| {
            member.settings.as_ref().is_some_and(|before| shares_folder(before, settings))
        };
        let wants_all = |member: &Member, settings: &SinkSettings| {
            let same_filter = |before: &SinkSettings| before.filter() == settings.filter();
            // A buffer stays with its name: what is in it waits there for a sink of that name.
            let has_buffer = member.settings.as_ref().is_some_and(|before| before.buffer().is_some());
            !has_buffer
                && member.wants.classes.iter().all(|class| settings.classes().contains(class))
                && (settings.filter().is_everything() || member.settings.as_ref().is_some_and(same_filter))
        };
        for fits in [&same_folder as &dyn Fn(&Member, &SinkSettings) -> bool, &wants_all] {
            for (settings, old) in new.iter().zip(&mut old).filter(|(_, old)| old.is_none()) {
                *old = take(&|member| fits(member, settings));
            }
        }
        let steps = new.iter().zip(old).map(|(settings, old)| {
            let worker = match &old {
                Some(old) => old.worker.renamed(settings.name()),
                None => Worker::idle(settings.name()),
            };
            Step { settings, old, worker, seat: None, wants: None, sink: None, gives_way: false }
        });
        (steps.collect(), left)
    }
}

/// Makes all new sinks but those whose folder a running one has, and the threads for all of them.
fn prepare(steps: &mut [Step<'_>], home: &Home) -> Result<(), SinkError> {
    for index in 0..steps.len() {
        let step = &steps[index];
        if step.is_unchanged() {
            continue;
        }
        let settings = step.settings;
        let wants = Wants::new(settings)?;
        let seat = Seat::new(&step.worker)?;
        let sink = match settings.build_in(home, step.worker.counters()) {
            Ok(sink) => Some(sink),
            Err(error) => {
                let has_folder = |step: &Step<'_>| {
                    let old = step.old.as_ref().and_then(|old| old.settings.as_ref());
                    !step.is_unchanged() && old.is_some_and(|old| shares_folder(old, settings))
                };
                let holder = steps.iter_mut().find(|step| has_folder(step)).filter(|_| is_busy(&error));
                let holder = holder.ok_or_else(|| error.of(settings.name()))?;
                holder.gives_way = true;
                None
            }
        };
        (steps[index].wants, steps[index].seat, steps[index].sink) = (Some(wants), Some(seat), sink);
    }
    Ok(())
}

/// Ends the sinks that have to give way, and makes those that need their folders.
fn take_folders(steps: &mut [Step<'_>], home: &Home, deadline: Instant) -> Result<(), SinkError> {
    let giving_way = || steps.iter().filter(|step| step.gives_way).filter_map(Step::old_worker);
    giving_way().for_each(|worker| worker.release(deadline));
    if let Some(stuck) = giving_way().find(|worker| !worker.wait_released(deadline)) {
        return Err(SinkError {
            action: format!("ending sink `{}`, which another one is to take the folder of", stuck.name()),
            source: io::Error::new(io::ErrorKind::TimedOut, "it is stuck in a call"),
        });
    }
    for step in steps.iter_mut().filter(|step| !step.is_unchanged() && step.sink.is_none()) {
        step.sink = Some(
            build_until(step.settings, home, step.worker.counters(), deadline)
                .map_err(|error| error.of(step.settings.name()))?,
        );
    }
    Ok(())
}

/// A folder may be locked a moment longer, by the thread that looks after it.
fn build_until(
    settings: &SinkSettings,
    home: &Home,
    counters: &Arc<Counters>,
    deadline: Instant,
) -> Result<Box<dyn Sink>, SinkError> {
    loop {
        match settings.build_in(home, counters) {
            Err(error) if is_busy(&error) && Instant::now() < deadline => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// Lets go of what new sinks have taken, so that old ones can have it again.
fn close_new(steps: &mut [Step<'_>]) {
    for mut sink in steps.iter_mut().filter_map(|step| step.sink.take()) {
        if let Err(error) = sink.close(ON_THE_WAY) {
            tracing::warn!(sink = sink.name(), %error, "a sink that was not used did not close well");
        }
    }
}

/// Sinks that gave way in vain go on.
fn restore(steps: &mut [Step<'_>], home: &Home) {
    for step in steps.iter_mut().filter(|step| step.gives_way) {
        let Some(old) = &step.old else { continue };
        let (Some(settings), Some(seat)) = (&old.settings, step.seat.take()) else { continue };
        if old.worker.reclaim() {
            continue;
        }
        let counters = old.worker.counters();
        let sink = build_until(settings, home, counters, Instant::now() + ON_THE_WAY).unwrap_or_else(|error| {
            tracing::error!(sink = settings.name(), %error, "the old sink can't be started again now: it is tried on");
            let (settings, home, counters) = (settings.clone(), home.clone(), Arc::clone(counters));
            Box::new(Reopen::new(old.worker.name(), move || settings.build_in(&home, &counters)))
        });
        seat.take(sink, settings.queue());
    }
}

/// Gives each queue to its new sink.
fn hand_over(steps: Vec<Step<'_>>, deadline: Instant) -> Vec<Arc<Member>> {
    let changed = || steps.iter().filter(|step| !step.is_unchanged()).filter_map(Step::old_worker);
    changed().for_each(|worker| worker.release(deadline));
    for worker in changed() {
        if !worker.wait_released(deadline) {
            Event::SinkStuck { sink: worker.name() }.report();
        }
    }
    let members = steps.into_iter().map(|step| {
        let Step { settings, old, worker, seat: Some(seat), wants: Some(wants), sink: Some(sink), .. } = step else {
            return step.old;
        };
        drop(old);
        seat.take(sink, settings.queue());
        Some(Arc::new(Member { wants, settings: Some(settings.clone()), worker }))
    });
    members.flatten().collect()
}

impl Removed {
    /// Ends the sinks, each within `limit`; returns what each of them left, which is dropped. `before` is the set that
    /// they were part of, which is in use as long as somebody is just delivering to it.
    #[must_use]
    pub fn close(self, before: &Arc<Sinks>, limit: Duration) -> Vec<(String, Leftover)> {
        let last = Instant::now() + ON_THE_WAY;
        while !self.members.is_empty() && Arc::strong_count(before) > 1 && Instant::now() < last {
            thread::sleep(PAUSE);
        }
        let deadline = Instant::now() + limit;
        self.members.iter().for_each(|member| member.worker.begin_close(deadline, Reason::SinkRemoved));
        let close = |member: &Arc<Member>| {
            let name = member.worker.name();
            let leftover = member.worker.finish_close();
            self.home.forget_owed(name);
            (name.to_owned(), leftover)
        };
        self.members.iter().map(close).collect()
    }
}

fn is_busy(error: &SinkError) -> bool {
    error.source.kind() == io::ErrorKind::ResourceBusy
}

fn shares_folder(left: &SinkSettings, right: &SinkSettings) -> bool {
    let has_buffer = left.buffer().is_some() && right.buffer().is_some();
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    (has_buffer && left.name() == right.name())
        || left.folder().zip(right.folder()).is_some_and(|(left, right)| real(left) == real(right))
}
