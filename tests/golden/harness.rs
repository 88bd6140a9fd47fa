//! A node in memory, and what it takes to compare with recordings.

pub use compat_tests::python::literal as python_literal;
pub use compat_tests::text::without_number as blank;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::RwLock;
use pmxcfs::ipc::service::{ConfigService, NeverPending, NoPeers, StatusReplica};
use pmxcfs::ipc::{Answer, Client, Service};
use pmxcfs::memdb::{Change, Error, Op, Stamp, Tree, TreePath};
use pmxcfs::replica::SharedTree;
use pmxcfs::status::Status;

/// Start time in all recordings of `ipc/local-*.json`.
pub const START: u32 = 1_795_332_905;
/// Pid of every client here.
pub const PID: i32 = 4711;

pub const ROOT: Client = Client {
    pid: PID,
    uid: 0,
    gid: 0,
    read_only: false,
};
pub const WWW_DATA: Client = Client {
    pid: PID,
    uid: 33,
    gid: 33,
    read_only: true,
};

pub struct Node {
    pub tree: SharedTree,
    pub status: Arc<Status>,
    pub service: ConfigService,
    pub clock: Arc<AtomicU32>,
}

impl Node {
    /// Local mode, fresh database.
    pub fn new(name: &str) -> Self {
        Node::with_replica(name, Arc::new(NoPeers))
    }

    /// With something that tells other nodes about changes of the status.
    pub fn with_replica(name: &str, replica: Arc<dyn StatusReplica>) -> Self {
        let tree: SharedTree = Arc::new(RwLock::new(Tree::new()));
        let status = Arc::new(Status::new(name, START.into(), 1));
        status.set_quorate(true);
        status.reloaded(&tree.read());
        let clock = Arc::new(AtomicU32::new(START));
        let time = Arc::clone(&clock);
        let service = ConfigService::new(
            Arc::clone(&tree),
            Arc::clone(&status),
            replica,
            Arc::new(NeverPending),
            Arc::new(move || time.load(Ordering::Relaxed)),
        );
        Node {
            tree,
            status,
            service,
            clock,
        }
    }

    pub fn now(&self) -> u32 {
        self.clock.load(Ordering::Relaxed)
    }

    pub fn wait(&self, seconds: u32) {
        self.clock.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Applies and announces one operation.
    pub fn apply(&self, op: Op) -> Result<Change, Error> {
        let now = self.now();
        let change = self.tree.write().apply(
            &op,
            Stamp {
                writer: 0,
                mtime: now,
            },
            now,
        )?;
        self.status.announce(&change.effects);
        Ok(change)
    }

    /// `mkdir -p`.
    pub fn mkdirs(&self, path: &str) {
        let mut at = TreePath::root();
        for name in TreePath::new(path.as_bytes()).components() {
            at = at.join(name);
            match self.apply(Op::Mkdir { path: at.clone() }) {
                Ok(_) | Err(Error::Exists) => {}
                Err(error) => panic!("{at}: {error}"),
            }
        }
    }

    pub fn write(&self, path: &str, data: &[u8]) {
        let path = TreePath::new(path.as_bytes());
        self.apply(Op::Write {
            path,
            offset: 0,
            data: data.to_vec(),
            truncate: false,
        })
        .unwrap();
    }

    /// A new file; written to unless `data` is empty.
    pub fn create(&self, path: &str, data: &[u8]) {
        let (dir, _) = path.rsplit_once('/').unwrap_or(("", path));
        self.mkdirs(dir);
        self.apply(Op::Create {
            path: TreePath::new(path.as_bytes()),
        })
        .unwrap();
        if !data.is_empty() {
            self.write(path, data);
        }
    }

    /// A raw message; the result code and the payload (empty unless the code is 0).
    pub fn send(&mut self, client: &Client, message: &[u8]) -> (i32, Vec<u8>) {
        let mut out = Vec::new();
        let error = match self.service.handle(client, message, true, &mut out) {
            Answer::Reply(error) => error,
            Answer::Later => panic!("waits at the last call"),
            Answer::Work(mut work) => std::iter::repeat_with(|| work.go_on(&mut out))
                .find_map(|done| done)
                .unwrap(),
        };
        if error != 0 {
            out.clear();
        }
        (error, out)
    }

    pub fn ask(&mut self, id: i32, payload: &[u8]) -> (i32, Vec<u8>) {
        self.send(&ROOT, &message(id, payload))
    }
}

pub fn message(id: i32, payload: &[u8]) -> Vec<u8> {
    let mut out = id.to_le_bytes().to_vec();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(16 + payload.len() as i32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out
}

/// A name field of 256 bytes.
pub fn field(name: &str) -> Vec<u8> {
    let mut out = name.as_bytes().to_vec();
    out.resize(256, 0);
    out
}

pub fn golden(path: &str) -> Vec<u8> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("compat-tests/golden")
        .join(path);
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

pub fn golden_text(path: &str) -> String {
    String::from_utf8(golden(path)).unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A guest list or a property answer in the order of VMIDs: hash order is no part of the contract.
pub fn by_vmid(text: &str) -> String {
    let is_guest = |line: &&str| line.starts_with('"') && line.as_bytes()[1].is_ascii_digit();
    let mut guests: Vec<&str> = text.lines().filter(is_guest).collect();
    let Some(last) = guests.last_mut() else {
        return text.to_owned();
    };
    // The brace behind the last guest of a list closes the list.
    let list = last.ends_with("}}");
    *last = if list { &last[..last.len() - 1] } else { last };
    let mut guests: Vec<&str> = guests.iter().map(|g| g.trim_end_matches(',')).collect();
    guests.sort_by_key(|guest| {
        guest
            .split('"')
            .nth(1)
            .and_then(|id| id.parse::<u32>().ok())
    });
    let head: Vec<&str> = text.lines().take_while(|line| !is_guest(line)).collect();
    let end = if list { "}\n\n}\n" } else { "\n}\n" };
    format!("{}\n{}{end}", head.join("\n"), guests.join(",\n"))
}

/// `.version` with every block of `kvstore` in key order.
pub fn by_key(text: &str) -> String {
    let mut out = String::new();
    let mut keys: Vec<String> = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        let starts_block = line.ends_with("\": {") && !line.starts_with("\"kvstore\"");
        if starts_block {
            in_block = true;
        } else if in_block {
            keys.extend((line != "}").then(|| line.trim_end_matches(['}', ',']).to_owned()));
            if line.ends_with('}') {
                keys.sort();
                out.push_str(&keys.join(",\n"));
                out.push_str("}\n");
                keys.clear();
                in_block = false;
            }
            continue;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}
