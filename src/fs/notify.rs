//! What the kernel has to forget, and when it has caught up with us.
//!
//! Everything here may wait for the kernel, which may wait for the answer of a request: never call
//! it from a worker, nor from a thread that completes changes.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SendError, Sender, channel};
use std::time::{Duration, Instant};

use super::cached;
use super::inode::Link;
use super::known::Inodes;
use super::ops::{Ino, ROOT_INO};
use crate::memdb::{Change, Inode, ROOT_INODE, TreePath};
use crate::replica::SharedTree;

/// The kernel's caches of one mount. What the kernel does not know is no error.
pub trait Kernel: Send + Sync {
    /// Drops cached attributes.
    fn inval_attr(&self, ino: Ino);
    /// Drops cached attributes and content (of a directory: its cached listing).
    fn inval_content(&self, ino: Ino);
    /// Drops what is known about a name, also that it does not exist. Waits until operations on
    /// names in this directory that are under way have ended.
    fn inval_entry(&self, dir: Ino, name: &[u8]);
}

/// A name that no client can create: it holds a slash.
const NEVER: &[u8] = b"/";

/// How long the process whose write was answered may take to bring the new size into the kernel's
/// caches: it only has to get a processor.
const SIZE_LIMIT: Duration = Duration::from_millis(250);
/// First and longest pause between two looks at it.
const SIZE_PAUSES: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];

/// Keeps the kernel's caches true.
#[derive(Clone)]
pub struct Notifier {
    kernel: Arc<dyn Kernel>,
    inodes: Arc<Inodes>,
    tree: SharedTree,
    /// Where the file system is mounted, if sizes are to be waited for.
    mountpoint: Option<Arc<PathBuf>>,
}

impl Notifier {
    pub(super) fn new(kernel: Arc<dyn Kernel>, inodes: Arc<Inodes>, tree: SharedTree) -> Self {
        Notifier {
            kernel,
            inodes,
            tree,
            mountpoint: None,
        }
    }

    /// Has [`Notifier::settle`] wait for the sizes of written files, too, as they are seen below
    /// `mountpoint`.
    pub fn mounted_on(self, mountpoint: &Path) -> Self {
        Notifier {
            mountpoint: Some(Arc::new(mountpoint.to_owned())),
            ..self
        }
    }

    /// Quorum came or went: every mode has changed. To be called after `Replica::quorate` answers
    /// the new value.
    pub fn quorum_changed(&self) {
        let known = self.inodes.lock().inos();
        // At once for what the kernel has, …
        self.inval_attrs(&known);
        // … and again once the look-ups have arrived that were answered with an old mode.
        for dir in self.known_dirs(&known) {
            self.kernel.inval_entry(dir, NEVER);
        }
        self.inval_attrs(&known);
    }

    fn inval_attrs(&self, known: &[Ino]) {
        for &ino in known {
            self.kernel.inval_attr(ino);
        }
        for link in Link::ALL {
            self.kernel.inval_attr(link.ino());
        }
    }

    fn known_dirs(&self, known: &[Ino]) -> Vec<Ino> {
        let tree = self.tree.read();
        let inodes = self.inodes.lock();
        let is_dir = |ino: &Ino| {
            let entry = inodes
                .numbers
                .tree_number(*ino)
                .and_then(|inode| tree.get(inode));
            entry.is_some_and(|entry| entry.is_dir())
        };
        known
            .iter()
            .copied()
            .filter(is_dir)
            .chain([ROOT_INO])
            .collect()
    }

    /// A change that did not come through this mount: the kernel forgets what it changed. When
    /// this returns, every new open, stat or listing sees the change.
    pub fn invalidate(&self, change: &Change) {
        let renamed = change.changes_names();
        let ino = self.inodes.lock().held(change.inode);
        if let Some(ino) = ino.filter(|_| !renamed) {
            // At once: somebody who waits for another node may lock the directory for long.
            self.kernel.inval_content(ino);
        }
        for (dir, name) in self.names(change) {
            // Waits for look-ups that were answered before the change, in any case.
            self.kernel
                .inval_entry(dir, if renamed { &name } else { NEVER });
            if renamed {
                self.kernel.inval_content(dir);
            }
        }
        if let Some(ino) = ino {
            self.kernel.inval_content(ino);
        }
    }

