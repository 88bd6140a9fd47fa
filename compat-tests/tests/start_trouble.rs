//! What is in the way of a start is named, with what to do about it, and nothing is lost. The
//! commands that the log gives are run as they stand there.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/session.rs"]
mod session;

use compat_tests::daemon::{Exit, PATIENCE, run_to_end, wait_for};
use compat_tests::{Checker, Client, Daemon, Lab, Node, Subject, client, on_both};
use session::run;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::Command;

on_both!(
    database,
    privileges,
    open_files,
    shared_memory,
    run_directory,
    lock_holder,
    killed_holder,
    refused_client
);

const DB: &str = "/var/lib/pve-cluster/config.db";
const KEPT: &str = "/etc/pve/kept.cfg";

fn sh(node: &Node, line: &str) {
    let (code, text) = node.sh(line);
    assert_eq!(code, 0, "{line}: {text}");
}

/// A database with a file in it.
fn fill(node: &Node, subject: &Subject) {
    let daemon = Daemon::local(node, subject);
    node.inside(|| fs::write(KEPT, "kept\n")).unwrap();
    assert_eq!(daemon.stop().code, 0);
}

/// Starts and finds that file.
fn is_kept(node: &Node, subject: &Subject) -> bool {
    let daemon = Daemon::local(node, subject);
    let kept = node.inside(|| fs::read(KEPT).is_ok_and(|content| content == b"kept\n"));
    assert_eq!(daemon.stop().code, 0);
    kept
}

/// The start is refused, and the log of ours has `says` in one line. The line.
fn refused(checker: &mut Checker, case: &str, exit: &Exit, says: &str) -> String {
    checker.must(&format!("{case}: exit"), "255", &exit.code.to_string());
    let line = exit.stderr.lines().find(|line| line.contains(says));
    if checker.is_ours() {
        checker.check(case, line.is_some(), || format!("{says}? {}", exit.stderr));
        let wrong = ["restore a backup", "not usable", ".recover"];
        let wrong = wrong.iter().find(|text| exit.stderr.contains(*text));
        checker.check(case, wrong.is_none(), || exit.stderr.clone());
    }
    line.unwrap_or_default().to_string()
}

/// What the line gives behind its last `": "` is a command; the reference needs `other`.
fn follow(node: &Node, subject: &Subject, line: &str, other: &str) {
    let command = if subject.is_ours() {
        line.rsplit_once(": ").expect("a command").1
    } else {
        other
    };
    sh(node, command);
}

fn database(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "start-database");
    sh(
        &node,
        "mount -t tmpfs -o size=1m tmpfs /var/lib/pve-cluster",
    );
    fill(&node, subject);
    node.sh("cat /dev/zero > /var/lib/pve-cluster/fill");
    let exit = run(&node, subject, &["-l"]);
    let says = "the file system of '/var/lib/pve-cluster' is full (0 bytes left): make room";
    refused(&mut checker, "full disk", &exit, says);
    sh(
        &node,
        "df -h /var/lib/pve-cluster; rm /var/lib/pve-cluster/fill",
    );
    let kept = is_kept(&node, subject).to_string();
    checker.must("full disk: kept", "true", &kept);
    sh(&node, "umount /var/lib/pve-cluster");

    // each case: what is done, what the log says, and what the reference needs afterwards
    for (case, before, says, after) in [
        (
            "directory",
            "mv DB /run/saved; mkdir DB",
            "config.db' is a directory where a file belongs",
            "mv DB DB.dir",
        ),
        (
            "read-only file system",
            "mount --bind /var/lib/pve-cluster /var/lib/pve-cluster && \
             mount -o remount,ro,bind /var/lib/pve-cluster",
            "is on a read-only file system",
            "mount -o remount,rw /var/lib/pve-cluster",
        ),
        (
            "read-only file",
            "mount --bind DB DB && mount -o remount,ro,bind DB",
            "config.db' is on a read-only file system",
            "mount -o remount,rw DB",
        ),
        (
            "immutable file",
            "chattr +i DB",
            "config.db' is immutable",
            "chattr -i DB",
        ),
        (
            "immutable directory",
            "chattr +i /var/lib/pve-cluster",
            "'/var/lib/pve-cluster' is immutable",
            "chattr -i /var/lib/pve-cluster",
        ),
        (
            "dangling link",
            "mkdir /run/disk && mv DB /run/disk/ && ln -s /run/disk/config.db DB && \
             mv /run/disk /run/away",
            "config.db' is a symbolic link to '/run/disk/config.db', which does not exist",
            "",
        ),
    ] {
        fill(&node, subject);
        sh(&node, &before.replace("DB", DB));
        let exit = run(&node, subject, &["-l"]);
        let line = refused(&mut checker, case, &exit, says);
        match case {
            // not a command: what the link names has to come back
            "dangling link" if subject.is_ours() => sh(&node, "mv /run/away /run/disk"),
            // the reference follows no link at all
            "dangling link" => sh(&node, &format!("rm {DB} && mv /run/away/config.db {DB}")),
            _ => follow(&node, subject, &line, &after.replace("DB", DB)),
        }
        if case == "directory" {
            sh(&node, &format!("rmdir {DB}.dir && mv /run/saved {DB}"));
        }
        let kept = is_kept(&node, subject).to_string();
        checker.must(&format!("{case}: kept"), "true", &kept);
        if before.starts_with("mount") {
            let on = before.split(' ').nth(3).unwrap();
            sh(&node, &format!("umount {}", on.replace("DB", DB)));
        }
    }
    checker.finish();
}

