//! Rotation, compression, retention, quota and the bound on open files, with a clock that the test sets.

use bytesize::ByteSize;

use super::*;
use crate::sinks::testing::pod_stream;

const APP: &str = "pod/shop/cart/app";

#[test]
fn a_file_is_cut_at_the_hour_and_compressed() {
    for (compression, ending) in [(Compression::Zstd, ".zst"), (Compression::Gzip, ".gz"), (Compression::None, "")] {
        let mut fixture = Fixture::new(|settings| settings.compression = compression);
        let stream = pod_stream("shop", "cart", "app");
        fixture.write(&stream, &[b"five"]).expect("written");
        fixture.write(&stream, &[b"still five"]).expect("written");
        fixture.set_hour(1);
        fixture.write(&stream, &[b"six"]).expect("written");
        let wanted =
            [format!("{APP}/stdout-20261121T05-000.ndjson{ending}"), format!("{APP}/stdout-20261121T06-000.ndjson")];
        fixture.tick_until("the file of five o'clock", |files| files == wanted);
        assert_eq!(fixture.bodies(&wanted[0]), ["five", "still five"]);
        assert_eq!(fixture.bodies(&wanted[1]), ["six"]);
        // A stream that says nothing more has its file closed all the same.
        fixture.set_hour(2);
        let last = format!("{APP}/stdout-20261121T06-000.ndjson{ending}");
        fixture.tick_until("the file of six o'clock", |files| files.contains(&last));
        assert_eq!(fixture.delivered(), 3);
    }
}

#[test]
fn a_file_is_cut_by_size_and_a_clock_set_back_spoils_nothing() {
    let mut fixture = Fixture::new(|settings| settings.max_file_bytes = ByteSize::b(700));
    let stream = pod_stream("shop", "cart", "app");
    for number in 0..5 {
        // A record is about 330 bytes, so two fit.
        fixture.write(&stream, &[format!("line {number}").as_bytes()]).expect("written");
    }
    let name = |hour: u32, number: u32| format!("{APP}/stdout-20261121T0{hour}-{number:03}.ndjson");
    let wanted = [name(5, 0) + ".zst", name(5, 1) + ".zst", name(5, 2)];
    fixture.tick_until("two closed files", |files| files == wanted);
    assert_eq!(fixture.bodies(&wanted[0]), ["line 0", "line 1"]);
    assert_eq!(fixture.bodies(&wanted[2]), ["line 4"]);
    // Six o'clock comes, the clock is set back, and six o'clock comes again.
    for (hour, number) in [(1, 5), (0, 6), (1, 7)] {
        fixture.set_hour(hour);
        fixture.write(&stream, &[format!("line {number}").as_bytes()]).expect("written");
    }
    fixture.set_hour(2);
    let files = fixture.tick_until("all compressed", |files| files.iter().all(|file| file.ends_with(".zst")));
    let mut bodies: Vec<String> = files.iter().flat_map(|file| fixture.bodies(file)).collect();
    bodies.sort();
    assert_eq!(bodies, (0..8).map(|number| format!("line {number}")).collect::<Vec<_>>());
    assert_eq!(fixture.delivered(), 8);
}

#[test]
fn a_restart_goes_on_with_the_same_file_and_compresses_what_was_left() {
    let mut fixture = Fixture::new(|_| {});
    let (cart, pay) = (pod_stream("shop", "cart", "app"), pod_stream("shop", "pay", "app"));
    fixture.write(&cart, &[b"one"]).expect("written");
    fixture.write(&pay, &[b"one"]).expect("written");
    fixture.restart();
    fixture.write(&cart, &[b"two"]).expect("written");
    assert_eq!(fixture.bodies(&format!("{APP}/stdout-20261121T05-000.ndjson")), ["one", "two"]);
    // A compression that was under way when the agent was killed.
    fs::write(fixture.settings.path.join(format!("{APP}/stdout-20261121T04-000.ndjson.tmp")), "half").expect("written");
    fixture.sink().close(LONG).expect("closes");
    fixture.sink = None;
    fixture.set_hour(5);
    fixture.start().expect("starts");
    let wanted = [
        format!("{APP}/stdout-20261121T05-000.ndjson.zst"),
        "pod/shop/pay/app/stdout-20261121T05-000.ndjson.zst".to_owned(),
    ];
    fixture.tick_until("both compressed", |files| files == wanted);
    assert_eq!(fixture.bodies(&wanted[0]), ["one", "two"]);
}

