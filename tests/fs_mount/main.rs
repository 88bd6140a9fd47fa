//! The FUSE view on a real mount (filesystem.md). Needs root and /dev/fuse.
#![allow(clippy::unwrap_used)]

mod dot_files;
#[path = "../fs_support/mod.rs"]
mod fs_support;
mod killed;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fs_support::{GID, Mounted, path};
use pmxcfs::fs::{NameCache, Tuning, mount};
use pmxcfs::memdb::Op;

/// A mount of its own for each test.
struct Fixture {
    mounted: Mounted,
    _dir: tempfile::TempDir,
}

impl std::ops::Deref for Fixture {
    type Target = Mounted;

    fn deref(&self) -> &Mounted {
        &self.mounted
    }
}

fn fixture() -> Fixture {
    tuned(Tuning::default())
}

fn tuned(tuning: Tuning) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(&dir.path().join("mnt"), "node1", tuning);
    // The first request of some kinds only tells the kernel not to send them again.
    fs::create_dir(mounted.file("warm")).unwrap();
    fs::write(mounted.file("warm/up"), "x").unwrap();
    fs::read(mounted.file("warm/up")).unwrap();
    fs::read_dir(mounted.file("warm")).unwrap().count();
    Fixture { mounted, _dir: dir }
}

fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(err) => err.raw_os_error().unwrap(),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn write_at(file: &File, offset: u64, data: &[u8]) {
    assert_eq!(file.write_at(data, offset).unwrap(), data.len());
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn mounts_line_is_that_of_the_c_daemon() {
    let f = fixture();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let path = f.path.to_str().unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(1) == Some(path))
        .unwrap();
    let options = "rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other";
    assert_eq!(line, format!("/dev/fuse {path} fuse {options} 0 0"));
    assert_eq!(fs::metadata(&f.path).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(&f.path).unwrap().ino(), 1);
}

#[test]
fn inode_numbers_are_the_trees_own() {
    let f = fixture();
    fs::write(f.file("a"), "x").unwrap();
    let inode = f.replica.tree.read().lookup(&path("a")).unwrap();
    assert!(inode > 1);
    assert_eq!(fs::metadata(f.file("a")).unwrap().ino(), inode);
    // The very first entry of the tree has inode 1, which is the root of the mount for the kernel.
    assert_eq!(f.replica.tree.read().lookup(&path("warm")), Some(1));
    assert!(fs::metadata(f.file("warm")).unwrap().ino() > 1 << 62);
}

/// What the kernel asks for each operation, once it knows what not to ask at all.
#[test]
fn requests_per_operation() {
    let f = fixture();
    let file = f.file("warm/file");
    // The kernel itself drops the attributes of a directory after each change in it; the next use
    // of the directory asks for them. Not counted as part of that next operation here.
    let settle = || fs::metadata(f.file("warm")).unwrap().len();
    let stat = || assert!(fs::metadata(&file).is_ok());
    let open = || OpenOptions::new().write(true).open(&file).unwrap();

    settle();
    let create = || assert!(File::create_new(&file).is_ok());
    assert_eq!(f.requests(create), "LOOKUP=1 MKNOD=1");
    settle();
    let overwrite = || write_at(&open(), 0, b"abc");
    assert_eq!(f.requests(overwrite), "WRITE=1");
    let truncate = || fs::write(&file, "abcd").unwrap();
    assert_eq!(f.requests(truncate), "SETATTR=1 WRITE=1");
    let largest = || write_at(&open(), 0, &vec![7; 1 << 20]);
    assert_eq!(f.requests(largest), "WRITE=1");

    stat();
    assert_eq!(f.requests(stat), "");
    let read = || assert_eq!(fs::read(&file).unwrap().len(), 1 << 20);
    read();
    assert_eq!(f.requests(read), "");

    fs::write(f.file("warm/tmp"), "new").unwrap();
    settle();
    // The kernel looks the target of a rename up each time.
    let rename = || fs::rename(f.file("warm/tmp"), &file).unwrap();
    assert_eq!(f.requests(rename), "LOOKUP=1 RENAME=1");

    settle();
    let missing = || assert!(fs::metadata(f.file("warm/none")).is_err());
    assert_eq!(f.requests(missing), "LOOKUP=1");
    assert_eq!(f.requests(missing), "");

    // Listing for the first time drops the time of the last access.
    let list = || assert_eq!(names(&f.file("warm")), ["file", "up"]);
    list();
    list();
    assert_eq!(f.requests(list), "");
    assert_eq!(f.served().requests.get("RELEASE"), 0);
    assert!(f.served().requests.get("FLUSH") <= 1);
    println!("requests in all: {}", f.served().requests);
}

