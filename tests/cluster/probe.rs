//! Runs inside a node: everything of the daemon but mount and IPC. Takes commands `<number> <what>`
//! from stdin and answers `<number> <result>` on stdout.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use pmxcfs::cluster::{ClusterReplica, Parts, Prepared};
use pmxcfs::ipc::service::StatusReplica;
use pmxcfs::memdb::{Error, Op, Tree, TreePath};
use pmxcfs::replica::{Announcer, Done, Replica, SharedTree};
use pmxcfs::status::Status;
use pmxcfs::store::Store;

use super::lab::say;

/// Short, so that the test of it is.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(6);

const DATABASE: &str = "/var/lib/pve-cluster/config.db";

fn now() -> u32 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs() as u32
}

#[derive(Clone)]
struct Node {
    tree: SharedTree,
    status: Arc<Status>,
    replica: Arc<ClusterReplica>,
    resting: Arc<AtomicBool>,
}

pub fn run() {
    pmxcfs::daemon::logging::init(std::env::var_os("PROBE_DEBUG").is_some());
    let name = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let status = Arc::new(Status::new(&name, u64::from(now()), std::process::id()));
    let (store, loaded) = Store::open(Path::new(DATABASE), now()).unwrap();
    status.reloaded(&loaded.tree);
    let tree: SharedTree = Arc::new(RwLock::new(loaded.tree));
    let store = store.spawn().unwrap();
    let sink = status.clone();
    let announcer = Announcer::start(Arc::new(move |effects| sink.announce(effects))).unwrap();
    let prepared = Prepared::new(Parts {
        tree: tree.clone(),
        store: store.clone(),
        announcer: announcer.clone(),
        relevant: Arc::new(Status::is_relevant),
        clock: Arc::new(now),
        status: status.clone(),
        node_ip: "10.99.0.1".into(),
        host_conf: "/etc/corosync/corosync.conf".into(),
        database: DATABASE.into(),
        local_since: None,
        write_timeout: WRITE_TIMEOUT,
        verify_every: None,
    })
    .unwrap();
    let replica = prepared.replica();
    let cluster = prepared.start().unwrap();
    let node = Node {
        tree,
        status,
        replica,
        resting: Arc::default(),
    };
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (number, command) = line.split_once(' ').unwrap();
        if command == "verify" {
            cluster.verify();
            say(&format!("{number} ok"));
        } else {
            node.obey(number.to_owned(), command);
        }
    }
    say(&format!("stopped {}", cluster.stop(Duration::from_secs(2))));
    assert!(store.shutdown(Duration::from_secs(5)));
    announcer.stop();
}

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes())
}

fn text_of(result: Result<(), Error>) -> String {
    match result {
        Ok(()) => "ok".into(),
        Err(err) => format!("{:?}", nix::errno::Errno::from_raw(err.errno())),
    }
}

fn digest(tree: &Tree) -> String {
    let sum: String = tree.checksum().iter().map(|b| format!("{b:02x}")).collect();
    format!("{} {sum}", tree.root_row().version)
}

/// Digest of what is in the database file.
fn disk() -> String {
    let copy = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        // Not by this process: closing the file would drop the locks on it.
        let mut cp = std::process::Command::new("cp");
        assert!(
            cp.arg(format!("{DATABASE}{suffix}"))
                .arg(copy.path())
                .status()
                .unwrap()
                .success()
        );
    }
    let (_store, loaded) = Store::open(&copy.path().join("config.db"), now()).unwrap();
    digest(&loaded.tree)
}

impl Node {
    fn obey(&self, number: String, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        match words[..] {
            ["write", name, text] => self.write(number, name, text.as_bytes().to_vec()),
            ["write-hex", name, hex] => {
                let bytes = (0..hex.len()).step_by(2).map(|i| &hex[i..i + 2]);
                let data = bytes.map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
                self.write(number, name, data);
            }
            ["storm", name, writers, files] => {
                let node = self.clone();
                let (writers, files) = (writers.parse().unwrap(), files.parse().unwrap());
                let name = name.to_owned();
                std::thread::spawn(move || {
                    say(&format!("{number} {}", node.storm(&name, writers, files)));
                });
            }
            ["hammer", name] => {
                let (node, name) = (self.clone(), name.to_owned());
                self.resting.store(false, SeqCst);
                std::thread::spawn(move || say(&format!("{number} {}", node.hammer(&name))));
            }
            ["rest"] => self.resting.store(true, SeqCst),
            ["mkdir", name] => self.submit(number, Op::Mkdir { path: path(name) }),
            ["rm", name] => self.submit(number, Op::Delete { path: path(name) }),
            ["set", key, value] => {
                self.status
                    .set_kv(key.as_bytes(), value.as_bytes(), now())
                    .unwrap();
                self.replica.kv_update(key.as_bytes(), value.as_bytes());
                say(&format!("{number} ok"));
            }
            _ => say(&format!("{number} {}", self.look(&words))),
        }
    }

