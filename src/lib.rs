//! `pmxcfs` keeps one small tree of configuration files identical on every node of a Proxmox VE
//! cluster: in memory, in SQLite and under `/etc/pve`.
//!
//! The modules stand in the order in which data flows (`docs/architecture.md`):
//!
//! * [`memdb`] – the tree: operations, paths and their classes, VMID rule, locks, digests. Pure.
//! * [`store`] – `config.db`: schema, load, group commit, repair of what an ordinary client can break.
//! * [`replica`] – the one door through which every change passes, local mode's implementation.
//! * [`corosync`] – safe handles of corosync's client libraries: cpg, quorum, cmap.
//! * [`cluster`] – drives the replicated applications by corosync: threads, queues, reconnecting.
//! * [`dfsm`] – ordered replication: wire messages and the state machine of a group. Pure.
//! * [`dcdb`], [`kvstore`] – the two replicated applications: the tree, the node status. Pure.
//! * [`status`] – members, file versions, guest list, cluster log, guest properties, tokens.
//! * [`rrd`] – round-robin data: key types, schemas, rrdcached client, librrd; own thread.
//! * [`ipc`] – the libqb shared-memory transport and, apart from it, the operations.
//! * [`fs`] – the FUSE view: inodes, links, dot files, permissions, cache rules.
//! * [`durable`] – files that survive a power cut as a whole.
//! * [`daemon`] – start and stop order, lock, pid file, restart flag, signals, logging.
#![deny(unsafe_code)]

mod clock;
pub mod cluster;
pub mod corosync;
pub mod daemon;
pub mod dcdb;
pub mod dfsm;
pub mod durable;
pub mod errno_text;
pub mod failure;
pub mod fs;
pub mod ipc;
pub mod kvstore;
mod le;
mod log_limit;
pub mod memdb;
mod obstacle;
pub mod replica;
pub mod rrd;
pub mod status;
pub mod store;
