//! Log files, and all that is done to them while they grow.

use std::fs;

use anyhow::{Result, ensure};
use sidestep_tests::{Agent, Container, Expected, Testbed, end_to_end, python};

/// The lines `<word> 0` to `<word> <count - 1>`.
fn numbered(word: &str, count: usize) -> String {
    (0..count).map(|number| format!("{word} {number}\n")).collect()
}

/// Runs a writer and expects exactly `files`, each by its path, and no loss.
fn files_are_exact(program: &str, files: &[(&str, &str)]) {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let container = python::run(bed, program)?;
        let mut expected = Expected::new();
        expected.stderr(&container, "done\n");
        for (path, text) in files {
            expected.file(&container, path, text);
        }
        expected.verify(agent, &[&container])
    });
}

#[test]
fn path_rules_choose_the_files() {
    let program = "
os.makedirs('/var/log/deep/er'); os.makedirs('/opt/app')
for path in ['/var/log/messages', '/var/log/deep/er/x', '/opt/app/app.log', '/opt/app/app.txt', '/data/.log.swp', '/tmp/t.log']:
    with open(path, 'w') as file:
        for n in range(50): print(path, n, file=file, flush=True)
";
    let text = |path: &str| numbered(path, 50);
    let paths = ["/var/log/messages", "/var/log/deep/er/x", "/opt/app/app.log", "/tmp/t.log"];
    let texts = paths.map(text);
    let files: Vec<_> = paths.iter().zip(&texts).map(|(path, text)| (*path, text.as_str())).collect();
    files_are_exact(program, &files);
}

#[test]
fn relative_paths_and_links_are_resolved() {
    let program = "
os.makedirs('/var/log/real'); os.symlink('/var/log/real', '/var/log/current')
os.chdir('/var/log/current')
with open('relative.out', 'w') as file: file.write('by a relative path\\n')
with open('/var/log/current/link.out', 'w') as file: file.write('through a link\\n')
";
    files_are_exact(
        program,
        &[("/var/log/real/relative.out", "by a relative path\n"), ("/var/log/real/link.out", "through a link\n")],
    );
}

#[test]
fn rotation_by_renaming() {
    let program = "
import logging, logging.handlers
handler = logging.handlers.RotatingFileHandler('/var/log/app.log', maxBytes=4000, backupCount=100)
logging.basicConfig(level=logging.INFO, handlers=[handler], format='%(message)s')
for n in range(2000): logging.info('rotated %d', n)
";
    files_are_exact(program, &[("/var/log/app.log", &numbered("rotated", 2000))]);
}

#[test]
fn writing_goes_on_into_the_renamed_file() {
    let program = "
file = open('/var/log/app.log', 'w', buffering=1)
for n in range(100): print('renamed', n, file=file)
os.rename('/var/log/app.log', '/var/log/app.log.1')
for n in range(100, 200): print('renamed', n, file=file)
";
    files_are_exact(program, &[("/var/log/app.log", &numbered("renamed", 200))]);
}

#[test]
fn a_deleted_file_that_is_still_open() {
    let program = "
file = open('/var/log/gone.log', 'w', buffering=1)
for n in range(200):
    if n == 100: os.unlink('/var/log/gone.log')
    print('deleted', n, file=file)
";
    files_are_exact(program, &[("/var/log/gone.log", &numbered("deleted", 200))]);
}

#[test]
fn a_file_that_lives_for_a_moment() {
    let program = "
for n in range(300):
    with open('/var/log/%d.log' % (n % 3), 'w') as file: file.write('moment %d\\n' % n)
    os.unlink('/var/log/%d.log' % (n % 3))
";
    // One inode number goes through three names within a millisecond.
    let text = |name: usize| (name..300).step_by(3).map(|n| format!("moment {n}\n")).collect::<String>();
    let texts = [0, 1, 2].map(text);
    files_are_exact(
        program,
        &[("/var/log/0.log", &texts[0]), ("/var/log/1.log", &texts[1]), ("/var/log/2.log", &texts[2])],
    );
}

