//! What stands around the replicated database: readers, disk, announcements, waiting callers.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Observers;
use super::chores::Chores;
use super::differences::differences;
use super::gate::{Gate, Verdict, Waiter};
use super::group::Surroundings;
use super::logs::log;
use crate::dcdb::{self, Dcdb, SyncCommit, TreeHost, Write};
use crate::dfsm::{Busy, Level, Ticket};
use crate::failure::uninterrupted;
use crate::memdb::{Change, Effects, Error, Op, Stamp, Tree};
use crate::replica::local::Relevant;
use crate::replica::{Announcer, Applied, Done, SharedTree};
use crate::status::Status;
use crate::store::{StoreHandle, remove_base};

/// More content than this does not wait for the disk: the node leaves the group until it has caught
/// up. The whole file system is meant to hold half of it.
const BACKLOG: usize = 256 << 20;
/// What a change without content counts for.
const CHANGE_BYTES: usize = 512;

/// A change that waits for the disk.
struct Waiting {
    backlog: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.backlog.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The shared tree. Only the core changes it.
pub(super) struct Host {
    tree: SharedTree,
    status: Arc<Status>,
    observers: Observers,
    /// What became different by the last replacement; taken by [`Database`].
    differences: Arc<Mutex<Vec<Change>>>,
}

impl TreeHost for Host {
    fn read<T>(&self, look: impl FnOnce(&Tree) -> T) -> T {
        look(&self.tree.read())
    }

    fn adjust<T>(&mut self, change: impl FnOnce(&mut Tree) -> T) -> T {
        let mut tree = self.tree.write();
        let _whole = uninterrupted();
        change(&mut tree)
    }

    fn apply(&mut self, op: &Op, stamp: Stamp, uptime: u32) -> Result<Change, Error> {
        let mut tree = self.tree.write();
        let _whole = uninterrupted();
        let change = tree.apply(op, stamp, uptime)?;
        for observer in self.observers.lock().iter() {
            observer.applied(&change);
        }
        Ok(change)
    }

    fn replace(&mut self, tree: Tree) {
        let changes = differences(&self.tree.read(), &tree);
        let mut shared = self.tree.write();
        let whole = uninterrupted();
        let old = std::mem::replace(&mut *shared, tree);
        for observer in self.observers.lock().iter() {
            changes.iter().for_each(|change| observer.applied(change));
        }
        drop(whole);
        drop(shared);
        drop(old);
        self.differences.lock().extend(changes);
    }

    fn node_name(&self, nodeid: u32) -> Option<String> {
        self.status.node_name(nodeid)
    }
}

/// A change on its way to the store: the caller that belongs to it follows immediately, or never.
struct Fresh {
    change: Change,
    caller: Option<Caller>,
}

/// Whoever waits for a change, and what there is to be said.
struct Caller {
    waiter: Waiter,
    applied: Applied,
}

/// Parts of [`Database`].
pub(super) struct DatabaseParts {
    pub tree: SharedTree,
    pub store: StoreHandle,
    pub announcer: Arc<Announcer>,
    pub relevant: Relevant,
    pub status: Arc<Status>,
    pub chores: Chores,
    /// Path of the database.
    pub path: PathBuf,
    /// The longest wait of a caller.
    pub write_timeout: Duration,
}

/// Carries out what [`Dcdb`] asks for.
pub(super) struct Database {
    parts: DatabaseParts,
    waiting: HashMap<Ticket, Waiter>,
    last_ticket: Ticket,
    fresh: Option<Fresh>,
    gate: Gate,
    /// Bytes given to the store and not written yet.
    backlog: Arc<AtomicUsize>,
    /// Last answer of [`Database::is_writable`].
    writable: bool,
    differences: Arc<Mutex<Vec<Change>>>,
}

impl Database {
    /// The database around its tree, and where that lives.
    pub fn new(parts: DatabaseParts, observers: Observers) -> (Database, Host) {
        // The node leaves the group then, and comes back when all is written.
        parts.store.be_impatient();
        let differences = Arc::new(Mutex::new(Vec::new()));
        let host = Host {
            tree: parts.tree.clone(),
            status: parts.status.clone(),
            observers,
            differences: differences.clone(),
        };
        let database = Database {
            parts,
            waiting: HashMap::new(),
            last_ticket: 0,
            fresh: None,
            gate: Gate::default(),
            backlog: Arc::default(),
            writable: true,
            differences,
        };
        (database, host)
    }

