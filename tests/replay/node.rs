//! One process of a transcript, played by our state machines.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pmxcfs::dcdb::{self, Dcdb, Write};
use pmxcfs::dfsm::wire::{self, Body, Message, Type};
use pmxcfs::dfsm::{
    Action, Application, Config, Event as Input, Machine, MemberId, Mode, Now, Outgoing,
};
use pmxcfs::kvstore::Kvstore;
use pmxcfs::memdb::{LoadRow, Tree};
use pmxcfs::status::Status;

use super::compare::{self, Meaning};
use super::raw::Raw;
use super::start::{first_rows, first_status, load};
use super::transcript::{Db, Event, Group, Kind, Transcript};

/// Rows by inode, as they are on disk.
pub type Disk = BTreeMap<i64, LoadRow>;

/// A machine and what it sent in the current callback.
struct Player<A: Application> {
    group: Group,
    machine: Machine<Raw<A>>,
    sent: Vec<Vec<u8>>,
    recorded: Vec<Vec<u8>>,
    actions: Vec<A::Action>,
    compared: usize,
}

impl<A: Application> Player<A> {
    fn new(group: Group, app: A) -> Self {
        // Holding back local requests would change what was recorded of an old node.
        let config = Config {
            hold_back: false,
            ..Config::default()
        };
        let machine = Machine::new(Raw(app), config);
        let (sent, recorded, actions) = (Vec::new(), Vec::new(), Vec::new());
        Player {
            group,
            machine,
            sent,
            recorded,
            actions,
            compared: 0,
        }
    }

    fn input(&mut self, now: Now, input: Input<'_, Outgoing, A::Event>) {
        let mut out = Vec::new();
        self.machine.handle(now, input, &mut out);
        while self.machine.has_bulk() {
            self.machine.handle(now, Input::Room, &mut out);
        }
        for action in out {
            match action {
                Action::Send(bytes) => self.sent.push(bytes),
                Action::App(action) => self.actions.push(action),
                _ => {}
            }
        }
    }

    fn event(&mut self, own: MemberId, now: Now, kind: &Kind) {
        match kind {
            Kind::Joined { .. } => self.input(now, Input::Connected { own }),
            Kind::Finalized { .. } => self.input(now, Input::Disconnected),
            Kind::Confchg {
                members, joined, ..
            } => {
                self.input(now, Input::Confchg { members, joined });
            }
            Kind::Deliver { from, bytes, .. } => {
                self.input(now, Input::Deliver { from: *from, bytes });
            }
            Kind::Send {
                callback: true,
                bytes,
                ..
            } => self.recorded.push(bytes.to_vec()),
            Kind::Send {
                callback: false,
                bytes,
                ..
            } => {
                let before = std::mem::take(&mut self.sent);
                self.local_send(now, bytes);
                self.sent = before;
            }
            Kind::Done { .. } => self.compare(now),
            Kind::Start { .. } | Kind::SetStatus { .. } | Kind::Db(_) => {}
        }
    }

    /// The old node sent this by itself: make ours send it.
    fn local_send(&mut self, now: Now, bytes: &[u8]) {
        let message = Message::parse(bytes).unwrap();
        match message.body {
            Body::Normal { payload, .. } => {
                let request = Outgoing {
                    subtype: message.base.subtype,
                    payload: payload.to_vec(),
                };
                self.input(
                    now,
                    Input::Submit {
                        ticket: None,
                        request,
                    },
                );
            }
            Body::State { .. } => {
                assert_eq!(message.base.kind, Type::VerifyRequest);
                self.input(now, Input::Verify);
            }
        }
        let sent = std::mem::take(&mut self.sent);
        assert_eq!(
            sent.len(),
            1,
            "local message at {now:?}: {}",
            compare::describe(bytes)
        );
        assert_eq!(sent[0], bytes, "{} at {now:?}", compare::describe(bytes));
        self.compared += 1;
    }

    fn compare(&mut self, now: Now) {
        let sent = std::mem::take(&mut self.sent);
        let recorded = std::mem::take(&mut self.recorded);
        let text = |list: &[Vec<u8>]| {
            list.iter()
                .map(|m| compare::describe(m))
                .collect::<Vec<_>>()
        };
        let meanings = |list: &[Vec<u8>]| -> Vec<Meaning> {
            let mut meanings: Vec<_> = list
                .iter()
                .map(|m| compare::meaning(self.group, m))
                .collect();
            compare::sort_free(&mut meanings);
            meanings
        };
        assert!(
            meanings(&sent) == meanings(&recorded),
            "{:?} {now:?}: sent {:#?}, recorded {:#?}",
            self.group,
            text(&sent),
            text(&recorded)
        );
        for (ours, theirs) in sent.iter().zip(&recorded) {
            // A callback may have taken the recorded node some seconds.
            let time = |m: &[u8]| wire::Base::parse(m).unwrap().time;
            assert!(time(theirs) - time(ours) < 10, "time {now:?}");
        }
        self.compared += sent.len();
    }
}

/// One process.
pub struct Node {
    own: MemberId,
    /// `None` where no database was recorded.
    dcdb: Option<Player<Dcdb<Tree>>>,
    kv: Player<Kvstore>,
    status: Arc<Status>,
    disk: Disk,
    clock: u32,
    deviates: bool,
}

