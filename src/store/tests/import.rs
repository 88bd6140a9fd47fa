//! `create_pmxcfs_db`.

use std::fs;

use super::*;

fn folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("files");
    fs::create_dir_all(files.join("folder")).unwrap();
    fs::write(files.join("a.cfg"), "a\n").unwrap();
    fs::write(files.join("b.cfg"), vec![b'b'; 5000]).unwrap();
    fs::write(files.join("empty"), "").unwrap();
    std::os::unix::fs::symlink("a.cfg", files.join("link")).unwrap();
    (dir, files)
}

#[test]
fn only_regular_files_of_the_top_are_taken() {
    let (dir, files) = folder();
    let db = dir.path().join("new.db");
    import_dir(&files, &db, 99).unwrap();
    assert!(!dir.path().join("new.db-wal").exists());
    let (_, loaded) = Store::open(&db, 100).unwrap();
    let tree = loaded.tree;
    assert_eq!(
        (tree.len(), tree.root_row()),
        (
            4,
            RootRow {
                version: 7,
                writer: 0,
                mtime: 99
            }
        )
    );
    assert_eq!(tree.read(&p("a.cfg")).unwrap()[..], *b"a\n");
    assert_eq!(tree.read(&p("b.cfg")).unwrap().len(), 5000);
    for (_, entry) in tree.iter() {
        assert_eq!((entry.writer, entry.mtime, entry.type_code()), (0, 99, 8));
    }
}

#[test]
fn an_existing_name_stops_it() {
    let (dir, files) = folder();
    let db = dir.path().join("new.db");
    import_dir(&files, &db, 99).unwrap();
    let error = import_dir(&files, &db, 99).unwrap_err().to_string();
    assert!(
        error.starts_with("memdb_create '") && error.ends_with("' failed"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_too_large_stops_it() {
    let dir = tempfile::tempdir().unwrap();
    let (files, db) = (dir.path().join("files"), dir.path().join("new.db"));
    fs::create_dir(&files).unwrap();
    fs::write(files.join("big"), vec![0; (1 << 20) + 1]).unwrap();
    let error = import_dir(&files, &db, 99).unwrap_err().to_string();
    assert_eq!(error, "memdb_write 'big' failed");
}

#[test]
fn what_cannot_be_opened_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let error = import_dir(&dir.path().join("no"), &dir.path().join("x.db"), 1).unwrap_err();
    assert_eq!(
        crate::errno_text::plain_errno(&error.to_string()),
        "unable to open dir: No such file or directory"
    );
    assert!(!dir.path().join("x.db").exists());
    // The C tool does not notice this if the folder is empty.
    let (empty, bad) = (dir.path().join("empty"), dir.path().join("bad.db"));
    fs::create_dir(&empty).unwrap();
    fs::write(&bad, vec![b'x'; 6000]).unwrap();
    let error = import_dir(&empty, &bad, 1).unwrap_err().to_string();
    assert!(
        error.contains("bad.db': unable to set WAL mode: file is not a database"),
        "{error}"
    );
    assert!(import_dir(&empty, &dir.path().join("no/x.db"), 1).is_err());
}