#[test]
fn attributes_and_errors() {
    let f = fixture();
    fs::create_dir(f.file("priv")).unwrap();
    fs::write(f.file("priv/key"), "secret").unwrap();
    let meta = fs::metadata(f.file("priv/key")).unwrap();
    assert_eq!((meta.mode(), meta.uid(), meta.gid()), (0o100_600, 0, GID));
    assert_eq!((meta.size(), meta.blocks(), meta.nlink()), (6, 1, 1));
    assert_eq!(fs::metadata(f.file("priv")).unwrap().mode(), 0o040_700);
    let file = f.file("warm/up");
    assert_eq!(errno(fs::hard_link(&file, f.file("l"))), libc::EPERM);
    assert_eq!(
        errno(std::os::unix::fs::symlink("x", f.file("s"))),
        libc::ENOSYS
    );
    let open = OpenOptions::new().write(true).open(&file).unwrap();
    assert_eq!(errno(open.write_at(b"x", 1 << 20)), libc::EFBIG);
    fs::write(f.file("full"), vec![1; 1 << 20]).unwrap();
    let full = OpenOptions::new().write(true).open(f.file("full")).unwrap();
    assert_eq!(errno(full.write_at(b"xx", (1 << 20) - 1)), libc::EFBIG);
    assert_eq!(errno(open.write_at(b"x", (1 << 32) + 2)), libc::EFBIG);
    assert_eq!(errno(open.set_len((1 << 32) + 5)), libc::EFBIG);
    assert_eq!(fs::read(&file).unwrap(), b"x");
    open.set_len(3).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"x\0\0");
    assert_eq!(
        errno(File::create_new(f.file("n".repeat(1025).as_str()))),
        libc::ENAMETOOLONG
    );
    File::create_new(f.file("n".repeat(1024).as_str())).unwrap();
    for name in [".version", "local"] {
        assert_eq!(errno(fs::remove_file(f.file(name))), libc::EACCES);
        assert_eq!(errno(fs::rename(&file, f.file(name))), libc::EACCES);
    }
}

#[test]
fn guest_directory_is_never_made_a_file() {
    let f = fixture();
    fs::create_dir_all(f.file("nodes/node1")).unwrap();
    assert_eq!(
        fs::read_link(f.file("lxc")).unwrap(),
        Path::new("nodes/node1/lxc")
    );
    assert_eq!(errno(fs::write(f.file("lxc"), "oops")), libc::EACCES);
    let onto = f.file("nodes/node1/qemu-server");
    assert_eq!(errno(fs::rename(f.file("warm/up"), onto)), libc::EACCES);
    fs::create_dir(f.file("nodes/node1/lxc")).unwrap();
    fs::write(f.file("lxc/100.conf"), "x").unwrap();
    assert_eq!(names(&f.file("nodes/node1/lxc")), ["100.conf"]);
}

