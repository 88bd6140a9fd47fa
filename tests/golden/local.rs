//! `golden/status/local`: one node, step by step.

use pmxcfs::memdb::{Error, Op, TreePath};

use crate::harness::{Node, blank, by_key, by_vmid, field, golden_text, python_literal, text};

fn path(path: &str) -> TreePath {
    TreePath::new(path.as_bytes())
}

/// Compares every file that was recorded for a step.
fn check(node: &Node, step: &str, removed_with_555: bool) {
    let dir = format!(
        "{}/compat-tests/golden/status/local/{step}",
        env!("CARGO_MANIFEST_DIR")
    );
    for entry in std::fs::read_dir(dir).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let recorded = golden_text(&format!("status/local/{step}/{file}"));
        let (ours, recorded) = match file.as_str() {
            "version" => {
                let mut recorded = by_key(&blank(&recorded, "\"starttime\": "));
                // Keys are escaped.
                recorded = recorded.replace(r#""kv/a"b\c""#, r#""kv/a\"b\\c""#);
                if removed_with_555 {
                    // A directory takes no guest off the list.
                    recorded = recorded.replace("\"vmlist\": 14", "\"vmlist\": 13");
                }
                let ours = text(&node.status.version_text());
                serde_json::from_str::<serde_json::Value>(&ours).unwrap();
                (by_key(&blank(&ours, "\"starttime\": ")), by_key(&recorded))
            }
            "vmlist" => {
                let mut recorded = by_vmid(&recorded);
                if removed_with_555 {
                    recorded = recorded.replace("\"version\": 14,", "\"version\": 13,");
                }
                (text(&node.status.vmlist_text()), recorded)
            }
            "members" => (text(&node.status.members_text()), recorded),
            "rrd" => (text(&node.status.rrd_text(node.now())), recorded),
            "clusterlog" => {
                let varying = |text: &str| blank(&blank(text, "\"time\": "), "\"pid\": ");
                (
                    varying(&text(&node.status.clusterlog_text(b"", 50))),
                    varying(&recorded),
                )
            }
            other => panic!("unknown file {other}"),
        };
        assert_eq!(ours, recorded, "{step}/{file}");
    }
}

#[test]
fn files_and_guests() {
    let node = Node::new("node1");
    let vm100 = "nodes/node1/qemu-server/100.conf";
    check(&node, "01-fresh", false);
    node.mkdirs("nodes/node1/qemu-server");
    node.mkdirs("nodes/node1/lxc");
    node.mkdirs("priv");
    check(&node, "02-after-mkdirs", false);
    node.create("storage.cfg", b"dir: local\n");
    check(&node, "03-after-write-storage.cfg", false);
    node.create(vm100, b"name: a\n");
    check(&node, "04-after-create-vm100", false);
    node.apply(Op::Write {
        path: path(vm100),
        offset: 0,
        data: Vec::new(),
        truncate: true,
    })
    .unwrap();
    node.write(vm100, b"name: b\n");
    check(&node, "05-after-rewrite-vm100", false);
    node.create("nodes/node1/lxc/101.conf", b"hostname: c\n");
    check(&node, "06-after-create-ct101", false);
    let duplicate = node.apply(Op::Create {
        path: path("nodes/node1/lxc/100.conf"),
    });
    assert_eq!(duplicate, Err(Error::Exists));
    check(&node, "07-after-duplicate-100-attempt", false);
    node.mkdirs("nodes/node2/qemu-server");
    let to = path("nodes/node2/qemu-server/100.conf");
    node.apply(Op::Rename {
        from: path(vm100),
        to,
    })
    .unwrap();
    check(&node, "08-after-move-vm100-to-node2", false);
    node.apply(Op::Delete {
        path: path("nodes/node1/lxc/101.conf"),
    })
    .unwrap();
    check(&node, "09-after-delete-ct101", false);
    node.apply(Op::SetMtime {
        path: path("storage.cfg"),
        mtime: 5,
    })
    .unwrap();
    check(&node, "10-after-utime-storage.cfg", false);
    node.apply(Op::Rename {
        from: path("storage.cfg"),
        to: path("user.cfg"),
    })
    .unwrap();
    check(&node, "11-after-rename-storage-to-user", false);
    node.apply(Op::Delete {
        path: path("user.cfg"),
    })
    .unwrap();
    check(&node, "12-after-unlink-user.cfg", false);
    node.create("nodes/bad_name/qemu-server/300.conf", b"name: z\n");
    for file in ["0300", "99", "4294967296", "4294967295"] {
        node.create(
            &format!("nodes/node1/qemu-server/{file}.conf"),
            b"name: z\n",
        );
    }
    check(&node, "13-odd-names", false);
    let dir = path("nodes/node1/qemu-server/555.conf");
    node.apply(Op::Mkdir { path: dir.clone() }).unwrap();
    check(&node, "14-dir-named-555.conf", false);
    node.apply(Op::Delete { path: dir }).unwrap();
    check(&node, "15-rmdir-555.conf", true);
    values(node);
}

