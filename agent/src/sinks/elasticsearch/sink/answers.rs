//! What becomes of requests and their lines, by the answers.

use std::{
    ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{ElasticsearchSink, Load};
use crate::{
    ledger::Reason,
    sinks::{
        elasticsearch::{
            encode::{Bulk, Entry},
            reach::request_remedy,
            reply::{Fate, Refusal, Rejection, read},
            setup::Step,
        },
        flights::Landing,
        http_client::{self, Answer, FailureKind},
        refusals::{Judgement, Suspect, in_doubt},
    },
};

impl ElasticsearchSink {
    /// Does what the answers say.
    pub(super) fn land(&mut self) {
        let mut back = Vec::new();
        for (load, landing) in self.flights.land() {
            let now = Instant::now();
            match load {
                Load::Setup(step, server) => self.land_setup(&step, server, landing, now),
                Load::Bulk(bulk, server) => back.extend(self.land_bulk(bulk, server, landing, now)),
            }
        }
        if self.refusals.is_in_doubt() {
            // One request after the other is tried, as one of them may hold a line that the server takes.
            self.waiting.extend(back);
        } else {
            // Before what is newer.
            back.into_iter().rev().for_each(|bulk| self.waiting.push_front(bulk));
        }
        if self.is_idle() && self.filler.is_empty() && self.refusals.len() > 0 {
            let judgement = self.refusals.note_idle();
            let held = self.follow(judgement, Instant::now());
            self.waiting.extend(held);
        }
    }

    fn land_setup(&mut self, step: &Step, server: usize, landing: Landing, now: Instant) {
        let Some(answer) = self.answered(server, landing, now) else { return self.setup.failed() };
        match self.setup.answered(&self.settings, step, &answer, now) {
            // Whether records get through shows with the first of them.
            Ok(()) => {}
            Err(why) => self.fail(server, &why, answer.retry_after(), now),
        }
    }

    /// The answer of a server, if there is one.
    fn answered(&mut self, server: usize, landing: Landing, now: Instant) -> Option<Answer> {
        match landing {
            Ok(answer) => {
                if let Some(remedy) = answer.connection_remedy() {
                    self.fail(server, &format!("{} {}; {remedy}", answer.status, answer.excerpt()), None, now);
                    return None;
                }
                self.setup.heard(now);
                self.servers.answer(server);
                Some(answer)
            }
            Err(failure) => {
                self.setup.doubt();
                self.held.note_server(false, now);
                let is_ours = matches!(failure.kind, FailureKind::Credentials | FailureKind::Cancelled);
                if is_ours || !self.servers.fail(server, now) {
                    self.attempts.fail(failure.text, None, now);
                } else {
                    self.attempts.fail_over(failure.text);
                }
                None
            }
        }
    }

    /// An answer that is of no use.
    fn fail(&mut self, server: usize, why: &str, wish: Option<Duration>, now: Instant) {
        self.setup.doubt();
        self.held.note_server(false, now);
        let server = http_client::server(&self.servers.url(server, ""));
        self.attempts.fail(format!("{server}: {why}"), wish, now);
    }

    /// Does what the answer to a request says; gives back what is to be sent again.
    fn land_bulk(&mut self, bulk: Bulk, server: usize, landing: Landing, now: Instant) -> Vec<Bulk> {
        let Some(answer) = self.answered(server, landing, now) else { return vec![bulk] };
        if answer.is_success() {
            match read(&answer.body, bulk.entries.len()) {
                Ok(fates) => {
                    let suspects = self.refusals.note_taken();
                    self.give_up_all(suspects);
                    self.settle(bulk.entries, fates, now);
                    return Vec::new();
                }
                Err(why) => {
                    let why = format!("{why}; see `urls`, whether another service answers there; it is tried again");
                    self.fail(server, &why, None, now);
                }
            }
        } else if matches!(answer.status, 400 | 413 | 422) {
            return self.divide(bulk, server, &answer, now);
        } else {
            let remedy = request_remedy(answer.status);
            let why = format!("the request is refused: {} {}; {remedy}", answer.status, answer.excerpt());
            self.fail(server, &why, answer.retry_after(), now);
        }
        vec![bulk]
    }

    /// Does what the reply says, line by line.
    fn settle(&mut self, entries: Vec<Entry>, fates: Vec<Fate>, now: Instant) {
        self.held.note_server(true, now);
        let mut busy = None;
        // All lines of a batch go to one index, but at midnight.
        let mut taken = ptr::null();
        for (entry, fate) in entries.into_iter().zip(fates) {
            match fate {
                Fate::Delivered => {
                    let batch = Arc::as_ptr(entry.receipt.batch());
                    if taken != batch || !self.held.is_empty() {
                        taken = batch;
                        self.note_taken(&entry, now);
                    }
                    entry.receipt.deliver();
                }
                Fate::Again(why) => {
                    busy = Some(why);
                    self.counts.retried += 1;
                    self.again.push(entry);
                }
                Fate::Hold(refusal) => {
                    self.counts.retried += 1;
                    self.hold(entry, refusal, now);
                }
                Fate::Refused { kind, reason } => {
                    self.release(&entry);
                    self.refused(entry, kind, reason);
                }
            }
        }
        match busy {
            Some(why) => self.attempts.fail(format!("{} lines are sent again: {why}", self.again.len()), None, now),
            None => self.attempts.succeed(),
        }
    }

    /// Notes that the index of a line took it.
    fn note_taken(&mut self, entry: &Entry, now: Instant) {
        if entry.rejection.is_none() {
            self.open.note(self.filler.index_of(entry), now);
        }
        self.release(entry);
    }

    /// The index of a line may be written: sends what is held for it.
    fn release(&mut self, entry: &Entry) {
        let lines = self.held.release(self.filler.index_of(entry));
        self.again.extend(lines);
    }

    /// Keeps a line whose index takes nothing, for as long as there is patience.
    fn hold(&mut self, entry: Entry, refusal: Refusal, now: Instant) {
        let limit = self.settings.give_up_after;
        let index = self.filler.index_of(&entry);
        self.open.forget(index);
        let refusal = Refusal { why: refusal.why.replace("INDEX", index), ..refusal };
        let text = format!("held for {}: {}", humantime::format_duration(limit), refusal.why);
        for entry in self.held.keep(index, entry, refusal, limit, now) {
            self.give_up(entry, Reason::Rejected, &text);
        }
    }

    /// A document that its index does not take goes to the dead-letter index, and if that doesn't either, nowhere.
    pub(super) fn refused(&mut self, entry: Entry, kind: String, reason: String) {
        if entry.rejection.is_some() {
            return self.give_up(entry, Reason::Rejected, &format!("{kind}: {reason}"));
        }
        let index = self.filler.index_of(&entry).to_owned();
        tracing::warn!(sink = self.settings.name, index, kind, reason, "a line goes to the dead-letter index");
        self.counts.dead_letters += 1;
        let rejection = Some(Box::new(Rejection { index, kind, reason }));
        self.again.push(Entry { receipt: entry.receipt, rejection, held_since: None, is_trial: false });
    }

    /// A request that the server refuses goes in halves, to the line that it refuses alone.
    fn divide(&mut self, bulk: Bulk, server: usize, answer: &Answer, now: Instant) -> Vec<Bulk> {
        let (reason, remedy) = match answer.status {
            413 => (
                Reason::Oversize,
                "raise `http.max_content_length` of the server, or the limit of what stands before it, or lower \
                 `lines.max_line_bytes`",
            ),
            _ => (Reason::Rejected, "see the server's own log, and what stands before it"),
        };
        let place = http_client::server(&self.servers.url(server, ""));
        let why = format!("{place}: the request is refused: {} {}; {remedy}", answer.status, answer.excerpt());
        if self.refusals.is_in_doubt() {
            self.attempts.fail(in_doubt(&why), None, now);
        } else {
            // It answers, and to the point.
            self.attempts.succeed();
        }
        if bulk.entries.len() == 1 {
            let was_held = bulk.was_held;
            let judgement = self.refusals.note_refused(Suspect { load: bulk, reason, why }, was_held);
            return self.follow(judgement, now);
        }
        let Bulk { mut entries, .. } = bulk;
        let later = entries.split_off(entries.len() / 2);
        self.close_request();
        let newer = std::mem::take(&mut self.waiting);
        for half in [entries, later] {
            half.into_iter().for_each(|entry| self.fill(entry));
            self.close_request();
        }
        let halves = std::mem::replace(&mut self.waiting, newer);
        halves.into_iter().map(|bulk| Bulk { was_refused: true, ..bulk }).collect()
    }

    /// Gives back what is to be sent again.
    fn follow(&mut self, judgement: Judgement<Bulk>, now: Instant) -> Vec<Bulk> {
        match judgement {
            Judgement::GiveUp(suspects) => {
                self.give_up_all(suspects);
                Vec::new()
            }
            Judgement::Hold(bulks, why) => {
                self.attempts.fail(why, None, now);
                bulks.into_iter().map(|bulk| Bulk { was_held: true, ..bulk }).collect()
            }
        }
    }

    fn give_up_all(&mut self, suspects: Vec<Suspect<Bulk>>) {
        for Suspect { load, reason, why } in suspects {
            load.entries.into_iter().for_each(|entry| self.give_up(entry, reason, &why));
        }
    }
}
