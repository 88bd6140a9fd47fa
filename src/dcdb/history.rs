//! The last own changes, as long as it is not known that others have them: they can be taken back.
//!
//! A node that loses all others at the moment it sends something has changes that the others may
//! never get ([`dfsm`](crate::dfsm), ADR 005). Kept, they would count in its version, by which the
//! next synchronisation chooses whose data are the newer ones.
//!
//! A change of another node ends this: its client may have been told of it because this node has it,
//! and whoever sent it had what came before.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::sync::{Outcome, SyncCommit, rows_of, successor};
use crate::memdb::{Change, Inode, LoadError, LoadRow, Op, ROOT_INODE, RootRow, Row, Tree};

/// Memory that is kept for this, in bytes. What is beyond cannot be taken back; that much would have to
/// come back in one turn of corosync's token, because what is sent after it confirms it.
const MAX_BYTES: usize = 32 << 20;
/// What an entry without content takes: its map has room for eleven rows.
const ENTRY_BYTES: usize = 1 << 10;

/// What a change touches, as it was before. No row: there was none.
#[derive(Debug)]
pub(super) struct Before {
    root: RootRow,
    rows: BTreeMap<Inode, Option<Row>>,
}

impl Before {
    pub fn new(op: &Op, tree: &Tree) -> Self {
        let paths = match op {
            Op::Rename { from, to } => [Some(from), Some(to)],
            Op::Create { path }
            | Op::Mkdir { path }
            | Op::Write { path, .. }
            | Op::Delete { path }
            | Op::SetMtime { path, .. } => [Some(path), None],
        };
        let inodes = paths
            .into_iter()
            .flatten()
            .filter_map(|path| tree.lookup(path))
            .filter(|inode| *inode != ROOT_INODE);
        Before {
            root: tree.root_row(),
            rows: inodes.map(|inode| (inode, tree.row(inode))).collect(),
        }
    }

    fn bytes(&self) -> usize {
        let data = |row: &Row| row.name.len() + row.data.as_ref().map_or(0, |data| data.len());
        let rows = self.rows.values().flatten();
        ENTRY_BYTES + rows.map(data).sum::<usize>()
    }
}

/// The last own changes, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Number of all changes ever applied.
    count: u64,
    /// The last ones of them.
    before: VecDeque<Before>,
    bytes: usize,
}

