//! Measures the file sink end to end: `cargo run --release -p sidestep --example sink_bench -- [DIRECTORY]`.
//!
//! One thread delivers batches of 500-byte lines through the queue; printed are the time and the CPU time of the
//! process for each line until all of them are settled, and the same again with the compression of what was written.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use sidestep::{
    record::{Batch, Class, IoStream, Line, Origin, Resource, Stream},
    sinks::{SinkSettings, Sinks, buffer::Home},
};

const LINES: usize = 200;
const BATCHES: usize = 5_000;

fn main() {
    let root = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let path = root.join(format!("sidestep-sink-bench-{}", std::process::id()));
    for (name, compression, level) in [
        ("no compression", "none", 3),
        ("zstd, level 1", "zstd", 1),
        ("zstd, level 3", "zstd", 3),
        ("gzip, level 3", "gzip", 3),
    ] {
        measure(name, &path, compression, level);
        if let Err(error) = std::fs::remove_dir_all(&path) {
            eprintln!("{} stays: {error}", path.display());
        }
    }
}

fn measure(name: &str, path: &std::path::Path, compression: &str, level: u8) {
    let settings: SinkSettings = serde_json::from_value(serde_json::json!({
        "type": "file", "path": path, "compression": compression, "compression_level": level, "max_file_bytes": "64MiB",
    }))
    .expect("valid settings");
    let (sender, settled) = mpsc::channel();
    let sinks = Sinks::start(&[settings], Home::none(sender)).expect("the sink starts");
    let batches: Vec<_> = (0..50).map(batch).collect();
    let (start, start_cpu) = (Instant::now(), cpu_time());
    for index in 0..BATCHES {
        sinks.deliver(&batches[index % batches.len()], None);
    }
    for _ in 0..BATCHES {
        settled.recv().expect("settled");
    }
    let (elapsed, cpu) = (start.elapsed(), cpu_time() - start_cpu);
    // All files but the last one are compressed.
    let deadline = Instant::now() + Duration::from_secs(60);
    while compression != "none" && plain_files(path) > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let cpu_in_all = cpu_time() - start_cpu;
    let lines = (BATCHES * LINES) as f64;
    println!(
        "{name:<16} {:>7.1} ns/line, CPU {:>7.1} ns/line, with compression {:>7.1} ns/line",
        elapsed.as_nanos() as f64 / lines,
        cpu.as_nanos() as f64 / lines,
        cpu_in_all.as_nanos() as f64 / lines,
    );
    drop(sinks.close(Duration::from_secs(5)));
}

fn plain_files(path: &std::path::Path) -> usize {
    let directory = path.join("pod/shop/cart-7d9c5b6f4d-x2x9p/cart");
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries.flatten().filter(|entry| entry.path().extension().is_some_and(|extension| extension == "ndjson")).count()
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

fn batch(seed: usize) -> Arc<Batch> {
    let text = |value: &str| Some(Arc::<str>::from(value));
    let resource = Resource {
        host_name: text("node-1.example.com"),
        container_runtime: text("containerd"),
        container_id: text(&"0123456789abcdef".repeat(4)),
        container_name: text("cart"),
        image: text("registry.example.com/shop/cart:1.24.7"),
        namespace: text("shop"),
        pod: text("cart-7d9c5b6f4d-x2x9p"),
        pod_uid: text("8a4f1a5e-6a7b-4f5f-9f0e-2f8d3a4b5c6d"),
        ..Resource::default()
    };
    let stream = Arc::new(Stream {
        key: "0123456789abcdef/stdout".into(),
        class: Class::Pod,
        origin: Origin::Stdio(IoStream::Stdout),
        resource: Arc::new(resource),
        account: Arc::default(),
        source: None,
    });
    let mut data = Vec::new();
    let mut lines = Vec::new();
    for index in 0..LINES {
        let start = data.len();
        let mut number = (seed * LINES + index) as u64;
        while data.len() - start < 500 {
            // Numbers that do not repeat, as identifiers in real logs, so that the compression has work to do.
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let text = format!(
                "INFO [worker-{}] com.example.shop.Cart - item {} added to cart {:x}; ",
                number >> 61,
                number >> 44,
                number >> 16
            );
            data.extend_from_slice(text.as_bytes());
        }
        data.truncate(start + 500);
        data.push(b'\n');
        let time = 1_795_237_200_000_000_000 + (seed * LINES + index) as u64 * 1_731;
        lines.push(Line {
            time_unix_nano: time,
            observed_time_unix_nano: time + 912,
            body: start..data.len() - 1,
            position: start as u64,
            span: 501,
            ..Line::default()
        });
    }
    Arc::new(Batch { stream, data: data.into(), lines })
}
