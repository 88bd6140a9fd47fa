//! A node of a cluster: drives [`dfsm`](crate::dfsm) by corosync, disk and local callers
//! (spec: `docs/protocol/cluster-protocol.md` sections 1 to 6 and 9).
//!
//! * `driver`        – the thread that receives everything and runs both machines; never waits
//! * `group`         – one group: machine, connection, send queue
//! * `database`      – what stands around dcdb: readers, disk, announcements, waiting callers
//! * `connector`     – the thread for whatever waits for corosync, and for cmap
//! * `chores`, `corosync_conf`, `corosync_check` – the host's copy of corosync.conf, and its reload
//! * `differences`   – what the kernel forgets when a synchronisation replaces the tree
//! * `rounds`        – what shows that the others have what was delivered here
//! * `gate`          – answers that wait for that and for the disk
//! * `inbox`         – queue between threads
//!
//! The way of a change: [`ClusterReplica`] → core: machine → multicast → delivered → tree → store
//! thread → answer and announcement. Changes that are delivered while the store writes form its
//! next transaction.
#![forbid(unsafe_code)]

mod chores;
mod connector;
mod corosync_check;
mod corosync_conf;
mod database;
mod differences;
mod driver;
#[cfg(test)]
mod fake;
mod gate;
mod group;
mod inbox;
mod logs;
mod rounds;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::corosync::STACK_SIZE;
use crate::corosync::quorum::Quorum;
use crate::dcdb::Dcdb;
use crate::dfsm::{Config, Machine, MemberId, Mode};
use crate::ipc::service::StatusReplica;
use crate::kvstore::{self, Kvstore};
use crate::memdb::{Error, Op, RootRow};
use crate::replica::local::Relevant;
use crate::replica::{Announcer, Clock, Done, Observer, Replica, SharedTree};
use crate::status::Status;
use crate::store::StoreHandle;

use self::chores::Chores;
use self::connector::Connector;
use self::database::{Database, DatabaseParts};
use self::driver::{Core, NodeStatus};
use self::group::{Channel, Group};
use self::inbox::Inbox;
use self::rounds::Rounds;

type Observers = Arc<Mutex<Vec<Arc<dyn Observer>>>>;

/// What a node of a cluster is made of.
pub struct Parts {
    pub tree: SharedTree,
    pub store: StoreHandle,
    /// Path of the database.
    pub database: PathBuf,
    /// All changes since this version row were made in local mode.
    pub local_since: Option<RootRow>,
    pub announcer: Arc<Announcer>,
    pub relevant: Relevant,
    pub clock: Clock,
    pub status: Arc<Status>,
    /// Address the node's name resolved to; announced as `nodeip`.
    pub node_ip: String,
    /// The host's corosync.conf.
    pub host_conf: PathBuf,
    /// Longest wait of a writer; then it gets EBUSY.
    pub write_timeout: Duration,
    /// Time between two checksum rounds (cluster-protocol.md 7.4). `None`: only by
    /// [`Cluster::verify`].
    pub verify_every: Option<Duration>,
}

/// The two groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GroupName {
    Dcdb,
    Kvstore,
    Rounds,
}

impl GroupName {
    fn domain(self) -> &'static str {
        match self {
            GroupName::Dcdb => "dcdb",
            GroupName::Kvstore => "status",
            GroupName::Rounds => rounds::NAME,
        }
    }
}

/// What the core is told.
enum Command {
    /// A local caller wants a change.
    Submit(Op, Done),
    /// A local change of the status is to be sent.
    Kvstore(kvstore::Request),
    /// A group was joined (or not).
    Opened {
        group: GroupName,
        generation: u64,
        channel: Option<Box<dyn Channel>>,
    },
    /// A group was left.
    Left {
        group: GroupName,
        generation: u64,
    },
    /// The quorum service was connected.
    Quorum(Quorum),
    /// Start a checksum round.
    Verify,
    /// Somebody wants to know whether the core lives.
    Ping(SyncSender<()>),
    Stop,
}

impl Command {
    /// There is no core to take it.
    fn refuse(self) {
        if let Command::Submit(_, done) = self {
            done(Err(Error::Busy));
        }
    }
}

/// A group as it is at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupView {
    pub mode: Mode,
    /// In order; is the member synced? Empty without a membership.
    pub members: Vec<(MemberId, bool)>,
}

/// Both groups as they are at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overview {
    pub dcdb: GroupView,
    pub kvstore: GroupView,
}

impl Default for GroupView {
    fn default() -> Self {
        GroupView {
            mode: Mode::Start,
            members: Vec::new(),
        }
    }
}

/// The replica of a node in a cluster. Changes are refused until [`Cluster::start`] and while the
/// node is not quorate.
pub struct ClusterReplica {
    inbox: Arc<Inbox<Command>>,
    status: Arc<Status>,
    failed: Arc<AtomicBool>,
    closed: AtomicBool,
    observers: Observers,
    overview: Arc<Mutex<Overview>>,
}

impl ClusterReplica {
    /// Modes and members of the groups.
    pub fn overview(&self) -> Overview {
        self.overview.lock().clone()
    }

