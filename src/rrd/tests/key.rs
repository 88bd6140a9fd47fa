use std::path::Path;

use proptest::prelude::*;

use crate::rrd::key::{BadLine, Kind, Target};

fn file(key: &str) -> Option<String> {
    let target = Target::parse(key.as_bytes())?;
    Some(target.file().to_str().unwrap().to_owned())
}

fn line(key: &str, value: &str) -> String {
    let target = Target::parse(key.as_bytes()).unwrap();
    String::from_utf8(target.line(value.as_bytes()).unwrap()).unwrap()
}

/// `first` and then 1, 2, … up to `columns` columns in all.
fn columns(first: &str, columns: usize) -> String {
    let mut text = first.to_owned();
    for i in first.split(':').count()..columns {
        text += &format!(":{i}.50");
    }
    text
}

#[test]
fn both_generations_share_the_files() {
    for (key, expected) in [
        ("pve2-node/a", "pve-node-9.0/a"),
        ("pve-node-9.0/a", "pve-node-9.0/a"),
        ("pve-node-9.1/a", "pve-node-9.0/a"),
        ("pve-node-10.0/a", "pve-node-9.0/a"),
        ("pve-node-/a", "pve-node-9.0/a"),
        ("pve2.3-vm/100", "pve-vm-9.0/100"),
        ("pve-vm-9.0/100", "pve-vm-9.0/100"),
        ("pve-vm-9.9/100", "pve-vm-9.0/100"),
        ("pve2-storage/a/b", "pve-storage-9.0/a/b"),
        ("pve-storage-9.0/a/b", "pve-storage-9.0/a/b"),
        ("pve-storage-9.5/a/..b", "pve-storage-9.0/a/..b"),
    ] {
        assert_eq!(file(key).as_deref(), Some(expected), "{key}");
    }
    assert_eq!(Target::parse(b"pve2.3-vm/1").unwrap().kind(), Kind::Guest);
}

#[test]
fn wrong_keys() {
    for key in [
        "",
        "x",
        "nope/1",
        "pve2-vm/103",
        "pve2.3-vm",
        "pve-node-9.0",
        "pve-node-9.0/",
        "pve-node-9.0/a/b",
        "pve-node-9.0/.",
        "pve-node-9.0/..",
        "pve2-node/",
        "pve2-node",
        "pve-vm-9.0/",
        "pve-vm-9.0/1/2",
        "pve-storage-9.0/x",
        "pve-storage-9.0//x",
        "pve-storage-9.0/x/",
        "pve-storage-9.0/../x",
        "pve-storage-9.0/x/..",
        "pve-storage-9.0/./x",
        "pve-storage-9.0/x/y/z",
        "pve-storage-9.0/x//z",
        "pve2-storage/x",
        "pve-vm-9.0/10\n0",
        "pve-vm-9.0/1\u{7f}",
    ] {
        assert_eq!(file(key), None, "{key:?}");
    }
}

#[test]
fn leading_columns_are_dropped_and_old_lines_filled_up() {
    assert_eq!(
        line("pve2-node/a", "1:amd:99:1:2"),
        format!("99:1:2{}", ":U".repeat(7))
    );
    assert_eq!(line("pve-node-9.0/a", "1:amd:99:1:2"), "99:1:2");
    assert_eq!(line("pve-node-9.0/a", "1::99"), "99");
    assert_eq!(
        line("pve2.3-vm/1", "1:n:run:0:99:1"),
        format!("99:1{}", ":U".repeat(7))
    );
    assert_eq!(line("pve-vm-9.0/1", "1:n:run:0:99:1"), "99:1");
    assert_eq!(line("pve2-storage/a/b", "99:1:2"), "99:1:2");
    assert_eq!(line("pve-storage-9.0/a/b", "99:1:2:3"), "99:1:2:3");
}

#[test]
fn newer_lines_are_cut_behind_the_last_known_column() {
    for (key, first, data) in [
        ("pve-node-9.1/a", "1:amd:99", 19),
        ("pve-vm-9.1/1", "1:n:run:0:99", 17),
        ("pve-storage-9.1/a/b", "99", 2),
    ] {
        let skip = first.split(':').count() - 1;
        let full = columns(first, skip + 1 + data);
        let expected = full.splitn(skip + 1, ':').last().unwrap();
        assert_eq!(expected.split(':').count(), 1 + data);
        // Exactly as many, one more (empty or not), several more.
        assert_eq!(line(key, &full), expected);
        assert_eq!(line(key, &format!("{full}:")), expected);
        assert_eq!(line(key, &format!("{full}:77:88")), expected);
        // Fewer: nothing is lost.
        let short = columns(first, skip + 1 + data - 1);
        assert_eq!(
            line(key, &short),
            short.splitn(skip + 1, ':').last().unwrap()
        );
    }
}

#[test]
fn a_value_ends_at_its_first_nul() {
    assert_eq!(line("pve-storage-9.1/a/b", "99:1:2\0:3:4\0"), "99:1:2");
    assert_eq!(
        line("pve2-node/a", "1:amd:99:1\0junk\n\0"),
        format!("99:1{}", ":U".repeat(7))
    );
}

#[test]
fn what_is_no_update_is_refused() {
    let refused = |key: &str, value: &str| {
        Target::parse(key.as_bytes())
            .unwrap()
            .line(value.as_bytes())
            .unwrap_err()
    };
    assert_eq!(refused("pve-storage-9.0/a/b", ""), BadLine::Time);
    assert_eq!(refused("pve-storage-9.0/a/b", "N:1:2"), BadLine::Time);
    assert_eq!(refused("pve-storage-9.0/a/b", "-5:1:2"), BadLine::Time);
    assert_eq!(refused("pve-storage-9.0/a/b", "noon@1:2"), BadLine::Time);
    assert_eq!(refused("pve-storage-9.0/a/b", "99 :1:2"), BadLine::Time);
    assert_eq!(refused("pve-node-9.0/a", "99:1"), BadLine::Time);
    assert_eq!(
        refused("pve-storage-9.0/a/b", "99:1:2\nQUIT"),
        BadLine::Character
    );
    assert_eq!(
        refused("pve-storage-9.0/a/b", "99:1 :2"),
        BadLine::Character
    );
    assert_eq!(refused("pve-storage-9.0/a/b", "99:1:ä"), BadLine::Character);
}

proptest! {
    #[test]
    fn no_key_leaves_its_directory(key in prop::collection::vec(any::<u8>(), 0..40), rule in 0..4) {
        let prefix: &[u8] = [&b""[..], b"pve-node-9.0/", b"pve2-storage/", b"pve-vm-"][rule as usize];
        let key = [prefix, &key[..]].concat();
        if let Some(target) = Target::parse(&key) {
            let file = target.file();
            let inside = file.strip_prefix(target.kind().directory()).unwrap();
            let plain = inside.components().all(|c| matches!(c, std::path::Component::Normal(_)));
            prop_assert!(plain && inside != Path::new(""), "{:?}", file);
            let depth = if target.kind() == Kind::Storage { 2 } else { 1 };
            prop_assert_eq!(inside.components().count(), depth);
        }
    }

    #[test]
    fn no_value_makes_a_second_command(value in prop::collection::vec(any::<u8>(), 0..60)) {
        for key in [&b"pve-storage-9.9/a/b"[..], b"pve2.3-vm/100", b"pve-node-9.0/a"] {
            if let Ok(line) = Target::parse(key).unwrap().line(&value) {
                prop_assert!(line.iter().all(u8::is_ascii_graphic));
            }
        }
    }
}
