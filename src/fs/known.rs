//! What the kernel knows of our inodes: references, removed but still open files, generations of
//! the dot files.
//!
//! Lock order: tree → inodes. Nothing is called with the inodes locked.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::DotFile;
use super::inode::Numbers;
use super::ops::{Ino, ROOT_INO};
use crate::memdb::{Change, Inode, Kind, RemovedEntry, TreePath};
use crate::replica::Observer;

/// Editions stay below the nanoseconds of a second.
const EDITIONS: u32 = 1_000_000_000;

/// Continues a request once the text of a dot file is there.
pub type Waiter = Box<dyn FnOnce(&Arc<[u8]>) + Send>;

/// Moment at which a text was asked for: a text is never older than its ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// An entry that has no name any more but that the kernel still refers to.
#[derive(Debug, Clone)]
pub struct Orphan {
    /// Content; `None` for a directory (it was empty, and nothing can be created in it).
    pub content: Option<Arc<[u8]>>,
    pub mtime: u32,
    /// Path it had: decides about its mode.
    pub path: TreePath,
}

/// The text of a dot file at one moment; an inode of its own.
pub struct Generation {
    file: DotFile,
    text: Text,
    /// When the text was asked for.
    asked: Ticket,
}

enum Text {
    Ready(Arc<[u8]>),
    Awaited(Vec<Waiter>),
}

/// The books, behind one lock.
#[derive(Default)]
pub struct Known {
    /// Inode numbers.
    pub numbers: Numbers,
    /// References the kernel holds by look-ups; the root is not counted.
    references: HashMap<Ino, u64>,
    /// See [`Known::edition`]; 0 if absent.
    editions: HashMap<Ino, u32>,
    orphans: HashMap<Ino, Orphan>,
    generations: HashMap<Ino, Generation>,
    /// Newest generation of each dot file.
    current: [Option<Ino>; DotFile::ALL.len()],
    tickets: u64,
}

impl Known {
    /// The kernel gets one more reference to an inode of the tree.
    pub fn refer(&mut self, inode: Inode) -> Ino {
        let ino = self.numbers.kernel_number(inode);
        self.refer_ino(ino);
        ino
    }

    fn refer_ino(&mut self, ino: Ino) {
        *self.references.entry(ino).or_insert(0) += 1;
    }

    /// The kernel dropped `count` references. With the last one everything that was kept only for
    /// the kernel goes.
    pub fn forget(&mut self, ino: Ino, count: u64) {
        let Some(left) = self.references.get_mut(&ino) else {
            return;
        };
        *left = left.saturating_sub(count);
        if *left > 0 {
            return;
        }
        self.references.remove(&ino);
        self.editions.remove(&ino);
        if self.orphans.remove(&ino).is_some() {
            self.numbers.release(ino);
        }
        if let Some(gone) = self.generations.remove(&ino) {
            let current = &mut self.current[gone.file as usize];
            if *current == Some(ino) {
                *current = None;
            }
        }
    }

    /// How often the content or the listing of `ino` has changed behind the kernel's back since the
    /// kernel knows it. The kernel sees it in the modification time ([`Attr::edition`]), and drops
    /// what it has cached when it sees another one.
    ///
    /// [`Attr::edition`]: super::ops::Attr::edition
    pub fn edition(&self, ino: Ino) -> u32 {
        self.editions.get(&ino).copied().unwrap_or(0)
    }

    /// What the kernel has cached of the content or the listing of `ino` is wrong from now on.
    pub fn outdate(&mut self, ino: Ino) {
        if ino == ROOT_INO || self.references(ino) > 0 {
            let edition = self.editions.entry(ino).or_insert(0);
            *edition = (*edition + 1) % EDITIONS;
        }
    }

    /// Number of references the kernel holds.
    pub fn references(&self, ino: Ino) -> u64 {
        self.references.get(&ino).copied().unwrap_or(0)
    }