#[test]
fn truncation_starts_the_file_over() {
    let program = "
fd = os.open('/var/log/app.log', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
for n in range(300):
    if n in (100, 200): os.ftruncate(fd, 0)
    os.write(fd, b'truncated %d\\n' % n)
";
    files_are_exact(program, &[("/var/log/app.log", &numbered("truncated", 300))]);
}

#[test]
fn a_file_opened_anew_with_truncation() {
    let program = "
for start in range(0, 300, 100):
    with open('/var/log/app.log', 'w', buffering=1) as file:
        for n in range(start, start + 100): print('anew', n, file=file)
";
    files_are_exact(program, &[("/var/log/app.log", &numbered("anew", 300))]);
}

#[test]
fn copytruncate_by_the_real_logrotate() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let program = "
fd = os.open('/var/log/app.log', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
import time
for n in range(1500):
    os.write(fd, b'copied %d\\n' % n)
    time.sleep(0.001)
";
        let container = python::start(bed, program)?;
        let log = container.rootfs().join("var/log/app.log");
        let rules = bed.path("logrotate.conf")?;
        // As on a node: logrotate runs outside of the container, on the container's file.
        fs::write(&rules, format!("{} {{ su root root\n copytruncate\n rotate 50\n missingok }}\n", log.display()))?;
        while !container.stderr().ends_with(b"done\n") {
            let mut logrotate = std::process::Command::new("/usr/sbin/logrotate");
            let status =
                logrotate.arg("--force").arg("--state").arg(bed.path("logrotate.state")?).arg(&rules).status()?;
            ensure!(status.success(), "logrotate: {status}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let mut expected = Expected::new();
        expected.file(&container, "/var/log/app.log", numbered("copied", 1500)).stderr(&container, "done\n");
        expected.verify(agent, &[&container])
    });
}

/// Runs a writer whose order only the file knows, and expects the file as it is at the end.
fn the_file_itself_is_expected(program: &str, path: &str, length: usize) {
    end_to_end(|bed: &Testbed| {
        let agent = bed.agent()?;
        let container = python::run(bed, program)?;
        let text = read(&container, path)?;
        ensure!(text.len() == length, "the writer wrote {} bytes", text.len());
        let mut expected = Expected::new();
        expected.file(&container, path, text).stderr(&container, "done\n");
        expected.verify(agent, &[&container])
    });
}

fn read(container: &Container, path: &str) -> Result<Vec<u8>> {
    Ok(fs::read(container.rootfs().join(path.trim_start_matches('/')))?)
}

const THREADS: &str = "
import threading
def write(name):
    for n in range(1000): os.write(fd, b'thread %d line %03d\\n' % (name, n))
threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
";
const THREADS_LENGTH: usize = 8 * 1000 * "thread 0 line 000\n".len();

#[test]
fn threads_share_a_descriptor_without_append() {
    let open = "fd = os.open('/var/log/t.log', os.O_CREAT | os.O_WRONLY, 0o644)";
    the_file_itself_is_expected(&format!("{open}{THREADS}"), "/var/log/t.log", THREADS_LENGTH);
}

#[test]
fn threads_share_a_descriptor_with_append() {
    let open = "fd = os.open('/var/log/t.log', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)";
    the_file_itself_is_expected(&format!("{open}{THREADS}"), "/var/log/t.log", THREADS_LENGTH);
}

#[test]
fn processes_append_to_one_file() {
    let program = "
children = []
for name in range(4):
    pid = os.fork()
    if pid == 0:
        fd = os.open('/var/log/p.log', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        for n in range(1000): os.write(fd, b'process %d line %03d\\n' % (name, n))
        os._exit(0)
    children.append(pid)
for pid in children: os.waitpid(pid, 0)
";
    the_file_itself_is_expected(program, "/var/log/p.log", 4 * 1000 * "process 0 line 000\n".len());
}

/// `program` puts the lines 100 to 199 of `lines` into the file by a call that shows no bytes, between two parts
/// that are written, and once more at the end, where no later write shows the gap.
fn hidden_part_is_repaired(call: &str) {
    let program = format!(
        "
import mmap
lines = [b'repaired %d\\n' % n for n in range(400)]
fd = os.open('/var/log/r.log', os.O_CREAT | os.O_RDWR, 0o644)
def hidden(text):
    source = os.open('/data/source', os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o644)
    os.write(source, text)
    os.lseek(source, 0, os.SEEK_SET)
    at = os.lseek(fd, 0, os.SEEK_CUR)
    left = len(text)
    {call}
    os.lseek(fd, at + len(text), os.SEEK_SET)
for line in lines[:100]: os.write(fd, line)
hidden(b''.join(lines[100:200]))
for line in lines[200:300]: os.write(fd, line)
hidden(b''.join(lines[300:]))
"
    );
    files_are_exact(&program, &[("/var/log/r.log", &numbered("repaired", 400))]);
}

#[test]
fn sendfile_into_a_log_file() {
    hidden_part_is_repaired("while left: left -= os.sendfile(fd, source, None, left)");
}

#[test]
fn copy_file_range_into_a_log_file() {
    hidden_part_is_repaired("while left: left -= os.copy_file_range(source, fd, left)");
}

#[test]
fn splice_into_a_log_file() {
    hidden_part_is_repaired("r, w = os.pipe(); os.write(w, text)\n    while left: left -= os.splice(r, fd, left)");
}

#[test]
fn a_mapped_part_of_a_log_file() {
    hidden_part_is_repaired(
        "os.ftruncate(fd, at + left)\n    with mmap.mmap(fd, at + left) as memory: memory[at:at + left] = text",
    );
}

#[test]
fn hard_links_are_one_file() {
    let program = "
with open('/var/log/a.log', 'w', buffering=1) as file:
    for n in range(50): print('linked', n, file=file)
os.link('/var/log/a.log', '/data/b.log')
with open('/data/b.log', 'a', buffering=1) as file:
    for n in range(50, 100): print('linked', n, file=file)
";
    files_are_exact(program, &[("/var/log/a.log", &numbered("linked", 100))]);
}

#[test]
fn a_thousand_log_files() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let program = "
files = [open('/var/log/many-%d.log' % n, 'w', buffering=1) for n in range(1000)]
for line in range(20):
    for n, file in enumerate(files): print('file', n, 'line', line, file=file)
";
        // The usual limit on descriptors is 1,024; it has three more.
        let container = python::run(bed, program)?;
        let mut expected = Expected::new();
        expected.stderr(&container, "done\n");
        for file in 0..1000 {
            let text: String = (0..20).map(|line| format!("file {file} line {line}\n")).collect();
            expected.file(&container, &format!("/var/log/many-{file}.log"), text);
        }
        expected.verify(agent, &[&container])
    });
}

