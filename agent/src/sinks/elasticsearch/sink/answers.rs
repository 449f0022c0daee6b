//! What becomes of requests and their lines, by the answers.

use std::time::{Duration, Instant};

use super::{ElasticsearchSink, Load};
use crate::{
    ledger::Reason,
    sinks::{
        elasticsearch::{
            encode::{Bulk, Entry},
            reach::request_remedy,
            reply::{Fate, Rejection, read},
            setup::Step,
        },
        flights::Landing,
        http_client::{self, Answer, FailureKind},
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
        // Before what is newer.
        for bulk in back.into_iter().rev() {
            self.waiting.push_front(bulk);
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
                    self.settle(bulk.entries, fates, now);
                    return Vec::new();
                }
                Err(why) => {
                    let why = format!("{why}; see `urls`, whether another service answers there; it is tried again");
                    self.fail(server, &why, None, now);
                }
            }
        } else if answer.status == 413 {
            return self.divide(bulk, &answer);
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
        for (entry, fate) in entries.into_iter().zip(fates) {
            match fate {
                Fate::Delivered => {
                    if entry.held_since.is_some() {
                        self.held.mend();
                    }
                    entry.receipt.deliver();
                }
                Fate::Again(why) => {
                    busy = Some(why);
                    self.counts.retried += 1;
                    self.again.push(entry);
                }
                Fate::Hold { why, is_blocked } => {
                    self.counts.retried += 1;
                    self.hold(entry, why, is_blocked, now);
                }
                Fate::Refused { kind, reason } => self.refused(entry, kind, reason),
            }
        }
        match busy {
            Some(why) => self.attempts.fail(format!("{} lines are sent again: {why}", self.again.len()), None, now),
            None => self.attempts.succeed(),
        }
    }

    /// Keeps a line whose index takes nothing, for as long as there is patience.
    fn hold(&mut self, entry: Entry, why: String, is_blocked: bool, now: Instant) {
        let limit = self.settings.give_up_after;
        let text = format!("held for {}: {why}", humantime::format_duration(limit));
        if let Some(entry) = self.held.keep(entry, why, is_blocked, limit, now) {
            self.give_up(entry, Reason::Rejected, &text);
        }
    }

    /// A document that its index does not take goes to the dead-letter index, and if that doesn't either, nowhere.
    fn refused(&mut self, mut entry: Entry, kind: String, reason: String) {
        if entry.rejection.is_some() {
            return self.give_up(entry, Reason::Rejected, &format!("{kind}: {reason}"));
        }
        let index = self.filler.index_of(&entry);
        tracing::debug!(sink = self.settings.name, index, kind, reason, "a line goes to the dead-letter index");
        self.counts.dead_letters += 1;
        (entry.rejection, entry.held_since) = (Some(Box::new(Rejection { index, kind, reason })), None);
        self.again.push(entry);
    }

    /// A request that is too large for the server goes in halves, to the line that is too large on its own.
    fn divide(&mut self, bulk: Bulk, answer: &Answer) -> Vec<Bulk> {
        // It answers, and to the point.
        self.attempts.succeed();
        let Bulk { mut entries, .. } = bulk;
        let later = entries.split_off(entries.len() / 2);
        if entries.is_empty() {
            let why = format!(
                "413 {}; raise `http.max_content_length` of the server, or the limit of what stands before it, or lower \
                 `lines.max_line_bytes`",
                answer.excerpt()
            );
            later.into_iter().for_each(|entry| self.give_up(entry, Reason::Oversize, &why));
            return Vec::new();
        }
        self.close_request();
        let newer = std::mem::take(&mut self.waiting);
        for half in [entries, later] {
            half.into_iter().for_each(|entry| self.fill(entry));
            self.close_request();
        }
        std::mem::replace(&mut self.waiting, newer).into()
    }
}
