//! Every way to write, every size, every byte.

use anyhow::ensure;
use serde_json::json;
use sidestep_tests::{
    Agent, DEADLINE, Expected, end_to_end,
    python::{run, start, wait_done},
    wait_until,
};

/// Runs a program and compares what the agent delivered of its stdout with what the runtime received.
fn stdout_is_exact(program: &str, expected_stdout: &[u8]) {
    end_to_end(|bed| {
        let config = bed.config().with("/capture/ring_size", json!("64MiB"));
        let agent = Agent::start(bed, &config)?;
        let container = run(bed, program)?;
        wait_until("the runtime's end", DEADLINE, || {
            Ok((container.stdout().len() >= expected_stdout.len()).then_some(()))
        })?;
        ensure!(container.stdout() == expected_stdout, "the writer didn't write what the test expects");
        let mut expected = Expected::new();
        expected.stdout(&container, expected_stdout).stderr(&container, "done\n");
        expected.verify(agent, &[&container])
    });
}

#[test]
fn one_byte_per_write() {
    let text = "a line written byte by byte\n".repeat(200);
    let program = format!("for byte in {text:?}.encode(): os.write(1, bytes([byte]))");
    stdout_is_exact(&program, text.as_bytes());
}

#[test]
fn eight_mebibytes_in_one_write() {
    let text: String = (0..8192).map(|number| format!("{number:01023}\n")).collect();
    assert_eq!(text.len(), 8 << 20);
    let program = "text = b''.join(b'%01023d\\n' % number for number in range(8192))\n\
                   assert os.write(1, text) == 8 << 20";
    stdout_is_exact(program, text.as_bytes());
}

#[test]
fn four_mebibytes_in_one_write_with_the_usual_ring() {
    let text: String = (0..4096).map(|number| format!("{number:01023}\n")).collect();
    let program = "assert os.write(1, b''.join(b'%01023d\\n' % number for number in range(4096))) == 4 << 20";
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let container = run(bed, program)?;
        let mut expected = Expected::new();
        expected.stdout(&container, &text).stderr(&container, "done\n");
        expected.verify(agent, &[&container])
    });
}

#[test]
fn writev_with_1024_vectors() {
    let text: String =
        (0..1024).map(|number| format!("vector {number}{}", if number % 3 == 0 { "\n" } else { " " })).collect();
    let program = "parts = [b'vector %d' % n + (b' ' if n % 3 else b'\\n') for n in range(1024)]\n\
                   assert os.writev(1, parts) == sum(map(len, parts))";
    stdout_is_exact(program, text.as_bytes());
}

#[test]
fn writev_with_empty_and_large_vectors() {
    let text = format!("head\n{}\ntail\n", "x".repeat(300_000));
    let program = "parts = [b'', b'head\\n', b'', b'x' * 300000, b'', b'\\ntail', b'\\n', b'']\n\
                   total = sum(map(len, parts))\n\
                   assert os.writev(1, parts) == total";
    stdout_is_exact(program, text.as_bytes());
}

#[test]
fn lines_split_over_writes_and_many_in_one() {
    let text = "one\ntwo\nthree, in parts\n\n\nlast\n";
    let program =
        "for part in ['one\\ntw', 'o', '\\nthree', ', in ', 'parts\\n\\n\\nlast', '\\n']: os.write(1, part.encode())";
    stdout_is_exact(program, text.as_bytes());
}

#[test]
fn bytes_are_kept_as_they_are() {
    let mut bytes = Vec::new();
    for byte in 0..=255_u8 {
        bytes.extend([b'<', byte, b'>', b'\n']);
    }
    bytes.extend(
        b"\x1b[31mred\x1b[0m\r\nnul \0 in the middle\nhalf a character \xe2\x82\n\"quoted\\\"\n\xf0\x9f\x98\x80\n",
    );
    let literal: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    stdout_is_exact(&format!("os.write(1, b'{literal}')"), &bytes);
}

#[test]
fn failed_and_short_writes_count_what_was_written() {
    // Writes to a bad address fail as a whole; a non-blocking pipe that is full takes a part.
    let program = "import ctypes, fcntl, time\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        assert libc.write(1, ctypes.c_void_p(8), 100) == -1\n\
        flags = fcntl.fcntl(1, fcntl.F_GETFL)\n\
        fcntl.fcntl(1, fcntl.F_SETFL, flags | os.O_NONBLOCK)\n\
        text = b'0123456789abcde\\n' * 65536\n\
        at = 0\n\
        while at < len(text):\n\
        \x20   try: at += os.write(1, text[at:])\n\
        \x20   except BlockingIOError: time.sleep(0.001)\n\
        fcntl.fcntl(1, fcntl.F_SETFL, flags)";
    stdout_is_exact(program, &b"0123456789abcde\n".repeat(65536));
}

