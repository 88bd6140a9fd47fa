//! `golden/ipc/{local-*,misc}.json`: the recordings of one life of the C daemon, in their order.

use std::sync::Arc;

use compat_tests::client::unhex;
use compat_tests::vectors::{request_bytes, vectors};
use parking_lot::Mutex;
use pmxcfs::ipc::Client;
use pmxcfs::ipc::service::StatusReplica;
use pmxcfs::status::Status;
use pmxcfs::status::members::{self, ClusterInfo};
use serde_json::Value;

use crate::harness::{
    Node, ROOT, START, WWW_DATA, blank, by_key, by_vmid, field, golden_text, text,
};

/// The files of the recording, in the order in which they were made. `102.conf` is empty and was
/// made last.
const FILES: [&str; 13] = [
    "nodes/node1/qemu-server/100.conf",
    "nodes/node1/qemu-server/101.conf",
    "nodes/node1/lxc/200.conf",
    "nodes/node1/lxc/201.conf",
    "nodes/node2/qemu-server/300.conf",
    "storage.cfg",
    "user.cfg",
    "empty.cfg",
    "priv/token.cfg",
    "priv/secret.txt",
    "nodes/node1/priv/secret.txt",
    "k1",
    "nodes/node1/qemu-server/102.conf",
];

/// Vectors about the transport.
const TRANSPORT: [&str; 2] = ["disconnect_id", "reject_nobody"];

/// Where we differ from the recording: name, and what the answer is instead.
fn expected(name: &str, error: i32, answer: Vec<u8>) -> (i32, Vec<u8>) {
    match name {
        // A private file behind a double slash; a request that claims to be larger than it is.
        "DEFECT_config_nodepriv_bypass1_www" | "DEFECT_config_nodepriv_bypass2_www" => {
            (-libc::EPERM, Vec::new())
        }
        "size_lie_big_status" => (-libc::EINVAL, Vec::new()),
        // A dump always ends with a NUL.
        "rrd_empty_cached" | "rrd_cached" | "rrd_www" => (error, [&answer[..], b"\0"].concat()),
        // The log is valid JSON.
        "log_get_all" | "log_get_after" => (
            error,
            text(&answer)
                .replace(r"back\ tab", r"back\\ tab")
                .into_bytes(),
        ),
        _ => (error, answer),
    }
}

fn str_of<'a>(vector: &'a Value, name: &str) -> &'a str {
    vector[name].as_str().unwrap()
}

fn answer(vector: &Value) -> Vec<u8> {
    let mut answer = unhex(str_of(vector, "response_hex"))[24..].to_vec();
    if let Some(len) = vector["response_len"].as_u64() {
        answer.resize(len as usize - 24, b'm');
    }
    answer
}

fn client(vector: &Value) -> Client {
    match str_of(vector, "client") {
        "root" => ROOT,
        "www-data" => WWW_DATA,
        "root:www-data" => Client {
            gid: 33,
            read_only: true,
            ..ROOT
        },
        other => panic!("unknown client {other}"),
    }
}

/// Brings an answer into the one form that two equivalent answers have in common.
fn normal(op: i64, answer: &[u8]) -> String {
    let answer = String::from_utf8_lossy(answer).into_owned();
    match op {
        1 => by_key(&answer),
        3 | 11 | 13 => by_vmid(&answer),
        8 => blank(&blank(&answer, "\"time\": "), "\"pid\": "),
        10 => {
            let mut lines: Vec<&str> = answer.split_inclusive('\n').collect();
            lines.sort_by_key(|line| (*line == "\0", *line));
            lines.concat()
        }
        _ => answer,
    }
}

fn run(node: &mut Node, file: &str) {
    node.wait(10);
    let vectors = vectors(file).1;
    assert!(!vectors.is_empty());
    for vector in &vectors {
        let name = str_of(vector, "name");
        if TRANSPORT.contains(&name) {
            continue;
        }
        let recorded = vector["response_error"].as_i64().unwrap() as i32;
        let (error, payload) = expected(name, recorded, answer(vector));
        let (our_error, ours) = node.send(&client(vector), &request_bytes(vector));
        assert_eq!(our_error, error, "{file} {name}");
        let op = vector["op"].as_i64().unwrap();
        assert_eq!(normal(op, &ours), normal(op, &payload), "{file} {name}");
        if op == 8 && our_error == 0 {
            serde_json::from_slice::<Value>(&ours).unwrap();
        }
    }
}

