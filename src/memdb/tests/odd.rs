//! Databases that ordinary clients of a C node can leave behind.

use super::*;

/// A row; `kind` is 4 or 8.
fn row(inode: i64, parent: i64, version: i64, kind: i64, name: &str) -> LoadRow {
    LoadRow {
        inode,
        parent,
        version,
        type_code: kind,
        name: Some(Arc::from(name.as_bytes())),
        data: (kind == 8).then(|| Arc::from(format!("data of {inode}").as_bytes())),
        ..LoadRow::default()
    }
}

fn load(rows: Vec<LoadRow>) -> (Tree, Vec<String>) {
    let highest = rows.iter().flat_map(|row| [row.inode, row.version]).max();
    let root = model::version_row(RootRow {
        version: highest.unwrap_or(1) as u64,
        writer: 0,
        mtime: 0,
    });
    let (tree, notes) = Tree::load(rows.into_iter().chain([root]), 0).unwrap();
    (tree, notes.iter().map(ToString::to_string).collect())
}

/// Loads what a tree would have stored.
fn reload(tree: &Tree) -> Tree {
    let rows = tree
        .iter()
        .map(|(inode, _)| model::load_row(&tree.row(inode).unwrap()));
    Tree::load(rows.chain([model::version_row(tree.root_row())]), 0)
        .unwrap()
        .0
}

/// Who has which name, on a node that lived through it all and on one that just started.
fn names(tree: &Tree) -> Vec<(String, Inode)> {
    let of = |tree: &Tree| -> Vec<_> {
        tree.iter()
            .map(|(i, _)| (tree.path_of(i).unwrap().to_string(), i))
            .collect()
    };
    assert_eq!(of(tree), of(&reload(tree)));
    of(tree)
}

#[test]
fn the_newest_has_the_name_and_the_others_wait_for_it() {
    let rows = vec![
        row(2, 0, 9, 8, "f"),
        row(3, 0, 7, 8, "f"),
        row(4, 0, 8, 4, "f"),
    ];
    let (mut tree, notes) = load(rows);
    assert_eq!(notes.len(), 2, "{notes:#?}");
    let want = [("f", 2), ("f.duplicate-3", 3), ("f.duplicate-4", 4)];
    assert_eq!(
        names(&tree),
        want.map(|(name, inode)| (name.to_owned(), inode))
    );
    assert_eq!(tree.read(&p("f.duplicate-3")).unwrap()[..], *b"data of 3");
    assert!(tree.is_alias(3) && !tree.is_alias(2));

    // Changing the owner changes nothing about that; changing the others is not possible.
    local(&mut tree, write("f", 0, b"new"), 1).unwrap();
    for op in [
        write("f.duplicate-3", 0, b"x"),
        set_mtime("f.duplicate-3", 1),
    ] {
        assert_eq!(local(&mut tree, op, 1), Err(Error::Access));
    }
    assert_eq!(
        local(&mut tree, create("f.duplicate-3"), 1),
        Err(Error::Exists)
    );
    assert_eq!(tree.row(3).unwrap().name[..], *b"f");
    assert_eq!(names(&tree)[0], ("f".to_owned(), 2));

    // The next in age takes over, at once and everywhere.
    assert_eq!(local(&mut tree, delete("f"), 1).unwrap().delete, Some(2));
    assert_eq!(
        names(&tree),
        [("f.duplicate-3".to_owned(), 3), ("f".to_owned(), 4)]
    );
    local(&mut tree, rename("f", "dir"), 1).unwrap();
    assert_eq!(names(&tree), [("f".to_owned(), 3), ("dir".to_owned(), 4)]);
    assert!(!tree.is_alias(3));
}

#[test]
fn a_duplicate_can_be_moved_and_removed_by_its_alias() {
    let (mut tree, _) = load(vec![
        row(2, 0, 9, 8, "f"),
        row(3, 0, 7, 8, "f"),
        row(4, 0, 8, 8, "f"),
    ]);
    let moved = local(&mut tree, rename("f.duplicate-3", "mine"), 1)
        .unwrap()
        .put
        .unwrap();
    assert_eq!((&moved.name[..], moved.inode), (&b"mine"[..], 3));
    let gone = local(&mut tree, delete("f.duplicate-4"), 1).unwrap();
    assert_eq!(
        (gone.delete, gone.removed.unwrap().path),
        (Some(4), p("f.duplicate-4"))
    );
    assert_eq!(names(&tree), [("f".to_owned(), 2), ("mine".to_owned(), 3)]);
}

#[test]
fn the_name_goes_to_whoever_replaces_the_owner() {
    let (mut tree, _) = load(vec![
        row(2, 0, 9, 8, "f"),
        row(3, 0, 7, 8, "f"),
        row(4, 0, 8, 8, "t"),
    ]);
    local(&mut tree, rename("t", "f"), 1).unwrap();
    assert_eq!(
        names(&tree),
        [("f.duplicate-3".to_owned(), 3), ("f".to_owned(), 4)]
    );
}

#[test]
fn an_alias_avoids_names_that_exist() {
    let (tree, _) = load(vec![
        row(2, 0, 9, 8, "f"),
        row(3, 0, 7, 8, "f"),
        row(4, 0, 8, 8, "f.duplicate-3"),
    ]);
    assert_eq!(tree.lookup(&p("f.duplicate-3")), Some(4));
    assert_eq!(tree.lookup(&p("f.duplicate-3~")), Some(3));
}

