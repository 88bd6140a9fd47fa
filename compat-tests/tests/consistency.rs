//! One file is rewritten again and again by temporary file and rename while others read it through
//! the mount and through IPC.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::client::ROOT;
use compat_tests::{Checker, Client, Daemon, Lab, Node, Subject, on_both, report};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

on_both!(small_file, large_file);

/// What the writer has finished, and how to tell a generation from a counter.
struct Writer {
    /// Generation whose rename has returned.
    done: AtomicU64,
    /// Counter of generation 0; `None` where replacements count more than once (the reference
    /// hides the replaced file of a reader under another name, which counts too).
    base: Option<u64>,
}

impl Writer {
    /// The oldest generation that may be read after `counter` was seen.
    fn oldest(&self, done: u64, counter: u64) -> u64 {
        self.base
            .map_or(0, |base| counter.saturating_sub(base))
            .max(done)
    }
}

/// What the readers saw. Counts only, so that they can stand in a table.
#[derive(Default)]
struct Seen {
    reads: AtomicU64,
    answers: AtomicU64,
    pairs: AtomicU64,
    read_errors: AtomicU64,
    answer_errors: AtomicU64,
    read_mixed: AtomicU64,
    answer_mixed: AtomicU64,
    read_back: AtomicU64,
    answer_back: AtomicU64,
    old_after_version: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Generation `n`: lines of eight characters, all the same.
fn content(n: u64, lines: usize) -> Vec<u8> {
    format!("{n:07}\n").repeat(lines).into_bytes()
}

/// The generation of a content; `None` when it mixes several.
fn generation(bytes: &[u8], lines: usize) -> Option<u64> {
    let first: u64 = std::str::from_utf8(bytes.get(..7)?).ok()?.parse().ok()?;
    (bytes == content(first, lines).as_slice()).then_some(first)
}

/// The counter of `storage.cfg` in the text of `.version`.
fn version(text: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with("\"storage.cfg\""))?;
    line.split(' ').nth(1)?.trim_end_matches(',').parse().ok()
}

/// Reads the file through the mount until the end; a generation never goes back.
fn file_reader(seen: &Seen, stop: &AtomicBool, lines: usize) {
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        match fs::read("/etc/pve/storage.cfg") {
            Err(_) => add(&seen.read_errors),
            Ok(bytes) => match generation(&bytes, lines) {
                None => add(&seen.read_mixed),
                Some(n) if n < last => add(&seen.read_back),
                Some(n) => last = n,
            },
        }
        add(&seen.reads);
    }
}

/// `.version` first, then the file: the content is at least as new as the counter says.
fn version_reader(seen: &Seen, stop: &AtomicBool, lines: usize, writer: &Writer) {
    while !stop.load(Ordering::Relaxed) {
        let done = writer.done.load(Ordering::SeqCst);
        let counter = fs::read_to_string("/etc/pve/.version")
            .ok()
            .and_then(|t| version(&t));
        let Ok(bytes) = fs::read("/etc/pve/storage.cfg") else {
            continue;
        };
        let (Some(counter), Some(n)) = (counter, generation(&bytes, lines)) else {
            continue;
        };
        if n < writer.oldest(done, counter) {
            add(&seen.old_after_version);
        }
        add(&seen.pairs);
    }
}

/// GET_CONFIG without a pause on one connection.
fn config_reader(client: &Client, seen: &Seen, stop: &AtomicBool, lines: usize) {
    let mut command = client.command();
    command.args(["-r", "100000000", "-t", "20000", "--", "6"]);
    let path: String = b"storage.cfg\0"
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let mut child = command.arg(path).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::with_capacity(1 << 20, child.stdout.take().unwrap());
    let mut last = 0;
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        line.clear();
        if out.read_line(&mut line).unwrap() == 0 {
            add(&seen.answer_errors);
            break;
        }
        let mut fields = line.trim().split(['=', ' ']).skip(1).step_by(2);
        let error = fields.next().unwrap().to_string();
        let length: usize = fields.nth(1).unwrap().parse().unwrap();
        let mut bytes = vec![0; length];
        out.read_exact(&mut bytes).unwrap();
        if error != "0" {
            add(&seen.answer_errors);
        } else {
            match generation(&bytes, lines) {
                None => add(&seen.answer_mixed),
                Some(n) if n < last => add(&seen.answer_back),
                Some(n) => last = n,
            }
        }
        add(&seen.answers);
    }
    drop(out);
    let _ = child.kill();
    let _ = child.wait();
}

