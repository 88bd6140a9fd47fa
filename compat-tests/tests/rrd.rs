//! Round-robin data from the socket to the files: recorded requests, translation between the
//! releases, files like those of the reference, rrdcached that hangs, ends, comes back.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/rrd.rs"]
mod rrd;

use compat_tests::client::ROOT;
use compat_tests::daemon::wait_for;
use compat_tests::{Checker, Client, Daemon, Lab, Node, Subject, golden, on_both};
use nix::sys::signal::Signal;
use rrd::{BASE, Cached, last, now, rrdtool};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

on_both!(
    recorded_requests,
    recorded_dump,
    definitions,
    start_of_a_file,
    rrdcached_first
);

const LIMIT: Duration = Duration::from_secs(20);
/// The time in `requests-info-files.txt`.
const RECORDED: &str = "1795333407";

/// Key (without `rrd/`) and value of the requests in a golden file.
fn requests(name: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(golden("status/rrd").join(name)).unwrap();
    let mut out = Vec::new();
    for line in text.lines() {
        let mut fields = line.split('\t');
        let key = fields.next().unwrap_or_default();
        if let (Some(key), Some(value)) = (key.strip_prefix("rrd/"), fields.next()) {
            out.push((key.to_owned(), value.to_owned()));
        }
    }
    out
}

fn set(client: &Client, key: &str, value: &str) -> i32 {
    client.set_status(&format!("rrd/{key}"), format!("{value}\0").as_bytes())
}

fn file_there(node: &Node, file: &str) -> bool {
    wait_for(LIMIT, || node.path(BASE).join(file).exists())
}

/// Path and `<mode> <owner>:<group> <size>` of everything below a directory.
fn tree(dir: &Path, top: &Path, out: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        // The temporary name of a file that librrd is just making may be gone again.
        let Ok(meta) = fs::metadata(&path) else {
            continue;
        };
        // The size of a directory is the file system's affair.
        let size = if meta.is_dir() { 4096 } else { meta.size() };
        let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
        let name = format!("{BASE}/{}", path.strip_prefix(top).unwrap().display());
        out.insert(name, format!("{mode:o} {uid}:{gid} {size}"));
        if meta.is_dir() {
            tree(&path, top, out);
        }
    }
}

fn recorded_requests(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let client = Client::new(&node, ROOT);
    let mut checker = Checker::new(subject, "rrd");
    let requests = requests("requests-all-cases.txt");
    for (key, value) in &requests {
        assert_eq!(set(&client, key, value), 0, "{key}");
    }
    for (case, value, error) in [
        ("no-nul", vec![b'x'; 3], -12),
        ("empty", vec![], -12),
        ("4096 bytes", [vec![b'x'; 4095], vec![0]].concat(), -12),
        ("4095 bytes", [vec![b'x'; 4094], vec![0]].concat(), 0),
        ("embedded NUL+newline", b"a\nb\0c\0".to_vec(), 0),
    ] {
        let got = client.set_status("rrd/zz/1", &value);
        checker.must(case, &error.to_string(), &got.to_string());
    }
    let dump = client.request(10, &[], None);
    let dump = String::from_utf8_lossy(dump.payload()).into_owned();
    let mut lines: Vec<&str> = dump.trim_end_matches('\0').lines().collect();
    let mut expected: Vec<String> = requests.iter().map(|(k, v)| format!("{k}:{v}")).collect();
    expected.extend(["zz/1:a".to_owned(), "b".to_owned()]);
    lines.sort_unstable();
    expected.sort_unstable();
    checker.must("dump", &expected.join("\n"), &lines.join("\n"));

    let text = fs::read_to_string(golden("status/rrd/requests-all-cases.txt")).unwrap();
    let recorded = text.lines().filter_map(|line| line.rsplit_once(' '));
    let want: BTreeMap<&str, &str> = recorded
        .filter(|(what, _)| what.contains(" 0:0 "))
        .map(|(what, path)| (path, what))
        .collect();
    assert_eq!(want.len(), 16);
    let base = node.path(BASE);
    let mut got = BTreeMap::new();
    // The one that ours does not make is waited for in vain.
    wait_for(Duration::from_secs(5), || {
        // librrd makes a file under another name at first.
        got.clear();
        tree(&base, &base, &mut got);
        want.keys().all(|path| got.contains_key(*path))
    });
    for (path, what) in &want {
        let got = got.remove(*path);
        checker.golden(path, what, got.as_deref().unwrap_or("missing"));
    }
    checker.check("others", got.is_empty(), || format!("{got:?}"));
    // Exactly as many columns as a file has, from a release nobody knows.
    let full = requests
        .iter()
        .find(|(key, _)| key == "pve-node-9.2/newnode2");
    let time = now();
    let value = full.unwrap().1.replace("1795332815", &time.to_string());
    assert_eq!(set(&client, "pve-node-9.2/digits", &value), 0);
    let file = "pve-node-9.0/digits";
    assert!(file_there(&node, file) && wait_for(LIMIT, || last(&node, file) == time));
    let update = rrdtool(&node, "lastupdate", file, &[]);
    let digits = update.trim_end().rsplit(' ').next();
    checker.must("last column", "5.50", digits.unwrap_or_default());
    let log = daemon.stop().stderr;
    check_log(&log, &mut checker);
    checker.finish();
}