    /// Number of an inode of the tree, if the kernel refers to it.
    pub fn held(&self, inode: Inode) -> Option<Ino> {
        let ino = self.numbers.known_number(inode)?;
        (ino == ROOT_INO || self.references(ino) > 0).then_some(ino)
    }

    /// Every inode that the kernel refers to, the root excepted.
    pub fn inos(&self) -> Vec<Ino> {
        self.references.keys().copied().collect()
    }

    /// Keeps a removed entry if the kernel may still ask for it.
    pub fn removed(&mut self, entry: &RemovedEntry) {
        let Some(ino) = self.numbers.known_number(entry.inode) else {
            return;
        };
        // Who had the number before is not to be mixed up with this entry, which nobody looked up.
        if self.references(ino) == 0 || self.orphans.contains_key(&ino) {
            return;
        }
        let content = match &entry.kind {
            Kind::File(data) => Some(Arc::clone(data)),
            Kind::Dir(_) => None,
        };
        let orphan = Orphan {
            content,
            mtime: entry.mtime,
            path: entry.path.clone(),
        };
        self.orphan_now(entry.inode, ino, orphan);
    }

    fn orphan_now(&mut self, inode: Inode, ino: Ino, orphan: Orphan) {
        self.orphans.insert(ino, orphan);
        self.numbers.keep(inode, ino);
    }

    /// Takes up an entry that was created and already removed again before the kernel heard of it.
    pub fn stillborn(&mut self, inode: Inode, orphan: Orphan) -> Ino {
        let ino = self.refer(inode);
        self.orphan_now(inode, ino, orphan);
        ino
    }

    /// A removed entry.
    pub fn orphan(&self, ino: Ino) -> Option<&Orphan> {
        self.orphans.get(&ino)
    }

    /// A removed entry, to be changed.
    pub fn orphan_mut(&mut self, ino: Ino) -> Option<&mut Orphan> {
        self.orphans.get_mut(&ino)
    }

    /// To be taken before a text is asked for.
    pub fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// The inode whose content is `text`: the newest one of `file` if its text is the same, else a
    /// new one. The kernel gets a reference.
    pub fn generation(&mut self, file: DotFile, asked: Ticket, text: Arc<[u8]>) -> Ino {
        let current = self.current[file as usize];
        let same = current.filter(|ino| match self.generations.get(ino) {
            Some(Generation {
                text: Text::Ready(have),
                ..
            }) => *have == text,
            _ => false,
        });
        let ino = same.unwrap_or_else(|| self.add_generation(file, asked, Text::Ready(text)));
        self.refer_ino(ino);
        ino
    }

    /// A new inode of `file` whose text comes later (see [`Known::resolve`]). The kernel gets a
    /// reference.
    pub fn awaited_generation(&mut self, file: DotFile, asked: Ticket) -> Ino {
        let ino = self.add_generation(file, asked, Text::Awaited(Vec::new()));
        self.refer_ino(ino);
        ino
    }

    fn add_generation(&mut self, file: DotFile, asked: Ticket, text: Text) -> Ino {
        let ino = self.numbers.new_generation();
        self.generations
            .insert(ino, Generation { file, text, asked });
        self.current[file as usize] = Some(ino);
        ino
    }

    /// The text of an awaited generation has come. Returns those who wait for it: they are to be
    /// called without the lock.
    #[must_use]
    pub fn resolve(&mut self, ino: Ino, text: Arc<[u8]>) -> Vec<Waiter> {
        let Some(generation) = self.generations.get_mut(&ino) else {
            return Vec::new();
        };
        match std::mem::replace(&mut generation.text, Text::Ready(text)) {
            Text::Awaited(waiters) => waiters,
            Text::Ready(_) => Vec::new(),
        }
    }

    /// The newest generation of `file`, if the kernel refers to it and its text is there.
    pub fn newest(&self, file: DotFile) -> Option<Ino> {
        let ino = self.current[file as usize]?;
        (self.references(ino) > 0 && self.text(ino).is_some()).then_some(ino)
    }

