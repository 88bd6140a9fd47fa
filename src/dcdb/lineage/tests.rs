//! What a synchronisation takes, and from whom.
#![forbid(unsafe_code)]

use super::super::{Action, Dcdb, Event, sync};
use super::*;
use crate::dfsm::{Application, Consequence, Ctx, MemberId, Plan};
use crate::memdb::{Op, Stamp};

const ME: MemberId = MemberId { nodeid: 3, pid: 1 };
const YOU: MemberId = MemberId { nodeid: 1, pid: 1 };

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes())
}

fn change(tree: &mut Tree, writer: u32, op: Op) {
    let mtime = 1000 + tree.root_row().version as u32;
    tree.apply(&op, Stamp { writer, mtime }, mtime).unwrap();
}

fn create(tree: &mut Tree, writer: u32, name: &str) {
    change(tree, writer, Op::Create { path: path(name) });
}

fn delete(tree: &mut Tree, writer: u32, name: &str) {
    change(tree, writer, Op::Delete { path: path(name) });
}

/// What all nodes had in common.
fn common() -> Tree {
    let mut tree = Tree::new();
    change(&mut tree, 1, Op::Mkdir { path: path("d") });
    for name in ["d/a", "d/b", "c"] {
        create(&mut tree, 1, name);
    }
    tree
}

/// This node in a synchronisation with one other, and whether it goes on with it.
struct Node {
    dcdb: Dcdb<Tree>,
    actions: Vec<Action>,
}

impl Node {
    fn new(tree: Tree, base: Option<RootRow>) -> Self {
        let mut dcdb = Dcdb::new(tree);
        if let Some(base) = base {
            dcdb.changed_since(base);
        }
        dcdb.event(Event::Quorate(true), &mut Ctx::new(0, ME, false));
        Node {
            dcdb,
            actions: Vec::new(),
        }
    }

    fn call<T>(&mut self, call: impl FnOnce(&mut Dcdb<Tree>, &mut Ctx<Action>) -> T) -> T {
        let mut ctx = Ctx::new(0, ME, false);
        let result = call(&mut self.dcdb, &mut ctx);
        self.actions.extend(ctx.take().1);
        result
    }

    /// A file is made by the other node.
    fn deliver(&mut self, name: &str) {
        let op = Op::Create { path: path(name) };
        let message = super::super::wire::Message::Op(op).encode();
        self.call(|dcdb, ctx| {
            let delivery = crate::dfsm::Delivery {
                from: YOU,
                subtype: message.subtype,
                time: 1,
                payload: &message.payload,
            };
            dcdb.deliver(delivery, ctx)
        });
    }

    /// With another node that has `other`. `None`: leaves.
    fn meets(&mut self, other: &Tree) -> Option<Plan> {
        let own = self.call(|dcdb, ctx| dcdb.state(ctx)).unwrap();
        let states = [
            (YOU, other.encode_index().into()),
            (ME, own.into_boxed_slice()),
        ];
        self.call(|dcdb, ctx| dcdb.process_states(&states, ctx))
    }

    /// Takes over what the other one has.
    fn follows(&mut self, other: &Tree) {
        let plan = self.meets(other).expect("goes on");
        assert_eq!(plan.leader, Some(YOU));
        assert_eq!(plan.synced, [true, false]);
        let own = self.call(|dcdb, ctx| dcdb.state(ctx)).unwrap();
        let states = [
            (YOU, other.encode_index().into()),
            (ME, own.into_boxed_slice()),
        ];
        let comparison = sync::compare(&states).unwrap();
        for inode in sync::wanted(&comparison) {
            let update = match inode {
                0 => super::super::wire::Update::root(other.root_row()),
                _ => super::super::wire::Update(other.row(inode).unwrap()),
            };
            assert!(self.call(|dcdb, ctx| dcdb.process_update(&update.encode(), ctx)));
        }
        assert!(self.call(|dcdb, ctx| dcdb.commit(ctx)));
        self.call(|dcdb, ctx| dcdb.all_synced(ctx));
        assert_eq!(self.dcdb.host().encode_index(), other.encode_index());
    }

