//! Inode numbers: those of the tree, as they stand in the database, and a few of our own.
//!
//! | kernel | what |
//! |---|---|
//! | 1 | root of the mount, inode 0 of the tree |
//! | 2 … 2^62 - 1 | the inode of the tree with the same number |
//! | 2^62 + 1 … 2^62 + 15 | symbolic links in the root |
//! | 2^62 + 16 … 2^62 + 31 | dot files as listings show them |
//! | 2^62 + 2^32 … | one generation of a dot file each |
//! | 2^62 + 2^61 … | inodes of the tree whose number is taken: above, or by an entry that is gone |
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};

use super::DotFile;
use super::ops::{Ino, ROOT_INO};
use crate::memdb::{Inode, ROOT_INODE};

const OWN: Ino = 1 << 62;
const LINKS: Ino = OWN + 1;
const DOT_NAMES: Ino = OWN + 16;
const GENERATIONS: Ino = OWN + (1 << 32);
const ALIASES: Ino = OWN + (1 << 61);

/// The symbolic links in the root (filesystem.md 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Local,
    QemuServer,
    Lxc,
    OpenVz,
}

impl Link {
    /// All of them.
    pub const ALL: [Link; 4] = [Link::Local, Link::QemuServer, Link::Lxc, Link::OpenVz];

    /// Name in the root.
    pub fn name(self) -> &'static str {
        match self {
            Link::Local => "local",
            Link::QemuServer => "qemu-server",
            Link::Lxc => "lxc",
            Link::OpenVz => "openvz",
        }
    }

    /// Where it points to.
    pub fn target(self, node: &str) -> String {
        match self {
            Link::Local => format!("nodes/{node}"),
            other => format!("nodes/{node}/{}", other.name()),
        }
    }

    /// Its inode.
    pub fn ino(self) -> Ino {
        LINKS + self as u64
    }

    /// The link with this inode.
    pub fn from_ino(ino: Ino) -> Option<Self> {
        Link::ALL.into_iter().find(|link| link.ino() == ino)
    }
}

/// An entry of the root that is not in the database; hides database entries of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    Link(Link),
    Dot(DotFile),
}

impl Plugin {
    /// By name in the root directory.
    pub fn by_name(name: &[u8]) -> Option<Self> {
        let dot = DotFile::ALL
            .into_iter()
            .find(|dot| dot.name().as_bytes() == name);
        let link = || {
            Link::ALL
                .into_iter()
                .find(|link| link.name().as_bytes() == name)
        };
        dot.map(Plugin::Dot).or_else(|| link().map(Plugin::Link))
    }

    /// Name in the root directory.
    pub fn name(self) -> &'static str {
        match self {
            Plugin::Link(link) => link.name(),
            Plugin::Dot(dot) => dot.name(),
        }
    }

    /// Inode as listings show it.
    pub fn listed_ino(self) -> Ino {
        match self {
            Plugin::Link(link) => link.ino(),
            Plugin::Dot(dot) => DOT_NAMES + dot as u64,
        }
    }

    /// All of them, in the order of listings.
    pub fn all() -> impl Iterator<Item = Plugin> {
        let links = Link::ALL.into_iter().map(Plugin::Link);
        links.chain(DotFile::ALL.into_iter().map(Plugin::Dot))
    }
}

/// Translates numbers of the tree to numbers for the kernel and back.
#[derive(Debug, Default)]
pub struct Numbers {
    generations: u64,
    aliases: u64,
    alias_of: HashMap<Inode, Ino>,
    aliased: HashMap<Ino, Inode>,
    /// Numbers that the kernel holds for entries that are gone.
    gone: HashSet<Ino>,
}

impl Numbers {
    /// Number for the kernel. An inode of the tree with an odd number (1, or 2^62 and above) gets
    /// an alias for as long as this process runs. So does one whose number the kernel holds for
    /// another entry: a tree that replaces the one before may give numbers out a second time.
    pub fn kernel_number(&mut self, inode: Inode) -> Ino {
        if inode == ROOT_INODE {
            return ROOT_INO;
        }
        if let Some(ino) = self.alias_of.get(&inode) {
            return *ino;
        }
        if (2..OWN).contains(&inode) && !self.gone.contains(&inode) {
            return inode;
        }
        let ino = ALIASES + self.aliases;
        self.aliases += 1;
        self.alias_of.insert(inode, ino);
        self.aliased.insert(ino, inode);
        ino
    }

    /// The entry `inode` is gone, but the kernel goes on to know it as `ino`.
    pub fn keep(&mut self, inode: Inode, ino: Ino) {
        self.gone.insert(ino);
        if self.aliased.remove(&ino).is_some() {
            self.alias_of.remove(&inode);
        }
    }