    /// `observer` sees every change from now on.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers.lock().push(observer);
    }

    /// From now on every change is refused with EACCES (shutdown).
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
    }

    /// Does the core take and answer a question within `limit`?
    pub fn answers(&self, limit: Duration) -> bool {
        let (ask, answer) = std::sync::mpsc::sync_channel(1);
        self.push(Command::Ping(ask));
        answer.recv_timeout(limit).is_ok()
    }

    fn push(&self, command: Command) {
        if let Err(command) = self.inbox.push(command) {
            command.refuse();
        }
    }
}

impl Replica for ClusterReplica {
    fn submit(&self, op: Op, done: Done) {
        if !self.quorate() {
            return done(Err(Error::Access));
        }
        if self.failed.load(SeqCst) {
            return done(Err(Error::Io));
        }
        self.push(Command::Submit(op, done));
    }

    fn quorate(&self) -> bool {
        self.status.quorate() && !self.closed.load(SeqCst)
    }
}

impl StatusReplica for ClusterReplica {
    fn kv_update(&self, key: &[u8], value: &[u8]) {
        let (key, value) = (key.to_vec(), value.to_vec());
        self.push(Command::Kvstore(kvstore::Request::Update { key, value }));
    }

    fn log_entry(&self, entry: &[u8]) {
        self.push(Command::Kvstore(kvstore::Request::Log(entry.to_vec())));
    }
}

/// A node of a cluster that is not connected yet. Its replica can be mounted.
pub struct Prepared {
    parts: Parts,
    replica: Arc<ClusterReplica>,
}

/// The threads of a node of a cluster.
pub struct Cluster {
    replica: Arc<ClusterReplica>,
    core: JoinHandle<()>,
    connector: JoinHandle<()>,
}

impl Prepared {
    /// Nothing runs yet.
    pub fn new(parts: Parts) -> io::Result<Prepared> {
        let replica = Arc::new(ClusterReplica {
            inbox: Arc::new(Inbox::new()?),
            status: parts.status.clone(),
            failed: parts.store.errors(),
            closed: AtomicBool::new(false),
            observers: Observers::default(),
            overview: Arc::default(),
        });
        Ok(Prepared { parts, replica })
    }

    /// Takes the changes.
    pub fn replica(&self) -> Arc<ClusterReplica> {
        self.replica.clone()
    }

    /// Copies corosync.conf to the host if it is newer there, and starts the threads, which connect
    /// to corosync by themselves, now and whenever it comes back.
    ///
    /// # Errors
    /// If a thread cannot be made.
    pub fn start(self) -> io::Result<Cluster> {
        let Prepared { parts, replica } = self;
        let inbox = replica.inbox.clone();
        let jobs = Arc::new(Inbox::new()?);
        let node = parts.status.node().to_owned();
        let chores = Chores::start(parts.tree.clone(), parts.host_conf, node)?;
        let connector = Connector::new(jobs.clone(), inbox.clone(), parts.status.clone());
        let (database, host) = Database::new(
            DatabaseParts {
                tree: parts.tree,
                store: parts.store,
                announcer: parts.announcer.clone(),
                relevant: parts.relevant,
                status: parts.status.clone(),
                chores,
                path: parts.database,
                write_timeout: parts.write_timeout,
            },
            replica.observers.clone(),
        );
        let dcdb_config = Config {
            write_timeout: parts.write_timeout,
            verify_every: parts.verify_every,
            ..Config::default()
        };
        let kv_config = Config {
            write_timeout: parts.write_timeout,
            ..Config::default()
        };
        let kvstore = Kvstore::new(parts.status.clone(), &parts.node_ip);
        let pid = std::process::id();
        let mut dcdb = Dcdb::new(host);
        if let Some(base) = parts.local_since {
            dcdb.changed_since(base);
        }
        let core = Core {
            dcdb: Group::new(
                Machine::new(dcdb, dcdb_config),
                database,
                pid,
                driver::requests(jobs.clone(), GroupName::Dcdb),
            ),
            kvstore: Group::new(
                Machine::new(kvstore, kv_config),
                NodeStatus,
                pid,
                driver::requests(jobs.clone(), GroupName::Kvstore),
            ),
            rounds: Rounds::new(pid, driver::requests(jobs.clone(), GroupName::Rounds)),
            round_seen: None,
            inbox,
            jobs,
            quorum: None,
            status: parts.status,
            announcer: parts.announcer,
            clock: parts.clock,
            stop_at: None,
            writable: true,
            overview: replica.overview.clone(),
        };
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.into())
                .stack_size(STACK_SIZE)
                .spawn(work)
        };
        let connector = spawn("corosync", Box::new(move || connector.run()))?;
        let core = spawn("core", Box::new(move || core.run()))?;
        Ok(Cluster {
            replica,
            core,
            connector,
        })
    }
}

impl Cluster {
    /// Takes the changes.
    pub fn replica(&self) -> &Arc<ClusterReplica> {
        &self.replica
    }

    /// Starts a checksum round, if this node is the one to do it.
    pub fn verify(&self) {
        self.replica.push(Command::Verify);
    }

    /// Refuses every change, leaves both groups and ends the threads, in `limit` at most: a corosync
    /// that does not answer is left to the end of the process. True if all was done.
    pub fn stop(self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        self.replica.close();
        self.replica.push(Command::Stop);
        for thread in [self.core, self.connector] {
            while !thread.is_finished() {
                if Instant::now() >= end {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            // A panic was logged by the panic hook.
            let _ = thread.join();
        }
        true
    }
}
