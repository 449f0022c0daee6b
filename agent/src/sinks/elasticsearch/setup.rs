//! What a server needs before it gets records: who it is, its retention, its templates. Asked for step by step, and again
//! when the server may be another one.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::Value;

use super::{
    config::Settings,
    template::{self, Distribution, Server},
};
use crate::sinks::http_client::Answer;

/// How often it is looked whether the server is still the same: one that was started anew with an empty disk in an instant
/// shows by nothing else.
const CHECK: Duration = Duration::from_secs(60);
/// After so long without an answer the server may have been started again, with an empty disk: quicker than that none is.
const SILENCE: Duration = Duration::from_secs(2);

/// One request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Who is there.
    Root,
    /// ILM's policy.
    Ilm,
    /// Whether ISM has the policy.
    FindIsm,
    /// ISM's policy, in the place of the one with this sequence number and primary term, if there is one.
    Ism(Option<(u64, u64)>),
    /// The records' template.
    Records,
    /// The dead letters' template.
    DeadLetters,
}

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Setup {
    todo: VecDeque<Step>,
    is_asking: bool,
    server: Option<Server>,
    /// The server has a policy of ours.
    has_policy: bool,
    /// It was told that there is no retention.
    told: bool,
    /// All of it is done, and when it was last looked.
    done: Option<Instant>,
    /// When a server last answered anything.
    heard: Option<Instant>,
}

impl Setup {
    /// Whether records may be sent.
    pub(super) fn is_done(&self, now: Instant) -> bool {
        let is_fresh = |at: Option<Instant>, limit| at.is_some_and(|at| now.duration_since(at) < limit);
        !self.is_asking && self.todo.is_empty() && is_fresh(self.done, CHECK) && is_fresh(self.heard, SILENCE)
    }

    /// A server has answered.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// The server may be another one.
    pub(super) fn doubt(&mut self) {
        self.done = None;
    }

    /// The next request: method, path, body.
    pub(super) fn next(&mut self, settings: &Settings, now: Instant) -> Option<(Step, Method, String, Option<Value>)> {
        if self.is_asking || self.is_done(now) {
            return None;
        }
        let step = self.todo.front().cloned().unwrap_or(Step::Root);
        let name = template::name(settings);
        let (method, path, body) = match (&step, &self.server) {
            (Step::Root, _) | (_, None) => (Method::GET, String::new(), None),
            (Step::Ilm, _) => (Method::PUT, format!("_ilm/policy/{name}"), Some(template::ilm(settings))),
            (Step::FindIsm, _) => (Method::GET, format!("_plugins/_ism/policies/{name}"), None),
            (Step::Ism(version), _) => {
                let version = version
                    .map(|(number, term)| format!("?if_seq_no={number}&if_primary_term={term}"))
                    .unwrap_or_default();
                let path = format!("_plugins/_ism/policies/{name}{version}");
                (Method::PUT, path, Some(template::ism(settings)))
            }
            (Step::Records, Some(server)) => {
                let body = template::records(settings, server, self.has_policy);
                (Method::PUT, format!("_index_template/{name}"), Some(body))
            }
            (Step::DeadLetters, _) => {
                let body = template::dead_letters(settings);
                let name = template::dead_letter_name(settings);
                (Method::PUT, format!("_index_template/{name}"), Some(body))
            }
        };
        self.is_asking = true;
        Some((step, method, path, body))
    }

    /// There was no answer.
    pub(super) fn failed(&mut self) {
        self.is_asking = false;
    }

    /// Goes on after an answer.
    ///
    /// # Errors
    /// It can't, and why.
    pub(super) fn answered(
        &mut self,
        settings: &Settings,
        step: &Step,
        answer: &Answer,
        now: Instant,
    ) -> Result<(), String> {
        self.is_asking = false;
        self.heard = Some(now);
        if matches!(answer.status, 429 | 500..=599) {
            return Err(format!("{} {}; it is tried again", answer.status, answer.excerpt()));
        }
        if answer.status == 401 {
            return Err(format!("401 {}; see `auth`", answer.excerpt()));
        }
        match step {
            Step::Root => self.found(settings, answer)?,
            Step::Ilm | Step::Ism(_) => self.policy_made(settings, answer)?,
            Step::FindIsm => self.ism_found(settings, answer)?,
            Step::Records | Step::DeadLetters if !answer.is_success() => {
                return Err(format!(
                    "the index template is refused: {} {}; give the agent's user the right `manage_index_templates`, \
                     mend the template that is named, or make one yourself and set `install_template: false`",
                    answer.status,
                    answer.excerpt()
                ));
            }
            Step::Records | Step::DeadLetters => {}
        }
        if self.todo.front() == Some(step) {
            self.todo.pop_front();
        }
        if self.todo.is_empty() {
            self.done = Some(now);
        }
        Ok(())
    }

