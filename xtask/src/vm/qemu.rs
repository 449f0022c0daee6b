//! The emulated machine: started, read along, and ended within a time limit.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::command;

/// A machine to run once.
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    /// Stands before each line of output.
    pub(super) label: &'a str,
    /// Where the machine's second serial port writes to.
    pub(super) exit_file: &'a Path,
    /// In MiB.
    pub(super) memory: u32,
    pub(super) kvm: bool,
    pub(super) timeout: Duration,
}

/// Ends the machine however this program goes on.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which is the usual case.
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<_> = self.0.wait();
    }
}

impl Machine<'_> {
    /// Boots, prints what the machine prints as it comes, and waits for the end.
    ///
    /// # Errors
    /// The program's exit status is not 0, the machine ends without one (a panic), or the time is over.
    pub(super) fn run(&self) -> Result<()> {
        fs::write(self.exit_file, "").with_context(|| format!("cannot write {}", self.exit_file.display()))?;
        let mut qemu = self.command();
        let child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start qemu")?;
        let mut running = Running(child);
        let serial = running.0.stdout.take().context("qemu has no output")?;
        let label = self.label.to_owned();
        let printer = thread::spawn(move || print(serial, &label));
        let deadline = Instant::now() + self.timeout;
        let status = loop {
            if let Some(status) = running.0.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("not done after {} s; see --timeout", self.timeout.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        };
        // The pipe is closed, so that this ends.
        let _: thread::Result<()> = printer.join();
        let report = fs::read_to_string(self.exit_file).context("cannot read the exit status")?;
        match report.trim().parse::<u8>() {
            Ok(0) => Ok(()),
            Ok(code) => Err(command::failed(format!("program in the machine {}", self.label), code)),
            Err(_) => bail!("the machine ended without an exit status of its program (qemu: {status})"),
        }
    }

    fn command(&self) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none"])
            .args(["-machine", if self.kvm { "q35,accel=kvm" } else { "q35,accel=tcg" }, "-cpu", "max", "-smp", "2"])
            .args(["-m", &format!("{}M", self.memory), "-serial", "stdio", "-serial"])
            .arg(format!("file:{}", self.exit_file.display()))
            // Boot messages are left out; a panic still shows, and reboots, which ends the machine. The check of the
            // timer fails now and then when the machine that emulates is busy.
            .args(["-append", "console=ttyS0,115200 loglevel=4 panic=-1 no_timer_check rdinit=/init"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs);
        qemu
    }
}

/// Prints each line with the machine's label; what is no UTF-8 is replaced, and terminal control of the firmware goes.
fn print(serial: impl Read, label: &str) {
    let mut serial = BufReader::new(serial);
    let mut line = Vec::new();
    // An error of reading is the machine's end, which is reported elsewhere.
    while serial.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        // Our own reader may have gone away; the machine has to be read anyway, or it would stop.
        let _: std::io::Result<()> = writeln!(std::io::stdout().lock(), "[{label}] {text}");
        line.clear();
    }
}
