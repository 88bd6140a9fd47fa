//! A cluster of three nodes with real corosyncs, each node running the binary that an assignment
//! names for it; and the runner for all assignments.
#![allow(dead_code)] // not every test uses everything
#[path = "writer.rs"]
pub mod writer;

use compat_tests::client::compile_preload;
use compat_tests::daemon::{Exit, wait_for};
use compat_tests::{Daemon, Lab, Node, Subject, dbfile, index, report};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// What joining, synchronising and electing may take on a loaded machine.
pub const SOON: Duration = Duration::from_secs(40);
/// What a change may take to be on the other nodes.
pub const VISIBLE: Duration = Duration::from_secs(5);
/// `--write-timeout` of our nodes: more than the 8 s after which corosync gives a lost node up.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two checksum rounds of our nodes.
pub const VERIFY_EVERY: Duration = Duration::from_secs(3);

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
    matrix_of(test, "OOO ROO ORO OOR RRO ROR ORR RRR", run);
}

/// [`matrix`] with another default.
pub fn matrix_of(test: &str, default: &str, run: fn(&Assignment)) {
    let Some(reference) = Subject::reference_or_skip(test) else {
        return;
    };
    let ours = Subject::ours();
    let names = std::env::var("PMXCFS_ASSIGNMENTS").unwrap_or_else(|_| default.into());
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
        on_assignments!(ours: $($name),*; mixed: $($name),*);
    };
    (ours: $($ours:ident),*; mixed: $($mixed:ident),*) => {
        mod ours {
            $(#[test]
            fn $ours() {
                super::$ours(&super::cluster::Assignment::ours());
            })*
        }
        mod mixed {
            $(#[test]
            fn $mixed() {
                let name = concat!(module_path!(), "::", stringify!($mixed));
                super::cluster::matrix(name, super::$mixed);
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
    /// Reference daemons read how far their clocks are ahead ([`Cluster::shift_clock`]).
    pub shifted_clocks: bool,
    /// More options for our daemons.
    pub options: Vec<String>,
    /// A node of ours whose disk can be made slow ([`Cluster::slow_down_disk`]).
    pub slow_disk: Option<usize>,
    /// `--write-timeout` of our nodes.
    pub write_timeout: Duration,
}

impl Cluster {
    /// Nodes with a running corosync and nothing else.
    pub fn without_daemons(who: &Assignment) -> Self {
        Self::with_totem(who, "")
    }

    /// The same with these lines in the section `totem` of corosync.conf.
    pub fn with_totem(who: &Assignment, lines: &str) -> Self {
        let lab = Lab::new(3);
        let cluster = Self {
            lab,
            who: who.clone(),
            daemons: vec![None, None, None],
            shifted_clocks: false,
            options: Vec::new(),
            slow_disk: None,
            write_timeout: WRITE_TIMEOUT,
        };
        for i in 1..=3 {
            let conf = cluster.node(i).dir.join("etccoro/corosync.conf");
            let text = fs::read_to_string(&conf).unwrap();
            let text = text.replace("  version: 2\n", &format!("  version: 2\n{lines}"));
            fs::write(&conf, text).unwrap();
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
        let (node, subject) = (self.lab.node(i), &self.who.subjects[i - 1]);
        let daemon = if subject.is_ours() {
            let write = self.write_timeout.as_secs().to_string();
            let verify = VERIFY_EVERY.as_secs().to_string();
            let mut args = vec![
                "-f",
                "--write-timeout",
                &write,
                "--verify-interval",
                &verify,
            ];
            args.extend(self.options.iter().map(String::as_str));
            if self.slow_disk == Some(i) {
                let preload = compile_preload("slowdisk");
                let preload = format!("LD_PRELOAD={}", preload.display());
                let slow = format!("SLOW_DISK={}", self.slow_disk_file(i).display());
                let binary = subject.binary.to_string_lossy();
                let mut all = vec![preload.as_str(), &slow, &binary];
                all.append(&mut args);
                let env = Subject {
                    kind: subject.kind,
                    binary: "env".into(),
                };
                Daemon::spawn(&node, &env, &all)
            } else {
                Daemon::spawn(&node, subject, &args)
            }
        } else if self.shifted_clocks {
            let preload = format!("LD_PRELOAD={}", compile_preload("clockshift").display());
            let shift = format!("CLOCK_SHIFT={}", self.clock_file(i).display());
            let env = Subject {
                kind: subject.kind,
                binary: "env".into(),
            };
            let binary = subject.binary.to_string_lossy();
            Daemon::spawn(&node, &env, &[&preload, &shift, &binary, "-f"])
        } else {
            Daemon::spawn(&node, subject, &["-f"])
        };
        self.daemons[i - 1] = Some(daemon);
    }

    fn clock_file(&self, i: usize) -> PathBuf {
        self.lab.node(i).dir.join("clock-shift")
    }

    fn slow_disk_file(&self, i: usize) -> PathBuf {
        self.lab.node(i).dir.join("slow-disk")
    }

    /// From now on each write to the database of a node takes so many milliseconds longer; needs
    /// `slow_disk`.
    pub fn slow_down_disk(&self, i: usize, ms: u32) {
        fs::write(self.slow_disk_file(i), ms.to_string()).unwrap();
    }

    /// Puts the clock of a reference node ahead by so many seconds; needs `shifted_clocks`.
    pub fn shift_clock(&self, i: usize, seconds: u64) {
        fs::write(self.clock_file(i), seconds.to_string()).unwrap();
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

    pub fn log(&self, i: usize) -> String {
        let daemon = self.daemons[i - 1].as_ref();
        daemon.expect("a daemon that runs").stderr()
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
            let took = exit.took;
            assert_eq!(exit.code, 0, "node {i}, {took:?}: {}", exit.stderr);
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
            digests = self.digests(&running);
            digests.iter().all(|d| d.is_ok() && *d == digests[0])
        });
        let took = started.elapsed();
        let name = &self.who.name;
        assert!(
            equal,
            "{name}: {limit:?} later the nodes differ ({}): {digests:#?}\n{}",
            self.keep_databases(),
            self.different_rows().join("\n")
        );
        took
    }

    /// What the databases of these nodes hold, in brief.
    pub fn digests(&self, nodes: &[usize]) -> Vec<Result<index::Digests, rusqlite::Error>> {
        let digests = |i: &usize| {
            let rows = dbfile::rows(&self.node(*i).database())?;
            Ok(index::digests(&rows))
        };
        nodes.iter().map(digests).collect()
    }

    /// Copies databases and logs of all nodes to a folder of `PMXCFS_KEEP`, if that is set.
    pub fn keep_databases(&self) -> String {
        let Some(keep) = std::env::var_os("PMXCFS_KEEP") else {
            return "PMXCFS_KEEP would keep them".into();
        };
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let stamp = since.unwrap_or_default().as_millis();
        let to = Path::new(&keep).join(format!("{}-{stamp}", self.who.name));
        fs::create_dir_all(&to).unwrap();
        for i in 1..=3 {
            let db = to.join(format!("node{i}.db"));
            if self.node(i).database().exists() {
                dbfile::copy_with_log(&self.node(i).database(), &db);
            }
            if self.daemons[i - 1].is_some() {
                fs::write(to.join(format!("node{i}.log")), self.log(i)).unwrap();
            }
        }
        format!("kept in {}", to.display())
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
