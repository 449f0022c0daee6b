//! The containers that write numbered lines.

use std::{fs, io, path::PathBuf, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{Agent, Container, DEADLINE, Ledger, Stdio, Testbed, wait_until};

/// How long an agent may take to deliver what there is: after many kills there is much, and most of it again.
const DELIVERY: Duration = Duration::from_secs(900);

/// The path in the container that writes a file.
const LOG: &str = "/var/log/app.log";

/// Writes numbered lines to its stdout, or to a file that it rotates as logrotate does, until there is a file `stop`; then
/// it says how many there were. `MODE` and `RATE` are replaced. A line stays for 36,000 more: what no agent has read until
/// then nobody can.
const WRITER: &str = r#"
import os, time
rate, log = RATE, "MODE"
def line(n):
    return ("%09d %s\n" % (n, "abcdefghij" * (n % 23))).encode()
target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND) if log else 1
n, start = 0, time.monotonic()
while not os.path.exists("/control/stop"):
    for _ in range(20):
        text = line(n)
        if n % 97 == 0:
            os.write(target, text[:5])
            time.sleep(0.002)
            os.write(target, text[5:])
        else:
            os.write(target, text)
        n += 1
        if log and n % 4000 == 0:
            os.close(target)
            for age in range(8, 0, -1):
                if os.path.exists(f"{log}.{age}"):
                    os.rename(f"{log}.{age}", f"{log}.{age + 1}")
            os.rename(log, log + ".1")
            target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    late = start + n / rate - time.monotonic()
    if late > 0:
        time.sleep(late)
with open("/control/count.new", "w") as count:
    count.write(str(n))
os.rename("/control/count.new", "/control/count")
"#;

/// A pipe that is read at once, as by a runtime, and of which nothing is kept: there is much of it.
fn drained() -> Result<Stdio> {
    let (mut reader, writer) = io::pipe()?;
    // It ends when the container does.
    thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
    Ok(Stdio::Given(Arc::new(writer.into())))
}

/// One container that writes to its stdout, and one that writes to a log file, which it rotates.
#[derive(Debug)]
pub struct Load {
    writers: Vec<Writer>,
}

#[derive(Debug)]
struct Writer {
    container: Container,
    /// `pod` for stdout, `business` for the file.
    class: &'static str,
    control: PathBuf,
}

/// What one of them has written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Written {
    /// The class of its lines.
    pub class: &'static str,
    /// The container.
    pub id: String,
    /// The numbers below this one.
    pub lines: u64,
}

impl Load {
    /// Starts the writers, each with `rate` lines a second, while an agent runs: what was written to a pipe before
    /// there was any, nobody has.
    ///
    /// # Errors
    /// A container can't be started.
    pub fn start(bed: &Testbed, rate: u32) -> Result<Self> {
        let writers = [("pipe", "pod", ""), ("file", "business", LOG)].map(|(name, class, log)| -> Result<Writer> {
            let control = bed.path(format!("control-{name}/stop"))?.with_file_name("");
            let program = WRITER.replace("RATE", &rate.to_string()).replace("MODE", log);
            let container =
                bed.container(name).python(&program).stdout(drained()?).bind(&control, "/control").start()?;
            Ok(Writer { container, class, control })
        });
        Ok(Self { writers: writers.into_iter().collect::<Result<_>>()? })
    }

    /// Ends the writers in order; returns what each has written.
    ///
    /// # Errors
    /// A writer does not end in time.
    pub fn stop(&self) -> Result<Vec<Written>> {
        for writer in &self.writers {
            fs::write(writer.control.join("stop"), "")?;
        }
        let count = |writer: &Writer| {
            let path = writer.control.join("count");
            let text = wait_until("the end of a writer", DEADLINE, || Ok(fs::read_to_string(&path).ok()))
                .with_context(|| String::from_utf8_lossy(&writer.container.stderr()).into_owned())?;
            let lines = text.parse().context("a count of lines")?;
            Ok(Written { class: writer.class, id: writer.container.id().to_owned(), lines })
        };
        self.writers.iter().map(count).collect()
    }

    /// Waits until an agent has seen something of each writer, and the ledger of each balances with nothing lost.
    ///
    /// # Errors
    /// One does not, or something was dropped.
    pub fn check_ledger(&self, agent: &Agent) -> Result<()> {
        // A reading under load may be off by what moved meanwhile.
        let balances = |ledger: &Ledger| ledger.produced > 0 && ledger.difference() == 0;
        for (class, ledger) in self.wait_ledgers(agent, DEADLINE, balances)? {
            ensure!(ledger.dropped.is_empty(), "lines of {class} were dropped: {ledger:?}");
        }
        Ok(())
    }

    /// Waits until nothing of the writers is on its way any more, and nothing is in a buffer on disk; returns the
    /// ledger of each, by class.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_settled(&self, agent: &Agent) -> Result<Vec<(&'static str, Ledger)>> {
        let settled = |ledger: &Ledger| ledger.pending == 0 && ledger.difference() == 0;
        self.wait_ledgers(agent, DELIVERY, settled)?;
        // What an earlier agent has left is in no account before it is read back.
        wait_until("empty buffers", DELIVERY, || {
            Ok((agent.metrics()?.sum("sidestep_sink_buffer_bytes") == 0.0).then_some(()))
        })?;
        self.wait_ledgers(agent, DELIVERY, settled)
    }

    fn wait_ledgers(
        &self,
        agent: &Agent,
        limit: Duration,
        is_good: impl Fn(&Ledger) -> bool,
    ) -> Result<Vec<(&'static str, Ledger)>> {
        let ledger = |writer: &Writer| {
            let mut last = Ledger::default();
            wait_until("the ledger", limit, || {
                last = agent.ledger(writer.container.id())?;
                Ok(is_good(&last).then(|| last.clone()))
            })
            .with_context(|| format!("the ledger of {} stands at {last:?}", writer.class))
            .map(|ledger| (writer.class, ledger))
        };
        self.writers.iter().map(ledger).collect()
    }
}
