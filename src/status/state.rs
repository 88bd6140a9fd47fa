//! All status services of a node behind one door.
#![forbid(unsafe_code)]

mod log;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{info, warn};

use super::clusterlog::ClusterLog;
use super::guests::{self, GuestMap, Guests};
use super::json::push_u64;
use super::kvstore::{self, KvTable};
use super::members::{ClusterInfo, Members};
use super::rrd_data::{RrdSink, RrdTable};
use super::versions::{FileVersions, tracked};
use crate::log_limit::LogLimit;
use crate::memdb::{Effects, GuestEvent, ROOT_INODE, Tree};

/// Log domain (daemon.md 7).
const DOMAIN: &str = "status";
/// Longest address in bytes, its NUL included.
const MAX_IP: usize = 255;

/// Why a value was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// Larger than 32,768 bytes.
    #[error("status value too large")]
    TooBig,
    /// Round-robin data or address that is not a C string of the allowed length.
    #[error("malformed status value")]
    Malformed,
    /// All values of the sender, or all round-robin data, take more memory than anybody needs.
    #[error("no room for more status values")]
    Full,
    /// The sender is not a node of the cluster.
    #[error("status value from an unknown node")]
    UnknownNode,
}

impl SetError {
    /// The (positive) errno a client sees.
    pub fn errno(self) -> i32 {
        match self {
            SetError::TooBig => libc::EFBIG,
            // What the C daemon answers to every value it cannot take.
            SetError::Malformed | SetError::Full => libc::ENOMEM,
            SetError::UnknownNode => libc::ENOENT,
        }
    }
}

/// A text that is built when it is asked for first after a change.
#[derive(Default)]
struct Text(Option<Arc<[u8]>>);

impl Text {
    fn get(&mut self, build: impl FnOnce() -> Vec<u8>) -> Arc<[u8]> {
        Arc::clone(self.0.get_or_insert_with(|| Arc::from(build())))
    }

    fn clear(&mut self) {
        self.0 = None;
    }
}

/// A key of the key/value store and its value.
pub type KvPair = (Box<[u8]>, Arc<[u8]>);

/// Everything `.version` tells about, so that it is always consistent.
struct Core {
    files: FileVersions,
    guests: Guests,
    members: Members,
    /// Values this node set.
    own: KvTable,
    version_text: Text,
    members_text: Text,
    vmlist_text: Text,
}

impl Core {
    fn vmlist_text(&mut self) -> Arc<[u8]> {
        let guests = &self.guests;
        self.vmlist_text.get(|| guests.text())
    }
}

/// The status services of one node. All methods may be called from any thread; none waits for
/// anything but another of them. Times are seconds since the epoch.
pub struct Status {
    node: Arc<str>,
    starttime: u64,
    quorate: AtomicBool,
    // The locks are never held together.
    core: Mutex<Core>,
    rrd: Mutex<RrdTable>,
    rrd_files: OnceLock<Arc<dyn RrdSink>>,
    log: Mutex<ClusterLog>,
    limit: Mutex<LogLimit>,
}

impl Status {
    /// Fresh state with the start entry in the cluster log.
    ///
    /// `starttime` must differ from that of the instance before: clients drop their caches when it
    /// changes, and all counters start again (status.md 3). `pid` is shown in the start entry.
    pub fn new(node: &str, starttime: u64, pid: u32) -> Self {
        let status = Status {
            node: Arc::from(node),
            starttime,
            quorate: AtomicBool::new(false),
            core: Mutex::new(Core {
                files: FileVersions::new(),
                guests: Guests::default(),
                members: Members::default(),
                own: KvTable::default(),
                version_text: Text::default(),
                members_text: Text::default(),
                vmlist_text: Text::default(),
            }),
            rrd: Mutex::new(RrdTable::default()),
            rrd_files: OnceLock::new(),
            log: Mutex::new(ClusterLog::new()),
            limit: Mutex::new(LogLimit::new(100, Duration::from_secs(60))),
        };
        // Log entries have the low 32 bits of the time.
        status.log(
            b"root",
            b"cluster",
            pid,
            6,
            b"starting cluster log",
            starttime as u32,
        );
        status
    }

    /// Writes a line about something wrong that came from outside; 100 a minute at most.
    pub(crate) fn complain(&self, text: std::fmt::Arguments<'_>) {
        let suppressed =
            |count| info!(target: DOMAIN, "{count} messages about status values suppressed");
        if self.limit.lock().allows(suppressed) {
            warn!(target: DOMAIN, "{text}");
        }
    }

    /// Name of this node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// From now on every accepted round-robin value, of this node and of others, is given to
    /// `files`, too (status.md 9.1). The first call decides.
    pub fn set_rrd_files(&self, files: Arc<dyn RrdSink>) {
        // A second one would be a mistake of the daemon's start, and harmless.
        let _ = self.rrd_files.set(files);
    }

    // ---- quorum ----

    /// May this node change anything?
    pub fn quorate(&self) -> bool {
        self.quorate.load(Ordering::Acquire)
    }

