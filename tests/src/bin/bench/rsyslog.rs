//! What we compare with: rsyslog that follows the runtime's file and writes JSON, to a file or to Kafka, with a
//! configuration, a work directory and a pid file of its own; the system's rsyslog is not touched.

use std::{
    fs::{self, File},
    io::{PipeReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, set_parent_process_death_signal};
use sidestep_tests::{Testbed, wait_until};

/// A process of the benchmark; dropping it kills it.
struct Helper(Child);

impl Helper {
    fn spawn(mut command: Command) -> Result<Self> {
        // Ctrl-C is for the benchmark, which then ends its helpers.
        command.process_group(0);
        // SAFETY: the closure makes one system call, which is async-signal-safe, and allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let child = command.spawn();
        Ok(Self(child.with_context(|| format!("starting {}", command.get_program().display()))?))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where rsyslog writes to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Output<'a> {
    /// A file beside its configuration.
    File,
    /// A topic of the broker at this address.
    Kafka { broker: &'a str, topic: &'a str },
}

/// A copier that stands for the runtime, and an rsyslog behind it.
pub(crate) struct Chain {
    copier: Helper,
    rsyslogd: Helper,
    directory: PathBuf,
}

impl Chain {
    /// Starts both; what comes out of `source` ends as JSON in `output`.
    ///
    /// # Errors
    /// rsyslogd isn't installed, or refuses its configuration.
    pub(crate) fn start(bed: &Testbed, source: PipeReader, output: Output<'_>) -> Result<Self> {
        let directory = bed.directory().join("rsyslog");
        fs::create_dir_all(directory.join("work"))?;
        let container_log = directory.join("container.log");
        File::create(&container_log)?;

        let mut copier = Command::new(std::env::current_exe()?);
        copier.arg("copier").arg(&container_log).stdin(source);
        let copier = Helper::spawn(copier)?;

        let config = directory.join("rsyslog.conf");
        fs::write(&config, configuration(&directory, output))?;
        let errors = directory.join("stderr");
        let mut rsyslogd = Command::new("rsyslogd");
        rsyslogd.arg("-n").arg("-f").arg(&config).arg("-i").arg(directory.join("pid"));
        rsyslogd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors)?);
        let mut rsyslogd = Helper::spawn(rsyslogd).context("apt-get install rsyslog rsyslog-kafka")?;
        let pid_file = directory.join("pid");
        wait_until("the start of rsyslogd", sidestep_tests::DEADLINE, || {
            if let Some(status) = rsyslogd.0.try_wait()? {
                bail!("rsyslogd ended with {status}: {}", fs::read_to_string(&errors).unwrap_or_default());
            }
            Ok(pid_file.exists().then_some(()))
        })?;
        Ok(Self { copier, rsyslogd, directory })
    }

    /// The copier.
    pub(crate) fn copier(&self) -> Pid {
        self.copier.pid()
    }

    /// rsyslogd.
    pub(crate) fn rsyslogd(&self) -> Pid {
        self.rsyslogd.pid()
    }

    /// Waits until this many lines have come out into the file.
    ///
    /// # Errors
    /// Not in time.
    pub(crate) fn wait_lines(&self, lines: u64) -> Result<()> {
        let path = self.directory.join("out.json");
        let (mut output, mut seen) = (None, 0);
        let mut buffer = vec![0; 1 << 20];
        let waited = wait_until("rsyslog's output", Duration::from_secs(60), || {
            if output.is_none() && path.exists() {
                output = Some(File::open(&path)?);
            }
            if let Some(output) = &mut output {
                while let count @ 1.. = output.read(&mut buffer)? {
                    seen += buffer[..count].iter().filter(|byte| **byte == b'\n').count() as u64;
                }
            }
            Ok((seen >= lines).then_some(()))
        });
        waited.with_context(|| format!("{seen} of {lines} lines have come out"))
    }
}

/// Tuned in its favour: large batches and buffers, no rotation, no compression, and no identity beyond the file's name.
fn configuration(directory: &Path, output: Output<'_>) -> String {
    let at = directory.display();
    let (module, action) = match output {
        Output::File => {
            (String::new(), format!(r#"type="omfile" file="{at}/out.json" template="json" ioBufferSize="64k""#))
        }
        Output::Kafka { broker, topic } => (
            r#"module(load="omkafka")"#.to_owned(),
            format!(
                r#"type="omkafka" broker="{broker}" topic="{topic}" template="json" partitions.auto="on"
    confParam=["compression.codec=zstd", "acks=all", "enable.idempotence=true", "linger.ms=5",
               "queue.buffering.max.messages=200000"]"#
            ),
        ),
    };
    format!(
        r#"global(workDirectory="{at}/work" maxMessageSize="64k")
module(load="imfile" mode="inotify")
{module}
template(name="json" type="list") {{
  constant(value="{{\"timestamp\":\"") property(name="timegenerated" dateFormat="rfc3339")
  constant(value="\",\"body\":\"") property(name="msg" format="json")
  constant(value="\",\"position\":") property(name="$!metadata!fileoffset")
  constant(value=",\"class\":\"pod\",\"resource\":{{\"host.name\":\"") property(name="hostname" format="json")
  constant(value="\"}},\"attributes\":{{\"log.file.path\":\"") property(name="$!metadata!filename" format="json")
  constant(value="\"}}}}\n")
}}
main_queue(queue.type="LinkedList" queue.size="100000" queue.dequeueBatchSize="2048")
input(type="imfile" file="{at}/container.log" tag="pod" addMetadata="on" ruleset="out")
ruleset(name="out") {{
  action({action})
}}
"#
    )
}
