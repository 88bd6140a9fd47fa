//! The computed files and their IPC twins: the recorded local sequence step by step, guest
//! properties, tokens.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use compat_tests::client::ROOT;
use compat_tests::python;
use compat_tests::text::{canonical, sort_between};
use compat_tests::{Checker, Client, Daemon, Lab, Node, Reply, Subject, golden, on_both};
use std::fs;
use std::path::Path;

on_both!(local_sequence);

struct Sequence<'a> {
    node: &'a Node,
    subject: &'a Subject,
    client: Client,
    checker: Checker,
}

impl Sequence<'_> {
    /// Compares the dot files with the recorded ones of this step.
    fn snapshot(&mut self, step: &str) {
        if !self.subject.is_ours() {
            // the reference shows the text of the last stat for up to one second
            std::thread::sleep(std::time::Duration::from_millis(1100));
        }
        let dir = golden(&format!("status/local/{step}"));
        let mut names: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        for name in names {
            let want = fs::read(dir.join(&name)).unwrap();
            let got = self.node.inside(|| fs::read(format!("/etc/pve/.{name}")));
            let got = got.map_or_else(|e| e.to_string(), |bytes| canonical(&name, &bytes));
            let want = canonical(&name, &want);
            let case = format!("{step}/{name}");
            if name == "version" {
                let paths = |text: &str| -> String {
                    text.lines()
                        .filter_map(|l| l.split('"').nth(1))
                        .collect::<Vec<_>>()
                        .join(" ")
                };
                let kept = |text: &str| -> String {
                    text.lines()
                        .filter(|l| !l.ends_with("\": 1,"))
                        .collect::<Vec<_>>()
                        .join(" ")
                };
                let same =
                    paths(&want).split(" kvstore").next() == paths(&got).split(" kvstore").next();
                self.checker
                    .check(&case, same, || format!("other paths: {}", paths(&got)));
                self.checker.golden(&case, &kept(&want), &kept(&got));
            } else {
                self.checker.golden(&case, &want, &got);
            }
        }
    }

    fn files(&mut self, work: impl FnOnce() -> std::io::Result<()> + Send) {
        self.node.inside(work).unwrap();
    }

    fn set(&mut self, what: &str, key: &str, value: &[u8], want: i32) {
        let got = self.client.set_status(key, value);
        self.checker
            .golden(&format!("set {what}"), &want.to_string(), &got.to_string());
    }

    fn get(&mut self, what: &str, key: &str, node: &str, want: Result<&[u8], i32>) {
        let reply = self.client.get_status(key, node);
        let shown = |r: Result<&[u8], i32>| format!("{r:?}");
        let got = match &reply {
            Reply::Answer { payload, .. } => match reply.error() {
                Some(0) => shown(Ok(payload)),
                error => shown(Err(error.unwrap())),
            },
            Reply::Transport(text) => text.clone(),
        };
        self.checker
            .golden(&format!("get {what}"), &shown(want), &got);
    }
}

fn local_sequence(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut daemon = Daemon::local(&node, subject);
    let mut s = Sequence {
        node: &node,
        subject,
        client: Client::new(&node, ROOT),
        checker: Checker::new(subject, "status"),
    };
    file_steps(&mut s);
    value_steps(&mut s);
    properties(&mut s);
    s.checker.check("the daemon", daemon.is_running(), || {
        "ended meanwhile".to_string()
    });
    s.checker.finish();
}

