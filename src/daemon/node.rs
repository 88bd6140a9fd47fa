//! One running node: its parts, in the order in which they start and stop.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;

use super::config::Config;
use super::dots::StatusDots;
use super::files::unix_time;
use super::replication::{Common, HOST_COROSYNC_CONF, Replication, enter_local_mode};
use super::run::Prepared;
use super::watchdog::Pulse;
use super::{StartError, signals};
use crate::fs::{Inodes, Served, Tuning, View, ViewConfig};
use crate::ipc::server::{Server, ServerHandle};
use crate::ipc::service::{ConfigService, Pending, StatusReplica};
use crate::memdb::{Tree, TreePath};
use crate::obstacle;
use crate::replica::{Announcer, Clock};
use crate::rrd::{Rrd, RrdHandle};
use crate::status::Status;
use crate::store::{self, Store, StoreHandle};

/// The file in the tree that makes a node a cluster node.
const COROSYNC_CONF: &[u8] = b"corosync.conf";
/// What the database gets at the end to write what waits (usually some microseconds).
const STORE_LIMIT: Duration = Duration::from_secs(3);

/// The parts that have to be stopped.
pub struct Node {
    ipc: ServerHandle,
    mount: Served,
    mountpoint: PathBuf,
    replication: Replication,
    announcer: Arc<Announcer>,
    store: StoreHandle,
    rrd: RrdHandle,
    pulse: Pulse,
    /// Released last.
    _lock: super::files::Lock,
}

impl Node {
    /// Steps 10 to 21 of daemon.md 3, in the process that stays.
    pub fn start(config: &Config, prepared: Prepared) -> Result<Self, StartError> {
        let Prepared {
            lock,
            node_name,
            node_ip,
            www_gid,
            first_pid,
        } = prepared;
        let clock: Clock = Arc::new(|| unix_time(SystemTime::now()));
        let starttime = u64::from(lock.start_time());
        let status = Arc::new(Status::new(&node_name, starttime, first_pid));
        let rrd = Rrd::start(config.rrd_dir.clone(), config.rrdcached_socket.clone())
            .map_err(StartError::thread("rrd"))?;
        status.set_rrd_files(Arc::new(rrd.clone()));

        let (store, tree) = open_database(config, &clock)?;
        let local = is_local(config, &tree);
        if local && has_corosync_conf(&tree) {
            enter_local_mode(&config.database, &tree);
        }
        status.reloaded(&tree);
        let store = store
            .spawn_for(config.write_timeout)
            .map_err(StartError::thread("store"))?;
        let sink = status.clone();
        let announcer = Announcer::start(Arc::new(move |effects| sink.announce(effects)))
            .map_err(StartError::thread("notify"))?;
        let common = Common {
            tree: Arc::new(RwLock::new(tree)),
            store: store.clone(),
            announcer: announcer.clone(),
            clock,
            status,
        };
        let tree = common.tree.clone();
        store.set_source(move || store::rows_of(&tree.read()));
        let replication = if local {
            Replication::local(common.clone())
        } else {
            Replication::cluster(common.clone(), node_ip, config)?
        };
        let view = ViewConfig {
            node: node_name,
            gid: www_gid,
        };
        let mount = serve_files(config, view, &common, &replication)?;

        let given_up = |err| {
            unmount(&config.mountpoint);
            store.shutdown(STORE_LIMIT);
            err
        };
        let replication = replication.start().map_err(given_up)?;
        let pulse = Pulse::new(common.tree.clone(), replication.core());
        let ipc = match serve_ipc(config, www_gid, common, replication.peers()) {
            Ok(ipc) => ipc,
            Err(err) => {
                replication.stop();
                return Err(given_up(err));
            }
        };
        let mountpoint = config.mountpoint.clone();
        Ok(Node {
            ipc,
            mount,
            mountpoint,
            replication,
            announcer,
            store,
            rrd,
            pulse,
            _lock: lock,
        })
    }

    /// Whether the core answers.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Logs how many requests of each kind the kernel has sent: whether its caches work.
    pub fn report(&self) {
        tracing::info!(target: "main", "FUSE requests: {}", self.mount.requests);
    }

