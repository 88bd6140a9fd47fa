//! The database as a replicated application.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::wire::Message;
use super::*;
use crate::memdb::{Row, TreePath};

const ME: MemberId = MemberId { nodeid: 1, pid: 10 };
const YOU: MemberId = MemberId { nodeid: 2, pid: 20 };

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes())
}

fn quorate() -> Dcdb<Tree> {
    let mut dcdb = Dcdb::new(Tree::new());
    dcdb.event(Event::Quorate(true), &mut ctx(0));
    dcdb
}

fn ctx(now: u32) -> Ctx<Action> {
    Ctx::new(now, ME, true)
}

/// Delivers an operation; its result and what was asked for.
fn deliver(
    dcdb: &mut Dcdb<Tree>,
    from: MemberId,
    now: u32,
    message: Message,
) -> (Verdict<Result<Applied, Error>>, Vec<Outgoing>, Vec<Action>) {
    let Outgoing { subtype, payload } = message.encode();
    let mut ctx = ctx(now);
    let delivery = Delivery {
        from,
        subtype,
        time: now,
        payload: &payload,
    };
    let verdict = dcdb.deliver(delivery, &mut ctx);
    let (sends, actions) = ctx.take();
    (verdict, sends, actions)
}

fn apply(dcdb: &mut Dcdb<Tree>, op: Op) -> Vec<Action> {
    let (verdict, _, actions) = deliver(dcdb, ME, 100, Message::Op(op));
    assert!(matches!(verdict, Verdict::Applied(Ok(_))), "{verdict:?}");
    actions
}

fn write(path: TreePath, offset: u64, data: &[u8], truncate: bool) -> Op {
    Op::Write {
        path,
        offset,
        data: data.to_vec(),
        truncate,
    }
}

fn prepared(dcdb: &mut Dcdb<Tree>, op: Op) -> Result<Vec<Message>, Error> {
    match dcdb.prepare(op, &mut ctx(0)) {
        Ok(messages) => Ok(messages
            .iter()
            .map(|m| Message::parse(m.subtype, &m.payload).unwrap())
            .collect()),
        Err(result) => Err(result.unwrap_err()),
    }
}

#[test]
fn without_quorum_nothing_is_sent_or_applied() {
    let mut dcdb = Dcdb::new(Tree::new());
    let op = Op::Create { path: path("a") };
    assert_eq!(dcdb.admit(&op), Err(Err(Error::Access)));
    let (verdict, _, actions) = deliver(&mut dcdb, YOU, 1, Message::Op(op));
    assert_eq!(verdict, Verdict::Leave);
    assert!(actions.is_empty() && dcdb.host().is_empty());
}

#[test]
fn no_growing_truncate_is_sent() {
    let mut dcdb = quorate();
    apply(&mut dcdb, Op::Create { path: path("f") });
    let grow = write(path("f"), 500, b"", true);
    let sent = write(path("f"), 499, &[0], true);
    assert_eq!(
        prepared(&mut dcdb, grow).unwrap(),
        [Message::Op(sent.clone())]
    );
    apply(&mut dcdb, sent);
    assert_eq!(dcdb.host().read(&path("f")).unwrap()[..], [0; 500]);
    // Shrinking is sent as it is.
    let shrink = write(path("f"), 3, b"", true);
    assert_eq!(
        prepared(&mut dcdb, shrink.clone()).unwrap(),
        [Message::Op(shrink)]
    );
}

#[test]
fn what_would_harm_old_nodes_is_refused_before_it_is_sent() {
    let mut dcdb = quorate();
    for dir in ["d", "e"] {
        apply(&mut dcdb, Op::Mkdir { path: path(dir) });
    }
    apply(&mut dcdb, Op::Create { path: path("d/f") });
    let rename = Op::Rename {
        from: path("d"),
        to: path("e"),
    };
    assert_eq!(prepared(&mut dcdb, rename), Err(Error::NotEmpty));
    for offset in [1 << 20, 1 << 32, u64::MAX] {
        let far = write(path("d/f"), offset, b"x", false);
        assert_eq!(prepared(&mut dcdb, far), Err(Error::TooBig));
    }
    assert_eq!(
        prepared(&mut dcdb, write(path("d/f"), 1 << 32, b"", true)),
        Err(Error::TooBig)
    );
}

#[test]
fn a_change_is_stored_and_exported() {
    let mut dcdb = quorate();
    let (_, _, actions) = deliver(
        &mut dcdb,
        YOU,
        1,
        Message::Op(Op::Create {
            path: path("corosync.conf"),
        }),
    );
    assert!(matches!(actions[0], Action::Store(_)));
    assert_eq!(actions[1], Action::ExportCorosyncConf { notify: false });
    let actions = apply(&mut dcdb, write(path("corosync.conf"), 0, b"x", false));
    assert_eq!(actions[1], Action::ExportCorosyncConf { notify: true });
    assert_eq!(
        apply(
            &mut dcdb,
            Op::Create {
                path: path("other")
            }
        )
        .len(),
        1
    );
}

