//! A cluster of three nodes with real corosyncs, each node running the binary that an assignment
//! names for it; and the runner for all assignments.
#![allow(dead_code)] // not every test uses everything
use compat_tests::daemon::{Exit, wait_for};
use compat_tests::{Daemon, Lab, Node, Subject, dbfile, index, report};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What joining, synchronising and electing may take on a loaded machine.
pub const SOON: Duration = Duration::from_secs(40);
/// What a change may take to be on the other nodes.
pub const VISIBLE: Duration = Duration::from_secs(5);
/// `--write-timeout` of our nodes.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(8);
/// Between two checksum rounds of our nodes.
pub const VERIFY_EVERY: Duration = Duration::from_secs(5);

/// Which binary runs on which node: `OOO` is ours on all three, `R` the reference.
#[derive(Clone, Debug)]
pub struct Assignment {
    pub name: String,
    pub subjects: Vec<Subject>,
    /// Is this a run by hand that may take its time?
    pub thorough: bool,
}

impl Assignment {
    pub fn ours() -> Self {
        Self {
            name: "OOO".into(),
            subjects: vec![Subject::ours(); 3],
            thorough: false,
        }
    }

    fn named(name: &str, ours: &Subject, reference: &Subject) -> Self {
        let subject = |c| match c {
            'O' => ours.clone(),
            'R' => reference.clone(),
            other => panic!("an assignment has O and R, not {other}"),
        };
        Self {
            name: name.into(),
            subjects: name.chars().map(subject).collect(),
            thorough: true,
        }
    }

    pub fn is_ours(&self, node: usize) -> bool {
        self.subjects[node - 1].is_ours()
    }

    /// Is every node ours?
    pub fn all_ours(&self) -> bool {
        self.subjects.iter().all(Subject::is_ours)
    }

    /// Nodes of ours, counted from 1.
    pub fn our_nodes(&self) -> Vec<usize> {
        (1..=self.subjects.len())
            .filter(|i| self.is_ours(*i))
            .collect()
    }
}

/// Runs a test on every assignment that `PMXCFS_ASSIGNMENTS` (default: all eight) names, and fails
/// at the end with those that failed. Three reference nodes are run for the comparison only.
pub fn matrix(test: &str, run: fn(&Assignment)) {
    let Some(reference) = Subject::reference_or_skip(test) else {
        return;
    };
    let ours = Subject::ours();
    let names = std::env::var("PMXCFS_ASSIGNMENTS")
        .unwrap_or_else(|_| "OOO ROO ORO OOR RRO ROR ORR RRR".into());
    let mut failed = Vec::new();
    for name in names.split_whitespace() {
        let assignment = Assignment::named(name, &ours, &reference);
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| run(&assignment)));
        let seconds = started.elapsed().as_secs();
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        report(&format!("matrix {test} {name} {word} ({seconds} s)"));
        if result.is_err() && assignment.subjects.iter().any(Subject::is_ours) {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{test}: failed on {failed:?}");
}

/// `ours::name` on three of our nodes, `mixed::name` on all assignments with the reference.
#[macro_export]
macro_rules! on_assignments {
    ($($name:ident),* $(,)?) => {
        mod ours {
            $(#[test]
            fn $name() {
                super::$name(&super::cluster::Assignment::ours());
            })*
        }
        mod mixed {
            $(#[test]
            fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                super::cluster::matrix(name, super::$name);
            })*
        }
    };
}

/// What stands at a path: kind, size, mtime and content.
pub type Tree = BTreeMap<String, (bool, u64, i64, Vec<u8>)>;

/// Three nodes with corosync.
pub struct Cluster {
    pub lab: Lab,
    pub who: Assignment,
    daemons: Vec<Option<Daemon>>,
}

impl Cluster {
    /// Nodes with a running corosync and nothing else.
    pub fn without_daemons(who: &Assignment) -> Self {
        let lab = Lab::new(3);
        let cluster = Self {
            lab,
            who: who.clone(),
            daemons: vec![None, None, None],
        };
        for i in 1..=3 {
            cluster.start_corosync(i);
        }
        cluster.wait_corosync();
        cluster
    }

    /// Three daemons, started at the same time, that know each other.
    pub fn new(who: &Assignment) -> Self {
        let mut cluster = Self::without_daemons(who);
        cluster.start_all();
        cluster.wait_online();
        cluster
    }

    pub fn node(&self, i: usize) -> Node {
        self.lab.node(i)
    }

    /// The three corosyncs agree, so that the first daemon finds quorum.
    pub fn wait_corosync(&self) {
        let quorate = |i| {
            let (_, text) = self.node(i).sh("corosync-quorumtool -s");
            text.contains("Quorate:          Yes") && text.contains("Nodes:            3")
        };
        assert!(
            wait_for(SOON, || (1..=3).all(quorate)),
            "corosync is not quorate"
        );
    }

    pub fn start_corosync(&self, i: usize) {
        let (code, text) = self.node(i).sh("corosync");
        assert_eq!(code, 0, "corosync on node {i}: {text}");
    }

