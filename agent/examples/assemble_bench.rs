//! What cutting into lines costs: nanoseconds of CPU time per line, median and least of some rounds, for the kinds of
//! streams that matter. CPU time, so that what else the machine does counts little.
//!
//! `cargo run --release --example assemble_bench`

use std::{hint::black_box, mem::MaybeUninit, sync::Arc, time::Duration};

use sidestep::{
    assemble::{Assembler, Format, Language, Multiline, Parse, Settings},
    record::{Class, IoStream, Origin, Stream},
};

const LINES: usize = 500_000;
const ROUNDS: usize = 7;

fn main() {
    use Language::{Dotnet, Go, Java, Node, Python, Ruby};
    let stream = Arc::new(Stream {
        key: "bench/stdout".into(),
        class: Class::Pod,
        origin: Origin::Stdio(IoStream::Stdout),
        resource: Arc::default(),
        account: Arc::default(),
        source: None,
    });
    let plain = Settings::default();
    let rules = |rules: &[Language]| Settings {
        multiline: Multiline { rules: rules.to_vec(), ..Multiline::default() },
        ..Settings::default()
    };
    let format = |format| Settings { parse: Parse { format, ..Parse::default() }, ..Settings::default() };
    let text = line("2025-11-21 00:00:00.000 INFO [main] app.Service - ", 200);
    let long = line("2025-11-21 00:00:00.000 INFO [main] app.Service - ", 500);
    let json =
        line(r#"{"level":"info","time":"2025-11-21T00:00:00.123Z","n":12,"path":"/orders","msg":""#, 198) + "\"}";
    let logfmt = line("ts=2025-11-21T00:00:00.123Z level=info n=12 path=/orders msg=", 200);
    let trace = "java.lang.IllegalStateException: order failed\n".to_owned()
        + &format!("\tat {}(Order.java:12)\n", line("app.service.", 60)).repeat(20);

    println!("{:<44} {:>8} {:>8} {:>8}", "stream", "ns/line", "least", "MB/s");
    for (name, settings, body, lines_a_write) in [
        ("200 B, a line a write", &plain, &text, 1),
        ("200 B, 20 lines a write", &plain, &text, 20),
        ("500 B, a line a write", &plain, &long, 1),
        ("200 B, java rules", &rules(&[Java]), &text, 1),
        ("200 B, all rules", &rules(&[Java, Python, Go, Ruby, Node, Dotnet]), &text, 1),
        ("200 B JSON, all rules", &rules(&[Java, Python, Go, Ruby, Node, Dotnet]), &json, 1),
        ("java traces of 21 lines (each counted)", &rules(&[Java]), &trace.trim_end().to_owned(), 1),
        ("200 B JSON, parsed", &format(Format::Auto), &json, 1),
        ("200 B logfmt, parsed", &format(Format::Auto), &logfmt, 1),
        ("200 B text, auto", &format(Format::Auto), &text, 1),
    ] {
        let write = format!("{body}\n").repeat(lines_a_write);
        let lines_of_write = write.matches('\n').count();
        let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| round(settings, &stream, &write, lines_of_write)).collect();
        rounds.sort_by(f64::total_cmp);
        let nanos = rounds[ROUNDS / 2];
        let bytes_a_line = write.len() as f64 / lines_of_write as f64;
        println!("{name:<44} {nanos:>8.1} {:>8.1} {:>8.0}", rounds[0], bytes_a_line / nanos * 1000.0);
    }
}

/// Nanoseconds per line, batches taken out (and dropped, as after their delivery) each 256 KiB.
fn round(settings: &Settings, stream: &Arc<Stream>, write: &str, lines_of_write: usize) -> f64 {
    let compiled = settings.compile().expect("valid settings");
    let mut assembler = Assembler::new(&compiled);
    let (mut position, mut spans) = (0, 0);
    let started = cpu_time();
    let writes = LINES / lines_of_write;
    for _ in 0..writes {
        assembler.push(1, 1, position, black_box(write.as_bytes()));
        position += write.len() as u64;
        if assembler.ready_bytes() > 256 * 1024 {
            spans += assembler.take_batch(stream).map_or(0, |batch| black_box(batch).span());
        }
    }
    assembler.finish();
    spans += assembler.take_batch(stream).map_or(0, |batch| batch.span());
    let elapsed = cpu_time() - started;
    assert_eq!(spans, position, "each byte is in a span");
    elapsed.as_nanos() as f64 / (writes * lines_of_write) as f64
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: `time` is valid for writes, and a timespec of zeros is a valid one should the call fail.
    let time = unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, time.as_mut_ptr());
        time.assume_init()
    };
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn line(head: &str, length: usize) -> String {
    format!("{head}{}", "x".repeat(length - head.len()))
}
