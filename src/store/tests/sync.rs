//! The result of a synchronisation on disk.

use super::*;

const ROOT: RootRow = RootRow {
    version: 40,
    writer: 2,
    mtime: 4000,
};

fn file(inode: u64, name: &str) -> Row {
    Row {
        inode,
        parent: 0,
        version: inode,
        writer: 2,
        mtime: 3999,
        type_code: 8,
        name: name.as_bytes().into(),
        data: Some(name.as_bytes().into()),
    }
}

fn sync(lab: &Lab, delete: Vec<Inode>, put: Vec<Row>) -> mpsc::Receiver<Result<(), Error>> {
    let (tx, rx) = mpsc::channel();
    let ticket = Box::new(move |result| tx.send(result).unwrap_or(()));
    lab.store.enqueue_sync(delete, put, Some(ROOT), ticket);
    rx
}

fn names(path: &Path) -> Vec<String> {
    let name = |mut row: RawRow| match row.remove(6) {
        Value::Blob(name) => String::from_utf8(name).unwrap(),
        other => panic!("{other:?}"),
    };
    raw_rows(path).into_iter().map(name).collect()
}

#[test]
fn rows_go_come_and_change_and_the_version_row_has_the_type_of_a_directory() {
    let mut lab = Lab::new();
    lab.put("gone", b"x");
    lab.put("kept", b"y");
    let gone = lab.tree.lookup(&p("gone")).unwrap();
    let kept = lab.tree.lookup(&p("kept")).unwrap();
    sync(
        &lab,
        vec![gone],
        vec![file(30, "new"), file(kept, "changed")],
    )
    .recv()
    .unwrap()
    .unwrap();
    assert_eq!(names(&lab.path()), ["__version__", "changed", "new"]);
    let version = raw_rows(&lab.path()).remove(0);
    let numbers = [0, 0, 40, 2, 4000, 4].map(Value::Integer);
    assert_eq!(version[..6], numbers);
    assert_eq!(version[7], Value::Null);
}

#[test]
fn a_synchronisation_that_cannot_be_written_waits_with_what_is_behind_it() {
    let mut lab = Lab::new();
    lab.put("before", b"x");
    let disk = rusqlite::Connection::open(lab.path()).unwrap();
    disk.execute_batch(
        "CREATE TRIGGER full BEFORE INSERT ON tree WHEN NEW.name = 'bad' \
         BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    )
    .unwrap();
    let inode = lab.tree.lookup(&p("before")).unwrap();
    let failed = sync(&lab, vec![inode], vec![file(30, "good"), file(31, "bad")]);
    assert_eq!(failed.recv().unwrap(), Err(Error::Io));
    let behind = lab.start(Op::Create { path: p("behind") });
    assert_eq!(behind.recv().unwrap(), Err(Error::Io));
    // All of it or nothing.
    assert_eq!(names(&lab.path()), ["__version__", "before"]);
    disk.execute_batch("DROP TRIGGER full").unwrap();
    let (tx, rx) = mpsc::channel();
    lab.store.after(Box::new(move |_| tx.send(()).unwrap()));
    rx.recv().unwrap();
    lab.store.flush();
    assert_eq!(names(&lab.path()), ["__version__", "behind", "good", "bad"]);
}

#[test]
fn everything_stays_in_order() {
    let mut lab = Lab::new();
    let first = lab.start(Op::Create { path: p("first") });
    let inode = lab.tree.lookup(&p("first")).unwrap();
    let second = sync(&lab, vec![inode], vec![file(30, "second")]);
    let third = lab.start(Op::Create { path: p("third") });
    for result in [first, second, third] {
        result.recv().unwrap().unwrap();
    }
    assert_eq!(names(&lab.path()), ["__version__", "third", "second"]);
}
