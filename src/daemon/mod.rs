//! The process: start and stop order, lock, pid file, restart flag, signals, logging
//! (spec: `docs/protocol/daemon.md`).

pub mod address;
pub mod config;
pub mod dots;
pub mod files;
mod holder;
pub mod logging;
pub mod node;
pub mod process;
pub mod replication;
pub mod run;
pub mod signals;
mod syslog;
pub mod watchdog;

pub use config::Config;
pub use run::run;

/// Why the daemon could not start. The text is what the admin sees, after `[main] crit: `.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("Unable to read local node name - the host name is '{0}': set it (hostnamectl)")]
    NodeName(String),
    #[error(
        "Unable to resolve node name '{name}' to a non-loopback IP address - missing entry in '/etc/hosts' or DNS? ({found})"
    )]
    Resolve { name: String, found: String },
    #[error("Unable to get www-data group ID - there is no group www-data (getent group www-data)")]
    Group,
    #[error(
        "this process may open {limit} files only and needs {needed}: raise the limit (LimitNOFILE= in the unit, 'ulimit -n' in a shell)"
    )]
    FileLimit { limit: u64, needed: u64 },
    #[error("unable to create lock '{path}': {source}{obstacle}")]
    LockCreate {
        path: String,
        source: std::io::Error,
        obstacle: String,
    },
    #[error("unable to acquire pmxcfs lock: {source}{holder}")]
    Lock {
        source: std::io::Error,
        holder: String,
    },
    #[error("memdb_open failed - unable to open database '{0}'")]
    Database(String),
    #[error(
        "memdb_write failed - unable to import corosync.conf: '{file}' into '{database}': {reason}"
    )]
    Import {
        file: &'static str,
        database: String,
        reason: String,
    },
    #[error("fuse_mount error: {0}")]
    Mount(String),
    #[error("failed to start the file system threads: {0}")]
    Fuse(std::io::Error),
    #[error("qb_ipcs_create failed: {0}")]
    Ipc(std::io::Error),
    #[error(
        "unable to start thread '{name}': {source} - see the limits of tasks and memory of this process (TasksMax=, MemoryMax= in the unit, 'ulimit -u' in a shell)"
    )]
    Thread {
        name: &'static str,
        source: std::io::Error,
    },
    #[error("pipe error: {0}")]
    Pipe(std::io::Error),
    #[error(
        "failed to daemonize program - {0} - see the limits of tasks and memory of this process ('ulimit -u', free)"
    )]
    Fork(std::io::Error),
    #[error("unable to handle signals: {0}")]
    Signals(std::io::Error),
}

impl StartError {
    /// Makes the error of the thread `name` of what the system says.
    fn thread(name: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| StartError::Thread { name, source }
    }
}
