//! From arguments to exit code: the order of start and stop (daemon.md 3 and 6).
#![forbid(unsafe_code)]

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::config::{Config, Parsed};
use super::files::{self, Lock};
use super::node::Node;
use super::process::{self, Ready, daemonize};
use super::signals::Terminator;
use super::{StartError, address, config, logging, watchdog};
use crate::errno_text::plain_errno;
use crate::failure;

/// Exit code of every failed start.
const FAILED: i32 = 255;
/// The longest an orderly stop may take, whatever hangs (design rule 3).
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Runs the daemon with the arguments after the program name; returns the exit code.
pub fn run<I, T>(args: I) -> i32
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    let code = run_logged(config::parse(args));
    logging::finish();
    code
}

fn run_logged(arguments: Parsed) -> i32 {
    let config = match arguments {
        Parsed::Run(config) => *config,
        Parsed::Salvage { old, new } => return salvage(&old, &new),
        Parsed::Help(text) => {
            // A closed stdout is the reader's choice.
            let mut stdout = std::io::stdout();
            let _ = stdout
                .write_all(text.as_bytes())
                .and_then(|()| stdout.flush());
            return 0;
        }
        Parsed::Refused { text, code } => {
            logging::init(false);
            tracing::error!(target: "main", "{text}");
            return code;
        }
    };
    logging::init(config.debug);
    failure::install();
    if process::under_systemd() && logging::syslog_listens() {
        // Both would end in the journal, every line twice.
        logging::leave_stderr();
    }
    let prepared = match prepare(&config) {
        Ok(prepared) => prepared,
        Err(Failure { error, locked }) => {
            tracing::error!(target: "main", "{error}");
            if locked {
                exit_line(-1);
            }
            return FAILED;
        }
    };
    match serve(&config, prepared) {
        Ok(()) => {
            exit_line(0);
            0
        }
        Err(error) => {
            tracing::error!(target: "main", "{error}");
            exit_line(-1);
            FAILED
        }
    }
}

/// `--salvage`: the report goes to stdout, why it ends without a result to stderr.
fn salvage(old: &Path, new: &Path) -> i32 {
    match crate::store::salvage(old, new, &mut std::io::stdout().lock()) {
        Ok(()) => 0,
        Err(error) => {
            // A closed stderr is the reader's choice.
            let text = error.to_string();
            let _ = writeln!(std::io::stderr(), "{}", plain_errno(&text));
            FAILED
        }
    }
}

fn exit_line(code: i32) {
    tracing::info!(target: "main", "exit proxmox configuration filesystem ({code})");
}

/// What is known before the fork.
pub struct Prepared {
    pub lock: Lock,
    pub node_name: String,
    pub node_ip: IpAddr,
    pub www_gid: u32,
    /// Pid that the start entry of the cluster log carries: the one before daemonising.
    pub first_pid: u32,
}

struct Failure {
    error: StartError,
    /// From the lock on, a failed start logs the exit line.
    locked: bool,
}

/// Name, address, group, directories, lock.
fn prepare(config: &Config) -> Result<Prepared, Failure> {
    let early = |error| Failure {
        error,
        locked: false,
    };
    files::raise_file_limit().map_err(early)?;
    let (node_name, node_ip) = name_and_address(config).map_err(early)?;
    tracing::info!(
        target: "main",
        "resolved node name '{node_name}' to '{node_ip}' for default node IP address"
    );
    let www_gid = match nix::unistd::Group::from_name("www-data") {
        Ok(Some(group)) => group.gid.as_raw(),
        _ => return Err(early(StartError::Group)),
    };
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
    files::make_directories(config, www_gid);
    let lock = Lock::acquire(&config.lock_file()).map_err(|error| Failure {
        error,
        locked: true,
    })?;
    Ok(Prepared {
        lock,
        node_name,
        node_ip,
        www_gid,
        first_pid: std::process::id(),
    })
}

/// As the options say or, what they leave out, as the host has it.
fn name_and_address(config: &Config) -> Result<(String, IpAddr), StartError> {
    if let Some(name) = &config.node_name {
        let ip = config.node_ip.map_or_else(|| address::resolve(name), Ok)?;
        return Ok((name.clone(), ip));
    }
    let host = address::HostName::read()?;
    let ip = config.node_ip.map_or_else(|| host.resolve(), Ok)?;
    Ok((host.short, ip))
}

/// Forks unless in the foreground, starts everything, waits for the signal, stops everything.
fn serve(config: &Config, prepared: Prepared) -> Result<(), StartError> {
    let ready = if config.foreground {
        Ready::foreground()
    } else {
        daemonize(&config.pid_file)?
    };
    let terminator = Terminator::install().map_err(StartError::Signals)?;
    logging::start_thread().map_err(StartError::thread("log"))?;
    let (www_gid, first_pid) = (prepared.www_gid, prepared.first_pid);
    if config.foreground {
        // Before anybody can reach the service: with the service there is a pid to be found.
        if let Err(err) = files::write_pid_file(&config.pid_file, std::process::id()) {
            files::no_pid_file(&config.pid_file, &err);
        }
    }
    let node = Node::start(config, prepared).inspect_err(|_| {
        files::remove_pid_file(&config.pid_file);
    })?;
    files::remove_restart_flag(&config.restart_flag());
    if let Err(err) = ready.signal() {
        node.stop();
        return Err(StartError::Pipe(err));
    }
    watchdog::start(node.pulse(), first_pid);
    terminator
        .wait(|| node.report())
        .map_err(StartError::Signals)?;
    stop(config, node, www_gid);
    Ok(())
}

fn stop(config: &Config, node: Node, www_gid: u32) {
    let pid_file = config.pid_file.clone();
    // Whatever hangs below (a mount, a disk): the process ends in bounded time. The database needs
    // no clean end, its next opening recovers the WAL.
    let limit = std::thread::Builder::new().name("stop-limit".into()).spawn(move || {
        std::thread::sleep(STOP_LIMIT);
        tracing::error!(target: "main", "stopping takes longer than {STOP_LIMIT:?} - giving up; the next start finds all that was acknowledged");
        files::remove_pid_file(&pid_file);
        logging::finish();
        process::exit_now(FAILED);
    });
    if let Err(err) = limit {
        tracing::warn!(target: "main", "unable to watch over the stop: {err}");
    }
    files::create_restart_flag(&config.restart_flag(), www_gid);
    tracing::info!(target: "main", "teardown filesystem");
    node.stop();
    files::remove_pid_file(&config.pid_file);
}
