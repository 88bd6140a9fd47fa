//! The two ways a change takes: alone, or as a node of a cluster.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Config, StartError};
use crate::cluster::{self, Cluster, ClusterReplica, Prepared};
use crate::dcdb::is_local_since;
use crate::ipc::service::{NoPeers, StatusReplica};
use crate::memdb::{RootRow, Tree};
use crate::replica::Clock;
use crate::replica::local::Parts;
use crate::replica::{Announcer, LocalReplica, Observer, Replica, SharedTree};
use crate::status::Status;
use crate::store::{StoreHandle, read_base, remove_base, write_base};

/// Where corosync reads its configuration.
pub const HOST_COROSYNC_CONF: &str = "/etc/corosync/corosync.conf";
/// What leaving the cluster may take; some milliseconds unless corosync hangs.
const STOP_LIMIT: Duration = Duration::from_millis(1500);

/// What both ways need.
#[derive(Clone)]
pub struct Common {
    pub tree: SharedTree,
    pub store: StoreHandle,
    pub announcer: Arc<Announcer>,
    pub clock: Clock,
    pub status: Arc<Status>,
}

/// A way that changes take.
pub enum Replication {
    Local(Arc<LocalReplica>),
    /// Not connected yet.
    Prepared(Prepared),
    Cluster(Cluster),
}

impl Replication {
    /// A node that is alone. It is always quorate.
    pub fn local(common: Common) -> Self {
        let Common {
            tree,
            store,
            announcer,
            clock,
            status,
        } = common;
        status.set_quorate(true);
        Replication::Local(Arc::new(LocalReplica::new(Parts {
            tree,
            store,
            announcer,
            relevant: Arc::new(Status::is_relevant),
            clock,
            quorate: true,
        })))
    }

    /// A node of a cluster, not quorate until corosync says so.
    pub fn cluster(common: Common, node_ip: IpAddr, config: &Config) -> Result<Self, StartError> {
        let local_since = local_since(&config.database, &common.tree.read());
        let Common {
            tree,
            store,
            announcer,
            clock,
            status,
        } = common;
        let prepared = Prepared::new(cluster::Parts {
            tree,
            store,
            announcer,
            relevant: Arc::new(Status::is_relevant),
            clock,
            status,
            node_ip: node_ip.to_string(),
            host_conf: HOST_COROSYNC_CONF.into(),
            database: config.database.clone(),
            local_since,
            write_timeout: config.write_timeout,
            verify_every: Some(config.verify_interval),
        });
        prepared
            .map(Replication::Prepared)
            .map_err(StartError::thread("core"))
    }

    /// What runs the cluster; `None` for a node that is alone.
    pub fn core(&self) -> Option<Arc<ClusterReplica>> {
        match self {
            Replication::Local(_) => None,
            Replication::Prepared(prepared) => Some(prepared.replica()),
            Replication::Cluster(cluster) => Some(cluster.replica().clone()),
        }
    }

    /// Takes the changes of this node.
    pub fn replica(&self) -> Arc<dyn Replica> {
        match self {
            Replication::Local(replica) => replica.clone(),
            Replication::Prepared(prepared) => prepared.replica(),
            Replication::Cluster(cluster) => cluster.replica().clone(),
        }
    }

    /// Takes what clients change in the status.
    pub fn peers(&self) -> Arc<dyn StatusReplica> {
        match self.core() {
            Some(replica) => replica,
            None => Arc::new(NoPeers),
        }
    }

    /// `observer` sees every change from now on.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        match self {
            Replication::Local(replica) => replica.observe(observer),
            Replication::Prepared(prepared) => prepared.replica().observe(observer),
            Replication::Cluster(cluster) => cluster.replica().observe(observer),
        }
    }

    /// The mount is there: connects.
    pub fn start(self) -> Result<Self, StartError> {
        match self {
            Replication::Prepared(prepared) => prepared
                .start()
                .map(Replication::Cluster)
                .map_err(StartError::thread("core")),
            started => Ok(started),
        }
    }

    /// No change is accepted from now on; a node of a cluster leaves it.
    pub fn stop(self) {
        match self {
            Replication::Local(replica) => replica.close(),
            Replication::Prepared(prepared) => prepared.replica().close(),
            Replication::Cluster(cluster) => {
                if !cluster.stop(STOP_LIMIT) {
                    tracing::warn!(target: "main", "corosync does not answer: left without it");
                }
            }
        }
    }
}

/// Local mode of a node that belongs to a cluster: remembers what it had in common with the others.
pub fn enter_local_mode(database: &Path, tree: &Tree) {
    if read_base(database).is_some_and(|base| is_local_since(tree, base)) {
        return;
    }
    if let Err(err) = write_base(database, tree.root_row()) {
        let path = database.display();
        tracing::error!(
            target: "database",
            "cannot write '{path}.shared': {err} - what is changed now may take the place of what the \
             other nodes change meanwhile: stop pmxcfs, see why (df -h), and start it again"
        );
    }
}

/// What this node had in common with the others before it was changed in local mode, if it was.
fn local_since(database: &Path, tree: &Tree) -> Option<RootRow> {
    let base = read_base(database)?;
    if is_local_since(tree, base) {
        tracing::info!(
            target: "database",
            "versions {} to {} were made in local mode: the other nodes get them if they have not \
             changed anything since version {}",
            base.version + 1,
            tree.root_row().version,
            base.version
        );
        return Some(base);
    }
    if let Err(err) = remove_base(database) {
        let path = database.display();
        tracing::warn!(target: "database", "cannot remove '{path}.shared': {err}");
    }
    None
}
