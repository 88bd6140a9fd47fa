//! Clients of group www-data that ask for as much as they can: the others are served all the same,
//! the daemon's memory has a bound, and it ends when it is told to.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::client::{ROOT, identity};
use compat_tests::daemon::proc_value;
use compat_tests::report::median;
use compat_tests::{Client, Daemon, Lab, Node, Subject, dbfile, lab, report};
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
const LONGEST_LIMIT: f64 = 1000.0;
/// Memory of the daemon in KiB, without the rings, which are the clients' memory, too.
const MEMORY_LIMIT: u64 = 32 << 10;
const STOP_LIMIT: Duration = Duration::from_secs(3);

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

/// Measures root beside eight clients, and the memory of the daemon.
fn beside(what: &str, node: &Node, daemon: &Daemon, mut greedy: Greedy) {
    let times = latencies(node);
    greedy.assert_running();
    let memory = |field| proc_value(daemon.pid(), "status", field).unwrap();
    let resident = memory("VmRSS");
    let own = memory("RssAnon") + memory("RssFile");
    let (middle, longest) = (median(&times), times.iter().copied().fold(0.0, f64::max));
    report(&format!(
        "ipc [ours] GET_FS_VERSION of root beside {GREEDY} clients, {what}: median {middle:.2} ms, longest \
         {longest:.1} ms; resident {resident} KiB, {own} KiB without the rings"
    ));
    assert!(middle <= MEDIAN_LIMIT, "{what}: median {middle} ms");
    assert!(longest <= LONGEST_LIMIT, "{what}: longest {longest} ms");
    assert!(own <= MEMORY_LIMIT, "{what}: {own} KiB");
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
    beside("properties longer than a message", &node, &daemon, greedy);

    let fits = |i: usize| properties(0, &["net0", &own_name(i)]);
    let reply = www.request(13, &fits(0), None);
    assert_eq!(reply.error(), Some(0));
    let text = String::from_utf8_lossy(reply.payload());
    assert_eq!(text.matches("\"net0\"").count(), GUESTS);
    let greedy = Greedy::start(&www, 13, (0..GREEDY).map(fits));
    beside("properties of all guests", &node, &daemon, greedy);

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
