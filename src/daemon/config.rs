//! Command line (daemon.md 2) and the paths that follow from it.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::address::is_address;
use crate::fs::NameCache;
use crate::rrd;

/// Everything the daemon is told from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `-d`: debug messages from the start.
    pub debug: bool,
    /// `-f`: stay in the foreground, log to stderr, too.
    pub foreground: bool,
    /// `-l`: local mode even if the database holds a corosync.conf.
    pub local: bool,
    /// Mount point, `/etc/pve`.
    pub mountpoint: PathBuf,
    /// Database, `/var/lib/pve-cluster/config.db`.
    pub database: PathBuf,
    /// Run directory, `/run/pve-cluster`.
    pub runtime_dir: PathBuf,
    /// Pid file: `/run/pve-cluster.pid`, or inside `--runtime-dir` if that was given.
    pub pid_file: PathBuf,
    /// Round-robin files, `/var/lib/rrdcached/db`.
    pub rrd_dir: PathBuf,
    /// Where rrdcached listens, `/var/run/rrdcached.sock`.
    pub rrdcached_socket: PathBuf,
    /// libqb service name, `pve2`.
    pub ipc_name: String,
    /// Node name instead of the host name.
    pub node_name: Option<String>,
    /// Node address instead of resolving the node name.
    pub node_ip: Option<IpAddr>,
    /// Cluster: a change without result after this time is refused with EBUSY.
    pub write_timeout: Duration,
    /// Cluster: time between two comparisons of all databases.
    pub verify_interval: Duration,
    /// How the kernel's names are kept true; `None`: as well as it can.
    pub name_cache: Option<NameCache>,
}

/// What the arguments ask for.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Run the daemon.
    Run(Box<Config>),
    /// Make a new database of what can be read of another one, and end.
    Salvage { old: PathBuf, new: PathBuf },
    /// Print this text on stdout and exit 0.
    Help(String),
    /// Log this text and exit with this code.
    Refused { text: String, code: i32 },
}

const MOUNTPOINT: &str = "/etc/pve";
const DATABASE: &str = "/var/lib/pve-cluster/config.db";
const RUNTIME_DIR: &str = "/run/pve-cluster";
const PID_FILE: &str = "/run/pve-cluster.pid";
const IPC_NAME: &str = "pve2";
const WRITE_TIMEOUT: &str = "30";
/// cluster-protocol.md 7.4
const VERIFY_INTERVAL: &str = "3600";
/// libqb builds file names from the service name; longer ones do not fit its fields.
const IPC_NAME_MAX: usize = 64;

fn path_arg(long: &'static str, help: &'static str, default: &'static str) -> Arg {
    Arg::new(long)
        .long(long)
        .value_name("PATH")
        .help(help)
        .value_parser(value_parser!(PathBuf))
        .default_value(default)
}

fn seconds_arg(long: &'static str, help: &'static str, default: &'static str) -> Arg {
    Arg::new(long)
        .long(long)
        .value_name("S")
        .help(help)
        .value_parser(value_parser!(u32).range(1..))
        .default_value(default)
}

fn node_ip(text: &str) -> Result<IpAddr, String> {
    match text.parse() {
        Ok(ip) if is_address(ip) => Ok(ip),
        Ok(_) => Err("this is not the address of a host".into()),
        Err(err) => Err(format!("{err}")),
    }
}

fn flag(name: &'static str, short: char, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .short(short)
        .help(help)
        .action(ArgAction::SetTrue)
}