    /// Sets the quorum state. True if it changed.
    pub fn set_quorate(&self, quorate: bool) -> bool {
        let changed = self.quorate.swap(quorate, Ordering::AcqRel) != quorate;
        if changed {
            self.core.lock().members_text.clear();
        }
        changed
    }

    // ---- changes of the tree ----

    /// True if [`Status::announce`] would change anything.
    pub fn is_relevant(effects: &Effects) -> bool {
        !effects.guests.is_empty() || effects.touched.iter().any(|path| tracked(path).is_some())
    }

    /// Counts what a change of the tree touched. To be called when the change is visible.
    pub fn announce(&self, effects: &Effects) {
        if !Status::is_relevant(effects) {
            return;
        }
        let mut core = self.core.lock();
        for path in &effects.touched {
            core.files.touch(path);
        }
        if !effects.guests.is_empty() {
            for event in &effects.guests {
                core.guests.apply(event);
            }
            core.vmlist_text.clear();
        }
        core.version_text.clear();
        let list = Arc::clone(core.guests.list());
        drop(core);
        let removed = effects.guests.iter().filter_map(|event| match event {
            // A move is a removal, too: the guest is still there.
            GuestEvent::Remove { vmid } if !list.contains_key(vmid) => Some(*vmid),
            _ => None,
        });
        self.forget_rrd(removed);
    }

    /// Data of guests that are no more.
    fn forget_rrd(&self, removed: impl Iterator<Item = u32>) {
        for vmid in removed {
            self.rrd.lock().remove_guest(vmid);
        }
    }

    /// The database was loaded or replaced: every file counts as changed, the guest list is new,
    /// unless the tree has no directory `nodes`: the list stays then (status.md 5.2).
    pub fn reloaded(&self, tree: &Tree) {
        let nodes = tree
            .child(ROOT_INODE, b"nodes")
            .and_then(|inode| tree.get(inode));
        let guests = nodes.filter(|nodes| nodes.is_dir()).map(|_| {
            let guests = tree.guests();
            guests
                .map(|(vmid, guest)| (vmid, Arc::clone(&guest.node), guest.kind))
                .collect()
        });
        let mut core = self.core.lock();
        core.files.touch_all();
        let before = Arc::clone(core.guests.list());
        if let Some(guests) = guests {
            core.guests.rebuild(guests);
            core.vmlist_text.clear();
        }
        core.version_text.clear();
        let list = Arc::clone(core.guests.list());
        drop(core);
        self.forget_rrd(before.keys().copied().filter(|id| !list.contains_key(id)));
    }

    /// The published guest list and its version.
    pub fn guests(&self) -> (GuestMap, u32) {
        let core = self.core.lock();
        (Arc::clone(core.guests.list()), core.guests.version)
    }

    // ---- texts ----

    /// Content of `.version` (status.md 3).
    pub fn version_text(&self) -> Arc<[u8]> {
        let core = &mut *self.core.lock();
        let Core {
            files,
            guests,
            members,
            own,
            version_text,
            ..
        } = core;
        version_text.get(|| {
            let mut out = Vec::with_capacity(2048);
            out.extend_from_slice(b"{\n\"starttime\": ");
            push_u64(&mut out, self.starttime);
            out.extend_from_slice(b",\n\"clinfo\": ");
            push_u64(&mut out, members.version.into());
            out.extend_from_slice(b",\n\"vmlist\": ");
            push_u64(&mut out, guests.version.into());
            out.extend_from_slice(b",\n");
            files.push_lines(&mut out);
            out.extend_from_slice(b"\"kvstore\": {\n");
            own.push_block(&self.node, &mut out);
            for (name, table) in members.kv_tables().filter(|(name, _)| *name != &*self.node) {
                out.extend_from_slice(b",\n");
                table.push_block(name, &mut out);
            }
            out.extend_from_slice(b"}\n}\n");
            out
        })
    }

    /// Content of `.members` (status.md 4).
    pub fn members_text(&self) -> Arc<[u8]> {
        let core = &mut *self.core.lock();
        // With the lock held: else a text with the state before could be kept after the change.
        let quorate = self.quorate();
        let Core {
            members,
            members_text,
            ..
        } = core;
        members_text.get(|| members.text(&self.node, quorate))
    }

    /// Content of `.vmlist` (status.md 5).
    pub fn vmlist_text(&self) -> Arc<[u8]> {
        self.core.lock().vmlist_text()
    }

    /// [`Status::vmlist_text`], not made if it is longer than `limit` for sure.
    pub fn vmlist_text_within(&self, limit: usize) -> Option<Arc<[u8]>> {
        let core = &mut *self.core.lock();
        let fits = core.guests.list().len() <= limit / guests::MIN_ENTRY;
        fits.then(|| core.vmlist_text())
    }

    /// Content of `.rrd` (status.md 9.6). The IPC answer has one NUL more.
    pub fn rrd_text(&self, now: u32) -> Arc<[u8]> {
        self.rrd.lock().dump(now)
    }

