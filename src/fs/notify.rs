//! What the kernel has to forget, and when it has caught up with us.
//!
//! No thread of this process may enter a wait in the kernel that only this process can end. A
//! process that was killed in such a wait never ends: `/etc/pve` hangs until the next reboot. Three
//! notifications of FUSE wait like that and are therefore not used: the invalidation of one name
//! takes the lock of its directory, and the invalidation or the storing of content takes the lock of
//! a page; a request that this process has to answer may hold either.
//!
//! What is used instead waits for no request (docs/adr/009 names what remains):
//! * attributes: the kernel is told to forget them (`FUSE_NOTIFY_INVAL_INODE`, attributes only);
//! * content and listings: whoever uses them asks for attributes first, sees another modification
//!   time ([`Attr::edition`](super::ops::Attr)) and drops them itself (`FUSE_AUTO_INVAL_DATA`);
//! * names: see [`NameCache`].
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cached::{self, Shown};
use super::inode::Link;
use super::known::Inodes;
use super::ops::{Ino, ROOT_INO};
use crate::memdb::{Change, Inode, ROOT_INODE, TreePath};
use crate::replica::SharedTree;

/// How the names that the kernel remembers are kept true when another node changes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameCache {
    /// The kernel looks up all names once more (`FUSE_NOTIFY_INC_EPOCH`, Linux 6.16): a change is
    /// seen at once.
    Epoch,
    /// It remembers a name for a second and never that there is none, as with the C daemon.
    Lifetime,
}

/// The kernel's caches of one mount. Neither of these waits for an answer of this process. What the
/// kernel does not know is no error.
pub trait Kernel: Send + Sync {
    /// Drops cached attributes.
    fn inval_attr(&self, ino: Ino);
    /// Has every name looked up once more, those of look-ups that are under way, too.
    fn inval_names(&self);
}

/// How long the process whose change was answered may take to bring it into the kernel's caches: it
/// only has to get a processor.
const SETTLE_LIMIT: Duration = Duration::from_millis(250);
/// First and longest pause between two looks at them.
const SETTLE_PAUSES: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];

/// Keeps the kernel's caches true.
#[derive(Clone)]
pub struct Notifier {
    kernel: Arc<dyn Kernel>,
    names: NameCache,
    inodes: Arc<Inodes>,
    tree: SharedTree,
    /// Where the file system is mounted, if [`Notifier::settle`] is to wait.
    mountpoint: Option<Arc<PathBuf>>,
}

/// What a look at the kernel's caches is to find.
struct Expected {
    dir: PathBuf,
    dir_ino: Ino,
    name: Arc<[u8]>,
    /// Inode and, of a file, its size; `None`: not the inode `gone` any more.
    entry: Option<(Ino, Option<u64>)>,
    gone: Option<Ino>,
}

impl Expected {
    fn is_shown(&self) -> bool {
        let shown = cached::look(&self.dir, self.dir_ino, OsStr::from_bytes(&self.name));
        match (shown, self.entry) {
            // Whoever wants to know has to ask us.
            (Shown::Unknown, _) => true,
            (Shown::Nothing, entry) => entry.is_none(),
            (Shown::Entry { ino, size }, Some((expected, length))) => {
                ino == expected && length.is_none_or(|length| length == size)
            }
            (Shown::Entry { ino, .. }, None) => self.gone != Some(ino),
        }
    }
}

impl Notifier {
    pub(super) fn new(
        kernel: Arc<dyn Kernel>,
        names: NameCache,
        inodes: Arc<Inodes>,
        tree: SharedTree,
    ) -> Self {
        Notifier {
            kernel,
            names,
            inodes,
            tree,
            mountpoint: None,
        }
    }