    fn found(&mut self, settings: &Settings, answer: &Answer) -> Result<(), String> {
        self.todo.clear();
        if !settings.install_template && matches!(answer.status, 403 | 404) {
            // Who may not ask may still write.
            return Ok(());
        }
        if !answer.is_success() {
            let what = "`GET /` is refused; give the agent's user the right `monitor` on the cluster, or see `urls`";
            return Err(format!("{} {}: {what}", answer.status, answer.excerpt()));
        }
        let server = Server::read(&answer.body)?;
        let is_same = self.done.is_some() && self.server.as_ref() == Some(&server);
        if !is_same {
            tracing::info!(
                sink = settings.name,
                distribution = ?server.distribution,
                version = server.number,
                cluster = server.uuid,
                "a server answers"
            );
        }
        if settings.install_template && !is_same {
            self.has_policy = false;
            if !settings.retention.is_zero() {
                self.todo.push_back(match server.distribution {
                    Distribution::Elasticsearch => Step::Ilm,
                    Distribution::OpenSearch => Step::FindIsm,
                });
            }
            self.todo.extend([Step::Records, Step::DeadLetters]);
        }
        self.server = Some(server);
        Ok(())
    }

    fn ism_found(&mut self, settings: &Settings, answer: &Answer) -> Result<(), String> {
        let next = match answer.status {
            200 => {
                let found: Value = serde_json::from_slice(&answer.body)
                    .map_err(|cause| format!("the policy of ISM can't be read: {cause}"))?;
                let description = |value: &Value| value.pointer("/policy/description").cloned();
                let version = found["_seq_no"].as_u64().zip(found["_primary_term"].as_u64());
                self.has_policy = description(&found) == description(&template::ism(settings));
                (!self.has_policy).then_some(Step::Ism(version))
            }
            404 if !is_unknown(answer) => Some(Step::Ism(None)),
            _ => {
                self.no_retention(settings, answer);
                None
            }
        };
        self.todo.pop_front();
        if let Some(step) = next {
            self.todo.push_front(step);
        }
        Ok(())
    }

    fn policy_made(&mut self, settings: &Settings, answer: &Answer) -> Result<(), String> {
        if answer.is_success() {
            self.has_policy = true;
        } else if answer.status == 409 {
            // Another agent was faster; it made the same.
            self.has_policy = true;
        } else {
            self.no_retention(settings, answer);
        }
        Ok(())
    }

    /// Logs that must be delivered are not held up by their retention.
    fn no_retention(&mut self, settings: &Settings, answer: &Answer) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let why = if is_unknown(answer) { "the server has neither ILM nor ISM" } else { "it is refused" };
        tracing::warn!(
            sink = settings.name,
            status = answer.status,
            answer = answer.excerpt(),
            "no retention is set up, as {why}: old indices stay until somebody deletes them (`DELETE /INDEX`, by a job of \
             your own); give the agent's user the right to make policies, or set `retention: 0s`"
        );
    }
}

