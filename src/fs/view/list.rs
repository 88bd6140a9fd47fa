//! Listings of directories.
//!
//! The position behind an entry of the tree is made of its inode number, so it stays right while
//! entries come and go between two requests (`rm -r` does that).
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::{ENOENT, Inner, check_name, plugin};
use crate::fs::inode::Plugin;
use crate::fs::ops::{DirEntry, Errno, FileKind, Ino, ROOT_INO};
use crate::memdb::{Inode, Moment, ROOT_INODE, Tree};

/// Positions below this one belong to `.`, `..` and the plugin entries.
const TREE_START: u64 = 64;
/// Directories with fewer entries are sorted again for each request.
const WORTH_KEEPING: usize = 64;

/// One entry of the tree in a listing.
struct Item {
    ino: Ino,
    kind: FileKind,
    name: Arc<[u8]>,
}

/// The entries of a directory, ascending by inode.
type Items = Arc<[Item]>;

/// The last big listing: its directory, the state of the tree, the entries.
#[derive(Default)]
pub(super) struct Cache(Option<(Inode, Moment, Items)>);

#[cfg(test)]
impl Cache {
    /// Where the listing is that is kept.
    pub(super) fn address(&self) -> Option<*const ()> {
        self.0.as_ref().map(|(_, _, items)| items.as_ptr().cast())
    }
}

impl Inner {
    pub(super) fn readdir(
        &self,
        dir: Ino,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let tree = self.tree.read();
        let inode = self.inodes.lock().numbers.tree_number(dir).ok_or(ENOENT)?;
        let parent = tree.get(inode).ok_or(ENOENT)?.parent;
        let items = self.items(&tree, inode)?;
        let parent = self.inodes.lock().numbers.kernel_number(parent);
        drop(tree);

        let fixed = fixed_entries(dir, parent);
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, (name, ino, kind)) in (1..).zip(fixed).skip(skip) {
            if add(DirEntry {
                ino,
                next,
                kind,
                name: name.as_bytes(),
            }) {
                return Ok(());
            }
        }
        let from = items.partition_point(|item| item.ino.saturating_add(TREE_START) <= offset);
        for item in &items[from..] {
            let next = item.ino + TREE_START;
            if add(DirEntry {
                ino: item.ino,
                next,
                kind: item.kind,
                name: &item.name,
            }) {
                break;
            }
        }
        Ok(())
    }

    fn items(&self, tree: &Tree, dir: Inode) -> Result<Items, Errno> {
        let moment = tree.moment();
        if let Some((of, at, items)) = &self.listings.lock().0 {
            if (*of, at) == (dir, &moment) {
                return Ok(Arc::clone(items));
            }
        }
        let children = tree.get(dir).and_then(|entry| entry.children());
        let children = children.ok_or(Errno(libc::ENOTDIR))?;
        // A single name that the kernel does not take would make it refuse the whole listing.
        let hidden = |name: &[u8]| {
            let by_plugin = dir == ROOT_INODE && plugin(ROOT_INO, name).is_some();
            by_plugin || check_name(name).is_err() || !Tree::servable_name(name)
        };
        let mut known = self.inodes.lock();
        let mut items: Vec<Item> = children
            .iter()
            .filter(|(name, _)| !hidden(name))
            .filter_map(|(name, &child)| {
                let is_dir = tree.get(child)?.is_dir();
                let kind = if is_dir {
                    FileKind::Directory
                } else {
                    FileKind::Regular
                };
                Some(Item {
                    ino: known.numbers.kernel_number(child),
                    kind,
                    name: Arc::clone(name),
                })
            })
            .collect();
        drop(known);
        items.sort_unstable_by_key(|item| item.ino);
        let items: Items = items.into();
        if items.len() >= WORTH_KEEPING {
            self.listings.lock().0 = Some((dir, moment, Arc::clone(&items)));
        }
        Ok(items)
    }
}

/// `.`, `..` and, in the root, links and dot files.
fn fixed_entries(dir: Ino, parent: Ino) -> impl Iterator<Item = (&'static str, Ino, FileKind)> {
    let dots = [
        (".", dir, FileKind::Directory),
        ("..", parent, FileKind::Directory),
    ];
    let plugins = Plugin::all()
        .filter(move |_| dir == ROOT_INO)
        .map(|plugin| {
            let kind = match plugin {
                Plugin::Link(_) => FileKind::Symlink,
                Plugin::Dot(_) => FileKind::Regular,
            };
            (plugin.name(), plugin.listed_ino(), kind)
        });
    dots.into_iter().chain(plugins)
}