/// GET_FS_VERSION, then the file through the mount, then GET_CONFIG, in a loop of connections.
fn ipc_version_reader(
    client: &Client,
    node: &Node,
    seen: &Seen,
    stop: &AtomicBool,
    lines: usize,
    writer: &Writer,
) {
    while !stop.load(Ordering::Relaxed) {
        let done = writer.done.load(Ordering::SeqCst);
        let counter = version(&client.text(1, b"")).unwrap();
        let file = node.inside(|| fs::read("/etc/pve/storage.cfg").ok());
        let answer = client.config("storage.cfg");
        for bytes in [
            file.as_deref(),
            answer.error().filter(|e| *e == 0).map(|_| answer.payload()),
        ] {
            let Some(n) = bytes.and_then(|b| generation(b, lines)) else {
                continue;
            };
            if n < writer.oldest(done, counter) {
                add(&seen.old_after_version);
            }
            add(&seen.pairs);
        }
    }
}

fn write_generation(n: u64, lines: usize) {
    let bytes = content(n, lines);
    fs::write("/etc/pve/storage.cfg.tmp", &bytes).unwrap();
    fs::rename("/etc/pve/storage.cfg.tmp", "/etc/pve/storage.cfg").unwrap();
}

fn run(subject: &Subject, area: &str, generations: u64, lines: usize) {
    let (_lab, node) = Lab::single();
    let mut daemon = Daemon::local(&node, subject);
    let client = Client::new(&node, ROOT);
    node.inside(|| write_generation(0, lines));
    let base = version(&client.text(1, b"")).unwrap();
    let mut checker = Checker::new(subject, area);
    let late = node.inside(|| {
        (1..=100)
            .filter(|n| {
                write_generation(*n, lines);
                let text = fs::read_to_string("/etc/pve/.version").ok();
                text.and_then(|t| version(&t)) != Some(base + n)
            })
            .count()
    });
    report(&format!(
        "{area} [{}]: .version was late {late} times of 100",
        subject.name()
    ));
    // a thread that gets no CPU for 100 ms on a loaded machine is no defect; every time would be
    let shown = if late <= 5 { "current" } else { "old" };
    checker.must(".version right after a change", "current", shown);
    let base = version(&client.text(1, b"")).unwrap();
    node.inside(|| write_generation(0, lines));
    let base = base + 1;
    let writer = Writer {
        done: AtomicU64::new(0),
        base: subject.is_ours().then_some(base),
    };
    let (seen, stop) = (Seen::default(), AtomicBool::new(false));
    let mut took = Duration::ZERO;
    std::thread::scope(|scope| {
        scope.spawn(|| node.inside(|| file_reader(&seen, &stop, lines)));
        scope.spawn(|| node.inside(|| version_reader(&seen, &stop, lines, &writer)));
        scope.spawn(|| config_reader(&client, &seen, &stop, lines));
        scope.spawn(|| ipc_version_reader(&client, &node, &seen, &stop, lines, &writer));
        std::thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            node.inside(|| {
                (1..=generations).for_each(|n| {
                    write_generation(n, lines);
                    writer.done.store(n, Ordering::SeqCst);
                })
            });
        }));
        took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        result.unwrap();
    });
    let counted = version(&client.text(1, b"")).unwrap() - base;
    checker.must(
        "counts per replacement beside readers",
        "one",
        if counted == generations {
            "one"
        } else {
            "more"
        },
    );
    let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
    report(&format!(
        "{area} [{}]: {generations} replacements of {} bytes in {:.1} s, beside {} reads, {} GET_CONFIG, {} version \
         checks; errors {}/{}, mixed {}/{}, back {}/{}, old after version {}",
        subject.name(),
        lines * 8,
        took.as_secs_f64(),
        get(&seen.reads),
        get(&seen.answers),
        get(&seen.pairs),
        get(&seen.read_errors),
        get(&seen.answer_errors),
        get(&seen.read_mixed),
        get(&seen.answer_mixed),
        get(&seen.read_back),
        get(&seen.answer_back),
        get(&seen.old_after_version),
    ));
    assert!(get(&seen.reads) > 100 && get(&seen.answers) > 100 && get(&seen.pairs) > 20);
    let yes_no = |c: &AtomicU64| if get(c) == 0 { "never" } else { "seen" };
    checker.must("read errors", "never", yes_no(&seen.read_errors));
    checker.must("GET_CONFIG errors", "never", yes_no(&seen.answer_errors));
    checker.must("mixed content read", "never", yes_no(&seen.read_mixed));
    checker.must(
        "mixed content from GET_CONFIG",
        "never",
        yes_no(&seen.answer_mixed),
    );
    checker.must("older content read again", "never", yes_no(&seen.read_back));
    checker.must(
        "older content from GET_CONFIG again",
        "never",
        yes_no(&seen.answer_back),
    );
    checker.must(
        "old content after .version moved on",
        "never",
        yes_no(&seen.old_after_version),
    );
    checker.check("the daemon", daemon.is_running(), || {
        "ended meanwhile".to_string()
    });
    checker.finish();
}

fn small_file(subject: &Subject) {
    run(subject, "consistency-small", 10_000, 256);
}

/// Larger than one read request of the kernel.
fn large_file(subject: &Subject) {
    run(subject, "consistency-large", 400, 40_000);
}
