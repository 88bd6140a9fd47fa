//! Start, stop, signals, lock, background, addresses, as recorded in
//! `golden/status/daemon/session1.txt` to `session3.txt` (the texts wanted here stand there).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/session.rs"]
mod session;

use compat_tests::client::{ROOT, identity};
use compat_tests::daemon::{Background, mount_answers, wait_for};
use compat_tests::{Checker, Client, Daemon, Lab, Node, Subject, on_both};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use session::{RESOLVED, leftovers, ls, run, shown};
use std::fs;
use std::time::{Duration, Instant};

on_both!(signals, daemonised, lock, addresses, database, ipc, debug);

fn signals(subject: &Subject) {
    let (lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-signals");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = Daemon::local(&node, subject);
        checker.golden(
            &format!("{signal}: lock file while running"),
            "-0600 root:root 0",
            &ls(&node.dir.join("varlib/.pmxcfs.lockfile")),
        );
        let pid = fs::read_to_string(node.dir.join("run/pve-cluster.pid")).unwrap_or_default();
        let is_own = pid.trim() == daemon.pid().to_string();
        checker.golden(
            &format!("{signal}: own pid in the file"),
            "true",
            &is_own.to_string(),
        );
        // It goes when the daemon is ready, a moment after its socket is there.
        let flag = node.dir.join("run/pve-cluster/cfs-restart-flag");
        wait_for(Duration::from_secs(10), || !flag.exists());
        checker.golden(
            &format!("{signal}: flag while running"),
            "missing",
            &ls(&flag),
        );
        let ignored =
            daemon.is_running() && kill(Pid::from_raw(daemon.pid()), Signal::SIGPIPE).is_ok();
        std::thread::sleep(Duration::from_millis(50));
        checker.check("SIGPIPE", ignored && daemon.is_running(), || {
            "ended the daemon".to_string()
        });
        let exit = daemon.signal(signal);
        checker.golden(&format!("{signal}: exit"), "0", &exit.code.to_string());
        let want = format!(
            "{RESOLVED}\n[main] notice: teardown filesystem\n[main] notice: exit proxmox configuration filesystem (0)"
        );
        checker.golden(&format!("{signal}: log"), &want, &shown(&lab, &exit.stderr));
        leftovers(&mut checker, &node, signal.as_ref());
    }
    checker.golden(
        "run directory",
        "d0750 root:www-data",
        &ls(&node.dir.join("run/pve-cluster")),
    );
    checker.golden(
        "database",
        "-0600 root:root",
        ls(&node.database()).rsplit_once(' ').unwrap().0,
    );
    checker.golden(
        "lock file",
        "-0600 root:root 0",
        &ls(&node.dir.join("varlib/.pmxcfs.lockfile")),
    );
    hangup(subject, &node, &mut checker);
    checker.finish();
}

/// SIGHUP is no request to end: a closed terminal, or somebody who wants a file to be read again.
fn hangup(subject: &Subject, node: &Node, checker: &mut Checker) {
    let mut daemon = Daemon::local(node, subject);
    kill(Pid::from_raw(daemon.pid()), Signal::SIGHUP).unwrap();
    let line = "[main] notice: SIGHUP ignored: there is no configuration to read again";
    let told = || daemon.stderr().lines().any(|l| l == line);
    // what comes is the line of the one or the end of the other
    wait_for(Duration::from_secs(20), || {
        told() || node.mounts().is_empty()
    });
    let told = told();
    let serves = node.inside(|| fs::read("/etc/pve/.version").is_ok());
    if !serves {
        wait_for(Duration::from_secs(20), || !daemon.is_running());
    }
    let result = match (told, serves, daemon.is_running()) {
        (true, true, true) => "says so and serves",
        (false, false, false) => "ends",
        _ => "something else",
    };
    checker.golden("SIGHUP", "ends", result);
    checker.golden("SIGHUP: exit", "0", &daemon.stop().code.to_string());
    leftovers(checker, node, "after SIGHUP");
}

fn proc_line(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find(|l| l.starts_with(field))
        .unwrap_or_default();
    line.split_whitespace()
        .skip(1)
        .collect::<Vec<_>>()
        .join(" ")
}

