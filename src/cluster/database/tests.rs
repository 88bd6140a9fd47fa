//! The database's surroundings on a real store.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::RwLock;
use tempfile::TempDir;

use super::*;
use crate::dfsm::{Application, Ctx, Delivery, MemberId};
use crate::memdb::{ROOT_INODE, TreePath};
use crate::replica::{Barrier, Observer};
use crate::store::Store;

/// Tells what the kernel had to forget.
struct Kernel(Mutex<Sender<String>>);

impl Kernel {
    fn tell(&self, what: &str, change: &Change) {
        // The difference between two trees names rows only.
        let touched = change.effects.touched.iter().find(|path| !path.is_root());
        let row = change.put.as_ref().map(|row| TreePath::new(&row.name));
        let path = touched.or(row.as_ref()).unwrap();
        self.0.lock().send(format!("{what} {path}")).unwrap();
    }
}

impl Barrier for Kernel {
    fn settle(&self, change: &Change) {
        self.tell("settle", change);
    }
    fn invalidate(&self, change: &Change) {
        self.tell("invalidate", change);
    }
    fn quorum_changed(&self) {}
}

struct Seen(Mutex<Vec<u64>>);

impl Observer for Seen {
    fn applied(&self, change: &Change) {
        self.0.lock().push(change.inode);
    }
}

struct Lab {
    dir: TempDir,
    tree: SharedTree,
    store: StoreHandle,
    dcdb: Dcdb<Host>,
    database: Database,
    seen: Arc<Seen>,
    kernel: Receiver<String>,
    /// Paths whose changes were announced.
    told: Receiver<String>,
    answers: (Sender<String>, Receiver<String>),
}

