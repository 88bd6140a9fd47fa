//! libpmxcfs: what a program in C or C++ sees of it, against the running daemon.
//!
//! `tools/abi.c` checks sizes and offsets when it is compiled and does the calls; here are the
//! daemon's part and the comparison with libqb.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::capi::{Build, Pollers, abi, installed, nobody_waits_long};
use compat_tests::client::{identity, unhex};
use compat_tests::daemon::{PATIENCE, wait_for};
use compat_tests::lab::quiet;
use compat_tests::{Client, Daemon, Lab, Node, Reply, Subject, golden, on_both, report};
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

on_both!(
    same_answers_as_libqb,
    every_helper,
    restart_under_polling_clients
);

/// What `abi helpers` expects to find.
fn prepare(node: &Node) {
    let (code, text) = node.sh("cd /etc/pve && echo hello abi >abi.cfg && : >empty.cfg && \
         head -c 1048552 /dev/zero | tr '\\0' x >large.cfg && \
         mkdir -p nodes/node1/qemu-server priv && \
         printf 'name: abi\\nlock: backup\\n' >nodes/node1/qemu-server/100.conf && \
         echo 'root@pam!abi 0123-4567' >priv/token.cfg");
    assert_eq!(code, 0, "{text}");
}

/// A node with a daemon and those files.
fn prepared(subject: &Subject) -> (Lab, Node, Daemon) {
    let (lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    prepare(&node);
    (lab, node, daemon)
}

/// What other identities than root run: the project may lie in a directory that only root can read,
/// where they would not find the library.
const FOR_EVERYBODY: Build = Build::Static;

/// Runs a command that has to end with 0.
fn succeeds(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {}\n{text}", out.status);
    text
}

fn every_helper(subject: &Subject) {
    let (_lab, node, daemon) = prepared(subject);
    for build in [Build::C, Build::Cpp, Build::Static] {
        succeeds(node.command(abi(build)).arg("helpers"));
    }
    daemon.stop();
}

#[test]
fn threads_forks_and_read_only_clients() {
    let (_lab, node, daemon) = prepared(&Subject::ours());
    let program = abi(Build::C);
    succeeds(node.command(&program).args(["fork", "100"]));
    succeeds(node.command(&program).args(["threads", "16", "100"]));
    succeeds(node.command(&program).args(["threadfork", "8", "50"]));
    succeeds(node.command(&program).args(["pipeline", "40"]));
    let program = abi(FOR_EVERYBODY);
    for name in ["www-data", "root:www-data"] {
        let (uid, gid) = identity(name);
        succeeds(node.command_as(uid, gid, &program).arg("readonly"));
    }
    let (uid, gid) = identity("nobody");
    let mut refused = Waiter::start(node.command_as(uid, gid, &program), -1);
    assert_eq!(refused.call(3).0, -(Errno::EACCES as i32));
    drop(refused);
    daemon.stop();
}

/// Errors and leaks of the client alone: the daemon runs without valgrind.
#[test]
fn without_an_error_under_valgrind() {
    let (_lab, node, daemon) = prepared(&Subject::ours());
    for arguments in [
        "helpers",
        "fork 3",
        "threads 4 5",
        "pipeline 10",
        "poll 200",
    ] {
        let mut command = node.command("valgrind");
        command.args(["-q", "--error-exitcode=1", "--leak-check=full"]);
        command.args(["--errors-for-leak-kinds=definite,indirect,possible"]);
        command.arg(abi(Build::C)).args(arguments.split(' '));
        succeeds(&mut command);
    }
    daemon.stop();
}

/// Requests of the golden vectors that say the truth about their size.
fn recorded() -> Vec<(i32, Vec<u8>)> {
    let mut requests = Vec::new();
    for file in [
        "local-empty",
        "local-config",
        "local-status",
        "local-log",
        "misc",
    ] {
        let text = std::fs::read_to_string(golden(&format!("ipc/{file}.json"))).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        for vector in value["vectors"].as_array().unwrap() {
            let mut bytes = unhex(vector["request_hex"].as_str().unwrap());
            let int = |at: usize| i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let defect = vector["name"].as_str().unwrap().starts_with("DEFECT");
            if !defect && usize::try_from(int(8)) == Ok(bytes.len()) && int(0) >= 0 {
                requests.push((int(0), bytes.split_off(16)));
            }
        }
    }
    requests
}

/// Each request once through libqb and once through libpmxcfs.
fn same_answers_as_libqb(subject: &Subject) {
    let (_lab, node, daemon) = prepared(subject);
    let requests = recorded();
    assert!(requests.len() > 100, "only {} requests", requests.len());
    for name in ["root", "www-data"] {
        let identity = identity(name);
        let qb = Client::new(&node, identity);
        let mut ours = Waiter::start_as(
            node.command_as(identity.0, identity.1, abi(FOR_EVERYBODY)),
            "raw",
        );
        for request in &requests {
            let op = request.0;
            let [mut answer, mut theirs] = answers(subject, &qb, &mut ours, request);
            if answer != theirs && op == 10 {
                // The text is kept for a second, which may have ended between the two.
                [answer, theirs] = answers(subject, &qb, &mut ours, request);
            }
            assert_eq!(answer, theirs, "op {op} of {name}");
        }
    }
    daemon.stop();
}

/// Result and answer of one request through libpmxcfs and through libqb.
fn answers(
    subject: &Subject,
    qb: &Client,
    ours: &mut Waiter,
    (op, payload): &(i32, Vec<u8>),
) -> [(i32, Vec<u8>); 2] {
    let reply = qb.request(*op, payload, None);
    let Reply::Answer {
        payload: theirs, ..
    } = &reply
    else {
        panic!("op {op}: {reply:?}");
    };
    let hex: String = payload.iter().map(|b| format!("{b:02x}")).collect();
    let line = ours.ask(&format!("{op} {hex}"));
    let (code, answer) = line.split_once(' ').unwrap();
    let mut both = [
        (code.parse().unwrap(), unhex(answer)),
        (reply.error().unwrap(), theirs.clone()),
    ];
    if *op == 10 && !subject.is_ours() {
        // the C daemon ends a fresh dump with NUL, the same one from its cache not
        for (_, text) in &mut both {
            text.retain(|byte| *byte != 0);
        }
    }
    both
}

/// 20 clients call on while the daemon is restarted: no call fails, as the restart flag asks for.
fn restart_under_polling_clients(subject: &Subject) {
    let _quiet = quiet();
    nobody_waits_long(subject, || restarts(subject));
}

/// The longest wait of a call, in milliseconds; none fails.
fn restarts(subject: &Subject) -> f64 {
    let (_lab, node, mut daemon) = prepared(subject);
    let program = abi(Build::C);
    let time = if subject.is_ours() { "4000" } else { "12000" };
    let clients = Pollers::start(20, || {
        let mut command = node.command(&program);
        command.args(["poll", time]);
        command
    });
    std::thread::sleep(Duration::from_millis(500));
    let mut down = Vec::new();
    for _ in 0..if subject.is_ours() { 3 } else { 1 } {
        let begin = Instant::now();
        daemon.stop();
        daemon = Daemon::local(&node, subject);
        down.push(begin.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(300));
    }
    let seen = clients.finish();
    report(&format!(
        "restart under 20 polling C clients, {}: {seen:?} (restarts took {down:.0?} ms)",
        subject.name()
    ));
    assert_eq!(seen.failed, 0);
    daemon.stop();
    seen.longest
}

/// A program of ours with which lines are exchanged.
struct Waiter {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Waiter {
    fn start(mut command: Command, timeout: i32) -> Self {
        command.args(["wait", &timeout.to_string()]);
        Self::spawn(command)
    }

    fn start_as(mut command: Command, what: &str) -> Self {
        command.arg(what);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            stdin,
            stdout,
        }
    }

    fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end_matches('\n').to_string()
    }

    fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.hear()
    }

    fn result(&mut self) -> (i32, u32) {
        let line = self.hear();
        let (code, time) = line.split_once(' ').unwrap();
        (code.parse().unwrap(), time.parse().unwrap())
    }

    /// A call without payload: its result and the milliseconds it took.
    fn call(&mut self, op: i32) -> (i32, u32) {
        self.say(&op.to_string());
        self.result()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}

