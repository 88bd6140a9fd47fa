//! What goes on in a node while something happens to the cluster: a thread that changes files and
//! a thread that reads, both with the longest time of every kind of operation.
use compat_tests::daemon::wait_for;
use compat_tests::{Node, report};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Cluster, Tree, VISIBLE, WRITE_TIMEOUT};

/// The longest time of each kind of operation, successful or not.
pub type Longest = BTreeMap<&'static str, Duration>;

fn timed<T>(longest: &mut Longest, kind: &'static str, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    let slot = longest.entry(kind).or_default();
    *slot = started.elapsed().max(*slot);
    result
}

/// What a writer did.
#[derive(Debug, Default)]
pub struct Written {
    /// Every file whose last change was acknowledged, with its content.
    pub acknowledged: BTreeMap<String, Vec<u8>>,
    /// Every file whose removal was acknowledged.
    pub removed: Vec<String>,
    pub refused: BTreeMap<String, usize>,
    pub longest: Longest,
}

impl Written {
    /// The slowest operation.
    pub fn slowest(&self) -> (&'static str, Duration) {
        let slowest = self.longest.iter().max_by_key(|(_, took)| **took);
        slowest.map_or(("nothing", Duration::ZERO), |(kind, took)| (*kind, *took))
    }
}

/// A thread in a node that changes files until it is told to stop, whatever happens to them.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

