//! What stands around the replicated database: readers, disk, announcements, waiting callers.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::chores::Chores;
use super::differences::differences;
use super::group::Surroundings;
use super::inbox::Inbox;
use super::{Command, Observers};
use crate::dcdb::{self, Dcdb, SyncCommit, TreeHost, Write};
use crate::dfsm::{Refusal, Ticket};
use crate::memdb::{Change, Effects, Error, Op, Stamp, Tree};
use crate::replica::local::Relevant;
use crate::replica::{Announcer, Applied, Done, SharedTree};
use crate::status::Status;
use crate::store::StoreHandle;

/// The shared tree. Only the core changes it.
pub(super) struct Host {
    tree: SharedTree,
    observers: Observers,
    /// What became different by the last replacement; taken by [`Database`].
    differences: Arc<Mutex<Vec<Change>>>,
}

impl TreeHost for Host {
    fn read<T>(&self, look: impl FnOnce(&Tree) -> T) -> T {
        look(&self.tree.read())
    }

    fn adjust<T>(&mut self, change: impl FnOnce(&mut Tree) -> T) -> T {
        change(&mut self.tree.write())
    }

    fn apply(&mut self, op: &Op, stamp: Stamp, now: u32) -> Result<Change, Error> {
        let mut tree = self.tree.write();
        let change = tree.apply(op, stamp, now)?;
        for observer in self.observers.lock().iter() {
            observer.applied(&change);
        }
        Ok(change)
    }

    fn replace(&mut self, tree: Tree) -> Tree {
        let changes = differences(&self.tree.read(), &tree);
        let mut shared = self.tree.write();
        let old = std::mem::replace(&mut *shared, tree);
        for observer in self.observers.lock().iter() {
            changes.iter().for_each(|change| observer.applied(change));
        }
        drop(shared);
        self.differences.lock().extend(changes);
        old
    }
}

/// A change on its way to the store: the answer that belongs to it follows immediately, or never.
struct Fresh {
    change: Change,
    done: Option<(Done, Applied)>,
}

/// Parts of [`Database`].
pub(super) struct DatabaseParts {
    pub tree: SharedTree,
    pub store: StoreHandle,
    pub announcer: Arc<Announcer>,
    pub relevant: Relevant,
    pub status: Arc<Status>,
    pub chores: Chores,
    pub core: Arc<Inbox<Command>>,
}

/// Carries out what [`Dcdb`] asks for.
pub(super) struct Database {
    parts: DatabaseParts,
    waiting: HashMap<Ticket, Done>,
    last_ticket: Ticket,
    fresh: Option<Fresh>,
    differences: Arc<Mutex<Vec<Change>>>,
}

impl Database {
    /// The database around its tree, and where that lives.
    pub fn new(parts: DatabaseParts, observers: Observers) -> (Database, Host) {
        let differences = Arc::new(Mutex::new(Vec::new()));
        let host = Host {
            tree: parts.tree.clone(),
            observers,
            differences: differences.clone(),
        };
        let database = Database {
            parts,
            waiting: HashMap::new(),
            last_ticket: 0,
            fresh: None,
            differences,
        };
        (database, host)
    }

    /// Whoever waits for the result gets it by this ticket.
    pub fn ticket(&mut self, done: Done) -> Ticket {
        self.last_ticket += 1;
        self.waiting.insert(self.last_ticket, done);
        self.last_ticket
    }

    /// Nobody will get a result any more.
    pub fn refuse_all(&mut self) {
        for (_, done) in self.waiting.drain() {
            done(Err(Error::Busy));
        }
    }

    fn store_sync(&mut self, number: u64, sync: SyncCommit) {
        let core = self.parts.core.clone();
        let SyncCommit { delete, put, root } = sync;
        let told = move |stored: Result<(), Error>| {
            // An error says that it takes long. The store goes on trying, in order; until then the
            // machine keeps the old tree, which nobody asks for.
            if stored.is_ok() {
                drop(core.push(Command::Stored(dcdb::Event::Stored(number))));
            }
        };
        self.parts
            .store
            .enqueue_sync(delete, put, root, Box::new(told));
    }

    /// The answer to the change, if any, is known now.
    fn store_fresh(&mut self) {
        let Some(Fresh { mut change, done }) = self.fresh.take() else {
            return;
        };
        let announcer = self.parts.announcer.clone();
        let relevant = (self.parts.relevant)(&change.effects);
        match done {
            Some((done, applied)) => {
                let copy = Box::new(change.clone());
                change.effects = Effects::default();
                let told = move |stored: Result<(), Error>| match stored {
                    Ok(()) => answer(applied, copy, relevant, &announcer, done),
                    // Refused, but memory and the other nodes have it.
                    Err(err) => {
                        let effects = copy.effects.clone();
                        announcer.forget(copy);
                        announcer.announce(effects);
                        done(Err(err));
                    }
                };
                self.parts.store.enqueue(change, Box::new(told));
            }
            None => {
                announcer.forget(Box::new(change.clone()));
                let effects = std::mem::take(&mut change.effects);
                let told = move |_: Result<(), Error>| {
                    if relevant {
                        announcer.announce(effects);
                    }
                };
                self.parts.store.enqueue(change, Box::new(told));
            }
        }
    }

    /// The new tree is told of when everything before it was.
    fn replaced(&mut self) {
        let changes = std::mem::take(&mut *self.differences.lock());
        let (tree, status) = (self.parts.tree.clone(), self.parts.status.clone());
        let announcer = self.parts.announcer.clone();
        self.parts.store.after(Box::new(move |_| {
            announcer.replaced(changes, Box::new(move || status.reloaded(&tree.read())));
        }));
    }
}

/// Answers a change that came through this node and announces it. Runs on the store's thread, in
/// the order of the changes.
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
            dcdb::Action::Store { number, write } => {
                self.store_fresh();
                match *write {
                    Write::Change(change) => {
                        self.fresh = Some(Fresh { change, done: None });
                    }
                    Write::Sync(sync) => self.store_sync(number, sync),
                }
            }
            dcdb::Action::Replaced => {
                self.store_fresh();
                self.replaced();
            }
            // The answer to a failure, of which the store tells none.
            dcdb::Action::ResumeStore => {}
            dcdb::Action::ExportCorosyncConf { notify } => self.parts.chores.export(notify),
        }
    }

    fn reply(&mut self, ticket: Ticket, result: Result<Result<Applied, Error>, Refusal>) {
        let Some(done) = self.waiting.remove(&ticket) else {
            return;
        };
        let applied = match result {
            Ok(Ok(applied)) => applied,
            Ok(Err(err)) => return done(Err(err)),
            Err(Refusal::Busy) => return done(Err(Error::Busy)),
            Err(Refusal::Failed) => return done(Err(Error::Io)),
        };
        match &mut self.fresh {
            Some(fresh) if fresh.done.is_none() && fresh.change.inode == applied.inode => {
                fresh.done = Some((done, applied));
            }
            // A success that changed nothing: no earlier than what came before it.
            _ => {
                self.store_fresh();
                let after = move |stored: Result<(), Error>| done(stored.map(|()| applied));
                self.parts.store.after(Box::new(after));
            }
        }
    }

    fn finish(&mut self) {
        self.store_fresh();
    }
}

#[cfg(test)]
mod tests;
