//! Tests of the tree.

mod digest;
mod large;
pub(crate) mod model;
mod odd;
mod ops;

use std::sync::Arc;

use super::*;

/// A path.
fn p(path: &str) -> TreePath {
    TreePath::new(path.as_bytes())
}

/// Applies as a client in local mode would at time `now`.
fn local(tree: &mut Tree, op: Op, now: u32) -> Result<Change, Error> {
    tree.apply_local(&op, now, now)
}

fn create(path: &str) -> Op {
    Op::Create { path: p(path) }
}

fn mkdir(path: &str) -> Op {
    Op::Mkdir { path: p(path) }
}

fn write(path: &str, offset: u64, data: &[u8]) -> Op {
    Op::Write {
        path: p(path),
        offset,
        data: data.to_vec(),
        truncate: false,
    }
}

fn truncate(path: &str, size: u64) -> Op {
    Op::Write {
        path: p(path),
        offset: size,
        data: Vec::new(),
        truncate: true,
    }
}

fn delete(path: &str) -> Op {
    Op::Delete { path: p(path) }
}

fn rename(from: &str, to: &str) -> Op {
    Op::Rename {
        from: p(from),
        to: p(to),
    }
}

fn set_mtime(path: &str, mtime: u32) -> Op {
    Op::SetMtime {
        path: p(path),
        mtime,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