#[test]
fn removed_files_stay_usable_while_open() {
    let f = fixture();
    for replace in [false, true] {
        let name = f.file("warm/gone");
        fs::write(&name, "content").unwrap();
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&name)
            .unwrap();
        if replace {
            fs::write(f.file("warm/new"), "new").unwrap();
            fs::rename(f.file("warm/new"), &name).unwrap();
        } else {
            fs::remove_file(&name).unwrap();
            assert_eq!(names(&f.file("warm")), ["up"]);
        }
        write_at(&open, 7, b"++");
        let mut text = vec![0; 20];
        let count = open.read_at(&mut text, 0).unwrap();
        assert_eq!(&text[..count], b"content++");
        open.set_len(3).unwrap();
        let meta = open.metadata().unwrap();
        assert_eq!((meta.len(), meta.nlink()), (3, 0));
        if replace {
            assert_eq!(fs::read(&name).unwrap(), b"new");
        }
    }
}

#[test]
fn another_nodes_removal_leaves_open_files_alone() {
    let f = fixture();
    let name = f.file("warm/up");
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&name)
        .unwrap();
    let change = f.replica.remote(&Op::Delete {
        path: path("warm/up"),
    });
    f.served().notifier.invalidate(&change);
    assert_eq!(errno(fs::read(&name)), libc::ENOENT);
    let mut text = String::new();
    (&open).read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
    write_at(&open, 0, b"y");
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    assert_eq!(names(&f.file("warm")), [""; 0]);
}

#[test]
fn changes_of_other_nodes_become_visible() {
    let f = fixture();
    let remote = |op: &Op| f.served().notifier.invalidate(&f.replica.remote(op));
    let (up, new, dir) = (f.file("warm/up"), f.file("warm/new"), f.file("warm"));
    assert!(fs::metadata(&new).is_err());
    assert_eq!(names(&dir), ["up"]);

    remote(&Op::Create {
        path: path("warm/new"),
    });
    assert_eq!(fs::read(&new).unwrap(), b"");
    assert_eq!(names(&dir), ["new", "up"]);

    let write = |name: &str, offset, data: &[u8], truncate| Op::Write {
        path: path(name),
        offset,
        data: data.to_vec(),
        truncate,
    };
    remote(&write("warm/new", 0, b"0123456789", false));
    assert_eq!(fs::read(&new).unwrap(), b"0123456789");
    remote(&write("warm/new", 2, b"", true));
    assert_eq!(fs::read(&new).unwrap(), b"01");
    assert_eq!(fs::metadata(&new).unwrap().len(), 2);

    remote(&Op::Rename {
        from: path("warm/new"),
        to: path("warm/up"),
    });
    assert_eq!(fs::read(&up).unwrap(), b"01");
    assert_eq!(errno(fs::metadata(&new)), libc::ENOENT);
    assert_eq!(names(&dir), ["up"]);

    remote(&Op::Mkdir {
        path: path("warm/new"),
    });
    remote(&Op::SetMtime {
        path: path("warm/new"),
        mtime: 77,
    });
    assert_eq!(fs::metadata(&new).unwrap().mtime(), 77);
    // Names that were never looked at, in listings.
    remote(&Op::Create {
        path: path("warm/unseen"),
    });
    assert_eq!(names(&dir), ["new", "unseen", "up"]);
    remote(&Op::Delete {
        path: path("warm/unseen"),
    });
    assert_eq!(names(&dir), ["new", "up"]);
}

/// Without epochs: names follow within a second, new ones and content at once.
#[test]
fn names_that_live_for_a_second() {
    let f = tuned(Tuning {
        names: Some(NameCache::Lifetime),
        ..Tuning::default()
    });
    let remote = |op: &Op| {
        let change = f.replica.remote(op);
        f.served().notifier.invalidate(&change);
    };
    let (up, new) = (f.file("warm/up"), f.file("warm/new"));
    assert_eq!(errno(fs::metadata(&new)), libc::ENOENT);
    remote(&Op::Create {
        path: path("warm/new"),
    });
    assert_eq!(fs::metadata(&new).unwrap().len(), 0);
    for text in [b"one", b"two"] {
        remote(&Op::Write {
            path: path("warm/new"),
            offset: 0,
            data: text.to_vec(),
            truncate: false,
        });
        assert_eq!(fs::read(&new).unwrap(), text);
    }
    remote(&Op::Rename {
        from: path("warm/new"),
        to: path("warm/up"),
    });
    assert_eq!(names(&f.file("warm")), ["up"]);
    wait_until("the old names are forgotten", || {
        fs::read(&up).unwrap() == b"two" && errno(fs::metadata(&new)) == libc::ENOENT
    });
}

