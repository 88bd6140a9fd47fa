//! Brings updates to the files: makes the file if there is none, then rrdcached, else librrd
//! (status.md 9.3, 9.4). May take its time: it has a thread of its own.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use tracing::info;

use super::handle::Settings;
use super::librrd::{Librrd, RrdError};
use super::queue::Update;
use super::rrdcached::{Client, Outcome};
use super::schema::{STEP, definitions, last_midnight};
use super::{DOMAIN, LOG_LIMIT, may_log};
use crate::log_limit::LogLimit;

/// How rrdcached says that the file has a newer value. Writing it directly would then be wrong:
/// the values that rrdcached still holds for the file would be the old ones, and be lost.
const TOO_OLD: &str = "illegal attempt to update";
/// How long the values of one batch together wait for files that others have locked. Whoever reads
/// a file (a graph in the GUI) locks it for a moment, and librrd does not wait for locks itself.
const LOCKED: Duration = Duration::from_millis(500);
/// Between two tries to lock a file.
const LOCKED_PAUSE: Duration = Duration::from_millis(10);
/// A library that could not be loaded is tried again after this time.
const RELOAD: Duration = Duration::from_secs(60);

/// What the thread has.
pub(super) struct Writer {
    base_dir: PathBuf,
    zone: Option<TimeZone>,
    client: Client,
    library: String,
    librrd: Option<Librrd>,
    /// When loading it failed, and how.
    failed: Option<(Instant, RrdError)>,
    limit: LogLimit,
}

impl Writer {
    pub(super) fn new(settings: &Settings) -> Self {
        Writer {
            base_dir: settings.base_dir.clone(),
            zone: settings.zone.clone(),
            client: Client::new(settings.rrdcached_socket.clone(), settings.timeouts),
            library: settings.library.clone(),
            librrd: None,
            failed: None,
            limit: LOG_LIMIT,
        }
    }

    /// Writes the updates in their order. Returns early when `late` says so.
    pub(super) fn write(&mut self, batch: &[Update], late: impl Fn() -> bool) {
        let mut ready = Vec::with_capacity(batch.len());
        for update in batch {
            if late() {
                return;
            }
            let file = self.base_dir.join(&update.file);
            if file.exists() || self.create(update, &file) {
                ready.push((file, &*update.line));
            }
        }
        let outcomes = self
            .client
            .update(ready.iter().map(|(file, line)| (&**file, *line)));
        let mut told = false;
        let mut patience = LOCKED;
        for ((file, line), outcome) in ready.iter().zip(&outcomes) {
            if late() {
                return;
            }
            match outcome {
                Outcome::Taken => continue,
                Outcome::NotSent => {}
                Outcome::Lost(errno) => {
                    // One line tells what happened to all of them.
                    if !std::mem::replace(&mut told, true) {
                        self.log(format_args!(
                            "RRDC update error {}: {errno}",
                            file.display()
                        ));
                    }
                }
                Outcome::Refused { status, text } => {
                    self.log(format_args!(
                        "RRDC update error {}: {status}",
                        file.display()
                    ));
                    if text.starts_with(TOO_OLD) {
                        self.log(format_args!("RRD update error {}: {text}", file.display()));
                        continue;
                    }
                }
            }
            if let Err(error) = self.write_directly(file, line, &mut patience, &late) {
                self.log(format_args!("RRD update error {}: {error}", file.display()));
            }
        }
    }

    /// Writes one value with librrd, as soon as nobody else has the file locked. What of `patience`
    /// it needs for that is gone.
    fn write_directly(
        &mut self,
        file: &Path,
        line: &[u8],
        patience: &mut Duration,
        late: impl Fn() -> bool,
    ) -> Result<(), RrdError> {
        let librrd = self.librrd()?;
        loop {
            match librrd.update(file, line) {
                Err(error) if error.is_locked() && !patience.is_zero() && !late() => {
                    *patience = patience.saturating_sub(LOCKED_PAUSE);
                    thread::sleep(LOCKED_PAUSE);
                }
                result => return result,
            }
        }
    }

    /// Makes the file of an update. True: it is there now.
    fn create(&mut self, update: &Update, file: &Path) -> bool {
        self.make_directory(update.kind.directory().as_ref());
        if let Some(parent) = update.file.parent() {
            self.make_directory(parent);
        }
        let zone = self.zone.clone().unwrap_or_else(TimeZone::system);
        let start = last_midnight(update.arrival, &zone);
        let created = self
            .librrd()
            .and_then(|rrd| rrd.create(file, STEP, start, &definitions(update.kind)));
        if let Err(error) = created {
            self.log(format_args!("RRD create error {}: {error}", file.display()));
            return file.exists();
        }
        true
    }

    /// Makes a directory below the base directory unless it exists.
    fn make_directory(&mut self, name: &Path) {
        let directory = self.base_dir.join(name);
        let made = DirBuilder::new().mode(0o750).create(&directory);
        if let Err(error) = made {
            if error.kind() != io::ErrorKind::AlreadyExists {
                self.log(format_args!(
                    "could not create directory {}: {error}",
                    directory.display()
                ));
            }
        }
    }

    fn librrd(&mut self) -> Result<&Librrd, RrdError> {
        if self.librrd.is_none() {
            if let Some((when, error)) = &self.failed {
                if when.elapsed() < RELOAD {
                    return Err(error.clone());
                }
            }
            match Librrd::load(&self.library) {
                Ok(librrd) => self.librrd = Some(librrd),
                Err(error) => {
                    self.failed = Some((Instant::now(), error.clone()));
                    return Err(error);
                }
            }
        }
        Ok(self.librrd.as_ref().expect("loaded above"))
    }

    fn log(&mut self, text: fmt::Arguments<'_>) {
        if may_log(&mut self.limit) {
            info!(target: DOMAIN, "{text}");
        }
    }
}
