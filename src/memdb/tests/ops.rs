//! Single operations: errors, effects, and what only local clients are refused.

use super::*;

fn tree_with(ops: &[Op]) -> Tree {
    let mut tree = Tree::load(std::iter::empty(), 0).unwrap().0;
    for op in ops {
        tree.apply(
            op,
            Stamp {
                writer: 0,
                mtime: 10,
            },
            10,
        )
        .unwrap();
    }
    tree
}

fn touched(change: &Change) -> Vec<String> {
    change
        .effects
        .touched
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn a_growing_truncate_stores_zeros() {
    let mut tree = tree_with(&[create("f")]);
    let change = local(&mut tree, truncate("f", 3), 20).unwrap();
    assert_eq!(change.put.unwrap().data.unwrap()[..], [0, 0, 0]);
    local(&mut tree, write("f", 5, b"x"), 20).unwrap();
    assert_eq!(tree.read(&p("f")).unwrap()[..], *b"\0\0\0\0\0x");
    local(&mut tree, truncate("f", 1), 20).unwrap();
    assert_eq!(tree.read(&p("f")).unwrap()[..], [0]);
    local(&mut tree, truncate("f", 1 << 20), 20).unwrap();
    assert_eq!(tree.read(&p("f")).unwrap().len(), 1 << 20);
}

#[test]
fn too_big_comes_before_everything_else() {
    let mut tree = tree_with(&[mkdir("d")]);
    let end = (1 << 20) + 1;
    for op in [
        truncate("missing/f", end),
        truncate("d", end),
        write("d", (1 << 32) + 2, b""),
        write("d", u64::MAX, b"xx"),
    ] {
        assert_eq!(local(&mut tree, op, 20), Err(Error::TooBig));
    }
}

#[test]
fn the_root_is_left_alone() {
    let mut tree = tree_with(&[create("f")]);
    assert_eq!(local(&mut tree, mkdir(""), 1), Err(Error::Access));
    assert_eq!(local(&mut tree, set_mtime("", 1), 1), Err(Error::Access));
    assert_eq!(local(&mut tree, delete(""), 1), Err(Error::Access));
    assert_eq!(local(&mut tree, rename("", "x"), 1), Err(Error::Access));
    assert_eq!(local(&mut tree, rename("f", ""), 1), Err(Error::NotEmpty));
}

#[test]
fn changes_say_what_they_touched() {
    let mut tree = tree_with(&[]);
    assert_eq!(touched(&local(&mut tree, mkdir("d"), 1).unwrap()), [""; 0]);
    assert_eq!(
        touched(&local(&mut tree, create("d/f"), 1).unwrap()),
        ["d/f"]
    );
    assert_eq!(
        touched(&local(&mut tree, write("d/f", 0, b"x"), 1).unwrap()),
        ["d/f"]
    );
    assert_eq!(
        touched(&local(&mut tree, set_mtime("d/f", 9), 1).unwrap()),
        ["d/f"]
    );
    let change = local(&mut tree, create("g"), 1).unwrap();
    let replaced = tree.lookup(&p("d/f")).unwrap();
    let moved = local(&mut tree, rename("g", "d/f"), 1).unwrap();
    assert_eq!(touched(&moved), ["g", "d/f"]);
    assert_eq!((moved.inode, moved.delete), (change.inode, Some(replaced)));
    let removed = moved.removed.unwrap();
    assert_eq!(
        (removed.inode, removed.path, removed.mtime),
        (replaced, p("d/f"), 9)
    );
    assert_eq!(removed.kind, Kind::File(Arc::from(&b"x"[..])));
    let gone = local(&mut tree, delete("d/f"), 1).unwrap();
    assert_eq!(
        (touched(&gone), gone.delete, gone.put),
        (vec!["d/f".into()], Some(change.inode), None)
    );
}

#[test]
fn set_mtime_goes_into_the_version_row() {
    let mut tree = tree_with(&[create("f")]);
    local(&mut tree, set_mtime("f", 2_000_000_000), 20).unwrap();
    assert_eq!(
        tree.root_row(),
        RootRow {
            version: 3,
            writer: 0,
            mtime: 2_000_000_000
        }
    );
}

#[test]
fn a_full_directory_is_not_renamed_and_its_target_stays() {
    let mut tree = tree_with(&[mkdir("full"), create("full/f"), mkdir("empty")]);
    let before = tree.index();
    assert_eq!(
        local(&mut tree, rename("full", "empty"), 1),
        Err(Error::NotEmpty)
    );
    assert_eq!(
        local(&mut tree, rename("empty", "full"), 1),
        Err(Error::NotEmpty)
    );
    assert_eq!(tree.index(), before);
    assert!(tree.lookup(&p("empty")).is_some());
}

#[test]
fn local_clients_make_no_file_where_guests_belong() {
    let mut tree = tree_with(&[mkdir("nodes"), mkdir("nodes/n"), create("f")]);
    for dir in ["qemu-server", "lxc", "openvz"] {
        let path = format!("nodes/n/{dir}");
        assert_eq!(local(&mut tree, create(&path), 1), Err(Error::Access));
        assert_eq!(local(&mut tree, rename("f", &path), 1), Err(Error::Access));
        assert_eq!(
            local(&mut tree, create(&format!("nodes/x/{dir}")), 1),
            Err(Error::NotFound)
        );
    }
    // Peers may; then it can be replaced and removed.
    tree.apply(
        &create("nodes/n/lxc"),
        Stamp {
            writer: 2,
            mtime: 1,
        },
        1,
    )
    .unwrap();
    assert_eq!(
        local(&mut tree, create("nodes/n/lxc"), 1),
        Err(Error::Exists)
    );
    assert_eq!(
        local(&mut tree, create("nodes/n/lxc/1.conf"), 1),
        Err(Error::NotADirectory)
    );
    local(&mut tree, write("nodes/n/lxc", 0, b"x"), 1).unwrap();
    local(&mut tree, rename("f", "nodes/n/lxc"), 1).unwrap();
    local(&mut tree, delete("nodes/n/lxc"), 1).unwrap();
    local(&mut tree, mkdir("nodes/n/lxc"), 1).unwrap();
    local(&mut tree, create("nodes/-/lxc"), 1).unwrap_err();
}

#[test]
fn local_clients_move_no_directory_into_itself() {
    let mut tree = tree_with(&[mkdir("d")]);
    assert_eq!(local(&mut tree, rename("d", "d/d"), 1), Err(Error::Access));
    assert_eq!(local(&mut tree, rename("d", ".."), 1), Err(Error::Access));
    // From a peer: the entry stays, in all digests, but nobody can reach it.
    let change = tree
        .apply(
            &rename("d", "d/e"),
            Stamp {
                writer: 2,
                mtime: 1,
            },
            1,
        )
        .unwrap();
    assert_eq!(change.put.unwrap().parent, change.inode);
    assert_eq!((tree.len(), tree.path_of(change.inode)), (2, None));
    assert_eq!(tree.lookup(&p("d")), None);
}

#[test]
fn guests_follow_their_files() {
    let node = |tree: &Tree| tree.guest(100).map(|guest| guest.node.to_string());
    let dirs = [
        "nodes",
        "nodes/a",
        "nodes/a/qemu-server",
        "nodes/b",
        "nodes/b/qemu-server",
    ];
    let mut tree = tree_with(&dirs.map(mkdir));
    let (a, b) = (
        "nodes/a/qemu-server/100.conf",
        "nodes/b/qemu-server/100.conf",
    );
    let set = |node: &str| GuestEvent::Set {
        vmid: 100,
        node: node.into(),
        kind: GuestType::Qemu,
    };
    let gone = GuestEvent::Remove { vmid: 100 };

    assert_eq!(
        local(&mut tree, create(a), 1).unwrap().effects.guests,
        [set("a")]
    );
    assert_eq!(
        local(&mut tree, write(a, 0, b"x"), 1)
            .unwrap()
            .effects
            .guests,
        [set("a")]
    );
    assert_eq!(
        local(&mut tree, set_mtime(a, 5), 1).unwrap().effects.guests,
        []
    );
    assert_eq!(local(&mut tree, create(b), 1), Err(Error::Exists));

    // A directory of that name is nobody's config: it neither registers nor removes anything.
    assert_eq!(local(&mut tree, mkdir(b), 1).unwrap().effects.guests, []);
    assert_eq!(local(&mut tree, delete(b), 1).unwrap().effects.guests, []);
    assert_eq!(node(&tree).as_deref(), Some("a"));

    // Migration, and a replacement by way of a temporary file.
    let events = local(&mut tree, rename(a, b), 1).unwrap().effects.guests;
    assert_eq!(
        (events, node(&tree).as_deref()),
        (vec![gone.clone(), set("b")], Some("b"))
    );
    local(&mut tree, create("tmp"), 1).unwrap();
    assert_eq!(local(&mut tree, rename("tmp", a), 1), Err(Error::Exists));
    assert_eq!(
        local(&mut tree, rename("tmp", b), 1)
            .unwrap()
            .effects
            .guests,
        [set("b")]
    );
    assert_eq!(
        local(&mut tree, rename(b, "tmp"), 1)
            .unwrap()
            .effects
            .guests,
        std::slice::from_ref(&gone)
    );
    assert_eq!(node(&tree), None);
    local(&mut tree, rename("tmp", a), 1).unwrap();
    assert_eq!(
        local(&mut tree, delete(a), 1).unwrap().effects.guests,
        [gone]
    );
}

#[test]
fn locks_can_be_renewed_by_their_owner_only() {
    let mut tree = tree_with(&["priv", "priv/lock", "priv/lock/l"].map(mkdir));
    let by = |writer, mtime| (Stamp { writer, mtime }, set_mtime("priv/lock/l", mtime));
    let (stamp, op) = by(1, 50);
    assert_eq!(tree.apply(&op, stamp, 50), Err(Error::Access));
    let (stamp, op) = by(0, 9);
    assert_eq!(tree.apply(&op, stamp, 50), Err(Error::Access));
    let (stamp, op) = by(0, 10);
    assert!(tree.apply(&op, stamp, 50).is_ok());
    assert_eq!(
        local(&mut tree, rename("priv/lock/l", "x"), 1),
        Err(Error::Access)
    );
    // Moved in from elsewhere: allowed, with no age yet.
    local(&mut tree, mkdir("m"), 60).unwrap();
    local(&mut tree, rename("m", "priv/lock/m"), 60).unwrap();
}

#[test]
fn locks_expire_after_more_than_120_seconds() {
    let unlock = || set_mtime("priv/lock/l", 0);
    let mut tree = tree_with(&["priv", "priv/lock", "priv/lock/l"].map(mkdir));
    assert_eq!(local(&mut tree, unlock(), 130), Err(Error::Access));
    // Renewal starts anew.
    local(&mut tree, set_mtime("priv/lock/l", 20), 100).unwrap();
    assert_eq!(local(&mut tree, unlock(), 220), Err(Error::Access));
    let change = local(&mut tree, unlock(), 221).unwrap();
    assert!(change.delete.is_some());
    assert_eq!(local(&mut tree, unlock(), 222), Err(Error::NotFound));

    // With something in it, it stays; a deeper directory is no lock but can be unlocked, too.
    local(&mut tree, mkdir("priv/lock/l"), 300).unwrap();
    local(&mut tree, mkdir("priv/lock/l/deep"), 300).unwrap();
    assert_eq!(local(&mut tree, unlock(), 500), Err(Error::NotEmpty));
    let deep = set_mtime("priv/lock/l/deep", 0);
    assert!(local(&mut tree, deep.clone(), 500).unwrap().put.is_some());
    assert!(
        local(&mut tree, deep.clone(), 501).unwrap().put.is_some(),
        "changed: age 0 again"
    );

    // A plain file in there, and the directory itself, are nothing special.
    local(&mut tree, create("priv/lock/file"), 600).unwrap();
    assert!(
        local(&mut tree, set_mtime("priv/lock/file", 0), 900)
            .unwrap()
            .put
            .is_some()
    );
    assert!(
        local(&mut tree, set_mtime("priv/lock", 0), 900)
            .unwrap()
            .put
            .is_some()
    );
}

#[test]
fn lock_ages_survive_a_sync_if_the_lock_is_the_same() {
    let paths = ["priv", "priv/lock", "priv/lock/same", "priv/lock/renewed"];
    let mut old = tree_with(&paths.map(mkdir));
    let mut new = old.clone();
    new.apply(
        &set_mtime("priv/lock/renewed", 11),
        Stamp {
            writer: 0,
            mtime: 11,
        },
        11,
    )
    .unwrap();
    new.rebuild_locks_keeping(&old, 1000);
    let expired = |tree: &mut Tree, path: &str| {
        let path = p(path);
        let checksum = tree.lock_checksum(tree.lookup(&path).unwrap()).unwrap();
        tree.lock_expired(&path, &checksum, 1001)
    };
    assert!(expired(&mut new, "priv/lock/same"));
    assert!(!expired(&mut new, "priv/lock/renewed"));
    old.rebuild_locks(1000);
    assert!(!expired(&mut old, "priv/lock/same"));
}

#[test]
fn the_version_never_wraps_and_no_row_is_taken_over() {
    let row = |inode, version| LoadRow {
        inode,
        version,
        type_code: 8,
        name: Some(Arc::from(&b"f"[..])),
        ..LoadRow::default()
    };
    let version = |version| {
        model::version_row(RootRow {
            version,
            writer: 0,
            mtime: 0,
        })
    };
    let mut tree = Tree::load([version(u64::MAX), row(5, 5)].into_iter(), 0)
        .unwrap()
        .0;
    assert_eq!(local(&mut tree, create("g"), 1), Err(Error::Io));
    assert_eq!(local(&mut tree, delete("f"), 1), Err(Error::Io));
    let mut tree = Tree::load([row(-5, 5), version((-6i64) as u64)].into_iter(), 0)
        .unwrap()
        .0;
    assert_eq!(local(&mut tree, create("g"), 1).unwrap().inode as i64, -4);
    assert_eq!(tree.len(), 3);
    // The last number is taken: there is no free one.
    let mut tree = Tree::load([row(-1, 5), version(u64::MAX - 1)].into_iter(), 0)
        .unwrap()
        .0;
    assert_eq!(local(&mut tree, create("g"), 1), Err(Error::Io));
    assert_eq!(tree.len(), 2);
    assert!(tree.lookup(&p("g")).is_none());
}

/// A version row that lags behind the entries is kept: it counts in a cluster.
#[test]
fn numbers_in_use_are_left_out() {
    let rows = [2, 5, 6, 9].map(|inode| LoadRow {
        inode,
        version: 30,
        type_code: 8,
        name: Some(Arc::from(format!("f{inode}").as_bytes())),
        ..LoadRow::default()
    });
    let root = RootRow {
        version: 3,
        writer: 1,
        mtime: 1,
    };
    let rows = rows.into_iter().chain([model::version_row(root)]);
    let (mut tree, notes) = Tree::load(rows, 0).unwrap();
    assert_eq!(
        notes,
        [LoadNote::VersionBehind {
            stored: Some(3),
            highest: 30
        }]
    );
    assert_eq!(tree.root_row(), root);
    let made = ["a", "b", "c", "d"].map(|name| local(&mut tree, create(name), 1).unwrap().inode);
    assert_eq!(made, [4, 7, 8, 10]);
    // Only a new entry needs a number of its own.
    let changed = local(&mut tree, delete("a"), 1).unwrap();
    assert_eq!(changed.root.version, 11);
}

#[test]
fn the_first_start_imports_a_file_as_the_reference_does() {
    let mut tree = tree_with(&[]);
    let changes = tree.import(&p("corosync.conf"), b"totem", 99).unwrap();
    assert_eq!(
        changes[1].root,
        RootRow {
            version: 3,
            writer: 0,
            mtime: 99
        }
    );
    assert_eq!((changes[0].inode, changes[1].inode, tree.len()), (2, 2, 2));
    assert_eq!(tree.read(&p("corosync.conf")).unwrap()[..], *b"totem");
    assert_eq!(
        tree.import(&p("corosync.conf"), b"", 99),
        Err(Error::Exists)
    );
    assert_eq!(
        tree.import(&p("big"), &vec![0; (1 << 20) + 1], 99),
        Err(Error::TooBig)
    );
}