#[test]
fn local_mode() {
    let mut node = Node::new("node1");
    run(&mut node, "local-empty");
    let golden: Value = serde_json::from_str(&golden_text("ipc/local-config.json")).unwrap();
    let files = golden["notes"]["setup_files"].as_object().unwrap();
    assert_eq!(files.len(), FILES.len());
    for path in FILES {
        match (path, files[path].as_str().unwrap()) {
            ("k1", _) => node.create(path, &[b'x'; 1024]),
            (_, "(0 bytes)") => node.create(path, b""),
            (_, content) => node.create(path, content.as_bytes()),
        }
    }
    run(&mut node, "local-config");
    run(&mut node, "local-status");
    run(&mut node, "local-log");
}

#[test]
fn odd_requests() {
    run(&mut Node::new("node1"), "misc");
}

/// Tells the other nodes, as the kvstore group does.
struct Group {
    from: u32,
    peers: Arc<Mutex<Vec<Arc<Status>>>>,
}

impl Group {
    fn others(&self) -> Vec<Arc<Status>> {
        let own = format!("node{}", self.from);
        self.peers
            .lock()
            .iter()
            .filter(|peer| peer.node() != own)
            .cloned()
            .collect()
    }
}

impl StatusReplica for Group {
    fn kv_update(&self, key: &[u8], value: &[u8]) {
        for peer in self.others() {
            peer.remote_update(self.from, key, value, START).unwrap();
        }
    }

    fn log_entry(&self, entry: &[u8]) {
        for peer in self.others() {
            peer.log_receive(entry).unwrap();
        }
    }
}

/// Three nodes that know each other, with their start entries and addresses.
fn three_nodes() -> Vec<Node> {
    let peers = Arc::new(Mutex::new(Vec::new()));
    let node = |from| {
        let group = Group {
            from,
            peers: Arc::clone(&peers),
        };
        Node::with_replica(&format!("node{from}"), Arc::new(group))
    };
    let mut nodes: Vec<Node> = (1..=3).map(node).collect();
    peers
        .lock()
        .extend(nodes.iter().map(|node| Arc::clone(&node.status)));
    let states: Vec<Vec<u8>> = nodes.iter().map(|node| node.status.log_state()).collect();
    let states: Vec<&[u8]> = states.iter().map(|state| &state[..]).collect();
    for node in &nodes {
        let all = (1..=3)
            .map(|id| members::Node {
                id,
                name: format!("node{id}"),
            })
            .collect();
        let info = ClusterInfo {
            name: "lab".into(),
            config_version: 1,
            nodes: all,
        };
        node.status.set_cluster_info(info);
        node.status.set_online(&[1, 2, 3]);
        assert!(node.status.log_merge(&states).is_empty());
    }
    for (id, node) in (1..).zip(&mut nodes) {
        let ip = format!("10.99.11.{id}\0");
        let payload = [field("nodeip"), ip.into_bytes()].concat();
        assert_eq!(node.ask(4, &payload).0, 0);
    }
    nodes
}

/// Blanks what depends on how often the group changed while the recording was made.
fn without_history(op: i64, answer: &[u8]) -> String {
    let text = normal(op, answer);
    match op {
        1 => blank(&blank(&text, "\"starttime\": "), "\"clinfo\": "),
        2 => blank(&text, "\"version\": "),
        8 => {
            // The three start entries have one time.
            let mut lines: Vec<&str> = text.lines().map(|l| l.trim_end_matches(',')).collect();
            lines.sort_unstable();
            lines.join("\n")
        }
        _ => text,
    }
}

#[test]
fn cluster() {
    let mut nodes = three_nodes();
    let mut compared = 0;
    for file in ["cluster", "cluster-noquorum"] {
        for vector in &vectors(file).1 {
            let name = str_of(vector, "name");
            match name {
                "cl_vmlist" => {
                    for node in &nodes {
                        node.create("nodes/node3/qemu-server/103.conf", b"name: vm3\n");
                    }
                }
                "noq_clusterinfo" => {
                    nodes[0].status.set_online(&[1]);
                    nodes[0].status.set_quorate(false);
                }
                "noq_config" => nodes[0].create("corosync.conf", &answer(vector)),
                _ => {}
            }
            let on = usize::from(str_of(vector, "description") == "on node2");
            let (error, ours) = nodes[on].send(&client(vector), &request_bytes(vector));
            let op = vector["op"].as_i64().unwrap();
            assert_eq!(i64::from(error), vector["response_error"], "{name}");
            let recorded = without_history(op, &answer(vector));
            assert_eq!(without_history(op, &ours), recorded, "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 22);
}
