//! What the C daemon cannot take: a truncate that lets an empty file grow.
#![forbid(unsafe_code)]

use crate::memdb::{Op, Tree};

/// A growing truncate as a write of its last zero byte. Nodes that run the C daemon would record
/// the new size of an *empty* file without any content and crash when it is read; and it may have
/// become empty when this arrives (filesystem.md 6).
pub(super) fn without_growing_truncate(op: Op, tree: &Tree) -> Op {
    match op {
        Op::Write {
            path,
            offset,
            data,
            truncate,
        } if data.is_empty() && offset > 0 => {
            let size = tree.read(&path).map(|content| content.len() as u64);
            if size.is_some_and(|size| offset > size) {
                Op::Write {
                    path,
                    offset: offset - 1,
                    data: vec![0],
                    truncate,
                }
            } else {
                Op::Write {
                    path,
                    offset,
                    data,
                    truncate,
                }
            }
        }
        other => other,
    }
}