/// What `ipc.txt` has for each request: code and data.
fn recorded() -> Vec<(String, i32, Vec<u8>)> {
    let golden = golden_text("status/local/ipc.txt");
    let mut lines = golden.lines();
    let mut out = Vec::new();
    while let Some(title) = lines.next() {
        let title = title.strip_prefix("## ").unwrap().to_owned();
        let code = lines
            .next()
            .unwrap()
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let data = lines.next().unwrap().strip_prefix("data: ").unwrap();
        out.push((title, code, python_literal(data).0));
    }
    out
}

fn values(mut node: Node) {
    let set = |key: &str, value: &[u8]| (4, [&field(key)[..], value].concat());
    let get = |key: &str, node: &str| (5, [field(key), field(node)].concat());
    let config = |path: &[u8]| (6, path.to_vec());
    let (k255, quoted) = ("k".repeat(255), r#"kv/a"b\c"#);
    let ip255 = [&[b'1'; 254][..], b"\0"].concat();
    let requests = [
        set("kv/foo", b"bar\0"),
        get("kv/foo", ""),
        get("kv/foo", "node1"),
        get("kv/foo", "other"),
        set("kv/foo", b"again\0"),
        set("kv/bin", b"\0\xff\x01"),
        get("kv/bin", ""),
        set("kv/foo", b""),
        get("kv/foo", ""),
        set("kv/nonexist", b""),
        set("kv/big", &[b'x'; 32768]),
        set("kv/big", &[b'x'; 32769]),
        set(quoted, b"1\0"),
        set("", b"1\0"),
        get("", ""),
        set(&k255, b"1\0"),
        get(&k255, ""),
        set(quoted, b""),
        set("", b""),
        set(&k255, b""),
        set("kv/big", b""),
        (4, vec![0; 100]),
        set("nodeip", b"10.0.0.1\0"),
        set("nodeip", b"10.0.0.1\0"),
        set("nodeip", b"10.0.0.2"),
        set("nodeip", b""),
        get("nodeip", ""),
        set("nodeip", &[&[b'1'; 255][..], b"\0"].concat()),
        set("nodeip", &ip255),
        (9, Vec::new()),
        (99, Vec::new()),
        (1, vec![0]),
        (0, Vec::new()),
        config(b"missing\0"),
        config(b"nodes\0"),
        config(b"/nodes/node1/qemu-server/99.conf\0"),
        config(b"empty.cfg\0"),
        config(b""),
        config(b".version\0"),
    ];
    let recorded = recorded();
    assert_eq!(recorded.len(), requests.len());
    node.create("empty.cfg", b"");
    for ((title, code, data), (id, payload)) in recorded.iter().zip(&requests) {
        assert_eq!(node.ask(*id, payload), (*code, data.clone()), "{title}");
        let snapshot = match title.as_str() {
            "set kv/foo 'bar\\0'" => "16-kv-1",
            "set kv/foo again" => "17-kv-2",
            "remove nonexist" => "18-kv-3",
            "get k*255" => "19-kv-4",
            "nodeip set" => "20-nodeip",
            "nodeip same" => "21-nodeip-same",
            "nodeip 255 bytes" => "22-nodeip-bad",
            _ => continue,
        };
        check(&node, snapshot, true);
    }
}

#[test]
fn round_robin_dump() {
    let mut node = Node::new("node1");
    // Key and value are told apart again by the requests that were recorded.
    let dump = golden_text("status/rrd/dump-fuse.bin");
    let requests = golden_text("status/rrd/requests-all-cases.txt");
    let sent = requests.lines().filter_map(|line| {
        let (key, value) = line
            .strip_suffix("\t-> error 0")
            .unwrap_or(line.strip_suffix("-> error 0")?)
            .split_once('\t')?;
        Some((
            key.to_owned(),
            value.trim_end_matches('\t').as_bytes().to_vec(),
        ))
    });
    let long = vec![b'x'; 4094];
    let more = [
        ("rrd/zz/2".to_owned(), long),
        ("rrd/zz/3".to_owned(), b"a\nb\0c".to_vec()),
    ];
    let mut count = 0;
    for (key, value) in sent.chain(more) {
        let payload = [field(&key), value, vec![0]].concat();
        assert_eq!(node.ask(4, &payload).0, 0, "{key}");
        count += 1;
    }
    assert_eq!(count, 21);
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let file = text(&node.status.rrd_text(node.now()));
    assert_eq!(sorted(&file), sorted(&dump));
    assert_eq!(file.len(), dump.len());
    let fresh = node.ask(10, b"").1;
    assert_eq!(fresh.len(), golden_text("status/rrd/dump-ipc.bin").len());
    assert_eq!(node.ask(10, b"").1, fresh);
}