#[test]
fn a_last_line_without_newline_comes_at_the_end() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let mut container = bed.container("app").shell("echo first; printf last").start()?;
        container.wait()?;
        let mut expected = Expected::new();
        expected.stdout(&container, "first\nlast");
        expected.wait_delivered(&agent)?;
        let last = agent.records()?.into_iter().find(|record| record.text("/body") == "last");
        ensure!(last.is_some_and(|record| record.has_flag("unterminated")));
        expected.verify(agent, &[])
    });
}

#[test]
fn positional_writes_into_a_log_file() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let container = run(
            bed,
            "fd = os.open('/var/log/p.log', os.O_CREAT | os.O_RDWR, 0o644)\n\
             at = 0\n\
             for n in range(300):\n\
             \x20   line = b'positional %d\\n' % n\n\
             \x20   if n % 2: at += os.pwrite(fd, line, at)\n\
             \x20   else: at += os.pwritev(fd, [line[:4], line[4:]], at, 0)\n\
             \x20   if n % 10 == 0: os.lseek(fd, 7, os.SEEK_SET)",
        )?;
        let text: String = (0..300).map(|number| format!("positional {number}\n")).collect();
        ensure!(std::fs::read(container.rootfs().join("var/log/p.log"))? == text.as_bytes());
        let mut expected = Expected::new();
        expected.file(&container, "/var/log/p.log", text).stderr(&container, "done\n");
        expected.verify(agent, &[&container])
    });
}

#[test]
fn pwritev2_appends() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        // RWF_APPEND with offset -1, which Python doesn't name.
        let container = run(
            bed,
            "import ctypes\n\
             libc = ctypes.CDLL(None, use_errno=True)\n\
             class Vector(ctypes.Structure): _fields_ = [('base', ctypes.c_char_p), ('length', ctypes.c_size_t)]\n\
             fd = os.open('/var/log/p2.log', os.O_CREAT | os.O_WRONLY, 0o644)\n\
             for n in range(200):\n\
             \x20   line = b'appended %d\\n' % n\n\
             \x20   vectors = (Vector * 2)(Vector(line[:3], 3), Vector(line[3:], len(line) - 3))\n\
             \x20   assert libc.pwritev2(fd, vectors, 2, ctypes.c_long(-1), 0x10) == len(line)",
        )?;
        let text: String = (0..200).map(|number| format!("appended {number}\n")).collect();
        ensure!(std::fs::read(container.rootfs().join("var/log/p2.log"))? == text.as_bytes());
        let mut expected = Expected::new();
        expected.file(&container, "/var/log/p2.log", text).stderr(&container, "done\n");
        expected.verify(agent, &[&container])
    });
}

/// `io_uring_setup(2)` and one `IORING_OP_WRITE` or `IORING_OP_OPENAT` after the other, with nothing but ctypes.
const URING: &str = "
import ctypes, mmap, struct
libc = ctypes.CDLL(None, use_errno=True)
def uring():
    params = ctypes.create_string_buffer(120)
    ring = libc.syscall(425, 8, params)
    if ring < 0: raise OSError(ctypes.get_errno(), 'io_uring_setup')
    entries, completions = struct.unpack_from('2I', params, 0)
    sq, cq = struct.unpack_from('10I', params, 40), struct.unpack_from('10I', params, 80)
    queue = mmap.mmap(ring, max(sq[6] + entries * 4, cq[5] + completions * 16), offset=0)
    slots = mmap.mmap(ring, entries * 64, offset=0x10000000)
    def submit(opcode, fd, data, length, offset, flags=0):
        buffer = ctypes.create_string_buffer(data)
        tail = struct.unpack_from('I', queue, sq[1])[0]
        index = tail & struct.unpack_from('I', queue, sq[2])[0]
        address = ctypes.addressof(buffer)
        slot = struct.pack('=BBHiQQII', opcode, 0, 0, fd, offset & (2**64 - 1), address, length, flags)
        slots[index * 64:index * 64 + 64] = slot.ljust(64, b'\\0')
        struct.pack_into('I', queue, sq[6] + index * 4, index)
        struct.pack_into('I', queue, sq[1], tail + 1)
        if libc.syscall(426, ring, 1, 1, 1, None, 0) != 1: raise OSError(ctypes.get_errno(), 'io_uring_enter')
        struct.pack_into('I', queue, cq[0], tail + 1)
        result = struct.unpack_from('i', queue, cq[5] + (tail & struct.unpack_from('I', queue, cq[2])[0]) * 16 + 8)[0]
        if result < 0: raise OSError(-result, 'io_uring')
        return result
    return submit
