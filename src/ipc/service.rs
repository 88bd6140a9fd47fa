//! What the service `pve2` answers (ipc-messages.md): the operations, apart from the transport.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::message::{Guests, Request};
use super::{Answer, Client, Service};
use crate::memdb::TreePath;
use crate::replica::{Clock, SharedTree};
use crate::status::guest_props::{PropertyCache, PropertyNames, config_path};
use crate::status::{SetError, Status, token};

/// Sends what clients change in the status to the other nodes. Results are not awaited.
pub trait StatusReplica: Send + Sync {
    /// A value of this node was set (empty: removed). Round-robin data and `nodeip` included.
    fn kv_update(&self, key: &[u8], value: &[u8]);
    /// An entry was logged: its binary form (cluster-sync.md 4.1).
    fn log_entry(&self, entry: &[u8]);
}

/// Local mode: there is nobody to tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

impl StatusReplica for NoPeers {
    fn kv_update(&self, _key: &[u8], _value: &[u8]) {}
    fn log_entry(&self, _entry: &[u8]) {}
}

/// Tells whether changes that writers were told about still wait to be announced.
pub trait Pending: Send + Sync {
    /// True while an announcement is on its way.
    fn pending(&self) -> bool;
}

/// Announcements are made before the writer gets its answer: never pending.
#[derive(Debug, Clone, Copy, Default)]
pub struct NeverPending;

impl Pending for NeverPending {
    fn pending(&self) -> bool {
        false
    }
}

/// Answers all operations from the tree and the status.
pub struct ConfigService {
    tree: SharedTree,
    status: Arc<Status>,
    replica: Arc<dyn StatusReplica>,
    pending: Arc<dyn Pending>,
    clock: Clock,
    properties: PropertyCache,
    token_path: TreePath,
}

/// Outcome of one operation: 0 or a (positive) errno.
type Outcome = Result<(), i32>;

impl ConfigService {
    /// A service on the given parts. `clock` gives the current time.
    pub fn new(
        tree: SharedTree,
        status: Arc<Status>,
        replica: Arc<dyn StatusReplica>,
        pending: Arc<dyn Pending>,
        clock: Clock,
    ) -> Self {
        let token_path = TreePath::new(b"priv/token.cfg");
        let properties = PropertyCache::default();
        ConfigService {
            tree,
            status,
            replica,
            pending,
            clock,
            properties,
            token_path,
        }
    }

    fn answer(&mut self, client: &Client, request: Request<'_>, out: &mut Vec<u8>) -> Outcome {
        match request {
            Request::FsVersion => out.extend_from_slice(&self.status.version_text()),
            Request::ClusterInfo => out.extend_from_slice(&self.status.members_text()),
            Request::GuestList => out.extend_from_slice(&self.status.vmlist_text()),
            Request::SetStatus { key, value } => self.set_status(key, value)?,
            Request::GetStatus { key, node } => {
                out.extend_from_slice(&self.status.get_kv(key, node).ok_or(libc::ENOENT)?);
            }
            Request::GetConfig { path } => out.extend_from_slice(&self.config(&path)?),
            Request::LogClusterMsg {
                priority,
                ident,
                tag,
                message,
            } => {
                // A pid is never negative.
                let pid = client.pid as u32;
                let now = (self.clock)();
                if let Some(entry) = self.status.log(ident, tag, pid, priority, message, now) {
                    self.replica.log_entry(&entry);
                }
            }
            Request::GetClusterLog { max, user } => {
                out.extend_from_slice(&self.status.clusterlog_text(user, max));
            }
            Request::GetRrdDump => {
                out.extend_from_slice(&self.status.rrd_text((self.clock)()));
                // Always: clients take an empty answer for a failure.
                out.push(0);
            }
            Request::GetGuestProperties { guests, names } => self.properties(guests, names, out)?,
            Request::VerifyToken { token } => {
                let file = self.config(&self.token_path)?;
                if !token::verify(&file, token) {
                    return Err(libc::ENOENT);
                }
            }
        }
        Ok(())
    }

    /// Content of a regular file.
    fn config(&self, path: &TreePath) -> Result<Arc<[u8]>, i32> {
        self.tree
            .read()
            .read(path)
            .map(Arc::clone)
            .ok_or(libc::ENOENT)
    }

    fn set_status(&self, key: &[u8], value: &[u8]) -> Outcome {
        self.status
            .set_kv(key, value, (self.clock)())
            .map_err(SetError::errno)?;
        self.replica.kv_update(key, value);
        Ok(())
    }

    fn properties(
        &mut self,
        guests: Guests,
        names: Option<PropertyNames>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        match guests {
            Guests::All => {
                let names = names.ok_or(libc::EINVAL)?;
                let (list, version) = self.status.guests();
                out.extend_from_slice(&self.properties.all(&names, &self.tree, &list, version));
            }
            Guests::One(vmid) => {
                let config = {
                    let tree = self.tree.read();
                    let guest = tree.guest(vmid).ok_or(libc::ENOENT)?;
                    tree.read(&config_path(vmid, guest)).map(Arc::clone)
                };
                let names = names.ok_or(libc::EINVAL)?;
                // The C daemon cannot tell an empty file from one that it failed to read.
                let config = config
                    .filter(|config| !config.is_empty())
                    .ok_or(libc::EIO)?;
                out.extend_from_slice(&names.answer_one(vmid, &config));
            }
        }
        Ok(())
    }
}

/// Must the answer show every change that any writer was told about? Then it has to wait for the
/// announcements on their way: clients compare versions to know what they have to read again.
fn shows_announcements(request: &Request<'_>) -> bool {
    matches!(
        request,
        Request::FsVersion
            | Request::GuestList
            | Request::GetGuestProperties {
                guests: Guests::All,
                ..
            }
    )
}