impl Writer {
    /// Files `/etc/pve/<dir>/f<n>`: made, made beside and moved into place, made and overwritten,
    /// made and touched; an older one is removed now and then. `dir` is made as needed.
    pub fn start(node: &Node, dir: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (node, dir, told) = (node.clone(), dir.to_string(), stop.clone());
        let thread = std::thread::spawn(move || {
            node.enter();
            let mut written = Written::default();
            for n in 0.. {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                let done = write_one(&mut written, &dir, n);
                if let Err(error) = done {
                    *written.refused.entry(error.to_string()).or_default() += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            written
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a writer does not panic")
    }
}

/// The mount as it is now: what goes on through this handle never leaves a file where the next
/// daemon wants to mount.
fn mounted() -> io::Result<(File, PathBuf)> {
    let mount = File::open("/etc/pve")?;
    if !compat_tests::daemon::is_fuse(&mount) {
        return Err(io::Error::other("not mounted"));
    }
    let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    Ok((mount, root))
}

/// One file in one of the ways there are. Only when every step was acknowledged it counts.
fn write_one(written: &mut Written, dir: &str, n: usize) -> io::Result<()> {
    let (_mount, root) = mounted()?;
    let path = |name: &str| root.join(dir).join(name);
    let log = &mut written.longest;
    if !timed(log, "look up", || root.join(dir).exists()) {
        timed(log, "mkdir", || fs::create_dir(root.join(dir)))?;
    }
    let name = format!("f{n}");
    let first = if n % 4 == 1 {
        "beside".into()
    } else {
        name.clone()
    };
    let mut content = format!("{dir}/{name}\n").repeat(1 + n % 50).into_bytes();
    let mut file = timed(log, "create", || File::create(path(&first)))?;
    timed(log, "write", || file.write_all(&content))?;
    match n % 4 {
        1 => timed(log, "rename", || fs::rename(path(&first), path(&name)))?,
        2 => {
            let mut open = OpenOptions::new();
            open.write(true).truncate(true);
            let mut file = timed(log, "truncate", || open.open(path(&name)))?;
            content = format!("{dir}/{name} again\n").into_bytes();
            timed(log, "write", || file.write_all(&content))?;
        }
        3 => {
            let time = TimeSpec::new(1_000_000 + n as i64, 0);
            let follow = UtimensatFlags::FollowSymlink;
            let at = nix::fcntl::AT_FDCWD;
            timed(log, "touch", || {
                utimensat(at, &path(&name), &time, &time, follow)
            })?;
        }
        _ => {}
    }
    written
        .acknowledged
        .insert(format!("{dir}/{name}"), content);
    if n % 8 == 7 {
        let old = format!("{dir}/f{}", n - 5);
        // without an answer it may be there or not
        if written.acknowledged.remove(&old).is_some() {
            timed(&mut written.longest, "remove", || {
                fs::remove_file(root.join(&old))
            })?;
            written.removed.push(old);
        }
    }
    Ok(())
}

/// Acknowledged changes that the tree does not show: files that are missing or have another
/// content, files that were removed.
fn lost(tree: &Tree, written: &Written) -> Vec<String> {
    let changed = written
        .acknowledged
        .iter()
        .filter(|(path, content)| tree.get(*path).map(|e| &e.3) != Some(content))
        .map(|(path, _)| path.clone());
    let removed = written.removed.iter().filter(|p| tree.contains_key(*p));
    changed.chain(removed.cloned()).collect()
}

/// Writers on all nodes, each in a directory of its own; the next ones change the same files, which
/// the kernels of all nodes have in their caches then.
pub fn writers(cluster: &Cluster) -> Vec<Writer> {
    (1..=3)
        .map(|i| Writer::start(&cluster.node(i), &format!("writer{i}")))
        .collect()
}

/// Readers on all nodes.
pub fn readers(cluster: &Cluster) -> Vec<(usize, Reader)> {
    cluster
        .on(1, || fs::create_dir_all("/etc/pve/nodes"))
        .unwrap();
    let there = |i| cluster.on(i, || fs::exists("/etc/pve/nodes").unwrap());
    assert!(wait_for(VISIBLE, || (1..=3).all(there)));
    (1..=3)
        .map(|i| (i, Reader::start(&cluster.node(i))))
        .collect()
}

/// What a loaded machine may add to the bound of an operation.
const SLACK: Duration = Duration::from_secs(2);
/// Reads wait for nobody, but a machine with two cores may not run for a moment. Below the shortest
/// time for which a write is blocked where readers watch.
const READ_LIMIT: Duration = Duration::from_millis(2500);

/// Nothing acknowledged is lost, on any node; no operation of ours took longer than its bound.
pub fn check(cluster: &Cluster, round: &str, written: &[Written]) {
    let name = &cluster.who.name;
    let tree = cluster.same_trees(VISIBLE);
    for (i, w) in (1..).zip(written) {
        report(&format!(
            "cluster-wait {name} {round} node {i}: {} acknowledged, refused {:?}, slowest {:?}",
            w.acknowledged.len(),
            w.refused,
            w.slowest()
        ));
        let missing = lost(&tree, w);
        assert_eq!(missing, [""; 0], "{name}: {round}: written on node {i}");
        if cluster.who.is_ours(i) {
            let slowest = w.slowest().1;
            assert!(
                slowest < WRITE_TIMEOUT + SLACK,
                "{name}: {round}: node {i}: {:?}",
                w.longest
            );
        }
    }
}

/// Readers were served all the time, on our nodes within the limit.
pub fn check_reads(cluster: &Cluster, round: &str, readers: Vec<(usize, Reader)>) {
    let name = &cluster.who.name;
    for (i, reader) in readers {
        let (rounds, longest) = reader.stop();
        let slowest = longest.values().max().copied().unwrap_or_default();
        report(&format!(
            "cluster-read {name} {round} node {i}: {rounds} rounds, slowest {slowest:?}"
        ));
        assert!(rounds > 3, "{name}: {round}: node {i}: {rounds} rounds");
        if cluster.who.is_ours(i) {
            assert!(
                slowest < READ_LIMIT,
                "{name}: {round}: node {i}: {longest:?}"
            );
        }
    }
}

/// A thread in a node that reads what the kernel has to ask for and what it has in its caches,
/// names that are not there included.
pub struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Longest)>,
}

impl Reader {
    pub fn start(node: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (node, told) = (node.clone(), stop.clone());
        let others: Vec<String> = (1..=3)
            .filter(|i| *i != node.index)
            .map(|i| format!("writer{i}"))
            .collect();
        let thread = std::thread::spawn(move || {
            node.enter();
            let (mut rounds, mut longest) = (0, Longest::new());
            while !told.load(Ordering::Relaxed) {
                if read_round(&mut longest, &others, rounds).is_ok() {
                    rounds += 1;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            (rounds, longest)
        });
        Self { stop, thread }
    }

    /// How many rounds were read without an error, and the longest time of each kind.
    pub fn stop(self) -> (usize, Longest) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a reader does not panic")
    }
}

/// The directory that is changed in this node is left alone: there the kernel makes a reader wait
/// for a change under way. Those of the others may change under the reader.
fn read_round(longest: &mut Longest, others: &[String], round: usize) -> io::Result<()> {
    let (_mount, root) = mounted()?;
    timed(longest, "read a file", || {
        fs::read(root.join("corosync.conf"))
    })?;
    timed(longest, "read .version", || fs::read(root.join(".version")))?;
    timed(longest, "read .members", || fs::read(root.join(".members")))?;
    timed(longest, "list", || {
        fs::read_dir(root.join("nodes")).map(|list| list.for_each(drop))
    })?;
    for dir in others {
        let path = root.join(dir).join(format!("f{}", round % 40));
        timed(longest, "read another's file", || fs::read(path).is_ok());
    }
    timed(longest, "stat", || fs::metadata(root.join("nodes")))?;
    timed(longest, "miss", || {
        let absent = root.join(format!("nodes/absent-{}", round % 20));
        fs::symlink_metadata(absent).is_err()
    });
    Ok(())
}
