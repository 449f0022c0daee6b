//! A real OpenSearch of one node, and what it holds.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{DEADLINE, Testbed, daemon::Daemon, http, maven, records::Record, wait_until};

/// The node as a Java class: the distribution with its plugins is on no mirror.
const SOURCE: &str = include_str!("Single.java");
/// The most documents of one answer.
const MOST: usize = 10_000;

/// A server. It is ended when dropped.
#[derive(Debug)]
pub struct OpenSearch<'bed> {
    bed: &'bed Testbed,
    jars: PathBuf,
    home: PathBuf,
    port: u16,
    daemon: Option<Daemon>,
}

impl<'bed> OpenSearch<'bed> {
    /// Starts a server with an empty disk, and waits until it answers.
    ///
    /// # Errors
    /// There is no Java, its jars can't be fetched, or it does not come up.
    pub fn start(bed: &'bed Testbed) -> Result<Self> {
        let home = bed.path("opensearch/home")?;
        let mut server = Self { bed, jars: maven::opensearch()?, home, port: http::free_port()?, daemon: None };
        server.run()?;
        Ok(server)
    }

    /// Its port on the loopback address.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:port`
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it in order; [`OpenSearch::run`] starts it again with what it holds.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// Takes away all that it holds, while it is stopped.
    ///
    /// # Errors
    /// The directory can't be emptied.
    pub fn wipe(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the server runs");
        Ok(fs::remove_dir_all(&self.home)?)
    }