fn daemonised(subject: &Subject) {
    let (lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-background");
    // the flag an earlier orderly stop has left must be gone when the parent returns
    Daemon::local(&node, subject).stop();
    let background = Background::start(&node, subject, &["-l"]);
    checker.golden(
        "flag when the parent returns",
        "missing",
        &ls(&node.dir.join("run/pve-cluster/cfs-restart-flag")),
    );
    let ready = node.inside(|| fs::read("/etc/pve/.version").is_ok());
    checker.golden("mount when the parent returns", "true", &ready.to_string());
    let answer = Client::new(&node, ROOT).request(2, b"", None).error();
    checker.golden(
        "IPC when the parent returns",
        "Some(0)",
        &format!("{answer:?}"),
    );
    checker.golden("output", RESOLVED, &shown(&lab, &background.parent.stderr));
    let pid_file = node.dir.join("run/pve-cluster.pid");
    checker.golden(
        "pid file",
        &format!("-0644 root:root {}", background.pid.to_string().len() + 1),
        &ls(&pid_file),
    );
    checker.golden(
        "pid file content",
        &format!("{}\n", background.pid),
        &fs::read_to_string(&pid_file).unwrap(),
    );
    checker.golden("mount", "/dev/fuse /etc/pve fuse rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other 0 0", &node.mounts().join("\n"));
    let pid = background.pid;
    for fd in 0..3 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        checker.golden(
            &format!("descriptor {fd}"),
            "/dev/null",
            &target.display().to_string(),
        );
    }
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    checker.golden("working directory", "/", &cwd.display().to_string());
    checker.golden("umask", "0027", &proc_line(pid, "Umask:"));
    checker.golden("ids", "0 0 0 0", &proc_line(pid, "Uid:"));
    let ignored = u64::from_str_radix(&proc_line(pid, "SigIgn:"), 16).unwrap();
    checker.golden(
        "SIGPIPE ignored",
        "true",
        &(ignored & 0x1000 != 0).to_string(),
    );
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    checker.golden(
        "group and session leader",
        &format!("{pid} {pid}"),
        &format!("{} {}", fields[2], fields[3]),
    );
    checker.golden("no terminal", "0", fields[4]);
    background.signal(Signal::SIGTERM);
    leftovers(&mut checker, &node, "SIGTERM");
    checker.finish();
}

