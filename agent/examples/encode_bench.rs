//! Measures the JSON encoder: `cargo run --release -p sidestep --example encode_bench`.
//!
//! Each round encodes the same batch; the median of the rounds is printed, in nanoseconds per line.

use std::{hint::black_box, sync::Arc, time::Instant};

use sidestep::{
    record::{Batch, Class, IoStream, Line, Origin, Resource, Stream},
    sinks::json::Encoder,
};

const LINES: usize = 1000;
const ROUNDS: usize = 501;

fn main() {
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
    let plain = "2026-11-21 05:00:00,123 INFO  [worker-7] com.example.shop.Cart - added item 4711 to cart 42; ";
    let quoted =
        "{\"level\":\"info\",\"ts\":\"2026-11-21T05:00:00Z\",\"msg\":\"added item\",\"cart\":42,\"item\":4711} ";
    let foreign = "Artikel für 12 € hinzugefügt – größer als üblich, Prüfung läuft weiter; ";
    let mut invalid = plain.repeat(6).into_bytes();
    invalid[250] = 0xff;
    for (name, body) in [
        ("plain text, 200 B", cut(plain.repeat(6).into_bytes(), 200)),
        ("plain text, 500 B", cut(plain.repeat(6).into_bytes(), 500)),
        ("JSON in the body, 500 B", cut(quoted.repeat(6).into_bytes(), 500)),
        ("UTF-8 text, about 500 B", foreign.repeat(7).into_bytes()),
        ("invalid UTF-8, 500 B", cut(invalid, 500)),
    ] {
        measure(name, &stream, &body);
    }
}

fn cut(mut body: Vec<u8>, length: usize) -> Vec<u8> {
    body.truncate(length);
    body
}

fn measure(name: &str, stream: &Arc<Stream>, body: &[u8]) {
    let mut data = Vec::new();
    let mut lines = Vec::new();
    for index in 0..LINES {
        let start = data.len();
        data.extend_from_slice(body);
        let time = 1_795_237_200_000_000_000 + index as u64 * 1_700;
        lines.push(Line {
            time_unix_nano: time,
            observed_time_unix_nano: time + 900,
            body: start..data.len(),
            position: start as u64,
            span: body.len() as u64 + 1,
            ..Line::default()
        });
        data.push(b'\n');
    }
    let batch = Batch { stream: Arc::clone(stream), data: data.into(), lines };
    let mut encoder = Encoder::default();
    let mut out = Vec::new();
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            out.clear();
            let start = Instant::now();
            encoder.append_batch(black_box(&batch), &mut out);
            black_box(&out);
            start.elapsed().as_nanos() as f64 / LINES as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!("{name:<26} {:>7.1} ns/line, {:>5} B of JSON", rounds[ROUNDS / 2], out.len() / LINES);
}