#[test]
fn an_expired_lock_is_unlocked_by_the_lowest_node() {
    let mut dcdb = quorate();
    for dir in ["priv", "priv/lock", "priv/lock/x"] {
        apply(&mut dcdb, Op::Mkdir { path: path(dir) });
    }
    let lock = path("priv/lock/x");
    let ask = Op::SetMtime {
        path: lock.clone(),
        mtime: 0,
    };
    let messages = prepared(&mut dcdb, ask.clone()).unwrap();
    let [Message::UnlockRequest { checksum, .. }, Message::Op(_)] = &messages[..] else {
        panic!("{messages:?}");
    };
    let unlock = Message::Unlock {
        checksum: *checksum,
        path: lock.clone(),
    };
    let (_, sends, _) = deliver(&mut dcdb, YOU, 220, messages[0].clone());
    assert!(sends.is_empty(), "120 s are not over");
    let (_, sends, _) = deliver(&mut dcdb, YOU, 221, messages[0].clone());
    assert_eq!(sends, [unlock.encode()]);
    // A stale one has no effect.
    let stale = Message::Unlock {
        checksum: [0; 32],
        path: lock.clone(),
    };
    deliver(&mut dcdb, ME, 222, stale);
    assert!(dcdb.host().lookup(&lock).is_some());
    deliver(&mut dcdb, ME, 222, unlock);
    assert!(dcdb.host().lookup(&lock).is_none());
}

/// The lock is gone when whoever asked for it is answered, on whatever node that is.
#[test]
fn a_lock_that_expired_here_is_unlocked_before_the_answer() {
    let mut dcdb = quorate();
    for dir in ["priv", "priv/lock", "priv/lock/x", "priv/lock/x/y"] {
        apply(&mut dcdb, Op::Mkdir { path: path(dir) });
    }
    let ask = |dcdb: &mut Dcdb<Tree>, lock: &str, uptime: u32| {
        let op = Op::SetMtime {
            path: path(lock),
            mtime: 0,
        };
        // The wall clock says something else.
        let mut ctx = Ctx::new(5000, ME, false);
        ctx.uptime = uptime;
        let sent = dcdb.prepare(op, &mut ctx).unwrap();
        let parse = |m: &Outgoing| Message::parse(m.subtype, &m.payload).unwrap();
        sent.iter().map(parse).collect::<Vec<_>>()
    };
    let [Message::UnlockRequest { .. }, Message::Op(_)] = &ask(&mut dcdb, "priv/lock/x", 220)[..]
    else {
        panic!("120 s are not over");
    };
    // Below a lock is no lock.
    let messages = ask(&mut dcdb, "priv/lock/x/y", 500);
    assert!(matches!(messages[0], Message::UnlockRequest { .. }));
    apply(
        &mut dcdb,
        Op::Delete {
            path: path("priv/lock/x/y"),
        },
    );
    let messages = ask(&mut dcdb, "priv/lock/x", 221);
    assert_eq!(messages.len(), 2);
    assert!(matches!(messages[0], Message::Unlock { .. }));
    let verdicts: Vec<_> = messages
        .iter()
        .map(|message| deliver(&mut dcdb, ME, 222, message.clone()).0)
        .collect();
    assert!(matches!(verdicts[0], Verdict::Applied(Ok(_))));
    assert_eq!(verdicts[1], Verdict::Applied(Err(Error::NotFound)));
    assert_eq!(dcdb.host().lookup(&path("priv/lock/x")), None);
    // A lock that somebody takes in between stays.
    apply(
        &mut dcdb,
        Op::Mkdir {
            path: path("priv/lock/x"),
        },
    );
    deliver(&mut dcdb, ME, 222, messages[0].clone());
    assert!(dcdb.host().lookup(&path("priv/lock/x")).is_some());
}

/// A leader with a database, and a follower with another.
fn synchronise(follower: &mut Dcdb<Tree>, leader: &mut Dcdb<Tree>) -> (bool, Vec<Action>) {
    let mut own = ctx(300);
    let mut other = Ctx::new(300, YOU, false);
    let states = [
        (ME, follower.state(&mut own).unwrap().into_boxed_slice()),
        (YOU, leader.state(&mut other).unwrap().into_boxed_slice()),
    ];
    let plan = follower.process_states(&states, &mut own).unwrap();
    assert_eq!(plan, leader.process_states(&states, &mut other).unwrap());
    assert_eq!(plan.leader, Some(YOU));
    assert_eq!(plan.synced, [false, true]);
    while let Some(update) = leader.next_update() {
        assert!(follower.process_update(&update, &mut own));
    }
    let done = follower.commit(&mut own);
    (done, own.take().1)
}

fn leader() -> Dcdb<Tree> {
    let mut leader = quorate();
    for number in 0..5 {
        apply(
            &mut leader,
            Op::Create {
                path: path(&format!("f{number}")),
            },
        );
        apply(
            &mut leader,
            write(path(&format!("f{number}")), 0, b"content", false),
        );
    }
    leader
}