/// Whether the server does not know what it was asked, rather than refuses it.
fn is_unknown(answer: &Answer) -> bool {
    matches!(answer.status, 404 | 405) && !answer.excerpt().contains("olicy")
        || answer.excerpt().contains("no handler found")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, body: body.as_bytes().to_vec(), ..Answer::default() }
    }

    /// Answers each request, and returns what was asked.
    fn run(setup: &mut Setup, settings: &Settings, answers: &[(u16, &str)]) -> Vec<String> {
        let now = Instant::now();
        let mut asked = Vec::new();
        for (status, body) in answers {
            let (step, method, path, _) = setup.next(settings, now).expect("a request");
            assert!(setup.next(settings, now).is_none(), "one at a time");
            asked.push(format!("{method} /{path}"));
            setup.answered(settings, &step, &answer(*status, body), now).expect("goes on");
        }
        assert!(setup.is_done(now) && setup.next(settings, now).is_none());
        asked
    }

    const ELASTIC: (u16, &str) = (200, r#"{"cluster_uuid":"u","version":{"number":"8.19.0"}}"#);
    const OPEN: (u16, &str) =
        (200, r#"{"cluster_uuid":"u","version":{"number":"2.19.0","distribution":"opensearch"}}"#);
    const RECORDS: &str = "PUT /_index_template/sidestep-logs-class-date";
    const DEAD: &str = "PUT /_index_template/sidestep-for-sidestep-dead-letter";

    #[test]
    fn elasticsearch_gets_a_policy_of_ilm_and_templates() {
        let (mut setup, settings) = (Setup::default(), Settings::default());
        let asked = run(&mut setup, &settings, &[ELASTIC, (200, "{}"), (200, "{}"), (200, "{}")]);
        assert_eq!(asked, ["GET /", "PUT /_ilm/policy/sidestep-logs-class-date", RECORDS, DEAD]);
        assert!(setup.has_policy);
        setup.doubt();
        let asked = run(&mut setup, &settings, &[ELASTIC, (200, "{}"), (200, "{}"), (200, "{}")]);
        assert_eq!(asked.len(), 4, "the disk may be another one");
    }

    #[test]
    fn opensearch_gets_a_policy_of_ism_where_it_has_that() {
        let (mut setup, settings) = (Setup::default(), Settings::default());
        let unknown = (400, r#"{"error":"no handler found for uri [/_plugins/_ism/policies/x] and method [GET]"}"#);
        let asked = run(&mut setup, &settings, &[OPEN, unknown, (200, "{}"), (200, "{}")]);
        assert_eq!(asked, ["GET /", "GET /_plugins/_ism/policies/sidestep-logs-class-date", RECORDS, DEAD]);
        assert!(!setup.has_policy && setup.told);
        let missing = (404, r#"{"error":{"reason":"Policy not found"},"status":404}"#);
        let mut setup = Setup::default();
        let asked = run(&mut setup, &settings, &[OPEN, missing, (201, "{}"), (200, "{}"), (200, "{}")]);
        assert_eq!(asked[2], "PUT /_plugins/_ism/policies/sidestep-logs-class-date");
        assert!(setup.has_policy && !setup.told);
        let other = (200, r#"{"_seq_no":7,"_primary_term":2,"policy":{"description":"other"}}"#);
        let mut setup = Setup::default();
        let asked = run(&mut setup, &settings, &[OPEN, other, (200, "{}"), (200, "{}"), (200, "{}")]);
        assert_eq!(asked[2], "PUT /_plugins/_ism/policies/sidestep-logs-class-date?if_seq_no=7&if_primary_term=2");
    }

    #[test]
    fn what_is_switched_off_is_not_asked_for() {
        let off = Settings { install_template: false, ..Settings::default() };
        assert_eq!(run(&mut Setup::default(), &off, &[OPEN]), ["GET /"]);
        assert_eq!(run(&mut Setup::default(), &off, &[(403, "")]), ["GET /"]);
        let endless = Settings { retention: Duration::ZERO, ..Settings::default() };
        assert_eq!(run(&mut Setup::default(), &endless, &[OPEN, (200, ""), (200, "")]), ["GET /", RECORDS, DEAD]);
    }

    #[test]
    fn a_server_that_is_none_gets_nothing() {
        let (mut setup, settings, now) = (Setup::default(), Settings::default(), Instant::now());
        for (status, body, part) in
            [(200, "welcome", "GET /"), (401, "", "see `auth`"), (403, "", "monitor"), (503, "", "tried again")]
        {
            let (step, ..) = setup.next(&settings, now).expect("a request");
            assert_eq!(step, Step::Root);
            let error = setup.answered(&settings, &step, &answer(status, body), now).expect_err("no server");
            assert!(error.contains(part) && !setup.is_done(now), "{error}");
        }
    }
}
