//! Trees of unusual shape: work may grow with their size, not with its square. The limits are what
//! only the square breaks: it takes minutes to hours.

use std::time::{Duration, Instant};

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

fn row(inode: u64, parent: u64, type_code: i64, name: &str) -> LoadRow {
    LoadRow {
        inode: inode as i64,
        parent: parent as i64,
        version: inode as i64,
        type_code,
        name: Some(Arc::from(name.as_bytes())),
        ..LoadRow::default()
    }
}

/// `count` VMIDs, each with a config on two nodes; that of `b` is newer.
fn two_configs_each(count: u64) -> (Tree, Vec<LoadNote>) {
    let mut rows = vec![row(1, 0, 4, "nodes")];
    for (node, name) in [(2, "a"), (3, "b")] {
        rows.push(row(node, 1, 4, name));
        rows.push(row(node + 2, node, 4, "qemu-server"));
        let config = |vmid| {
            row(
                node * 1_000_000 + vmid,
                node + 2,
                8,
                &format!("{vmid}.conf"),
            )
        };
        rows.extend((1..=count).map(config));
    }
    rows.sort_by_key(|row| row.inode);
    Tree::load(rows.into_iter(), 0).unwrap()
}

#[test]
fn of_many_duplicate_guests_each_is_looked_up_by_itself() {
    const COUNT: u64 = 40_000;
    let started = Instant::now();
    let (mut tree, notes) = two_configs_each(COUNT);
    assert_eq!(
        notes.iter().filter(|note| is_duplicate(note)).count(),
        COUNT as usize
    );
    for vmid in 1..=COUNT as u32 {
        assert_eq!(&*tree.guest(vmid).unwrap().node, "b");
        let path = format!("nodes/b/qemu-server/{vmid}.conf");
        let change = local(&mut tree, delete(&path), 1).unwrap();
        // Off the list, and on it again with the other config.
        assert_eq!(change.effects.guests.len(), 2);
        assert_eq!(&*tree.guest(vmid).unwrap().node, "a");
    }
    assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
}

fn is_duplicate(note: &LoadNote) -> bool {
    matches!(note, LoadNote::DuplicateGuest(_))
}

#[test]
fn of_many_configs_of_one_vmid_the_newest_counts() {
    let mut rows = vec![row(1, 0, 4, "nodes")];
    for node in 2..300 {
        rows.push(row(node, 1, 4, &format!("n{node}")));
        rows.push(row(10_000 + node, node, 4, "lxc"));
        rows.push(row(20_000 + node, 10_000 + node, 8, "100.conf"));
    }
    rows.sort_by_key(|row| row.inode);
    let (mut tree, _) = Tree::load(rows.into_iter(), 0).unwrap();
    for node in (2..300).rev() {
        assert_eq!(*tree.guest(100).unwrap().node, *format!("n{node}"));
        local(&mut tree, delete(&format!("nodes/n{node}/lxc/100.conf")), 1).unwrap();
    }
    assert_eq!(tree.guest(100), None);
}

/// Each name is claimed twice; whoever has it is removed, and the other one gets it.
#[test]
fn of_many_names_that_are_claimed_twice_each_is_looked_up_by_itself() {
    const COUNT: u64 = 40_000;
    let started = Instant::now();
    let claims = (1..=2 * COUNT).map(|inode| row(inode, 0, 8, &format!("f{}", inode % COUNT)));
    let (mut tree, notes) = Tree::load(claims, 0).unwrap();
    assert!(notes.len() >= COUNT as usize);
    for inode in 1..=COUNT {
        let name = p(&format!("f{}", inode % COUNT));
        assert_eq!(tree.lookup(&name), Some(inode + COUNT));
        local(&mut tree, Op::Delete { path: name.clone() }, 1).unwrap();
        assert_eq!(tree.lookup(&name), Some(inode));
    }
    assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
}

/// A chain of directories, and in the last one two rows for each name.
#[test]
fn a_deep_chain_is_loaded_in_one_go() {
    const DEPTH: u64 = 50_000;
    let started = Instant::now();
    let mut rows: Vec<LoadRow> = (1..=DEPTH).map(|i| row(i, i - 1, 4, "d")).collect();
    let name = |i: u64| format!("f{}", i / 2);
    rows.extend((0..DEPTH).map(|i| row(DEPTH + 1 + i, DEPTH, 8, &name(i))));
    let (tree, notes) = Tree::load(rows.into_iter(), 0).unwrap();
    assert!(
        notes
            .iter()
            .any(|note| matches!(note, LoadNote::DuplicateName { path: None, .. }))
    );
    // It is served all the same.
    let deepest = TreePath::new("d/".repeat(DEPTH as usize).as_bytes());
    assert_eq!(tree.lookup(&deepest), Some(DEPTH));
    assert_eq!(tree.path_of(DEPTH), Some(deepest));
    assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
}

/// What is deeper came from other nodes or the database: it can be used, and removed.
#[test]
fn clients_make_no_deeper_names_than_allowed() {
    let mut tree = Tree::new();
    let stamp = Stamp {
        writer: 2,
        mtime: 1,
    };
    let deep = |depth: usize| "d/".repeat(depth);
    for depth in 1..=MAX_DEPTH {
        local(&mut tree, mkdir(&deep(depth)), 1).unwrap();
    }
    local(&mut tree, create("f"), 1).unwrap();
    local(&mut tree, mkdir("empty"), 1).unwrap();
    let file = format!("{}f", deep(MAX_DEPTH));
    for op in [
        create(&file),
        mkdir(&deep(MAX_DEPTH + 1)),
        rename("f", &file),
        rename("empty", &file),
    ] {
        assert_eq!(local(&mut tree, op, 1), Err(Error::TooDeep));
    }
    let beside = format!("{}f", deep(MAX_DEPTH - 1));
    local(&mut tree, create(&beside), 1).unwrap();
    // Another node may.
    tree.apply(&create(&file), stamp, 1).unwrap();
    local(&mut tree, write(&file, 0, b"x"), 2).unwrap();
    assert_eq!(tree.read(&p(&file)).unwrap()[..], *b"x");
    local(&mut tree, rename(&file, "out"), 2).unwrap();
    tree.apply(&mkdir(&file), stamp, 1).unwrap();
    local(&mut tree, delete(&file), 2).unwrap();
}