#[test]
fn a_synchronisation_is_one_write() {
    let mut follower = quorate();
    apply(&mut follower, Op::Create { path: path("gone") });
    let (done, actions) = synchronise(&mut follower, &mut leader());
    assert!(done);
    assert_eq!(
        follower.host().encode_index(),
        leader().host().encode_index()
    );
    // What is taken away is kept first.
    let [Action::KeepAside(aside), Action::Store(write), rest @ ..] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!((aside.gone, aside.changed), (1, 0));
    let Write::Sync(commit) = &**write else {
        panic!("{write:?}");
    };
    assert_eq!(
        (commit.put.len(), commit.root.map(|root| root.version)),
        (5, Some(10))
    );
    let wanted = [
        Action::Replaced,
        Action::ExportCorosyncConf { notify: false },
    ];
    assert_eq!(rest, wanted);
}

/// Whatever else the leader sends is not kept: it could fill the memory.
#[test]
fn an_update_is_taken_once_and_only_if_it_was_announced() {
    let (mut follower, mut leader) = (quorate(), leader());
    let mut own = ctx(300);
    let states = [
        (ME, follower.state(&mut own).unwrap().into_boxed_slice()),
        (YOU, leader.state(&mut own).unwrap().into_boxed_slice()),
    ];
    follower.process_states(&states, &mut own).unwrap();
    leader
        .process_states(&states, &mut Ctx::new(300, YOU, false))
        .unwrap();
    let unannounced = Update(Row {
        inode: 999,
        parent: 0,
        version: 999,
        writer: 2,
        mtime: 1,
        type_code: 8,
        name: Arc::from(&b"x"[..]),
        data: Some(Arc::from(vec![b'x'; 1 << 20])),
    });
    let mut sent = 0;
    while let Some(update) = leader.next_update() {
        for _ in 0..100 {
            assert!(follower.process_update(&update, &mut own));
            assert!(follower.process_update(&unannounced.encode(), &mut own));
        }
        sent += 1;
        assert_eq!(follower.updates.len(), sent);
    }
    assert!(follower.commit(&mut own));
    assert_eq!(follower.host().encode_index(), leader.host().encode_index());
}

#[test]
fn updates_that_do_not_fit_change_nothing() {
    let mut follower = quorate();
    let before = follower.host().encode_index();
    let mut damaged = leader();
    assert_eq!(damaged.process_states(&[], &mut ctx(0)), None);
    let states = [
        (ME, before.clone().into_boxed_slice()),
        (YOU, damaged.state(&mut ctx(0)).unwrap().into_boxed_slice()),
    ];
    follower.process_states(&states, &mut ctx(0)).unwrap();
    assert!(!follower.commit(&mut ctx(0)));
    assert_eq!(follower.host().encode_index(), before);
}

#[test]
fn while_the_disk_cannot_be_written_it_is_no_member() {
    let mut dcdb = quorate();
    apply(&mut dcdb, Op::Create { path: path("a") });
    let mut ctx = ctx(0);
    let broken = Event::Writable(false);
    assert_eq!(dcdb.event(broken, &mut ctx), Consequence::Leave);
    assert_eq!(dcdb.event(broken, &mut ctx), Consequence::None);
    let op = Op::Create { path: path("b") };
    assert_eq!(dcdb.admit(&op), Err(Err(Error::Io)));
    assert!(!dcdb.may_join());
    // What was applied stays: the store has it, and the others.
    assert!(dcdb.host().lookup(&path("a")).is_some());
    assert_eq!(
        dcdb.event(Event::Writable(true), &mut ctx),
        Consequence::None
    );
    assert!(dcdb.may_join() && dcdb.admit(&op).is_ok());
}

/// A leader whose version row lags behind its entries, as after an SQL accident: an old node goes on
/// with the row's version, and so must its followers.
#[test]
fn a_leader_whose_version_lags_is_followed() {
    let mut old = leader();
    old.host.set_version_for_test(3);
    let mut follower = quorate();
    assert!(synchronise(&mut follower, &mut old).0);
    assert_eq!(follower.host().encode_index(), old.host().encode_index());
    assert_eq!(follower.host().root_row().version, 3);
    // The next free numbers: 4 is not in use, 5 and 7 are.
    for (name, inode) in [("x", 4), ("y", 6), ("z", 8)] {
        let op = Op::Create { path: path(name) };
        for dcdb in [&mut follower, &mut old] {
            apply(dcdb, op.clone());
            assert_eq!(dcdb.host().lookup(&path(name)), Some(inode));
        }
    }
    assert_eq!(follower.host().encode_index(), old.host().encode_index());
}

#[test]
fn malformed_states_and_messages_make_it_leave() {
    let mut dcdb = quorate();
    let states = [(ME, vec![1, 2, 3].into_boxed_slice())];
    assert_eq!(dcdb.process_states(&states, &mut ctx(0)), None);
    assert!(!dcdb.process_update(b"short", &mut ctx(0)));
    let delivery = Delivery {
        from: YOU,
        subtype: 1,
        time: 0,
        payload: b"short",
    };
    assert_eq!(dcdb.deliver(delivery, &mut ctx(0)), Verdict::Leave);
}
