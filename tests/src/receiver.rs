//! A server that takes logs by HTTP, in Python with OpenTelemetry's own messages, and what it got.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{DEADLINE, Testbed, daemon::Daemon, http::free_port, records::Record, wait_until};

/// From PyPI.
const MESSAGES: &str = "opentelemetry-proto==1.45.2";

/// A server. It is ended when dropped.
#[derive(Debug)]
pub struct Receiver<'bed> {
    bed: &'bed Testbed,
    directory: PathBuf,
    messages: PathBuf,
    port: u16,
    tls: Vec<PathBuf>,
    daemon: Option<Daemon>,
}

/// A request that the server got.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path of the URL.
    pub path: String,
    /// What it answered.
    pub status: u64,
    /// The headers, by their names in lower case.
    pub headers: Value,
    /// The records in it.
    pub records: Vec<Value>,
}

impl<'bed> Receiver<'bed> {
    /// Starts a server that takes everything.
    ///
    /// # Errors
    /// There is no Python, PyPI can't be reached, or it does not come up.
    pub fn start(bed: &'bed Testbed) -> Result<Self> {
        Self::with_tls(bed, "plain", &[])
    }

    /// The same with TLS: the files of its certificate and its key, and of the authority of its clients' certificates if
    /// it wants these.
    ///
    /// # Errors
    /// As [`Receiver::start`].
    pub fn with_tls(bed: &'bed Testbed, name: &str, tls: &[&Path]) -> Result<Self> {
        let directory = bed.path(format!("receivers/{name}"))?;
        fs::create_dir_all(&directory)?;
        let tls = tls.iter().map(|&path| path.to_owned()).collect();
        let mut receiver = Self { bed, directory, messages: messages()?, port: free_port()?, tls, daemon: None };
        receiver.behave(&json!({}))?;
        receiver.run()?;
        Ok(receiver)
    }

    /// Where to send logs.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_empty() { "http" } else { "https" };
        format!("{scheme}://127.0.0.1:{}/v1/logs", self.port)
    }

    /// What it does with requests from now on: `status`, `body`, `headers`, `delay` in seconds, `refuse` what a record
    /// may not hold, `rejected` records in a partial success, `garbage` instead of an answer.
    ///
    /// # Errors
    /// No space.
    pub fn behave(&self, behaviour: &Value) -> Result<()> {
        let next = self.directory.join("behaviour.next");
        fs::write(&next, behaviour.to_string())?;
        fs::rename(next, self.directory.join("behaviour.json")).context("changing the behaviour")
    }

    /// Ends it; [`Receiver::run`] starts it again.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// Lets it answer nothing any more, or go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self, freeze: bool) -> Result<()> {
        let daemon = self.daemon.as_ref().context("the receiver is stopped")?;
        daemon.signal(if freeze { Signal::STOP } else { Signal::CONT })
    }

    /// Starts it, and waits until it takes connections.
    ///
    /// # Errors
    /// It does not come up in time.
    pub fn run(&mut self) -> Result<()> {
        let script = self.directory.join("server.py");
        fs::write(&script, include_str!("receiver/server.py"))?;
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", &self.messages).arg(script).arg(&self.directory);
        command.arg(self.port.to_string()).args(&self.tls);
        let log = self.directory.join("stderr");
        let mut daemon = Daemon::start(self.bed, &mut command, &log, "python3")?;
        wait_until("the receiver", DEADLINE, || {
            if let Some(status) = daemon.ended()? {
                bail!("the receiver ended: {status}: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            Ok(std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok().then_some(()))
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// All requests so far.
    ///
    /// # Errors
    /// The server has written something else, or stumbled over a request.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let errors = fs::read_to_string(self.directory.join("stderr"))?;
        ensure!(!errors.contains("Traceback"), "the receiver: {errors}");
        let Ok(text) = fs::read_to_string(self.directory.join("requests.ndjson")) else { return Ok(Vec::new()) };
        let parse = |line: &str| {
            let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            Ok(Request {
                path: value["path"].as_str().unwrap_or_default().to_owned(),
                status: value["status"].as_u64().unwrap_or_default(),
                headers: value["headers"].clone(),
                records: value["records"].as_array().cloned().unwrap_or_default(),
            })
        };
        // The last line may be on its way.
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(parse).collect()
    }

    /// The records of all requests that it took.
    ///
    /// # Errors
    /// As [`Receiver::requests`].
    pub fn records(&self) -> Result<Vec<Record>> {
        let taken = self.requests()?.into_iter().filter(|request| request.status == 200);
        Ok(taken.flat_map(|request| request.records).map(|value| Record { file: "http".into(), value }).collect())
    }
}

/// The directory with OpenTelemetry's messages for Python, fetched once into the target directory.
fn messages() -> Result<PathBuf> {
    let own = env::current_exe().context("finding the test binary")?;
    let target = own.ancestors().find(|directory| directory.join(".rustc_info.json").exists());
    let cache = target.map_or_else(env::temp_dir, Path::to_owned).join("sidestep-tests");
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let packages = cache.join(MESSAGES.replace("==", "-"));
    // Tests run at once; one of them fetches.
    let lock = fs::File::create(cache.join("python.lock"))?;
    lock.lock().context("locking the cache of Python packages")?;
    if packages.exists() {
        return Ok(packages);
    }
    let part = cache.join("python-part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
    let output = pip.arg("--target").arg(&part).arg(MESSAGES).output().context("running pip")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pip (apt-get install python3-pip): {errors}");
    fs::rename(&part, &packages).context("keeping the Python packages")?;
    Ok(packages)
}
