//! A tree in memory behind the FUSE view: no database, no cluster. For tests of the mount and for
//! the example `fs_local`.
#![allow(dead_code)] // each user needs a part of it

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use pmxcfs::fs::{
    DotFile, DotFiles, DotReady, Inodes, Served, Tuning, View, ViewConfig, mount, serve,
};
use pmxcfs::memdb::{Change, Op, Stamp, Tree, TreePath};
use pmxcfs::replica::{Applied, Done, Observer, Replica, SharedTree};

pub const GID: u32 = 33;

/// Applies changes at once, or keeps them waiting while held.
pub struct MemReplica {
    pub tree: SharedTree,
    inodes: Arc<Inodes>,
    quorate: AtomicBool,
    held: Mutex<Option<Vec<(Op, Done)>>>,
}

impl MemReplica {
    fn apply(&self, op: &Op) -> Result<Applied, pmxcfs::memdb::Error> {
        let mut tree = self.tree.write();
        let change = tree.apply_local(op, now(), now())?;
        self.inodes.applied(&change);
        Ok(Applied {
            inode: change.inode,
        })
    }

    /// From now on nothing is applied.
    pub fn hold(&self) {
        *self.held.lock() = Some(Vec::new());
    }

    /// Number of changes that wait.
    pub fn waiting(&self) -> usize {
        self.held.lock().as_ref().map_or(0, Vec::len)
    }

    /// Applies what waits, and everything that comes.
    pub fn release(&self) {
        for (op, done) in self.held.lock().take().unwrap_or_default() {
            done(self.apply(&op));
        }
    }

    pub fn set_quorate(&self, quorate: bool) {
        self.quorate.store(quorate, Ordering::SeqCst);
    }

    /// A change made by another node.
    pub fn remote(&self, op: &Op) -> Change {
        let stamp = Stamp {
            writer: 2,
            mtime: now(),
        };
        let mut tree = self.tree.write();
        let change = tree.apply(op, stamp, now()).expect("remote change");
        self.inodes.applied(&change);
        change
    }
}

impl Replica for MemReplica {
    fn submit(&self, op: Op, done: Done) {
        if let Some(held) = self.held.lock().as_mut() {
            held.push((op, done));
            return;
        }
        done(self.apply(&op));
    }

    fn quorate(&self) -> bool {
        self.quorate.load(Ordering::SeqCst)
    }
}

/// Dot files made of what the tree knows.
pub struct MemDots {
    tree: SharedTree,
    node: String,
    debug: AtomicBool,
    pub extra: AtomicU32,
    late: Mutex<Option<Vec<(DotFile, DotReady)>>>,
}

impl MemDots {
    /// From now on no text is delivered.
    pub fn hold(&self) {
        *self.late.lock() = Some(Vec::new());
    }

    pub fn waiting(&self) -> usize {
        self.late.lock().as_ref().map_or(0, Vec::len)
    }

    pub fn release(&self) {
        for (file, ready) in self.late.lock().take().unwrap_or_default() {
            ready(self.text(file));
        }
    }

    fn text(&self, file: DotFile) -> Arc<[u8]> {
        let extra = self.extra.load(Ordering::SeqCst);
        let text = match file {
            DotFile::Version => {
                let version = self.tree.read().root_row().version;
                format!("{{\n\"starttime\": {version},\n\"clinfo\": {extra},\n\"vmlist\": 1\n}}\n")
            }
            DotFile::Members => {
                format!("{{\n\"nodename\": \"{}\",\n\"version\": 0\n}}\n", self.node)
            }
            DotFile::Vmlist => self.vmlist(),
            DotFile::Rrd => String::new(),
            DotFile::Clusterlog => "{\n\"data\": [\n]\n}\n".into(),
            DotFile::Debug => format!("{}\n", u8::from(self.debug.load(Ordering::SeqCst))),
        };
        Arc::from(text.into_bytes())
    }

    fn vmlist(&self) -> String {
        let tree = self.tree.read();
        let mut ids = String::new();
        for (vmid, guest) in tree.guests() {
            let sep = if ids.is_empty() { "" } else { ",\n" };
            let kind = guest.kind.name();
            let node = &guest.node;
            let _ = write!(
                ids,
                "{sep}\"{vmid}\": {{ \"node\": \"{node}\", \"type\": \"{kind}\", \"version\": 1 }}"
            );
        }
        format!("{{\n\"version\": 1,\n\"ids\": {{\n{ids}}}\n}}\n")
    }
}

impl DotFiles for MemDots {
    fn content(&self, file: DotFile, ready: DotReady) {
        if let Some(late) = self.late.lock().as_mut() {
            late.push((file, ready));
            return;
        }
        ready(self.text(file));
    }

    fn set_debug(&self, on: bool) {
        self.debug.store(on, Ordering::SeqCst);
    }
}

/// A mounted view.
pub struct Mounted {
    pub path: PathBuf,
    pub replica: Arc<MemReplica>,
    pub dots: Arc<MemDots>,
    pub served: Option<Served>,
}

impl Mounted {
    pub fn new(path: &Path, node: &str, tuning: Tuning) -> Self {
        let tree: SharedTree = Arc::new(RwLock::new(Tree::new()));
        let inodes = Inodes::new();
        let replica = Arc::new(MemReplica {
            tree: tree.clone(),
            inodes: inodes.clone(),
            quorate: AtomicBool::new(true),
            held: Mutex::new(None),
        });
        let dots = Arc::new(MemDots {
            tree: tree.clone(),
            node: node.into(),
            debug: AtomicBool::new(false),
            extra: AtomicU32::new(0),
            late: Mutex::new(None),
        });
        let config = ViewConfig {
            node: node.into(),
            gid: GID,
        };
        let view = View::new(config, tree, replica.clone(), dots.clone(), inodes);
        let device = mount::mount(path).expect("mount");
        let served = serve(device, view, tuning, || ()).expect("serve");
        Mounted {
            path: path.into(),
            replica,
            dots,
            served: Some(served),
        }
    }

    pub fn served(&self) -> &Served {
        self.served.as_ref().expect("still served")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Requests that `action` causes, FORGET left out.
    pub fn requests(&self, action: impl FnOnce()) -> String {
        let counts = |served: &Served| {
            let all = served
                .requests
                .snapshot()
                .filter(|(name, _)| *name != "FORGET");
            all.collect::<Vec<_>>()
        };
        let before = counts(self.served());
        action();
        let after = counts(self.served());
        let used = before.iter().zip(&after).filter(|(b, a)| a.1 > b.1);
        used.map(|(b, a)| format!("{}={}", a.0, a.1 - b.1))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.replica.release();
        self.dots.release();
        mount::unmount(&self.path).expect("unmount");
        // Not for ever: a mount name space that somebody made meanwhile has a copy of the mount.
        if let Some(served) = self.served.take() {
            served.ends_within(Duration::from_secs(1));
        }
    }
}

pub fn path(path: &str) -> TreePath {
    TreePath::new(path.as_bytes())
}

pub fn now() -> u32 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs() as u32
}
