//! The thread that reads the runtimes' logs.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::AtomicU64,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use super::{
    content::ContentError,
    copy::{Chunk, Copy},
    files::Location,
    search::{Gap, Known, Look, look},
};
use crate::{
    attribute::{HostFiles, Identity},
    pipeline::journal::StreamId,
};

/// How long a runtime may take to write what it has read from a pipe, and the search for it in its log.
pub const WAIT_FOR_RUNTIME: Duration = Duration::from_secs(10);
/// How long a file may be missing that is rotated just now.
const WAIT_FOR_FILE: Duration = Duration::from_secs(1);
/// Gaps that may wait for the thread; above it they are lost.
const MAX_REQUESTS: usize = 1024;
/// Chunks that wait for the thread that drains the ring.
const MAX_CHUNKS: usize = 8;
/// Pause between looks at a log that has not all of a gap yet, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
/// Pause while nobody takes chunks.
const NAP: Duration = Duration::from_millis(2);
/// Streams of which a place in their log is known; above it all are forgotten.
const MAX_KNOWN: usize = 4096;

/// What comes of a gap. When nothing comes any more before its end is reached, the rest of it is lost.
#[derive(Debug)]
pub enum Answer {
    /// All of it is there; the bytes follow.
    Found,
    /// The next bytes.
    Chunk(Chunk),
}

/// Figures of all gaps.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Gaps that were filled.
    pub gaps: AtomicU64,
    /// Bytes that were taken from the runtimes' logs.
    pub bytes: AtomicU64,
    /// Gaps that were looked for and not found.
    pub refused: AtomicU64,
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub struct Repairs {
    requests: SyncSender<Request>,
    statistics: Arc<Statistics>,
}

#[derive(Debug)]
struct Request {
    stream: StreamId,
    location: Location,
    gap: Gap,
    answers: SyncSender<Answer>,
}

impl Repairs {
    /// Starts the thread, which ends with the last of those who ask. Files are the node's, below `host_root`.
    ///
    /// # Errors
    /// The directory can't be opened, or the system has no thread to give.
    pub fn start(host_root: &Path) -> io::Result<Self> {
        let node = HostFiles::new(host_root)?;
        let (requests, to_do) = mpsc::sync_channel(MAX_REQUESTS);
        let worker = Worker { node, to_do, jobs: Vec::new(), known: HashMap::new() };
        std::thread::Builder::new().name("runtime-log".to_owned()).spawn(move || worker.run())?;
        Ok(Self { requests, statistics: Arc::default() })
    }

    /// Asks for the bytes of a gap; `None` when the container has no log, or too many gaps wait.
    #[must_use]
    pub fn ask(&self, stream: StreamId, identity: &Identity, gap: impl FnOnce() -> Gap) -> Option<Receiver<Answer>> {
        let location = Location::of(identity)?;
        let (answers, receiver) = mpsc::sync_channel(MAX_CHUNKS);
        self.requests.try_send(Request { stream, location, gap: gap(), answers }).ok()?;
        Some(receiver)
    }

    /// Figures.
    #[must_use]
    pub fn statistics(&self) -> &Arc<Statistics> {
        &self.statistics
    }
}

struct Worker {
    node: HostFiles,
    to_do: Receiver<Request>,
    jobs: Vec<Job>,
    /// Where gaps were found, so that the next one of the stream is not looked for from its start.
    known: HashMap<StreamId, Known>,
}

struct Job {
    request: Request,
    deadline: Instant,
    state: State,
}

enum State {
    Looking { next: Instant, pause: Duration },
    Copying { copy: Box<Copy>, chunk: Option<Answer> },
}

/// What a step of a job has come to.
enum Step {
    Done,
    Moved,
    Idle,
}

impl Worker {
    fn run(mut self) {
        loop {
            let request = if self.jobs.is_empty() {
                self.to_do.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.to_do.recv_timeout(Duration::ZERO)
            };
            match request {
                Ok(request) => {
                    let now = Instant::now();
                    let state = State::Looking { next: now, pause: PAUSES[0] };
                    self.jobs.push(Job { request, deadline: now + WAIT_FOR_RUNTIME, state });
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody is left to take the bytes.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let mut moved = false;
            for mut job in std::mem::take(&mut self.jobs) {
                match self.step(&mut job) {
                    Step::Done => continue,
                    Step::Moved => moved = true,
                    Step::Idle => {}
                }
                self.jobs.push(job);
            }
            if !moved && !self.jobs.is_empty() {
                std::thread::sleep(NAP);
            }
        }
    }

    fn step(&mut self, job: &mut Job) -> Step {
        let step = match &mut job.state {
            State::Looking { next, .. } if Instant::now() < *next => return Step::Idle,
            State::Looking { .. } => self.look(job),
            State::Copying { copy, chunk } => hand_over(&job.request.answers, copy, chunk),
        };
        step.unwrap_or_else(|error| {
            refused(&job.request, &error.to_string());
            Step::Done
        })
    }

    fn look(&mut self, job: &mut Job) -> Result<Step, ContentError> {
        let (request, now) = (&job.request, Instant::now());
        let hint = self.known.get(&request.stream).filter(|known| known.position <= request.gap.range.start).copied();
        let looked = match look(&self.node, &request.location, &request.gap, hint, job.deadline) {
            Err(ContentError::Io(error))
                if error.kind() == io::ErrorKind::NotFound && now + WAIT_FOR_RUNTIME < job.deadline + WAIT_FOR_FILE =>
            {
                Look::Later(None)
            }
            looked => looked?,
        };
        let known = match looked {
            Look::Found(found) => {
                let known = found.known(&request.gap);
                let copy = Box::new(Copy::new(found, &request.gap));
                job.state = State::Copying { copy, chunk: Some(Answer::Found) };
                known
            }
            Look::Later(known) => {
                if now > job.deadline {
                    refused(request, "the runtime has not written all of it in time");
                    return Ok(Step::Done);
                }
                if let State::Looking { next, pause } = &mut job.state {
                    *next = now + *pause;
                    *pause = (*pause * 2).min(PAUSES[1]);
                }
                known
            }
            Look::Never(why) => {
                refused(request, why);
                return Ok(Step::Done);
            }
        };
        if let Some(known) = known {
            if self.known.len() > MAX_KNOWN {
                self.known.clear();
            }
            self.known.insert(job.request.stream, known);
        }
        Ok(Step::Moved)
    }
}

/// Hands over what there is room for.
fn hand_over(answers: &SyncSender<Answer>, copy: &mut Copy, chunk: &mut Option<Answer>) -> Result<Step, ContentError> {
    loop {
        let answer = match chunk.take() {
            Some(answer) => answer,
            None => match copy.next()? {
                Some(next) => Answer::Chunk(next),
                None => return Ok(Step::Done),
            },
        };
        match answers.try_send(answer) {
            Ok(()) => {}
            Err(TrySendError::Full(answer)) => {
                *chunk = Some(answer);
                return Ok(Step::Idle);
            }
            // The stream does without.
            Err(TrySendError::Disconnected(_)) => return Ok(Step::Done),
        }
    }
}

fn refused(request: &Request, why: &str) {
    tracing::info!(
        location = ?request.location, iostream = request.gap.iostream.as_str(), position = request.gap.range.start,
        bytes = request.gap.range.end - request.gap.range.start, why,
        "what the ring could not hold of a stream is not taken from the runtime's log"
    );
}