    /// Gives a generation another text, unless it has one that was asked for later. The kernel gets
    /// a reference. Returns the size in bytes of the text it has now; `None` if the kernel has
    /// forgotten the inode.
    pub fn renew(&mut self, ino: Ino, asked: Ticket, text: Arc<[u8]>) -> Option<u64> {
        let generation = self.generations.get_mut(&ino)?;
        let Text::Ready(have) = &mut generation.text else {
            return None;
        };
        let mut outdated = false;
        if asked > generation.asked {
            outdated = *have != text;
            *have = text;
            generation.asked = asked;
        }
        let size = have.len() as u64;
        self.refer_ino(ino);
        if outdated {
            self.outdate(ino);
        }
        Some(size)
    }

    /// The dot file that an inode is a generation of.
    pub fn dot_file(&self, ino: Ino) -> Option<DotFile> {
        self.generations.get(&ino).map(|generation| generation.file)
    }

    /// Text of a generation; `None` if it is still awaited (or there is no such inode).
    pub fn text(&self, ino: Ino) -> Option<&Arc<[u8]>> {
        match &self.generations.get(&ino)?.text {
            Text::Ready(text) => Some(text),
            Text::Awaited(_) => None,
        }
    }

    /// Continues with `waiter` once the text of an awaited generation is there. Gives it back if
    /// there is nothing to wait for.
    pub fn wait(&mut self, ino: Ino, waiter: Waiter) -> Option<Waiter> {
        match self
            .generations
            .get_mut(&ino)
            .map(|generation| &mut generation.text)
        {
            Some(Text::Awaited(waiters)) => {
                waiters.push(waiter);
                None
            }
            _ => Some(waiter),
        }
    }

    /// A generation was written to: the kernel's pages may hold something else than its text, so
    /// nobody else gets this inode again.
    pub fn retire(&mut self, ino: Ino, text: Arc<[u8]>) {
        let Some(generation) = self.generations.get_mut(&ino) else {
            return;
        };
        generation.text = Text::Ready(text);
        let current = &mut self.current[generation.file as usize];
        if *current == Some(ino) {
            *current = None;
        }
    }
}

/// [`Known`] as all threads share it. Has to see every change of the tree ([`Observer`]).
#[derive(Default)]
pub struct Inodes(Mutex<Known>);

impl Inodes {
    /// Nothing known yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Inodes::default())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock()
    }
}

