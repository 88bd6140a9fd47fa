//! The status services of three nodes: what one knows, all know: values, addresses, guests, the
//! cluster log.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;
#[path = "common/status.rs"]
mod status;

use cluster::{Assignment, Cluster, SOON, VISIBLE};
use compat_tests::daemon::wait_for;
use serde_json::{Value, json};
use status::{NEXT_SECOND, client, dot_file, dot_json, log, set, until};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

on_assignments!(values_of_all_nodes, guests_of_all_nodes, log_of_all_nodes);

/// Version of a key of `of` as node `on` has it.
fn key_version(cluster: &Cluster, on: usize, of: usize, key: &str) -> Option<u64> {
    dot_json(cluster, on, "version")["kvstore"][format!("node{of}")][key].as_u64()
}

fn counter(cluster: &Cluster, on: usize, name: &str) -> u64 {
    dot_json(cluster, on, "version")[name].as_u64().unwrap()
}

/// Waits until every running node has this value (`None`: no value) and version of a key of `of`.
fn all_have(cluster: &Cluster, on: &[usize], of: usize, key: &str, want: Option<(&[u8], u64)>) {
    until(
        &cluster.who,
        &format!("{key} of node {of}"),
        VISIBLE,
        || {
            let mut wrong = Vec::new();
            for i in on {
                let reply = client(cluster, *i).get_status(key, &format!("node{of}"));
                let got = (reply.error() == Some(0)).then(|| reply.payload().to_vec());
                let version = key_version(cluster, *i, of, key);
                if got.as_deref() != want.map(|w| w.0) || version != want.map(|w| w.1) {
                    let size = got.map(|g| g.len());
                    wrong.push(format!("node {i}: {size:?} bytes, version {version:?}"));
                }
            }
            wrong
        },
    );
}

fn values_of_all_nodes(who: &Assignment) {
    const LARGEST: usize = 32_768;
    const EFBIG: i32 = -27;
    const ENOENT: i32 = -2;
    let mut cluster = Cluster::new(who);
    let all = [1, 2, 3];
    let large = |i: usize| -> Vec<u8> { (0..LARGEST).map(|n| (n * i % 251) as u8).collect() };
    for i in all {
        set(&cluster, i, "kv/large", &large(i));
        assert_eq!(
            client(&cluster, i).set_status("kv/large", &[1; LARGEST + 1]),
            EFBIG
        );
        set(&cluster, i, "kv/bytes", b"\0\xff\"\\\n\0");
        set(&cluster, i, "kv/none", b"");
    }
    for i in all {
        all_have(&cluster, &all, i, "kv/large", Some((&large(i), 0)));
        all_have(&cluster, &all, i, "kv/bytes", Some((b"\0\xff\"\\\n\0", 0)));
        all_have(&cluster, &all, i, "kv/none", None);
        // Changed, removed, made again: the version begins anew.
        set(&cluster, i, "kv/bytes", b"two");
        all_have(&cluster, &all, i, "kv/bytes", Some((b"two", 1)));
        set(&cluster, i, "kv/bytes", b"");
        all_have(&cluster, &all, i, "kv/bytes", None);
        set(&cluster, i, "kv/bytes", b"three");
        all_have(&cluster, &all, i, "kv/bytes", Some((b"three", 0)));
        let own = client(&cluster, i);
        assert_eq!(own.get_status("kv/large", "").payload(), large(i));
        assert_eq!(own.get_status("kv/large", "node9").error(), Some(ENOENT));
    }
    addresses(&cluster);
    membership(&mut cluster);
    cluster.finish();
}