/// Steps 01 to 15: files and guests.
fn file_steps(s: &mut Sequence) {
    s.snapshot("01-fresh");
    s.files(|| {
        fs::create_dir_all("/etc/pve/nodes/node1/qemu-server")?;
        fs::create_dir("/etc/pve/nodes/node1/lxc")?;
        fs::create_dir("/etc/pve/priv")
    });
    s.snapshot("02-after-mkdirs");
    s.files(|| fs::write("/etc/pve/storage.cfg", "dir: local\n"));
    s.snapshot("03-after-write-storage.cfg");
    s.files(|| fs::write("/etc/pve/nodes/node1/qemu-server/100.conf", "name: a\n"));
    s.snapshot("04-after-create-vm100");
    s.files(|| fs::write("/etc/pve/nodes/node1/qemu-server/100.conf", "name: b\n"));
    s.snapshot("05-after-rewrite-vm100");
    s.files(|| fs::write("/etc/pve/nodes/node1/lxc/101.conf", "hostname: c\n"));
    s.snapshot("06-after-create-ct101");
    let error = s
        .node
        .inside(|| fs::write("/etc/pve/nodes/node1/lxc/100.conf", "x"))
        .unwrap_err();
    s.checker.golden(
        "duplicate 100",
        "17",
        &error.raw_os_error().unwrap().to_string(),
    );
    s.snapshot("07-after-duplicate-100-attempt");
    s.files(|| {
        fs::create_dir_all("/etc/pve/nodes/node2/qemu-server")?;
        fs::rename(
            "/etc/pve/nodes/node1/qemu-server/100.conf",
            "/etc/pve/nodes/node2/qemu-server/100.conf",
        )
    });
    s.snapshot("08-after-move-vm100-to-node2");
    s.files(|| fs::remove_file("/etc/pve/nodes/node1/lxc/101.conf"));
    s.snapshot("09-after-delete-ct101");
    s.files(|| {
        let file = fs::File::options()
            .write(true)
            .open("/etc/pve/storage.cfg")?;
        let five = std::time::UNIX_EPOCH + std::time::Duration::from_secs(5);
        file.set_times(fs::FileTimes::new().set_accessed(five).set_modified(five))
    });
    s.snapshot("10-after-utime-storage.cfg");
    s.files(|| fs::rename("/etc/pve/storage.cfg", "/etc/pve/user.cfg"));
    s.snapshot("11-after-rename-storage-to-user");
    s.files(|| fs::remove_file("/etc/pve/user.cfg"));
    s.snapshot("12-after-unlink-user.cfg");
    s.files(|| {
        fs::create_dir_all("/etc/pve/nodes/bad_name/qemu-server")?;
        fs::write("/etc/pve/nodes/bad_name/qemu-server/300.conf", "name: z\n")?;
        for name in ["0300", "99", "4294967296", "4294967295"] {
            fs::write(
                format!("/etc/pve/nodes/node1/qemu-server/{name}.conf"),
                "name: z\n",
            )?;
        }
        Ok(())
    });
    s.snapshot("13-odd-names");
    s.files(|| fs::create_dir("/etc/pve/nodes/node1/qemu-server/555.conf"));
    s.snapshot("14-dir-named-555.conf");
    s.files(|| fs::remove_dir("/etc/pve/nodes/node1/qemu-server/555.conf"));
    s.snapshot("15-rmdir-555.conf");
}

