//! Everything that waits for corosync: connecting, joining, leaving, closing, and cmap as a whole.
//!
//! A corosync that is stopped, but not dead, lets such calls hang for as long as it is; the core
//! must go on ending waits and answering. So they have a thread of their own.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::Channel;
use super::inbox::{Inbox, wait};
use super::logs::log;
use super::{Command, GroupName};
use crate::corosync::Error;
use crate::corosync::cmap::Cmap;
use crate::corosync::cpg::{self, Cpg, Event, Member};
use crate::corosync::quorum::Quorum;
use crate::dfsm::Level;
use crate::status::Status;
use crate::status::members::{ClusterInfo, Node};

/// Between two attempts to reach corosync.
const RETRY: Duration = Duration::from_millis(500);
/// Between two questions that were answered with "try again".
const AGAIN: Duration = Duration::from_millis(10);
/// A leave that is not delivered by then is given up; closing the handle ends it, too.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);
/// Tries of joining between two log lines.
const JOIN_TRIES_PER_LINE: u32 = 100;
/// Without anything to do. Nobody waits for that.
const IDLE: Duration = Duration::from_secs(60);

/// Work for the connector.
pub(super) enum Job {
    /// Connect and join; answered by [`Command::Opened`].
    Open {
        group: GroupName,
        generation: u64,
    },
    /// Leave and close; answered by [`Command::Left`].
    Leave {
        group: GroupName,
        generation: u64,
        channel: Box<dyn Channel>,
    },
    /// Close a handle.
    Discard(Box<dyn Send>),
    /// Connect to the quorum service; answered by [`Command::Quorum`] once that works.
    Quorum,
    Stop,
}

/// A failure is logged once in a series.
#[derive(Default)]
struct Series {
    failing: bool,
}

impl Series {
    fn failed(&mut self, domain: &str, call: &str, err: Error) {
        if std::mem::replace(&mut self.failing, true) {
            return;
        }
        let hint = if call.ends_with("initialize") {
            " (failed to connect to corosync)"
        } else {
            ""
        };
        log(
            domain,
            Level::Critical,
            &format!("{call} failed: {err}{hint}"),
        );
        log(domain, Level::Critical, "can't initialize service");
    }

    fn works(&mut self) {
        self.failing = false;
    }
}

struct Joining {
    group: GroupName,
    generation: u64,
    cpg: Cpg,
    tries: u32,
}

/// State of the thread.
pub(super) struct Connector {
    jobs: Arc<Inbox<Job>>,
    core: Arc<Inbox<Command>>,
    status: Arc<Status>,
    joining: Vec<Joining>,
    groups: [Series; 3],
    /// Connected, but tracking has not begun.
    quorum: Option<Quorum>,
    quorum_at: Option<Instant>,
    quorum_series: Series,
    cmap: Option<Cmap>,
    cmap_at: Instant,
    cmap_series: Series,
}

impl Connector {
    pub fn new(jobs: Arc<Inbox<Job>>, core: Arc<Inbox<Command>>, status: Arc<Status>) -> Self {
        Connector {
            jobs,
            core,
            status,
            joining: Vec::new(),
            groups: Default::default(),
            quorum: None,
            quorum_at: None,
            quorum_series: Series::default(),
            cmap: None,
            cmap_at: Instant::now(),
            cmap_series: Series::default(),
        }
    }

    /// Until [`Job::Stop`]. Needs a stack of [`crate::corosync::STACK_SIZE`].
    pub fn run(mut self) {
        let mut jobs = Vec::new();
        loop {
            self.jobs.take(&mut jobs);
            // In this order: whoever is in the group of the status must be a known node.
            if jobs.iter().any(|job| matches!(job, Job::Quorum)) {
                self.quorum_at = Some(Instant::now());
            }
            self.try_quorum();
            self.try_cmap();
            for job in jobs.drain(..) {
                match job {
                    Job::Open { group, generation } => self.open(group, generation),
                    Job::Leave {
                        group,
                        generation,
                        mut channel,
                    } => {
                        channel.leave();
                        drop(channel);
                        self.tell(Command::Left { group, generation });
                    }
                    Job::Discard(handle) => drop(handle),
                    Job::Quorum => {}
                    Job::Stop => return,
                }
            }
            self.try_joins();
            self.sleep();
        }
    }

    fn sleep(&mut self) {
        let now = Instant::now();
        let mut limit = IDLE;
        if !self.joining.is_empty() {
            limit = AGAIN;
        }
        let cmap_at = self.cmap.is_none().then_some(self.cmap_at);
        for at in [self.quorum_at, cmap_at].into_iter().flatten() {
            limit = limit.min(at.saturating_duration_since(now));
        }
        let cmap = self.cmap.as_ref().map(Cmap::fd);
        let [_, changed] = wait([Some(self.jobs.as_fd()), cmap], limit);
        if changed {
            self.dispatch_cmap();
        }
    }

    /// What the core does not take any more, because it has ended, is closed here.
    fn tell(&self, command: Command) {
        drop(self.core.push(command));
    }

    // ---- quorum ----