/// Every new address counts once on every node, the same one again not at all.
fn addresses(cluster: &Cluster) {
    let before: Vec<u64> = (1..=3).map(|i| counter(cluster, i, "clinfo")).collect();
    for i in 1..=3 {
        for _ in 0..2 {
            set(cluster, i, "nodeip", format!("192.0.2.{i}\0").as_bytes());
        }
    }
    // What was sent later has come, so the addresses have, too.
    for i in 1..=3 {
        set(cluster, i, "kv/after", b"x");
    }
    for i in 1..=3 {
        all_have(cluster, &[1, 2, 3], i, "kv/after", Some((b"x", 0)));
    }
    for i in 1..=3 {
        let members = dot_json(cluster, i, "members");
        for j in 1..=3 {
            let ip = &members["nodelist"][format!("node{j}")]["ip"];
            assert_eq!(*ip, json!(format!("192.0.2.{j}")), "{}", cluster.who.name);
        }
        let clinfo = counter(cluster, i, "clinfo");
        assert_eq!(clinfo, before[i - 1] + 3, "{} node {i}", cluster.who.name);
        assert_eq!(members["version"], json!(clinfo));
    }
}

/// Who stays sends everything again; who went is known as before, but offline; who comes back has
/// nothing of his own and gets everything of the others.
fn membership(cluster: &mut Cluster) {
    let large = client(cluster, 1)
        .get_status("kv/large", "")
        .payload()
        .to_vec();
    let clinfo = counter(cluster, 1, "clinfo");
    cluster.kill9(3);
    for (on, of) in [(1, 2), (2, 1)] {
        all_have(cluster, &[on], of, "kv/after", Some((b"x", 1)));
        all_have(cluster, &[on], 3, "kv/after", Some((b"x", 0)));
        assert_eq!(key_version(cluster, on, on, "kv/after"), Some(0));
        let node3 = &dot_json(cluster, on, "members")["nodelist"]["node3"];
        assert_eq!(*node3, json!({"id": 3, "online": 0, "ip": "192.0.2.3"}));
    }
    // One more for the change of membership, nothing for addresses that are the same.
    assert_eq!(counter(cluster, 1, "clinfo"), clinfo + 1);
    cluster.start(3);
    cluster.wait_online();
    all_have(cluster, &[3], 1, "kv/large", Some((&large, 0)));
    all_have(cluster, &[3], 2, "kv/after", Some((b"x", 0)));
    all_have(cluster, &[3], 3, "kv/after", None);
    // The values it had before are known to the others until it sets them again.
    all_have(cluster, &[1, 2], 3, "kv/after", Some((b"x", 0)));
    set(cluster, 3, "kv/after", b"y");
    all_have(cluster, &[1, 2], 3, "kv/after", Some((b"y", 1)));
    all_have(cluster, &[3], 3, "kv/after", Some((b"y", 0)));
    // Addresses that a client has set are forgotten with the process.
    let own = cluster.lab.address(3);
    until(&cluster.who, "address of node 3", VISIBLE, || {
        let shown = |i: &usize| dot_json(cluster, *i, "members")["nodelist"]["node3"]["ip"].clone();
        let wrong = |i: &usize| shown(i) != json!(own);
        (1..=3)
            .filter(wrong)
            .map(|i| format!("node {i}: {}", shown(&i)))
            .collect()
    });
}

/// Does something on a node, and waits until the guest list of every node has counted `by` more,
/// and not more than that.
fn counts(cluster: &Cluster, what: &str, by: u64, work: impl FnOnce() + Send, on: usize) {
    let count = |i| counter(cluster, i, "vmlist");
    let before: Vec<u64> = (1..=3).map(count).collect();
    cluster.on(on, work);
    // A change that comes after it on every node.
    let mark = format!("/etc/pve/mark{on}");
    cluster.on(on, || fs::write(&mark, what).unwrap());
    until(&cluster.who, what, VISIBLE, || {
        let seen = |i: &usize| cluster.on(*i, || fs::read_to_string(&mark).unwrap_or_default());
        (1..=3)
            .filter(|i| seen(i) != what)
            .map(|i| format!("node {i}"))
            .collect()
    });
    // Content shows at once, it is counted when it is on the disk. All of it, then.
    until(&cluster.who, what, VISIBLE, || {
        (1..=3)
            .filter(|i| count(*i) < before[i - 1] + by)
            .map(|i| format!("node {i}: {}", count(i)))
            .collect()
    });
    std::thread::sleep(Duration::from_millis(100));
    for i in 1..=3 {
        assert_eq!(
            count(i),
            before[i - 1] + by,
            "{} {what} on node {i}",
            cluster.who.name
        );
        assert_eq!(dot_json(cluster, i, "vmlist")["version"], json!(count(i)));
    }
}