#[test]
fn duplicate_directories_keep_their_children() {
    let (mut tree, _) = load(vec![
        row(2, 0, 9, 4, "d"),
        row(3, 0, 7, 4, "d"),
        row(4, 3, 8, 8, "in-older"),
        row(5, 2, 8, 8, "in-newer"),
    ]);
    assert_eq!(tree.path_of(4), Some(p("d.duplicate-3/in-older")));
    assert_eq!(
        local(&mut tree, delete("d.duplicate-3"), 1),
        Err(Error::NotEmpty)
    );
    local(&mut tree, rename("d.duplicate-3/in-older", "d/in-older"), 1).unwrap();
    local(&mut tree, delete("d.duplicate-3"), 1).unwrap();
    assert_eq!(tree.len(), 4);
}

/// The rows of two configs of VMID 100, that of lxc newer.
fn duplicate_guest() -> Vec<LoadRow> {
    vec![
        row(2, 0, 2, 4, "nodes"),
        row(3, 2, 3, 4, "n"),
        row(4, 3, 4, 4, "qemu-server"),
        row(5, 3, 5, 4, "lxc"),
        row(6, 4, 6, 8, "100.conf"),
        row(7, 5, 7, 8, "100.conf"),
    ]
}

#[test]
fn of_two_configs_the_newest_counts() {
    let (mut tree, notes) = load(duplicate_guest());
    assert!(
        notes[0].starts_with("detected duplicate VMID 100"),
        "{notes:?}"
    );
    let kind = |tree: &Tree| tree.guest(100).map(|guest| guest.kind);
    assert_eq!(kind(&tree), Some(GuestType::Lxc));
    assert_eq!(
        local(&mut tree, write("nodes/n/qemu-server/100.conf", 0, b""), 1),
        Err(Error::Exists)
    );

    // The other one can be removed without a word to anybody ...
    let mut one = tree.clone();
    let change = local(&mut one, delete("nodes/n/qemu-server/100.conf"), 1).unwrap();
    assert_eq!(
        (change.effects.guests, kind(&one)),
        (vec![], Some(GuestType::Lxc))
    );
    // ... and takes over if it is the first one that goes.
    let change = local(&mut tree, delete("nodes/n/lxc/100.conf"), 1).unwrap();
    assert_eq!(
        change.effects.guests,
        [
            GuestEvent::Remove { vmid: 100 },
            GuestEvent::Set {
                vmid: 100,
                node: "n".into(),
                kind: GuestType::Qemu
            }
        ]
    );
    assert_eq!(kind(&tree), Some(GuestType::Qemu));
}

#[test]
fn entries_nobody_can_reach_stay_and_keep_their_directory() {
    let (mut tree, notes) = load(vec![
        row(2, 0, 2, 4, "d"),
        row(3, 2, 3, 8, "a/b"),
        row(4, 2, 4, 8, ".."),
        row(5, 6, 5, 4, "x"),
        row(6, 5, 6, 4, "y"),
        row(7, 8, 7, 8, "in-file"),
        row(8, 0, 8, 8, "file"),
    ]);
    assert_eq!(notes.len(), 5, "{notes:#?}");
    assert!(notes[0].contains("'a/b' (inode = 0000000000000003, parent = 0000000000000002)"));
    assert_eq!((tree.len(), tree.index().entries.len()), (8, 8));
    for inode in [3, 4, 5, 6, 7] {
        assert_eq!(tree.path_of(inode), None, "{inode}");
    }
    assert!(
        !Tree::servable_name(b"a/b") && !Tree::servable_name(b"..") && !Tree::servable_name(b"")
    );
    // Without it, the next start would find rows without a directory.
    assert_eq!(local(&mut tree, delete("d"), 1), Err(Error::NotEmpty));
}

#[test]
fn ten_thousand_guests_fit_into_a_few_megabytes() {
    // What one guest costs: entry, key, names, without the content itself.
    let entry = size_of::<(Inode, Entry)>() + size_of::<(Arc<[u8]>, Inode)>();
    assert!(entry <= 120, "{entry} bytes");
}

#[test]
fn a_directory_that_lost_its_name_keeps_its_secrets() {
    let (tree, _) = load(vec![
        row(2, 0, 2, 4, "priv"),
        row(3, 2, 3, 8, "key"),
        row(4, 0, 4, 4, "nodes"),
        row(5, 4, 5, 4, "n1"),
        row(6, 5, 6, 4, "priv"),
        row(7, 6, 7, 8, "key"),
        row(8, 5, 8, 4, "priv"),
        row(9, 0, 9, 4, "nodes"),
        row(10, 0, 10, 4, "priv"),
    ]);
    for (inode, path) in [
        (3, "priv.duplicate-2/key"),
        (7, "nodes.duplicate-4/n1/priv.duplicate-6/key"),
    ] {
        let served = tree.path_of(inode).unwrap();
        assert_eq!(served.to_string(), path);
        assert!(served.is_private());
    }
    for public in [
        "priv.bak/key",
        "nodes.duplicate-4/n1/key",
        "x.duplicate-2/priv",
    ] {
        assert!(!TreePath::new(public.as_bytes()).is_private(), "{public}");
    }
}
