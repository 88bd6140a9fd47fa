//! Against what the C daemon did with the same values.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{NOW, files, golden, rrdtool, settings, wait_for};
use crate::rrd::handle::RrdHandle;
use crate::status::Status;

/// Lines `rrd/<key>⇥<value>[⇥-> error 0]` of a golden file.
fn requests(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let key = fields.next()?.strip_prefix("rrd/")?;
            Some((key.to_owned(), fields.next()?.to_owned()))
        })
        .collect()
}

fn c_string(value: &str) -> Vec<u8> {
    [value.as_bytes(), b"\0"].concat()
}

/// Does `rrdtool info` print the same, but for the name and where the archives start in their
/// rings (librrd draws lots)?
fn assert_same_info(ours: &Path, name: &str) {
    let comparable = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !line.starts_with("filename = ") && !line.contains(".cur_row = "))
            .map(str::to_owned)
            .collect()
    };
    let ours = comparable(&rrdtool(&["info", ours.to_str().unwrap()]));
    let theirs = comparable(&golden(name));
    assert!(theirs.len() > 50);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "{name}");
    }
    assert_eq!(ours.len(), theirs.len(), "{name}");
}

#[test]
fn files_are_made_and_written_as_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let base = settings.base_dir.clone();
    let handle = RrdHandle::new(settings).unwrap();
    let requests = requests(&golden("requests-info-files.txt"));
    assert_eq!(requests.len(), 7);
    for (key, value) in &requests {
        handle.submit(key.as_bytes(), &c_string(value), NOW);
    }
    wait_for("files", Duration::from_secs(20), || files(&base).len() == 7);
    wait_for("values", Duration::from_secs(20), || handle.waiting() == 0);
    handle.stop();
    for (file, name) in [
        ("pve-node-9.0/node1", "pve-node-9.0_node1"),
        ("pve-node-9.0/node2", "pve-node-9.0_node2"),
        ("pve-vm-9.0/100", "pve-vm-9.0_100"),
        ("pve-vm-9.0/101", "pve-vm-9.0_101"),
        ("pve-storage-9.0/node1/local", "pve-storage-9.0_node1_local"),
        ("pve-storage-9.0/node1/old", "pve-storage-9.0_node1_old"),
    ] {
        let path = base.join(file);
        assert_same_info(&path, &format!("{name}.info.txt"));
        let last = rrdtool(&["lastupdate", path.to_str().unwrap()]);
        assert_eq!(last, golden(&format!("{name}.lastupdate.txt")), "{file}");
    }
    // Sent with two columns more than this release knows.
    let path = base.join("pve-node-9.0/future");
    assert_same_info(&path, "pve-node-9.0_future.info.txt");
    let last = rrdtool(&["lastupdate", path.to_str().unwrap()]);
    assert_eq!(last, golden("pve-node-9.0_future.lastupdate.txt"));
}

#[test]
fn all_keys_give_the_recorded_files() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let base = settings.base_dir.clone();
    let handle = RrdHandle::new(settings).unwrap();
    let text = golden("requests-all-cases.txt");
    let status = Status::new("node1", 1, 1);
    status.set_rrd_files(std::sync::Arc::new(handle.clone()));
    let now = 1_795_332_815;
    for (key, value) in requests(&text) {
        let key = format!("rrd/{key}");
        assert_eq!(
            status.set_kv(key.as_bytes(), &c_string(&value), now),
            Ok(()),
            "{key}"
        );
    }
    // `<mode> <uid>:<gid> <size> <path>`
    let expected: BTreeSet<(String, u32, u64)> = text
        .lines()
        .filter_map(|line| {
            let (mode, rest) = line.split_once(" 0:0 ")?;
            let (size, path) = rest.split_once(" /var/lib/rrdcached/db/")?;
            let mode = u32::from_str_radix(mode, 8).unwrap();
            // Difference: an empty component is no name.
            (path != "pve-storage-9.0/x").then(|| (path.to_owned(), mode, size.parse().unwrap()))
        })
        .collect();
    let count = expected
        .iter()
        .filter(|(_, mode, _)| mode & 0o100_000 != 0)
        .count();
    assert_eq!(count, 11);
    wait_for("files", Duration::from_secs(20), || {
        files(&base).len() >= count
    });
    wait_for("values", Duration::from_secs(20), || handle.waiting() == 0);
    handle.stop();
    let mut found = BTreeSet::new();
    let directories = [
        "pve-node-9.0",
        "pve-vm-9.0",
        "pve-storage-9.0",
        "pve-storage-9.0/node1",
    ];
    let names = directories
        .map(|d| Path::new(d).to_owned())
        .into_iter()
        .chain(files(&base));
    for name in names {
        let meta = std::fs::metadata(base.join(&name)).unwrap();
        let size = if meta.is_dir() { 4096 } else { meta.size() };
        found.insert((name.to_str().unwrap().to_owned(), meta.mode(), size));
    }
    assert_eq!(found, expected);
    // Exactly as many columns as known: the C daemon lost the last digit here.
    let last = super::last_update(&base.join("pve-node-9.0/newnode2"));
    assert!(last.ends_with(" 4.40 5.50"), "{last}");
    // The table has everything, also what no file is made for, as it was sent.
    let mut ours: Vec<String> = lines(&status.rrd_text(now))
        .filter(|line| !line.starts_with("zz/"))
        .collect();
    let mut theirs: Vec<String> = golden("dump-fuse.bin").lines().map(str::to_owned).collect();
    theirs.retain(|line| !line.starts_with("zz/") && line != "b");
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
}

fn lines(text: &[u8]) -> impl Iterator<Item = String> {
    let text = String::from_utf8(text.to_vec()).unwrap();
    text.lines()
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

#[test]
fn nothing_is_started_before_the_first_value_that_has_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let handle = RrdHandle::new(settings(dir.path())).unwrap();
    handle.submit(b"nope/1", b"1\0", NOW);
    handle.submit(b"pve2-vm/100", b"1\0", NOW);
    handle.submit(super::STORAGE, b"x:1:2\0", NOW);
    assert!(!handle.running());
    handle.submit(super::STORAGE, b"1795333407:1:2\0", NOW);
    assert!(handle.running());
    wait_for("value", Duration::from_secs(20), || handle.waiting() == 0);
    handle.stop();
    assert!(!handle.running());
    assert_eq!(
        files(&dir.path().join("db")),
        [Path::new("pve-storage-9.0/node1/local")]
    );
    // Too late.
    handle.submit(super::STORAGE, b"1795333417:1:2\0", NOW);
    assert!(!handle.running());
}