/// The kernel takes the attributes of a SETATTR without dropping content of another time.
#[test]
fn content_is_dropped_behind_a_change_of_attributes() {
    for names in [NameCache::Epoch, NameCache::Lifetime] {
        let f = tuned(Tuning {
            names: Some(names),
            ..Tuning::default()
        });
        let up = f.file("warm/up");
        let open = OpenOptions::new().write(true).open(&up).unwrap();
        let remote = |text: &[u8]| {
            let change = f.replica.remote(&Op::Write {
                path: path("warm/up"),
                offset: 0,
                data: text.to_vec(),
                truncate: true,
            });
            f.served().notifier.invalidate(&change);
        };
        remote(b"one");
        assert_eq!(fs::read(&up).unwrap(), b"one");
        remote(b"two");
        open.set_permissions(fs::Permissions::from_mode(0o640))
            .unwrap();
        assert_eq!(fs::read(&up).unwrap(), b"two", "{names:?}");
        remote(b"six");
        open.set_len(3).unwrap();
        assert_eq!(fs::read(&up).unwrap(), b"six", "{names:?}");
    }
}

#[test]
fn quorum_changes_every_mode_at_once() {
    let f = fixture();
    fs::create_dir(f.file("priv")).unwrap();
    let mode = |name: &str| fs::symlink_metadata(f.file(name)).unwrap().mode() & 0o7777;
    let modes = || ["warm", "warm/up", "priv", "local", ".version", ""].map(mode);
    assert_eq!(modes(), [0o755, 0o640, 0o700, 0o755, 0o440, 0o755]);
    f.replica.set_quorate(false);
    f.served().notifier.quorum_changed();
    assert_eq!(modes(), [0o555, 0o440, 0o500, 0o555, 0o440, 0o755]);
    let file = f.file("warm/up");
    let open = OpenOptions::new().write(true).open(&file).unwrap();
    assert_eq!(errno(open.write_at(b"y", 0)), libc::EACCES);
    assert_eq!(errno(open.set_len(0)), libc::EACCES);
    assert_eq!(errno(File::create_new(f.file("warm/n"))), libc::EACCES);
    assert_eq!(errno(fs::create_dir(f.file("warm/d"))), libc::EACCES);
    assert_eq!(errno(fs::remove_file(&file)), libc::EACCES);
    assert_eq!(errno(fs::rename(&file, f.file("warm/x"))), libc::EACCES);
    assert_eq!(fs::read(&file).unwrap(), b"x");
    f.replica.set_quorate(true);
    f.served().notifier.quorum_changed();
    assert_eq!(modes(), [0o755, 0o640, 0o700, 0o755, 0o440, 0o755]);
    fs::write(&file, "again").unwrap();
}

#[test]
fn a_file_that_becomes_public_can_be_read_at_once() {
    let f = fixture();
    fs::create_dir(f.file("priv")).unwrap();
    fs::write(f.file("priv/x"), "x").unwrap();
    fs::rename(f.file("priv/x"), f.file("x")).unwrap();
    let read = std::process::Command::new("setpriv")
        .args(["--reuid=33", "--regid=33", "--clear-groups", "cat"])
        .arg(f.file("x"))
        .output()
        .unwrap();
    assert_eq!(
        read.stdout,
        b"x",
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );
}

