//! What the service `pve2` answers (ipc-messages.md): the operations, apart from the transport.
#![forbid(unsafe_code)]

use std::sync::Arc;

use parking_lot::Mutex;

use super::handshake::MAX_MESSAGE_SIZE;
use super::message::{Guests, Request};
use super::{Answer, Client, Service, Work};
use crate::memdb::TreePath;
use crate::replica::{Clock, SharedTree};
use crate::status::guest_props::{
    AllGuests, OneGuest, PropertyCache, PropertyNames, TooLong, config_path,
};
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

/// The longest payload a client can take: nothing longer is made.
const MAX_PAYLOAD: usize = MAX_MESSAGE_SIZE as usize - 24;

/// Answers all operations from the tree and the status.
pub struct ConfigService {
    tree: SharedTree,
    status: Arc<Status>,
    replica: Arc<dyn StatusReplica>,
    pending: Arc<dyn Pending>,
    clock: Clock,
    properties: Arc<Mutex<PropertyCache>>,
    token_path: TreePath,
}

/// Outcome of one operation: 0 or a (positive) errno.
type Outcome = Result<(), i32>;

/// Appends the answer, if a message can hold it.
fn put(out: &mut Vec<u8>, text: &[u8]) -> Outcome {
    if text.len() > MAX_PAYLOAD {
        return Err(libc::ENOBUFS);
    }
    out.extend_from_slice(text);
    Ok(())
}

fn reply(outcome: Outcome) -> Answer {
    Answer::Reply(outcome.map_or_else(|errno| -errno, |()| 0))
}

fn finish(outcome: Result<(), TooLong>) -> i32 {
    outcome.map_or(-libc::ENOBUFS, |()| 0)
}

impl Work for AllGuests {
    fn go_on(&mut self, out: &mut Vec<u8>) -> Option<i32> {
        AllGuests::go_on(self, out).map(finish)
    }
}

impl Work for OneGuest {
    fn go_on(&mut self, out: &mut Vec<u8>) -> Option<i32> {
        OneGuest::go_on(self, out).map(finish)
    }
}

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
        let properties = Arc::default();
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

    fn answer(&self, client: &Client, request: Request<'_>, out: &mut Vec<u8>) -> Outcome {
        match request {
            Request::FsVersion => put(out, &self.status.version_text()),
            Request::ClusterInfo => put(out, &self.status.members_text()),
            Request::GuestList => {
                let text = self.status.vmlist_text_within(MAX_PAYLOAD);
                put(out, &text.ok_or(libc::ENOBUFS)?)
            }
            Request::SetStatus { key, value } => self.set_status(key, value),
            Request::GetStatus { key, node } => {
                put(out, &self.status.get_kv(key, node).ok_or(libc::ENOENT)?)
            }
            Request::GetConfig { path } => put(out, &self.config(&path)?),
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
                Ok(())
            }
            Request::GetClusterLog { max, user } => {
                put(out, &self.status.clusterlog_text(user, max))
            }
            Request::GetRrdDump => {
                let text = self.status.rrd_text_within((self.clock)(), MAX_PAYLOAD - 1);
                put(out, &text.ok_or(libc::ENOBUFS)?)?;
                // Always: clients take an empty answer for a failure.
                out.push(0);
                Ok(())
            }
            Request::VerifyToken { token } => {
                let file = self.config(&self.token_path)?;
                if !token::verify(&file, token) {
                    return Err(libc::ENOENT);
                }
                Ok(())
            }
            // Answered by `properties`.
            Request::GetGuestProperties { .. } => Err(libc::ECHRNG),
        }
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

    /// Short ones are answered at once, the others in pieces.
    fn properties(
        &self,
        guests: Guests,
        names: Option<PropertyNames>,
        out: &mut Vec<u8>,
    ) -> Result<Answer, i32> {
        let Guests::One(vmid) = guests else {
            let names = names.ok_or(libc::EINVAL)?;
            let query = AllGuests::new(
                names,
                Arc::clone(&self.tree),
                Arc::clone(&self.status),
                Arc::clone(&self.properties),
                MAX_PAYLOAD,
            );
            return Ok(match query.known() {
                Some(text) => reply(put(out, &text)),
                None => Answer::Work(Box::new(query)),
            });
        };
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
        let mut query = OneGuest::new(names, vmid, config, MAX_PAYLOAD);
        Ok(match query.go_on(out) {
            Some(outcome) => Answer::Reply(finish(outcome)),
            None => Answer::Work(Box::new(query)),
        })
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
        match request {
            Request::GetGuestProperties { guests, names } => self
                .properties(guests, names, out)
                .unwrap_or_else(|errno| Answer::Reply(-errno)),
            request => reply(self.answer(client, request, out)),
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

    /// The result; none if there is to be asked again.
    fn end(answer: Answer, out: &mut Vec<u8>) -> Option<i32> {
        match answer {
            Answer::Reply(error) => Some(error),
            Answer::Later => None,
            Answer::Work(mut work) => loop {
                out.clear();
                if let Some(error) = work.go_on(out) {
                    return Some(error);
                }
            },
        }
    }

    fn ask(service: &mut ConfigService, id: i32, payload: &[u8]) -> i32 {
        let mut out = Vec::new();
        let answer = service.handle(&ROOT, &message(id, payload), true, &mut out);
        end(answer, &mut out).unwrap()
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
            assert_eq!(matches!(answer, Answer::Later), waits);
            assert!(!waits || out.is_empty());
            let answer = service.handle(&ROOT, &message, true, &mut out);
            assert!(!matches!(answer, Answer::Later));
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
        assert_eq!(ask(&mut service, 4, &[&key("k")[..], b"v"].concat()), 0);
        assert_eq!(ask(&mut service, 4, &key("k")), 0);
        assert_eq!(ask(&mut service, 4, &key("nodeip")), -libc::ENOMEM);
        assert_eq!(ask(&mut service, 4, &key("rrd/x")), -libc::ENOMEM);
        let expected = [(b"k".to_vec(), b"v".to_vec()), (b"k".to_vec(), Vec::new())];
        assert_eq!(*sent.updates.lock(), expected);
        assert_eq!(ask(&mut service, 7, b"\x06\x02\x02i\0t\0m\0"), 0);
        assert_eq!(ask(&mut service, 7, b"\x08\x02\x02i\0t\0m\0"), 0);
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
            let error = end(answer, &mut out).expect("an answer at the last call");
            prop_assert!(error <= 0);
            prop_assert!(error == 0 || out.is_empty());
        }
    }
}
