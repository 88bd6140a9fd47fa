//! Tests of the room. They need the packages `rrdtool` and `rrdcached`.

mod client;
mod golden;
mod key;
mod locked;
mod queue;
mod rrdcached;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;

use super::handle::{RrdHandle, Settings};

/// 2026-11-22 07:43:27 UTC: the time in the golden values.
const NOW: u32 = 1_795_333_407;
/// A kind of thing with little data; `NOW` is the time of the first value.
const STORAGE: &[u8] = b"pve-storage-9.0/node1/local";

/// Settings with directories of the test and times that fit tests.
fn settings(dir: &Path) -> Settings {
    let base = dir.join("db");
    fs::create_dir_all(&base).unwrap();
    let mut settings = Settings::new(base, dir.join("rrdcached.sock"));
    settings.zone = Some(TimeZone::UTC);
    settings.timeouts.reply = Duration::from_millis(500);
    settings.timeouts.pause = Duration::from_secs(1);
    settings
}

/// Runs `rrdtool` and returns what it prints.
fn rrdtool(args: &[&str]) -> String {
    compat_tests::rrdtool::rrdtool(Command::new("rrdtool").args(args).env("TZ", "UTC"))
}

/// Text of a file below `compat-tests/golden/status/rrd`.
fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("compat-tests/golden/status/rrd")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The (time, values) of the last update of a file.
fn last_update(file: &Path) -> String {
    let text = rrdtool(&["lastupdate", file.to_str().unwrap()]);
    text.lines().last().unwrap_or_default().to_owned()
}

/// Waits until `test` is true, at most `limit`.
fn wait_for(what: &str, limit: Duration, mut test: impl FnMut() -> bool) {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// All files below a directory, relative, sorted.
fn files(dir: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path, top: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, top, out),
                false => out.push(path.strip_prefix(top).unwrap().to_owned()),
            }
        }
    }
    let mut out = Vec::new();
    walk(dir, dir, &mut out);
    out.sort();
    out
}

/// Submits and returns how long that took.
fn submit(handle: &RrdHandle, key: &[u8], value: &[u8], now: u32) -> Duration {
    let start = Instant::now();
    handle.submit(key, value, now);
    start.elapsed()
}
