//! What a container writes to its standard streams, and what is not its log although it looks like it.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use sidestep_tests::{
    Container, DEADLINE, Expected, Stdio, Testbed, cgroup, container::Exit, end_to_end, records::Record, wait_until,
};

/// Expects all that the runtime got from a container's two pipes.
fn expect_pipes(expected: &mut Expected, container: &Container) {
    expected.stdout(container, container.stdout());
    expected.stderr(container, container.stderr());
}

#[test]
fn stdout_and_stderr_are_two_streams() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let script = "for i in $(seq 200); do echo out $i; echo err $i >&2; done; echo done; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stdout("done\n")?;
        ensure!(container.stderr().ends_with(b"err 200\n"));
        let mut expected = Expected::new();
        expect_pipes(&mut expected, &container);
        expected.verify(agent, &[&container])
    });
}

#[test]
fn one_pipe_for_both_is_stdout() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let script = "exec 2>&1; for i in $(seq 50); do echo out $i; echo err $i >&2; done; echo done; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stdout("done\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        expected.verify(agent, &[&container])
    });
}

#[test]
fn a_terminal_is_stdout() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let script = "for i in $(seq 50); do echo out $i; echo err $i >&2; done; echo done; sleep 1000";
        let container = bed.container("app").terminal().shell(script).start()?;
        container.wait_stdout("done\r\n")?;
        let mut lines: String = (1..=50).map(|i| format!("out {i}\nerr {i}\n")).collect();
        lines.push_str("done\n");
        let mut expected = Expected::new();
        // The application writes LF; the line discipline makes CR LF of it on the way to the runtime.
        ensure!(container.stdout() == lines.replace('\n', "\r\n").as_bytes());
        expected.stdout(&container, lines);
        expected.verify(agent, &[&container])
    });
}

#[test]
fn output_to_null_or_a_plain_file_is_not_a_log() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let plain = bed.path("plain.txt")?;
        let script = "echo nothing; echo nothing >&2; echo also nothing > /data/notes.txt; echo ready > /data/mark; \
                      read hold";
        let null = bed.container("null").stdout(Stdio::Null).stderr(Stdio::Null).shell(script).start()?;
        let file = bed.container("file").stdout(Stdio::File(plain.clone())).shell(script).start()?;
        let redirected = "exec > /dev/null 2> /data/plain.txt; echo nothing; echo nothing >&2; echo > /data/mark; \
                          read hold";
        let redirected = bed.container("redirected").shell(redirected).start()?;
        for container in [&null, &file, &redirected] {
            let mark = container.rootfs().join("data/mark");
            wait_until("the end of the script", DEADLINE, || Ok(mark.exists().then_some(())))?;
        }
        ensure!(fs::read(&plain)? == b"nothing\n");
        // A line that comes through proves that the others would have come before it.
        let witness = bed.container("witness").shell("echo done; read hold").start()?;
        let mut expected = Expected::new();
        expected.stdout(&witness, "done\n").stderr(&file, "nothing\n");
        expected.verify(agent, &[&witness, &file])
    });
}

#[test]
fn output_redirected_into_a_log_file_is_that_file() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let script = "exec 3>&1 > /var/log/app.out; seq 500; echo done >&3; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stdout("done\n")?;
        let lines: String = (1..=500).map(|i| format!("{i}\n")).collect();
        let mut expected = Expected::new();
        expected.stdout(&container, "done\n").file(&container, "/var/log/app.out", lines);
        expected.verify(agent, &[&container])
    });
}

#[test]
fn containers_that_live_20_milliseconds_are_complete() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let mut expected = Expected::new();
        for number in 0..50 {
            let script = format!("echo first {number}; echo error {number} >&2; sleep 0.02; echo last {number}");
            let mut container = bed.container(&format!("short-{number}")).shell(&script).start()?;
            container.wait()?;
            ensure!(container.stdout() == format!("first {number}\nlast {number}\n").as_bytes());
            expect_pipes(&mut expected, &container);
        }
        expected.verify(agent, &[])
    });
}