fn lock(subject: &Subject) {
    let (lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-lock");
    let first = Daemon::local(&node, subject);
    let start = Instant::now();
    let exit = run(&node, subject, &["-l"]);
    let seconds = start.elapsed().as_secs();
    let want = format!(
        "{RESOLVED}\n[main] notice: unable to acquire pmxcfs lock - trying again\n[main] crit: unable to acquire pmxcfs lock: \
         Resource temporarily unavailable\n[main] notice: exit proxmox configuration filesystem (-1)"
    );
    checker.golden("second instance: exit", "255", &exit.code.to_string());
    let output = shown(&lab, &exit.stderr)
        .replace(&first.pid().to_string(), "PID")
        .replace(subject.binary.to_str().unwrap(), "pmxcfs");
    checker.golden("second instance: output", &want, &output);
    checker.check(
        "second instance: patience",
        (9..=14).contains(&seconds),
        || format!("{seconds} s"),
    );
    let alive = node.inside(|| fs::read("/etc/pve/.version").is_ok());
    checker.golden("first instance still serves", "true", &alive.to_string());
    // one that waits takes over when the first ends
    let mut second = Daemon::spawn(&node, subject, &["-f", "-l"]);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(first.stop().code, 0);
    let taken = second.try_wait_usable().is_ok();
    checker.golden("waiting instance takes over", "true", &taken.to_string());
    checker.finish();
}

fn addresses(subject: &Subject) {
    let (lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-addresses");
    let address = lab.address(1);
    let hosts = node.dir.join("hosts");
    let refused = "[main] crit: Unable to resolve node name 'node1' to a non-loopback IP address - missing entry in '/etc/hosts' or DNS?";
    for (case, text, want) in [
        ("unresolvable", "127.0.0.1 localhost\n".to_string(), refused),
        ("loopback only", "127.0.1.1 node1\n".to_string(), refused),
        (
            "loopback, then real",
            format!("127.0.1.1 node1\n{address} node1\n"),
            RESOLVED,
        ),
        (
            "v6, then v4",
            format!("2001:db8::5 node1\n{address} node1\n"),
            RESOLVED,
        ),
        (
            "v4, then v6",
            format!("{address} node1\n2001:db8::5 node1\n"),
            RESOLVED,
        ),
        (
            "::1 and link-local",
            "::1 node1\nfe80::1 node1\n".to_string(),
            "[main] notice: resolved node name 'node1' to 'fe80::1' for default node IP address",
        ),
        (
            "0.0.0.0 only",
            "0.0.0.0 node1\n".to_string(),
            "[main] notice: resolved node name 'node1' to '0.0.0.0' for default node IP address",
        ),
        (
            "multicast only",
            "239.192.1.1 node1\n".to_string(),
            "[main] notice: resolved node name 'node1' to '239.192.1.1' for default node IP address",
        ),
    ] {
        fs::write(&hosts, text).unwrap();
        let mut daemon = Daemon::spawn(&node, subject, &["-f", "-l"]);
        let exit = match daemon.try_wait_usable() {
            Ok(_) => daemon.stop(),
            Err(exit) => exit,
        };
        let code = if want == refused { "255" } else { "0" };
        checker.golden(&format!("{case}: exit"), code, &exit.code.to_string());
        // what libc says differs with its version and the state of the network
        let output = [
            "Temporary failure in name resolution",
            "Name or service not known",
        ]
        .iter()
        .fold(exit.stderr.clone(), |text, says| {
            text.replace(
                &format!("failed to lookup address information: {says}"),
                "LIBC",
            )
        });
        let output = shown(&lab, &output);
        let first = output.lines().next().unwrap_or_default();
        checker.golden(&format!("{case}: first line"), want, first);
    }
    fs::write(&hosts, format!("{address} node1\n")).unwrap();
    node.sh("hostname node1.example.com");
    let mut daemon = Daemon::spawn(&node, subject, &["-f", "-l"]);
    let started = daemon.try_wait_usable().is_ok();
    checker.golden("fully qualified host name", "true", &started.to_string());
    let target = node.inside(|| fs::read_link("/etc/pve/local").unwrap());
    checker.golden(
        "fully qualified host name: local",
        "nodes/node1",
        target.to_str().unwrap(),
    );
    daemon.stop();
    for (case, text) in [
        (
            "only the full name resolves",
            format!("{address} node1.example.com\n"),
        ),
        (
            "only the full name is no loopback address",
            format!("127.0.1.1 node1\n{address} node1.example.com\n"),
        ),
    ] {
        fs::write(&hosts, text).unwrap();
        let mut daemon = Daemon::spawn(&node, subject, &["-f", "-l"]);
        let result = match daemon.try_wait_usable() {
            Ok(_) => shown(&lab, &daemon.stop().stderr)
                .lines()
                .next()
                .unwrap_or_default()
                .to_string(),
            Err(exit) => format!("exit {}", exit.code),
        };
        checker.must(case, RESOLVED, &result);
    }
    checker.finish();
}

fn database(subject: &Subject) {
    let (lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-database");
    Daemon::local(&node, subject).stop();
    let locked = rusqlite::Connection::open(node.database()).unwrap();
    locked
        .execute_batch("PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE;")
        .unwrap();
    let exit = run(&node, subject, &["-l"]);
    checker.golden(
        "locked by another process: exit",
        "255",
        &exit.code.to_string(),
    );
    let want = format!(
        "{RESOLVED}\n[database] crit: unable to set WAL mode: database is locked#010\n[main] crit: memdb_open failed - unable to open \
         database '/var/lib/pve-cluster/config.db'\n[main] notice: exit proxmox configuration filesystem (-1)"
    );
    checker.golden(
        "locked by another process: output",
        &want,
        &shown(&lab, &exit.stderr),
    );
    // a backup that is done within the busy time-out must not keep the node from starting
    let mut daemon = Daemon::spawn(&node, subject, &["-f", "-l"]);
    std::thread::sleep(Duration::from_millis(1500));
    drop(locked);
    let started = daemon.try_wait_usable();
    checker.golden(
        "locked for 1.5 s",
        "exit 255",
        &started.map_or_else(|e| format!("exit {}", e.code), |_| "starts".to_string()),
    );
    checker.finish();
}

fn ipc(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-ipc");
    // Any user can take the name.
    let nobody = Client::new(&node, identity("nobody"));
    let mut server = nobody.command().args(["serve", "0"]).spawn().unwrap();
    assert!(
        wait_for(Duration::from_secs(20), || node.ipc_listens("pve2")),
        "the other server"
    );
    let mut daemon = Daemon::spawn(&node, subject, &["-f", "-l"]);
    let result = daemon.try_wait_usable();
    checker.golden(
        "name taken",
        "runs without IPC",
        &result.map_or_else(
            |e| format!("exit {}", e.code),
            |_| "runs without IPC".to_string(),
        ),
    );
    node.inside(|| fs::write("/etc/pve/storage.cfg", "served all the same").unwrap());
    let (pid, uid) = (server.id(), identity("nobody").0);
    if subject.is_ours() {
        let log = daemon.stderr();
        let line = log.lines().find(|line| line.contains("'@pve2' is taken"));
        let line = line.unwrap_or_else(|| panic!("{log}"));
        assert!(
            line.contains(&format!("process {pid} (qbclient) of uid {uid};")),
            "{line}"
        );
        // What the line says to do.
        let command = line
            .split('\'')
            .find(|part| part.starts_with("kill "))
            .unwrap();
        assert_eq!(node.sh(command), (0, String::new()), "{line}");
    } else {
        server.kill().unwrap();
    }
    server.wait().unwrap();
    let served = || {
        node.ipc_listens("pve2")
            && Client::new(&node, ROOT).config("storage.cfg").error() == Some(0)
    };
    let free = wait_for(
        Duration::from_secs(if subject.is_ours() { 30 } else { 3 }),
        served,
    );
    checker.golden(
        "name free again",
        "no IPC",
        if free { "IPC" } else { "no IPC" },
    );
    if subject.is_ours() {
        assert_eq!(daemon.signal(Signal::SIGTERM).code, 0);
        taken_by_one_who_does_not_listen(&node, subject);
    } else {
        daemon.kill9();
    }

    // clients that find the flag wait for the restart: it must be there before the service goes
    let daemon = Daemon::local(&node, subject);
    let flag = node.dir.join("run/pve-cluster/cfs-restart-flag");
    let early = flag.exists();
    let watched = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            wait_for(Duration::from_secs(10), || !node.ipc_listens("pve2"));
            flag.exists()
        });
        daemon.stop();
        watch.join().unwrap()
    });
    checker.golden(
        "flag before the service ends",
        "false true",
        &format!("{early} {watched}"),
    );
    checker.finish();
}

