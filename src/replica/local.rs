//! Local mode: a change is applied at once and answered when it is in the database.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;

use super::announce::Announcer;
use super::{Applied, Done, Observer, Replica, SharedTree};
use crate::memdb::{Change, Effects, Error, Inode, Op, Tree};
use crate::store::StoreHandle;

/// Wall clock in seconds (low 32 bits).
pub type Clock = Arc<dyn Fn() -> u32 + Send + Sync>;
/// Does anybody have to be told of these effects?
pub type Relevant = Arc<dyn Fn(&Effects) -> bool + Send + Sync>;

/// What [`LocalReplica`] is made of.
pub struct Parts {
    pub tree: SharedTree,
    pub store: StoreHandle,
    pub announcer: Arc<Announcer>,
    pub relevant: Relevant,
    pub clock: Clock,
    /// False: a cluster node without corosync. It serves reads and refuses every change.
    pub quorate: bool,
}

/// The replica of a node that is alone.
pub struct LocalReplica {
    parts: Parts,
    quorate: AtomicBool,
    observers: Mutex<Vec<Arc<dyn Observer>>>,
}

impl LocalReplica {
    pub fn new(parts: Parts) -> Self {
        let quorate = AtomicBool::new(parts.quorate);
        LocalReplica { parts, quorate, observers: Mutex::new(Vec::new()) }
    }

    /// `observer` sees every change from now on.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers.lock().push(observer);
    }

    /// From now on every change is refused with EACCES (shutdown).
    pub fn close(&self) {
        self.quorate.store(false, SeqCst);
    }

    /// Applies and queues for the store in one go under the tree's lock, so that the database gets
    /// the changes in the order in which memory got them.
    fn apply(&self, op: &Op, done: Done) {
        let now = (self.parts.clock)();
        let mut tree = self.parts.tree.write();
        let mut change = match tree.apply_local(op, now) {
            Ok(change) => change,
            Err(err) => {
                drop(tree);
                return done(Err(err));
            }
        };
        for observer in self.observers.lock().iter() {
            observer.applied(&change);
        }
        let effects = std::mem::take(&mut change.effects);
        let announce = (self.parts.relevant)(&effects).then(|| Announcement {
            announcer: self.parts.announcer.clone(),
            dirs: directories(&tree, op, &change),
            effects,
        });
        let applied = Applied { inode: change.inode };
        self.parts.store.enqueue(
            change,
            Box::new(move |stored| finish(stored.map(|()| applied), announce, done)),
        );
    }
}

impl Replica for LocalReplica {
    fn submit(&self, op: Op, done: Done) {
        if !self.quorate() {
            return done(Err(Error::Access));
        }
        if self.parts.store.failed() {
            return done(Err(Error::Io));
        }
        self.apply(&op, done);
    }

    fn quorate(&self) -> bool {
        self.quorate.load(SeqCst)
    }
}

/// What has to be told to others after the answer.
struct Announcement {
    announcer: Arc<Announcer>,
    /// Directories whose names changed: the kernel must have left them first.
    dirs: Vec<Inode>,
    effects: Effects,
}

/// Runs on the store's thread.
fn finish(result: Result<Applied, Error>, announce: Option<Announcement>, done: Done) {
    match announce {
        Some(a) if result.is_ok() && !a.dirs.is_empty() => {
            let keep = a.announcer.promise(a.dirs, a.effects);
            done(result);
            keep(());
        }
        Some(a) if result.is_ok() => {
            a.announcer.announce(a.effects);
            done(result);
        }
        _ => done(result),
    }
}

/// The directories in which the operation made, replaced or removed a name; empty if it only
/// changed content or attributes.
fn directories(tree: &Tree, op: &Op, change: &Change) -> Vec<Inode> {
    let parent = |path: &crate::memdb::TreePath| {
        let (dir, _) = path.split_last()?;
        tree.lookup(&crate::memdb::TreePath::new(dir))
    };
    match op {
        Op::Create { path } | Op::Mkdir { path } | Op::Delete { path } => {
            parent(path).into_iter().collect()
        }
        Op::Rename { from, to } => {
            let mut dirs: Vec<Inode> = parent(from).into_iter().chain(parent(to)).collect();
            dirs.dedup();
            dirs
        }
        // A lock that expired is removed by setting its time to 0.
        Op::SetMtime { path, .. } if change.removed.is_some() => parent(path).into_iter().collect(),
        Op::Write { .. } | Op::SetMtime { .. } => Vec::new(),
    }
}
