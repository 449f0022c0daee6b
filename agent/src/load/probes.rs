//! Which program is attached where, and how well: healthy, degraded, unsupported or failed.

use std::{fmt, path::Path, time::Instant};

use aya::{
    Btf, Ebpf,
    programs::{FExit, ProgramError, RawTracePoint, TracePoint, links::FdLink},
};

use sidestep_abi::kernel::KernelLayout;

use super::{LoadError, layout};

/// A way to see the end of a system call.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachPoint {
    /// `fexit` on the functions that implement the calls: other calls and processes pay nothing.
    Fexit,
    /// The tracepoints `syscalls:sys_exit_*`: every system call of the node pays about 70 ns, and a write
    /// by a process outside 100 to 600 ns (`agent/docs/benchmarks.md`).
    Tracepoint,
    /// The raw tracepoint `sys_exit`: every system call of the node pays, more than with the
    /// tracepoints.
    RawTracepoint,
}

impl AttachPoint {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fexit => "fexit",
            Self::Tracepoint => "tracepoint",
            Self::RawTracepoint => "raw_tracepoint",
        }
    }
}

impl fmt::Display for AttachPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a probe does.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Attached at the best point.
    Healthy,
    /// Attached at a point that costs more or sees less.
    Degraded,
    /// This kernel has no such point; what is missed is stated.
    Unsupported,
    /// It should have worked.
    Failed,
}

impl Health {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Degraded, Self::Unsupported, Self::Failed];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unsupported => "unsupported",
            Self::Failed => "failed",
        }
    }

    /// Whether the probe is attached.
    #[must_use]
    pub const fn is_attached(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }
}

/// One probe and its state.
#[derive(Clone, Debug)]
pub struct Probe {
    /// What it sees, such as `write` or `cgroup_rmdir`.
    pub name: &'static str,
    /// Where it is attached; `None` when it is not.
    pub attached: Option<AttachPoint>,
    /// How it does.
    pub health: Health,
    /// Why it is not healthy, and what follows.
    pub reason: String,
    /// Whether a container's log is incomplete without it.
    pub required: bool,
}

/// Tracepoints of the life of containers.
const LIFE: [&str; 4] = ["sched_process_exec", "cgroup_mkdir", "cgroup_notify_populated", "cgroup_rmdir"];
/// The tracepoint of io_uring, and its program.
const URING: &str = "io_uring_complete";
/// Tracepoints of system calls.
const SYSCALLS: &str = "syscalls";
/// System calls whose finished writes carry bytes.
const WRITES: [&str; 5] = ["write", "writev", "pwrite64", "pwritev", "pwritev2"];
/// What is missed where a transfer is not seen.
const TRANSFER_MISSED: &str = "bytes that it moves into a container's stdout are not counted";
/// What is missed where the completion of io_uring's requests is not seen.
const URING_MISSED: &str = "bytes that io_uring writes into a container's stdout are not counted";
/// What is missed where an opening is not seen.
const OPEN_MISSED: &str = "a file that is only mapped into memory, and never written by a call, is not found";
/// Other system calls that are seen: name, tracepoint, program, and what is missed without. A log that is written
/// needs none of them.
const OTHERS: [(&str, &str, &str, &str); 7] = [
    ("sendfile", "sys_exit_sendfile64", "exit_sendfile", TRANSFER_MISSED),
    ("splice", "sys_exit_splice", "exit_splice", TRANSFER_MISSED),
    ("tee", "sys_exit_tee", "exit_tee", TRANSFER_MISSED),
    ("vmsplice", "sys_exit_vmsplice", "exit_vmsplice", TRANSFER_MISSED),
    ("copy_file_range", "sys_exit_copy_file_range", "exit_copy_file_range", TRANSFER_MISSED),
    ("open", "sys_exit_open", "exit_open", OPEN_MISSED),
    ("openat", "sys_exit_openat", "exit_openat", OPEN_MISSED),
];

/// Programs, and the links that attach them.
pub(super) struct Attaching<'a> {
    /// The programs.
    ebpf: &'a mut Ebpf,
    /// Links by the program's name: dropping one detaches its program.
    pub(super) links: Vec<(String, FdLink)>,
}

impl<'a> Attaching<'a> {
    /// Attaches nothing yet.
    pub(super) const fn new(ebpf: &'a mut Ebpf) -> Self {
        Self { ebpf, links: Vec::new() }
    }