const OWN: MemberId = MemberId { nodeid: 1, pid: 1 };
const OTHER: MemberId = MemberId { nodeid: 2, pid: 2 };
const SOON: Duration = Duration::from_secs(10);

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes())
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let (store, loaded) = Store::open(&dir.path().join("config.db"), 1000).unwrap();
        let store = store.spawn().unwrap();
        let tree: SharedTree = Arc::new(RwLock::new(loaded.tree));
        let status = Arc::new(Status::new("node1", 1000, 1));
        let (tell, told) = channel();
        let tell = Mutex::new(tell);
        let sink = move |effects: &Effects| {
            for path in &effects.touched {
                let path = String::from_utf8_lossy(path.as_bytes()).into_owned();
                tell.lock().send(path).unwrap();
            }
        };
        let announcer = Announcer::start(Arc::new(sink)).unwrap();
        let (called, kernel) = channel();
        announcer.set_barrier(Arc::new(Kernel(Mutex::new(called))));
        let host_file = dir.path().join("corosync.conf");
        let seen = Arc::new(Seen(Mutex::default()));
        let observers: Observers = Arc::new(Mutex::new(vec![seen.clone()]));
        let (database, host) = Database::new(
            DatabaseParts {
                tree: tree.clone(),
                store: store.clone(),
                announcer,
                relevant: Arc::new(|_| true),
                status,
                chores: Chores::start(tree.clone(), host_file, "node1".into()).unwrap(),
                path: dir.path().join("config.db"),
                write_timeout: std::time::Duration::from_secs(30),
            },
            observers,
        );
        let mut dcdb = Dcdb::new(host);
        let mut ctx = Ctx::new(1000, OWN, true);
        dcdb.event(dcdb::Event::Quorate(true), &mut ctx);
        Lab {
            dir,
            tree,
            store,
            dcdb,
            database,
            seen,
            kernel,
            told,
            answers: channel(),
        }
    }

    /// A message is delivered; its sender waits for the result if a text is given, and may be told.
    fn deliver(&mut self, from: MemberId, op: Op, waits: Option<&str>) {
        let ticket = self.apply(from, op, waits);
        if let Some(ticket) = ticket {
            self.database.release(ticket);
        }
    }

    /// A message is delivered; its sender waits for the result if a text is given.
    fn apply(&mut self, from: MemberId, op: Op, waits: Option<&str>) -> Option<Ticket> {
        let message = dcdb::wire::Message::Op(op).encode();
        let mut ctx = Ctx::new(2000, OWN, true);
        let delivery = Delivery {
            from,
            subtype: message.subtype,
            time: 2000,
            payload: &message.payload,
        };
        let crate::dfsm::Verdict::Applied(reply) = self.dcdb.deliver(delivery, &mut ctx) else {
            panic!("not applied");
        };
        self.act(ctx);
        let ticket = waits.map(|text| self.ticket(text));
        if let Some(ticket) = ticket {
            self.database.applied(ticket, reply);
        }
        self.database.finish();
        self.database.write();
        ticket
    }

    /// Somebody waits: the answer comes with this text.
    fn ticket(&mut self, text: &str) -> Ticket {
        let (text, answers) = (text.to_owned(), self.answers.0.clone());
        let tell = move |result: Result<Applied, Error>| {
            let result = result.map(|_| ());
            answers.send(format!("{text} {result:?}")).unwrap();
        };
        self.database.ticket(Box::new(tell))
    }

    fn act(&mut self, mut ctx: Ctx<dcdb::Action>) {
        ctx.take()
            .1
            .into_iter()
            .for_each(|action| self.database.act(action));
    }

    fn no_answer(&self) {
        let answer = self.answers.1.recv_timeout(Duration::from_millis(50));
        assert!(answer.is_err(), "{answer:?}");
    }

    fn kernel(&self) -> String {
        self.kernel.recv_timeout(SOON).unwrap()
    }

    fn answer(&self) -> String {
        self.answers.1.recv_timeout(SOON).unwrap()
    }

    /// Everything of that name is refused by the disk until the connection is told otherwise.
    fn break_disk_for(&self, name: &str) -> rusqlite::Connection {
        let sql = format!(
            "CREATE TRIGGER full BEFORE INSERT ON tree WHEN NEW.name = '{name}' \
             BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        );
        let disk = rusqlite::Connection::open(self.dir.path().join("config.db")).unwrap();
        disk.execute_batch(&sql).unwrap();
        disk
    }

    fn until_writable(&mut self) {
        let end = std::time::Instant::now() + SOON;
        while !self.database.is_writable() {
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn on_disk(&self) -> Vec<String> {
        let disk = rusqlite::Connection::open(self.dir.path().join("config.db")).unwrap();
        let sql = "SELECT name FROM tree WHERE inode != 0 ORDER BY inode";
        let mut rows = disk.prepare(sql).unwrap();
        let names = rows.query_map([], |row| row.get(0)).unwrap();
        names.map(Result::unwrap).collect()
    }

    fn names(&self) -> Vec<String> {
        let name = |(_, entry): (u64, &crate::memdb::Entry)| {
            String::from_utf8_lossy(&entry.name).into_owned()
        };
        self.tree.read().iter().map(name).collect()
    }

    /// This node is behind: it gets a file from the leader, and commits.
    fn sync_file(&mut self, name: &str) -> bool {
        let mut leader = self.tree.read().clone();
        let stamp = Stamp {
            writer: 2,
            mtime: 3000,
        };
        let inode = leader
            .apply(&Op::Create { path: path(name) }, stamp, 3000)
            .unwrap()
            .inode;
        let own = self.tree.read().encode_index();
        let states = [
            (OWN, own.into_boxed_slice()),
            (OTHER, leader.encode_index().into_boxed_slice()),
        ];
        let mut ctx = Ctx::new(3000, OWN, true);
        self.dcdb.process_states(&states, &mut ctx).unwrap();
        let updates = [
            dcdb::wire::Update::root(leader.root_row()),
            dcdb::wire::Update(leader.row(inode).unwrap()),
        ];
        for update in updates {
            assert!(self.dcdb.process_update(&update.encode(), &mut ctx));
        }
        let committed = self.dcdb.commit(&mut ctx);
        self.act(ctx);
        self.database.finish();
        committed
    }
}

fn create(name: &str) -> Op {
    Op::Create { path: path(name) }
}

#[test]
fn own_changes_are_answered_when_stored_and_others_forgotten_by_the_kernel() {
    let mut lab = Lab::new();
    lab.deliver(OWN, create("mine"), Some("first"));
    assert_eq!(lab.answer(), "first Ok(())");
    assert_eq!(lab.kernel(), "settle mine");
    lab.deliver(OTHER, create("theirs"), None);
    assert_eq!(lab.kernel(), "invalidate theirs");
    // Its caller was told that the outcome is unknown.
    lab.deliver(OWN, create("late"), None);
    assert_eq!(lab.kernel(), "invalidate late");
    lab.deliver(OWN, create("mine"), Some("again"));
    assert_eq!(lab.answer(), "again Err(Exists)");
    assert_eq!(lab.seen.0.lock().len(), 3);
}

#[test]
fn an_answer_waits_for_the_others_too() {
    let mut lab = Lab::new();
    let first = lab.apply(OWN, create("first"), Some("first")).unwrap();
    let second = lab.apply(OWN, create("second"), Some("second")).unwrap();
    lab.store.flush();
    lab.no_answer();
    // In the order of the changes, whichever is known first.
    lab.database.release(second);
    lab.no_answer();
    lab.database.release(first);
    assert_eq!(
        [lab.answer(), lab.answer()],
        ["first Ok(())", "second Ok(())"]
    );
    assert_eq!(
        [lab.kernel(), lab.kernel()],
        ["settle first", "settle second"]
    );
}

#[test]
fn what_may_be_lost_is_not_known_and_the_kernel_forgets_it() {
    let mut lab = Lab::new();
    let ticket = lab.apply(OWN, create("mine"), Some("mine")).unwrap();
    lab.store.flush();
    lab.database.reply(ticket, Err(Busy));
    assert_eq!(lab.answer(), "mine Err(Busy)");
    assert_eq!(lab.kernel(), "invalidate mine");
    // Once is enough.
    lab.database.release(ticket);
    lab.no_answer();
}

#[test]
fn nobody_waits_for_a_core_that_has_ended() {
    let mut lab = Lab::new();
    lab.apply(OWN, create("applied"), Some("applied"));
    lab.ticket("sent");
    lab.database.refuse_all();
    let mut answers = [lab.answer(), lab.answer()];
    answers.sort();
    assert_eq!(answers, ["applied Err(Busy)", "sent Err(Busy)"]);
}

#[test]
fn news_are_told_in_the_order_of_the_changes() {
    let mut lab = Lab::new();
    let ticket = lab.apply(OWN, create("mine"), Some("mine")).unwrap();
    lab.deliver(OTHER, Op::Delete { path: path("mine") }, None);
    lab.store.flush();
    assert_eq!(lab.kernel(), "invalidate mine");
    std::thread::sleep(Duration::from_millis(50));
    assert!(lab.told.try_recv().is_err());
    lab.database.release(ticket);
    assert_eq!(lab.told.recv_timeout(SOON).unwrap(), "mine");
    assert_eq!(lab.told.recv_timeout(SOON).unwrap(), "mine");
    assert_eq!(lab.answer(), "mine Ok(())");
}

#[test]
fn a_result_that_changed_nothing_comes_after_what_was_before_it() {
    let mut lab = Lab::new();
    lab.deliver(OTHER, create("theirs"), None);
    let ticket = lab.ticket("nothing");
    lab.database
        .applied(ticket, Ok(Applied { inode: ROOT_INODE }));
    lab.database.finish();
    lab.store.flush();
    lab.no_answer();
    lab.database.release(ticket);
    assert_eq!(lab.answer(), "nothing Ok(())");
    let ticket = lab.ticket("sent");
    lab.database.reply(ticket, Err(Busy));
    assert_eq!(lab.answer(), "sent Err(Busy)");
}

#[test]
fn a_change_that_cannot_be_stored_now_is_stored_later() {
    let mut lab = Lab::new();
    let disk = lab.break_disk_for("bad");
    lab.deliver(OWN, create("bad"), Some("bad"));
    assert_eq!(lab.answer(), "bad Err(Io)");
    assert!(!lab.database.is_writable());
    // Memory and the other nodes have it.
    assert_eq!(lab.kernel(), "invalidate bad");
    lab.deliver(OTHER, create("next"), None);
    assert_eq!(lab.kernel(), "invalidate next");
    assert_eq!(lab.names(), ["bad", "next"]);
    disk.execute_batch("DROP TRIGGER full").unwrap();
    lab.until_writable();
    assert_eq!(lab.on_disk(), ["bad", "next"]);
    lab.deliver(OWN, create("after"), Some("after"));
    assert_eq!(lab.answer(), "after Ok(())");
}

#[test]
fn a_synchronisation_replaces_the_tree_and_the_kernel_forgets_the_difference() {
    let mut lab = Lab::new();
    lab.deliver(OTHER, create("before"), None);
    assert_eq!(lab.kernel(), "invalidate before");
    assert!(lab.sync_file("synced"));
    assert_eq!(lab.kernel(), "invalidate synced");
    lab.store.flush();
    assert!(lab.tree.read().lookup(&path("synced")).is_some());
}

#[test]
fn a_synchronisation_that_cannot_be_stored_now_holds_up_nothing() {
    let mut lab = Lab::new();
    let disk = lab.break_disk_for("bad");
    assert!(lab.sync_file("bad"));
    assert_eq!(lab.kernel(), "invalidate bad");
    lab.deliver(OTHER, create("behind"), None);
    assert_eq!(lab.kernel(), "invalidate behind");
    assert_eq!(lab.names(), ["bad", "behind"]);
    disk.execute_batch("DROP TRIGGER full").unwrap();
    assert!(lab.sync_file("good"));
    assert_eq!(lab.kernel(), "invalidate good");
    lab.until_writable();
    assert_eq!(lab.on_disk(), ["bad", "behind", "good"]);
}

#[test]
fn a_disk_that_does_not_keep_up_counts_as_broken_until_all_is_written() {
    let mut lab = Lab::new();
    // Held by another process; that is no trouble yet.
    let disk = rusqlite::Connection::open(lab.dir.path().join("config.db")).unwrap();
    disk.execute_batch("BEGIN IMMEDIATE").unwrap();
    lab.deliver(OTHER, create("big"), None);
    let data = vec![b'x'; 1 << 20];
    let write = |byte: usize| Op::Write {
        path: path("big"),
        offset: byte as u64,
        data: data[byte..].to_vec(),
        truncate: false,
    };
    for byte in 0..BACKLOG >> 20 {
        assert!(lab.database.is_writable(), "after {byte}");
        lab.deliver(OTHER, write(byte), None);
    }
    assert!(!lab.database.is_writable());
    assert!(!lab.store.errors().load(Ordering::SeqCst));
    disk.execute_batch("ROLLBACK").unwrap();
    lab.until_writable();
}
