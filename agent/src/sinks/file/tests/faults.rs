//! Full disks, read-only disks, and directories that vanish. The disks are small tmpfs mounts of the tests' own.

use std::process::Command;

use super::*;
use crate::sinks::testing::pod_stream;

const FILE: &str = "pod/shop/cart/app/stdout-20261121T05-000.ndjson";

/// A tmpfs of one MiB, unmounted at the end whatever happens.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir_all(&path).expect("made");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&path));
        Self { path }
    }

    fn remount(&self, options: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.path));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, because the sink may still hold the directory.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn run(command: &mut Command) {
    let status = command.status().expect("runs");
    assert!(status.success(), "{command:?}: {status}; these tests need to be root");
}

fn on_disk(change: impl FnOnce(&mut Settings)) -> (Disk, Fixture) {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::mount(directory.path().join("disk"));
    let path = disk.path.join("tree");
    (disk, Fixture::at(directory, path, change))
}

#[test]
fn a_full_disk_keeps_records_queued_and_tears_no_line() {
    let (disk, mut fixture) = on_disk(|settings| settings.quota_percent = 100);
    let stream = pod_stream("shop", "cart", "app");
    let filler = disk.path.join("filler");
    fs::write(&filler, vec![0; 700 * 1024]).expect("written");
    // One write of many batches hits the end of the disk in the middle of one.
    let body = vec![b'x'; 9_000];
    for _ in 0..60 {
        fixture.queue(&stream, &[&body]);
    }
    let error = fixture.retry().expect_err("full");
    assert_eq!(error.source.kind(), std::io::ErrorKind::StorageFull);
    let text = error.to_string();
    assert!(text.contains(FILE) && text.contains("lower the sink's `quota`"), "{text}");
    let delivered = fixture.delivered();
    assert!((1..60).contains(&delivered), "{delivered} delivered");
    assert_eq!(fixture.queue.len(), 60 - delivered);
    assert_eq!(fixture.bodies(FILE).len(), delivered);
    fixture.retry().expect_err("still full");
    assert_eq!(fixture.bodies(FILE).len(), delivered);
    fs::remove_file(filler).expect("removed");
    fixture.retry().expect("written");
    assert_eq!(fixture.delivered(), 60 - delivered);
    assert_eq!(fixture.bodies(FILE).len(), 60);
}

#[test]
fn a_full_disk_is_relieved_by_deleting_the_oldest_files() {
    let (_disk, mut fixture) = on_disk(|settings| {
        settings.compression = Compression::None;
        settings.quota_percent = 50;
    });
    let stream = pod_stream("shop", "cart", "app");
    let body = vec![b'x'; 90_000];
    for hour in 0..40 {
        fixture.set_hour(hour);
        fixture.queue(&stream, &[&body]);
        let deadline = Instant::now() + LONG;
        while fixture.retry().is_err() {
            assert!(Instant::now() < deadline, "the disk stays full");
            fixture.sink().tick().expect("a tick without error");
        }
    }
    assert_eq!(fixture.delivered(), 40);
}

#[test]
fn a_read_only_disk_is_named_and_tried_again() {
    let (disk, mut fixture) = on_disk(|_| {});
    let stream = pod_stream("shop", "cart", "app");
    disk.remount("ro");
    let error = fixture.write(&stream, &[b"x"]).expect_err("read-only");
    assert_eq!(error.source.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(error.to_string().contains("mount its file system writable"), "{error}");
    assert_eq!(fixture.delivered(), 0);
    disk.remount("rw");
    fixture.retry().expect("written");
    assert_eq!(fixture.bodies(FILE), ["x"]);
    assert_eq!(fixture.delivered(), 1);
}

#[test]
fn a_disk_that_is_read_only_at_the_start_does_not_keep_the_sink_from_starting() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::mount(directory.path().join("disk"));
    disk.remount("ro");
    let path = disk.path.join("tree");
    let mut fixture = Fixture::at(directory, path, |_| {});
    fixture.sink().tick().expect("nothing to look after");
    let error = fixture.write(&pod_stream("shop", "cart", "app"), &[b"x"]).expect_err("read-only");
    assert!(error.to_string().contains("mount its file system writable"), "{error}");
    disk.remount("rw");
    fixture.retry().expect("written");
    assert_eq!(fixture.bodies(FILE), ["x"]);
}

#[test]
fn directories_and_files_deleted_under_way_are_made_again() {
    let mut fixture = Fixture::new(|_| {});
    let stream = pod_stream("shop", "cart", "app");
    let root = fixture.settings.path.clone();
    let victims = [root.clone(), root.join("pod"), root.join("pod/shop/cart/app"), root.join(FILE)];
    for (number, victim) in victims.iter().enumerate() {
        fixture.write(&stream, &[b"before"]).expect("written");
        if victim.is_dir() {
            fs::remove_dir_all(victim).expect("removed");
        } else {
            fs::remove_file(victim).expect("removed");
        }
        fixture.write(&stream, &[format!("after {number}").as_bytes()]).expect("written");
        assert_eq!(fixture.bodies(FILE), [format!("after {number}")], "{}", victim.display());
    }
    assert_eq!(fixture.delivered(), 8);
    // The new root is locked as the old one was.
    FileSink::new(fixture.settings.clone()).expect_err("in use");
}

#[test]
fn a_root_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    fs::write(&path, "").expect("written");
    let error = FileSink::new(Settings { path: path.join("tree"), ..Settings::default() }).expect_err("a file");
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()) && text.contains("stands where a directory should"), "{text}");
}
