//! SIGKILL at random moments under writers: every acknowledged change is there afterwards.
use compat_tests::report::{median, ms};
use compat_tests::{Daemon, Lab, Node, Subject, dbfile, model, on_both, report};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

on_both!(killed_under_writers);

const WRITERS: u64 = 3;

/// What one writer has made so far.
#[derive(Default)]
struct Writer {
    files: BTreeMap<String, Vec<u8>>,
    next: u64,
}

fn dir(seed: u64) -> String {
    format!("/etc/pve/writer{seed}")
}

fn start_writer(node: &Node, seed: u64, first: u64) -> Child {
    let mut command: Command = node.command(env!("CARGO_BIN_EXE_compat-writer"));
    command.args([dir(seed), seed.to_string(), first.to_string()]);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Reads the acknowledgements the dead daemon's writers have left and applies them to the models.
fn collect(children: Vec<Child>, writers: &mut [Writer]) -> usize {
    let mut acknowledged = 0;
    for (mut child, (seed, writer)) in children.into_iter().zip((0..).zip(writers.iter_mut())) {
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let n: u64 = line.unwrap().parse().unwrap();
            assert_eq!(n, writer.next, "acknowledgements come in order");
            model::change(seed, n).apply(&mut writer.files);
            writer.next = n + 1;
            acknowledged += 1;
        }
        child.wait().unwrap();
    }
    acknowledged
}

/// Compares the mount with the models. The one change that was under way may be there, half there
/// (truncate and write are two changes) or not; the model takes over what is found.
fn compare(node: &Node, round: usize, writers: &mut [Writer]) {
    for (seed, writer) in (0..).zip(writers.iter_mut()) {
        let mut found = BTreeMap::new();
        node.inside(|| {
            let Ok(entries) = fs::read_dir(dir(seed)) else {
                return;
            };
            for entry in entries {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_string();
                found.insert(name, fs::read(&path).unwrap());
            }
        });
        let open = model::change(seed, writer.next);
        found.retain(|name, _| !name.ends_with(".tmp"));
        let mut after = writer.files.clone();
        open.apply(&mut after);
        let touched = open.touches();
        let half = matches!(open, model::Change::Write { .. })
            && found.get(touched).is_some_and(Vec::is_empty);
        for (name, content) in &found {
            let allowed = writer.files.get(name) == Some(content)
                || (name == touched && (after.get(name) == Some(content) || half));
            assert!(
                allowed,
                "round {round}: writer {seed}: {name} has a content nobody acknowledged"
            );
        }
        for name in writer.files.keys().filter(|n| !found.contains_key(*n)) {
            let allowed = name == touched && !after.contains_key(name);
            assert!(
                allowed,
                "round {round}: writer {seed}: {name} was acknowledged and is lost"
            );
        }
        writer.files = found;
        writer.next += 1;
    }
}

fn killed_under_writers(subject: &Subject) {
    // the reference needs more than a second per start and is only here to test the test
    let rounds = if subject.is_ours() { 200 } else { 8 };
    let (_lab, node) = Lab::single();
    let mut writers: Vec<Writer> = (0..WRITERS).map(|_| Writer::default()).collect();
    let seed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    let mut random = u64::from(seed);
    let (mut total, mut starts) = (0, Vec::new());
    let mut daemon = Daemon::local(&node, subject);
    for round in 0..rounds {
        let children: Vec<Child> = (0..)
            .zip(&writers)
            .map(|(seed, w)| start_writer(&node, seed, w.next))
            .collect();
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros(10_000 + random / 7 % 120_000));
        daemon.kill9();
        total += collect(children, &mut writers);
        let state = dbfile::integrity(&node.database(), &node.dir.join("scratch.db"));
        assert_eq!(state, "ok", "round {round}: PRAGMA integrity_check");
        let started = Instant::now();
        daemon = Daemon::local(&node, subject);
        starts.push(started.elapsed().as_secs_f64());
        compare(&node, round, &mut writers);
    }
    let exit = daemon.stop();
    assert_eq!(exit.code, 0, "{exit:?}");
    report(&format!(
        "crash [{}]: {rounds} kills under {WRITERS} writers (random seed {seed}), {total} acknowledged changes, none \
         lost, integrity ok; restart over the dead mount: median {}",
        subject.name(),
        ms(Duration::from_secs_f64(median(&starts)))
    ));
    assert!(total > rounds * 20, "the writers hardly wrote: {total}");
}
