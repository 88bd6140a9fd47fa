//! Locks below `priv/lock`: how long they live.
use compat_tests::{Checker, Daemon, Lab, Subject, on_both};
use std::fs::{self, File, FileTimes};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

on_both!(expiry);

/// What PVE does to ask for a stale lock: utime(0, 0).
fn ask_for(path: &str) -> String {
    let zero = FileTimes::new()
        .set_accessed(UNIX_EPOCH)
        .set_modified(UNIX_EPOCH);
    match File::open(path).and_then(|d| d.set_times(zero)) {
        Ok(()) => "ok".to_string(),
        Err(e) => format!("{:?}", e.kind()),
    }
}

/// A lock lives 120 s from its creation, renewal or the daemon's start, and then goes to whoever
/// asks for it.
fn expiry(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let mut checker = Checker::new(subject, "locks");
    let start = Instant::now();
    let exists = |name: &str| fs::metadata(format!("/etc/pve/priv/lock/{name}")).is_ok();
    let until = |seconds: u64| {
        std::thread::sleep(Duration::from_secs(seconds).saturating_sub(start.elapsed()));
    };
    let seen = node.inside(|| {
        let mut seen = Vec::new();
        for name in ["old", "renewed", "filled", "again"] {
            fs::create_dir_all(format!("/etc/pve/priv/lock/{name}")).unwrap();
        }
        fs::write("/etc/pve/priv/lock/filled/x", "").unwrap();
        seen.push(("fresh", ask_for("/etc/pve/priv/lock/old")));
        until(60);
        // both times: one that is left out (UTIME_OMIT) makes the call do nothing
        let now = SystemTime::now();
        let now = FileTimes::new().set_accessed(now).set_modified(now);
        File::open("/etc/pve/priv/lock/renewed")
            .and_then(|d| d.set_times(now))
            .unwrap();
        fs::remove_dir("/etc/pve/priv/lock/again").unwrap();
        fs::create_dir("/etc/pve/priv/lock/again").unwrap();
        until(115);
        seen.push(("after 115 s", ask_for("/etc/pve/priv/lock/old")));
        until(123);
        let names = ["old", "renewed", "filled", "again"];
        let answers = names.map(|name| ask_for(&format!("/etc/pve/priv/lock/{name}")));
        // the kernel may know a name for one more second with the reference
        std::thread::sleep(Duration::from_millis(1200));
        for (name, answer) in names.into_iter().zip(answers) {
            let there = if exists(name) { "there" } else { "gone" };
            seen.push((name, format!("{answer}, {there}")));
        }
        // what the next one does who wants the lock
        seen.push((
            "taken over",
            match fs::create_dir("/etc/pve/priv/lock/old") {
                Ok(()) => "ok".to_string(),
                Err(e) => format!("{:?}", e.kind()),
            },
        ));
        seen
    });
    let want = [
        ("fresh", "PermissionDenied"),
        ("after 115 s", "PermissionDenied"),
        ("old", "ok, gone"),
        ("renewed", "PermissionDenied, there"),
        ("filled", "DirectoryNotEmpty, there"),
        ("again", "PermissionDenied, there"),
        ("taken over", "ok"),
    ];
    for ((case, want), (other, got)) in want.iter().zip(&seen) {
        assert_eq!(case, other);
        checker.must(case, want, got);
    }
    checker.finish();
    drop(daemon);
}