fn command() -> Command {
    Command::new("pmxcfs")
        .about("Proxmox Cluster file system daemon")
        .version(env!("CARGO_PKG_VERSION"))
        .arg(flag("debug", 'd', "Turn on debug messages"))
        .arg(flag("foreground", 'f', "Do not daemonize server"))
        .arg(flag(
            "local",
            'l',
            "Force local mode (ignore corosync.conf, force quorum)",
        ))
        .arg(path_arg(
            "mountpoint",
            "Where to mount the file system",
            MOUNTPOINT,
        ))
        .arg(path_arg(
            "database",
            "Database file; the lock file stands beside it",
            DATABASE,
        ))
        .arg(path_arg(
            "runtime-dir",
            "Directory of the restart flag (and pid file)",
            RUNTIME_DIR,
        ))
        .arg(path_arg(
            "rrd-dir",
            "Base directory of the round-robin files",
            rrd::BASE_DIR,
        ))
        .arg(path_arg(
            "rrdcached",
            "Socket of rrdcached",
            rrd::RRDCACHED_SOCKET,
        ))
        .arg(
            Arg::new("ipc-name")
                .long("ipc-name")
                .value_name("NAME")
                .help("Name of the libqb IPC service")
                .default_value(IPC_NAME),
        )
        .arg(
            Arg::new("node-name")
                .long("node-name")
                .value_name("NAME")
                .help("Node name instead of the host name"),
        )
        .arg(
            Arg::new("node-ip")
                .long("node-ip")
                .value_name("ADDRESS")
                .help("Node address instead of resolving the node name")
                .value_parser(node_ip),
        )
        .arg(seconds_arg(
            "write-timeout",
            "Longest wait of a change, in seconds",
            WRITE_TIMEOUT,
        ))
        .arg(seconds_arg(
            "verify-interval",
            "Cluster: time between two checksum rounds, in seconds",
            VERIFY_INTERVAL,
        ))
        .arg(
            Arg::new("name-cache")
                .long("name-cache")
                .value_name("HOW")
                .help(
                    "How cached names follow other nodes: at once (epoch, Linux 6.16), \
                     within a second (lifetime), or the best of both (auto)",
                )
                .value_parser(["auto", "epoch", "lifetime"])
                .hide_possible_values(true)
                .default_value("auto"),
        )
        .arg(
            Arg::new("salvage")
                .long("salvage")
                .num_args(2)
                .value_names(["OLD", "NEW"])
                .help("Save what can be read of OLD as NEW")
                .value_parser(value_parser!(PathBuf)),
        )
}

/// Parses the arguments after the program name.
pub fn parse<I, T>(args: I) -> Parsed
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    let args =
        std::iter::once(std::ffi::OsString::from("pmxcfs")).chain(args.into_iter().map(Into::into));
    match command().try_get_matches_from(args) {
        Ok(matches) => check(&matches),
        Err(err) => refused(&err),
    }
}

/// The texts that the C daemon has for its errors, clap's for those it does not know.
fn refused(err: &clap::Error) -> Parsed {
    use clap::error::{ContextKind, ContextValue};
    let culprit = match err.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(s)) => s.clone(),
        _ => String::new(),
    };
    match err.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Parsed::Help(err.to_string()),
        ErrorKind::UnknownArgument if !culprit.starts_with('-') => Parsed::Refused {
            text: "too many arguments".into(),
            code: 255,
        },
        ErrorKind::UnknownArgument => Parsed::Refused {
            text: format!("option parsing failed: Unknown option {culprit}"),
            code: 1,
        },
        _ => {
            let text = err.to_string();
            let first = text.lines().next().unwrap_or_default();
            let first = first.strip_prefix("error: ").unwrap_or(first);
            Parsed::Refused {
                text: format!("option parsing failed: {first}"),
                code: 1,
            }
        }
    }
}

fn check(matches: &ArgMatches) -> Parsed {
    let path = |name: &str| {
        absolute(
            matches
                .get_one::<PathBuf>(name)
                .cloned()
                .unwrap_or_default(),
        )
    };
    if let Some(mut files) = matches.get_many::<PathBuf>("salvage") {
        if let (Some(old), Some(new)) = (files.next(), files.next()) {
            let (old, new) = (old.clone(), new.clone());
            return Parsed::Salvage { old, new };
        }
    }
    let seconds = |name: &str| {
        let seconds = matches.get_one::<u32>(name).copied().unwrap_or_default();
        Duration::from_secs(u64::from(seconds))
    };
    let runtime_dir = path("runtime-dir");
    let pid_file = match matches.value_source("runtime-dir") {
        Some(clap::parser::ValueSource::CommandLine) => runtime_dir.join("pve-cluster.pid"),
        _ => PathBuf::from(PID_FILE),
    };
    let ipc_name = matches
        .get_one::<String>("ipc-name")
        .cloned()
        .unwrap_or_default();
    if ipc_name.is_empty() || ipc_name.len() > IPC_NAME_MAX || ipc_name.contains(['/', '\0']) {
        return Parsed::Refused {
            text: format!(
                "option parsing failed: --ipc-name '{ipc_name}' must have 1 to {IPC_NAME_MAX} bytes and no '/'"
            ),
            code: 1,
        };
    }
    let node_name = matches.get_one::<String>("node-name").cloned();
    if let Some(name) = &node_name {
        if crate::memdb::path::valid_node_name(name.as_bytes()).is_none() {
            return Parsed::Refused {
                text: format!(
                    "option parsing failed: --node-name '{name}' is not a node name (letters, digits, inner hyphens)"
                ),
                code: 1,
            };
        }
    }
    Parsed::Run(Box::new(Config {
        debug: matches.get_flag("debug"),
        foreground: matches.get_flag("foreground"),
        local: matches.get_flag("local"),
        mountpoint: path("mountpoint"),
        database: path("database"),
        runtime_dir,
        pid_file,
        rrd_dir: path("rrd-dir"),
        rrdcached_socket: path("rrdcached"),
        ipc_name,
        node_name,
        node_ip: matches.get_one::<IpAddr>("node-ip").copied(),
        write_timeout: seconds("write-timeout"),
        verify_interval: seconds("verify-interval"),
        name_cache: match matches.get_one::<String>("name-cache").map(String::as_str) {
            Some("epoch") => Some(NameCache::Epoch),
            Some("lifetime") => Some(NameCache::Lifetime),
            _ => None,
        },
    }))
}

