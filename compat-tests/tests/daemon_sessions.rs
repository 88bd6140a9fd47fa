//! Command line, start, stop, signals, mount point and addresses, as recorded in
//! `golden/status/daemon/session1.txt` to `session3.txt` (the texts wanted here stand there).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::daemon::{Background, Exit, run_to_end, wait_for};
use compat_tests::{Checker, Client, Daemon, Lab, Node, Subject, client, on_both};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

on_both!(
    command_line,
    signals,
    daemonised,
    lock,
    stale_mounts,
    mount_point,
    addresses,
    database,
    ipc,
    debug
);

const RESOLVED: &str =
    "[main] notice: resolved node name 'node1' to 'ADDR' for default node IP address";

fn run(node: &Node, subject: &Subject, args: &[&str]) -> Exit {
    let mut command = node.command(&subject.binary);
    command.args(args);
    run_to_end(node, command)
}

/// Output with the lab's address replaced, without libqb's own lines.
fn shown(lab: &Lab, text: &str) -> String {
    text.replace(&lab.address(1), "ADDR")
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with("[libqb]"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Type, mode, owner and size as `ls -l` would say: `-r--r----- root:www-data 0`, or `missing`.
fn ls(path: &Path) -> String {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return "missing".to_string();
    };
    let kind = if meta.is_dir() { 'd' } else { '-' };
    let name = |id: u32| match id {
        0 => "root".to_string(),
        id if id == client::identity("www-data").1 => "www-data".to_string(),
        id => id.to_string(),
    };
    let size = if meta.is_dir() {
        String::new()
    } else {
        format!(" {}", meta.size())
    };
    format!(
        "{kind}{:04o} {}:{}{size}",
        meta.permissions().mode() & 0o7777,
        name(meta.uid()),
        name(meta.gid())
    )
}

/// What an orderly end leaves behind.
fn leftovers(checker: &mut Checker, node: &Node, prefix: &str) {
    let case = |what: &str| format!("{prefix}: {what}");
    let run = node.dir.join("run");
    checker.golden(
        &case("restart flag"),
        "-0440 root:www-data 0",
        &ls(&run.join("pve-cluster/cfs-restart-flag")),
    );
    checker.golden(
        &case("pid file"),
        "missing",
        &ls(&run.join("pve-cluster.pid")),
    );
    for (file, want) in [("-wal", "missing"), ("-shm", "missing")] {
        let path = node.dir.join(format!("varlib/config.db{file}"));
        checker.golden(&case(file), want, &ls(&path));
    }
    checker.golden(&case("mounts"), "", &node.mounts().join("\n"));
    let shm = fs::read_dir(node.path("/dev/shm")).unwrap().count();
    checker.golden(&case("files in /dev/shm"), "0", &shm.to_string());
}

const HELP: &str = "Usage:
  pmxcfs [OPTION…]
Help Options:
  -h, --help           Show help options
Application Options:
  -d, --debug          Turn on debug messages
  -f, --foreground     Do not daemonize server
  -l, --local          Force local mode (ignore corosync.conf, force quorum)";

fn command_line(subject: &Subject) {
    let (lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-command-line");
    for (args, code, text) in [
        (["--help"], 0, HELP),
        (["-h"], 0, HELP),
        (
            ["-x"],
            1,
            "[main] crit: option parsing failed: Unknown option -x",
        ),
        (
            ["--nonsense"],
            1,
            "[main] crit: option parsing failed: Unknown option --nonsense",
        ),
        (["extra"], 255, "[main] crit: too many arguments"),
    ] {
        let exit = run(&node, subject, &args);
        checker.golden(
            &format!("{}: exit", args[0]),
            &code.to_string(),
            &exit.code.to_string(),
        );
        checker.golden(
            &format!("{}: output", args[0]),
            text,
            &shown(&lab, &exit.stderr),
        );
    }
    create_db(subject, &node, &mut checker);
    checker.finish();
}

/// `create_pmxcfs_db`, which lies beside the daemon.
fn create_db(subject: &Subject, node: &Node, checker: &mut Checker) {
    let program = subject.binary.with_file_name("create_pmxcfs_db");
    let dir = node.dir.join("import");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::create_dir_all(node.dir.join("none")).unwrap();
    fs::write(dir.join("a.cfg"), "a\n").unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("sub/no"), "x").unwrap();
    let _ = std::os::unix::fs::symlink("a.cfg", dir.join("link"));
    let text = |p: &Path| p.to_str().unwrap().to_string();
    let (dir, db) = (text(&dir), text(&node.dir.join("made.db")));
    let usage = "Usage: create_pmxcfs_db /a/dir /a/filename.db";
    let missing = text(&node.dir.join("missing"));
    let none = text(&node.dir.join("none"));
    for (case, args, code, output) in [
        ("no argument", vec![], 255, usage),
        ("one argument", vec![dir.clone()], 255, usage),
        (
            "no such folder",
            vec![missing.clone(), db.clone()],
            255,
            "unable to open dir: No such file or directory",
        ),
        ("ok", vec![dir.clone(), db.clone()], 0, ""),
        (
            "empty folder, database below nothing",
            vec![none, format!("{missing}/x.db")],
            0,
            "",
        ),
    ] {
        let mut command = node.command(&program);
        command.args(&args);
        let exit = run_to_end(node, command);
        let output = output.to_string();
        checker.golden(
            &format!("create_pmxcfs_db {case}: exit"),
            &code.to_string(),
            &exit.code.to_string(),
        );
        let mine: Vec<&str> = exit
            .stderr
            .lines()
            .filter(|l| !l.starts_with("[database]") && !l.starts_with("**") && !l.is_empty())
            .collect();
        checker.golden(
            &format!("create_pmxcfs_db {case}: output"),
            &output,
            &mine.join("\n"),
        );
    }
    let mut command = node.command(&program);
    command.args([&dir, &db]);
    let again = run_to_end(node, command);
    checker.golden(
        "create_pmxcfs_db again: exit",
        "255",
        &again.code.to_string(),
    );
    let first = again.stderr.lines().next().unwrap_or_default();
    let failed = first.starts_with("memdb_create '") && first.ends_with("' failed");
    checker.check("create_pmxcfs_db again", failed, || again.stderr.clone());
    checker.golden(
        "create_pmxcfs_db: mode",
        "0600",
        &format!(
            "{:04o}",
            fs::metadata(&db).unwrap().permissions().mode() & 0o7777
        ),
    );
    let mut rows = compat_tests::dbfile::rows(Path::new(&db)).unwrap();
    rows.sort_by_key(|r| r.name.clone());
    let rows: Vec<String> = rows
        .iter()
        .map(|r| {
            let data = r
                .data
                .as_ref()
                .map_or("NULL".to_string(), |d| format!("{}", d.len()));
            let name = String::from_utf8_lossy(&r.name);
            format!(
                "{name} parent {} type {} writer {} data {data}",
                r.parent, r.kind, r.writer
            )
        })
        .collect();
    let want = "__version__ parent 0 type 8 writer 0 data NULL\na.cfg parent 0 type 8 writer 0 data 2\nempty parent 0 type 8 writer 0 data NULL";
    checker.golden("create_pmxcfs_db: rows", want, &rows.join("\n"));
}

fn signals(subject: &Subject) {
    let (lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-signals");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut daemon = Daemon::local(&node, subject);
        checker.golden(
            &format!("{signal}: lock file while running"),
            "-0600 root:root 0",
            &ls(&node.dir.join("varlib/.pmxcfs.lockfile")),
        );
        let pid = fs::read_to_string(node.dir.join("run/pve-cluster.pid")).unwrap_or_default();
        checker.golden(
            &format!("{signal}: pid file with -f"),
            &format!("{}", daemon.pid()).replace(pid.trim(), "pid"),
            "pid",
        );
        checker.golden(
            &format!("{signal}: flag while running"),
            "missing",
            &ls(&node.dir.join("run/pve-cluster/cfs-restart-flag")),
        );
        let ignored = daemon.is_running()
            && nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid()), Signal::SIGPIPE)
                .is_ok();
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
        leftovers(&mut checker, &node, &signal.to_string());
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
    checker.finish();
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
    let answer = Client::new(&node, client::ROOT)
        .request(2, b"", None)
        .error();
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
    checker.golden("second instance: output", &want, &shown(&lab, &exit.stderr));
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

/// A process in the node whose working directory is the mount.
struct Holder(Child);

impl Holder {
    fn new(node: &Node) -> Self {
        let child = node
            .command("bash")
            .args(["-c", "cd /etc/pve && echo in && exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut holder = Self(child);
        let mut line = String::new();
        let out = holder.0.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        assert_eq!(line, "in\n");
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts and says how that went; what it left of the daemon ends.
fn start_and_kill(node: &Node, subject: &Subject) -> String {
    let mut daemon = Daemon::spawn(node, subject, &["-f", "-l"]);
    let result = match daemon.try_wait_usable() {
        Ok(_) => format!("ok, {} mounts", node.mounts().len()),
        Err(exit) => format!("exit {}", exit.code),
    };
    daemon.kill9();
    result
}

fn stale_mounts(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-stale-mounts");
    let background = Background::start(&node, subject, &["-l"]);
    background.signal(Signal::SIGKILL);
    let error = node.inside(|| fs::read_dir("/etc/pve").map(drop).unwrap_err());
    checker.golden(
        "SIGKILL: mount",
        "ENOTCONN",
        if error.raw_os_error() == Some(107) {
            "ENOTCONN"
        } else {
            "other"
        },
    );
    let pid_file = fs::read_to_string(node.dir.join("run/pve-cluster.pid")).unwrap_or_default();
    checker.golden(
        "SIGKILL: pid file",
        &format!("{}\n", background.pid),
        &pid_file,
    );
    checker.golden(
        "SIGKILL: restart flag",
        "missing",
        &ls(&node.dir.join("run/pve-cluster/cfs-restart-flag")),
    );
    checker.golden(
        "start over the dead mount",
        "ok, 1 mounts",
        &start_and_kill(&node, subject),
    );

    let daemon = Daemon::local(&node, subject);
    let holder = Holder::new(&node);
    checker.golden(
        "SIGTERM with a cwd inside: exit",
        "0",
        &daemon.stop().code.to_string(),
    );
    checker.golden(
        "SIGTERM with a cwd inside: mounts",
        "",
        &node.mounts().join("\n"),
    );
    let daemon = Daemon::local(&node, subject);
    checker.golden(
        "start while that cwd is held",
        "1",
        &node.mounts().len().to_string(),
    );
    drop(holder);

    let holder = Holder::new(&node);
    daemon.kill9();
    checker.golden(
        "start over a dead mount with a cwd inside",
        "exit 255",
        &start_and_kill(&node, subject),
    );
    drop(holder);
    checker.golden(
        "start after that process has ended",
        "ok, 1 mounts",
        &start_and_kill(&node, subject),
    );
    checker.finish();
}

fn mount_point(subject: &Subject) {
    let (lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-mount-point");
    node.inside(|| fs::write("/etc/pve/precious.cfg", "x").unwrap());
    let exit = run(&node, subject, &["-l"]);
    checker.golden("not empty: exit", "255", &exit.code.to_string());
    let want = format!(
        "{RESOLVED}\nfuse: mountpoint is not empty\nfuse: if you are sure this is safe, use the 'nonempty' mount option\n\
         [main] crit: fuse_mount error: File exists\n[main] notice: exit proxmox configuration filesystem (-1)"
    );
    checker.golden("not empty: output", &want, &shown(&lab, &exit.stderr));
    let kept = node.inside(|| fs::read_to_string("/etc/pve/precious.cfg").unwrap());
    checker.golden("not empty: content", "x", &kept);
    checker.golden("not empty: mounts", "", &node.mounts().join("\n"));
    node.inside(|| fs::remove_file("/etc/pve/precious.cfg").unwrap());
    node.inside(|| fs::remove_dir("/etc/pve").unwrap());
    checker.golden(
        "missing: start",
        "ok, 1 mounts",
        &start_and_kill(&node, subject),
    );
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
    ] {
        fs::write(&hosts, text).unwrap();
        let mut daemon = Daemon::spawn(&node, subject, &["-f", "-l"]);
        let exit = match daemon.try_wait_usable() {
            Ok(_) => daemon.stop(),
            Err(exit) => exit,
        };
        let code = if want == refused { "255" } else { "0" };
        checker.golden(&format!("{case}: exit"), code, &exit.code.to_string());
        let output = shown(&lab, &exit.stderr);
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
    let mut server = node.command(Client::program());
    let mut server = server.args(["serve", "0"]).spawn().unwrap();
    assert!(
        wait_for(Duration::from_secs(5), || node.ipc_listens("pve2")),
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
    checker.check(
        "name taken: mounts",
        subject.is_ours() == node.mounts().is_empty(),
        || format!("{:?}", node.mounts()),
    );
    let _ = server.kill();
    let _ = server.wait();
    daemon.kill9();

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
