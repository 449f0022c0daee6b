//! The agent's own CPU, memory and descriptors, read from the kernel. The collector of crate `prometheus` gives CPU in
//! whole seconds only, too coarse for an agent whose aim is to use next to none.

use std::{fs, io, mem::MaybeUninit, time::Duration};

use rustix::process::{Resource, getrlimit};

/// One reading of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessReading {
    /// User and system time of all threads.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
    /// Virtual memory in bytes.
    pub virtual_memory: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// The soft limit on file descriptors.
    pub max_fds: u64,
}

impl ProcessReading {
    /// Reads them now.
    ///
    /// # Errors
    /// The first file of `/proc/self` that could not be read, or the system call that failed.
    pub fn now() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        // Listing the directory opens one descriptor, which is not the agent's.
        let open_fds = (fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1);
        Ok(Self {
            cpu: cpu()?,
            resident: field(&status, "VmRSS:") * 1024,
            virtual_memory: field(&status, "VmSize:") * 1024,
            threads: field(&status, "Threads:"),
            open_fds,
            // No limit is as good as any number that is never reached.
            max_fds: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        })
    }
}

/// The number after a key of `/proc/self/status`; memory is in KiB there.
fn field(status: &str, key: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

fn cpu() -> io::Result<Duration> {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `usage` has room for the one `rusage` that the kernel writes.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the kernel has filled in the whole structure.
    let usage = unsafe { usage.assume_init() };
    Ok(duration(usage.ru_utime) + duration(usage.ru_stime))
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_usec).unwrap_or(0) * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_what_the_process_does() {
        let before = ProcessReading::now().expect("/proc/self");
        let memory = vec![1_u8; 64 << 20];
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").expect("/dev/null")).collect();
        let mut sum = 0_u64;
        let after = loop {
            sum = memory.iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            let after = ProcessReading::now().expect("/proc/self");
            if after.cpu >= before.cpu + Duration::from_millis(20) {
                break after;
            }
        };
        assert_ne!(sum, 0);
        // Other tests run in this process at the same time, so the bounds are loose.
        assert!(after.resident > 64 << 20, "{after:?}");
        assert!(after.virtual_memory > after.resident, "{after:?}");
        assert!(after.open_fds >= files.len() as u64, "{after:?}");
        assert!(after.max_fds >= after.open_fds && after.threads >= 1, "{after:?}");
    }

    #[test]
    fn reads_fields_of_the_status_file() {
        let status = "Name:\tsidestep\nVmSize:\t  123456 kB\nVmRSS:\t    4096 kB\nThreads:\t7\n";
        assert_eq!(field(status, "VmRSS:"), 4096);
        assert_eq!(field(status, "Threads:"), 7);
        assert_eq!(field(status, "VmSwap:"), 0);
    }
}