    /// The kernel has forgotten `ino`.
    pub fn release(&mut self, ino: Ino) {
        self.gone.remove(&ino);
    }

    /// Number for the kernel if the kernel can know it already.
    pub fn known_number(&self, inode: Inode) -> Option<Ino> {
        let own = match inode {
            ROOT_INODE => Some(ROOT_INO),
            2..OWN => Some(inode),
            _ => None,
        };
        self.alias_of.get(&inode).copied().or(own)
    }

    /// Number in the tree; `None` for what is not in the tree.
    pub fn tree_number(&self, ino: Ino) -> Option<Inode> {
        match ino {
            ROOT_INO => Some(ROOT_INODE),
            2..OWN => {
                let taken = self.gone.contains(&ino) || self.alias_of.contains_key(&ino);
                (!taken).then_some(ino)
            }
            other => self.aliased.get(&other).copied(),
        }
    }

    /// A number for a new generation of a dot file; never used twice.
    pub fn new_generation(&mut self) -> Ino {
        self.generations += 1;
        GENERATIONS + self.generations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_numbers_are_the_trees_own() {
        let mut numbers = Numbers::default();
        for (inode, ino) in [(0, 1), (2, 2), (3, 3), (0x1234_5678_9abc, 0x1234_5678_9abc)] {
            assert_eq!(numbers.kernel_number(inode), ino);
            assert_eq!(numbers.tree_number(ino), Some(inode));
        }
    }

    #[test]
    fn odd_numbers_get_an_alias() {
        let mut numbers = Numbers::default();
        let odd = [1, OWN, OWN + 1, GENERATIONS + 5, 1 << 63, u64::MAX];
        let inos: Vec<Ino> = odd.iter().map(|&n| numbers.kernel_number(n)).collect();
        for (inode, ino) in odd.iter().zip(&inos) {
            assert!(*ino >= ALIASES && *ino < 1 << 63, "{ino:#x}");
            assert_eq!(numbers.tree_number(*ino), Some(*inode));
            assert_eq!(numbers.kernel_number(*inode), *ino);
            assert_eq!(numbers.known_number(*inode), Some(*ino));
        }
        assert_eq!(
            inos.iter().collect::<std::collections::HashSet<_>>().len(),
            odd.len()
        );
        assert_eq!(numbers.known_number(OWN + 2), None);
    }

    #[test]
    fn a_number_that_the_kernel_holds_is_not_given_out_again() {
        let mut numbers = Numbers::default();
        for inode in [7, u64::MAX] {
            let first = numbers.kernel_number(inode);
            numbers.keep(inode, first);
            assert_eq!(numbers.tree_number(first), None);
            let second = numbers.kernel_number(inode);
            assert_ne!(first, second);
            assert_eq!(numbers.known_number(inode), Some(second));
            // That one goes, too.
            numbers.keep(inode, second);
            assert_eq!(numbers.tree_number(second), None);
            let third = numbers.kernel_number(inode);
            assert!(third != first && third != second);
            numbers.release(first);
            numbers.release(second);
            assert_eq!(numbers.kernel_number(inode), third);
            assert_eq!(numbers.tree_number(third), Some(inode));
            assert_eq!(numbers.tree_number(first), None);
        }
        // Nobody came after this one.
        numbers.keep(9, 9);
        numbers.release(9);
        assert_eq!(numbers.kernel_number(9), 9);
        assert_eq!(numbers.tree_number(9), Some(9));
    }

    #[test]
    fn own_numbers_are_not_in_the_tree() {
        let mut numbers = Numbers::default();
        for link in Link::ALL {
            assert_eq!(numbers.tree_number(link.ino()), None);
            assert_eq!(Link::from_ino(link.ino()), Some(link));
        }
        let first = numbers.new_generation();
        let second = numbers.new_generation();
        assert_ne!(first, second);
        assert_eq!(numbers.tree_number(first), None);
        assert_eq!(Link::from_ino(first), None);
    }

    #[test]
    fn plugins_are_found_by_name() {
        for plugin in Plugin::all() {
            assert_eq!(Plugin::by_name(plugin.name().as_bytes()), Some(plugin));
        }
        assert_eq!(Plugin::all().count(), 10);
        assert_eq!(Plugin::by_name(b"priv"), None);
        assert_eq!(Plugin::by_name(b".Version"), None);
        assert_eq!(Link::Local.target("n1"), "nodes/n1");
        assert_eq!(Link::Lxc.target("n1"), "nodes/n1/lxc");
    }
}