impl Observer for Inodes {
    fn applied(&self, change: &Change) {
        if let Some(entry) = &change.removed {
            self.lock().removed(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn removed(inode: Inode, content: &[u8]) -> RemovedEntry {
        RemovedEntry {
            inode,
            mtime: 7,
            kind: Kind::File(Arc::from(content)),
            path: TreePath::new(b"a/b"),
        }
    }

    #[test]
    fn removed_files_stay_while_the_kernel_refers_to_them() {
        let mut known = Known::default();
        let ino = known.refer(5);
        known.refer(5);
        known.removed(&removed(5, b"abc"));
        known.removed(&removed(6, b"nobody looked at it"));
        assert!(known.orphan(6).is_none());
        known.forget(ino, 1);
        assert_eq!(
            known.orphan(ino).unwrap().content.as_deref(),
            Some(&b"abc"[..])
        );
        known.forget(ino, 1);
        assert!(known.orphan(ino).is_none());
        assert!(known.inos().is_empty());
        known.forget(ino, 1);
        assert_eq!(known.references(ino), 0);
    }

    #[test]
    fn editions_last_as_long_as_the_kernel_knows_the_inode() {
        let mut known = Known::default();
        known.outdate(5);
        assert_eq!(known.edition(5), 0);
        known.refer(5);
        known.outdate(5);
        known.outdate(5);
        assert_eq!(known.edition(5), 2);
        known.forget(5, 1);
        assert_eq!(known.edition(5), 0);
        known.outdate(ROOT_INO);
        assert_eq!(known.edition(ROOT_INO), 1);
    }

    #[test]
    fn odd_inodes_can_be_orphans() {
        let mut known = Known::default();
        let ino = known.refer(1);
        known.removed(&removed(1, b"x"));
        assert!(known.orphan(ino).is_some());
        known.removed(&removed(u64::MAX, b"x"));
        assert_eq!(known.numbers.known_number(u64::MAX), None);
    }

    fn text(text: &str) -> Arc<[u8]> {
        Arc::from(text.as_bytes())
    }

    /// Generation of a text that is asked for now.
    fn now(known: &mut Known, file: DotFile, content: &str) -> Ino {
        let asked = known.ticket();
        known.generation(file, asked, text(content))
    }

    /// Renewal with a text that is asked for now: the edition after that.
    fn renew(known: &mut Known, ino: Ino, content: &str) -> Option<u32> {
        let asked = known.ticket();
        known.renew(ino, asked, text(content))?;
        Some(known.edition(ino))
    }

    #[test]
    fn same_text_same_generation() {
        let mut known = Known::default();
        let first = now(&mut known, DotFile::Version, "1");
        assert_eq!(now(&mut known, DotFile::Version, "1"), first);
        assert_ne!(now(&mut known, DotFile::Members, "1"), first);
        let second = now(&mut known, DotFile::Version, "2");
        assert_ne!(second, first);
        assert_eq!(known.text(first).unwrap()[..], b"1"[..]);
        known.forget(first, 2);
        assert!(known.text(first).is_none());
        known.forget(second, 1);
        assert_ne!(now(&mut known, DotFile::Version, "2"), second);
    }

    #[test]
    fn written_generation_is_not_handed_out_again() {
        let mut known = Known::default();
        let first = now(&mut known, DotFile::Debug, "0\n");
        known.retire(first, text("1\n"));
        assert_ne!(now(&mut known, DotFile::Debug, "0\n"), first);
        assert_eq!(known.text(first).unwrap()[..], b"1\n"[..]);
    }

    #[test]
    fn renewed_generation_keeps_its_inode() {
        let mut known = Known::default();
        assert_eq!(known.newest(DotFile::Version), None);
        let ino = now(&mut known, DotFile::Version, "1");
        assert_eq!(known.newest(DotFile::Version), Some(ino));
        assert_eq!(renew(&mut known, ino, "1"), Some(0));
        assert_eq!(renew(&mut known, ino, "2"), Some(1));
        assert_eq!(renew(&mut known, ino, "2"), Some(1));
        assert_eq!(now(&mut known, DotFile::Version, "2"), ino);
        assert_eq!(known.edition(ino), 1);
        assert_eq!(known.references(ino), 5);
        known.forget(ino, 5);
        assert_eq!(renew(&mut known, ino, "3"), None);
        assert_eq!(known.edition(ino), 0);
        let asked = known.ticket();
        known.awaited_generation(DotFile::Version, asked);
        assert_eq!(known.newest(DotFile::Version), None);
    }

    #[test]
    fn older_text_does_not_replace_a_newer_one() {
        let mut known = Known::default();
        let ino = now(&mut known, DotFile::Version, "1");
        let (early, late) = (known.ticket(), known.ticket());
        assert_eq!(known.renew(ino, late, text("333")), Some(3));
        assert_eq!(known.renew(ino, early, text("22")), Some(3));
        assert_eq!(known.edition(ino), 1);
    }

    #[test]
    fn awaited_text_reaches_those_who_wait() {
        let mut known = Known::default();
        let asked = known.ticket();
        let ino = known.awaited_generation(DotFile::Version, asked);
        assert!(known.text(ino).is_none());
        let called = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            let called = called.clone();
            let waiter: Waiter = Box::new(move |text| {
                called.fetch_add(text.len(), Ordering::Relaxed);
            });
            assert!(known.wait(ino, waiter).is_none());
        }
        for waiter in known.resolve(ino, Arc::from(&b"1234"[..])) {
            waiter(known.text(ino).unwrap());
        }
        assert_eq!(called.load(Ordering::Relaxed), 12);
        assert!(known.wait(ino, Box::new(|_| ())).is_some());
        assert!(known.resolve(99, Arc::from(&b""[..])).is_empty());
    }
}
