//! Loads the kernel programs below one cgroup and prints the ring's raw events.
fn main() {
    let root = std::env::args().nth(1).unwrap_or_else(|| "/none".into());
    let attach = match std::env::args().nth(2).as_deref() {
        Some("fexit") => Some(sidestep::load::AttachPoint::Fexit),
        Some("tracepoint") => Some(sidestep::load::AttachPoint::Tracepoint),
        Some("raw") => Some(sidestep::load::AttachPoint::RawTracepoint),
        _ => None,
    };
    let kernel = sidestep::load::Kernel::load(sidestep::load::Settings {
        roots: vec![sidestep::load::RootPattern::new(&root)],
        cgroup_mount: None,
        ring_size: 16 << 20,
        container_share: 4 << 20,
        attach,
    });
    match kernel {
        Ok(mut kernel) => {
            for probe in &kernel.probes {
                println!("{probe:?}");
            }
            let (mut ring, _) = kernel.maps.take_ring().unwrap();
            let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
            while std::time::Instant::now() < until {
                while let Some(item) = ring.next() {
                    let kind = u16::from_ne_bytes([item[0], item[1]]);
                    let len = u32::from_ne_bytes([item[4], item[5], item[6], item[7]]) as usize;
                    println!("kind {kind} len {len} {:?}", String::from_utf8_lossy(&item[64..64 + len.min(100)]));
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        Err(error) => println!("ERROR {error}"),
    }
}
