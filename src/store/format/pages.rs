//! The pages of a database as SQLite would see them: from the file, or newer from the log.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::log::Log;
use super::{be16, be32};

/// What a database of either daemon has; taken where the header says nothing usable.
const PAGE_SIZE: usize = 4096;
const MAGIC: &[u8] = b"SQLite format 3\0";
/// SQLite's locks are at this offset, and its page holds nothing.
const LOCKS: u64 = 1 << 30;

/// `config.db` with this suffix.
pub(in crate::store) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A database file, and its log if that belongs to it.
#[derive(Debug)]
pub(in crate::store) struct Pages {
    file: File,
    log: Option<(File, Log)>,
    /// The first bytes of page 1, as the log has it.
    header: Vec<u8>,
    pub page_size: usize,
    /// Bytes of a page that SQLite uses.
    pub usable: usize,
    /// Pages by the header, or the log.
    pub count: u32,
    /// Pages that there are.
    pub present: u32,
    window: RefCell<Window>,
}

/// Pages that were read together, because they are asked for one after the other.
#[derive(Debug, Default)]
struct Window {
    bytes: Vec<u8>,
    /// Where in the file they begin.
    start: u64,
    /// Where the page behind the last one that was asked for begins.
    next: u64,
}

/// How many bytes are read together.
const WINDOW: usize = 1 << 16;

impl Pages {
    /// The first 100 bytes of a database file, fewer if it is shorter.
    pub fn header_of(file: &File) -> io::Result<Vec<u8>> {
        let mut header = vec![0; 100];
        let length = read_up_to(file, &mut header, 0)?;
        header.truncate(length);
        Ok(header)
    }

    /// `log`: what [`Log::read`] has found.
    pub fn new(file: File, log: Option<(File, Log)>) -> io::Result<Pages> {
        let length = file.metadata()?.len();
        let mut header = vec![0; 100];
        let read = match log
            .as_ref()
            .and_then(|(f, log)| Some((f, log.pages.get(&1)?)))
        {
            Some((file, at)) => read_up_to(file, &mut header, *at)?,
            None => read_up_to(&file, &mut header, 0)?,
        };
        header.truncate(read);
        let sane = header.starts_with(MAGIC);
        let page_size = match (be16(&header, 16), &log) {
            (_, Some((_, log))) => log.page_size,
            (1, None) if sane => 65536,
            (size, None) if sane && size >= 512 && size.is_power_of_two() => size,
            _ => PAGE_SIZE,
        };
        let reserved = match header.get(20) {
            Some(bytes) if sane && *bytes <= 32 => usize::from(*bytes),
            _ => 0,
        };
        let in_file = u32::try_from(length.div_ceil(page_size as u64)).unwrap_or(u32::MAX);
        let stated = be32(&header, 28);
        let count = match &log {
            Some((_, log)) => log.size,
            None if sane && stated > 0 && be32(&header, 92) == be32(&header, 24) => stated,
            None => in_file,
        };
        // The log adds pages at the end, one behind the other.
        let in_log = log.as_ref().and_then(|(_, log)| {
            let most = in_file.saturating_add(log.pages.len() as u32);
            Some((*log.pages.keys().max()?).min(most))
        });
        Ok(Pages {
            file,
            log,
            header,
            page_size,
            usable: page_size - reserved,
            count,
            present: in_file.max(in_log.unwrap_or(0)),
            window: RefCell::default(),
        })
    }

    /// Is page 1 that of a database?
    pub fn has_magic(&self) -> bool {
        self.header.starts_with(MAGIC)
    }

    /// A number of the header.
    pub fn header32(&self, at: usize) -> u32 {
        be32(&self.header, at)
    }

    /// The page that holds SQLite's locks and nothing else.
    pub fn lock_page(&self) -> u32 {
        u32::try_from(LOCKS / self.page_size as u64 + 1).unwrap_or(u32::MAX)
    }

    /// Reads the first bytes of page `number` into `buffer`. False: the file ends before.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn read(&self, number: u32, buffer: &mut [u8]) -> io::Result<bool> {
        let logged = self
            .log
            .as_ref()
            .and_then(|(f, log)| Some((f, *log.pages.get(&number)?)));
        if let Some((file, at)) = logged {
            return Ok(read_up_to(file, buffer, at)? == buffer.len());
        }
        if number == 0 {
            return Ok(false);
        }
        let at = u64::from(number - 1) * self.page_size as u64;
        let mut window = self.window.borrow_mut();
        let in_order = window.next == at;
        window.next = at + self.page_size as u64;
        if let Some(bytes) = window.get(at, buffer.len()) {
            buffer.copy_from_slice(bytes);
            return Ok(true);
        }
        if in_order {
            window.bytes.resize(WINDOW, 0);
            window.start = at;
            let read = read_up_to(&self.file, &mut window.bytes, at)?;
            window.bytes.truncate(read);
            if let Some(bytes) = window.get(at, buffer.len()) {
                buffer.copy_from_slice(bytes);
                return Ok(true);
            }
        }
        Ok(read_up_to(&self.file, buffer, at)? == buffer.len())
    }
}

impl Window {
    fn get(&self, at: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(at.checked_sub(self.start)?).ok()?;
        self.bytes.get(start..start.checked_add(length)?)
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