    fn look(&self, words: &[&str]) -> String {
        let text = |bytes: Option<Arc<[u8]>>| {
            bytes.map_or("none".into(), |b| String::from_utf8_lossy(&b).into_owned())
        };
        match words {
            ["read", name] => text(self.tree.read().read(&path(name)).cloned()),
            ["get", node, key] => text(self.status.get_kv(key.as_bytes(), node.as_bytes())),
            ["members-text"] => text(Some(self.status.members_text())).replace('\n', ""),
            ["digest"] => digest(&self.tree.read()),
            ["missing", name, numbers] => self.missing(name, numbers).to_string(),
            ["disk"] => disk(),
            ["members", group] => {
                let overview = self.replica.overview();
                let view = if *group == "dcdb" {
                    overview.dcdb
                } else {
                    overview.kvstore
                };
                let ids = view
                    .members
                    .iter()
                    .map(|(member, _)| member.nodeid.to_string());
                ids.collect::<Vec<_>>().join(" ")
            }
            other => panic!("what is {other:?}?"),
        }
    }

    fn submit(&self, number: String, op: Op) {
        let done: Done = Box::new(move |result| {
            say(&format!("{number} {}", text_of(result.map(|_| ()))));
        });
        self.replica.submit(op, done);
    }

    /// Several writers at once, each making one file of 1 KiB after the other. Tells how many were
    /// refused, and the rate.
    fn storm(&self, name: &str, writers: usize, files: usize) -> String {
        let start = Instant::now();
        let refused: usize = std::thread::scope(|scope| {
            let writer = |writer: usize| {
                let make = move |file: usize| {
                    let path = path(&format!("{name}-{writer}-{file}"));
                    let data = vec![file as u8; 1024];
                    let write = Op::Write {
                        path: path.clone(),
                        offset: 0,
                        data,
                        truncate: false,
                    };
                    [Op::Create { path }, write]
                        .into_iter()
                        .any(|op| self.wait_for(op).is_err())
                };
                scope.spawn(move || (0..files).filter(|file| make(*file)).count())
            };
            let threads: Vec<_> = (0..writers).map(writer).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        let rate = (writers * files) as f64 / start.elapsed().as_secs_f64();
        format!("refused {refused} rate {rate:.0}")
    }

    /// Makes one file after the other until it shall rest. Tells which were acknowledged, and the
    /// longest pause between two of them in milliseconds.
    fn hammer(&self, name: &str) -> String {
        let (mut acknowledged, mut pause, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
        for i in 0.. {
            if self.resting.load(SeqCst) {
                break;
            }
            match self.wait_for(Op::Create {
                path: path(&format!("{name}{i}")),
            }) {
                Ok(()) => {
                    acknowledged.push(i.to_string());
                    pause = pause.max(last.elapsed());
                    last = Instant::now();
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        format!("{} {}", pause.as_millis(), acknowledged.join(","))
    }

    fn missing(&self, name: &str, numbers: &str) -> usize {
        let tree = self.tree.read();
        let there = |number: &&str| tree.lookup(&path(&format!("{name}{number}"))).is_some();
        numbers
            .split(',')
            .filter(|number| !number.is_empty() && !there(number))
            .count()
    }

    fn wait_for(&self, op: Op) -> Result<(), Error> {
        let (tx, rx) = std::sync::mpsc::channel();
        self.replica.submit(
            op,
            Box::new(move |result| tx.send(result.map(|_| ())).unwrap()),
        );
        rx.recv().unwrap()
    }

    /// Creates if need be, and writes.
    fn write(&self, number: String, name: &str, data: Vec<u8>) {
        let (replica, path) = (self.replica.clone(), path(name));
        let write = Op::Write {
            path: path.clone(),
            offset: 0,
            data,
            truncate: true,
        };
        let then: Done = Box::new(move |result| match result {
            Ok(_) | Err(Error::Exists) => {
                let done: Done = Box::new(move |result| {
                    say(&format!("{number} {}", text_of(result.map(|_| ()))));
                });
                replica.submit(write, done);
            }
            Err(err) => say(&format!("{number} {}", text_of(Err(err)))),
        });
        self.replica.submit(Op::Create { path }, then);
    }
}