/// A daemon that does not answer, and one that dies while it is asked.
#[test]
fn dead_and_silent_daemons() {
    let _quiet = quiet();
    let (_lab, node, daemon) = prepared(&Subject::ours());
    let program = abi(Build::C);
    let mut patient = Waiter::start(node.command(&program), -1);
    let mut hasty = Waiter::start(node.command(&program), 1000);
    assert_eq!((patient.call(1).0, hasty.call(1).0), (0, 0));

    daemon.freeze();
    let (code, took) = hasty.call(1);
    assert_eq!(code, -(Errno::ETIMEDOUT as i32));
    assert!((1000..3000).contains(&took), "{took} ms");
    // connecting takes part of the time, too
    let (code, took) = hasty.call(1);
    assert_eq!(code, -(Errno::ETIMEDOUT as i32));
    assert!((1000..3000).contains(&took), "{took} ms");
    patient.say("1");
    std::thread::sleep(Duration::from_millis(500));
    daemon.thaw();
    let (code, took) = patient.result();
    // Its time begins when it has read what was said to it.
    assert!(code == 0 && took >= 300, "{code} after {took} ms");
    // the late answers are not taken for these
    assert_eq!(hasty.call(9).0, -(Errno::ECHRNG as i32));
    assert_eq!(hasty.call(3).0, 0);

    daemon.freeze();
    patient.say("1");
    std::thread::sleep(Duration::from_millis(300));
    let died = Instant::now();
    daemon.kill9();
    let (code, _) = patient.result();
    let noticed = died.elapsed();
    assert_eq!(code, -(Errno::ECONNREFUSED as i32));
    report(&format!(
        "a killed daemon is noticed after {noticed:.0?} (libqb: up to 2 s)"
    ));
    assert!(noticed < Duration::from_millis(1500), "{noticed:?}");
    let (code, took) = hasty.call(1);
    assert_eq!(code, -(Errno::ECONNREFUSED as i32));
    assert!(took < 2000, "{took} ms");
}