    /// Steps 3 to 6 of daemon.md 6. Every change that was answered is in the database; those under
    /// way are written and answered, later ones are refused.
    pub fn stop(self) {
        self.ipc.stop();
        unmount(&self.mountpoint);
        self.replication.stop();
        if !self.store.shutdown(STORE_LIMIT) {
            tracing::error!(
                target: "database",
                "the database does not finish within {STORE_LIMIT:?}; what was acknowledged is in its log, unless that was lost (see above)"
            );
        }
        self.rrd.stop();
        self.announcer.stop();
    }
}

/// Opens and loads the database, and imports the host's corosync.conf into a new one.
fn open_database(config: &Config, clock: &Clock) -> Result<(Store, Tree), StartError> {
    let path = &config.database;
    let (store, loaded) =
        Store::open(path, clock()).map_err(|_| StartError::Database(path.display().to_string()))?;
    let mut tree = loaded.tree;
    if loaded.created && !config.local {
        if let Ok(data) = std::fs::read(Path::new(HOST_COROSYNC_CONF)) {
            let failed = |reason: String| StartError::Import {
                file: HOST_COROSYNC_CONF,
                database: path.display().to_string(),
                reason,
            };
            let changes = tree
                .import(&TreePath::new(COROSYNC_CONF), &data, clock())
                .map_err(|err| failed(err.to_string()))?;
            store
                .commit(&changes)
                .map_err(|err| failed(format!("{err}{}", obstacle::tail(path))))?;
        }
    }
    Ok((store, tree))
}

fn has_corosync_conf(tree: &Tree) -> bool {
    tree.read(&TreePath::new(COROSYNC_CONF)).is_some()
}

/// Local mode: asked for, or nothing in the database that says otherwise.
fn is_local(config: &Config, tree: &Tree) -> bool {
    match (has_corosync_conf(tree), config.local) {
        (true, true) => {
            tracing::info!(target: "main", "forcing local mode (although corosync.conf exists)");
            true
        }
        (true, false) => false,
        (false, _) => true,
    }
}

/// The mount, its files and what tells the kernel of changes.
fn serve_files(
    config: &Config,
    view: ViewConfig,
    common: &Common,
    replication: &Replication,
) -> Result<Served, StartError> {
    let dots = StatusDots {
        status: common.status.clone(),
        announcer: common.announcer.clone(),
        clock: common.clock.clone(),
    };
    let inodes = Arc::new(Inodes::default());
    replication.observe(inodes.clone());
    let view = View::new(
        view,
        common.tree.clone(),
        replication.replica(),
        Arc::new(dots),
        inodes,
    );
    let device = crate::fs::mount::mount(&config.mountpoint)
        .map_err(|err| StartError::Mount(err.to_string()))?;
    let tuning = Tuning {
        names: config.name_cache,
        ..Tuning::default()
    };
    let served =
        crate::fs::serve(device, view, tuning, signals::terminate_self).map_err(|err| {
            unmount(&config.mountpoint);
            StartError::Fuse(err)
        })?;
    let notifier = served.notifier.clone().mounted_on(&config.mountpoint);
    common.announcer.set_barrier(Arc::new(notifier));
    Ok(served)
}

fn unmount(mountpoint: &Path) {
    if let Err(err) = crate::fs::mount::unmount(mountpoint) {
        tracing::error!(target: "main", "unable to unmount '{0}': {err} - 'umount -l {0}'", mountpoint.display());
    }
}

/// Announcements as the IPC service asks for them.
struct AnnouncerPending(Arc<Announcer>);

impl Pending for AnnouncerPending {
    fn pending(&self) -> bool {
        self.0.pending()
    }
}

fn serve_ipc(
    config: &Config,
    www_gid: u32,
    common: Common,
    peers: Arc<dyn StatusReplica>,
) -> Result<ServerHandle, StartError> {
    let server = Server::bind(&config.ipc_name, www_gid).map_err(StartError::Ipc)?;
    let waker = server.waker();
    common
        .announcer
        .set_progress(Arc::new(move || waker.wake()));
    let service = ConfigService::new(
        common.tree,
        common.status,
        peers,
        Arc::new(AnnouncerPending(common.announcer)),
        common.clock,
    );
    server.spawn(Box::new(service)).map_err(StartError::Ipc)
}