impl History {
    /// Number of all changes ever applied.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.before.is_empty()
    }

    /// A change was applied. Without `before` it stays for good, and so does what is older.
    pub fn push(&mut self, before: Option<Before>, change: &Change) {
        self.count += 1;
        let Some(mut before) = before else {
            return self.clear();
        };
        before.rows.entry(change.inode).or_insert(None);
        self.bytes += before.bytes();
        self.before.push_back(before);
        while self.bytes > MAX_BYTES {
            self.pop();
        }
    }

    /// The first `count` changes stay for good.
    pub fn keep(&mut self, count: u64) {
        while !self.before.is_empty() && self.count - (self.before.len() as u64) < count {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(before) = self.before.pop_front() {
            self.bytes -= before.bytes();
        }
    }

    pub fn clear(&mut self) {
        self.before.clear();
        self.bytes = 0;
    }

    /// The tree without these changes, and what has to be stored; they are forgotten.
    pub fn take_back(&mut self, tree: &Tree, now: u32) -> Result<Outcome, LoadError> {
        let mut rows = rows_of(tree, |_| true);
        let mut root = tree.root_row();
        let mut touched = BTreeSet::new();
        self.bytes = 0;
        for before in std::mem::take(&mut self.before).into_iter().rev() {
            self.count -= 1;
            root = before.root;
            for (inode, row) in before.rows {
                touched.insert(inode);
                match row {
                    Some(row) => rows.insert(inode as i64, LoadRow::from(&row)),
                    None => rows.remove(&(inode as i64)),
                };
            }
        }
        let (result, notes) = successor(tree, rows, root, now)?;
        let (put, gone): (Vec<_>, Vec<_>) = touched
            .into_iter()
            .map(|inode| (inode, result.row(inode)))
            .partition(|(_, row)| row.is_some());
        let commit = SyncCommit {
            delete: gone
                .into_iter()
                .map(|(inode, _)| inode)
                .filter(|inode| tree.get(*inode).is_some())
                .collect(),
            put: put.into_iter().filter_map(|(_, row)| row).collect(),
            root: Some(root),
        };
        Ok(Outcome {
            tree: result,
            commit,
            notes,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::dcdb::sync::version_row;
    use crate::dcdb::{Action, Dcdb, Event, Write, wire::Message};
    use crate::dfsm::{Application, Ctx, Delivery, MemberId, Verdict};
    use crate::memdb::TreePath;

    const ME: MemberId = MemberId { nodeid: 1, pid: 10 };
    const YOU: MemberId = MemberId { nodeid: 2, pid: 20 };

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes())
    }

    fn content(text: &str, data: &[u8]) -> Op {
        Op::Write {
            path: path(text),
            offset: 0,
            data: data.to_vec(),
            truncate: true,
        }
    }

    /// One operation of each kind, replacements included.
    fn operations() -> Vec<Op> {
        let create = |text| Op::Create { path: path(text) };
        let rename = |from, to| Op::Rename {
            from: path(from),
            to: path(to),
        };
        vec![
            Op::Mkdir { path: path("d") },
            create("d/a"),
            content("d/a", b"one"),
            create("b"),
            content("b", b"two"),
            content("d/a", b"three"),
            rename("b", "d/a"),
            Op::Mkdir { path: path("e") },
            rename("e", "d/f"),
            Op::SetMtime {
                path: path("d/a"),
                mtime: 77,
            },
            Op::Delete { path: path("d/f") },
            rename("d/a", "c"),
            Op::Delete { path: path("d") },
            create("d"),
            content("d", b"now a file"),
        ]
    }

    /// The database and its rows on disk.
    struct Bench {
        dcdb: Dcdb<Tree>,
        rows: BTreeMap<Inode, Row>,
        root: RootRow,
    }

    impl Bench {
        fn new() -> Self {
            let root = RootRow {
                version: 1,
                writer: 0,
                mtime: 50,
            };
            let rows = std::iter::once(version_row(root));
            let (tree, _) = Tree::load(rows, 100).unwrap();
            let mut dcdb = Dcdb::new(tree);
            dcdb.event(Event::Quorate(true), &mut Ctx::new(0, ME, true));
            Bench {
                dcdb,
                rows: BTreeMap::new(),
                root,
            }
        }

        fn apply(&mut self, from: MemberId, op: Op) {
            let mut ctx = Ctx::new(100, ME, true);
            let message = Message::Op(op).encode();
            let delivery = Delivery {
                from,
                subtype: message.subtype,
                time: 100 + self.dcdb.changes() as u32,
                payload: &message.payload,
            };
            let verdict = self.dcdb.deliver(delivery, &mut ctx);
            assert!(matches!(verdict, Verdict::Applied(Ok(_))), "{verdict:?}");
            self.store(ctx.take().1);
        }

        fn store(&mut self, actions: Vec<Action>) {
            for action in actions {
                let Action::Store(write) = action else {
                    continue;
                };
                let (delete, put, root) = match *write {
                    Write::Change(c) => (Vec::from_iter(c.delete), Vec::from_iter(c.put), c.root),
                    Write::Sync(sync) => (sync.delete, sync.put, sync.root.unwrap()),
                };
                for inode in delete {
                    self.rows.remove(&inode).unwrap();
                }
                self.rows
                    .extend(put.into_iter().map(|row| (row.inode, row)));
                self.root = root;
            }
        }

        fn take_back(&mut self) -> Vec<Action> {
            let mut ctx = Ctx::new(100, ME, true);
            self.dcdb.take_back(&mut ctx);
            let (_, actions) = ctx.take();
            self.store(actions.clone());
            actions
        }

        /// Index of the tree, which has to be that of the disk.
        fn index(&self) -> Vec<u8> {
            let rows = self.rows.values().map(LoadRow::from);
            let rows = std::iter::once(version_row(self.root)).chain(rows);
            let (disk, _) = Tree::load(rows, 100).unwrap();
            let index = self.dcdb.host().encode_index();
            assert_eq!(disk.encode_index(), index, "disk and memory");
            index
        }
    }

    #[test]
    fn any_number_of_changes_can_be_taken_back() {
        for kept in 0..=operations().len() {
            let mut bench = Bench::new();
            let mut ops = operations().into_iter();
            for op in ops.by_ref().take(kept) {
                bench.apply(ME, op);
            }
            let index = bench.index();
            ops.clone().for_each(|op| bench.apply(ME, op));
            bench.dcdb.keep(kept as u64);
            bench.take_back();
            assert_eq!(bench.index(), index, "{kept}");
            assert_eq!(bench.dcdb.changes(), kept as u64);
            // And done once more.
            ops.for_each(|op| bench.apply(ME, op));
            bench.index();
        }
    }

    #[test]
    fn changes_of_others_stay_and_what_came_before_them() {
        let mut bench = Bench::new();
        for (i, op) in operations().into_iter().enumerate() {
            bench.apply(if i == 4 { YOU } else { ME }, op);
            if i == 4 {
                let index = bench.index();
                assert_eq!(bench.take_back(), []);
                assert_eq!(bench.index(), index);
            }
        }
        bench.take_back();
        assert_eq!(bench.dcdb.changes(), 5);
    }

    #[test]
    fn what_is_too_much_stays() {
        let mut bench = Bench::new();
        bench.apply(ME, Op::Create { path: path("f") });
        let data = vec![b'x'; 1 << 20];
        for _ in 0..40 {
            bench.apply(ME, content("f", &data));
        }
        bench.take_back();
        let left = bench.dcdb.changes();
        assert!((8..12).contains(&left), "{left}");
        bench.index();
    }
}
