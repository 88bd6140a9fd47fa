//! Mounts the FUSE view over an empty tree in memory: `fs_local MOUNTPOINT NODE`. For probing the
//! file system without database and daemon. Line commands on standard input: `counts`, `quorum on`,
//! `quorum off`, `quit`.
#![forbid(unsafe_code)]

#[path = "../tests/fs_support/mod.rs"]
mod fs_support;

use std::io::BufRead;
use std::path::Path;

use pmxcfs::fs::Tuning;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mountpoint, node, options @ ..] = args.as_slice() else {
        eprintln!("usage: fs_local MOUNTPOINT NODE [workers=N]");
        std::process::exit(2);
    };
    let mut tuning = Tuning::default();
    for option in options {
        match option.strip_prefix("workers=").and_then(|n| n.parse().ok()) {
            Some(workers) => tuning.workers = workers,
            None => panic!("unknown option {option}"),
        }
    }
    let mounted = fs_support::Mounted::new(Path::new(mountpoint), node, tuning);
    println!("mounted");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.as_str() {
            "counts" => println!("{}", mounted.served().requests),
            "quorum on" | "quorum off" => {
                mounted.replica.set_quorate(line.ends_with("on"));
                mounted.served().notifier.quorum_changed();
                println!("{line}");
            }
            _ => break,
        }
    }
}