/// The lines of a dump in an order of their own, and what stands behind the last one.
fn dump_lines(bytes: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.trim_end_matches('\0');
    let end = format!("{} NUL", text.len() - lines.len());
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    (lines.join("\n"), end)
}

/// The dump right after the recorded requests: by IPC, once more within 2 s, and as a file.
fn recorded_dump(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let client = Client::new(&node, ROOT);
    let mut checker = Checker::new(subject, "rrd-dump");
    for (key, value) in requests("requests-all-cases.txt") {
        assert_eq!(set(&client, &key, &value), 0, "{key}");
    }
    let longest = [vec![b'x'; 4094], vec![0]].concat();
    for (key, value) in [("zz/2", &longest[..]), ("zz/3", b"a\nb\0c\0")] {
        assert_eq!(client.set_status(&format!("rrd/{key}"), value), 0);
    }
    let found = client.get_status("rrd/zz/3", "").error();
    checker.must(
        "not in the table of values",
        "Some(-2)",
        &format!("{found:?}"),
    );
    let mut compare = |case: &str, file: &str, got: &[u8]| {
        let want = fs::read(golden(&format!("status/rrd/{file}"))).unwrap();
        let (want, got) = (dump_lines(&want), dump_lines(got));
        checker.golden(&format!("dump {case}"), &want.0, &got.0);
        checker.golden(&format!("dump {case}: end"), &want.1, &got.1);
    };
    for (case, file) in [("fresh", "dump-ipc.bin"), ("again", "dump-ipc-cached.bin")] {
        compare(case, file, client.request(10, b"", None).payload());
    }
    let dot_file = node.inside(|| fs::read("/etc/pve/.rrd")).unwrap();
    compare(".rrd", "dump-fuse.bin", &dot_file);
    checker.finish();
    daemon.stop();
}

/// What the admin reads about the recorded requests.
fn check_log(log: &str, checker: &mut Checker) {
    let wrong = "[status] crit: RRD update error: unknown/wrong key ";
    let keys: Vec<&str> = log
        .lines()
        .filter_map(|line| line.strip_prefix(wrong))
        .collect();
    let want = "pve2-vm/103 pve-node-9.0/a/b pve-node-9.0/ pve-node-9.0 nope/1 pve-storage-9.0/x \
                pve-storage-9.0//x  zz/1 zz/1";
    checker.must("wrong keys", want, &keys.join(" "));
    let failures = log
        .lines()
        .filter(|l| l.contains("could not create directory"));
    checker.must(
        "directories not created",
        "0",
        &failures.count().to_string(),
    );
}

