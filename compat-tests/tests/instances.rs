//! The long options: two daemons side by side in one node, apart in everything.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::client::ROOT;
use compat_tests::daemon::wait_for;
use compat_tests::{Client, Daemon, Lab, Subject, report};
use std::fs;
use std::time::Duration;

/// The reference has no such options, so this runs on the binary under test only.
#[test]
fn side_by_side() {
    let subject = Subject::ours();
    let (_lab, node) = Lab::single();
    let base = node.dir.join("side").to_str().unwrap().to_string();
    let mut first = Daemon::spawn(&node, &subject, &["-f", "-l"]);
    first.wait_usable();
    for i in [1, 2] {
        for sub in ["mnt", "db", "run"] {
            fs::create_dir_all(format!("{base}{i}/{sub}")).unwrap();
        }
    }
    let options = |i: u32| {
        [
            "-f".to_string(),
            "-l".to_string(),
            format!("--mountpoint={base}{i}/mnt"),
            format!("--database={base}{i}/db/config.db"),
            format!("--runtime-dir={base}{i}/run"),
            format!("--ipc-name=side{i}"),
            format!("--node-name=other{i}"),
            format!("--node-ip=192.0.2.{i}"),
        ]
    };
    let mut daemons = Vec::new();
    for i in [1, 2] {
        let options = options(i);
        let arguments: Vec<&str> = options.iter().map(String::as_str).collect();
        let daemon = Daemon::spawn(&node, &subject, &arguments);
        let usable = wait_for(Duration::from_secs(10), || {
            node.ipc_listens(&format!("side{i}"))
                && node.inside(|| fs::metadata(format!("{base}{i}/mnt/.version")).is_ok())
        });
        assert!(usable, "instance {i}: {}", daemon.stderr());
        daemons.push(daemon);
    }
    node.inside(|| {
        fs::write("/etc/pve/storage.cfg", "zero").unwrap();
        for i in [1, 2] {
            fs::write(
                format!("{base}{i}/mnt/storage.cfg"),
                format!("instance {i}"),
            )
            .unwrap();
        }
        assert_eq!(fs::read_to_string("/etc/pve/storage.cfg").unwrap(), "zero");
    });
    let client = Client::new(&node, ROOT);
    for i in [1, 2] {
        let content = node.inside(|| fs::read_to_string(format!("{base}{i}/mnt/storage.cfg")));
        assert_eq!(content.unwrap(), format!("instance {i}"));
        let link = node
            .inside(|| fs::read_link(format!("{base}{i}/mnt/local")))
            .unwrap();
        assert_eq!(link.to_str(), Some(format!("nodes/other{i}").as_str()));
        let mut command = client.command();
        let out = command
            .args(["-s", &format!("side{i}"), "2"])
            .output()
            .unwrap();
        let answer = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            answer.contains(&format!("\"nodename\": \"other{i}\"")),
            "{answer}"
        );
    }
    for (i, daemon) in (1..).zip(daemons) {
        let exit = daemon.stop();
        assert_eq!(exit.code, 0, "instance {i}: {exit:?}");
        assert!(fs::metadata(format!("{base}{i}/db/config.db")).is_ok());
    }
    let alive = node.inside(|| fs::read_to_string("/etc/pve/storage.cfg"));
    assert_eq!(
        alive.unwrap(),
        "zero",
        "the others' end is nothing to the first"
    );
    assert_eq!(first.stop().code, 0);
    report("instances [ours]: three daemons side by side in one node, apart in everything");
}