impl Node {
    pub fn start(
        transcript: &Transcript,
        at: usize,
        node: u32,
        pid: u32,
        disk: Option<Disk>,
    ) -> Self {
        let own = MemberId { nodeid: node, pid };
        let life: Vec<&Event> = transcript.events[at + 1..]
            .iter()
            .filter(|e| e.node == node)
            .take_while(|e| !matches!(e.kind, Kind::Start { .. }))
            .collect();
        let rows = first_rows(transcript, at, node, &life, disk);
        let status = first_status(transcript, node, pid, &life);
        let address = &transcript.nodes[&node].1;
        let kv = Player::new(Group::Kv, Kvstore::new(Arc::clone(&status), address));
        let disk = rows
            .iter()
            .flatten()
            .map(|row| (row.inode, row.clone()))
            .collect();
        let dcdb = rows.map(|rows| {
            let mut player = Player::new(Group::Dcdb, Dcdb::new(load(&rows)));
            player.input(Now::default(), Input::App(dcdb::Event::Quorate(true)));
            player
        });
        Node {
            own,
            dcdb,
            kv,
            status,
            disk,
            clock: 0,
            deviates: false,
        }
    }

    /// The process is gone; the disk stays, and how many messages were compared.
    pub fn end(self) -> (Disk, usize) {
        let compared = self.compared();
        (self.disk, compared)
    }

    pub fn compared(&self) -> usize {
        self.kv.compared + self.dcdb.as_ref().map_or(0, |player| player.compared)
    }

    pub fn event(&mut self, transcript: &Transcript, event: &Event) {
        self.clock = event.now.unwrap_or(self.clock);
        let now = Now {
            wall: self.clock,
            // The old node has one clock for everything, the ages of locks included.
            mono: Duration::from_secs(self.clock.into()),
        };
        match &event.kind {
            Kind::Joined { group }
            | Kind::Finalized { group }
            | Kind::Confchg { group, .. }
            | Kind::Deliver { group, .. }
            | Kind::Send { group, .. }
            | Kind::Done { group } => match group {
                Group::Kv => {
                    self.change_status(now, &event.kind);
                    self.kv.event(self.own, now, &event.kind);
                }
                Group::Dcdb => {
                    if let Some(player) = &mut self.dcdb {
                        if self.deviates {
                            player.recorded.clear();
                            player.sent.clear();
                        }
                        player.event(self.own, now, &event.kind);
                        self.store();
                    }
                }
            },
            Kind::Db(db) => self.check_db(transcript, db),
            // Sizes ("@n") and refused values come again as they are sent.
            Kind::SetStatus { key, value } if !value.starts_with('@') => {
                let _ = self
                    .status
                    .set_kv(key.as_bytes(), value.as_bytes(), now.wall);
            }
            Kind::SetStatus { .. } => {}
            Kind::Start { .. } => {}
        }
    }

    /// A local status change is made before it is sent.
    fn change_status(&mut self, now: Now, kind: &Kind) {
        let Kind::Send {
            callback: false,
            bytes,
            ..
        } = kind
        else {
            return;
        };
        let message = Message::parse(bytes).unwrap();
        if let Body::Normal { payload, .. } = message.body {
            if message.base.subtype == 3 {
                self.status.log_receive(payload).unwrap();
            } else {
                let (key, value) = pmxcfs::kvstore::wire::parse_update(payload).unwrap();
                self.status.set_kv(key, value, now.wall).unwrap();
            }
        }
    }

    /// Writes to the disk what the database asked for.
    fn store(&mut self) {
        let Some(player) = &mut self.dcdb else {
            return;
        };
        for action in player.actions.drain(..) {
            let dcdb::Action::Store(write) = action else {
                continue;
            };
            let (delete, put, root, root_type) = match *write {
                Write::Change(change) => (
                    Vec::from_iter(change.delete),
                    Vec::from_iter(change.put),
                    Some(change.root),
                    8,
                ),
                Write::Sync(sync) => (sync.delete, sync.put, sync.root, 4),
            };
            for inode in delete {
                self.disk.remove(&(inode as i64));
            }
            for row in put {
                self.disk.insert(row.inode as i64, LoadRow::from(&row));
            }
            let Some(root) = root else {
                continue;
            };
            let version_row = self.disk.entry(0).or_default();
            version_row.version = root.version as i64;
            version_row.writer = i64::from(root.writer);
            version_row.mtime = i64::from(root.mtime);
            version_row.type_code = root_type;
            version_row.name = Some(b"__version__"[..].into());
        }
    }

    fn check_db(&mut self, transcript: &Transcript, db: &Db) {
        let Some(player) = &self.dcdb else {
            return;
        };
        let tree = player.machine.app().0.host();
        let digest: String = tree.checksum().iter().map(|b| format!("{b:02x}")).collect();
        // Where old nodes came to differ, ours has to be equal to the synced ones.
        if transcript.name == "write-during-update-phase" && self.own.nodeid == 3 {
            let synced = transcript.events.iter().find_map(|e| match &e.kind {
                Kind::Db(other) if e.node == 1 && other.phase == db.phase => Some(other),
                _ => None,
            });
            let synced = synced.unwrap();
            assert_eq!(digest, synced.digest, "phase {}", db.phase);
            self.deviates |= synced.digest != db.digest;
            assert!(player.machine.mode() == Mode::Synced);
            return;
        }
        let name = &transcript.name;
        assert_eq!(
            digest, db.digest,
            "{name}, node {}, phase {}",
            self.own.nodeid, db.phase
        );
        let rows: Disk = db.rows.iter().map(|row| (row.inode, row.clone())).collect();
        for (inode, row) in &rows {
            let ours = self.disk.get(inode).cloned().unwrap_or_default();
            assert_eq!(
                plain(&ours),
                plain(row),
                "node {}, phase {}",
                self.own.nodeid,
                db.phase
            );
        }
        assert_eq!(rows.len(), self.disk.len());
    }
}

/// Empty content and none are the same on disk.
fn plain(row: &LoadRow) -> LoadRow {
    let mut row = row.clone();
    row.data = row.data.filter(|data| !data.is_empty());
    row
}
