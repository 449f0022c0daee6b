//! CPU time and memory of a process, from `/proc`.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use rustix::process::Pid;
pub(crate) use sidestep_tests::process::memory as memory_bytes;

/// User and system time of a process and its ended threads, in seconds; steps of 10 ms.
///
/// # Errors
/// It is gone.
pub(crate) fn cpu_seconds(pid: Pid) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).context("reading a CPU time")?;
    let ticks = parse_ticks(&text).context("a CPU time")?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Fields 14 and 15; the name, field 2, may itself have blanks and parentheses.
fn parse_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11).map(str::parse::<u64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

/// Waits until a process uses next to no CPU: what it had to do is done.
///
/// # Errors
/// It is gone, or still busy after `limit`.
pub(crate) fn wait_idle(pid: Pid, limit: Duration) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(300);
    const IDLE: f64 = 0.02;
    let mut last = cpu_seconds(pid)?;
    let mut next_look = std::time::Instant::now() + LOOK;
    sidestep_tests::wait_until("a process' idleness", limit, || {
        if std::time::Instant::now() < next_look {
            return Ok(None);
        }
        next_look += LOOK;
        let now = cpu_seconds(pid)?;
        let used = now - std::mem::replace(&mut last, now);
        Ok((used <= IDLE).then_some(()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        assert_eq!(parse_ticks("7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0"), Some(300));
        assert_eq!(parse_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(memory_bytes(rustix::process::getpid(), "VmRSS").expect("a size") > 0);
        assert!(memory_bytes(rustix::process::getpid(), "VmNone").is_err());
    }
}
