//! Our values as `fuser` wants them, and its values as ours.
#![forbid(unsafe_code)]

use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    FileAttr, FileType, Generation, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyWrite, TimeOrNow,
};

use crate::fs::ops::{Attr, AttrReply, Entry, Errno, FileKind, Reply, SetTime, Slice};

/// No number that the kernel holds is given to another entry (`inode::Numbers::kernel_number`).
const GENERATION: Generation = Generation(0);

pub(super) fn errno(err: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(err.0)
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    let time = UNIX_EPOCH + Duration::from_secs(attr.mtime.into());
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: time,
        mtime: time + Duration::from_nanos(attr.edition.into()),
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: 0,
        gid: attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Inode 0 in an entry says that the name does not exist and that the kernel may remember it.
fn missing() -> FileAttr {
    file_attr(&Attr {
        ino: 0,
        kind: FileKind::Regular,
        perm: 0,
        nlink: 0,
        size: 0,
        blocks: 0,
        mtime: 0,
        edition: 0,
        gid: 0,
    })
}

pub(super) fn entry_reply(reply: ReplyEntry) -> Reply<Entry> {
    Box::new(move |result| match result {
        Ok(Entry::Found {
            attr,
            attr_ttl,
            entry_ttl,
        }) => {
            reply.entry_with_ttls(&attr_ttl, &entry_ttl, &file_attr(&attr), GENERATION);
        }
        Ok(Entry::Missing { ttl }) => {
            reply.entry_with_ttls(&Duration::ZERO, &ttl, &missing(), GENERATION);
        }
        Err(err) => reply.error(errno(err)),
    })
}

pub(super) fn attr_reply(reply: ReplyAttr) -> Reply<AttrReply> {
    Box::new(move |result| match result {
        Ok(AttrReply { attr, ttl }) => reply.attr(&ttl, &file_attr(&attr)),
        Err(err) => reply.error(errno(err)),
    })
}

pub(super) fn empty_reply(reply: ReplyEmpty) -> Reply<()> {
    Box::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(err) => reply.error(errno(err)),
    })
}

/// Seconds of a time as the kernel sent it, rounded down. `fuser` takes a time before 1970 as
/// (seconds, nanoseconds) and subtracts both; only the seconds come back right, and they count.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::Seconds(match time.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_secs() as i64,
            Err(before) => (before.duration().as_secs() as i64).wrapping_neg(),
        }),
    }
}

pub(super) fn data_reply(reply: ReplyData) -> Reply<Slice> {
    Box::new(move |result| match result {
        Ok(slice) => reply.data(slice.bytes()),
        Err(err) => reply.error(errno(err)),
    })
}

pub(super) fn write_reply(reply: ReplyWrite) -> Reply<u32> {
    Box::new(move |result| match result {
        Ok(count) => reply.written(count),
        Err(err) => reply.error(errno(err)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_come_back_as_the_kernel_sent_them() {
        let at = |secs: i64, nanos: u32| {
            // As `fuser` decodes it.
            let time = if secs >= 0 {
                UNIX_EPOCH + Duration::new(secs as u64, nanos)
            } else {
                UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
            };
            set_time(TimeOrNow::SpecificTime(time))
        };
        for secs in [0, 1, 1 << 32, -1, -5] {
            assert_eq!(at(secs, 0), SetTime::Seconds(secs));
            assert_eq!(at(secs, 500_000_000), SetTime::Seconds(secs));
        }
        assert_eq!(set_time(TimeOrNow::Now), SetTime::Now);
    }

    #[test]
    fn a_missing_name_is_inode_0() {
        assert_eq!(missing().ino, INodeNo(0));
    }
}
