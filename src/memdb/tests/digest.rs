//! Index and digests (database.md 7).

use sha2::{Digest as _, Sha256};

use super::*;

/// A database as the first start leaves it.
fn fresh() -> Tree {
    Tree::load(std::iter::empty(), 0).unwrap().0
}

#[test]
fn check_value_of_the_reference() {
    let mut tree = fresh();
    for i in 0..100 {
        let path = format!("testfile{i}");
        local(&mut tree, create(&path), 1234).unwrap();
        local(&mut tree, write(&path, 0, &[0; 32768]), 1234).unwrap();
    }
    let index = tree.encode_index();
    assert_eq!(
        (index.len(), tree.root_row().version, tree.len()),
        (4072, 201, 101)
    );
    assert_eq!(
        hex(&Sha256::digest(&index)),
        "913fd95015af9d93f10dd51ba2a7bb11351bcfe040be21e95fcba834adc3ec10"
    );
}

#[test]
fn index_survives_decoding() {
    let mut tree = fresh();
    for path in ["a", "b", "c"] {
        local(&mut tree, create(path), 77).unwrap();
    }
    let bytes = tree.encode_index();
    let index = Index::decode(&bytes).unwrap();
    assert_eq!(index, tree.index());
    assert_eq!(
        (index.last_inode, index.entries.len(), index.root.mtime),
        (4, 4, 77)
    );
}

#[test]
fn decoding_refuses_everything_else() {
    let mut tree = fresh();
    for path in ["a", "b"] {
        local(&mut tree, create(path), 77).unwrap();
    }
    let good = tree.encode_index();
    for len in 0..good.len() {
        assert!(Index::decode(&good[..len]).is_err(), "cut to {len}");
    }
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Index::decode(&bytes)
    };
    assert!(matches!(with(8, 9), Err(IndexError::LastInode(9))));
    assert!(matches!(with(24, 2), Err(IndexError::Count { .. })));
    assert!(matches!(with(28, 1), Err(IndexError::Length { .. })));
    assert!(matches!(with(32, 1), Err(IndexError::NoRoot)));
    assert!(matches!(with(72, 0), Err(IndexError::Order(0))));
    let mut huge = good[..32].to_vec();
    huge[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    huge[28..32].copy_from_slice(&32u32.to_le_bytes());
    assert!(matches!(
        Index::decode(&huge),
        Err(IndexError::Count { .. })
    ));
}

#[test]
fn lock_checksum_differs_from_index_digest() {
    let mut tree = fresh();
    local(&mut tree, mkdir("d"), 5).unwrap();
    let inode = tree.lookup(&p("d")).unwrap();
    assert_ne!(tree.lock_checksum(inode), tree.entry_digest(inode));
    assert_eq!(tree.lock_checksum(99), None);
}