    /// Lets it answer nothing any more, or go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self, freeze: bool) -> Result<()> {
        let daemon = self.daemon.as_ref().context("the server is stopped")?;
        daemon.signal(if freeze { Signal::STOP } else { Signal::CONT })
    }

    /// Starts it, and waits until it answers.
    ///
    /// # Errors
    /// It does not come up in time.
    pub fn run(&mut self) -> Result<()> {
        let source = self.bed.path("opensearch/Single.java")?;
        fs::write(&source, SOURCE)?;
        fs::create_dir_all(&self.home)?;
        let mut command = Command::new("java");
        // Neither compiles for long nor takes memory before it needs it.
        command.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m", "-cp"]);
        command.arg(self.jars.join("*")).arg(&source);
        let home = self.home.display();
        command.args([
            format!("path.home={home}"),
            format!("path.data={home}/data"),
            format!("http.port={}", self.port),
            format!("transport.port={}", http::free_port()?),
        ]);
        command.args([
            "cluster.name=sidestep-tests",
            "node.name=single",
            "network.host=127.0.0.1",
            "discovery.type=single-node",
            "http.type=netty4",
            "transport.type=netty4",
            // How full this machine's disk is, is no matter here.
            "cluster.routing.allocation.disk.threshold_enabled=false",
        ]);
        let log = self.bed.path("opensearch/server.log")?;
        let mut daemon = Daemon::start(self.bed, &mut command, &log, "default-jdk-headless")?;
        let ready = || self.ask("GET", "/_cluster/health?wait_for_status=yellow&timeout=1s", None);
        wait_until("the server", DEADLINE * 4, || {
            if let Some(status) = daemon.ended()? {
                bail!("the server ended: {status}");
            }
            Ok(ready().is_ok_and(|answer| answer.status == 200).then_some(()))
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<http::Answer> {
        let address = ([127, 0, 0, 1], self.port).into();
        http::ask(address, method, path, &body.map(Value::to_string).unwrap_or_default(), Duration::from_secs(30))
    }

    /// Asks for something that has to go well.
    ///
    /// # Errors
    /// It does not.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        Self::good(method, path, &self.ask(method, path, body)?)
    }

    fn good(method: &str, path: &str, answer: &http::Answer) -> Result<Value> {
        ensure!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.body);
        serde_json::from_str(&answer.body).with_context(|| format!("{method} {path}: {}", answer.body))
    }

    /// How many documents the indices of a pattern have; 0 where there are none, or none yet that can be asked.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn count(&self, indices: &str) -> Result<u64> {
        self.call("POST", &format!("/{indices}/_refresh?ignore_unavailable=true"), None)?;
        let path = format!("/{indices}/_count?ignore_unavailable=true");
        let answer = self.ask("GET", &path, None)?;
        // An index under way has no shard that answers.
        if answer.status == 503 && answer.body.contains("all shards failed") {
            return Ok(0);
        }
        let answer = Self::good("GET", &path, &answer)?;
        answer["count"].as_u64().context("a count")
    }

    /// The documents of the indices of a pattern that a query finds, as hits with `_id` and `_source`.
    ///
    /// # Errors
    /// The server does not answer, or there are too many.
    pub fn search(&self, indices: &str, query: &Value) -> Result<Vec<Value>> {
        self.call("POST", &format!("/{indices}/_refresh?ignore_unavailable=true"), None)?;
        let path = format!("/{indices}/_search?ignore_unavailable=true");
        let body = json!({ "size": MOST, "track_total_hits": true, "query": query });
        let mut answer = self.call("POST", &path, Some(&body))?;
        let total = answer.pointer("/hits/total/value").and_then(Value::as_u64).context("a total")?;
        ensure!(total <= MOST as u64, "{total} documents in {indices}");
        let Some(Value::Array(hits)) = answer.pointer_mut("/hits/hits").map(Value::take) else { bail!("no hits") };
        ensure!(hits.len() as u64 == total, "{} of {total} documents", hits.len());
        Ok(hits)
    }

    /// Shows all documents of the indices of a pattern, with these fields alone, one after the other.
    ///
    /// # Errors
    /// The server does not answer, or `show` fails.
    pub fn scan(&self, indices: &str, fields: &[&str], mut show: impl FnMut(&Value) -> Result<()>) -> Result<()> {
        self.call("POST", &format!("/{indices}/_refresh?ignore_unavailable=true"), None)?;
        let path = format!("/{indices}/_search?ignore_unavailable=true&scroll=2m");
        let body = json!({ "size": MOST, "sort": ["_doc"], "_source": fields, "track_total_hits": true });
        let mut answer = self.call("POST", &path, Some(&body))?;
        let total = answer.pointer("/hits/total/value").and_then(Value::as_u64).context("a total")?;
        let mut shown = 0;
        loop {
            let scroll = answer["_scroll_id"].as_str().context("no scroll id")?.to_owned();
            let hits = answer.pointer("/hits/hits").and_then(Value::as_array).context("no hits")?;
            if hits.is_empty() {
                self.call("DELETE", "/_search/scroll", Some(&json!({ "scroll_id": scroll })))?;
                break;
            }
            hits.iter().try_for_each(|hit| show(&hit["_source"]))?;
            shown += hits.len() as u64;
            let next = json!({ "scroll": "2m", "scroll_id": scroll });
            answer = self.call("POST", "/_search/scroll", Some(&next))?;
        }
        ensure!(shown == total, "{shown} of {total} documents in {indices}");
        Ok(())
    }

    /// The records in the indices of a pattern.
    ///
    /// # Errors
    /// As [`OpenSearch::search`].
    pub fn records(&self, indices: &str) -> Result<Vec<Record>> {
        let hits = self.search(indices, &json!({ "match_all": {} }))?;
        Ok(hits.into_iter().map(|mut hit| Record { file: indices.into(), value: hit["_source"].take() }).collect())
    }

    /// Waits until the server is there again after something that was done to it.
    ///
    /// # Errors
    /// It is not, in time.
    pub fn wait_answer(&self) -> Result<()> {
        let begin = Instant::now();
        wait_until("the server's answer", DEADLINE * 2, || Ok(self.count("none*").ok().map(|_| ())))
            .with_context(|| format!("after {:?}", begin.elapsed()))
    }
}
