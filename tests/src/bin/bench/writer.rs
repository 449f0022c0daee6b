//! The benchmarks' end of a [`crate::worker`] in a container.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use sidestep_tests::{Container, ContainerBuilder, DEADLINE, Stdio, Testbed, wait_until};

use crate::worker::{Answer, Job, Took};

/// A pipe as containerd makes it has the kernel's default size; writers that must never wait get this one.
pub(crate) const ROOMY: usize = 1 << 20;

/// How long a job may take.
const JOB: Duration = Duration::from_secs(120);

/// A container with a writer in it.
pub(crate) struct Writer {
    pub(crate) container: Container,
    orders: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Writer {
    /// Starts a writer whose stdout is a pipe that a thread of the benchmark drains.
    ///
    /// # Errors
    /// The container can't be started.
    pub(crate) fn drained(bed: &Testbed, name: &str, pipe_size: Option<usize>) -> Result<Self> {
        let (reader, writer) = io::pipe()?;
        if let Some(size) = pipe_size {
            rustix::pipe::fcntl_setpipe_size(&reader, size).context("making a pipe larger")?;
        }
        thread::spawn(move || drain(reader));
        Self::start(bed, name, writer.into())
    }

    /// Starts one whose Pod is in this namespace, and that writes nothing.
    ///
    /// # Errors
    /// The container can't be started.
    pub(crate) fn in_namespace(bed: &Testbed, namespace: &str) -> Result<Self> {
        let null = File::options().write(true).open("/dev/null")?;
        Self::of(bed, bed.container(namespace).pod(namespace, namespace), namespace, null.into())
    }

    /// Starts a writer with this stdout.
    ///
    /// # Errors
    /// The container can't be started.
    pub(crate) fn start(bed: &Testbed, name: &str, stdout: OwnedFd) -> Result<Self> {
        Self::of(bed, bed.container(name), name, stdout)
    }

    fn of(bed: &Testbed, container: ContainerBuilder<'_>, name: &str, stdout: OwnedFd) -> Result<Self> {
        let directory = bed.path(format!("control-{name}/socket"))?;
        let listener = UnixListener::bind(&directory).with_context(|| format!("binding {}", directory.display()))?;
        listener.set_nonblocking(true)?;
        let program = std::env::current_exe().context("finding this program")?;
        let container = container
            .host_programs()
            .bind(program, "/data/bench")
            .bind(directory.parent().context("a directory")?, "/data/control")
            .args(&["/data/bench", "worker", "/data/control/socket"])
            .stdout(Stdio::Given(Arc::new(stdout)))
            .start()?;
        let stream = wait_until("a writer's connection", DEADLINE, || match listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        })
        .with_context(|| String::from_utf8_lossy(&container.stderr()).into_owned())?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(JOB))?;
        Ok(Self { container, orders: stream.try_clone()?, answers: BufReader::new(stream) })
    }

    /// Gives it a job and waits for the answer.
    ///
    /// # Errors
    /// It failed, or took too long.
    pub(crate) fn perform(&mut self, job: Job) -> Result<Answer> {
        writeln!(self.orders, "{}", serde_json::to_string(&job)?).context("giving a writer a job")?;
        let mut line = String::new();
        self.answers.read_line(&mut line).with_context(|| format!("waiting for {job:?}"))?;
        ensure!(!line.is_empty(), "a writer ended: {}", String::from_utf8_lossy(&self.container.stderr()));
        serde_json::from_str(&line).context("a writer's answer")
    }

    /// As [`Writer::perform`], for a job with one answer.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn perform_one(&mut self, job: Job) -> Result<Took> {
        self.perform(job)?.pop().context("an empty answer")
    }
}

/// Reads to the end and keeps nothing.
fn drain(reader: io::PipeReader) {
    let mut reader = File::from(OwnedFd::from(reader));
    let mut buffer = vec![0; 64 << 10];
    while let Ok(1..) = reader.read(&mut buffer) {}
}
