//! Log lines as the C daemon writes them (daemon.md 7): `[domain] prio: text`, to syslog and,
//! until the daemon has detached (or for ever with `-f`), to stderr.
//!
//! The domain is the `target` of a `tracing` event. Levels: `error!` is crit, `warn!` warning,
//! `info!` notice, `debug!` debug. Every thread of the daemon logs, so a line never waits for
//! syslog ([`Syslog`]).
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_log::NormalizeEvent;

use super::syslog::Syslog;
use crate::errno_text::plain_errno;

/// Longest text of one line in bytes.
const MAX_TEXT: usize = 8192;
const SYSLOG_SOCKET: &str = "/dev/log";
/// Facility daemon (3), shifted as syslog wants it.
const FACILITY: u8 = 3 << 3;
/// Its priority for a warning.
const WARNING: u8 = 4;
/// What the last lines may take at the end.
const LAST_LINES: Duration = Duration::from_millis(500);
/// Domains a line may carry; events of libraries get `main`.
const DOMAINS: [&str; 9] = [
    "main", "database", "dcdb", "status", "ipcs", "loop", "confdb", "quorum", "fuse",
];

static LOGGER: OnceLock<Arc<Logger>> = OnceLock::new();

struct Logger {
    debug: AtomicBool,
    stderr: AtomicBool,
    syslog: Syslog,
}

/// Starts logging; the first call decides. Errors of a second call are harmless (tests).
pub fn init(debug: bool) {
    let logger = Arc::new(Logger {
        debug: AtomicBool::new(debug),
        stderr: AtomicBool::new(true),
        syslog: Syslog::new(Path::new(SYSLOG_SOCKET), lost),
    });
    if LOGGER.set(logger.clone()).is_ok() {
        // Fails only if somebody else installed a subscriber first: then his stays.
        let _ = tracing::subscriber::set_global_default(Front(logger));
        let _ = tracing_log::LogTracer::init_with_filter(log::LevelFilter::Debug);
    }
}

/// Is there somebody to take what goes to syslog?
pub fn syslog_listens() -> bool {
    UnixDatagram::unbound().is_ok_and(|socket| socket.connect(SYSLOG_SOCKET).is_ok())
}

/// Starts the thread that sends what syslog did not take at once. After the last fork.
pub fn start_thread() -> std::io::Result<()> {
    let Some(logger) = LOGGER.get().cloned() else {
        return Ok(());
    };
    let thread = std::thread::Builder::new().name("log".into());
    thread.spawn(move || logger.syslog.run()).map(drop)
}

/// Before the process ends: the last lines.
pub fn finish() {
    if let Some(logger) = LOGGER.get() {
        logger.syslog.finish(LAST_LINES);
    }
}

/// In the parent after a fork: the child has the lines that wait.
pub fn leave_lines_to_child() {
    if let Some(logger) = LOGGER.get() {
        logger.syslog.forget();
    }
}

/// From now on to syslog only: the daemon has detached from its terminal.
pub fn leave_stderr() {
    if let Some(logger) = LOGGER.get() {
        logger.stderr.store(false, Relaxed);
    }
}

/// `.debug`: announces the change on the side where debug mode is on, as the C daemon does.
pub fn set_debug(on: bool) {
    let Some(logger) = LOGGER.get() else { return };
    if logger.debug.load(Relaxed) == on {
        return;
    }
    if !on {
        tracing::info!(target: "main", "disable debug mode");
    }
    logger.debug.store(on, Relaxed);
    tracing::callsite::rebuild_interest_cache();
    if on {
        tracing::info!(target: "main", "enable debug mode");
    }
}

/// Is debug mode on?
pub fn debug() -> bool {
    LOGGER
        .get()
        .is_some_and(|logger| logger.debug.load(Relaxed))
}

impl Logger {
    fn write(&self, level: Level, line: &str) {
        if self.stderr.load(Relaxed) {
            // Nobody to tell if stderr is gone.
            let _ = std::io::stderr()
                .lock()
                .write_all(format!("{line}\n").as_bytes());
        }
        let prio = match level {
            Level::ERROR => 2,
            Level::WARN => WARNING,
            Level::INFO => 5,
            _ => 7,
        };
        self.syslog.send(packet(prio, line));
    }
}

/// A line as syslog wants it.
fn packet(prio: u8, line: &str) -> String {
    format!(
        "<{}>pmxcfs[{}]: {line}",
        FACILITY | prio,
        std::process::id()
    )
}

fn lost(lines: u64) -> String {
    let text = format!(
        "[main] warning: {lines} log lines lost here: syslog took none, and no more could wait"
    );
    packet(WARNING, &text)
}

/// The `tracing` side: no spans, events only.
struct Front(Arc<Logger>);

impl Subscriber for Front {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.level()))
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        // Events of the `log` crate carry their true target in fields.
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        if *metadata.level() > self.level() {
            return;
        }
        let domain = DOMAINS.iter().copied().find(|d| *d == metadata.target());
        let level = match *metadata.level() {
            // What a library calls an error is not yet a failure of the daemon.
            Level::ERROR if domain.is_none() => Level::WARN,
            level => level,
        };
        let library = if metadata.target().starts_with("fuser") {
            "fuse"
        } else {
            "main"
        };
        let domain = domain.unwrap_or(library);
        let mut text = Text::default();
        event.record(&mut text);
        let mut line = format!("[{domain}] {}: ", prio_name(level));
        push_ascii(&mut line, &plain_errno(&text.0));
        if self.0.debug.load(Relaxed) {
            let file = metadata.file().unwrap_or("?");
            let at = metadata.module_path().unwrap_or("?");
            let _ = write!(line, " ({file}:{}:{at})", metadata.line().unwrap_or(0));
        }
        self.0.write(level, &line);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl Front {
    fn level(&self) -> Level {
        if self.0.debug.load(Relaxed) {
            Level::DEBUG
        } else {
            Level::INFO
        }
    }
}

fn prio_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "crit",
        Level::WARN => "warning",
        Level::INFO => "notice",
        _ => "debug",
    }
}

/// Collects the message of an event, then its fields as `name=value`.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name if name.starts_with("log.") => Ok(()),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

/// Appends `text` as printable ASCII: control characters become `#` and three digits, other
/// characters `\uXXXX` (status.md 10.3, without the quotes); at most [`MAX_TEXT`] bytes.
fn push_ascii(line: &mut String, text: &str) {
    let end = line.len() + MAX_TEXT;
    for c in text.chars() {
        if line.len() + 6 > end {
            break;
        }
        let _ = match u32::from(c) {
            code if code < 32 || code == 127 => write!(line, "#{code:03}"),
            code if code < 127 => write!(line, "{c}"),
            code if code < 65536 => write!(line, "\\u{code:04x}"),
            _ => Ok(()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ascii(text: &str) -> String {
        let mut out = String::new();
        push_ascii(&mut out, text);
        out
    }

    #[test]
    fn lines_are_plain_ascii() {
        assert_eq!(ascii("a\nb\t\u{7f}"), "a#010b#009#127");
        assert_eq!(ascii("Bücher \"x\" \\"), "B\\u00fccher \"x\" \\");
        assert_eq!(ascii("🦀!"), "!");
    }

    #[test]
    fn a_line_has_an_end() {
        let long = ascii(&"ä".repeat(5000));
        assert!(long.len() <= MAX_TEXT && long.len() > MAX_TEXT - 6);
    }
}