    /// Does the kernel hold anything that [`Notifier::invalidate`] would have it forget? Look-ups
    /// answered before the change are counted; later ones are answered with the change.
    pub fn concerns(&self, change: &Change) -> bool {
        self.inodes.lock().held(change.inode).is_some() || !self.names(change).is_empty()
    }

    /// A change that came through this mount: returns when the process that made it has brought
    /// its name, or the size of the file, into the kernel's caches, which happens after the answer.
    pub fn settle(&self, change: &Change) {
        if !change.changes_names() {
            return self.settle_size(change);
        }
        let unlocked = change.removed.as_ref().is_some_and(|removed| {
            // A lock that expired is removed by setting its time; the kernel does not know.
            change.put.is_none() && removed.path.is_below_lock_dir()
        });
        let mut settled = None;
        for (dir, name) in self.names(change) {
            if unlocked {
                self.kernel.inval_entry(dir, &name);
            } else if settled != Some(dir) {
                self.kernel.inval_entry(dir, NEVER);
                settled = Some(dir);
            }
        }
    }

    /// Waits until readers are given all of what was written. Nothing but the size is missing: the
    /// pages held the new content before we were asked. No notification waits for a write, so this
    /// looks at the size until it is right.
    fn settle_size(&self, change: &Change) {
        let (Some(mountpoint), Some(row)) = (&self.mountpoint, &change.put) else {
            return;
        };
        let Some(size) = row.data.as_ref().map(|data| data.len() as u64) else {
            return;
        };
        let Some(ino) = self.inodes.lock().numbers.known_number(row.inode) else {
            return;
        };
        let end = Instant::now() + SIZE_LIMIT;
        let [mut pause, longest] = SIZE_PAUSES;
        loop {
            let tree = self.tree.read();
            // The kernel sends the next change of a file when it is done with the one before.
            let last = tree
                .get(row.inode)
                .is_some_and(|e| e.version == row.version);
            let Some(path) = tree.path_of(row.inode).filter(|_| last) else {
                return;
            };
            drop(tree);
            let path = mountpoint.join(OsStr::from_bytes(path.as_bytes()));
            if cached::size(&path, ino).is_none_or(|now| now == size) || Instant::now() >= end {
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(longest);
        }
    }

    /// Returns when the operations on names in directory `dir` that have been answered are visible
    /// to everybody on this node. Waits for those that are still under way, too.
    pub fn barrier(&self, dir: Inode) {
        if let Some(dir) = self.inodes.lock().numbers.known_number(dir) {
            self.kernel.inval_entry(dir, NEVER);
        }
    }

    /// Where a change happened: directory and last component. Only directories that the kernel
    /// holds: of others it knows no names.
    fn names(&self, change: &Change) -> Vec<(Ino, Arc<[u8]>)> {
        let tree = self.tree.read();
        let inodes = self.inodes.lock();
        let by_path = |path: &TreePath| {
            let (dir, name) = path.split_last()?;
            let dir = tree.lookup(&TreePath::new(dir))?;
            Some((inodes.held(dir)?, Arc::from(name)))
        };
        let mut names = Vec::new();
        if let Some(row) = change.put.as_ref().filter(|row| row.inode != ROOT_INODE) {
            let dir = inodes.held(row.parent);
            names.extend(dir.map(|dir| (dir, Arc::clone(&row.name))));
        }
        let removed = change.removed.as_ref().map(|removed| &removed.path);
        for path in removed.into_iter().chain(&change.effects.touched) {
            names.extend(by_path(path));
        }
        names.sort();
        names.dedup();
        names
    }
}

/// What is to happen once the kernel has forgotten a content.
type Then = Box<dyn FnOnce() + Send>;

/// Has the kernel forget contents, in a thread of its own: nobody who may have to answer a request
/// can wait for that.
pub struct Refresher(Sender<(Ino, Then)>);

impl Refresher {
    /// Starts the thread. It ends when the refresher is dropped.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(kernel: Arc<dyn Kernel>) -> io::Result<Self> {
        let (sender, receiver) = channel::<(Ino, Then)>();
        std::thread::Builder::new()
            .name("fuse-refresh".into())
            .spawn(move || {
                for (ino, then) in receiver {
                    kernel.inval_content(ino);
                    then();
                }
            })?;
        Ok(Refresher(sender))
    }