    /// SIGKILL, and waits for the end.
    pub fn kill_corosync(&self, i: usize) {
        for pid in self.lab.pids(i, "corosync") {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            // a process that nobody waited for has no memory any more
            let ended = || fs::read(format!("/proc/{pid}/maps")).is_ok_and(|m| !m.is_empty());
            assert!(wait_for(SOON, || !ended()), "corosync of node {i}");
        }
    }

    /// Starts the daemon of a node and returns at once.
    pub fn spawn(&mut self, i: usize) {
        let subject = &self.who.subjects[i - 1];
        let (write, verify) = (
            WRITE_TIMEOUT.as_secs().to_string(),
            VERIFY_EVERY.as_secs().to_string(),
        );
        let mut args = vec!["-f"];
        if subject.is_ours() {
            args.extend(["--write-timeout", &write, "--verify-interval", &verify]);
        }
        self.daemons[i - 1] = Some(Daemon::spawn(&self.lab.node(i), subject, &args));
    }

    /// Starts the daemon of a node and waits for its mount.
    pub fn start(&mut self, i: usize) {
        self.spawn(i);
        self.daemon(i).wait_usable();
    }

    pub fn start_all(&mut self) {
        (1..=3).for_each(|i| self.spawn(i));
        (1..=3).for_each(|i| {
            self.daemon(i).wait_usable();
        });
    }

    pub fn daemon(&mut self, i: usize) -> &mut Daemon {
        self.daemons[i - 1].as_mut().expect("a daemon that runs")
    }

    pub fn log(&mut self, i: usize) -> String {
        self.daemon(i).stderr()
    }

    fn running(&self) -> Vec<usize> {
        (1..=3).filter(|i| self.daemons[*i - 1].is_some()).collect()
    }

    pub fn signal(&mut self, i: usize, signal: Signal) {
        kill(Pid::from_raw(self.daemon(i).pid()), signal).unwrap();
    }

    /// SIGTERM and the end.
    pub fn stop(&mut self, i: usize) -> Exit {
        self.daemons[i - 1].take().expect("a daemon").stop()
    }

    /// SIGTERM, and what an end of ours has to look like.
    pub fn stop_well(&mut self, i: usize) {
        let exit = self.stop(i);
        assert!(!exit.stderr.contains("panicked"), "{}", exit.stderr);
        if self.who.is_ours(i) {
            assert_eq!(exit.code, 0, "node {i}: {}", exit.stderr);
            assert!(exit.took < Duration::from_secs(5), "node {i}: {exit:?}");
        }
    }

    pub fn kill9(&mut self, i: usize) -> Exit {
        self.daemons[i - 1].take().expect("a daemon").kill9()
    }

    pub fn members(&self, i: usize) -> String {
        self.node(i)
            .inside(|| fs::read_to_string("/etc/pve/.members"))
            .unwrap_or_default()
    }

    fn online(&self, i: usize) -> usize {
        self.members(i).matches("\"online\": 1").count()
    }

    /// Every running node sees as many nodes online as run, with quorum, and takes a change.
    pub fn wait_online(&self) {
        let running = self.running();
        let ready = |i: &usize| {
            self.online(*i) == running.len() && self.members(*i).contains("\"quorate\": 1")
        };
        let done = wait_for(SOON, || running.iter().all(ready));
        let seen: Vec<String> = running.iter().map(|i| self.members(*i)).collect();
        assert!(done, "{}: not all online: {seen:#?}", self.who.name);
        for i in running {
            let node = self.node(i);
            let mut last = Ok(());
            let path = format!("/etc/pve/ready{i}");
            let done = wait_for(SOON, || {
                last = node.inside(|| fs::write(&path, b"x").and_then(|()| fs::remove_file(&path)));
                last.is_ok()
            });
            assert!(
                done,
                "{}: node {i} takes no change: {last:?}",
                self.who.name
            );
        }
    }

    /// Runs plain `std::fs` calls on a node.
    pub fn on<T: Send>(&self, i: usize, work: impl FnOnce() -> T + Send) -> T {
        self.node(i).inside(work)
    }

    /// Waits until the databases of all running nodes are equal: by every row, by index and by
    /// checksum. The time it took.
    pub fn equal(&self, limit: Duration) -> Duration {
        let started = Instant::now();
        let running = self.running();
        let mut digests = Vec::new();
        let equal = wait_for(limit, || {
            digests = running
                .iter()
                .map(|i| dbfile::rows(&self.node(*i).database()).map(|r| index::digests(&r)))
                .collect::<Vec<_>>();
            digests.iter().all(|d| d.is_ok() && *d == digests[0])
        });
        let took = started.elapsed();
        let name = &self.who.name;
        assert!(
            equal,
            "{name}: {limit:?} later the nodes differ: {digests:#?}\n{}",
            self.different_rows().join("\n")
        );
        took
    }

