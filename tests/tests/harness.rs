//! The harness itself, without the agent: what it starts runs as it should, and nothing of it stays.

use std::{fs, panic, path::PathBuf, thread, time::Duration};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use sidestep_tests::{Testbed, cgroup, container::Exit, end_to_end, mounts, testbed};

#[test]
fn a_container_writes_to_two_pipes() {
    end_to_end(|bed| {
        let mut container = bed.container("app").shell("echo out; echo err >&2; read line; echo $line").start()?;
        container.wait_stdout("out\n")?;
        ensure!(
            fs::read_to_string(format!("/proc/{}/cgroup", container.pid().as_raw_nonzero()))?
                .lines()
                .any(|line| line == format!("0::{}", container.cgroup()))
        );
        use std::io::Write;
        container.stdin().write_all(b"last\n")?;
        container.finish()?;
        ensure!(container.stdout() == b"out\nlast\n");
        ensure!(container.stderr() == b"err\n");
        Ok(())
    });
}

#[test]
fn a_terminal_carries_everything() {
    end_to_end(|bed| {
        let mut container = bed.container("app").terminal().shell("tty >&2; echo out").start()?;
        container.wait()?;
        ensure!(container.stdout() == b"/dev/pts/0\r\nout\r\n", "{:?}", container.stdout().escape_ascii().to_string());
        Ok(())
    });
}

#[test]
fn an_exec_session_has_its_own_output() {
    end_to_end(|bed| {
        let mut container = bed.container("app").shell("read line").start()?;
        let output = container.exec(&["echo", "from outside"])?;
        ensure!(output.stdout == b"from outside\n");
        container.release();
        // `read` fails at the end of its input.
        ensure!(container.wait_for(Duration::from_secs(10))? == Exit::Status(1));
        ensure!(container.stdout().is_empty());
        Ok(())
    });
}

#[test]
fn a_killed_container_tells_its_signal() {
    end_to_end(|bed| {
        let mut container = bed.container("app").shell("printf half; read line").start()?;
        container.wait_stdout("half")?;
        container.kill(Signal::KILL)?;
        ensure!(container.wait_for(Duration::from_secs(10))? == Exit::Signal(9));
        ensure!(container.stdout() == b"half");
        Ok(())
    });
}

#[test]
fn host_programs_run_in_a_container() {
    end_to_end(|bed| {
        let mut container = bed.container("app").python("import os; os.writev(1, [b'a', b'b\\n'])").start()?;
        container.wait()?;
        ensure!(container.stdout() == b"ab\n");
        Ok(())
    });
}

/// Where things of a test bed could have stayed.
fn leftovers(name: &str) -> Result<Vec<PathBuf>> {
    let directory = std::env::temp_dir().join(name);
    let mut left: Vec<PathBuf> = mounts::all()?.into_iter().map(|mount| mount.target).collect();
    left.retain(|target| target.starts_with(&directory));
    left.extend(directory.exists().then_some(directory));
    left.extend(cgroup::top_level(name)?.into_iter().filter(|found| found == name).map(PathBuf::from));
    Ok(left)
}

#[test]
fn nothing_stays_after_a_panic() {
    let name = thread::spawn(|| {
        let mut name = String::new();
        let failed = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            end_to_end(|bed| {
                name = bed.cgroup_root().trim_start_matches('/').to_owned();
                let container = bed.container("app").shell("sleep 1000 & sleep 1000").start()?;
                mounts::tmpfs(&bed.path("full")?, "1m")?;
                // As if the test had lost sight of it.
                std::mem::forget(container);
                anyhow::bail!("on purpose")
            });
        }));
        assert!(failed.is_err());
        name
    })
    .join()
    .expect("the thread ends");
    assert!(!name.is_empty());
    assert_eq!(leftovers(&name).expect("leftovers"), Vec::<PathBuf>::new());
}

#[test]
fn leftovers_of_a_crashed_run_are_swept() {
    // The pid of a process that has ended and was waited for; it can't come back within this test's time.
    let mut child = std::process::Command::new("true").spawn().expect("true");
    let pid = child.id();
    child.wait().expect("true ends");
    let _bed = Testbed::new().expect("the first test bed sweeps, once per process");
    let name = format!("sidestep-test-{pid}-0");
    let directory = std::env::temp_dir().join(&name);
    fs::create_dir_all(directory.join("a/b")).expect("a directory");
    mounts::tmpfs(&directory.join("a/b/full"), "1m").expect("a mount");
    let group = cgroup::unified().expect("cgroup v2").join(&name).join("kubepods/pod1");
    fs::create_dir_all(&group).expect("a cgroup");
    let mut orphan = std::process::Command::new("sleep").arg("1000").spawn().expect("a process");
    fs::write(group.join("cgroup.procs"), orphan.id().to_string()).expect("moving the process");
    testbed::sweep().expect("sweeping");
    orphan.wait().expect("it was killed");
    assert_eq!(leftovers(&name).expect("leftovers"), Vec::<PathBuf>::new());
}