/// Whoever takes the name of a daemon that does not run gives root no files to write into.
#[test]
fn a_service_of_another_user() {
    let (_lab, node) = Lab::single();
    let (uid, gid) = identity("nobody");
    let mut stranger = node
        .command_as(uid, gid, Client::program())
        .arg("serve")
        .spawn()
        .unwrap();
    assert!(wait_for(PATIENCE, || node.ipc_listens("pve2")));
    let root = Waiter::start(node.command(abi(Build::C)), 2000).call(1);
    let own = Waiter::start(node.command_as(uid, gid, abi(FOR_EVERYBODY)), 2000).call(1);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert_eq!(root.0, -(Errno::EPERM as i32));
    assert_eq!(own.0, 0);
}

/// The name programs find it by, and nothing visible that the header does not have.
#[test]
fn name_and_symbols_of_the_library() {
    let library = installed().join("usr/lib/libpmxcfs.so.0");
    let dynamic = succeeds(Command::new("readelf").arg("-d").arg(&library));
    assert!(dynamic.contains("Library soname: [libpmxcfs.so.0]"));
    assert!(!dynamic.contains("libqb"), "{dynamic}");
    let symbols = Command::new("nm")
        .args(["-D", "--defined-only", "--format=posix"])
        .arg(&library)
        .output()
        .unwrap();
    let symbols = String::from_utf8(symbols.stdout).unwrap();
    let visible: BTreeSet<&str> = symbols
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let header = std::fs::read_to_string(installed().join("usr/include/pmxcfs.h")).unwrap();
    let declared: BTreeSet<&str> = header
        .lines()
        .filter(|line| !line.starts_with(' ') && !line.starts_with("typedef"))
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("pmxcfs_"))
        .collect();
    assert!(declared.len() > 20);
    assert_eq!(visible, declared);
}

/// A flag without a daemon: waited for 10 seconds, then removed.
#[test]
fn a_flag_nobody_comes_back_for() {
    let (_lab, node, daemon) = prepared(&Subject::ours());
    let flag = "/run/pve-cluster/cfs-restart-flag";
    let mut client = Waiter::start(node.command(abi(Build::C)), -1);
    assert_eq!(client.call(1).0, 0);
    daemon.stop();
    assert!(node.path(flag).exists());
    let (code, took) = client.call(1);
    assert_eq!(code, -(Errno::ECONNREFUSED as i32));
    assert!((10_000..14_000).contains(&took), "{took} ms");
    assert!(!node.path(flag).exists());
    let (code, took) = client.call(1);
    assert_eq!(code, -(Errno::ECONNREFUSED as i32));
    assert!(took < 2000, "{took} ms");
}
