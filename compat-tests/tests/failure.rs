//! A thread that dies takes the daemon with it, so that systemd starts it again; a failure while one
//! request is answered costs that answer.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::client::{ROOT, compile_preload};
use compat_tests::daemon::{mount_answers, wait_for};
use compat_tests::{Client, Daemon, Lab, Node, Subject};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
#[path = "common/cluster.rs"]
mod cluster;
use cluster::{Assignment, Cluster};

/// Only a hang takes longer.
const LIMIT: Duration = Duration::from_secs(20);

/// A daemon whose thread of a given name can be made to panic the next time it looks at the clock.
struct Victim {
    daemon: Daemon,
    node: Node,
}

impl Victim {
    fn start(node: &Node) -> Self {
        let [preload, fails] = environment(node);
        // As systemd asks for signs of life.
        let wrapper = ["env", &preload, &fails, "WATCHDOG_USEC=400000"];
        let _ = fs::remove_file(file(node));
        let daemon = Daemon::wrapped(node, &Subject::ours(), &wrapper);
        Victim {
            daemon,
            node: node.clone(),
        }
    }

    fn fails(&self, thread: &str) {
        fails(&self.node, thread);
    }

    fn works(&self) {
        fs::remove_file(file(&self.node)).unwrap();
    }
}

/// What makes the daemon of this node a [`Victim`].
fn environment(node: &Node) -> [String; 2] {
    let preload = compile_preload("clockfail");
    [
        format!("LD_PRELOAD={}", preload.display()),
        format!("CLOCK_FAILS={}", file(node).display()),
    ]
}

fn fails(node: &Node, thread: &str) {
    // At once, not a part of the name.
    let new = file(node).with_extension("new");
    fs::write(&new, thread).unwrap();
    fs::rename(new, file(node)).unwrap();
}

/// The line about the death of a thread in a log.
fn assert_told(thread: &str, log: &str) {
    let line = log.lines().find(|line| line.contains("crit: panic"));
    let line = line.unwrap_or_else(|| panic!("{thread}: {log}"));
    assert!(
        line.contains(&format!("panic in thread '{thread}' at ")),
        "{line}"
    );
    assert!(line.ends_with("the daemon ends and has to be started again (systemd does)"));
}

fn file(node: &Node) -> std::path::PathBuf {
    node.dir.join("clock-fails")
}

#[test]
fn a_dead_thread_ends_the_daemon() {
    let (_lab, node) = Lab::single();
    for (round, thread) in ["ipc", "store", "watchdog"].into_iter().enumerate() {
        let mut victim = Victim::start(&node);
        let path = format!("/etc/pve/before-{thread}");
        node.inside(|| fs::write(path, "kept").unwrap());
        victim.fails(thread);
        // Whatever may be answered: something to do for each of them.
        let _ = node
            .command("timeout")
            .args(["5", "mkdir", "/etc/pve/work"])
            .output();
        let _ = Client::new(&node, ROOT).config("storage.cfg");
        let ended = wait_for(LIMIT, || !victim.daemon.is_running());
        let log = victim.daemon.stderr();
        assert!(ended, "{thread}: {log}");
        assert_told(thread, &log);
        // A crash, for systemd, and nothing is lost.
        let exit = victim.daemon.signal(nix::sys::signal::Signal::SIGTERM);
        assert_ne!(exit.code, 0, "{thread}: {exit:?}");
        let again = Daemon::local(&node, &Subject::ours());
        node.inside(|| {
            let names = fs::read_dir("/etc/pve").unwrap();
            let before = names.filter(|name| {
                let name = name.as_ref().unwrap().file_name();
                name.to_string_lossy().starts_with("before-")
            });
            assert_eq!(before.count(), round + 1);
        });
        assert_eq!(again.stop().code, 0);
    }
}

#[test]
fn a_failed_answer_is_the_only_one() {
    let (_lab, node) = Lab::single();
    let mut victim = Victim::start(&node);
    let client = Client::new(&node, ROOT);
    let rrd = |n: u32| client.set_status("rrd/pve-node-9.0/node1", format!("1:2:{n}\0").as_bytes());
    for worker in ["fuser-0", "fuser-1"] {
        victim.fails(&format!("*{worker}"));
        // Both workers get some of the requests.
        let mut failed = 0;
        let all = wait_for(LIMIT, || {
            let made = node.inside(|| fs::write(format!("/etc/pve/try-{worker}-{failed}"), "x"));
            failed += i32::from(made.is_err());
            failed > 2
        });
        victim.works();
        assert!(all, "{worker}: {}", victim.daemon.stderr());
        assert!(victim.daemon.is_running(), "{}", victim.daemon.stderr());
        node.inside(|| {
            assert!(mount_answers());
            fs::write("/etc/pve/after", worker).unwrap();
            assert_eq!(fs::read_to_string("/etc/pve/after").unwrap(), worker);
        });
    }
    victim.fails("rrd");
    assert_eq!(rrd(1), 0);
    let told = || {
        victim
            .daemon
            .stderr()
            .contains("bug: panic in thread 'rrd'")
    };
    assert!(wait_for(LIMIT, told), "{}", victim.daemon.stderr());
    victim.works();
    // The next value starts the thread again.
    let file = node.path("/var/lib/rrdcached/db/pve-node-9.0/node1");
    let written = wait_for(LIMIT, || rrd(2) == 0 && file.exists());
    assert!(written, "{}", victim.daemon.stderr());
    assert!(victim.daemon.is_running());
    assert_eq!(victim.daemon.stop().code, 0);
}

/// The threads that only a node of a cluster has.
#[test]
fn a_dead_thread_of_a_cluster_node() {
    const NODE: usize = 3;
    let who = Assignment::ours();
    let mut cluster = Cluster::without_daemons(&who);
    let node = cluster.node(NODE);
    let daemon = node.dir.join("pmxcfs-with-a-clock-that-fails");
    let line = format!(
        "#!/bin/sh\nexec env {} {} \"$@\"\n",
        environment(&node).join(" "),
        who.subjects[NODE - 1].binary.display()
    );
    fs::write(&daemon, line).unwrap();
    fs::set_permissions(&daemon, fs::Permissions::from_mode(0o755)).unwrap();
    cluster.who.subjects[NODE - 1].binary = daemon;
    cluster.start_all();
    cluster.wait_online();
    for thread in ["core", "corosync"] {
        fails(&node, thread);
        if thread == "corosync" {
            // Something to do for it.
            cluster.kill_corosync(NODE);
        }
        let ended = wait_for(LIMIT, || !cluster.daemon(NODE).is_running());
        assert!(ended, "{thread}: {}", cluster.log(NODE));
        assert_told(thread, &cluster.log(NODE));
        cluster.kill9(NODE);
        fs::remove_file(file(&node)).unwrap();
        cluster.on(1, || fs::write("/etc/pve/meanwhile", thread).unwrap());
        if thread == "corosync" {
            cluster.start_corosync(NODE);
            cluster.wait_corosync();
        }
        cluster.start(NODE);
        cluster.wait_online();
        let read = || cluster.on(NODE, || fs::read_to_string("/etc/pve/meanwhile"));
        assert_eq!(read().unwrap(), thread);
    }
    cluster.finish();
}