/// Node and type of every guest as a node lists them, and their versions.
fn guest_list(cluster: &Cluster, i: usize) -> (BTreeMap<String, String>, BTreeMap<String, u64>) {
    let list = dot_json(cluster, i, "vmlist");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let ids = list["ids"].as_object().cloned().unwrap_or_default();
    let place = |g: &Value| format!("{} {}", text(&g["node"]), text(&g["type"]));
    let places = ids.iter().map(|(id, g)| (id.clone(), place(g))).collect();
    let versions = ids
        .iter()
        .map(|(id, g)| (id.clone(), g["version"].as_u64().unwrap()));
    (places, versions.collect())
}

fn guests_of_all_nodes(who: &Assignment) {
    use std::io::Write;
    let cluster = Cluster::new(who);
    cluster.on(1, || {
        for i in 1..=3 {
            fs::create_dir_all(format!("/etc/pve/nodes/node{i}/qemu-server")).unwrap();
            fs::create_dir_all(format!("/etc/pve/nodes/node{i}/lxc")).unwrap();
        }
    });
    cluster.same_trees(VISIBLE);
    let conf = |owner: usize| format!("/etc/pve/nodes/node{owner}/qemu-server/10{owner}.conf");
    let mut want = BTreeMap::new();
    for i in 1..=3 {
        let path = conf(i);
        counts(
            &cluster,
            &format!("create{i}"),
            2,
            || fs::write(&path, b"name: a\n").unwrap(),
            i,
        );
        want.insert(format!("10{i}"), format!("node{i} qemu"));
        for on in 1..=3 {
            assert_eq!(guest_list(&cluster, on).0, want, "{} node {on}", who.name);
        }
    }
    // Whoever writes, wherever the guest is.
    for on in 1..=3 {
        let before: Vec<_> = (1..=3).map(|i| guest_list(&cluster, i).1).collect();
        let path = conf(on % 3 + 1);
        let append = || {
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(b"memory: 512\n").unwrap();
        };
        counts(&cluster, &format!("write{on}"), 1, append, on);
        for i in 1..=3 {
            let after = guest_list(&cluster, i).1;
            let newest = before[i - 1].values().max().unwrap() + 1;
            let written = format!("10{}", on % 3 + 1);
            let expected = |id: &String| {
                if *id == written {
                    newest
                } else {
                    before[i - 1][id]
                }
            };
            assert!(
                after.iter().all(|(id, v)| *v == expected(id)),
                "{} {after:?}",
                who.name
            );
        }
    }
    let (from, to) = (conf(1), "/etc/pve/nodes/node2/qemu-server/101.conf");
    counts(&cluster, "migrate", 2, || fs::rename(&from, to).unwrap(), 3);
    want.insert("101".into(), "node2 qemu".into());
    for i in 1..=3 {
        assert_eq!(guest_list(&cluster, i).0, want);
    }
    let other = "/etc/pve/nodes/node1/lxc/101.conf";
    let refused = || assert!(fs::write(other, b"x").is_err());
    counts(&cluster, "taken", 0, refused, 1);
    removed_guest(&cluster);
    cluster.finish();
}

/// Node 1 has data of a guest, which is removed by node 2: no node of ours shows them any more.
fn removed_guest(cluster: &Cluster) {
    for i in 1..=3 {
        set(cluster, i, &format!("rrd/pve-vm-9.0/10{i}"), b"1:2:3\0");
        set(cluster, i, &format!("rrd/pve2.3-vm/10{i}"), b"1:2:3\0");
    }
    // The text may be one second old.
    until(&cluster.who, "data of guests", VISIBLE, || {
        let lines = |i| dot_file(cluster, i, "rrd").lines().count();
        (1..=3)
            .filter(|i| lines(*i) != 6)
            .map(|i| format!("node {i}"))
            .collect()
    });
    let path = "/etc/pve/nodes/node3/qemu-server/103.conf";
    counts(cluster, "remove", 1, || fs::remove_file(path).unwrap(), 2);
    for i in cluster.who.our_nodes() {
        let rest = dot_file(cluster, i, "rrd");
        assert!(
            rest.lines().count() == 4 && !rest.contains("/103:"),
            "{rest}"
        );
        assert!(!guest_list(cluster, i).0.contains_key("103"));
    }
}