/// Lines of `rrdtool info` that do not depend on time or chance.
fn fixed(info: &str) -> Vec<&str> {
    let varies = [
        "filename",
        "last_update",
        ".cur_row",
        ".cdp_prep",
        ".unknown_sec",
        ".value",
    ];
    info.lines()
        .filter(|line| !varies.iter().any(|name| line.contains(name)))
        .collect()
}

fn definitions(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let client = Client::new(&node, ROOT);
    let time = now();
    for (key, value) in requests("requests-info-files.txt") {
        assert_eq!(
            set(&client, &key, &value.replace(RECORDED, &time.to_string())),
            0
        );
    }
    for file in rrd::RECORDED_FILES {
        assert!(file_there(&node, file), "{file}");
        assert!(wait_for(LIMIT, || last(&node, file) == time), "{file}");
        let recorded = |kind: &str| {
            let name = format!("status/rrd/{}.{kind}.txt", file.replace('/', "_"));
            fs::read_to_string(golden(&name)).unwrap()
        };
        let info = rrdtool(&node, "info", file, &[]);
        assert_eq!(fixed(&info), fixed(&recorded("info")), "{file}");
        let update = rrdtool(&node, "lastupdate", file, &[]);
        let want = recorded("lastupdate").replace(RECORDED, &time.to_string());
        assert_eq!(update, want, "{file}");
    }
    daemon.stop();
}

/// A new file takes values from the last midnight on, in the time zone of the daemon.
fn start_of_a_file(subject: &Subject) {
    let (_lab, node) = Lab::single();
    for (zone, offset) in [("UTC0", 0), ("<+0530>-5:30", 19_800), ("<-11>11", -39_600)] {
        let env = Subject {
            kind: subject.kind,
            binary: "/usr/bin/env".into(),
        };
        let zone = format!("TZ={zone}");
        let binary = subject.binary.to_str().unwrap();
        let mut daemon = Daemon::spawn(&node, &env, &[&zone, binary, "-f", "-l"]);
        daemon.wait_usable();
        let client = Client::new(&node, ROOT);
        let midnight = || {
            let local = i64::from(now()) + offset;
            u32::try_from(local - local % 86_400 - offset).unwrap()
        };
        let before = midnight();
        // Too old: the file stays as it was made.
        let key = format!("pve2-storage/n/s{offset}");
        assert_eq!(set(&client, &key, &format!("{}:1:2", now() - 200_000)), 0);
        let file = format!("pve-storage-9.0/n/s{offset}");
        assert!(file_there(&node, &file));
        let start = last(&node, &file);
        assert!(
            start == before || start == midnight(),
            "{zone}: {start}, not {before}"
        );
        daemon.stop();
    }
}

fn rrdcached_first(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let client = Client::new(&node, ROOT);
    let file = "pve-storage-9.0/n/s";
    let mut time = now();
    let mut send = || {
        time += 10;
        assert_eq!(set(&client, "pve2-storage/n/s", &format!("{time}:1:2")), 0);
        time
    };
    // Nobody there: directly.
    let direct = send();
    assert!(file_there(&node, file));
    assert!(wait_for(LIMIT, || last(&node, file) == direct));
    // It comes: it keeps the value, and writes it when it ends.
    let cached = Cached::start(&node);
    let kept = send();
    cached.wait_for_value(&node, file, kept);
    assert_eq!(last(&node, file), direct);
    cached.end(Signal::SIGTERM);
    assert_eq!(last(&node, file), kept);
    // It was killed and another one has taken its place.
    let cached = Cached::start(&node);
    let lost = send();
    cached.wait_for_value(&node, file, lost);
    cached.end(Signal::SIGKILL);
    let cached = Cached::start(&node);
    let kept = send();
    cached.wait_for_value(&node, file, kept);
    cached.end(Signal::SIGTERM);
    assert_eq!(last(&node, file), kept);
    // Nobody there again.
    let direct = send();
    assert!(wait_for(LIMIT, || last(&node, file) == direct));
    daemon.stop();
}