    /// What was kept aside: how many are gone, how many changed.
    fn kept(&self) -> Vec<(usize, usize)> {
        let kept = self.actions.iter().filter_map(|action| match action {
            Action::KeepAside(aside) => Some((aside.gone, aside.changed)),
            _ => None,
        });
        kept.collect()
    }
}

/// Many changes: d is emptied, files are made.
fn edited(base: &Tree) -> Tree {
    let mut tree = base.clone();
    delete(&mut tree, 0, "d/a");
    delete(&mut tree, 0, "d/b");
    (0..10).for_each(|n| create(&mut tree, 0, &format!("local{n}")));
    tree
}

#[test]
fn an_older_database_is_not_kept() {
    let old = common();
    let mut new = old.clone();
    delete(&mut new, 1, "d/a");
    create(&mut new, 2, "e");
    let rename = Op::Rename {
        from: path("e"),
        to: path("c"),
    };
    change(&mut new, 2, rename);
    for start in [Tree::new(), old] {
        let mut node = Node::new(start, None);
        node.follows(&new);
        assert_eq!(node.kept(), []);
    }
}

#[test]
fn what_is_no_older_one_is_kept() {
    // Two histories since the same moment, the other one longer.
    let mut new = common();
    for name in ["x", "y", "z"] {
        create(&mut new, 1, name);
    }
    let mut old = common();
    create(&mut old, 3, "mine");
    let rows = old.iter().count();
    let mut node = Node::new(old, None);
    node.follows(&new);
    assert_eq!(node.kept(), [(1, 0)]);
    let Some(Action::KeepAside(aside)) = node.actions.first() else {
        panic!("not kept first: {:?}", node.actions);
    };
    assert_eq!(aside.rows.len(), rows);
    assert_eq!(aside.example, Some((5, path("mine"))));
    assert_eq!(aside.leader, "node 1");
}

/// A leader that comes from outside cannot have gone on from what was made here meanwhile, though its
/// database looks like that.
#[test]
fn changes_of_the_quorate_cluster_are_kept() {
    let mut node = Node::new(common(), None);
    node.deliver("told");
    let outside = edited(&common());
    assert!(continues(node.dcdb.host(), &outside));
    node.follows(&outside);
    assert_eq!(node.kept(), [(3, 0)]);
}

/// It was a member until then, and went on alone.
#[test]
fn what_the_leader_knew_is_not_kept() {
    let mut node = Node::new(common(), None);
    node.call(|dcdb, ctx| dcdb.confchg(&[YOU, ME], ctx));
    node.deliver("known");
    node.call(|dcdb, ctx| dcdb.confchg(&[ME], ctx));
    node.follows(&edited(&node.dcdb.host().clone()));
    assert_eq!(node.kept(), []);
}

#[test]
fn local_changes_win_if_nobody_moved() {
    let base = common();
    let mut node = Node::new(edited(&base), Some(base.root_row()));
    let plan = node.meets(&base).expect("goes on");
    assert_eq!(plan.leader, Some(ME));
    node.call(|dcdb, ctx| dcdb.all_synced(ctx));
    assert_eq!(node.actions, [Action::Shared]);
}

