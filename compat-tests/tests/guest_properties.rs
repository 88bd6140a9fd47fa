//! What it costs to ask for properties of 10,000 guests: the first time, when nothing has changed
//! since, and after a change of one guest.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::client::ROOT;
use compat_tests::daemon::cpu_ns;
use compat_tests::report::median;
use compat_tests::{Client, Daemon, Lab, Subject, dbfile, lab, report};
use std::fs;

const GUESTS: usize = 10_000;
/// Of the C daemon's time, when nothing has changed.
const GOAL: f64 = 0.1;
const ROUNDS: usize = 15;

/// Milliseconds of CPU, of which other programs of the machine change little: first time, nothing changed, one guest changed (medians).
fn measure(subject: &Subject) -> [f64; 3] {
    let (_lab, node) = Lab::single();
    dbfile::Builder::guests(GUESTS)
        .write(&node.database())
        .unwrap();
    let daemon = Daemon::local(&node, subject);
    let client = Client::new(&node, ROOT);
    let ask = || {
        let before = cpu_ns(daemon.pid());
        let reply = client.request(13, b"\0\0\0\0\x02memory\0lock\0", None);
        let used = (cpu_ns(daemon.pid()) - before) as f64 / 1e6;
        assert_eq!(reply.error(), Some(0));
        let text = String::from_utf8_lossy(reply.payload());
        assert_eq!(text.matches("\"memory\"").count(), GUESTS);
        used
    };
    let first = ask();
    let same: Vec<f64> = (0..ROUNDS).map(|_| ask()).collect();
    let guest = node.inside(|| {
        let dir = "/etc/pve/nodes/node1/qemu-server";
        let mut names = fs::read_dir(dir).unwrap();
        names.next().unwrap().unwrap().path()
    });
    let changed: Vec<f64> = (0..ROUNDS)
        .map(|n| {
            node.inside(|| fs::write(&guest, format!("name: changed{n}\nmemory: {n}\n")).unwrap());
            ask()
        })
        .collect();
    daemon.stop();
    [first, median(&same), median(&changed)]
}

#[test]
fn properties_of_all_guests() {
    let _quiet = lab::quiet();
    let mut all = Vec::new();
    let subjects = [
        Some(Subject::ours()),
        Subject::reference_or_skip("properties_of_all_guests"),
    ];
    for subject in subjects.into_iter().flatten() {
        let [first, same, changed] = measure(&subject);
        report(&format!(
            "properties of {GUESTS} guests [{}]: {first:.2} ms of CPU the first time, {same:.2} ms when \
             nothing has changed, {changed:.2} ms after a change of one guest",
            subject.name()
        ));
        all.push(same);
    }
    if let [ours, reference] = all[..] {
        let ratio = ours / reference;
        report(&format!(
            "properties of {GUESTS} guests: ours/reference {ratio:.3} (goal {GOAL})"
        ));
        assert!(ratio <= GOAL, "{ours} ms against {reference} ms");
    }
}
