//! A database that is kept as a file of its own before a synchronisation replaces it.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::*;
use crate::dcdb::Aside;

/// The database of `lab` as it is.
fn aside(lab: &Lab) -> Box<Aside> {
    let tree = &lab.tree;
    Box::new(Aside {
        root: tree.root_row(),
        rows: tree
            .iter()
            .filter_map(|(inode, _)| tree.row(inode))
            .collect(),
        leader: "node1".into(),
        gone: 1,
        changed: 0,
        example: None,
    })
}

/// Files in the directory of what is kept, in order.
fn kept(lab: &Lab) -> Vec<PathBuf> {
    let files = std::fs::read_dir(lab.dir.path().join("backup"));
    let mut paths: Vec<_> = files
        .into_iter()
        .flatten()
        .map(|f| f.unwrap().path())
        .collect();
    paths.sort();
    paths
}

/// Everything of the tree goes, as a synchronisation does it.
fn replace_all(lab: &mut Lab) -> mpsc::Receiver<Result<(), Error>> {
    let delete = lab.tree.iter().map(|(inode, _)| inode).collect();
    let (tx, rx) = mpsc::channel();
    let told = Box::new(move |result| tx.send(result).unwrap_or(()));
    lab.store.enqueue_sync(delete, Vec::new(), None, told);
    rx
}

#[test]
fn it_is_a_database_and_only_the_last_ones_stay() {
    let mut lab = Lab::new();
    lab.put("file", b"content");
    for n in 1..=7 {
        lab.put("file", format!("content {n}").as_bytes());
        lab.store.keep_aside(aside(&lab));
        lab.store.flush();
    }
    let kept = kept(&lab);
    assert_eq!(kept.len(), 5, "{kept:?}");
    for (path, n) in kept.iter().zip(3..) {
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (_, loaded) = Store::open(path, 3000).unwrap();
        let content = loaded.tree.read(&p("file")).unwrap();
        assert_eq!(content[..], *format!("content {n}").as_bytes());
    }
    let (_, loaded) = Store::open(kept.last().unwrap(), 3000).unwrap();
    assert_eq!(loaded.tree.encode_index(), lab.tree.encode_index());
}

/// What replaces it is not written as long as it cannot be kept.
#[test]
fn nothing_is_replaced_before_it_is_kept() {
    let mut lab = Lab::new();
    lab.put("file", b"content");
    let rows = raw_rows(&lab.path());
    let in_the_way = lab.dir.path().join("backup");
    std::fs::write(&in_the_way, "not a directory").unwrap();
    lab.store.keep_aside(aside(&lab));
    let stored = replace_all(&mut lab);
    let start = Instant::now();
    while !lab.store.errors().load(Ordering::Acquire) {
        assert!(start.elapsed() < Duration::from_secs(10), "no trouble");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(raw_rows(&lab.path()), rows);
    assert!(stored.try_recv().is_err());
    std::fs::remove_file(&in_the_way).unwrap();
    stored
        .recv_timeout(Duration::from_secs(10))
        .unwrap()
        .unwrap();
    assert_eq!(raw_rows(&lab.path()).len(), 1);
    let kept = kept(&lab);
    assert_eq!(kept.len(), 1);
    assert_eq!(raw_rows(&kept[0]).len(), rows.len());
}

#[test]
fn what_is_shared_is_remembered_until_it_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("config.db");
    assert_eq!(read_base(&database), None);
    let base = RootRow {
        version: u64::MAX,
        writer: 3,
        mtime: 7,
    };
    write_base(&database, base).unwrap();
    assert_eq!(read_base(&database), Some(base));
    remove_base(&database).unwrap();
    remove_base(&database).unwrap();
    assert_eq!(read_base(&database), None);
    std::fs::write(dir.path().join("config.db.shared"), "12 x").unwrap();
    assert_eq!(read_base(&database), None);
}

/// What the base was kept for is on the disk before the base is gone: seen from outside.
#[test]
fn the_log_is_synced_before_the_base_is_removed() {
    const TEST: &str = "aside::the_log_is_synced_before_the_base_is_removed";
    if let Some(dir) = child_dir() {
        let (store, loaded) = Store::open(&dir.join("config.db"), 1000).unwrap();
        let mut lab = Lab {
            dir: tempfile::tempdir().unwrap(),
            tree: loaded.tree,
            store: store.spawn().unwrap(),
        };
        lab.put("file", b"x");
        lab.store.flush();
        write_base(&dir.join("config.db"), lab.tree.root_row()).unwrap();
        std::fs::write(dir.join("begin"), "").unwrap();
        remove_base(&dir.join("config.db")).unwrap();
        std::fs::write(dir.join("end"), "").unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let wrap = format!(
        "exec strace -f -qq -y -e trace=openat,fsync,unlink -o '{}' \"$@\"",
        trace.display()
    );
    assert!(child(TEST, &home, &wrap).status().unwrap().success());
    let trace = std::fs::read_to_string(&trace).unwrap();
    let words: Vec<_> = trace.split(' ').filter(|word| !word.is_empty()).collect();
    let trace = words.join(" ");
    let start = trace.find("/begin\"").unwrap();
    let part = &trace[start..start + trace[start..].find("/end\"").unwrap()];
    let log = part.find("config.db-wal>) = 0").expect(part);
    let gone = part.find("config.db.shared\") = 0").expect(part);
    let after = part.rfind("home>) = 0").expect(part);
    assert!(log < gone && gone < after, "{part}");
    // Closing it would drop SQLite's locks.
    assert!(!part.contains("config.db\""), "{part}");
}