impl Service for ConfigService {
    fn handle(&mut self, client: &Client, message: &[u8], last: bool, out: &mut Vec<u8>) -> Answer {
        let request = match Request::parse(message, client.read_only) {
            Ok(request) => request,
            Err(refusal) => return Answer::Reply(-refusal.errno()),
        };
        if !last && shows_announcements(&request) && self.pending.pending() {
            return Answer::Later;
        }
        match self.answer(client, request, out) {
            Ok(()) => Answer::Reply(0),
            Err(errno) => Answer::Reply(-errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use parking_lot::{Mutex, RwLock};
    use proptest::prelude::*;

    use super::*;
    use crate::memdb::{Op, Stamp, Tree};

    const ROOT: Client = Client {
        pid: 7,
        uid: 0,
        gid: 0,
        read_only: false,
    };

    #[derive(Default)]
    struct Sent {
        updates: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
        entries: Mutex<Vec<Vec<u8>>>,
        pending: AtomicBool,
    }

    impl StatusReplica for Sent {
        fn kv_update(&self, key: &[u8], value: &[u8]) {
            self.updates.lock().push((key.to_vec(), value.to_vec()));
        }
        fn log_entry(&self, entry: &[u8]) {
            self.entries.lock().push(entry.to_vec());
        }
    }

    impl Pending for Sent {
        fn pending(&self) -> bool {
            self.pending.load(Ordering::Relaxed)
        }
    }

    fn service() -> (ConfigService, Arc<Sent>) {
        let mut tree = Tree::new();
        for (path, is_dir) in [
            ("nodes", true),
            ("nodes/a", true),
            ("nodes/a/lxc", true),
            ("nodes/a/lxc/100.conf", false),
            ("priv", true),
            ("priv/token.cfg", false),
        ] {
            let path = TreePath::new(path.as_bytes());
            let op = if is_dir {
                Op::Mkdir { path }
            } else {
                Op::Create { path }
            };
            tree.apply(
                &op,
                Stamp {
                    writer: 0,
                    mtime: 1,
                },
                1,
            )
            .unwrap();
        }
        let status = Arc::new(Status::new("a", 1, 1));
        status.reloaded(&tree);
        let sent = Arc::new(Sent::default());
        let tree = Arc::new(RwLock::new(tree));
        let clock = Arc::new(|| 1000);
        (
            ConfigService::new(tree, status, sent.clone(), sent.clone(), clock),
            sent,
        )
    }

    fn message(id: i32, payload: &[u8]) -> Vec<u8> {
        let size = 16 + payload.len() as u32;
        [
            &id.to_le_bytes()[..],
            &[0; 4],
            &size.to_le_bytes(),
            &[0; 4],
            payload,
        ]
        .concat()
    }

    fn ask(service: &mut ConfigService, id: i32, payload: &[u8]) -> Answer {
        service.handle(&ROOT, &message(id, payload), true, &mut Vec::new())
    }

    #[test]
    fn versions_wait_for_announcements() {
        let (mut service, sent) = service();
        sent.pending.store(true, Ordering::Relaxed);
        let all = message(13, b"\0\0\0\0\x01a\0");
        let one = message(13, b"\x64\0\0\0\x01a\0");
        for (message, waits) in [
            (message(1, b""), true),
            (message(2, b""), false),
            (message(3, b""), true),
            (all, true),
            (one, false),
            (message(1, b"x"), false),
        ] {
            let mut out = Vec::new();
            let answer = service.handle(&ROOT, &message, false, &mut out);
            assert_eq!(answer == Answer::Later, waits);
            assert!(!waits || out.is_empty());
            assert_ne!(
                service.handle(&ROOT, &message, true, &mut out),
                Answer::Later
            );
        }
    }

    #[test]
    fn only_what_was_done_is_sent() {
        let (mut service, sent) = service();
        let key = |key: &str| {
            let mut field = key.as_bytes().to_vec();
            field.resize(256, 0);
            field
        };
        assert_eq!(
            ask(&mut service, 4, &[&key("k")[..], b"v"].concat()),
            Answer::Reply(0)
        );
        assert_eq!(ask(&mut service, 4, &key("k")), Answer::Reply(0));
        assert_eq!(
            ask(&mut service, 4, &key("nodeip")),
            Answer::Reply(-libc::ENOMEM)
        );
        assert_eq!(
            ask(&mut service, 4, &key("rrd/x")),
            Answer::Reply(-libc::ENOMEM)
        );
        let expected = [(b"k".to_vec(), b"v".to_vec()), (b"k".to_vec(), Vec::new())];
        assert_eq!(*sent.updates.lock(), expected);
        assert_eq!(
            ask(&mut service, 7, b"\x06\x02\x02i\0t\0m\0"),
            Answer::Reply(0)
        );
        assert_eq!(
            ask(&mut service, 7, b"\x08\x02\x02i\0t\0m\0"),
            Answer::Reply(0)
        );
        assert_eq!(sent.entries.lock().len(), 1);
        assert_eq!(sent.entries.lock()[0].len(), 48 + 2 + 2 + 2 + 2);
    }

    proptest! {
        #[test]
        fn any_request_is_answered(
            id in -5i32..20,
            payload in prop::collection::vec(prop_oneof![Just(0u8), Just(100), any::<u8>()], 0..600),
            read_only: bool,
        ) {
            let (mut service, _) = service();
            let client = Client { read_only, ..ROOT };
            let mut out = Vec::new();
            let answer = service.handle(&client, &message(id, &payload), true, &mut out);
            let Answer::Reply(error) = answer else { panic!("waits at the last call") };
            prop_assert!(error <= 0);
            prop_assert!(error == 0 || out.is_empty());
        }
    }
}