    fn try_quorum(&mut self) {
        if self.quorum_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.quorum_at = Some(Instant::now() + RETRY);
        if self.quorum.is_none() {
            match Quorum::connect() {
                Ok(quorum) => self.quorum = Some(quorum),
                Err(err) => {
                    return self
                        .quorum_series
                        .failed("quorum", "quorum_initialize", err);
                }
            }
        }
        let Some(mut quorum) = self.quorum.take() else {
            return;
        };
        match quorum.track() {
            Ok(()) => {
                self.quorum_series.works();
                self.quorum_at = None;
                self.tell(Command::Quorum(quorum));
            }
            Err(err) => {
                self.quorum_series
                    .failed("quorum", "quorum_trackstart", err);
                if !err.is_lost() {
                    self.quorum = Some(quorum);
                }
            }
        }
    }

    // ---- cmap ----

    fn try_cmap(&mut self) {
        if self.cmap.is_some() || Instant::now() < self.cmap_at {
            return;
        }
        self.cmap_at = Instant::now() + RETRY;
        let mut cmap = match Cmap::connect() {
            Ok(cmap) => cmap,
            Err(err) => return self.cmap_series.failed("confdb", "cmap_initialize", err),
        };
        if let Err(err) = cmap.track() {
            return self.cmap_series.failed("confdb", "cmap_track_add", err);
        }
        self.cmap_series.works();
        self.read_cmap(&cmap);
        self.cmap = Some(cmap);
    }

    fn dispatch_cmap(&mut self) {
        let Some(mut cmap) = self.cmap.take() else {
            return;
        };
        match cmap.dispatch() {
            Ok(changed) => {
                if changed {
                    self.read_cmap(&cmap);
                }
                self.cmap = Some(cmap);
            }
            Err(err) => {
                log(
                    "confdb",
                    Level::Critical,
                    &format!("cmap_dispatch failed: {err}"),
                );
                self.cmap_at = Instant::now() + RETRY;
            }
        }
    }

    /// A failure leaves the old list: every change is told of again, and a broken connection shows
    /// in the next dispatch.
    fn read_cmap(&self, cmap: &Cmap) {
        let critical = |text: String| log("confdb", Level::Critical, &text);
        let version = cmap.config_version().unwrap_or_else(|err| {
            critical(format!("cmap_get totem.config_version failed {err}"));
            0
        });
        let name = match cmap.cluster_name() {
            Ok(name) => name,
            Err(err) => return critical(format!("cmap_get totem.cluster_name failed {err}")),
        };
        let nodes = match cmap.nodes() {
            Ok(nodes) => nodes,
            Err(err) => return critical(format!("reading nodelist.node. failed {err}")),
        };
        self.status.set_cluster_info(ClusterInfo {
            name,
            // Shown and compared with 32 bits by all nodes.
            config_version: version as u32,
            nodes: nodes
                .into_iter()
                .map(|node| Node {
                    id: node.id,
                    name: node.name,
                })
                .collect(),
        });
    }

    // ---- groups ----

    fn open(&mut self, group: GroupName, generation: u64) {
        self.joining.retain(|joining| joining.group != group);
        match Cpg::connect() {
            Ok(cpg) => self.joining.push(Joining {
                group,
                generation,
                cpg,
                tries: 0,
            }),
            Err(err) => {
                self.groups[group as usize].failed(group.domain(), "cpg_initialize", err);
                self.tell(Command::Opened {
                    group,
                    generation,
                    channel: None,
                });
            }
        }
    }

    fn try_joins(&mut self) {
        let mut waiting = Vec::new();
        for mut joining in std::mem::take(&mut self.joining) {
            let Joining {
                group, generation, ..
            } = joining;
            let series = &mut self.groups[group as usize];
            let name = group.name(joining.cpg.nodeid());
            let channel: Option<Box<dyn Channel>> = match joining.cpg.join(&name) {
                Ok(()) => {
                    series.works();
                    Some(Box::new(joining.cpg))
                }
                Err(Error::TryAgain) => {
                    joining.tries += 1;
                    if joining.tries % JOIN_TRIES_PER_LINE == 0 {
                        let text = format!("cpg_join retry {}", joining.tries);
                        log(group.domain(), Level::Notice, &text);
                    }
                    waiting.push(joining);
                    continue;
                }
                Err(err) => {
                    series.failed(group.domain(), "cpg_join", err);
                    None
                }
            };
            self.tell(Command::Opened {
                group,
                generation,
                channel,
            });
        }
        self.joining = waiting;
    }
}

impl GroupName {
    fn name(self, nodeid: u32) -> cpg::GroupName {
        match self {
            GroupName::Dcdb => cpg::GroupName::DCDB,
            GroupName::Kvstore => cpg::GroupName::KVSTORE,
            GroupName::Rounds => {
                cpg::GroupName::new(format!("pmxcfs_rounds_{nodeid}\0").as_bytes())
            }
        }
    }
}

/// Leaves the group and waits until that is delivered, so that a new handle can join at once.
pub(super) fn leave(cpg: &mut Cpg) {
    let own = Member {
        nodeid: cpg.nodeid(),
        pid: std::process::id(),
    };
    let end = Instant::now() + LEAVE_LIMIT;
    while Instant::now() < end {
        match cpg.leave() {
            Ok(()) => break,
            Err(Error::TryAgain) => std::thread::sleep(AGAIN),
            // The connection is gone, and the membership with it.
            Err(_) => return,
        }
    }
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        wait([Some(cpg.fd())], left);
        let Ok(events) = cpg.dispatch() else { return };
        let gone = |event: &Event| matches!(event, Event::Confchg { members, .. } if !members.contains(&own));
        if events.iter().any(gone) {
            return;
        }
    }
}
