//! SIGKILL in the middle of writing: no torn line stays, and everything that was settled is there.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use super::{super::appender::cut_back, *};
use crate::sinks::testing::pod_stream;

const DIRECTORY: &str = "SIDESTEP_TEST_CRASH_DIRECTORY";

/// Not a test of its own: what the test below starts and kills. Writes for ever, and says which positions are settled.
#[test]
#[ignore = "is run and killed by `a_kill_tears_no_line_and_loses_nothing_settled`"]
fn child() {
    let Some(path) = std::env::var_os(DIRECTORY) else { return };
    let settings = Settings {
        path: path.into(),
        max_file_bytes: bytesize::ByteSize::mib(2),
        sync: Sync::Interval(Duration::from_millis(5)),
        ..Settings::default()
    };
    let mut sink = FileSink::new(settings).expect("starts");
    let (sender, settled) = mpsc::channel();
    let stream = pod_stream("shop", "cart", "app");
    let mut out = std::io::stdout();
    let mut position: u64 =
        std::env::var("SIDESTEP_TEST_CRASH_START").map_or(0, |start| start.parse().expect("a number"));
    loop {
        let mut queue = VecDeque::new();
        for size in 0..20_usize {
            let body = vec![b'a' + (size as u8); 1 + size * size * 40];
            let batch = Arc::new(batch(&stream, position, &[&body, &body]));
            position = batch.end();
            let receipt = Receipt::for_sinks(&batch, 1, &sender, None).remove(0);
            queue.push_back(Delivery { batch, receipt });
        }
        sink.write(&mut queue).expect("written");
        sink.tick().expect("a tick");
        for settled in all_settled(&settled) {
            writeln!(out, "settled {} {}", settled.start, settled.end).expect("told");
        }
    }
}

#[test]
fn a_kill_tears_no_line_and_loses_nothing_settled() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tree");
    let mut settled = Vec::new();
    let mut start = 0_u64;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "sinks::file::tests::crash::child", "--ignored", "--nocapture"])
            .env(DIRECTORY, &path)
            .env("SIDESTEP_TEST_CRASH_START", start.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut told = 0;
        for line in lines {
            let line = line.expect("text");
            let Some(range) = line.strip_prefix("settled ") else { continue };
            // The kill may cut the last line, but lines that come after it are not looked at.
            let numbers: Vec<u64> = range.split(' ').filter_map(|number| number.parse().ok()).collect();
            if told < 200 + round * 37 {
                settled.push((numbers[0], numbers[1]));
            } else if told == 200 + round * 37 {
                child.kill().expect("killed");
            }
            told += 1;
        }
        child.wait().expect("waited for");
        assert!(told > 200, "round {round} ended early");
        start += 1_000_000_000;
    }

    // The next agent writes on, which cuts back what is torn, and then compresses.
    let mut fixture = Fixture::at(directory, path, |settings| settings.retention = Duration::from_secs(1 << 40));
    fixture.clock.store(u64::MAX / 2, Ordering::Relaxed);
    fixture.restart();
    let files = fixture.tick_until("all compressed", |files| files.iter().all(|file| file.ends_with(".zst")));
    let mut ranges = BTreeSet::new();
    for file in &files {
        let text = read(&fixture.settings.path.join(file));
        assert!(text.ends_with('\n'), "{file}");
        for line in text.lines() {
            let record: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{file}: {error}"));
            let position = record["position"].as_u64().expect("a position");
            let body = record["body"].as_str().expect("a body");
            assert_eq!(record["length"].as_u64(), Some(body.len() as u64 + 1));
            assert!(body.bytes().all(|byte| byte == body.as_bytes()[0]));
            ranges.insert((position, position + body.len() as u64 + 1));
        }
    }
    for (first, end) in settled {
        let mut position = first;
        while position < end {
            let next = ranges.range((position, 0)..(position + 1, 0)).next();
            position = next.unwrap_or_else(|| panic!("position {position} was settled and is not there")).1;
        }
    }
}

#[test]
fn a_torn_line_is_cut_back_when_the_file_is_opened_again() {
    let mut fixture = Fixture::new(|_| {});
    let stream = pod_stream("shop", "cart", "app");
    fixture.write(&stream, &[b"one"]).expect("written");
    let file = "pod/shop/cart/app/stdout-20261121T05-000.ndjson";
    fixture.sink().close(LONG).expect("closes");
    fixture.sink = None;
    let mut handle = fs::OpenOptions::new().append(true).open(fixture.settings.path.join(file)).expect("opens");
    handle.write_all(b"{\"timestamp\":\"2026-11-21T05").expect("written");
    fixture.start().expect("starts");
    fixture.write(&stream, &[b"two"]).expect("written");
    assert_eq!(fixture.bodies(file), ["one", "two"]);
}

#[test]
fn cutting_back_finds_the_last_newline_however_far_it_is() {
    for (content, kept) in [
        (Vec::new(), 0),
        (b"torn".to_vec(), 0),
        (b"a\n".to_vec(), 2),
        (b"a\nb".to_vec(), 2),
        ([b"a\n".to_vec(), vec![b'x'; 200_000]].concat(), 2),
        (vec![b'x'; 200_000], 0),
        ([vec![b'x'; 65_536], b"\n".to_vec()].concat(), 65_537),
        ([vec![b'x'; 10], b"\n".to_vec(), vec![b'x'; 65_536]].concat(), 11),
    ] {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&content).expect("written");
        let descriptor = file.into();
        assert_eq!(cut_back(&descriptor).expect("cut"), kept);
        assert_eq!(fs::File::from(descriptor).metadata().expect("there").len(), kept);
    }
}
