//! With the real rrdcached: stopped, killed, started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{NOW, STORAGE, files, last_update, rrdtool, settings, submit, wait_for};
use crate::rrd::handle::{RrdHandle, Settings};

const LIMIT: Duration = Duration::from_secs(15);

/// A running rrdcached that keeps values until it is asked or ended.
struct Cached {
    child: Child,
}

impl Cached {
    fn start(settings: &Settings) -> Self {
        let socket = &settings.rrdcached_socket;
        let dir = socket.parent().unwrap();
        let _ = fs::remove_file(socket);
        let child = Command::new("rrdcached")
            .arg("-g")
            .args(["-w", "3600", "-f", "7200", "-B"])
            .arg("-b")
            .arg(&settings.base_dir)
            .arg("-l")
            .arg(format!("unix:{}", socket.display()))
            .arg("-p")
            .arg(dir.join("rrdcached.pid"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run rrdcached (package rrdcached): {error}"));
        wait_for("socket of rrdcached", LIMIT, || socket.exists());
        Cached { child }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn end(mut self, signal: Signal) {
        self.signal(signal);
        self.child.wait().unwrap();
    }
}

impl Drop for Cached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Values of one storage, each 10 s after the one before.
struct Sender {
    handle: RrdHandle,
    time: u32,
    took: Vec<Duration>,
}

impl Sender {
    fn send(&mut self) -> String {
        self.time += 10;
        let value = format!("{}:1000:{}\0", self.time, self.time % 1000);
        let took = submit(&self.handle, STORAGE, value.as_bytes(), self.time);
        self.took.push(took);
        format!("{}: 1000 {}", self.time, self.time % 1000)
    }

    /// Nearly all calls of `submit` were done at once, and none waited for rrdcached. (How long a
    /// thread does not run on a busy machine is not ours to say.)
    fn assert_never_waited(&mut self) {
        self.took.sort();
        let most = self.took[(self.took.len() - 1) * 9 / 10];
        let slowest = self.took[self.took.len() - 1];
        assert!(most < Duration::from_millis(50), "{:?}", self.took);
        assert!(slowest < Duration::from_millis(400), "{slowest:?}");
    }

    /// Until the thread has finished all values.
    fn settle(&self) {
        wait_for("queue", LIMIT, || self.handle.waiting() == 0);
    }
}

fn start(dir: &Path) -> (Settings, Sender, PathBuf) {
    let settings = settings(dir);
    let sender = Sender {
        handle: RrdHandle::new(settings.clone()).unwrap(),
        time: NOW,
        took: Vec::new(),
    };
    let file = settings.base_dir.join("pve-storage-9.0/node1/local");
    (settings, sender, file)
}

/// What rrdcached has of the file goes to the disk.
fn flush(settings: &Settings, file: &Path) {
    let socket = format!("unix:{}", settings.rrdcached_socket.display());
    rrdtool(&["flushcached", "--daemon", &socket, file.to_str().unwrap()]);
}

#[test]
fn values_go_through_rrdcached() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, mut sender, file) = start(dir.path());
    let _cached = Cached::start(&settings);
    let mut last = String::new();
    for _ in 0..200 {
        last = sender.send();
    }
    wait_for("file", LIMIT, || file.exists());
    sender.settle();
    // It keeps them: the file is as it was made, at midnight.
    assert_eq!(
        rrdtool(&["last", file.to_str().unwrap()]).trim(),
        "1795305600"
    );
    flush(&settings, &file);
    assert_eq!(last_update(&file), last);
    sender.handle.stop();
    sender.assert_never_waited();
}

#[test]
fn an_absent_rrdcached_is_used_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, mut sender, file) = start(dir.path());
    let last = sender.send();
    wait_for("direct update", LIMIT, || {
        file.exists() && last_update(&file) == last
    });
    let cached = Cached::start(&settings);
    let kept = sender.send();
    sender.settle();
    assert_eq!(last_update(&file), last);
    flush(&settings, &file);
    assert_eq!(last_update(&file), kept);
    // It ends and writes what it has.
    let kept = sender.send();
    sender.settle();
    cached.end(Signal::SIGTERM);
    assert_eq!(last_update(&file), kept);
    let last = sender.send();
    wait_for("direct update", LIMIT, || last_update(&file) == last);
    sender.handle.stop();
    sender.assert_never_waited();
}

