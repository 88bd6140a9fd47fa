//! The write-ahead log: what is committed in it, and whether it was written for this database.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};

use super::{be16, be32};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// The last bit says in which byte order the checksums are made.
const MAGIC: u32 = 0x377f_0682;

/// The committed part of a log.
#[derive(Debug)]
pub(in crate::store) struct Log {
    pub page_size: usize,
    /// Where in the file the newest content of each page is.
    pub pages: HashMap<u32, u64>,
    /// Pages of the database after the last transaction.
    pub size: u32,
    /// The database's change counter, as each transaction that wrote page 1 left it.
    pub counters: Vec<u32>,
}

impl Log {
    /// `None`: nothing that SQLite would take from it.
    pub fn read(file: &File) -> io::Result<Option<Log>> {
        let mut input = BufReader::with_capacity(1 << 18, file);
        let mut header = [0; HEADER];
        if !fill(&mut input, &mut header)? {
            return Ok(None);
        }
        if !is_log_header(&header) {
            return Ok(None);
        }
        let page_size = be32(&header, 8) as usize;
        let sum = Sum::of(&header);
        let mut log = Log {
            page_size,
            pages: HashMap::new(),
            size: 0,
            counters: Vec::new(),
        };
        log.read_frames(&mut input, &header[16..24], sum)?;
        Ok((log.size > 0).then_some(log))
    }

    fn read_frames(&mut self, input: &mut impl Read, salts: &[u8], mut sum: Sum) -> io::Result<()> {
        let mut frame = vec![0; FRAME_HEADER + self.page_size];
        let mut at = HEADER as u64;
        // Of the transaction whose commit has not come yet.
        let mut open: Vec<(u32, u64)> = Vec::new();
        let mut counter = None;
        while fill(input, &mut frame)? {
            let (number, size) = (be32(&frame, 0), be32(&frame, 4));
            sum.add(&frame[..8]);
            sum.add(&frame[FRAME_HEADER..]);
            let sums = (be32(&frame, 16), be32(&frame, 20));
            if number == 0 || &frame[8..16] != salts || sums != sum.sums {
                break;
            }
            open.push((number, at + FRAME_HEADER as u64));
            if number == 1 {
                counter = Some(be32(&frame, FRAME_HEADER + 24));
            }
            at += frame.len() as u64;
            if size > 0 {
                self.size = size;
                self.pages.extend(open.drain(..));
                self.counters.extend(counter.take());
            }
        }
        Ok(())
    }
}

/// False at the end of the file.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Does a log begin with these bytes?
pub(in crate::store) fn is_log_header(header: &[u8; HEADER]) -> bool {
    let page_size = be32(header, 8) as usize;
    be32(header, 0) & !1 == MAGIC
        && (512..=65536).contains(&page_size)
        && page_size.is_power_of_two()
        && Sum::of(header).sums == (be32(header, 24), be32(header, 28))
}

/// The log's running checksum.
struct Sum {
    big_endian: bool,
    sums: (u32, u32),
}

impl Sum {
    /// What the sums of the frames go on from.
    fn of(header: &[u8; HEADER]) -> Self {
        let mut sum = Sum {
            big_endian: header[3] & 1 == 1,
            sums: (0, 0),
        };
        sum.add(&header[..24]);
        sum
    }

    /// `bytes`: a multiple of 8.
    fn add(&mut self, bytes: &[u8]) {
        let (mut a, mut b) = self.sums;
        for pair in bytes.chunks_exact(8) {
            let (mut x, mut y) = (be32(pair, 0), be32(pair, 4));
            if !self.big_endian {
                (x, y) = (x.swap_bytes(), y.swap_bytes());
            }
            a = a.wrapping_add(x).wrapping_add(b);
            b = b.wrapping_add(y).wrapping_add(a);
        }
        self.sums = (a, b);
    }
}

/// Was `log` written for the database whose file begins with `header` (100 bytes)? The reason if
/// not.
///
/// Whoever writes page 1 raises the change counter by one over the page it has read. So the first
/// number in a log is the database's own or the next one, and later the database has, by a
/// checkpoint, any number of the log: all else is another database, or this one at another time.
/// (The store's first transaction in a fresh log writes page 1: `Db::commit`. So each log has a
/// number of its own. In logs of the C daemon page 1 is rarer, and less is noticed.)
pub(in crate::store) fn belongs(header: &[u8], log: &Log) -> Result<(), String> {
    const WAL: u8 = 2;
    if header.get(18..20) != Some(&[WAL, WAL]) {
        return Err("the database was not made to have a log".to_owned());
    }
    let page_size = match be16(header, 16) {
        1 => 65536,
        size => size,
    };
    if page_size != log.page_size {
        return Err(format!(
            "its pages have {} bytes, those of the database {page_size}",
            log.page_size
        ));
    }
    let counter = be32(header, 24);
    if let (Some(first), Some(last)) = (log.counters.first(), log.counters.last()) {
        if counter.wrapping_add(1) != *first && !log.counters.contains(&counter) {
            return Err(format!(
                "it goes from change {first} to {last}, the database is at change {counter}"
            ));
        }
    } else if be32(header, 92) == counter && be32(header, 28) != log.size {
        return Err(format!(
            "it is for a database of {} pages, this one has {}",
            log.size,
            be32(header, 28)
        ));
    }
    Ok(())
}