#[test]
fn an_exec_session_is_not_the_log() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let container = bed.container("app").shell("echo start; read hold").start()?;
        container.wait_stdout("start\n")?;
        let session = container.exec(&["sh", "-c", "echo session; echo session >&2; seq 100"])?;
        ensure!(session.stdout.starts_with(b"session\n1\n"));
        // What a session writes to the container's own stdout is the container's log.
        container.exec(&["sh", "-c", "echo borrowed > /proc/1/fd/1"])?;
        container.wait_stdout("borrowed\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, "start\nborrowed\n");
        expected.verify(agent, &[&container])
    });
}

#[test]
fn a_pipe_between_two_processes_is_not_a_log() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let script = "seq 1000 | tr 0-9 a-j | sort | tail -n 3; v=$(seq 100); seq 10 > /dev/null; echo done; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stdout("done\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, "jjh\njji\njjj\ndone\n");
        expected.verify(agent, &[&container])
    });
}

/// What the first process writes goes through a pipe of its own, and through `sed`, to the runtime's.
const REDIRECTED: &str = "exec > >(/usr/bin/sed -u 's/^/through sed: /'); echo first; exec /bin/sh -c 'seq 100; exec sh -c \
                          \"seq 101 200; echo done; read hold\"'";

/// The lines that come of [`REDIRECTED`].
fn redirected_lines() -> String {
    let numbers = (1..=200).map(|number| number.to_string());
    let words = ["first".to_owned()].into_iter().chain(numbers).chain(["done".to_owned()]);
    words.map(|word| format!("through sed: {word}\n")).collect()
}

#[test]
fn a_pipe_that_the_first_process_redirects_its_output_into_is_not_a_log() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let shell = ["/usr/bin/bash", "-c", REDIRECTED];
        let own = bed.container("own").host_programs().args(&shell).start()?;
        let shared = bed.container("shared").host_programs().host_pids().args(&shell).start()?;
        let mut expected = Expected::new();
        for container in [&own, &shared] {
            container.wait_stdout("done\n")?;
            expected.stdout(container, redirected_lines());
        }
        expected.verify(agent, &[&own, &shared])
    });
}

#[test]
fn a_pipe_of_a_pid_namespace_below_the_containers_is_not_a_log() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let script = "echo first; unshare -U -p -f sh -c 'seq 100; exec seq 101 200' | sed 's/^/nested: /'; \
                      echo done; exec sh -c 'echo more; read hold'";
        let own = bed.container("own").shell(script).start()?;
        let shared = bed.container("shared").host_pids().shell(script).start()?;
        let nested: String = (1..=200).map(|number| format!("nested: {number}\n")).collect();
        let mut expected = Expected::new();
        for container in [&own, &shared] {
            container.wait_stdout("more\n")?;
            expected.stdout(container, format!("first\n{nested}done\nmore\n"));
        }
        expected.verify(agent, &[&own, &shared])
    });
}

#[test]
fn a_cgroup_below_the_containers_has_no_streams_of_its_own() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        // The program in the cgroup below comes from a process outside of it, and has the container's stdout.
        let script = "echo first; (while [ ! -e /data/go ]; do usleep 10000; done; exec /usr/bin/seq 100); echo done; \
                      (/usr/bin/seq 100 | sed 's/^/piped: /'); echo last; read hold";
        let container = bed.container("app").host_programs().shell(script).start()?;
        container.wait_stdout("first\n")?;
        let below = format!("{}/below", container.cgroup());
        let directory = cgroup::unified()?.join(below.trim_start_matches('/'));
        fs::create_dir(&directory)?;
        let child = wait_until("the child", DEADLINE, || {
            Ok(cgroup::processes(container.cgroup())?.into_iter().find(|pid| *pid != container.pid()))
        })?;
        fs::write(directory.join("cgroup.procs"), child.to_string())?;
        fs::write(container.rootfs().join("data/go"), "")?;
        container.wait_stdout("last\n")?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout());
        expected.verify(agent, &[&container])
    });
}

