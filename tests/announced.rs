//! `.version` against content written in place, with the whole daemon: who sees a new version is
//! given the new content. Needs root and /dev/fuse.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

struct Daemon {
    child: Child,
    mount: PathBuf,
    _dir: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("pve");
        let name = format!("announced-{}", std::process::id());
        let child = Command::new(env!("CARGO_BIN_EXE_pmxcfs"))
            .args(["-l", "-f", "--node-name", "n1", "--node-ip", "192.0.2.1"])
            .args(["--ipc-name", &name, "--mountpoint"])
            .arg(&mount)
            .arg("--database")
            .arg(dir.path().join("db/config.db"))
            .arg("--runtime-dir")
            .arg(dir.path().join("run"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while !mount.join(".version").exists() {
            assert!(Instant::now() < end, "the daemon does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Daemon {
            child,
            mount,
            _dir: dir,
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = pmxcfs::fs::mount::unmount(&self.mount);
        let _ = self.child.wait();
    }
}

fn version(mount: &Path) -> u64 {
    let text = fs::read_to_string(mount.join(".version")).unwrap();
    let line = text.lines().find(|l| l.starts_with("\"storage.cfg\""));
    let number = line.unwrap().split(' ').nth(1).unwrap();
    number.trim_end_matches(',').parse().unwrap()
}

/// Size after `changes` changes: each round truncates the file and writes it anew.
fn size_after(changes: u64) -> usize {
    if changes % 2 == 1 {
        return 0;
    }
    (changes / 2 % 5000) as usize
}

fn rewrite(mount: &Path, rounds: u64) {
    let file = OpenOptions::new()
        .write(true)
        .open(mount.join("storage.cfg"));
    let file = file.unwrap();
    let bytes = [b'x'; 5000];
    for round in 1..=rounds {
        file.set_len(0).unwrap();
        file.write_at(&bytes[..size_after(round * 2)], 0).unwrap();
        if round % 8 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn versions_are_never_ahead_of_sizes() {
    const ROUNDS: u64 = 2000;
    let daemon = Daemon::start();
    let mount = &daemon.mount;
    let mut reader = {
        File::create(mount.join("storage.cfg")).unwrap();
        File::open(mount.join("storage.cfg")).unwrap()
    };
    let base = version(mount);
    let done = AtomicBool::new(false);
    let (mut pairs, mut late) = (0, Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            rewrite(mount, ROUNDS);
            done.store(true, Ordering::Relaxed);
        });
        // More to do than there are processors: the writer does not go on at once.
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            });
        }
        while !done.load(Ordering::Relaxed) {
            let before = version(mount);
            let mut content = Vec::new();
            std::io::Seek::rewind(&mut reader).unwrap();
            reader.read_to_end(&mut content).unwrap();
            if version(mount) != before {
                continue;
            }
            pairs += 1;
            // Changes that are not announced yet may show.
            let changes = before - base;
            let allowed = (0..3).map(|more| size_after(changes + more));
            let allowed: Vec<usize> = allowed.collect();
            let size = content.len();
            if !allowed.contains(&size) {
                late.push(format!(
                    "{size} bytes at version {changes}, allowed {allowed:?}"
                ));
            }
        }
    });
    assert_eq!(version(mount) - base, ROUNDS * 2);
    assert_eq!(
        fs::read(mount.join("storage.cfg")).unwrap().len(),
        size_after(ROUNDS * 2)
    );
    assert!(pairs > 0);
    // The daemon waits a quarter of a second for the kernel; a machine that stood still for longer
    // must not fail the test. Without the wait there are dozens.
    assert!(late.len() <= 2, "{late:#?}");
}
