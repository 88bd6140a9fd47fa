//! The watchdog of systemd: told that the daemon lives, and only while its core answers.
//!
//! What counts is what every change and every answer passes: the tree's lock and, in a cluster, the
//! thread that receives everything. A slow disk, corosync or rrdcached is no reason for a restart.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::ClusterReplica;
use crate::replica::SharedTree;

/// Signs of life per watchdog interval.
const SHARE: u32 = 4;

/// Asks the core whether it answers.
#[derive(Clone)]
pub struct Pulse {
    tree: SharedTree,
    core: Option<Arc<ClusterReplica>>,
}

impl Pulse {
    /// `core` is absent in local mode, where changes need no thread.
    pub fn new(tree: SharedTree, core: Option<Arc<ClusterReplica>>) -> Self {
        Pulse { tree, core }
    }

    /// Does the core answer within `limit` (twice that, at worst)?
    pub fn answers(&self, limit: Duration) -> bool {
        // To read: new readers wait behind whoever wants to write, and the core may read for long.
        self.tree.try_read_for(limit).is_some()
            && self.core.as_ref().is_none_or(|core| core.answers(limit))
    }
}

/// Interval that systemd asked this process for (`WATCHDOG_USEC`), if it did. It names the process
/// it started, `first_pid`, which is another one after daemonising.
fn interval(first_pid: u32, variable: impl Fn(&str) -> Option<String>) -> Option<Duration> {
    let usec: u64 = variable("WATCHDOG_USEC")?.parse().ok()?;
    let meant = variable("WATCHDOG_PID").is_none_or(|pid| pid == first_pid.to_string());
    (meant && usec > 0).then(|| Duration::from_micros(usec))
}

/// Starts the thread that gives the signs of life, if systemd wants them. It ends with the process.
pub fn start(pulse: Pulse, first_pid: u32) {
    let Some(interval) = interval(first_pid, |name| std::env::var(name).ok()) else {
        return;
    };
    let pause = interval / SHARE;
    let thread = std::thread::Builder::new()
        .name("watchdog".into())
        .spawn(move || {
            loop {
                let asked = Instant::now();
                if pulse.answers(pause) {
                    // systemd will notice if this is lost.
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                } else {
                    tracing::error!(target: "main", "the core does not answer - no sign of life for the watchdog");
                }
                std::thread::sleep(pause.saturating_sub(asked.elapsed()));
            }
        });
    if let Err(err) = thread {
        tracing::error!(target: "main", "unable to answer the watchdog: {err}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memdb::Tree;
    use parking_lot::RwLock;

    #[test]
    fn only_the_process_that_is_meant_answers() {
        let asked = |usec: &'static str, pid: Option<&'static str>| {
            interval(42, |name| match name {
                "WATCHDOG_USEC" => Some(usec.into()),
                _ => pid.map(String::from),
            })
        };
        assert_eq!(asked("3000000", Some("42")), Some(Duration::from_secs(3)));
        assert_eq!(asked("3000000", None), Some(Duration::from_secs(3)));
        assert_eq!(asked("3000000", Some("43")), None);
        assert_eq!(asked("0", None), None);
        assert_eq!(asked("soon", None), None);
        assert_eq!(interval(42, |_| None), None);
    }

    #[test]
    fn a_tree_that_stays_locked_is_no_life() {
        let tree: SharedTree = Arc::new(RwLock::new(Tree::default()));
        let pulse = Pulse::new(tree.clone(), None);
        assert!(pulse.answers(Duration::from_millis(10)));
        let writing = tree.write();
        assert!(!pulse.answers(Duration::from_millis(10)));
        drop(writing);
        assert!(pulse.answers(Duration::from_millis(10)));
    }

    /// The core holds the tree to read for as long as it builds what a synchronisation needs.
    #[test]
    fn nobody_waits_for_the_probe() {
        let tree: SharedTree = Arc::new(RwLock::new(Tree::default()));
        let pulse = Pulse::new(tree.clone(), None);
        let reading = tree.read();
        let probe = std::thread::spawn(move || pulse.answers(Duration::from_secs(2)));
        while !probe.is_finished() {
            let other = tree.clone();
            let reader =
                std::thread::spawn(move || other.try_read_for(Duration::from_secs(1)).is_some());
            assert!(reader.join().unwrap(), "a reader waits for the probe");
        }
        assert!(probe.join().unwrap(), "a tree that is read is life");
        drop(reading);
    }
}