/// The daemon without some capabilities.
fn without(node: &Node, subject: &Subject, capabilities: &str) -> Command {
    let mut command = node.command("setpriv");
    command.args(["--bounding-set", capabilities, "--"]);
    command.arg(&subject.binary).arg("-l");
    command
}

fn privileges(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "start-privileges");
    fill(&node, subject);
    let exit = run_to_end(&node, without(&node, subject, "-sys_admin"));
    let says =
        "cannot mount on /etc/pve: Operation not permitted - this process has no CAP_SYS_ADMIN";
    refused(&mut checker, "no CAP_SYS_ADMIN", &exit, says);
    let kept = is_kept(&node, subject).to_string();
    checker.must("no CAP_SYS_ADMIN: kept", "true", &kept);

    sh(&node, &format!("chown www-data {DB}"));
    let command = without(&node, subject, "-dac_override,-dac_read_search,-fowner");
    let exit = run_to_end(&node, command);
    let says = "may not write '/var/lib/pve-cluster/config.db' (owner 33:0, mode 0600)";
    let line = refused(&mut checker, "file of somebody else", &exit, says);
    follow(&node, subject, &line, &format!("chown root:root {DB}"));
    let kept = is_kept(&node, subject).to_string();
    checker.must("file of somebody else: kept", "true", &kept);

    sh(&node, "mount --bind /dev/null /dev/fuse");
    let exit = run(&node, subject, &["-l"]);
    refused(
        &mut checker,
        "no FUSE device",
        &exit,
        "/dev/fuse is not the device of FUSE",
    );
    sh(&node, "umount /dev/fuse");
    let kept = is_kept(&node, subject).to_string();
    checker.must("no FUSE device: kept", "true", &kept);
    checker.finish();
}

/// `-f -l` with a limit of open files, soft and hard, that root cannot raise.
fn limited(node: &Node, subject: &Subject, limit: &str) -> Daemon {
    let mut command = node.command("prlimit");
    command.args([&format!("--nofile={limit}"), "setpriv"]);
    command.args(["--bounding-set", "-sys_resource", "--"]);
    command.arg(&subject.binary).args(["-f", "-l"]);
    Daemon::spawn_command(node, subject, command)
}

fn open_files(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "start-open-files");
    fill(&node, subject);
    let mut daemon = limited(&node, subject, "20:20");
    let result = match daemon.try_wait_usable() {
        Ok(_) => "serves".to_string(),
        Err(exit) => {
            let says = "this process may open 20 files only and needs 64";
            checker.check("limit", exit.stderr.contains(says), || exit.stderr.clone());
            format!("exit {}", exit.code)
        }
    };
    daemon.stop();
    checker.must("20 open files", "serves", &result);
    let daemon = {
        let mut daemon = limited(&node, subject, "20:4096");
        daemon.wait_usable();
        daemon
    };
    assert_eq!(daemon.stop().code, 0);
    if subject.is_ours() {
        used_up(&node, subject, &mut checker);
    }
    checker.must("kept", "true", &is_kept(&node, subject).to_string());
    checker.finish();
}