#[test]
fn local_changes_do_not_win_over_those_of_others() {
    let base = common();
    let mut others = base.clone();
    create(&mut others, 1, "told");
    let mine = edited(&base);
    let mut node = Node::new(mine.clone(), Some(base.root_row()));
    assert_eq!(node.meets(&others), None, "leaves");
    // What it shows now ranks behind everything, and nobody else shows the same.
    let shown = node.call(|dcdb, ctx| dcdb.state(ctx)).unwrap();
    assert_eq!(Index::decode(&shown).unwrap().root.version, 0);
    assert_ne!(shown, nothing(4));
    assert_eq!(node.dcdb.host().encode_index(), mine.encode_index());
    node.follows(&others);
    // All ten files, and nothing else was made here.
    assert_eq!(node.kept(), [(10, 0)]);
    assert_eq!(node.actions.last(), Some(&Action::Shared));
    let shown = node.call(|dcdb, ctx| dcdb.state(ctx)).unwrap();
    assert_eq!(shown, others.encode_index());
}

#[test]
fn whoever_has_more_leads_a_node_with_local_changes_too() {
    let base = common();
    let mut others = base.clone();
    (0..50).for_each(|n| create(&mut others, 1, &format!("f{n}")));
    let mut node = Node::new(edited(&base), Some(base.root_row()));
    node.follows(&others);
    assert_eq!(node.kept(), [(10, 0)]);
}

#[test]
fn without_anybody_who_has_a_database_it_comes_back_with_its_own() {
    let base = common();
    let mut others = base.clone();
    create(&mut others, 1, "told");
    let mine = edited(&base);
    let mut node = Node::new(mine.clone(), Some(base.root_row()));
    assert_eq!(node.meets(&others), None);
    // Another one in the same position, which comes first.
    let other = Index::decode(&nothing(YOU.nodeid)).unwrap();
    let comparison = Comparison {
        leader: 0,
        synced: vec![true, false],
        indexes: vec![other, Index::decode(&nothing(ME.nodeid)).unwrap()],
    };
    assert_eq!(node.dcdb.lineage.lead(&comparison, 1), Lead::Fine);
    assert!(!node.dcdb.lineage.yields);
    let shown = node.call(|dcdb, ctx| dcdb.state(ctx)).unwrap();
    assert_eq!(shown, mine.encode_index());
}

#[test]
fn only_local_changes_are_local() {
    let base = common();
    let root = base.root_row();
    assert!(!is_local_since(&base, root), "nothing was changed");
    let mut tree = edited(&base);
    assert!(is_local_since(&tree, root));
    create(&mut tree, 2, "of the cluster");
    assert!(!is_local_since(&tree, root));
    delete(&mut tree, 0, "local1");
    assert!(!is_local_since(&tree, root));
}

#[test]
fn changes_of_local_mode_join_only_the_majority() {
    let base = common().root_row();
    let mut tree = common();
    create(&mut tree, 0, "mine");
    let mut node = Node::new(tree, Some(base));
    assert!(node.dcdb.may_join());
    let lost = node.call(|dcdb, ctx| dcdb.event(Event::Quorate(false), ctx));
    assert_eq!(lost, Consequence::Leave);
    assert!(!node.dcdb.may_join());
    let back = node.call(|dcdb, ctx| dcdb.event(Event::Quorate(true), ctx));
    assert_eq!(back, Consequence::None);
    assert!(node.dcdb.may_join());
    // Without such changes a node without quorum stays, to be found.
    let mut other = Node::new(common(), None);
    let lost = other.call(|dcdb, ctx| dcdb.event(Event::Quorate(false), ctx));
    assert_eq!((lost, other.dcdb.may_join()), (Consequence::None, true));
}

#[test]
fn what_is_gone_of_a_deep_tree_is_counted_in_time() {
    let mut old = Tree::new();
    let mut name = String::new();
    for depth in 0..8_000 {
        name += if depth == 0 { "d" } else { "/d" };
        change(&mut old, 1, Op::Mkdir { path: path(&name) });
    }
    let (new, started) = (Tree::new(), std::time::Instant::now());
    let aside = Aside::new(&old, &new, 0, "node1".into()).unwrap();
    assert_eq!((aside.gone, aside.changed), (8_000, 0));
    // Milliseconds; the square of the depth would take minutes.
    assert!(started.elapsed() < std::time::Duration::from_secs(10));
}
