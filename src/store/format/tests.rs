//! The reader beside SQLite's own `quick_check`.

use std::fs::File;
use std::path::Path;

use super::*;
use crate::store::CREATE_TABLE;
use crate::store::check::{read_log, structure};

/// A database of some hundred rows, short ones and long ones, with free pages.
fn make(path: &Path) {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.execute_batch("PRAGMA journal_mode=WAL; PRAGMA secure_delete=ON; BEGIN")
        .unwrap();
    conn.execute_batch(CREATE_TABLE).unwrap();
    let mut insert = conn
        .prepare("INSERT INTO tree VALUES (?1, 0, ?1, 0, 0, 8, 'name' || ?1, zeroblob(?2))")
        .unwrap();
    for row in 1..400i64 {
        let size = if row % 20 == 0 { 9000 } else { row % 300 };
        insert.execute((row, size)).unwrap();
    }
    drop(insert);
    conn.execute_batch("DELETE FROM tree WHERE inode % 40 = 0; COMMIT")
        .unwrap();
}

fn findings(path: &Path) -> Vec<String> {
    let log = read_log(path).unwrap();
    structure(&Pages::new(File::open(path).unwrap(), log).unwrap())
}

/// `None`: SQLite does not even open it.
fn quick_check(path: &Path) -> Option<String> {
    let conn = rusqlite::Connection::open(path).unwrap();
    let answer = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    answer.ok()
}

fn can_be_read(path: &Path) -> bool {
    let conn = rusqlite::Connection::open(path).unwrap();
    let sum = "SELECT sum(length(name) + coalesce(length(data), 0)) FROM tree";
    conn.query_row(sum, [], |row| row.get::<_, i64>(0)).is_ok()
}

#[test]
fn a_good_database_has_no_findings() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    make(&path);
    assert_eq!(findings(&path), Vec::<String>::new());
}

/// Whatever `quick_check` finds, the reader finds; and the reader finds nothing that it does not.
#[test]
fn it_finds_what_quick_check_finds() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
    make(&good);
    let original = std::fs::read(&good).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |limit: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) as usize % limit
    };
    let (mut found, mut rounds) = (0, 0);
    let pages = original.len() / 4096;
    while rounds < 1500 {
        let mut bytes = original.clone();
        let page = next(pages) * 4096;
        // Headers and lists of cells, beginnings of cells, whole pages, the end of the file.
        match next(8) {
            0..=3 => bytes[page + next(40)] = next(256) as u8,
            4..=5 => bytes[page + next(4096)] ^= 1 << next(8),
            6 => {
                let other = next(pages) * 4096;
                let copy = original[other..other + 4096].to_vec();
                bytes[page..page + 4096].copy_from_slice(&copy);
            }
            _ => bytes.truncate(page.max(4096)),
        }
        // What makes it another kind of file is not what this is about.
        if bytes == original || bytes[..100] != original[..100] {
            continue;
        }
        rounds += 1;
        std::fs::write(&bad, &bytes).unwrap();
        let ours = findings(&bad);
        let Some(theirs) = quick_check(&bad) else {
            continue;
        };
        // What is within one row is for loading to find, which reads every row.
        let by_loading = theirs.contains("NULL value")
            || theirs.contains("CHECK constraint")
            || !can_be_read(&bad);
        assert!(
            ours.is_empty() == (theirs == "ok") || by_loading,
            "round {rounds}: {ours:?}, but quick_check says {theirs:?}"
        );
        found += usize::from(!ours.is_empty());
    }
    assert!(found > 300, "only {found} of {rounds} damages were found");
}

#[test]
fn numbers_and_records_of_any_bytes() {
    assert_eq!(varint(&[0x81, 0x00], 0), Some((128, 2)));
    assert_eq!(varint(&[0xff; 9], 0), Some((u64::MAX, 9)));
    assert_eq!(varint(&[0x80], 0), None);
    assert_eq!(varint(&[], 3), None);
    assert_eq!(record(&[]), None);
    // A header of 3 bytes, an integer of one, a text of two bytes of which one is there.
    let (values, complete) = record(&[3, 1, 17, 0xff, b'x']).unwrap();
    assert!(!complete);
    assert_eq!(values[0].as_i64().unwrap(), -1);
    assert_eq!(values[1].as_bytes().unwrap(), b"x");
}