    /// Has [`Notifier::settle`] look at what is seen below `mountpoint`.
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
        let links = Link::ALL.iter().map(|link| link.ino());
        for ino in known.into_iter().chain([ROOT_INO]).chain(links) {
            self.kernel.inval_attr(ino);
        }
    }

    /// A change that did not come through this mount: the kernel forgets what it changed. When
    /// this returns, every new open, stat or listing sees the change (a name within a second, with
    /// [`NameCache::Lifetime`]). Nothing is sent of what the kernel does not hold; look-ups answered
    /// before the change count as held.
    pub fn invalidate(&self, change: &Change) {
        let renamed = change.changes_names();
        let dirs = if renamed {
            self.dirs(change)
        } else {
            Vec::new()
        };
        let mut known = self.inodes.lock();
        let ino = known.held(change.inode);
        let outdated: Vec<Ino> = ino.into_iter().chain(dirs.iter().copied()).collect();
        outdated.iter().for_each(|ino| known.outdate(*ino));
        drop(known);
        for &ino in &outdated {
            self.kernel.inval_attr(ino);
        }
        // Not only for names: a look-up that was answered before the change may be on its way to an
        // inode that the kernel has not made yet.
        if !outdated.is_empty() && self.names == NameCache::Epoch {
            self.kernel.inval_names();
        }
    }

    /// A change that came through this mount: returns when the process that made it has brought it
    /// into the kernel's caches, which happens after the answer. No notification can wait for that,
    /// so this looks at the caches until they are right.
    pub fn settle(&self, change: &Change) {
        let end = Instant::now() + SETTLE_LIMIT;
        let [mut pause, longest] = SETTLE_PAUSES;
        while let Some(expected) = self.expected(change) {
            if expected.is_shown() || Instant::now() >= end {
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(longest);
        }
    }

    /// What the caches show after `change`. `None` if the kernel knows nothing of it or the tree has
    /// gone on: the kernel sends the next change of a name or a file when it is done with this one.
    fn expected(&self, change: &Change) -> Option<Expected> {
        let mountpoint = self.mountpoint.as_deref()?;
        let tree = self.tree.read();
        let (path, row) = match (&change.put, &change.removed) {
            (Some(row), _) => {
                let last = tree.get(row.inode).filter(|e| e.version == row.version);
                last.and_then(|_| tree.path_of(row.inode))
                    .map(|path| (path, Some(row)))?
            }
            (None, Some(removed)) => {
                let path = removed.path.clone();
                (tree.lookup(&path).is_none().then_some(path)?, None)
            }
            (None, None) => return None,
        };
        let (dir, name) = path.split_last()?;
        let dir_inode = tree.lookup(&TreePath::new(dir))?;
        let known = self.inodes.lock();
        let entry = match row {
            Some(row) => {
                let size = row.data.as_ref().map(|data| data.len() as u64);
                Some((known.held(row.inode)?, size))
            }
            None => None,
        };
        Some(Expected {
            dir: mountpoint.join(OsStr::from_bytes(dir)),
            dir_ino: known.held(dir_inode)?,
            name: Arc::from(name),
            entry,
            gone: known.numbers.known_number(change.inode),
        })
    }

    /// The directories in which a change made or removed names, of those that the kernel holds: of
    /// others it knows no names.
    fn dirs(&self, change: &Change) -> Vec<Ino> {
        let tree = self.tree.read();
        let known = self.inodes.lock();
        let of_path = |path: &TreePath| -> Option<Inode> {
            let (dir, _) = path.split_last()?;
            tree.lookup(&TreePath::new(dir))
        };
        let put = change.put.as_ref().filter(|row| row.inode != ROOT_INODE);
        let removed = change.removed.as_ref().map(|removed| &removed.path);
        let paths = removed.into_iter().chain(&change.effects.touched);
        let parents = put.map(|row| row.parent).into_iter();
        let mut dirs: Vec<Ino> = parents
            .chain(paths.filter_map(of_path))
            .filter_map(|dir| known.held(dir))
            .collect();
        dirs.sort_unstable();
        dirs.dedup();
        dirs
    }
}

impl crate::replica::Barrier for Notifier {
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

