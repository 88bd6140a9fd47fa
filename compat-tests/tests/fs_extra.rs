//! What the probe cannot show: shared mappings that write, files that are open and removed when the
//! daemon is killed, writes that end beyond 1 MiB, memory over many changes.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::client::ROOT;
use compat_tests::daemon::proc_value;
use compat_tests::{Checker, Client, Daemon, Lab, Subject, on_both, report};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

on_both!(
    shared_mapping,
    open_and_removed,
    beyond_the_largest_size,
    depth,
    memory_over_many_changes
);

/// Changes through a shared mapping arrive in the tree, so that IPC shows them.
fn shared_mapping(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    node.inside(|| fs::write("/etc/pve/mapped", "k".repeat(6000)).unwrap());
    let script = "import mmap, os\nfd = os.open('/etc/pve/mapped', os.O_RDWR)\n\
                  try:\n    m = mmap.mmap(fd, 6000)\n    m[5000:5005] = b'HELLO'\n    m.flush()\n    print('ok')\n\
                  except OSError as e: print(e.strerror)\n";
    let out = node
        .command("python3")
        .args(["-c", script])
        .output()
        .unwrap();
    let mut checker = Checker::new(subject, "fs-extra");
    checker.must("mapped write", "ok", &String::from_utf8_lossy(&out.stdout));
    let reply = Client::new(&node, ROOT).config("mapped");
    let part = String::from_utf8_lossy(&reply.payload()[4998..5007]).into_owned();
    checker.must("mapped write seen by GET_CONFIG", "kkHELLOkk", &part);
    checker.finish();
    drop(daemon);
}

/// A write that ends beyond 1 MiB, with its first page in the page cache and without.
fn beyond_the_largest_size(subject: &Subject) {
    const MIB: u64 = 1 << 20;
    const SIZE: u64 = MIB - 50_000;
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let mut checker = Checker::new(subject, "fs-limit");
    for cached in [true, false] {
        let result = node.inside(|| {
            let path = "/etc/pve/large";
            fs::write(path, vec![b'a'; SIZE as usize]).unwrap();
            let file = File::options().read(true).write(true).open(path).unwrap();
            // the file from one end to the other, or no page of it
            if cached {
                let mut all = vec![0; SIZE as usize];
                file.read_exact_at(&mut all, 0).unwrap();
            } else {
                let drop = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                posix_fadvise(&file, 0, 0, drop).unwrap();
            }
            let written = match file.write_at(&vec![b'b'; 100_000], SIZE - 1) {
                Ok(length) => format!("{length} written"),
                Err(err) => format!("errno {}", err.raw_os_error().unwrap()),
            };
            // whoever goes on with the rest gets the error
            let rest = file.write_at(&vec![b'b'; 90_000], SIZE + 848);
            let rest = rest.map_or_else(|err| err.raw_os_error().unwrap(), |_| 0);
            format!(
                "{written}, then errno {rest}, size {}",
                file.metadata().unwrap().len()
            )
        });
        let case = format!("write across 1 MiB, first page cached: {cached}");
        let want = format!("errno {0}, then errno {0}, size {SIZE}", nix::libc::EFBIG);
        checker.must(&case, &want, &result);
    }
    checker.finish();
    daemon.stop();
}

/// Nothing of a removed or replaced file that was still open is found after a kill.
fn open_and_removed(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let handles = node.inside(|| {
        for name in ["removed", "replaced", "new"] {
            fs::write(format!("/etc/pve/{name}"), name).unwrap();
        }
        let handles = ["removed", "replaced"].map(|n| File::open(format!("/etc/pve/{n}")).unwrap());
        fs::remove_file("/etc/pve/removed").unwrap();
        fs::rename("/etc/pve/new", "/etc/pve/replaced").unwrap();
        handles
    });
    let mut checker = Checker::new(subject, "fs-open-removed");
    for (name, handle) in ["removed", "replaced"].iter().zip(&handles) {
        let mut buffer = [0; 100];
        let read = handle.read_at(&mut buffer, 0).map(|n| buffer[..n].to_vec());
        let read = read.map_or_else(|e| e.to_string(), |b| String::from_utf8(b).unwrap());
        checker.must(&format!("{name}: handle"), name, &read);
    }
    daemon.kill9();
    drop(handles);
    let daemon = Daemon::local(&node, subject);
    let mut names = node.inside(|| {
        fs::read_dir("/etc/pve")
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .map(|n| {
                if n.starts_with(".fuse_hidden") {
                    ".fuse_hidden*".to_string()
                } else {
                    n
                }
            })
            .filter(|n| n.ends_with("ed") || n == "new" || n.starts_with(".fuse"))
            .collect::<Vec<_>>()
    });
    names.sort();
    checker.must("names after the restart", "replaced", &names.join(" "));
    let content = node.inside(|| fs::read_to_string("/etc/pve/replaced").unwrap());
    checker.must("content after the restart", "new", &content);
    checker.finish();
    drop(daemon);
}

/// How deep clients may make directories, files and what they rename.
fn depth(subject: &Subject) {
    const ALLOWED: usize = 128;
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let mut checker = Checker::new(subject, "fs-depth");
    let deep = |levels: usize| format!("/etc/pve/{}", "d/".repeat(levels));
    let mut seen = |case: &str, result: std::io::Result<()>| {
        let word = result.map_or_else(|e| format!("{:?}", e.kind()), |()| "ok".into());
        checker.must(case, "ok", &word);
    };
    node.inside(|| {
        seen("128 directories", fs::create_dir_all(deep(ALLOWED)));
        let beside = format!("{}file", deep(ALLOWED - 1));
        seen("a file below 127", fs::write(&beside, "x"));
        let below = format!("{}file", deep(ALLOWED));
        seen("a file below 128", fs::write(&below, "x"));
        let _ = fs::remove_file(&below);
        seen("rename below 128", fs::rename(&beside, &below));
        seen("129 directories", fs::create_dir(deep(ALLOWED + 1)));
    });
    checker.finish();
    drop(daemon);
}

/// Memory and file descriptors do not grow with the number of changes.
fn memory_over_many_changes(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let changes = |count: usize| {
        node.inside(|| {
            for i in 0..count {
                let name = format!("/etc/pve/m{}", i % 50);
                fs::write(format!("{name}.tmp"), vec![b'm'; 2000]).unwrap();
                let open = File::open(format!("{name}.tmp")).unwrap();
                fs::rename(format!("{name}.tmp"), &name).unwrap();
                if i % 7 == 0 {
                    fs::remove_file(&name).unwrap();
                    assert!(fs::metadata(&name).is_err());
                }
                let _ = fs::read("/etc/pve/.version").unwrap();
                drop(open);
            }
        });
    };
    let state = || {
        let resident = proc_value(daemon.pid(), "status", "VmRSS").unwrap();
        (
            resident,
            fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
                .unwrap()
                .count(),
        )
    };
    changes(2000);
    let before = state();
    changes(8000);
    let after = state();
    report(&format!(
        "memory [{}]: {} kB and {} descriptors after 2,000 replacements, {} kB and {} after 10,000",
        subject.name(),
        before.0,
        before.1,
        after.0,
        after.1
    ));
    if subject.is_ours() {
        assert!(
            after.0 < before.0 + 2048,
            "resident memory grows with the number of changes"
        );
        assert!(after.1 <= before.1 + 2, "file descriptors leak");
    }
}
