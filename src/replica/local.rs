//! Local mode: a change is applied at once and answered when it is in the database.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;

use super::announce::Announcer;
use super::{Applied, Clock, Done, Observer, Replica, SharedTree};
use crate::clock::uptime;
use crate::failure::uninterrupted;
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
        let whole = uninterrupted();
        let change = match tree.apply_local(op, now, uptime()) {
            Ok(change) => change,
            Err(err) => {
                drop(whole);
                drop(tree);
                return done(Err(err));
            }
        };
        for observer in self.observers.lock().iter() {
            observer.applied(&change);
        }
        // The kernel asked for another time, not for a removal.
        let unlocked = matches!(op, Op::SetMtime { .. }) && change.removed.is_some();
        let forgotten = unlocked.then(|| change.clone());
        let announce = (self.parts.relevant)(&change.effects).then(|| Box::new(change.clone()));
        let applied = Applied {
            inode: change.inode,
        };
        let announcer = self.parts.announcer.clone();
        let queued = self.parts.store.queue(
            change,
            Box::new(move |stored| finish(stored.map(|()| applied), announce, &announcer, done)),
        );
        drop(whole);
        drop(tree);
        if let Some(change) = forgotten {
            self.parts.announcer.forget(&change);
        }
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

#[cfg(test)]
mod tests {
    use parking_lot::RwLock;

    use super::*;
    use crate::failure::contain;
    use crate::failure::scene::{ended_by, test_process};
    use crate::memdb::TreePath;
    use crate::store::Store;

    /// Stands for a bug in the middle of a change.
    struct Fails;

    impl Observer for Fails {
        fn applied(&self, change: &Change) {
            panic!("on purpose: {}", change.inode);
        }
    }

    #[test]
    fn half_a_change_is_neither_served_nor_written() {
        let dir = std::env::temp_dir().join(format!("half-a-change-{}", test_process()));
        let file = dir.join("config.db");
        let name = "replica::local::tests::half_a_change_is_neither_served_nor_written";
        let create = |path: &[u8]| Op::Create {
            path: TreePath::new(path),
        };
        let signal = ended_by(name, || {
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir(&dir).unwrap();
            let (store, loaded) = Store::open(&file, 1).unwrap();
            let replica = LocalReplica::new(Parts {
                tree: Arc::new(RwLock::new(loaded.tree)),
                store: store.spawn().unwrap(),
                announcer: Announcer::start(Arc::new(|_| {})).unwrap(),
                relevant: Arc::new(|_| false),
                clock: Arc::new(|| 5),
                quorate: true,
            });
            let (told, done) = std::sync::mpsc::channel();
            let answer: Done = Box::new(move |result| told.send(result).unwrap());
            replica.submit(create(b"whole"), answer);
            assert!(done.recv().unwrap().is_ok());
            replica.observe(Arc::new(Fails));
            // As the request of a client.
            contain("a request", || {
                replica.submit(create(b"half"), Box::new(|_| {}))
            });
        });
        assert_eq!(signal, Some(libc::SIGABRT));
        let (_store, loaded) = Store::open(&file, 1).unwrap();
        let known = |path: &[u8]| loaded.tree.lookup(&TreePath::new(path)).is_some();
        assert!(known(b"whole") && !known(b"half"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
