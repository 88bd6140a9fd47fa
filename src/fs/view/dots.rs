//! The computed files in the root: each text is an inode of its own, so whoever has one open keeps
//! reading what was there when it was opened.
//!
//! With one exception. A name that gets another inode makes the kernel look it up again with the
//! directory locked. While a change of a name in the root is under way the kernel holds that lock
//! itself, possibly for long (a cluster that synchronises), and reading a dot file must not wait
//! for it. So the inode that the kernel already has gets the new text then. (After a change of a name
//! by another node the kernel may look it up with the lock all the same, adr/009.)
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use parking_lot::Mutex;

use super::{EIO, Inner, NO_TTL};
use crate::fs::DotFile;
use crate::fs::known::Ticket;
use crate::fs::ops::{Entry, Ino, Reply};

/// Where a text goes that was asked for.
enum Slot {
    /// Asked, no answer yet.
    Asked,
    /// Answered before the look-up was.
    Text(Arc<[u8]>),
    /// The look-up was answered with this inode, which still has no text.
    Promised(Ino),
}

impl Inner {
    pub(super) fn lookup_dot(self: &Arc<Self>, file: DotFile, reply: Reply<Entry>) {
        let busy = self.root_changes.load(SeqCst) > 0;
        let mut known = self.inodes.lock();
        let asked = known.ticket();
        let newest = known.newest(file).filter(|_| busy);
        drop(known);
        let Some(ino) = newest else {
            return self.lookup_new_dot(file, asked, reply);
        };
        // May wait: this look-up only revalidates a name and has locked nothing.
        let inner = Arc::clone(self);
        let renew = move |text| inner.renew_dot(file, ino, asked, text, reply);
        self.dots.content(file, Box::new(renew));
    }

    fn renew_dot(
        self: &Arc<Self>,
        file: DotFile,
        ino: Ino,
        asked: Ticket,
        text: Arc<[u8]>,
        reply: Reply<Entry>,
    ) {
        let renewed = self.inodes.lock().renew(ino, asked, text);
        let Some(size) = renewed else {
            return self.lookup_new_dot(file, asked, reply);
        };
        reply(Ok(Entry::Found {
            attr: self.dot_attr(ino, file, size),
            attr_ttl: self.lifetimes().attributes,
            entry_ttl: NO_TTL,
        }));
    }

    /// A look-up must not wait: the kernel holds the lock of the directory meanwhile. So a text that is
    /// not there at once is promised: an inode without attributes, and the kernel asks for these next.
    fn lookup_new_dot(self: &Arc<Self>, file: DotFile, asked: Ticket, reply: Reply<Entry>) {
        let slot = Arc::new(Mutex::new(Slot::Asked));
        let (inner, late) = (Arc::clone(self), Arc::clone(&slot));
        self.dots.content(
            file,
            Box::new(move |text| {
                let mut slot = late.lock();
                if let Slot::Promised(ino) = *slot {
                    drop(slot);
                    inner.deliver(ino, text);
                } else {
                    *slot = Slot::Text(text);
                }
            }),
        );
        let mut slot = slot.lock();
        let (ino, size, attr_ttl) = match std::mem::replace(&mut *slot, Slot::Asked) {
            Slot::Text(text) => {
                let size = text.len() as u64;
                let ino = self.inodes.lock().generation(file, asked, text);
                (ino, size, self.lifetimes().attributes)
            }
            Slot::Asked | Slot::Promised(_) => {
                let ino = self.inodes.lock().awaited_generation(file, asked);
                *slot = Slot::Promised(ino);
                (ino, 0, NO_TTL)
            }
        };
        drop(slot);
        let attr = self.dot_attr(ino, file, size);
        reply(Ok(Entry::Found {
            attr,
            attr_ttl,
            entry_ttl: NO_TTL,
        }));
    }

    fn deliver(&self, ino: Ino, text: Arc<[u8]>) {
        let waiters = self.inodes.lock().resolve(ino, Arc::clone(&text));
        for waiter in waiters {
            waiter(&text);
        }
    }

    /// Goes on with `then`, at once unless `ino` is a dot file whose text is still awaited.
    pub(super) fn when_text_is_there(
        self: &Arc<Self>,
        ino: Ino,
        then: impl FnOnce(&Arc<Inner>) + Send + 'static,
    ) {
        let mut known = self.inodes.lock();
        if known.dot_file(ino).is_none() || known.text(ino).is_some() {
            drop(known);
            return then(self);
        }
        let inner = Arc::clone(self);
        let left_over = known.wait(ino, Box::new(move |_| then(&inner)));
        drop(known);
        // Cannot be: the lock was held since it was seen that the text is awaited.
        debug_assert!(left_over.is_none());
    }

    /// Only `.debug` can be written: `0\n` or `1\n` at its start, the rest is ignored.
    pub(super) fn write_dot(
        &self,
        ino: Ino,
        file: DotFile,
        offset: u64,
        data: &[u8],
        reply: Reply<u32>,
    ) {
        if file != DotFile::Debug || offset != 0 {
            return reply(Err(EIO));
        }
        let on = match data.get(..2) {
            Some(b"0\n") => false,
            Some(b"1\n") => true,
            _ => return reply(Err(EIO)),
        };
        self.dots.set_debug(on);
        self.inodes.lock().retire(ino, Arc::from(&data[..2]));
        reply(Ok(2));
    }
}