/// Clients have all files that may be open: the log says so, and the next one waits for its turn.
fn used_up(node: &Node, subject: &Subject, checker: &mut Checker) {
    let mut daemon = limited(node, subject, "64:64");
    daemon.wait_usable();
    let mut name = [0; 107];
    name[..4].copy_from_slice(b"pve2");
    let clients: Vec<UnixStream> = node.inside(|| {
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let client = |_| UnixStream::connect_addr(&address).unwrap();
        (0..64).map(client).collect()
    });
    let says = "cannot accept connections: Too many open files - the 64 files this process may open \
                are in use: raise LimitNOFILE= in the unit";
    let told = wait_for(PATIENCE, || daemon.stderr().contains(says));
    checker.check("used up", told, || daemon.stderr());
    drop(clients);
    let reply = Client::new(node, client::ROOT)
        .request(1, b"", None)
        .error();
    checker.check("used up", reply == Some(0), || format!("{reply:?}"));
    assert_eq!(daemon.stop().code, 0);
}

fn shared_memory(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "start-shared-memory");
    sh(
        &node,
        "umount /dev/shm; mount -t tmpfs -o size=4m tmpfs /dev/shm",
    );
    let daemon = Daemon::local(&node, subject);
    let version = || Client::new(&node, client::ROOT).request(1, b"", None);
    // room for some headers, but not for the data, which only the client allocates
    sh(&node, "head -c 3m /dev/zero > /dev/shm/fill");
    let reply = format!("{:?}", version());
    checker.check("full", reply.contains("No space left on device"), || {
        reply.clone()
    });
    sh(&node, "cat /dev/zero > /dev/shm/fill 2>/dev/null || true");
    let reply = format!("{:?}", version());
    checker.check("full", reply.contains("No space left on device"), || {
        reply.clone()
    });
    if subject.is_ours() {
        let log = daemon.stderr();
        let says = "No space left on device - /dev/shm is full (";
        let lines = log.lines().filter(|line| line.contains(says)).count();
        checker.check("log", lines == 2 && log.contains("(0 KiB left"), || {
            log.clone()
        });
        let command = "mount -o remount,size=50% /dev/shm";
        checker.check("log", log.contains(command), || log.clone());
        sh(&node, command);
    } else {
        sh(&node, "rm /dev/shm/fill");
    }
    let answer = version().error();
    checker.must("room again", "Some(0)", &format!("{answer:?}"));
    daemon.stop();
    checker.finish();
}

/// What is only a comfort is missed with a message, and the daemon serves.
fn run_directory(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "start-run-directory");
    fill(&node, subject);
    sh(
        &node,
        "mount -t tmpfs -o size=4k tmpfs /run && { cat /dev/zero > /run/fill || true; }",
    );
    let daemon = Daemon::local(&node, subject);
    let kept = node.inside(|| fs::read(KEPT).is_ok());
    checker.must("full /run: serves", "true", &kept.to_string());
    let log = daemon.stop().stderr;
    let says = "unable to write pid file '/run/pve-cluster.pid': No space left on device - the file \
                system of '/run' is full (0 bytes left)";
    checker.check(
        "full /run",
        !subject.is_ours() || log.contains(says),
        || log.clone(),
    );
    sh(&node, "umount /run");
    checker.finish();
}