    /// Whoever waits for the result gets it by this ticket.
    pub fn ticket(&mut self, done: Done) -> Ticket {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let until = Instant::now() + self.parts.write_timeout;
        let waiter = Waiter {
            ticket,
            done,
            until,
        };
        self.waiting.insert(ticket, waiter);
        ticket
    }

    /// Nobody will get a result any more.
    pub fn refuse_all(&mut self) {
        for (_, waiter) in self.waiting.drain() {
            (waiter.done)(Err(Error::Busy));
        }
        self.store_fresh();
        self.gate.refuse_all();
    }

    /// Whoever has waited long enough for the disk is told so. (For the others: the machine.)
    pub fn expire(&mut self) {
        self.gate.expire(Instant::now());
    }

    fn store_sync(&mut self, sync: SyncCommit) {
        let SyncCommit { delete, put, root } = sync;
        // An error says that it takes long. The store goes on trying, in order.
        let told = Box::new(|_| ());
        self.parts.store.enqueue_sync(delete, put, root, told);
    }

    /// Bytes that wait for the disk, content only.
    fn count(&self, change: &Change) -> Waiting {
        let data = change.put.as_ref().and_then(|row| row.data.as_ref());
        let bytes = CHANGE_BYTES + data.map_or(0, |data| data.len());
        self.backlog.fetch_add(bytes, Ordering::Relaxed);
        Waiting {
            backlog: self.backlog.clone(),
            bytes,
        }
    }

    /// Can the disk be written, and does it keep up? What was too much has to be gone.
    pub fn is_writable(&mut self) -> bool {
        let limit = if self.writable { BACKLOG } else { 0 };
        self.writable = !self.parts.store.errors().load(Ordering::Acquire)
            && self.backlog.load(Ordering::Relaxed) <= limit;
        self.writable
    }

    /// Whoever waits for the change is known now.
    fn store_fresh(&mut self) {
        let Some(Fresh { change, caller }) = self.fresh.take() else {
            return;
        };
        match caller {
            Some(caller) => self.store_own(change, caller),
            None => self.store_foreign(change),
        }
    }

    fn store_own(&mut self, mut change: Change, caller: Caller) {
        let announcer = self.parts.announcer.clone();
        let relevant = (self.parts.relevant)(&change.effects);
        let waiting = self.count(&change);
        let Caller { waiter, applied } = caller;
        let copy = Arc::new(change.clone());
        let waiter = Waiter {
            done: forgetting(waiter.done, announcer.clone(), copy.clone()),
            ..waiter
        };
        let (gate, number) = (self.gate.clone(), self.gate.enter(Some(waiter)));
        change.effects = Effects::default();
        let told = move |stored: Result<(), Error>| {
            drop(waiting);
            let then = move |verdict, done| match (outcome(stored, verdict), done) {
                (Ok(()), Some(done)) => {
                    let copy = Box::new(Arc::unwrap_or_clone(copy));
                    answer(applied, copy, relevant, &announcer, done);
                }
                // Refused, now or before, but memory and some other node have it.
                (result, done) => {
                    if let (Err(err), Some(done)) = (result, done) {
                        done(Err(err));
                    }
                    announcer.announce(copy.effects.clone());
                }
            };
            gate.stored(number, Box::new(then));
        };
        self.parts.store.put(change, Box::new(told));
    }

    fn store_foreign(&mut self, mut change: Change) {
        let announcer = self.parts.announcer.clone();
        let waiting = self.count(&change);
        announcer.forget(&change);
        let effects = std::mem::take(&mut change.effects);
        if !(self.parts.relevant)(&effects) {
            let told = move |_: Result<(), Error>| drop(waiting);
            return self.parts.store.enqueue_lazily(change, Box::new(told));
        }
        let (gate, number) = (self.gate.clone(), self.gate.enter(None));
        let told = move |_: Result<(), Error>| {
            drop(waiting);
            gate.stored(number, Box::new(move |_, _| announcer.announce(effects)));
        };
        self.parts.store.put(change, Box::new(told));
    }

    /// Everything that has come is with the store: it is written now, in this thread or, if that
    /// could take long, in the store's. Answers whoever waits for it.
    pub fn write(&self) {
        self.parts.store.write();
    }

    /// Local mode is forgotten, once what became of it is stored.
    fn shared(&mut self) {
        self.store_fresh();
        let path = self.parts.path.clone();
        let told = move |stored: Result<(), Error>| {
            if let (Ok(()), Err(error)) = (stored, remove_base(&path)) {
                let path = path.display();
                log(
                    "dcdb",
                    Level::Warning,
                    &format!("cannot remove '{path}.shared': {error}"),
                );
            }
        };
        self.parts.store.after(Box::new(told));
    }

