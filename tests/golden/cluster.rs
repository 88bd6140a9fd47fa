//! `golden/status/cluster`: three nodes, step by step. The group communication is a function call;
//! everything else is what the nodes do.

use pmxcfs::memdb::{Effects, Op, Stamp, Tree, TreePath};
use pmxcfs::status::Status;
use pmxcfs::status::members::{ClusterInfo, Node};

use crate::harness::{blank, by_key, by_vmid, golden_text, text};

struct Lab {
    tree: Tree,
    /// By node id - 1.
    nodes: [Option<Status>; 3],
    now: u32,
}

fn name(id: u32) -> String {
    format!("node{id}")
}

fn ip(id: u32) -> Vec<u8> {
    format!("10.99.14.{id}\0").into_bytes()
}

impl Lab {
    fn node(&self, id: u32) -> &Status {
        self.nodes[id as usize - 1].as_ref().unwrap()
    }

    fn up(&self) -> Vec<u32> {
        (1..=3)
            .filter(|id| self.nodes[*id as usize - 1].is_some())
            .collect()
    }

    fn set_cluster_info(&self, id: u32, config_version: u32) {
        let nodes = (1..=3).map(|id| Node { id, name: name(id) }).collect();
        let info = ClusterInfo {
            name: "lab".into(),
            config_version,
            nodes,
        };
        self.node(id).set_cluster_info(info);
    }

    /// A node starts and joins the group.
    fn start(&mut self, id: u32) {
        let status = Status::new(&name(id), self.now.into(), 100 + id);
        status.reloaded(&self.tree);
        status.set_quorate(true);
        self.nodes[id as usize - 1] = Some(status);
        self.set_cluster_info(id, 1);
        self.synchronise();
    }

    /// A membership change (status.md 6.4, cluster-sync.md 3.3).
    fn synchronise(&self) {
        let members = self.up();
        for id in &members {
            self.node(*id).set_online(&members);
        }
        if members.len() > 1 {
            let states: Vec<Vec<u8>> = members
                .iter()
                .map(|id| self.node(*id).log_state())
                .collect();
            let states: Vec<&[u8]> = states.iter().map(|state| &state[..]).collect();
            for id in &members {
                assert!(self.node(*id).log_merge(&states).is_empty());
            }
            for id in &members {
                for (key, value) in self.node(*id).own_kv() {
                    self.broadcast(*id, &key, &value);
                }
            }
        }
        for id in &members {
            self.set(*id, "nodeip", &ip(*id));
        }
    }

    fn broadcast(&self, from: u32, key: &[u8], value: &[u8]) {
        for id in self.up().into_iter().filter(|id| *id != from) {
            self.node(id)
                .remote_update(from, key, value, self.now)
                .unwrap();
        }
    }

    /// What IPC 4 does.
    fn set(&self, id: u32, key: &str, value: &[u8]) {
        self.node(id)
            .set_kv(key.as_bytes(), value, self.now)
            .unwrap();
        self.broadcast(id, key.as_bytes(), value);
    }

    /// What IPC 7 does.
    fn log(&mut self, from: u32, message: &str) {
        self.now += 1;
        let node = self.node(from);
        let (ident, tag) = (b"root@pam", b"pvedaemon");
        let entry = node
            .log(ident, tag, 9, 6, message.as_bytes(), self.now)
            .unwrap();
        for id in self.up().into_iter().filter(|id| *id != from) {
            self.node(id).log_receive(&entry).unwrap();
        }
    }

    fn apply(&mut self, op: Op) {
        let stamp = Stamp {
            writer: 1,
            mtime: self.now,
        };
        let Effects { touched, guests } = self.tree.apply(&op, stamp, self.now).unwrap().effects;
        for id in self.up() {
            let effects = Effects {
                touched: touched.clone(),
                guests: guests.clone(),
            };
            self.node(id).announce(&effects);
        }
    }

    fn file(&mut self, path: &str) {
        let path = TreePath::new(path.as_bytes());
        self.apply(Op::Create { path: path.clone() });
        self.apply(Op::Write {
            path,
            offset: 0,
            data: b"x".to_vec(),
            truncate: false,
        });
    }

    /// Compares all files of all running nodes.
    fn check(&self, step: &str) {
        for id in self.up() {
            let node = self.node(id);
            let recorded =
                |file: &str| golden_text(&format!("status/cluster/{step}/node{id}.{file}"));
            let version = |text: &str| by_key(&blank(text, "\"starttime\": "));
            assert_eq!(
                kv_blocks_sorted(&version(&text(&node.version_text()))),
                kv_blocks_sorted(&version(&recorded("version"))),
                "{step} node{id}"
            );
            assert_eq!(
                text(&node.members_text()),
                recorded("members"),
                "{step} node{id}"
            );
            assert_eq!(
                text(&node.vmlist_text()),
                by_vmid(&recorded("vmlist")),
                "{step} node{id}"
            );
            let log = |text: &str| blank(&blank(text, "\"time\": "), "\"pid\": ");
            let ours = text(&node.clusterlog_text(b"", 0));
            assert_eq!(log(&ours), log(&recorded("clusterlog")), "{step} node{id}");
        }
    }
}

