//! Local mode: a change is applied at once and answered when it is in the database.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;

use super::announce::Announcer;
use super::{Applied, Clock, Done, Observer, Replica, SharedTree};
use crate::clock::uptime;
use crate::memdb::{Change, Effects, Error, Op};
use crate::store::StoreHandle;

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
    /// The store's errors flag.
    failed: Arc<AtomicBool>,
    observers: Mutex<Vec<Arc<dyn Observer>>>,
}

impl LocalReplica {
    pub fn new(parts: Parts) -> Self {
        let quorate = AtomicBool::new(parts.quorate);
        let failed = parts.store.errors();
        let announcer = parts.announcer.clone();
        parts
            .store
            .on_refusal(move |change| announcer.refused(change.clone()));
        LocalReplica {
            parts,
            quorate,
            failed,
            observers: Mutex::new(Vec::new()),
        }
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
    /// the changes in the order in which memory got them. Then writes what is queued.
    fn apply(&self, op: &Op, done: Done) {
        let now = (self.parts.clock)();
        let mut tree = self.parts.tree.write();
        let change = match tree.apply_local(op, now, uptime()) {
            Ok(change) => change,
            Err(err) => {
                drop(tree);
                return done(Err(err));
            }
        };
        for observer in self.observers.lock().iter() {
            observer.applied(&change);
        }
        let announce = (self.parts.relevant)(&change.effects).then(|| Box::new(change.clone()));
        let applied = Applied {
            inode: change.inode,
        };
        let announcer = self.parts.announcer.clone();
        let queued = self.parts.store.queue(
            change,
            Box::new(move |stored| finish(stored.map(|()| applied), announce, &announcer, done)),
        );
        drop(tree);
        queued.write();
    }
}

impl Replica for LocalReplica {
    fn submit(&self, op: Op, done: Done) {
        if !self.quorate() {
            return done(Err(Error::Access));
        }
        if self.failed.load(SeqCst) {
            return done(Err(Error::Io));
        }
        self.apply(&op, done);
    }

    fn quorate(&self) -> bool {
        self.quorate.load(SeqCst)
    }
}

/// Answers and announces. Runs in the order of the changes, on whichever thread writes them.
fn finish(
    result: Result<Applied, Error>,
    announce: Option<Box<Change>>,
    announcer: &Announcer,
    done: Done,
) {
    match announce.filter(|_| result.is_ok()) {
        Some(change) => {
            let keep = announcer.promise(change);
            done(result);
            keep();
        }
        None => done(result),
    }
}
