//! Locks below `priv/lock`, names that only one can make, and many writers at once.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::client::compile_preload;
use compat_tests::{Checker, Daemon, Lab, Node, Subject, dbfile, on_both, report};
use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

on_both!(expiry, clock_step, one_winner, many_writers);

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

/// The wall clock is set three minutes ahead, as by a late NTP: a lock that is a second old stays.
fn clock_step(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let clock = node.dir.join("clock-shift");
    let preload = format!("LD_PRELOAD={}", compile_preload("clockshift").display());
    let shift = format!("CLOCK_SHIFT={}", clock.display());
    let env = Subject {
        kind: subject.kind,
        binary: "env".into(),
    };
    let binary = subject.binary.to_string_lossy();
    let args = [&preload, &shift, "CLOCK_SHIFT_ALL=1", &binary, "-f", "-l"];
    let mut daemon = Daemon::spawn(&node, &env, &args);
    daemon.wait_usable();
    let mut checker = Checker::new(subject, "locks-clock");
    let lock = "/etc/pve/priv/lock/held";
    node.inside(|| {
        fs::create_dir_all(lock).unwrap();
        checker.must("fresh", "PermissionDenied", &ask_for(lock));
        fs::write("/etc/pve/before", "").unwrap();
        fs::write(&clock, "180").unwrap();
        fs::write("/etc/pve/after", "").unwrap();
        let mtime = |name: &str| {
            let meta = fs::metadata(format!("/etc/pve/{name}")).unwrap();
            meta.modified().unwrap()
        };
        let step = mtime("after").duration_since(mtime("before")).unwrap();
        assert!(
            (180..240).contains(&step.as_secs()),
            "the daemon's clock was set: {step:?}"
        );
        let answer = ask_for(lock);
        std::thread::sleep(Duration::from_millis(1200));
        let there = if fs::metadata(lock).is_ok() {
            "there"
        } else {
            "gone"
        };
        let seen = format!("{answer}, {there}");
        checker.must(
            "after a step of the clock",
            "PermissionDenied, there",
            &seen,
        );
    });
    checker.finish();
    drop(daemon);
}

/// mkdir, exclusive create and rename of one source by eight threads: each has one winner.
fn one_winner(subject: &Subject) {
    const THREADS: usize = 8;
    const ROUNDS: usize = 60;
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    node.inside(|| fs::create_dir_all("/etc/pve/priv/lock").unwrap());
    let barrier = Barrier::new(THREADS);
    let wins: Vec<[usize; 3]> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (node, barrier) = (&node, &barrier);
                scope.spawn(move || {
                    node.enter();
                    let mut wins = [0; 3];
                    for round in 0..ROUNDS {
                        if thread == 0 {
                            fs::write(format!("/etc/pve/source{round}"), "s").unwrap();
                        }
                        barrier.wait();
                        let name = format!("/etc/pve/priv/lock/l{round}");
                        wins[0] += usize::from(fs::create_dir(name).is_ok());
                        barrier.wait();
                        let name = format!("/etc/pve/file{round}");
                        wins[1] += usize::from(File::create_new(name).is_ok());
                        barrier.wait();
                        let from = format!("/etc/pve/source{round}");
                        let to = format!("/etc/pve/target{round}-{thread}");
                        wins[2] += usize::from(fs::rename(from, to).is_ok());
                    }
                    wins
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (index, what) in ["mkdir", "exclusive create", "rename"].iter().enumerate() {
        let total: usize = wins.iter().map(|w| w[index]).sum();
        assert_eq!(
            total, ROUNDS,
            "{what}: one winner in each of {ROUNDS} rounds"
        );
    }
    report(&format!(
        "one winner [{}]: {THREADS} threads, {ROUNDS} rounds of mkdir, create, rename",
        subject.name()
    ));
    drop(daemon);
}

/// Everything below a directory: name and content, `None` for directories.
fn snapshot(dir: &Path, out: &mut BTreeMap<String, Option<Vec<u8>>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix("/etc/pve").unwrap().display().to_string();
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            out.insert(name, None);
            snapshot(&path, out);
        } else {
            out.insert(name, Some(fs::read(&path).unwrap()));
        }
    }
}

/// The same, from the rows of the database.
fn from_rows(
    rows: &[dbfile::Row],
    parent: i64,
    prefix: &str,
    out: &mut BTreeMap<String, Option<Vec<u8>>>,
) {
    for row in rows.iter().filter(|r| r.parent == parent && r.inode != 0) {
        let name = format!("{prefix}{}", String::from_utf8_lossy(&row.name));
        if row.kind == 4 {
            out.insert(name.clone(), None);
            from_rows(rows, row.inode, &format!("{name}/"), out);
        } else {
            out.insert(name, Some(row.data.clone().unwrap_or_default()));
        }
    }
}

/// One step of a writer; most fail half of the time, which is the point.
fn step(random: &mut u64, thread: usize, n: usize) {
    let mut next = |limit: u64| {
        *random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*random >> 33) % limit
    };
    let dir = format!("/etc/pve/shared/d{}", next(4));
    let other = format!("/etc/pve/shared/d{}", next(4));
    let (name, target) = (next(6), next(6));
    let path = format!("{dir}/f{name}");
    let _ = match next(8) {
        0 => fs::remove_file(&path),
        1 => fs::rename(&path, format!("{other}/f{target}")),
        2 => fs::create_dir(format!("{dir}/s{name}")),
        3 => fs::remove_dir(format!("{dir}/s{name}")),
        4 => fs::rename(format!("{dir}/s{name}"), format!("{other}/s{target}")),
        5 => File::options()
            .write(true)
            .open(&path)
            .and_then(|f| f.set_len(next(2000))),
        6 => File::options().append(true).open(&path).and_then(|mut f| {
            std::io::Write::write_all(&mut f, format!("{thread}/{n} ").as_bytes())
        }),
        _ => fs::write(
            &path,
            format!("{thread}/{n} ").repeat(usize::try_from(next(200)).unwrap()),
        ),
    };
}

/// Eight threads change the same few names; afterwards the mount, the database and the next start
/// agree on everything.
fn many_writers(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    node.inside(|| {
        (0..4).for_each(|d| fs::create_dir_all(format!("/etc/pve/shared/d{d}")).unwrap())
    });
    let steps: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let node = &node;
                scope.spawn(move || {
                    node.enter();
                    let mut random = 0x1234_5678 + thread as u64;
                    let (end, mut n) = (Instant::now() + Duration::from_secs(5), 0);
                    while Instant::now() < end {
                        step(&mut random, thread, n);
                        n += 1;
                    }
                    n
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    let look = |node: &Node| {
        // the reference removes what it has hidden half a second after the last close
        std::thread::sleep(Duration::from_millis(1500));
        let mut found = BTreeMap::new();
        node.inside(|| snapshot(Path::new("/etc/pve/shared"), &mut found));
        found
    };
    let mounted = look(&node);
    assert_eq!(daemon.stop().code, 0);
    let rows = dbfile::rows_of_copy(&node.database(), &node.dir.join("scratch.db")).unwrap();
    let mut stored = BTreeMap::new();
    from_rows(&rows, 0, "", &mut stored);
    stored.remove("shared");
    assert_eq!(mounted, stored, "mount and database");
    let daemon = Daemon::local(&node, subject);
    assert_eq!(mounted, look(&node), "mount before and after a restart");
    assert_eq!(daemon.stop().code, 0);
    report(&format!(
        "many writers [{}]: 8 threads, {steps} steps, {} entries left: mount, database and restart agree",
        subject.name(),
        mounted.len()
    ));
}
