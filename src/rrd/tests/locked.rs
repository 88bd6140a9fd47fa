//! A file that somebody reads while a value is to be written to it, without rrdcached.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use super::{NOW, STORAGE, last_update, settings, wait_for};
use crate::rrd::handle::RrdHandle;

const FILE: &str = "pve-storage-9.0/node1/local";

/// Locks the whole file as a reader in another process does, until it is dropped: a lock of the
/// open file description, because one of the process would not keep this process out.
fn lock(file: &Path) -> File {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let whole = libc::flock {
        l_type: libc::F_RDLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&opened, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
    opened
}

/// A file with one value, written directly.
fn first_value(dir: &Path) -> (RrdHandle, PathBuf) {
    let settings = settings(dir);
    let file = settings.base_dir.join(FILE);
    let handle = RrdHandle::new(settings).unwrap();
    handle.submit(STORAGE, b"1795333407:5:6\0", NOW);
    wait_for("first value", Duration::from_secs(15), || {
        file.exists() && last_update(&file) == "1795333407: 5 6"
    });
    (handle, file)
}

#[test]
fn a_value_waits_for_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, file) = first_value(dir.path());
    let reader = lock(&file);
    handle.submit(STORAGE, b"1795333417:7:8\0", NOW + 10);
    thread::sleep(Duration::from_millis(250));
    assert_eq!(handle.waiting(), 1, "written in spite of the lock, or lost");
    drop(reader);
    wait_for("second value", Duration::from_secs(15), || {
        last_update(&file) == "1795333417: 7 8"
    });
    handle.stop();
}

#[test]
fn a_lock_that_stays_costs_its_value_and_a_bounded_time() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, file) = first_value(dir.path());
    let reader = lock(&file);
    let start = Instant::now();
    // More of them than one alone may wait for: they share the time.
    for i in 1..=20 {
        let value = format!("{}:7:8\0", NOW + i);
        handle.submit(STORAGE, value.as_bytes(), NOW + i);
    }
    wait_for("values given up", Duration::from_secs(15), || {
        handle.waiting() == 0
    });
    let took = start.elapsed();
    assert!(took > Duration::from_millis(450), "{took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    drop(reader);
    assert_eq!(last_update(&file), "1795333407: 5 6");
    handle.submit(STORAGE, b"1795333507:9:9\0", NOW + 100);
    wait_for("next value", Duration::from_secs(15), || {
        last_update(&file) == "1795333507: 9 9"
    });
    handle.stop();
}