#[test]
fn a_stopped_rrdcached_is_left_alone_and_used_again() {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &Subject::ours());
    let client = Client::new(&node, ROOT);
    let cached = Cached::start(&node);
    let file = "pve-storage-9.0/n/s";
    let mut time = now();
    let mut send = || {
        time += 10;
        let start = Instant::now();
        assert_eq!(set(&client, "pve2-storage/n/s", &format!("{time}:1:2")), 0);
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        time
    };
    send();
    assert!(file_there(&node, file));
    cached.signal(Signal::SIGSTOP);
    let sent = send();
    assert!(
        wait_for(LIMIT, || last(&node, file) == sent),
        "not written directly"
    );
    cached.signal(Signal::SIGCONT);
    // In at most the pause it is given (10 s), without a restart of anything.
    let used = wait_for(Duration::from_secs(25), || {
        let before = last(&node, file);
        send();
        std::thread::sleep(Duration::from_millis(500));
        last(&node, file) == before
    });
    assert!(used, "rrdcached is not used again");
    assert_eq!(daemon.stop().code, 0);
}

#[test]
fn stopping_does_not_wait_for_rrdcached() {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &Subject::ours());
    let client = Client::new(&node, ROOT);
    let cached = Cached::start(&node);
    cached.signal(Signal::SIGSTOP);
    for i in 0..100 {
        assert_eq!(
            set(
                &client,
                &format!("pve2-storage/n/s{i}"),
                &format!("{}:1:2", now())
            ),
            0
        );
    }
    let exit = daemon.stop();
    assert_eq!(exit.code, 0, "{exit:?}");
    // One second for the thread of these files, and what a busy machine adds.
    assert!(exit.took < Duration::from_millis(4500), "{exit:?}");
}

/// The same values at the same times: the same files, archives included.
#[test]
fn files_are_those_of_the_reference() {
    let name = "files_are_those_of_the_reference";
    let Some(reference) = Subject::reference_or_skip(name) else {
        return;
    };
    let first = now();
    let rounds = 40;
    let nodes = [Subject::ours(), reference].map(|subject| {
        let (lab, node) = Lab::single();
        let daemon = Daemon::local(&node, &subject);
        let mut values = Vec::new();
        for round in 0..rounds {
            let time = (first + round * 37).to_string();
            for (key, value) in requests("requests-info-files.txt") {
                let value = value.replace(RECORDED, &time);
                // Counters count.
                values.push((
                    key,
                    value.replace(":111111:", &format!(":{}:", 111_111 + round)),
                ));
            }
        }
        let feed = rrd::feed(&node, 0, &values);
        assert_eq!(feed.errors, 0, "{feed:?}");
        (lab, node, daemon)
    });
    let [ours, theirs] = [&nodes[0].1, &nodes[1].1];
    let end = first + (rounds - 1) * 37;
    for file in rrd::RECORDED_FILES {
        for node in [ours, theirs] {
            assert!(wait_for(LIMIT, || file_there(node, file) && last(node, file) == end));
        }
        let info = |node: &Node| -> Vec<String> {
            let varies = |line: &&str| !line.contains("filename") && !line.contains(".cur_row");
            let text = rrdtool(node, "info", file, &[]);
            text.lines().filter(varies).map(str::to_owned).collect()
        };
        assert_eq!(info(ours), info(theirs), "{file}");
        let (start, end) = ((first - 7200).to_string(), end.to_string());
        for archive in ["AVERAGE", "MAX"] {
            for resolution in ["60", "1800", "21600", "604800"] {
                let args = [archive, "-r", resolution, "-s", &start, "-e", &end];
                let [a, b] = [ours, theirs].map(|node| rrdtool(node, "fetch", file, &args));
                assert_eq!(a, b, "{file} {archive} {resolution}");
            }
        }
    }
    for (_lab, _, daemon) in nodes {
        daemon.stop();
    }
}