    /// The kernel forgets the old tree at once; the new one is told of when everything before it was.
    fn replaced(&mut self) {
        let changes = std::mem::take(&mut *self.differences.lock());
        let (tree, status) = (self.parts.tree.clone(), self.parts.status.clone());
        let announcer = self.parts.announcer.clone();
        announcer.replaced(changes);
        let (gate, number) = (self.gate.clone(), self.gate.enter(None));
        let tell = move |_, _| {
            announcer.call(Box::new(move || status.reloaded(&tree.read())));
        };
        let told = move |_: Result<(), Error>| gate.stored(number, Box::new(tell));
        self.parts.store.after(Box::new(told));
    }
}

/// Before a caller is told that his change failed, although memory has it, the kernel, which believes
/// him, forgets what the change touched.
fn forgetting(done: Done, announcer: Arc<Announcer>, change: Arc<Change>) -> Done {
    Box::new(move |result| {
        if result.is_err() {
            announcer.forget(&change);
        }
        done(result);
    })
}

/// What a caller is told of a change: it has to be on this disk and with the others.
fn outcome(stored: Result<(), Error>, verdict: Verdict) -> Result<(), Error> {
    match verdict {
        Verdict::Release => stored,
        Verdict::Refuse => stored.and(Err(Error::Busy)),
    }
}

/// Answers a change that came through this node and announces it. Runs in the order of the changes.
fn answer(
    applied: Applied,
    change: Box<Change>,
    relevant: bool,
    announcer: &Announcer,
    done: Done,
) {
    if !relevant {
        done(Ok(applied));
    } else if change.changes_names() {
        let keep = announcer.promise(change);
        done(Ok(applied));
        keep();
    } else {
        announcer.announce(change.effects);
        done(Ok(applied));
    }
}

impl Surroundings<Dcdb<Host>> for Database {
    fn act(&mut self, action: dcdb::Action) {
        match action {
            dcdb::Action::Store(write) => {
                self.store_fresh();
                match *write {
                    Write::Change(change) => {
                        self.fresh = Some(Fresh {
                            change,
                            caller: None,
                        });
                    }
                    Write::Sync(sync) => self.store_sync(sync),
                }
            }
            dcdb::Action::KeepAside(aside) => {
                self.store_fresh();
                self.parts.store.keep_aside(aside);
            }
            dcdb::Action::Shared => self.shared(),
            dcdb::Action::Replaced => {
                self.store_fresh();
                self.replaced();
            }
            dcdb::Action::ExportCorosyncConf { notify } => self.parts.chores.export(notify),
        }
    }

    fn applied(&mut self, ticket: Ticket, reply: Result<Applied, Error>) {
        let Some(waiter) = self.waiting.remove(&ticket) else {
            return;
        };
        let applied = match reply {
            Ok(applied) => applied,
            // Nothing was changed: there is nothing to wait for.
            Err(err) => return (waiter.done)(Err(err)),
        };
        match &mut self.fresh {
            Some(fresh) if fresh.caller.is_none() && fresh.change.inode == applied.inode => {
                fresh.caller = Some(Caller { waiter, applied });
            }
            // A success that changed nothing: no earlier than what came before it.
            _ => {
                self.store_fresh();
                let (gate, number) = (self.gate.clone(), self.gate.enter(Some(waiter)));
                let told = move |stored: Result<(), Error>| {
                    let then = move |verdict, done: Option<Done>| {
                        if let Some(done) = done {
                            done(outcome(stored, verdict).map(|()| applied));
                        }
                    };
                    gate.stored(number, Box::new(then));
                };
                self.parts.store.after(Box::new(told));
            }
        }
    }

    fn release(&mut self, ticket: Ticket) {
        self.store_fresh();
        self.gate.release(ticket);
    }

    fn reply(&mut self, ticket: Ticket, result: Result<Result<Applied, Error>, Busy>) {
        match self.waiting.remove(&ticket) {
            Some(waiter) => (waiter.done)(result.unwrap_or(Err(Error::Busy))),
            None => {
                self.store_fresh();
                self.gate.refuse(ticket);
            }
        }
    }

    fn finish(&mut self) {
        self.store_fresh();
    }
}

#[cfg(test)]
mod tests;
