//! Clients of group www-data that ask for as much as they can: the others are served all the same,
//! the daemon's memory has a bound, and it ends when it is told to.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::client::{ROOT, identity, name256};
use compat_tests::daemon::proc_value;
use compat_tests::report::median;
use compat_tests::shm::peer::{SEMAPHORE, message};
use compat_tests::shm::{Identity, Peer, Target};
use compat_tests::{Checker, Client, Daemon, Lab, Node, Subject, dbfile, lab, on_both, report};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Child, Stdio};
use std::time::Duration;

const GUESTS: usize = 10_000;
const GREEDY: usize = 8;
const ENOBUFS: i32 = -105;
/// Requests of root beside them, and the pause between two, in microseconds.
const ASKED: &str = "1000";
const PAUSE: &str = "2000";
/// What only a client that waits for others exceeds, on a loaded machine, too: milliseconds. What a
/// quiet machine needs stands in the report.
const MEDIAN_LIMIT: f64 = 50.0;
const LONGEST_LIMIT: f64 = 5000.0;
/// Memory of the daemon with 10,000 guests, and what clients may add to it, in KiB.
const MEMORY_LIMIT: u64 = 32 << 10;
const MORE_MEMORY: u64 = 16 << 10;
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// Clients of www-data that wait at once.
const WAITING: usize = 300;
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The payload of GET_GUEST_CONFIG_PROPERTIES.
fn properties(vmid: u32, names: &[&str]) -> Vec<u8> {
    let mut payload = vmid.to_le_bytes().to_vec();
    payload.push(u8::try_from(names.len()).unwrap());
    for name in names {
        payload.extend_from_slice(name.as_bytes());
        payload.push(0);
    }
    payload
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Clients that ask the same without a pause, killed when dropped.
struct Greedy(Vec<Child>);

impl Greedy {
    fn start(client: &Client, operation: i32, payloads: impl Iterator<Item = Vec<u8>>) -> Self {
        let start = |payload: Vec<u8>| {
            let mut command = client.command();
            command.args(["-t", "60000", "bench", "100000000"]);
            command.args([&operation.to_string(), &hex(&payload)]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().unwrap()
        };
        Self(payloads.map(start).collect())
    }

    fn join(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    fn assert_running(&mut self) {
        for child in &mut self.0 {
            assert!(child.try_wait().unwrap().is_none(), "a greedy client ended");
        }
    }
}

impl Drop for Greedy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let pid = child.id();
            let children = format!("/proc/{pid}/task/{pid}/children");
            let children = std::fs::read_to_string(children).unwrap_or_default();
            for pid in children.split_whitespace() {
                let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How long root's GET_FS_VERSION takes, each in milliseconds.
fn latencies(node: &Node) -> Vec<f64> {
    let mut command = Client::new(node, ROOT).command();
    command.args(["-t", "60000", "latencies", ASKED, PAUSE, "1"]);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines()
        .map(|us| us.parse::<f64>().unwrap() / 1e3)
        .collect()
}

/// Memory of the daemon in KiB, without the rings, which are the clients' memory, too.
fn memory(daemon: &Daemon) -> u64 {
    let memory = |field| proc_value(daemon.pid(), "status", field).unwrap();
    memory("RssAnon") + memory("RssFile")
}

/// Measures root beside eight clients, and the memory of the daemon, which has a limit.
fn beside(what: &str, node: &Node, daemon: &Daemon, mut greedy: Greedy, limit: u64) {
    let times = latencies(node);
    greedy.assert_running();
    let resident = proc_value(daemon.pid(), "status", "VmRSS").unwrap();
    let own = memory(daemon);
    let (middle, longest) = (median(&times), times.iter().copied().fold(0.0, f64::max));
    report(&format!(
        "ipc [ours] GET_FS_VERSION of root beside {GREEDY} clients, {what}: median {middle:.2} ms, longest \
         {longest:.1} ms; resident {resident} KiB, {own} KiB without the rings"
    ));
    assert!(middle <= MEDIAN_LIMIT, "{what}: median {middle} ms");
    assert!(longest <= LONGEST_LIMIT, "{what}: longest {longest} ms");
    assert!(own <= limit, "{what}: {own} KiB, limit {limit}");
}

#[test]
fn guest_properties() {
    let _quiet = lab::quiet();
    let (_lab, node) = Lab::single();
    dbfile::Builder::guests(GUESTS)
        .write(&node.database())
        .unwrap();
    let mut daemon = Daemon::local(&node, &Subject::ours());
    let www = Client::new(&node, identity("www-data"));
    let own_name = |i: usize| format!("x{i}");

    let long = |i: usize| {
        let own = own_name(i);
        let mut names = vec!["net0"; 254];
        names.push(&own);
        properties(0, &names)
    };
    let reply = www.request(13, &long(0), None);
    assert_eq!(reply.error(), Some(ENOBUFS));
    let greedy = Greedy::start(&www, 13, (0..GREEDY).map(long));
    let what = "properties longer than a message";
    beside(what, &node, &daemon, greedy, MEMORY_LIMIT);

    let fits = |i: usize| properties(0, &["net0", &own_name(i)]);
    let reply = www.request(13, &fits(0), None);
    assert_eq!(reply.error(), Some(0));
    let text = String::from_utf8_lossy(reply.payload());
    assert_eq!(text.matches("\"net0\"").count(), GUESTS);
    let greedy = Greedy::start(&www, 13, (0..GREEDY).map(fits));
    let what = "properties of all guests";
    beside(what, &node, &daemon, greedy, MEMORY_LIMIT);

    let _greedy = Greedy::start(&www, 13, (0..GREEDY).map(long).chain((0..GREEDY).map(fits)));
    std::thread::sleep(Duration::from_millis(500));
    let exit = daemon.signal(Signal::SIGTERM);
    report(&format!(
        "ipc [ours] SIGTERM beside {} clients: {:.2} s",
        2 * GREEDY,
        exit.took.as_secs_f64()
    ));
    assert_eq!(exit.code, 0, "{exit:?}");
    assert!(exit.took <= STOP_LIMIT, "{exit:?}");
    // Clients that find the service gone make nothing new.
    let left = node.inside(|| std::fs::read_dir("/dev/shm").unwrap().count());
    assert_eq!(left, 0, "entries of /dev/shm after the end");
}

/// 20 guests with one line of 900 KB, and one request, with 4 GiB of address space.
#[test]
fn large_properties() {
    let (_lab, node) = Lab::single();
    let mut db = dbfile::Builder::default();
    let key = "k".repeat(900_000);
    for vmid in 100..120 {
        let config = format!("memory: 512\nsshkeys: {key}\n");
        let path = format!("nodes/node1/qemu-server/{vmid}.conf");
        db.file(&path, config.as_bytes());
    }
    db.write(&node.database()).unwrap();
    let limit = format!("--as={}", 4u64 << 30);
    let mut daemon = Daemon::wrapped(&node, &Subject::ours(), &["prlimit", &limit]);
    let www = Client::new(&node, identity("www-data"));
    for names in [vec!["sshkeys"; 255], vec!["sshkeys"]] {
        let reply = www.request(13, &properties(0, &names), None);
        assert_eq!(reply.error(), Some(ENOBUFS), "{} names", names.len());
    }
    let peak = proc_value(daemon.pid(), "status", "VmHWM").unwrap();
    report(&format!(
        "ipc [ours] 255 x 18 MB of properties: peak {peak} KiB"
    ));
    assert!(daemon.is_running());
    let reply = www.request(13, &properties(100, &["sshkeys"]), None);
    assert_eq!(reply.error(), Some(0));
    assert_eq!(
        reply.payload(),
        format!("{{\n\"100\":{{\"sshkeys\": \"{key}\"}}\n}}\n").as_bytes()
    );
    let reply = www.request(13, &properties(0, &["memory", "memory"]), None);
    assert_eq!(
        String::from_utf8_lossy(reply.payload())
            .matches("\"memory\": \"512\",\"memory\": \"512\"")
            .count(),
        20
    );
    assert_eq!(daemon.signal(Signal::SIGTERM).code, 0);
}

/// Connections with rings of their own, as many as wanted, for messages of `size` bytes.
fn connect(node: &Node, daemon: &Daemon, who: Identity, count: usize, size: u32) -> Vec<Peer> {
    let target = Target {
        service: "pve2".to_string(),
        pid: u32::try_from(daemon.pid()).unwrap(),
        probe: (1, Vec::new()),
        secret: None,
    };
    let connect = move || Peer::connect_with("pve2", size).unwrap();
    node.inside(|| target.run_as(who, move || (0..count).map(|_| connect()).collect()))
}

/// One connection of root.
fn connect_root(node: &Node, daemon: &Daemon) -> Peer {
    connect(node, daemon, ROOT, 1, 1 << 20).remove(0)
}

/// Root and www-data wait for the same kind of answer.
#[test]
fn root_first() {
    let (_lab, node) = Lab::single();
    dbfile::Builder::guests(GUESTS)
        .write(&node.database())
        .unwrap();
    let daemon = Daemon::local(&node, &Subject::ours());
    // Messages that are too short for the answer: it is made all the same.
    let mut others = connect(&node, &daemon, identity("www-data"), WAITING, 12_328);
    let mut root = connect_root(&node, &daemon);
    daemon.freeze();
    for (i, other) in others.iter_mut().enumerate() {
        let own = format!("x{i}");
        let payload = properties(0, &["memory", &own]);
        other.send(&message(13, &payload)).unwrap();
    }
    let payload = properties(0, &["memory", "lock"]);
    root.send(&message(13, &payload)).unwrap();
    daemon.thaw();
    root.await_responses(1, PATIENCE).unwrap();
    let answered = |peer: &&Peer| peer.response.get(SEMAPHORE).unwrap() > 0;
    let before = others.iter().filter(answered).count();
    let answer = root.take().unwrap();
    assert_eq!(answer.error, 0);
    report(&format!(
        "ipc [ours] properties for root beside {WAITING} waiting clients: {before} were answered before"
    ));
    assert!(
        before < WAITING / 2,
        "{before} of {WAITING} came before root"
    );
    for other in &mut others {
        other.await_responses(1, 3 * PATIENCE).unwrap();
        assert_eq!(other.take().unwrap().error, ENOBUFS);
    }
    drop((others, root));
    assert_eq!(daemon.stop().code, 0);
}

/// SET_STATUS: the error of the answer.
fn set(peer: &mut Peer, key: &str, value: &[u8]) -> i32 {
    let payload = [&name256(key)[..], value].concat();
    peer.ask(4, &payload, PATIENCE).unwrap().error
}

/// Every other request, each as large as its client can make it.
#[test]
fn other_requests() {
    let _quiet = lab::quiet();
    let (_lab, node) = Lab::single();
    let mut db = dbfile::Builder::guests(GUESTS);
    db.file("large.cfg", &vec![b'x'; 1_048_000]);
    db.file("priv/token.cfg", &b"a@pam!t x\n".repeat(100_000));
    db.write(&node.database()).unwrap();
    let daemon = Daemon::local(&node, &Subject::ours());
    {
        let peer = &mut connect_root(&node, &daemon);
        // 12 MB.
        for n in 0..3000 {
            let value = [vec![b'1'; 4000], vec![0]].concat();
            assert_eq!(set(peer, &format!("rrd/pve-vm-9.0/{n}"), &value), 0);
        }
        assert_eq!(set(peer, "large", &[b'x'; 32_768]), 0);
        for n in 0..3000 {
            let text = format!("\x06\x05\x02root\0t\0entry {n} \u{1}\u{2}\"\0");
            assert_eq!(peer.ask(7, text.as_bytes(), PATIENCE).unwrap().error, 0);
        }
        let keys = (0..6000).take_while(|n| set(peer, &format!("{n:0200}"), b"1") == 0);
        assert!(keys.count() > 300);
    }
    let www = Client::new(&node, identity("www-data"));
    let status = [name256("large"), name256("")].concat();
    let log = [&u32::MAX.to_le_bytes()[..], &[0; 12], b"root\0"].concat();
    let requests: [(i32, &[u8], i32); GREEDY] = [
        (1, b"", 0),
        (3, b"", 0),
        (5, &status, 0),
        (6, b"large.cfg\0", 0),
        (8, &log, 0),
        (10, b"", ENOBUFS),
        (12, b"a@pam!t y\0", -2),
        (13, &properties(0, &["memory", "lock"]), 0),
    ];
    let limit = memory(&daemon) + MORE_MEMORY;
    let mut greedy = Greedy(Vec::new());
    for (operation, payload, error) in requests {
        let reply = www.request(operation, payload, None);
        assert_eq!(reply.error(), Some(error), "{operation}");
        let one = Greedy::start(&www, operation, std::iter::once(payload.to_vec()));
        greedy.join(one);
    }
    beside("one of each kind", &node, &daemon, greedy, limit);
    assert_eq!(daemon.stop().code, 0);
}

on_both!(limits);

/// What a client may ask for, where that has an end and the reference has none.
fn limits(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "ipc-limits");
    let daemon = Daemon::local(&node, subject);
    node.inside(|| {
        std::fs::create_dir_all("/etc/pve/nodes/node1/lxc").unwrap();
        std::fs::write("/etc/pve/nodes/node1/lxc/100.conf", "memory: 512\n").unwrap();
    });
    let names = [
        &100u32.to_le_bytes()[..],
        b"\x02memory\0",
        &[b'n'; 17_000],
        b"\0",
    ]
    .concat();
    let error = Client::new(&node, ROOT).request(13, &names, None).error();
    checker.golden(
        "property names of 17,000 bytes",
        "Some(0)",
        &format!("{error:?}"),
    );
    let peer = &mut connect_root(&node, &daemon);
    let keys = (0..6000).map(|n| set(peer, &format!("{n:0200}"), b"1"));
    let last = keys.last();
    let version = peer.ask(1, b"", PATIENCE);
    let version = version.map_or_else(
        |_| "no answer".to_string(),
        |answer| format!("error {}", answer.error),
    );
    checker.golden(
        "the last of 6,000 status keys of 200 bytes",
        "Some(0)",
        &format!("{last:?}"),
    );
    checker.golden(
        "GET_FS_VERSION with 6,000 status keys",
        "no answer",
        &version,
    );
    daemon.kill9();
    checker.finish();
}
