//! Making, opening and closing the file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_new_database_is_the_reference_s() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("config.db");
    let (store, loaded) = Store::open(&db, 1234).unwrap();
    assert!(loaded.created);
    assert_eq!(
        loaded.tree.root_row(),
        RootRow {
            version: 1,
            writer: 0,
            mtime: 0
        }
    );
    let mode = |file: &str| {
        fs::metadata(dir.path().join(file))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(
        (
            mode("config.db"),
            mode("config.db-wal"),
            mode("config.db-shm")
        ),
        { (0o600, 0o600, 0o600) }
    );
    store.close().unwrap();
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["config.db"]);

    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/golden/db/fresh.db");
    let schema = |path: &Path| -> Vec<(String, String)> {
        let copy = dir.path().join("copy.db");
        fs::copy(path, &copy).unwrap();
        let conn = rusqlite::Connection::open(copy).unwrap();
        let mut all = conn.prepare("SELECT name, sql FROM sqlite_master").unwrap();
        let rows = all
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        rows.map(Result::unwrap).collect()
    };
    assert_eq!(schema(&db), schema(&golden));
    let mut want = raw_rows(&golden);
    want[0][4] = Value::Integer(1234);
    assert_eq!(raw_rows(&db), want);
}

#[test]
fn mode_is_set_at_every_open() {
    let lab = Lab::new();
    assert!(lab.store.shutdown(std::time::Duration::from_secs(5)));
    fs::set_permissions(lab.path(), fs::Permissions::from_mode(0o644)).unwrap();
    let (_store, loaded) = Store::open(&lab.path(), 1).unwrap();
    assert!(!loaded.created);
    assert_eq!(
        fs::metadata(lab.path()).unwrap().permissions().mode() & 0o7777,
        0o600
    );
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let error = Store::open(Path::new("/nonexistent/config.db"), 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unable to create '/nonexistent/config.db': No such file or directory (os error 2)"
    );
}

/// A backup that holds a lock for a moment does not make the start fail.
#[test]
fn a_foreign_lock_is_waited_for() {
    let lab = Lab::new();
    assert!(lab.store.shutdown(std::time::Duration::from_secs(5)));
    let foreign = rusqlite::Connection::open(lab.path()).unwrap();
    foreign.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let holder = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        foreign.execute_batch("ROLLBACK").unwrap();
    });
    Store::open(&lab.path(), 1).unwrap();
    holder.join().unwrap();
}

/// Not a limit, a number to look at: the time to load 10,000 guests.
#[test]
fn prints_the_time_of_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("config.db");
    let (store, Loaded { mut tree, .. }) = Store::open(&db, 1).unwrap();
    let mut changes = Vec::new();
    let mut apply = |op| changes.push(tree.apply_local(&op, 1, 1).unwrap());
    apply(Op::Mkdir { path: p("nodes") });
    for node in 0..4 {
        apply(Op::Mkdir {
            path: p(&format!("nodes/node{node}")),
        });
        apply(Op::Mkdir {
            path: p(&format!("nodes/node{node}/qemu-server")),
        });
    }
    for vmid in 100..10_100 {
        let path = p(&format!("nodes/node{}/qemu-server/{vmid}.conf", vmid % 4));
        apply(Op::Create { path: path.clone() });
        apply(Op::Write {
            path,
            offset: 0,
            data: vec![b'x'; 400],
            truncate: true,
        });
    }
    store.commit(&changes).unwrap();
    store.close().unwrap();
    drop(changes);
    let index = tree.index();
    drop(tree);

    let start = std::time::Instant::now();
    let (_store, loaded) = Store::open(&db, 1).unwrap();
    println!(
        "store: 10,000 guests of 400 bytes: loaded in {:?}",
        start.elapsed()
    );
    assert_eq!(loaded.tree.index(), index);
    drop(_store);
    let conn = rusqlite::Connection::open(&db).unwrap();
    // The best of some: what the machine does besides only ever adds.
    let best = |run: &dyn Fn()| {
        let times = (0..15).map(|_| {
            let start = std::time::Instant::now();
            run();
            start.elapsed()
        });
        times.min().unwrap()
    };
    let loading = best(&|| {
        let mut select = conn.prepare(super::super::rows::SELECT).unwrap();
        let rows = select.query_map([], super::super::rows::load_row).unwrap();
        let tree = Tree::load(rows.map(Result::unwrap), 1).unwrap().0;
        assert_eq!(tree.guests().count(), 10_000);
    });
    let looking = best(&|| assert_eq!(super::super::check::examine(&db), Default::default()));
    let checking = best(&|| {
        let check = conn.query_row("PRAGMA quick_check", [], |row| row.get::<_, String>(0));
        assert_eq!(check.unwrap(), "ok");
    });
    println!(
        "store: loading {loading:?}, the look at the pages {looking:?}, quick_check {checking:?}"
    );
    assert_eq!(loaded.tree.guests().count(), 10_000);
}