        fn inval_names(&self) {
            self.0.lock().push("names".into());
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
        fn new(names: NameCache) -> Self {
            let mut tree = Tree::new();
            tree.set_version_for_test(1);
            let (tree, inodes) = (Arc::new(RwLock::new(tree)), Inodes::new());
            let notes = Arc::new(Notes::default());
            let notifier = Notifier::new(notes.clone(), names, inodes.clone(), tree.clone());
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

        /// What the kernel is told of a foreign change.
        fn told(&self, op: Op) -> Vec<String> {
            let change = self.apply(op);
            self.notifier.invalidate(&change);
            self.notes()
        }

        /// The kernel knows these inodes.
        fn hold(&self, inodes: std::ops::Range<Inode>) {
            for inode in inodes {
                self.inodes.lock().refer(inode);
            }
        }

        fn editions(&self, inos: [Ino; 3]) -> [u32; 3] {
            let known = self.inodes.lock();
            inos.map(|ino| known.edition(ino))
        }

        fn notes(&self) -> Vec<String> {
            std::mem::take(&mut self.notes.0.lock())
        }
    }

    fn path(path: &str) -> TreePath {
        TreePath::new(path.as_bytes())
    }

    fn write(at: &str) -> Op {
        Op::Write {
            path: path(at),
            offset: 0,
            data: vec![1],
            truncate: false,
        }
    }

    fn rename(from: &str, to: &str) -> Op {
        let (from, to) = (path(from), path(to));
        Op::Rename { from, to }
    }

    #[test]
    fn foreign_changes_are_forgotten() {
        let fixture = Fixture::new(NameCache::Epoch);
        fixture.hold(2..9);
        let told = |op| fixture.told(op);
        let create = Op::Create { path: path("d/g") };
        assert_eq!(told(create), ["attr 4", "attr 2", "names"]);
        assert_eq!(fixture.editions([2, 3, 4]), [1, 0, 1]);
        assert_eq!(told(write("d/g")), ["attr 4", "names"]);
        assert_eq!(fixture.editions([2, 3, 4]), [1, 0, 2]);
        assert_eq!(told(rename("d/g", "d/f")), ["attr 4", "attr 2", "names"]);
        let delete = Op::Delete { path: path("d/f") };
        assert_eq!(told(delete), ["attr 4", "attr 2", "names"]);
        assert_eq!(fixture.editions([2, 3, 4]), [3, 0, 4]);
        let mkdir = Op::Mkdir { path: path("e") };
        assert_eq!(told(mkdir), ["attr 8", "attr 1", "names"]);
        let away = rename("e", "d/e");
        assert_eq!(told(away), ["attr 8", "attr 1", "attr 2", "names"]);
    }

    #[test]
    fn names_that_live_for_a_second_need_no_invalidation() {
        let fixture = Fixture::new(NameCache::Lifetime);
        fixture.hold(2..9);
        let create = Op::Create { path: path("d/g") };
        assert_eq!(fixture.told(create), ["attr 4", "attr 2"]);
    }

    #[test]
    fn nothing_is_forgotten_of_what_the_kernel_does_not_hold() {
        let fixture = Fixture::new(NameCache::Epoch);
        let unknown = fixture.apply(Op::Create { path: path("d/g") });
        fixture.notifier.invalidate(&unknown);
        assert_eq!(fixture.notes(), [""; 0]);
        // The directory is enough: it may be known that the name does not exist.
        fixture.inodes.lock().refer(2);
        let removed = fixture.apply(Op::Delete { path: path("d/g") });
        fixture.notifier.invalidate(&removed);
        assert_eq!(fixture.notes(), ["attr 2", "names"]);
        fixture.inodes.lock().forget(2, 1);
        fixture.notifier.invalidate(&removed);
        assert_eq!(fixture.notes(), [""; 0]);
        // And so is the file, open since before.
        fixture.inodes.lock().refer(3);
        assert_eq!(fixture.told(write("d/f")), ["attr 3", "names"]);
        // The root is always there.
        let in_root = fixture.apply(Op::Create { path: path("r") });
        fixture.notifier.invalidate(&in_root);
        assert_eq!(fixture.notes(), ["attr 1", "names"]);
    }

    #[test]
    fn own_changes_are_looked_for_where_they_are() {
        let fixture = Fixture::new(NameCache::Epoch);
        let notifier = fixture.notifier.clone().mounted_on(Path::new("/m"));
        let change = fixture.apply(write("d/f"));
        assert!(notifier.expected(&change).is_none(), "not held");
        fixture.hold(2..9);
        let expected = notifier.expected(&change).unwrap();
        assert_eq!(expected.dir, Path::new("/m/d"));
        assert_eq!((expected.dir_ino, &*expected.name), (2, &b"f"[..]));
        assert_eq!(expected.entry, Some((3, Some(1))));
        let moved = fixture.apply(rename("d/f", "d/g"));
        assert!(notifier.expected(&change).is_none(), "there is a later one");
        assert_eq!(&*notifier.expected(&moved).unwrap().name, b"g");
        let removed = fixture.apply(Op::Delete { path: path("d/g") });
        let expected = notifier.expected(&removed).unwrap();
        assert_eq!((expected.entry, expected.gone), (None, Some(3)));
        assert_eq!(fixture.notes(), [""; 0]);
    }

    #[test]
    fn quorum_concerns_everything_the_kernel_knows() {
        let fixture = Fixture::new(NameCache::Epoch);
        fixture.hold(2..4);
        fixture.notifier.quorum_changed();
        let mut notes = fixture.notes();
        assert_eq!(notes.len(), 3 + Link::ALL.len());
        notes.sort();
        assert_eq!(notes[..3], ["attr 1", "attr 2", "attr 3"]);
    }
}