#[test]
fn a_file_that_grows_as_fast_as_memory_takes_it() {
    // Writes of 1 MiB to the page cache, beside a container that says a little now and then.
    let program = "
fd = os.open('/var/log/fast.log', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
for block in range(128):
    os.write(fd, b''.join(b'%04095d\\n' % (block * 256 + n) for n in range(256)))
";
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let quiet = bed.container("quiet").shell("for n in $(seq 500); do echo $n; done; read hold").start()?;
        let container = python::run(bed, program)?;
        let mut expected = Expected::new();
        expected.stderr(&container, "done\n");
        let text: String = (0..128 * 256).map(|number| format!("{number:04095}\n")).collect();
        expected.file(&container, "/var/log/fast.log", &text);
        let lines: String = (1..=500).map(|number| format!("{number}\n")).collect();
        expected.stdout(&quiet, lines);
        expected.wait_delivered(&agent)?;
        let memory = agent.metrics()?.sum("process_resident_memory_bytes");
        ensure!(memory < 256e6, "the agent has {memory} bytes");
        expected.verify(agent, &[&container, &quiet])
    });
}

#[test]
fn the_last_line_of_a_file_whose_container_ends_at_once() {
    // More than what is captured before the agent knows that it is a log, and no newline at the end.
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let mut expected = Expected::new();
        let mut ended = Vec::new();
        for number in 0..12 {
            let bytes = 300_030 + 50_000 * (number % 3);
            let script = format!("head -c {bytes} /dev/zero | tr '\\0' x | fold -w 99 > /var/log/app.log");
            let mut container = bed.container(&format!("short-{number}")).shell(&script).start()?;
            container.wait()?;
            let text = fs::read(container.rootfs().join("var/log/app.log"))?;
            ensure!(!text.ends_with(b"\n"), "fold has ended the last line");
            expected.file(&container, "/var/log/app.log", text);
            // A runtime keeps its files for a while; on a busy machine the agent opens them when it has ended.
            ended.push(container);
        }
        expected.verify(agent, &[])
    });
}

#[test]
fn more_log_files_than_the_agent_may_open() {
    let program = "
for n in range(4000):
    with open('/var/log/%d.log' % n, 'a') as file: file.write('file %d\\n' % n)
";
    end_to_end(|bed| {
        let agent = Agent::start(bed, &bed.config().with_open_files(2048))?;
        let many = python::run(bed, program)?;
        let newcomer = bed.container("newcomer").shell("echo late > /var/log/late.log; read hold").start()?;
        let mut expected = Expected::new();
        for number in 0..4000 {
            expected.file(&many, &format!("/var/log/{number}.log"), format!("file {number}\n"));
        }
        expected.stderr(&many, "done\n").file(&newcomer, "/var/log/late.log", "late\n");
        expected.wait_delivered(&agent)?;
        let open = agent.metrics()?.sum("process_open_fds");
        ensure!(open < 2048.0, "{open} descriptors");
        ensure!(!agent.log().contains("Too many open files"), "{}", agent.log());
        expected.verify(agent, &[&many, &newcomer])
    });
}