/// A daemon that was killed while a thread of it waits in the kernel: neither `systemctl stop` nor
/// `kill` helps. The first thread of this process is gone, and what it holds stays.
fn killed_holder(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "start-killed-holder");
    fill(&node, subject);
    let script = "import ctypes, fcntl, threading, time\n\
                  f = open('/var/lib/pve-cluster/.pmxcfs.lockfile')\n\
                  fcntl.flock(f, fcntl.LOCK_EX)\n\
                  threading.Thread(target=lambda: time.sleep(1000)).start()\n\
                  ctypes.CDLL(None).syscall(60, 0)\n";
    let mut holder = node
        .command("python3")
        .args(["-c", script])
        .spawn()
        .unwrap();
    let pid = holder.id();
    let gone = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.contains("State:\tZ")
    };
    assert!(wait_for(PATIENCE, gone));
    let exit = run(&node, subject, &["-l"]);
    checker.must("exit", "255", &exit.code.to_string());
    if subject.is_ours() {
        let says = format!("held by pid {pid}, which was killed and has not ended yet. If");
        let line = exit.stderr.lines().find(|line| line.contains(&says));
        checker.check("log", line.is_some(), || exit.stderr.clone());
        cut_off(&node, subject, line.unwrap_or_default(), &mut checker);
    }
    // the thread
    holder.kill().unwrap();
    holder.wait().unwrap();
    checker.must("kept", "true", &is_kept(&node, subject).to_string());
    checker.finish();
}

/// The command of the line ends whatever serves `/etc/pve`.
fn cut_off(node: &Node, subject: &Subject, line: &str, checker: &mut Checker) {
    sh(node, "mount -t fusectl fusectl /sys/fs/fuse/connections");
    let other = ["-f", "-l", "--database", "/run/other/config.db"];
    let mut daemon = Daemon::spawn(node, subject, &other);
    daemon.wait_usable();
    sh(node, line.split_once("has to be cut off: ").unwrap().1);
    let ended = wait_for(PATIENCE, || !daemon.is_running());
    checker.check("cut off", ended, || daemon.stderr());
}

/// Root needs its own group, too: the refused client is told who it is and what it needs.
fn refused_client(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "start-refused-client");
    let daemon = Daemon::local(&node, subject);
    for identity in [(0, 100), (65534, 65534)] {
        let reply = Client::new(&node, identity).request(1, b"", None);
        let accepted = reply.error() == Some(0);
        checker.must(
            &format!("{identity:?} accepted"),
            "false",
            &accepted.to_string(),
        );
        let (uid, gid) = identity;
        let start = format!("connection from bad user {uid}! - rejected");
        let log = daemon.stderr();
        let line = log
            .lines()
            .find(|line| line.contains(&start))
            .unwrap_or_default();
        checker.check("line", !line.is_empty(), || log.clone());
        if subject.is_ours() {
            let says = format!(
                ", uid {uid}, gid {gid}: it needs uid 0 with gid 0 or, for reading, gid 33 (www-data)"
            );
            checker.check(
                "line",
                line.contains(&says) && line.contains("(pid "),
                || line.into(),
            );
        }
    }
    // what the line says it needs
    let reply = Client::new(&node, (0, 33)).request(1, b"", None).error();
    checker.must("root with group www-data", "Some(0)", &format!("{reply:?}"));
    daemon.stop();
    checker.finish();
}

/// Who holds the lock is named, also if the process that took it has ended.
fn lock_holder(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "start-lock-holder");
    let holder = compat_tests::daemon::Background::start(&node, subject, &["-l"]);
    let exit = run(&node, subject, &["-l"]);
    checker.must("exit", "255", &exit.code.to_string());
    if subject.is_ours() {
        let pid = holder.pid;
        let command = format!("{} -l", subject.binary.display());
        for says in [
            format!("trying again (held by pid {pid}: {command})"),
            format!(
                "unable to acquire pmxcfs lock: Resource temporarily unavailable - \
                 '/var/lib/pve-cluster/.pmxcfs.lockfile' is held by pid {pid} ({command}): 'systemctl \
                 stop pve-cluster' ends the service, 'kill {pid}' one that was started by hand"
            ),
        ] {
            checker.check("log", exit.stderr.contains(&says), || exit.stderr.clone());
        }
    }
    sh(&node, &format!("kill {}", holder.pid));
    let mut next = Daemon::spawn(&node, subject, &["-f", "-l"]);
    checker.must(
        "next start",
        "true",
        &next.try_wait_usable().is_ok().to_string(),
    );
    next.stop();
    checker.finish();
}