#[test]
fn two_sinks_in_one_tree_are_refused() {
    let fixture = Fixture::new(|_| {});
    let error = FileSink::new(fixture.settings.clone()).expect_err("in use");
    assert!(error.to_string().contains("another file sink writes to this directory"), "{error}");
}

#[test]
fn what_is_too_old_goes_and_what_is_not_ours_stays() {
    let mut fixture = Fixture::new(|settings| settings.retention = Duration::from_secs(2 * 3600));
    let stream = pod_stream("shop", "cart", "app");
    fixture.write(&pod_stream("shop", "gone", "app"), &[b"x"]).expect("written");
    let foreign = fixture.settings.path.join(APP).join("notes.txt");
    for hour in 0..5 {
        fixture.set_hour(hour);
        fixture.write(&stream, &[b"x"]).expect("written");
        fs::write(&foreign, "mine").expect("written");
    }
    let name = |hour: u32| format!("{APP}/stdout-20261121T0{hour}-000.ndjson");
    let wanted = [format!("{APP}/notes.txt"), name(7) + ".zst", name(8) + ".zst", name(9)];
    fixture.tick_until("three files", |files| files == wanted);
    // The directory of the Pod that is gone goes with its last file.
    let pod = fixture.settings.path.join("pod/shop/gone");
    let deadline = Instant::now() + LONG;
    while pod.exists() {
        assert!(Instant::now() < deadline, "the empty directory stays");
        std::thread::yield_now();
    }
}

#[test]
fn over_the_quota_the_oldest_go_and_open_files_too_if_need_be() {
    let mut fixture = Fixture::new(|settings| {
        settings.quota = ByteSize::kib(64);
        settings.max_file_bytes = ByteSize::mib(100);
        settings.compression = Compression::None;
    });
    let stream = pod_stream("shop", "cart", "app");
    let body = vec![b'x'; 10_000];
    for hour in 0..4 {
        fixture.set_hour(hour);
        fixture.write(&stream, &[&body, &body, &body]).expect("written");
    }
    let name = |hour: u32| format!("{APP}/stdout-20261121T0{hour}-000.ndjson");
    let wanted = [name(7), name(8)];
    fixture.tick_until("two files", |files| files == wanted);
    // The file that is open outgrows the quota alone.
    fixture.write(&stream, &[&body[..]; 10]).expect("written");
    fixture.sink().last_sweep = None;
    fixture.tick_until("nothing", <[String]>::is_empty);
    fixture.write(&stream, &[b"goes on"]).expect("written");
    assert_eq!(fixture.bodies(&name(8)), ["goes on"]);
}

#[test]
fn the_open_files_are_bounded() {
    let mut fixture = Fixture::new(|settings| settings.max_open_files = 3);
    let streams: Vec<_> = (0..10).map(|number| pod_stream("shop", &format!("pod-{number}"), "app")).collect();
    for round in 0..3 {
        for stream in &streams {
            fixture.write(stream, &[format!("round {round}").as_bytes()]).expect("written");
            assert!(fixture.sink().files.len() <= 3);
        }
    }
    assert_eq!(fixture.delivered(), 30);
    let files = fixture.files();
    assert_eq!(files.len(), 10);
    for file in files {
        assert_eq!(fixture.bodies(&file), ["round 0", "round 1", "round 2"]);
    }
    fixture.set_hour(1);
    fixture.tick_until("those that were not open are compressed too", |files| {
        files.len() == 10 && files.iter().all(|file| file.ends_with(".zst"))
    });
}

#[test]
fn text_is_the_body_alone() {
    let mut fixture = Fixture::new(|settings| settings.format = Format::Text);
    fixture.write(&pod_stream("shop", "cart", "app"), &[b"a \"b\"", b"c"]).expect("written");
    assert_eq!(read(&fixture.settings.path.join(APP).join("stdout-20261121T05-000.log")), "a \"b\"\nc\n");
}

#[test]
fn every_way_to_sync_settles_receipts() {
    for sync in [Sync::Always, Sync::Never, Sync::Interval(Duration::from_millis(1))] {
        let mut fixture = Fixture::new(|settings| settings.sync = sync);
        let stream = pod_stream("shop", "cart", "app");
        for _ in 0..3 {
            fixture.write(&stream, &[b"x"]).expect("written");
        }
        assert_eq!(fixture.delivered(), 3);
        fixture.sink().close(LONG).expect("closes");
    }
}
