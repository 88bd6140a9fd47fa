//! A process that serves the mount is killed while requests that only it can answer hold what an
//! invalidation could wait for: the lock of a directory (a create) and of a page (a write).

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use nix::mount::{MntFlags, umount2};

use super::*;

/// Set for the process that serves: where to mount, and how names follow other nodes.
const SERVE: &str = "PMXCFS_TEST_SERVE";
/// Only a process that hangs needs longer.
const GONE: Duration = Duration::from_secs(20);

/// What the child does: everything that the kernel has to be told of, while two requests wait.
fn serve(path: &Path, names: NameCache) {
    let tuning = Tuning {
        names: Some(names),
        ..Tuning::default()
    };
    let mounted = Mounted::new(path, "node1", tuning);
    fs::create_dir(mounted.file("d")).unwrap();
    for name in ["d/a", "d/b", "d/written"] {
        fs::write(mounted.file(name), "old").unwrap();
    }
    mounted.replica.hold();
    println!("serving");
    wait_until("a create and a write wait", || {
        mounted.replica.waiting() == 2
    });
    let change = |op: &Op| {
        let change = mounted.replica.remote(op);
        let notifier = mounted.served().notifier.clone();
        std::thread::spawn(move || notifier.invalidate(&change));
    };
    change(&Op::Rename {
        from: path_of("d/a"),
        to: path_of("d/b"),
    });
    change(&Op::Write {
        path: path_of("d/written"),
        offset: 0,
        data: b"new".to_vec(),
        truncate: false,
    });
    mounted.replica.set_quorate(false);
    let notifier = mounted.served().notifier.clone();
    std::thread::spawn(move || notifier.quorum_changed());
    std::thread::sleep(Duration::from_millis(300));
    println!("told");
    loop {
        std::thread::park();
    }
}

fn path_of(text: &str) -> pmxcfs::memdb::TreePath {
    fs_support::path(text)
}

/// Reads lines until one ends with `word`: the test harness writes before it on the same line.
fn wait_for_word(lines: &mut BufReader<ChildStdout>, word: &str) {
    let mut line = String::new();
    while !line.trim_end().ends_with(word) {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "no {word}");
    }
}

fn start(test: &str, path: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(SERVE, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    wait_for_word(&mut lines, "serving");
    (child, lines)
}

fn blocked(work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> JoinHandle<i32> {
    std::thread::spawn(move || errno(work()))
}

fn nothing_is_left(test: &str, names: NameCache) {
    if let Some(path) = std::env::var_os(SERVE) {
        return serve(Path::new(&path), names);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mnt");
    let (mut child, mut lines) = start(test, &path);
    let (new, written) = (path.join("d/new"), path.join("d/written"));
    // Not read before: a page that is only partly written stays locked until the answer.
    let mut open = OpenOptions::new().write(true).open(&written).unwrap();
    let create = blocked(move || File::create_new(new).map(drop));
    let write = blocked(move || open.write_all(b"mine"));
    wait_for_word(&mut lines, "told");
    assert!(!create.is_finished() && !write.is_finished());
    child.kill().unwrap();
    let end = Instant::now() + GONE;
    let mut gone = false;
    while !gone && Instant::now() < end {
        gone = child.try_wait().unwrap().is_some();
        std::thread::sleep(Duration::from_millis(5));
    }
    // Ends the connection, and with it what hangs.
    let _ = umount2(&path, MntFlags::MNT_FORCE);
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    assert!(gone, "the process that served is still there");
    for blocked in [create, write] {
        assert_eq!(blocked.join().unwrap(), libc::ECONNABORTED);
    }
    let next = Mounted::new(&path, "node1", Tuning::default());
    fs::write(next.file("works"), "x").unwrap();
}

#[test]
fn with_epochs() {
    nothing_is_left("killed::with_epochs", NameCache::Epoch);
}

#[test]
fn with_lifetimes() {
    nothing_is_left("killed::with_lifetimes", NameCache::Lifetime);
}