/// The own node comes first in `kvstore`, the others in no particular order.
fn kv_blocks_sorted(text: &str) -> String {
    let (head, kvstore) = text.split_once("\"kvstore\": {\n").unwrap();
    let blocks = kvstore.strip_suffix("}\n}\n").unwrap();
    let mut blocks: Vec<&str> = blocks
        .split("}\n,\n")
        .map(|b| b.trim_end_matches("}\n"))
        .collect();
    blocks[1..].sort_unstable();
    format!("{head}{}", blocks.join("\n--\n"))
}

#[test]
fn three_nodes() {
    let mut lab = Lab {
        tree: Tree::new(),
        nodes: [None, None, None],
        now: 1_795_333_192,
    };
    lab.start(1);
    lab.check("01-node1-alone");
    // Each has a database of its own: those that are not the leader load the leader's.
    lab.now += 5;
    lab.start(2);
    lab.node(1).reloaded(&lab.tree);
    lab.check("02-node1-node2");
    lab.now += 5;
    lab.start(3);
    lab.node(1).reloaded(&lab.tree);
    lab.node(2).reloaded(&lab.tree);
    lab.check("03-all");

    for dir in [
        "nodes",
        "nodes/node1",
        "nodes/node1/qemu-server",
        "nodes/node2",
        "nodes/node2/lxc",
    ] {
        lab.apply(Op::Mkdir {
            path: TreePath::new(dir.as_bytes()),
        });
    }
    lab.file("nodes/node1/qemu-server/100.conf");
    lab.file("nodes/node2/lxc/101.conf");
    lab.file("storage.cfg");
    lab.check("04-files");

    lab.now = 1_795_333_241;
    lab.set(1, "kv/svc", b"a\0");
    lab.set(1, "kv/svc", b"b\0");
    lab.set(1, "tasklist", b"[]\0");
    lab.set(2, "kv/svc", b"c\0");
    for line in golden_text("status/cluster/05-kv-log/node1.rrd").lines() {
        let (key, value) = line.split_once(':').unwrap();
        lab.set(1, &format!("rrd/{key}"), format!("{value}\0").as_bytes());
    }
    lab.log(1, "hello from node1 \u{e4}");
    lab.log(2, "hello from node2");
    lab.check("05-kv-log");
    // The C daemon cuts the line before it sends it; here every node has the same.
    for id in 1..=3 {
        let mut recorded: Vec<String> = golden_text("status/cluster/05-kv-log/node1.rrd")
            .lines()
            .map(str::to_owned)
            .collect();
        recorded.sort_unstable();
        assert_eq!(
            text(&lab.node(id).rrd_text(lab.now)),
            recorded.join("\n") + "\n"
        );
    }

    lab.nodes[0] = None;
    lab.synchronise();
    lab.check("06-node1-stopped");
    lab.now = 1_795_333_249;
    lab.start(1);
    lab.check("07-node1-restarted");

    let new = TreePath::new(b"corosync.conf.new");
    lab.file("corosync.conf.new");
    lab.apply(Op::Rename {
        from: new,
        to: TreePath::new(b"corosync.conf"),
    });
    for id in 1..=3 {
        lab.set_cluster_info(id, 2);
    }
    lab.check("08-corosync-conf-v2");

    // Node 1 alone sees that the others are gone.
    lab.node(1).set_online(&[1]);
    for id in 1..=3 {
        assert!(lab.node(id).set_quorate(false));
    }
    lab.check("09-quorum-lost");
}

#[test]
fn strangers_are_ignored() {
    let mut lab = Lab {
        tree: Tree::new(),
        nodes: [None, None, None],
        now: 1000,
    };
    lab.start(1);
    let before = lab.node(1).version_text();
    for key in ["k", "nodeip", "rrd/x"] {
        assert!(
            lab.node(1)
                .remote_update(7, key.as_bytes(), b"v\0", 1)
                .is_err()
        );
    }
    assert!(
        lab.node(1)
            .remote_update(2, b"nodeip", b"10.0.0.1", 1)
            .is_err()
    );
    assert!(lab.node(1).log_receive(b"no entry").is_err());
    assert_eq!(lab.node(1).log_merge(&[b"", &[1; 300]]).len(), 2);
    assert_eq!(lab.node(1).version_text(), before);
}