/// Steps 16 to 22: node status values and addresses, with the results of `ipc.txt`.
fn value_steps(s: &mut Sequence) {
    let long = "k".repeat(255);
    s.set("kv/foo", "kv/foo", b"bar\0", 0);
    s.snapshot("16-kv-1");
    s.get("kv/foo", "kv/foo", "", Ok(b"bar\0"));
    s.get("kv/foo node1", "kv/foo", "node1", Ok(b"bar\0"));
    s.get("kv/foo other", "kv/foo", "other", Err(-2));
    s.set("kv/foo again", "kv/foo", b"bar\0", 0);
    s.snapshot("17-kv-2");
    s.set("binary", "kv/bin", b"\0\xff\x01", 0);
    s.get("binary", "kv/bin", "", Ok(b"\0\xff\x01"));
    s.set("remove kv/foo", "kv/foo", b"", 0);
    s.get("kv/foo removed", "kv/foo", "", Err(-2));
    s.set("remove missing", "kv/none", b"", 0);
    s.snapshot("18-kv-3");
    s.set("32768 bytes", "kv/big", &[b'x'; 32768], 0);
    s.set("32769 bytes", "kv/big", &[b'x'; 32769], -27);
    s.set("key with quote", "kv/a\"b\\c", b"1\0", 0);
    s.set("empty key", "", b"1\0", 0);
    s.get("empty key", "", "", Ok(b"1\0"));
    s.set("key of 255", &long, b"1\0", 0);
    s.get("key of 255", &long, "", Ok(b"1\0"));
    s.snapshot("19-kv-4");
    for (what, key) in [
        ("quote", "kv/a\"b\\c"),
        ("empty", ""),
        ("long", long.as_str()),
        ("big", "kv/big"),
    ] {
        s.set(&format!("remove {what}"), key, b"", 0);
    }
    s.set("nodeip", "nodeip", b"192.0.2.1\0", 0);
    s.snapshot("20-nodeip");
    s.set("nodeip same", "nodeip", b"192.0.2.1\0", 0);
    s.snapshot("21-nodeip-same");
    s.set("nodeip no NUL", "nodeip", b"192.0.2.2", -12);
    s.set("nodeip no data", "nodeip", b"", -12);
    s.get("nodeip", "nodeip", "", Err(-2));
    s.set(
        "nodeip 256 bytes",
        "nodeip",
        &[&[b'1'; 255][..], b"\0"].concat(),
        -12,
    );
    s.set(
        "nodeip 255 bytes",
        "nodeip",
        &[&[b'1'; 254][..], b"\0"].concat(),
        0,
    );
    s.snapshot("22-nodeip-bad");
}

/// `FILE path = b'…'`, `QUERY(op…) …` with the answer on the next line, and the token part.
fn properties(s: &mut Sequence) {
    let text = fs::read_to_string(golden("status/props/results.txt")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        if let Some(rest) = line.strip_prefix("FILE ") {
            let (path, content) = rest.split_once(" = ").unwrap();
            write(s, path, &python::literal(content).0);
        } else if let Some(rest) = line.strip_prefix("QUERY(op") {
            let want = lines[number + 1].trim();
            query(s, number, rest, want);
        } else if let Some(content) = line.strip_prefix("token.cfg=") {
            write(s, "priv/token.cfg", &python::literal(content).0);
        } else if let Some(rest) = line.strip_prefix("VERIFY ") {
            let (mut token, rest) = python::literal(rest);
            if line.starts_with("VERIFY '") {
                token.push(0);
            }
            let want = rest.strip_prefix(" -> error ").unwrap();
            let got = s.client.request(12, &token, None).error().unwrap_or(99);
            s.checker.golden(
                &format!("props:{} token", number + 1),
                want,
                &got.to_string(),
            );
        }
    }
}

fn write(s: &mut Sequence, path: &str, content: &[u8]) {
    let path = Path::new("/etc/pve").join(path);
    s.files(|| {
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(&path, content)
    });
}

fn query(s: &mut Sequence, number: usize, rest: &str, want: &str) {
    let (op, rest) = rest.split_once(") vmid=").unwrap();
    let (vmid, rest) = rest.split_once(" props=").unwrap();
    let op: i32 = op.parse().unwrap();
    let mut payload = vmid.parse::<u32>().unwrap().to_le_bytes().to_vec();
    let rest = if op == 13 {
        let (names, rest) = python::list(rest);
        payload.push(u8::try_from(names.len()).unwrap());
        for name in names {
            payload.extend(name);
            payload.push(0);
        }
        rest
    } else {
        let (name, rest) = python::literal(rest);
        payload.extend(name);
        payload.push(0);
        rest
    };
    let error = rest.strip_prefix(" -> error ").unwrap();
    let reply = s.client.request(op, &payload, None);
    let order = |b: &[u8]| {
        let text: String = b.iter().map(|b| char::from(*b)).collect();
        sort_between(&text, "{\n", "\n}\n", ",\n")
    };
    let want = format!("error {error} {}", order(&python::literal(want).0));
    let got = format!(
        "error {} {}",
        reply.error().unwrap_or(99),
        order(reply.payload())
    );
    s.checker.golden(
        &format!("props:{} op {op} vmid {vmid}", number + 1),
        &want,
        &got,
    );
}