#[test]
fn a_terminal_with_the_number_of_one_that_is_gone_is_a_new_stream() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let mut expected = Expected::new();
        let mut ended = Vec::new();
        for number in 0..5 {
            let script = format!("for i in $(seq 20); do echo container {number} line $i; done");
            let mut container = bed.container(&format!("app-{number}")).terminal().shell(&script).start()?;
            container.wait()?;
            expected.stdout(&container, String::from_utf8(container.stdout())?.replace("\r\n", "\n"));
            // Its cgroup stays, and its file system of terminals does not: the next one has its device number.
            ended.push(container);
        }
        expected.verify(agent, &ended.iter().collect::<Vec<_>>())
    });
}

#[test]
fn children_of_the_first_process_write_the_same_log() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let script = "for i in 1 2 3; do (for j in $(seq 300); do echo $i-$j; done; sh -c 'echo inner') & done; wait; \
                      echo done; read hold";
        let container = bed.container("app").shell(script).start()?;
        container.wait_stdout("done\n")?;
        let ledger = agent.wait_ledger(container.id(), container.stdout().len() as u64)?;
        ensure!(ledger.dropped.is_empty(), "{ledger:?}");
        // Two writes at once may be seen in another order than the pipe took them, so lines are compared as a set.
        let stdout = container.stdout();
        let mut written: Vec<_> = stdout.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let mut got = agent.records()?.iter().map(Record::bytes).collect::<Result<Vec<_>>>()?;
        written.sort_unstable();
        got.sort_unstable();
        ensure!(written.len() == 3 * 301 + 1 && got == written, "{} lines came", got.len());
        agent.stop()
    });
}

#[test]
fn containers_that_ran_before_the_agent_are_found() {
    end_to_end(|bed| {
        let script = "echo before; read go; echo after; echo error >&2; echo logged > /var/log/late.log; \
                      echo done; exec sleep 1000";
        let mut pipe = bed.container("pipe").shell(script).start()?;
        let terminal = "echo before; while [ ! -e /data/go ]; do sleep 0.05; done; echo after; sleep 1000";
        let terminal = bed.container("terminal").terminal().shell(terminal).start()?;
        pipe.wait_stdout("before\n")?;
        terminal.wait_stdout("before\r\n")?;
        let agent = bed.agent()?;
        pipe.release();
        fs::write(terminal.rootfs().join("data/go"), "")?;
        pipe.wait_stdout("done\n")?;
        terminal.wait_stdout("after\r\n")?;
        let mut expected = Expected::new();
        expected.stdout(&pipe, "after\ndone\n").stderr(&pipe, "error\n").file(&pipe, "/var/log/late.log", "logged\n");
        expected.stdout(&terminal, "after\n");
        expected.verify(agent, &[&pipe, &terminal])
    });
}

#[test]
fn a_container_killed_in_the_middle_of_a_line_keeps_the_half() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let mut container = bed.container("app").shell("echo whole; printf 'only a ha'; sleep 1000").start()?;
        container.wait_stdout("only a ha")?;
        container.kill(Signal::KILL)?;
        ensure!(container.wait_for(Duration::from_secs(10))? == Exit::Signal(9));
        let mut expected = Expected::new();
        expected.stdout(&container, "whole\nonly a ha");
        expected.verify(agent, &[])
    });
}

#[test]
fn processes_outside_the_governed_root_are_not_seen() {
    end_to_end(|bed| {
        let other = Testbed::new()?;
        let agent = bed.agent()?;
        let outside = other.container("outside").shell("seq 100; seq 100 > /var/log/a.log; read hold").start()?;
        outside.wait_stdout("100\n")?;
        let inside = bed.container("inside").shell("echo done; read hold").start()?;
        let mut expected = Expected::new();
        expected.stdout(&inside, "done\n");
        expected.verify(agent, &[&inside])
    });
}