    /// Has the kernel forget the content of `ino`, then goes on with `then`.
    pub fn refresh(&self, ino: Ino, then: Then) {
        if let Err(SendError((_, then))) = self.0.send((ino, then)) {
            // The thread has died; late content is better than no answer.
            then();
        }
    }
}

impl crate::replica::Barrier for Notifier {
    fn concerns(&self, change: &Change) -> bool {
        Notifier::concerns(self, change)
    }

    fn settle(&self, change: &Change) {
        Notifier::settle(self, change);
    }

    fn invalidate(&self, change: &Change) {
        Notifier::invalidate(self, change);
    }

    fn quorum_changed(&self) {
        Notifier::quorum_changed(self);
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::{Mutex, RwLock};

    use super::*;
    use crate::memdb::{Op, Stamp, Tree};
    use crate::replica::Observer;

    /// Writes down what the kernel is told.
    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Kernel for Notes {
        fn inval_attr(&self, ino: Ino) {
            self.0.lock().push(format!("attr {ino}"));
        }

        fn inval_content(&self, ino: Ino) {
            self.0.lock().push(format!("content {ino}"));
        }

        fn inval_entry(&self, dir: Ino, name: &[u8]) {
            let name = String::from_utf8_lossy(name).into_owned();
            self.0.lock().push(format!("entry {dir} {name}"));
        }
    }

    struct Fixture {
        notes: Arc<Notes>,
        inodes: Arc<Inodes>,
        tree: SharedTree,
        notifier: Notifier,
    }

    impl Fixture {
        /// Directory `d` (inode 2) with the file `f` (3).
        fn new() -> Self {
            let mut tree = Tree::new();
            tree.set_version_for_test(1);
            let (tree, inodes) = (Arc::new(RwLock::new(tree)), Inodes::new());
            let notes = Arc::new(Notes::default());
            let notifier = Notifier::new(notes.clone(), inodes.clone(), tree.clone());
            let fixture = Fixture {
                notes,
                inodes,
                tree,
                notifier,
            };
            fixture.apply(Op::Mkdir { path: path("d") });
            fixture.apply(Op::Create { path: path("d/f") });
            fixture
        }

        fn apply(&self, op: Op) -> Change {
            let stamp = Stamp {
                writer: 1,
                mtime: 5,
            };
            let change = self.tree.write().apply(&op, stamp, 5).unwrap();
            self.inodes.applied(&change);
            change
        }

        /// The kernel knows these inodes.
        fn hold(&self, inodes: std::ops::Range<Inode>) {
            for inode in inodes {
                self.inodes.lock().refer(inode);
            }
        }

        fn notes(&self) -> Vec<String> {
            std::mem::take(&mut self.notes.0.lock())
        }
    }

    fn path(path: &str) -> TreePath {
        TreePath::new(path.as_bytes())
    }

    #[test]
    fn foreign_changes_are_forgotten_name_first() {
        let fixture = Fixture::new();
        fixture.hold(2..9);
        let told = |op: Op| {
            let change = fixture.apply(op);
            assert!(fixture.notifier.concerns(&change));
            fixture.notifier.invalidate(&change);
            fixture.notes()
        };
        assert_eq!(
            told(Op::Create { path: path("d/g") }),
            ["entry 2 g", "content 2", "content 4"]
        );
        let write = Op::Write {
            path: path("d/g"),
            offset: 0,
            data: vec![1],
            truncate: false,
        };
        assert_eq!(told(write), ["content 4", "entry 2 /", "content 4"]);
        assert_eq!(
            told(Op::Rename {
                from: path("d/g"),
                to: path("d/f")
            }),
            [
                "entry 2 f",
                "content 2",
                "entry 2 g",
                "content 2",
                "content 4"
            ]
        );
        assert_eq!(
            told(Op::Delete { path: path("d/f") }),
            ["entry 2 f", "content 2", "content 4"]
        );
        assert_eq!(
            told(Op::Mkdir { path: path("e") }),
            ["entry 1 e", "content 1", "content 8"]
        );
    }

    #[test]
    fn nothing_is_forgotten_of_what_the_kernel_does_not_hold() {
        let fixture = Fixture::new();
        let unknown = fixture.apply(Op::Create { path: path("d/g") });
        assert!(!fixture.notifier.concerns(&unknown));
        fixture.notifier.invalidate(&unknown);
        assert_eq!(fixture.notes(), [""; 0]);
        // The directory is enough: it may be known that the name does not exist.
        fixture.inodes.lock().refer(2);
        let removed = fixture.apply(Op::Delete { path: path("d/g") });
        assert!(fixture.notifier.concerns(&removed));
        fixture.inodes.lock().forget(2, 1);
        assert!(!fixture.notifier.concerns(&removed));
        // And so is the file, open since before.
        fixture.inodes.lock().refer(3);
        let write = Op::Write {
            path: path("d/f"),
            offset: 0,
            data: vec![1],
            truncate: false,
        };
        let written = fixture.apply(write);
        assert!(fixture.notifier.concerns(&written));
        fixture.notifier.invalidate(&written);
        assert_eq!(fixture.notes(), ["content 3", "content 3"]);
        // The root is always there.
        let in_root = fixture.apply(Op::Create { path: path("r") });
        assert!(fixture.notifier.concerns(&in_root));
    }

    #[test]
    fn own_changes_only_wait_for_the_directory() {
        let fixture = Fixture::new();
        fixture.hold(2..20);
        let told = |op: Op| {
            fixture.notifier.settle(&fixture.apply(op));
            fixture.notes()
        };
        let write = Op::Write {
            path: path("d/f"),
            offset: 0,
            data: vec![1],
            truncate: false,
        };
        assert_eq!(told(write), [""; 0]);
        let rename = Op::Rename {
            from: path("d/f"),
            to: path("d/g"),
        };
        assert_eq!(told(rename), ["entry 2 /"]);
        let away = Op::Rename {
            from: path("d/g"),
            to: path("g"),
        };
        assert_eq!(told(away), ["entry 1 /", "entry 2 /"]);
        assert_eq!(told(Op::Delete { path: path("g") }), ["entry 1 /"]);
        for dir in ["priv", "priv/lock", "priv/lock/x"] {
            fixture.apply(Op::Mkdir { path: path(dir) });
        }
        // Expired: the kernel did not ask for it to be removed.
        let lock_dir = fixture.tree.read().lookup(&path("priv/lock")).unwrap();
        let unlock = Op::Delete {
            path: path("priv/lock/x"),
        };
        assert_eq!(told(unlock), [format!("entry {lock_dir} x")]);
    }

    #[test]
    fn quorum_concerns_everything_the_kernel_knows() {
        let fixture = Fixture::new();
        fixture.inodes.lock().refer(2);
        fixture.inodes.lock().refer(3);
        fixture.notifier.quorum_changed();
        let is_barrier = |note: &String| note.starts_with("entry");
        let (mut barriers, notes): (Vec<_>, Vec<_>) =
            fixture.notes().into_iter().partition(is_barrier);
        barriers.sort();
        assert_eq!(barriers, ["entry 1 /", "entry 2 /"]);
        assert_eq!(notes.iter().filter(|note| *note == "attr 3").count(), 2);
        assert_eq!(notes.len(), 2 * (2 + Link::ALL.len()));
    }
}