    fn raw(&mut self, name: &str, point: &str) -> Result<(), String> {
        let program: &mut RawTracePoint =
            self.ebpf.program_mut(name).ok_or("not in the object")?.try_into().map_err(text)?;
        load_once(point, || program.load())?;
        let id = program.attach(point).map_err(text)?;
        let link = program.take_link(id).map_err(text)?;
        self.links.push((name.to_owned(), link.into()));
        Ok(())
    }

    fn tracepoint(&mut self, name: &str, category: &str, point: &str) -> Result<(), String> {
        let program: &mut TracePoint =
            self.ebpf.program_mut(name).ok_or("not in the object")?.try_into().map_err(text)?;
        load_once(point, || program.load())?;
        let id = program.attach(category, point).map_err(text)?;
        let link = program.take_link(id).map_err(text)?;
        self.links.push((name.to_owned(), link.try_into().map_err(text)?));
        Ok(())
    }

    fn fexit(&mut self, call: &str, btf: &Btf) -> Result<(), String> {
        let name = format!("fexit_{call}");
        let program: &mut FExit = self.ebpf.program_mut(&name).ok_or("not in the object")?.try_into().map_err(text)?;
        let function = layout::wrapper(call);
        load_once(&function, || program.load(&function, btf))?;
        let id = program.attach().map_err(text)?;
        let link = program.take_link(id).map_err(text)?;
        self.links.push((name, link.into()));
        Ok(())
    }
}

/// The name of a probe as this agent has it.
pub(super) fn name(text: &str) -> Option<&'static str> {
    let others = OTHERS.iter().map(|(name, ..)| *name);
    LIFE.into_iter().chain(WRITES).chain(others).chain([URING, "transfer"]).find(|name| *name == text)
}

/// Loads a program unless it is loaded. Most of the agent's start is the verifier's time, so it is told.
fn load_once(point: &str, load: impl FnOnce() -> Result<(), ProgramError>) -> Result<(), String> {
    let started = Instant::now();
    let result = load();
    tracing::debug!(point, milliseconds = started.elapsed().as_millis() as u64, "the kernel has verified a program");
    match result {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
        // Refused without a look at the program.
        Err(ProgramError::LoadError { io_error, verifier_log }) if verifier_log.to_string().trim().is_empty() => {
            Err(format!("the kernel does not load it: {io_error}"))
        }
        Err(error) => Err(text(error)),
    }
}

/// An error with its causes. The verifier's log is long, and its end is what matters.
pub(super) fn text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors print their cause themselves.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    match text.char_indices().rev().nth(2000) {
        Some((cut, _)) => format!("...{}", &text[cut..]),
        None => text,
    }
}

/// Attaches what tells the life of containers. Nothing works without these.
pub(super) fn attach_life(attaching: &mut Attaching<'_>) -> Result<Vec<Probe>, LoadError> {
    LIFE.into_iter()
        .map(|name| match attaching.raw(name, name) {
            Ok(()) => Ok(healthy(name, AttachPoint::RawTracepoint)),
            Err(reason) => Err(LoadError::Probe { name: name.to_owned(), reason }),
        })
        .collect()
}

fn healthy(name: &'static str, attached: AttachPoint) -> Probe {
    Probe { name, attached: Some(attached), health: Health::Healthy, reason: String::new(), required: true }
}

/// Attaches the probes of finished writes at the best point that works, or at the one that is asked for.
pub(super) fn attach_writes(
    attaching: &mut Attaching<'_>,
    wanted: Option<AttachPoint>,
    layout: &KernelLayout,
) -> Result<Vec<Probe>, LoadError> {
    let candidates = match wanted {
        Some(point) => vec![point],
        None => vec![AttachPoint::Fexit, AttachPoint::Tracepoint, AttachPoint::RawTracepoint],
    };
    let mut refused = Vec::new();
    for point in candidates {
        let attached = match point {
            AttachPoint::Fexit => attach_fexit(attaching),
            AttachPoint::Tracepoint => {
                ensure_tracefs();
                WRITES.iter().try_for_each(|call| {
                    attaching.tracepoint(&format!("exit_{call}"), SYSCALLS, &format!("sys_exit_{call}"))
                })
            }
            AttachPoint::RawTracepoint => attaching.raw("raw_exit_write", "sys_exit"),
        };
        match attached {
            Ok(()) => {
                let reason = refused.join("; ");
                let health = if refused.is_empty() { Health::Healthy } else { Health::Degraded };
                let mut probes: Vec<_> = WRITES
                    .into_iter()
                    .map(|name| Probe { name, attached: Some(point), health, reason: reason.clone(), required: true })
                    .collect();
                probes.extend(attach_others(attaching, point));
                probes.push(attach_uring(attaching, layout));
                return Ok(probes);
            }
            Err(reason) => {
                detach_writes(attaching, point);
                refused.push(format!("{point}: {reason}"));
            }
        }
    }
    Err(LoadError::Probe { name: "write".to_owned(), reason: refused.join("; ") })
}