/// Node and message of every entry a node shows, sorted; asserts that it shows none twice.
fn entries(cluster: &Cluster, i: usize, user: &str) -> Vec<String> {
    let mut payload = 1000_u32.to_le_bytes().to_vec();
    payload.extend([0; 12]);
    payload.extend(user.bytes());
    payload.push(0);
    let text = client(cluster, i).text(8, &payload);
    let value: Value = serde_json::from_str(&text).unwrap();
    let mut all: Vec<String> = value["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            let field = |name: &str| e[name].as_str().unwrap().to_owned();
            format!(
                "{} {} {} {}",
                field("node"),
                e["time"],
                e["uid"],
                field("msg")
            )
        })
        .collect();
    all.sort_unstable();
    let count = all.len();
    all.dedup();
    assert_eq!(all.len(), count, "node {i} shows an entry twice");
    all
}

/// Waits until all these nodes show the same, and all of `messages`.
fn same_log(cluster: &Cluster, on: &[usize], messages: &[String], limit: Duration) {
    until(&cluster.who, "cluster log", limit, || {
        let logs: Vec<_> = on.iter().map(|i| entries(cluster, *i, "")).collect();
        let mut wrong: Vec<String> = messages
            .iter()
            .filter(|m| !logs[0].iter().any(|e| e.ends_with(&format!(" {m}"))))
            .map(|m| format!("missing: {m}"))
            .collect();
        if logs.iter().any(|l| *l != logs[0]) {
            wrong.push(format!("{logs:#?}"));
        }
        wrong
    });
}

fn log_of_all_nodes(who: &Assignment) {
    let mut cluster = Cluster::new(who);
    let mut said = Vec::new();
    let say = |cluster: &Cluster, on: &[usize], when: &str, said: &mut Vec<String>| {
        // At the same time, as daemons do.
        std::thread::scope(|scope| {
            for i in on {
                scope.spawn(move || {
                    (0..5).for_each(|n| log(cluster, *i, &format!("{when} {i}.{n}")))
                });
            }
        });
        said.extend(
            on.iter()
                .flat_map(|i| (0..5).map(move |n| format!("{when} {i}.{n}"))),
        );
    };
    say(&cluster, &[1, 2, 3], "together", &mut said);
    same_log(&cluster, &[1, 2, 3], &said, VISIBLE);
    for i in 1..=3 {
        assert_eq!(entries(&cluster, i, "root@pam").len(), 15);
        assert_eq!(entries(&cluster, i, "nobody@pve").len(), 0);
    }
    cluster.kill9(3);
    say(&cluster, &[1, 2], "without 3", &mut said);
    std::thread::sleep(NEXT_SECOND);
    cluster.start(3);
    cluster.wait_online();
    same_log(&cluster, &[1, 2, 3], &said, SOON);
    // Both sides of a broken network go on, and know everything when it is mended.
    cluster.lab.connect(3, false);
    let alone = |i: usize| dot_json(&cluster, i, "members")["cluster"]["quorate"] == json!(0);
    assert!(wait_for(SOON, || alone(3)), "{}", who.name);
    say(&cluster, &[1, 2, 3], "apart", &mut said);
    cluster.lab.connect(3, true);
    cluster.wait_online();
    same_log(&cluster, &[1, 2, 3], &said, SOON);
    say(&cluster, &[1, 2, 3], "again", &mut said);
    same_log(&cluster, &[1, 2, 3], &said, VISIBLE);
    cluster.finish();
}