    /// [`Status::rrd_text`], not made if it is longer than `limit`.
    pub fn rrd_text_within(&self, now: u32, limit: usize) -> Option<Arc<[u8]>> {
        self.rrd.lock().dump_within(now, limit)
    }

    // ---- key/value store ----

    /// Sets a value of this node, as asked by a client (status.md 6.1). `key` has no NUL.
    ///
    /// # Errors
    /// [`SetError::TooBig`], [`SetError::Malformed`] and [`SetError::Full`]; nothing is stored then.
    pub fn set_kv(&self, key: &[u8], value: &[u8], now: u32) -> Result<(), SetError> {
        if value.len() > kvstore::MAX_VALUE {
            return Err(SetError::TooBig);
        }
        let special = match key.strip_prefix(b"rrd/") {
            Some(key) => Some(self.set_rrd(key, value, now)),
            None if key == b"nodeip" => Some(self.set_ip(&self.node, value)),
            None => None,
        };
        if let Some(result) = special {
            if let Err(error) = result {
                self.complain(format_args!("key '{}': {error}", key.escape_ascii()));
            }
            return result;
        }
        let mut core = self.core.lock();
        if !core.own.set(key, value, kvstore::MAX_NODE) {
            return Err(SetError::Full);
        }
        core.version_text.clear();
        Ok(())
    }

    /// Takes a value another node sent (status.md 6.3). There is no size limit.
    ///
    /// # Errors
    /// [`SetError::UnknownNode`] and [`SetError::Malformed`]; nothing is stored then.
    pub fn remote_update(
        &self,
        node_id: u32,
        key: &[u8],
        value: &[u8],
        now: u32,
    ) -> Result<(), SetError> {
        let mut core = self.core.lock();
        let Some(name) = core.members.node_name(node_id).map(str::to_owned) else {
            return Err(SetError::UnknownNode);
        };
        if key != b"nodeip" && !key.starts_with(b"rrd/") {
            if let Some(table) = core.members.kv_mut(node_id) {
                if !table.set(key, value, kvstore::MAX_NODE) {
                    return Err(SetError::Full);
                }
                core.version_text.clear();
            }
            return Ok(());
        }
        drop(core);
        match key.strip_prefix(b"rrd/") {
            Some(key) => self.set_rrd(key, value, now),
            None => self.set_ip(&name, value),
        }
    }

    fn set_rrd(&self, key: &[u8], value: &[u8], now: u32) -> Result<(), SetError> {
        self.rrd.lock().set(key, value, now)?;
        if let Some(files) = self.rrd_files.get() {
            files.submit(key, value, now);
        }
        Ok(())
    }

    fn set_ip(&self, node: &str, value: &[u8]) -> Result<(), SetError> {
        let ip = kvstore::c_string(value, MAX_IP).ok_or(SetError::Malformed)?;
        let mut core = self.core.lock();
        if core.members.set_ip(node, ip) {
            core.members_text.clear();
            core.version_text.clear();
        }
        Ok(())
    }

    /// Value of `key` on `node` (empty: this node). `None`: no such node, table or key.
    pub fn get_kv(&self, key: &[u8], node: &[u8]) -> Option<Arc<[u8]>> {
        let core = self.core.lock();
        if node.is_empty() || node == self.node.as_bytes() {
            return core.own.get(key);
        }
        core.members
            .kv_tables()
            .find(|(name, _)| name.as_bytes() == node)?
            .1
            .get(key)
    }

    /// Every value of this node: what is sent again after a synchronisation (status.md 6.4).
    pub fn own_kv(&self) -> Vec<KvPair> {
        let core = self.core.lock();
        core.own
            .iter()
            .map(|(key, value)| (Box::from(key), Arc::clone(value)))
            .collect()
    }

    // ---- cluster ----

    /// Address of a node as it announced it.
    pub fn node_ip(&self, node: &str) -> Option<Box<[u8]>> {
        self.core.lock().members.ip(node).map(Box::from)
    }

    /// Name of a node of the cluster configuration.
    pub fn node_name(&self, id: u32) -> Option<String> {
        self.core.lock().members.node_name(id).map(str::to_owned)
    }

    /// The cluster configuration was read (status.md 4.1).
    pub fn set_cluster_info(&self, cluster: ClusterInfo) {
        let (name, version) = (cluster.name.clone(), cluster.config_version as i32);
        self.change_members(|members| members.set_cluster(cluster));
        // Two spaces, as the C daemon has it.
        info!(target: DOMAIN, "update cluster info (cluster name  {name}, version = {version})");
    }

    /// Node ids of the kvstore group (status.md 4.2).
    pub fn set_online(&self, members: &[u32]) {
        self.change_members(|known| known.set_online(members));
    }

    fn change_members(&self, change: impl FnOnce(&mut Members)) {
        let mut core = self.core.lock();
        change(&mut core.members);
        core.members_text.clear();
        core.version_text.clear();
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Status")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