/// Daemonising changes the working directory, so that a relative path would change its meaning.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

impl Config {
    /// Directory of the database: home of the lock file.
    pub fn state_dir(&self) -> &Path {
        self.database.parent().unwrap_or(Path::new("/"))
    }

    /// Single-instance lock.
    pub fn lock_file(&self) -> PathBuf {
        self.state_dir().join(".pmxcfs.lockfile")
    }

    /// Tells clients to wait for the next start instead of failing (ipc-messages.md 1.5).
    pub fn restart_flag(&self) -> PathBuf {
        self.runtime_dir.join("cfs-restart-flag")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Config {
        match parse(args) {
            Parsed::Run(config) => *config,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn without_arguments_the_fixed_paths_apply() {
        let c = config(&[]);
        assert!(!c.debug && !c.foreground && !c.local);
        assert_eq!(c.mountpoint, Path::new("/etc/pve"));
        assert_eq!(c.database, Path::new("/var/lib/pve-cluster/config.db"));
        assert_eq!(
            c.lock_file(),
            Path::new("/var/lib/pve-cluster/.pmxcfs.lockfile")
        );
        assert_eq!(
            c.restart_flag(),
            Path::new("/run/pve-cluster/cfs-restart-flag")
        );
        assert_eq!(c.pid_file, Path::new("/run/pve-cluster.pid"));
        assert_eq!(c.rrd_dir, Path::new("/var/lib/rrdcached/db"));
        assert_eq!(c.rrdcached_socket, Path::new("/var/run/rrdcached.sock"));
        assert_eq!(c.ipc_name, "pve2");
    }

    #[test]
    fn short_options_can_be_joined() {
        let c = config(&["-dfl"]);
        assert!(c.debug && c.foreground && c.local);
    }

    #[test]
    fn a_runtime_dir_takes_the_pid_file_along() {
        let c = config(&["--runtime-dir", "/tmp/r", "--database=/tmp/d/x.db"]);
        assert_eq!(c.pid_file, Path::new("/tmp/r/pve-cluster.pid"));
        assert_eq!(c.lock_file(), Path::new("/tmp/d/.pmxcfs.lockfile"));
    }

    #[test]
    fn errors_have_the_known_texts_and_codes() {
        let refused = |args: &[&str]| match parse(args) {
            Parsed::Refused { text, code } => (text, code),
            other => panic!("{args:?}: {other:?}"),
        };
        assert_eq!(
            refused(&["-x"]),
            ("option parsing failed: Unknown option -x".into(), 1)
        );
        assert_eq!(
            refused(&["--nope"]),
            ("option parsing failed: Unknown option --nope".into(), 1)
        );
        assert_eq!(refused(&["extra"]), ("too many arguments".into(), 255));
        assert_eq!(refused(&["--ipc-name", "a/b"]).1, 1);
        assert_eq!(refused(&["--node-name", "-bad"]).1, 1);
        assert_eq!(refused(&["--node-ip", "nonsense"]).1, 1);
        let (text, code) = refused(&["--node-ip", "0.0.0.0"]);
        assert!(
            code == 1 && text.contains("0.0.0.0") && text.contains("not the address"),
            "{text}"
        );
        assert_eq!(refused(&["--mountpoint"]).1, 1);
        assert_eq!(refused(&["--name-cache", "never"]).1, 1);
    }

    #[test]
    fn the_means_for_names_can_be_chosen() {
        let chosen = |how: &str| config(&["--name-cache", how]).name_cache;
        assert_eq!(config(&[]).name_cache, None);
        assert_eq!(chosen("auto"), None);
        assert_eq!(chosen("epoch"), Some(NameCache::Epoch));
        assert_eq!(chosen("lifetime"), Some(NameCache::Lifetime));
    }

    #[test]
    fn help_names_every_option() {
        let Parsed::Help(text) = parse(["-h"]) else {
            panic!()
        };
        for option in [
            "--debug",
            "--foreground",
            "--local",
            "--mountpoint",
            "--database",
        ] {
            assert!(text.contains(option), "{option} is missing in {text}");
        }
    }
}