submit = uring()
def write(fd, data, offset): submit(23, fd, data, len(data), offset)
def open_old(path): return submit(18, -100, path, 0, 0, os.O_WRONLY)
";

#[test]
fn io_uring_into_stdout_is_counted_with_its_size() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let program = "os.write(1, b'seen before\\n')\nwrite(1, b'hidden\\n' * 100, -1)\nos.write(1, b'seen after\\n')";
        let container = run(bed, &format!("{URING}{program}"))?;
        let produced = (b"seen before\n".len() + 700 + b"seen after\n".len() + b"done\n".len()) as u64;
        let ledger = agent.wait_ledger(container.id(), produced)?;
        ensure!(ledger.dropped_for("capture", "unreadable") == 700 && ledger.dropped_total() == 700, "{ledger:?}");
        agent.stop()
    });
}

#[test]
fn io_uring_into_a_log_file_is_read_from_it() {
    let program = "
fd = os.open('/var/log/ring.log', os.O_CREAT | os.O_WRONLY, 0o644)
offset = 0
for n in range(100):
    line = b'by the ring %d\\n' % n
    write(fd, line, offset)
    offset += len(line)
";
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let container = run(bed, &format!("{URING}{program}"))?;
        let mut expected = Expected::new();
        expected.stderr(&container, "done\n");
        let text: String = (0..100).map(|n| format!("by the ring {n}\n")).collect();
        expected.file(&container, "/var/log/ring.log", &text);
        expected.verify(agent, &[&container])
    });
}

#[test]
fn what_a_file_held_before_the_agent_is_not_read_when_the_ring_opens_it() {
    let program = "
with open('/var/log/old.log', 'w') as old: old.write('of yesterday\\n' * 10)
os.write(2, b'waits\\n')
sys.stdin.readline()
fd = open_old(b'/var/log/old.log')
write(fd, b'of today\\n', 130)
";
    end_to_end(|bed| {
        let mut container = start(bed, &format!("{URING}{program}"))?;
        container.wait_stderr("waits\n")?;
        let agent = bed.agent()?;
        container.release();
        wait_done(&container)?;
        let mut expected = Expected::new();
        expected.stderr(&container, "done\n").file(&container, "/var/log/old.log", "of today\n");
        expected.verify(agent, &[&container])
    });
}

#[test]
fn splice_into_stdout_is_counted_with_its_size() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let container = run(
            bed,
            "os.write(1, b'seen before\\n')\n\
             source, sink = os.pipe()\n\
             os.write(sink, b'hidden\\n' * 1000)\n\
             left = 7000\n\
             while left: left -= os.splice(source, 1, left)\n\
             os.write(1, b'seen after\\n')",
        )?;
        let produced = (b"seen before\n".len() + 7000 + b"seen after\n".len() + b"done\n".len()) as u64;
        let ledger = agent.wait_ledger(container.id(), produced)?;
        ensure!(ledger.dropped_for("capture", "unreadable") == 7000 && ledger.dropped_total() == 7000, "{ledger:?}");
        let records = agent.records()?;
        let lines: Vec<_> =
            records.iter().filter(|record| record.source() == "stdout").map(|record| record.text("/body")).collect();
        ensure!(lines == ["seen before", "seen after"], "{lines:?}");
        let after = records.iter().find(|record| record.text("/body") == "seen after");
        ensure!(after.is_some_and(|record| record.has_flag("after_gap") && record.position() == 7012));
        agent.stop()
    });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn calls_of_32_bits_are_not_taken_for_others() {
    // By `int 0x80`, number 20 is `getpid`, and else it is `writev`, whose arguments lie in the registers here.
    let program = "
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
# push rbx; mov eax, 20; mov edi, 1; int 0x80; pop rbx; ret
code.write(bytes.fromhex('53b814000000bf01000000cd805bc3'))
text = ctypes.create_string_buffer(b'phantom\\n' * 1000)
vector = (ctypes.c_uint64 * 2)(ctypes.addressof(text), 8000)
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
getpid = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long)(address)
os.write(1, b'before\\n')
assert getpid(0, ctypes.addressof(vector), 1) == os.getpid()
os.write(1, b'after\\n')
";
    end_to_end(|bed| {
        let config = bed.config().with("/capture/attach", json!("raw_tracepoint"));
        let agent = Agent::start(bed, &config)?;
        let container = run(bed, program)?;
        let mut expected = Expected::new();
        expected.stdout(&container, "before\nafter\n").stderr(&container, "done\n");
        expected.verify(agent, &[&container])
    });
}