    /// Rows that not every running node has, without their data; twenty at most.
    fn different_rows(&self) -> Vec<String> {
        let running = self.running();
        let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for i in &running {
            for r in dbfile::rows(&self.node(*i).database()).unwrap_or_default() {
                let (name, size) = (String::from_utf8_lossy(&r.name), r.data.map(|d| d.len()));
                let row = format!(
                    "inode {} parent {} version {} writer {} mtime {} {name} {size:?}",
                    r.inode, r.parent, r.version, r.writer, r.mtime
                );
                seen.entry(row).or_default().push(*i);
            }
        }
        seen.into_iter()
            .filter(|(_, nodes)| nodes.len() < running.len())
            .map(|(row, nodes)| format!("  only on {nodes:?}: {row}"))
            .take(20)
            .collect()
    }

    /// Everything below `/etc/pve` of a node that is in the database, as its mount shows it.
    pub fn tree(&self, i: usize) -> Tree {
        fn walk(dir: &str, tree: &mut Tree) -> io::Result<()> {
            for entry in fs::read_dir(format!("/etc/pve/{dir}"))? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                let path = if dir.is_empty() {
                    name.clone()
                } else {
                    format!("{dir}/{name}")
                };
                let meta = fs::symlink_metadata(format!("/etc/pve/{path}"))?;
                if meta.is_symlink() || (dir.is_empty() && name.starts_with('.')) {
                    continue;
                }
                let content = if meta.is_file() {
                    fs::read(format!("/etc/pve/{path}"))?
                } else {
                    walk(&path, tree)?;
                    Vec::new()
                };
                tree.insert(path, (meta.is_dir(), meta.len(), meta.mtime(), content));
            }
            Ok(())
        }
        self.on(i, || {
            let mut tree = Tree::new();
            // a name that goes away meanwhile makes the picture incomplete: looked at again
            match walk("", &mut tree) {
                Ok(()) => tree,
                Err(_) => Tree::new(),
            }
        })
    }

    /// Waits until the mounts of all running nodes show the same.
    pub fn same_trees(&self, limit: Duration) -> Tree {
        let running = self.running();
        let mut trees = Vec::new();
        let same = wait_for(limit, || {
            trees = running.iter().map(|i| self.tree(*i)).collect();
            trees.iter().all(|t: &Tree| !t.is_empty() && *t == trees[0])
        });
        let name = &self.who.name;
        let brief: Vec<Vec<_>> = trees
            .iter()
            .map(|t| t.iter().map(|(p, v)| (p, v.0, v.1, v.2)).collect())
            .collect();
        assert!(same, "{name}: the mounts differ: {brief:#?}");
        trees.swap_remove(0)
    }

    /// Orderly end of every node, and equal databases on the disks.
    pub fn finish(mut self) {
        self.equal(VISIBLE);
        let running = self.running();
        let versions: Vec<u64> = running
            .iter()
            .map(|i| {
                self.stop_well(*i);
                let rows = dbfile::rows(&self.node(*i).database()).unwrap();
                let scratch = self.node(*i).dir.join("scratch.db");
                let state = dbfile::integrity(&self.node(*i).database(), &scratch);
                assert_eq!(state, "ok", "node {i}");
                index::digests(&rows).version
            })
            .collect();
        assert!(versions.windows(2).all(|v| v[0] == v[1]), "{versions:?}");
    }
}

/// What a writer did.
#[derive(Debug, Default)]
pub struct Written {
    /// Every file whose write was acknowledged.
    pub acknowledged: BTreeMap<String, Vec<u8>>,
    pub refused: BTreeMap<String, usize>,
    /// The longest time one change took, successful or not.
    pub longest: Duration,
    /// When changes were acknowledged.
    pub times: Vec<Instant>,
}

/// A thread in a node that makes files until it is told to stop, whatever happens to them.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

impl Writer {
    /// Files `/etc/pve/<dir>/f<n>` with their own name as content; `dir` is made as needed.
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
                let path = format!("{dir}/f{n}");
                let content = format!("{path}\n").repeat(1 + n % 50).into_bytes();
                let started = Instant::now();
                let result = write_new(&dir, &format!("f{n}"), &content);
                written.longest = written.longest.max(started.elapsed());
                match result {
                    Ok(()) => {
                        written.times.push(Instant::now());
                        written.acknowledged.insert(path, content);
                    }
                    Err(error) => {
                        *written.refused.entry(error.to_string()).or_default() += 1;
                        std::thread::sleep(Duration::from_millis(5));
                    }
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

/// Works on the mount only: never leaves a file where the next daemon wants to mount.
fn write_new(dir: &str, name: &str, content: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let mount = fs::File::open("/etc/pve")?;
    if !compat_tests::daemon::is_fuse(&mount) {
        return Err(io::Error::other("not mounted"));
    }
    let dir = format!("/proc/self/fd/{}/{dir}", mount.as_raw_fd());
    let _ = fs::create_dir(&dir);
    let mut file = fs::File::create(format!("{dir}/{name}"))?;
    file.write_all(content)?;
    Ok(())
}

/// Files that were acknowledged and are not in the tree with their content.
pub fn lost(tree: &Tree, written: &Written) -> Vec<String> {
    written
        .acknowledged
        .iter()
        .filter(|(path, content)| tree.get(*path).map(|e| &e.3) != Some(content))
        .map(|(path, _)| path.clone())
        .collect()
}