/// A name that is bound only: nobody can be asked whose it is, but the line says how to find out.
fn taken_by_one_who_does_not_listen(node: &Node, subject: &Subject) {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, socket};
    let mut name = [0u8; 107];
    name[..4].copy_from_slice(b"pve2");
    let bound = node.inside(|| {
        let bound = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&bound, &SocketAddrUnix::new_abstract_name(&name).unwrap()).unwrap();
        bound
    });
    let mut daemon = Daemon::spawn(node, subject, &["-f", "-l"]);
    assert!(wait_for(Duration::from_secs(20), || {
        node.inside(mount_answers)
    }));
    let log = daemon.stderr();
    let line = log.lines().find(|line| line.contains("'@pve2' is taken"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    let command = line.split('"').nth(1).unwrap_or_else(|| panic!("{line}"));
    let (code, shown) = node.sh(command);
    assert_eq!(code, 0, "{line}: {shown}");
    let pid = format!("pid={},", std::process::id());
    assert!(shown.contains(&pid), "{line}: {shown}");
    drop(bound);
    assert!(
        wait_for(Duration::from_secs(30), || node.ipc_listens("pve2")),
        "the name is free"
    );
    assert_eq!(daemon.signal(Signal::SIGTERM).code, 0);
}

fn debug(subject: &Subject) {
    let (lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-debug");
    let daemon = Daemon::local(&node, subject);
    let steps = node.inside(|| {
        let read = || fs::read_to_string("/etc/pve/.debug").unwrap();
        let first = read();
        fs::write("/etc/pve/.debug", "1\n").unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        let second = read();
        fs::write("/etc/pve/.debug", "0\n").unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        [first, second, read()].concat().replace('\n', " ")
    });
    checker.golden("switched on and off", "0 1 0", &steps);
    let exit = daemon.stop();
    let log = shown(&lab, &exit.stderr);
    for text in [
        "[main] notice: enable debug mode",
        "[main] notice: disable debug mode",
    ] {
        let count = log.lines().filter(|l| l.starts_with(text)).count();
        checker.golden(text, "1", &count.to_string());
    }
    let mut daemon = Daemon::spawn(&node, subject, &["-f", "-l", "-d"]);
    daemon.wait_usable();
    let content = node.inside(|| fs::read_to_string("/etc/pve/.debug").unwrap());
    checker.golden("-d", "1", content.trim());
    let exit = daemon.stop();
    let debug_lines = exit
        .stderr
        .lines()
        .filter(|l| l.contains("] debug: "))
        .count();
    checker.golden("-d: debug lines", "true", &(debug_lines > 0).to_string());
    checker.finish();
}