fn attach_fexit(attaching: &mut Attaching<'_>) -> Result<(), String> {
    let btf = Btf::from_sys_fs().map_err(text)?;
    WRITES.iter().try_for_each(|call| attaching.fexit(call, &btf))
}

/// Takes back a half-made attachment, or every write would be seen twice.
fn detach_writes(attaching: &mut Attaching<'_>, point: AttachPoint) {
    for call in WRITES {
        let names = [format!("fexit_{call}"), format!("exit_{call}")];
        attaching.links.retain(|(name, _)| !names.contains(name));
        match point {
            AttachPoint::Fexit => {
                let program = attaching.ebpf.program_mut(&names[0]).map(<&mut FExit>::try_from);
                if let Some(Ok(program)) = program {
                    let _ = program.unload();
                }
            }
            AttachPoint::Tracepoint => {
                let program = attaching.ebpf.program_mut(&names[1]).map(<&mut TracePoint>::try_from);
                if let Some(Ok(program)) = program {
                    let _ = program.unload();
                }
            }
            AttachPoint::RawTracepoint => {}
        }
    }
}

/// Attaches what sees bytes moved between descriptors, and files opened.
fn attach_others(attaching: &mut Attaching<'_>, writes: AttachPoint) -> Vec<Probe> {
    if writes == AttachPoint::RawTracepoint {
        let programs = [("transfer", "raw_exit_transfer", TRANSFER_MISSED), ("open", "raw_exit_open", OPEN_MISSED)];
        return programs
            .into_iter()
            .map(|(name, program, missed)| match attaching.raw(program, "sys_exit") {
                Ok(()) => healthy(name, AttachPoint::RawTracepoint),
                Err(reason) => unseen(name, &reason, missed),
            })
            .collect();
    }
    ensure_tracefs();
    OTHERS
        .into_iter()
        .map(|(name, point, program, missed)| match attaching.tracepoint(program, SYSCALLS, point) {
            Ok(()) => healthy(name, AttachPoint::Tracepoint),
            Err(reason) => unseen(name, &reason, missed),
        })
        .collect()
}

/// Attaches what sees writes by io_uring.
fn attach_uring(attaching: &mut Attaching<'_>, layout: &KernelLayout) -> Probe {
    if layout.uring_req == 0 {
        return unseen(URING, "this kernel does not say whose request is done (Linux 5.17 does)", URING_MISSED);
    }
    match attaching.tracepoint(URING, "io_uring", URING) {
        Ok(()) => healthy(URING, AttachPoint::Tracepoint),
        Err(reason) => unseen(URING, &reason, URING_MISSED),
    }
}

fn unseen(name: &'static str, reason: &str, missed: &str) -> Probe {
    let reason = format!("{reason}; {missed}");
    Probe { name, attached: None, health: Health::Unsupported, reason, required: false }
}

/// Mounts tracefs where it belongs, when nobody has: the tracepoints' numbers are read from it.
fn ensure_tracefs() {
    const TRACEFS: &str = "/sys/kernel/tracing";
    if Path::new(TRACEFS).join("events").exists() || Path::new("/sys/kernel/debug/tracing/events").exists() {
        return;
    }
    // SAFETY: all pointers are to NUL-terminated constants; failure leaves the tracepoints unsupported, and says so.
    let result = unsafe {
        libc::mount(c"tracefs".as_ptr(), c"/sys/kernel/tracing".as_ptr(), c"tracefs".as_ptr(), 0, std::ptr::null())
    };
    if result != 0 {
        tracing::warn!(error = %std::io::Error::last_os_error(), path = TRACEFS, "can't mount tracefs");
    }
}