#[test]
fn blocked_writers_do_not_delay_readers() {
    let f = fixture();
    for i in 0..100 {
        fs::write(f.file(&format!("warm/f{i}")), "old").unwrap();
    }
    f.replica.hold();
    std::thread::scope(|scope| {
        for i in 0..100 {
            let name = f.file(&format!("warm/f{i}"));
            scope.spawn(move || {
                let file = OpenOptions::new().write(true).open(name).unwrap();
                write_at(&file, 0, b"new");
            });
        }
        wait_until("writers are waiting", || f.replica.waiting() == 100);
        let start = Instant::now();
        assert_eq!(fs::read(f.file("warm/up")).unwrap(), b"x");
        fs::metadata(f.file("warm/never seen")).unwrap_err();
        assert!(names(&f.path).contains(&"warm".to_string()));
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        f.replica.release();
    });
    assert_eq!(fs::read(f.file("warm/f99")).unwrap(), b"new");
}

/// Replacement by rename is atomic: a reader sees the old or the new content, nothing else.
#[test]
fn replacing_is_atomic_for_readers() {
    let f = fixture();
    let name = f.file("warm/file");
    fs::write(&name, vec![b'0'; 5000]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut reads = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let text = fs::read(&name).unwrap();
                        assert_eq!(text.len() % 5000, 0);
                        assert!(!text.is_empty() && text.iter().all(|b| *b == text[0]));
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for i in 0..2000u32 {
            let tmp = f.file("warm/file.tmp");
            fs::write(
                &tmp,
                vec![b'0' + (i % 10) as u8; 5000 * (1 + i as usize % 3)],
            )
            .unwrap();
            fs::rename(&tmp, &name).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    assert_eq!(names(&f.file("warm")), ["file", "up"]);
}

#[test]
fn big_directories_are_listed_completely_while_they_shrink() {
    let f = fixture();
    fs::create_dir(f.file("big")).unwrap();
    for i in 0..1000 {
        File::create_new(f.file(&format!("big/file-with-a-name-{i:04}"))).unwrap();
    }
    assert_eq!(names(&f.file("big")).len(), 1000);
    // Removes what it lists while listing, like rm -r.
    for item in fs::read_dir(f.file("big")).unwrap() {
        fs::remove_file(item.unwrap().path()).unwrap();
    }
    fs::remove_dir(f.file("big")).unwrap();
}

#[test]
fn expired_lock_vanishes_from_the_kernels_names() {
    let f = fixture();
    fs::create_dir_all(f.file("priv/lock/x")).unwrap();
    // Nobody tells the kernel: the names of locks are looked up each time.
    f.replica.remote(&Op::Delete {
        path: path("priv/lock/x"),
    });
    fs::create_dir(f.file("priv/lock/x")).unwrap();
}

#[test]
fn dead_mount_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mnt");
    // A daemon that was killed: its device is closed, the mount point is dead.
    drop(mount::mount(&path).unwrap());
    assert_eq!(errno(fs::metadata(&path)), libc::ENOTCONN);
    drop(Mounted::new(&path, "node1", Tuning::default()));

    // The same while a process has its working directory in it.
    let first = Mounted::new(&path, "node1", Tuning::default());
    let mut sitting = std::process::Command::new("sleep")
        .arg("60")
        .current_dir(&path)
        .spawn()
        .unwrap();
    let second = Mounted::new(&path, "node1", Tuning::default());
    fs::write(second.file("works"), "x").unwrap();
    sitting.kill().unwrap();
    sitting.wait().unwrap();
    drop(second);
    drop(first);

    fs::write(path.join("in the way"), "").unwrap();
    let refused = mount::mount(&path).unwrap_err().to_string();
    assert!(refused.contains("in the way"), "{refused}");
}

#[test]
fn unmounts_while_files_are_open() {
    let f = fixture();
    let name = f.file("warm/up");
    let open = File::open(&name).unwrap();
    mount::unmount(&f.path).unwrap();
    assert!(!name.exists());
    assert_eq!(std::io::read_to_string(&open).unwrap(), "x");
    mount::unmount(&f.path).unwrap();
}