#[test]
fn a_stopped_rrdcached_delays_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, mut sender, file) = start(dir.path());
    let cached = Cached::start(&settings);
    sender.send();
    sender.settle();
    cached.signal(Signal::SIGSTOP);
    let mut last = String::new();
    for _ in 0..100 {
        last = sender.send();
        thread::sleep(Duration::from_millis(2));
    }
    wait_for("direct update", LIMIT, || last_update(&file) == last);
    cached.signal(Signal::SIGCONT);
    // Without a restart of anything: after the pause values go there again.
    wait_for("rrdcached is used again", LIMIT, || {
        let on_disk = last_update(&file);
        let value = sender.send();
        thread::sleep(Duration::from_millis(200));
        let kept = last_update(&file) == on_disk;
        flush(&settings, &file);
        kept && last_update(&file) == value
    });
    sender.handle.stop();
    sender.assert_never_waited();
}

#[test]
fn a_killed_rrdcached_is_replaced_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, mut sender, file) = start(dir.path());
    for _ in 0..3 {
        let cached = Cached::start(&settings);
        sender.send();
        sender.settle();
        flush(&settings, &file);
        cached.end(Signal::SIGKILL);
        // The socket is still there, nobody listens.
        assert!(settings.rrdcached_socket.exists());
        let last = sender.send();
        wait_for("direct update", LIMIT, || last_update(&file) == last);
    }
    // Killed and started again between two values: the old connection is of no use.
    let cached = Cached::start(&settings);
    sender.send();
    sender.settle();
    flush(&settings, &file);
    cached.end(Signal::SIGKILL);
    let _cached = Cached::start(&settings);
    let last = sender.send();
    sender.settle();
    flush(&settings, &file);
    assert_eq!(last_update(&file), last);
    sender.handle.stop();
    sender.assert_never_waited();
}

#[test]
fn what_rrdcached_refuses_as_old_is_not_written_behind_its_back() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, mut sender, file) = start(dir.path());
    let _cached = Cached::start(&settings);
    sender.send();
    let newest = sender.send();
    // The clock went back: the file itself would still take this value.
    sender.time -= 15;
    sender.send();
    sender.settle();
    flush(&settings, &file);
    assert_eq!(last_update(&file), newest);
    sender.handle.stop();
}

#[test]
fn odd_names_reach_rrdcached() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, sender, _) = start(dir.path());
    let _cached = Cached::start(&settings);
    let id = "a b\\c'd";
    let key = format!("pve2-storage/node1/{id}");
    sender
        .handle
        .submit(key.as_bytes(), b"1795333407:5:6\0", NOW);
    let file = settings.base_dir.join("pve-storage-9.0/node1").join(id);
    wait_for("file", LIMIT, || file.exists());
    sender.settle();
    assert_eq!(
        rrdtool(&["last", file.to_str().unwrap()]).trim(),
        "1795305600"
    );
    flush(&settings, &file);
    assert_eq!(last_update(&file), "1795333407: 5 6");
    sender.handle.stop();
}

#[test]
fn stopping_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (mut settings, _, _) = start(dir.path());
    settings.timeouts.reply = Duration::from_secs(30);
    settings.timeouts.batch = Duration::from_secs(30);
    let handle = RrdHandle::new(settings.clone()).unwrap();
    let cached = Cached::start(&settings);
    cached.signal(Signal::SIGSTOP);
    handle.submit(STORAGE, b"1795333407:5:6\0", NOW);
    wait_for("file", LIMIT, || files(&settings.base_dir).len() == 1);
    let start = Instant::now();
    handle.stop();
    let took = start.elapsed();
    assert!(
        took > Duration::from_millis(500) && took < Duration::from_secs(10),
        "{took:?}"
    );
    // Cached values of others are lost with the stopped one; that is its affair.
    cached.signal(Signal::SIGCONT);
}

#[test]
fn without_the_library_values_are_lost_with_a_reason_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut settings, _, _) = start(dir.path());
    settings.library = "librrd-none.so.8".to_owned();
    let handle = RrdHandle::new(settings.clone()).unwrap();
    for i in 0..1000 {
        handle.submit(
            format!("pve-vm-9.0/{i}").as_bytes(),
            b"1:n:r:0:1795333407:1\0",
            NOW,
        );
    }
    wait_for("queue", LIMIT, || handle.waiting() == 0);
    handle.stop();
    assert!(!handle.running());
    assert_eq!(files(&settings.base_dir), Vec::<PathBuf>::new());
}
