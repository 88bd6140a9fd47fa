//! `fuser` and nothing but `fuser`: turns its requests into [`Operations`] and back, counts them,
//! runs the workers. Everything the kernel shall decide on its own is answered with ENOSYS here.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request as FuseRequest, Session, SessionACL,
    TimeOrNow, WriteFlags,
};

use super::counters::{Request, RequestCounts};
use super::notify::{Kernel, Notifier};
use super::ops::{
    Attr, AttrReply, DirEntry, Entry, Errno, FileKind, Ino, Operations, Reply, SetAttr, SetTime,
};
use super::view::View;
use crate::memdb::MAX_FILE_SIZE;

const ENOSYS: fuser::Errno = fuser::Errno::ENOSYS;
/// Inode numbers are never used twice.
const GENERATION: Generation = Generation(0);
/// Read-aheads the kernel may have under way at once.
const MAX_BACKGROUND: u16 = 64;

/// How requests are served.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Number of threads that take requests; none of them ever waits for a change.
    pub workers: usize,
    /// One device handle per worker.
    pub clone_fd: bool,
    /// Answer CREATE instead of leaving creation to MKNOD.
    pub answer_create: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            workers: 4,
            clone_fd: false,
            answer_create: false,
        }
    }
}

/// A mount that is being served.
pub struct Served {
    /// Keeps the kernel's caches true.
    pub notifier: Notifier,
    /// What the kernel asked so far.
    pub requests: Arc<RequestCounts>,
    session: JoinHandle<io::Result<()>>,
}

impl Served {
    /// True once the mount is gone (unmounted, or the connection was aborted).
    pub fn has_ended(&self) -> bool {
        self.session.is_finished()
    }

    /// Waits for the end of the mount.
    ///
    /// # Errors
    /// What ended the workers, if it was not the end of the mount.
    pub fn wait(self) -> io::Result<()> {
        self.session
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("FUSE worker panicked")))
    }
}

/// Serves `view` on `device`, a handle of `/dev/fuse` that is already mounted
/// ([`super::mount::mount`]). `ended` is called from a thread of its own when the mount is gone.
///
/// # Errors
/// The kernel's protocol is too old, the mount is gone already, or no thread can be started.
pub fn serve(
    device: OwnedFd,
    view: View,
    tuning: Tuning,
    ended: impl FnOnce() + Send + 'static,
) -> io::Result<Served> {
    let requests = Arc::new(RequestCounts::default());
    let adapter = Adapter {
        view: view.clone(),
        requests: Arc::clone(&requests),
        tuning,
    };
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(tuning.workers.max(1));
    config.clone_fd = tuning.clone_fd;
    let session = Session::from_fd(adapter, device, SessionACL::All, config)?;
    let kernel: Arc<dyn Kernel> = Arc::new(Device(session.notifier()));
    view.attach(Arc::clone(&kernel));
    let notifier = Notifier::new(kernel, Arc::clone(view.inodes()), Arc::clone(view.tree()));
    let session = std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || {
            let result = session.run();
            ended();
            result
        })?;
    Ok(Served {
        notifier,
        requests,
        session,
    })
}

/// Sends notifications. What the kernel does not know (any more) is no error, and when the mount
/// is gone there is nothing left to keep true.
struct Device(fuser::Notifier);

impl Device {
    fn log(what: &str, ino: Ino, result: io::Result<()>) {
        match result {
            Err(err) if err.raw_os_error() != Some(libc::ENOTCONN) => {
                tracing::debug!("{what} of inode {ino:#x}: {err}");
            }
            _ => {}
        }
    }
}

impl Kernel for Device {
    fn inval_attr(&self, ino: Ino) {
        Device::log("invalidation", ino, self.0.inval_inode(INodeNo(ino), -1, 0));
    }

    fn inval_content(&self, ino: Ino) {
        Device::log("invalidation", ino, self.0.inval_inode(INodeNo(ino), 0, 0));
    }

    fn inval_entry(&self, dir: Ino, name: &[u8]) {
        let name = OsStr::from_bytes(name);
        Device::log(
            "invalidation below",
            dir,
            self.0.inval_entry(INodeNo(dir), name),
        );
    }
}

struct Adapter {
    view: View,
    requests: Arc<RequestCounts>,
    tuning: Tuning,
}

fn errno(err: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(err.0)
}

fn file_type(kind: FileKind) -> FileType {
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
        mtime: time,
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
        gid: 0,
    })
}

fn entry_reply(reply: ReplyEntry) -> Reply<Entry> {
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

fn create_reply(reply: ReplyCreate) -> Reply<Entry> {
    Box::new(move |result| match result {
        Ok(Entry::Found {
            attr, entry_ttl, ..
        }) => {
            let flags = FopenFlags::FOPEN_KEEP_CACHE;
            reply.created(
                &entry_ttl,
                &file_attr(&attr),
                GENERATION,
                FileHandle(0),
                flags,
            );
        }
        Ok(Entry::Missing { .. }) => reply.error(fuser::Errno::EIO),
        Err(err) => reply.error(errno(err)),
    })
}

fn attr_reply(reply: ReplyAttr) -> Reply<AttrReply> {
    Box::new(move |result| match result {
        Ok(AttrReply { attr, ttl }) => reply.attr(&ttl, &file_attr(&attr)),
        Err(err) => reply.error(errno(err)),
    })
}

fn empty_reply(reply: ReplyEmpty) -> Reply<()> {
    Box::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(err) => reply.error(errno(err)),
    })
}

/// Seconds of a time as the kernel sent it, rounded down. `fuser` takes a time before 1970 as
/// (seconds, nanoseconds) and subtracts both; only the seconds come back right, and they count.
fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::Seconds(match time.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_secs() as i64,
            Err(before) => (before.duration().as_secs() as i64).wrapping_neg(),
        }),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &FuseRequest, config: &mut KernelConfig) -> io::Result<()> {
        // One write() of the largest file is one request: one change, one message. An older
        // kernel splits it.
        let _ = config.set_max_write(MAX_FILE_SIZE as u32);
        let _ = config.set_max_background(MAX_BACKGROUND);
        // Look-ups in one directory must not wait for each other; links never change.
        for wish in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            let _ = config.add_capabilities(wish);
        }
        Ok(())
    }

    fn lookup(&self, _: &FuseRequest, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.requests.count(Request::Lookup);
        self.view
            .lookup(parent.0, name.as_bytes(), entry_reply(reply));
    }

    fn forget(&self, _: &FuseRequest, ino: INodeNo, nlookup: u64) {
        self.requests.count(Request::Forget);
        self.view.forget(ino.0, nlookup);
    }

    fn getattr(&self, _: &FuseRequest, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.requests.count(Request::Getattr);
        self.view.getattr(ino.0, attr_reply(reply));
    }

    fn setattr(
        &self,
        _: &FuseRequest,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.requests.count(Request::Setattr);
        let (atime, mtime) = (atime.map(set_time), mtime.map(set_time));
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        self.view.setattr(ino.0, set, attr_reply(reply));
    }

    fn readlink(&self, _: &FuseRequest, ino: INodeNo, reply: ReplyData) {
        self.requests.count(Request::Readlink);
        match self.view.readlink(ino.0) {
            Ok(target) => reply.data(target.bytes()),
            Err(err) => reply.error(errno(err)),
        }
    }

    fn mknod(
        &self,
        _: &FuseRequest,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.requests.count(Request::Mknod);
        if mode & libc::S_IFMT != libc::S_IFREG {
            return reply.error(ENOSYS);
        }
        self.view
            .create(parent.0, name.as_bytes(), entry_reply(reply));
    }

    fn mkdir(
        &self,
        _: &FuseRequest,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.requests.count(Request::Mkdir);
        self.view
            .mkdir(parent.0, name.as_bytes(), entry_reply(reply));
    }

    fn unlink(&self, _: &FuseRequest, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.requests.count(Request::Unlink);
        self.view
            .unlink(parent.0, name.as_bytes(), empty_reply(reply));
    }

    fn rmdir(&self, _: &FuseRequest, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.requests.count(Request::Rmdir);
        self.view
            .rmdir(parent.0, name.as_bytes(), empty_reply(reply));
    }

    fn symlink(&self, _: &FuseRequest, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        self.requests.count(Request::Symlink);
        reply.error(ENOSYS);
    }

    fn rename(
        &self,
        _: &FuseRequest,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.requests.count(Request::Rename);
        if !flags.is_empty() {
            return reply.error(fuser::Errno::EINVAL);
        }
        let reply = empty_reply(reply);
        self.view.rename(
            parent.0,
            name.as_bytes(),
            newparent.0,
            newname.as_bytes(),
            reply,
        );
    }

    fn link(&self, _: &FuseRequest, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.requests.count(Request::Link);
        reply.error(fuser::Errno::EPERM);
    }

    /// The kernel takes ENOSYS as: open needs no request, ever, and keep the cached pages.
    fn open(&self, _: &FuseRequest, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.requests.count(Request::Open);
        reply.error(ENOSYS);
    }

    fn read(
        &self,
        _: &FuseRequest,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.requests.count(Request::Read);
        let reply = Box::new(
            move |result: Result<super::ops::Slice, Errno>| match result {
                Ok(slice) => reply.data(slice.bytes()),
                Err(err) => reply.error(errno(err)),
            },
        );
        self.view.read(ino.0, offset, size, reply);
    }

    fn write(
        &self,
        _: &FuseRequest,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.requests.count(Request::Write);
        let reply = Box::new(move |result| match result {
            Ok(count) => reply.written(count),
            Err(err) => reply.error(errno(err)),
        });
        self.view.write(ino.0, offset, data, reply);
    }

    fn flush(&self, _: &FuseRequest, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.requests.count(Request::Flush);
        reply.error(ENOSYS);
    }

    fn release(
        &self,
        _: &FuseRequest,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.requests.count(Request::Release);
        reply.ok();
    }

    fn fsync(&self, _: &FuseRequest, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.requests.count(Request::Fsync);
        reply.error(ENOSYS);
    }

    fn opendir(&self, _: &FuseRequest, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.requests.count(Request::Opendir);
        reply.error(ENOSYS);
    }

    fn readdir(
        &self,
        _: &FuseRequest,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.requests.count(Request::Readdir);
        let mut add = |item: DirEntry<'_>| {
            let name = OsStr::from_bytes(item.name);
            reply.add(INodeNo(item.ino), item.next, file_type(item.kind), name)
        };
        match self.view.readdir(ino.0, offset, &mut add) {
            Ok(()) => reply.ok(),
            Err(err) => reply.error(errno(err)),
        }
    }

    fn releasedir(
        &self,
        _: &FuseRequest,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.requests.count(Request::Releasedir);
        reply.ok();
    }

    fn fsyncdir(&self, _: &FuseRequest, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.requests.count(Request::Fsync);
        reply.error(ENOSYS);
    }

    fn statfs(&self, _: &FuseRequest, _: INodeNo, reply: ReplyStatfs) {
        self.requests.count(Request::Statfs);
        let s = self.view.statfs();
        let (free, size) = (s.blocks_free, s.block_size);
        reply.statfs(
            s.blocks,
            free,
            free,
            s.files,
            s.files_free,
            size,
            s.name_max,
            size,
        );
    }

    fn setxattr(
        &self,
        _: &FuseRequest,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        self.requests.count(Request::Xattr);
        reply.error(ENOSYS);
    }

    fn getxattr(&self, _: &FuseRequest, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        self.requests.count(Request::Xattr);
        reply.error(ENOSYS);
    }

    fn listxattr(&self, _: &FuseRequest, _: INodeNo, _: u32, reply: ReplyXattr) {
        self.requests.count(Request::Xattr);
        reply.error(ENOSYS);
    }

    fn removexattr(&self, _: &FuseRequest, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.requests.count(Request::Xattr);
        reply.error(ENOSYS);
    }

    fn access(&self, _: &FuseRequest, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        self.requests.count(Request::Access);
        reply.error(ENOSYS);
    }

    fn create(
        &self,
        _: &FuseRequest,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.requests.count(Request::Create);
        if !self.tuning.answer_create {
            return reply.error(ENOSYS);
        }
        self.view
            .create(parent.0, name.as_bytes(), create_reply(reply));
    }

    fn ioctl(
        &self,
        _: &FuseRequest,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.requests.count(Request::Other);
        reply.error(fuser::Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _: &FuseRequest,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        self.requests.count(Request::Other);
        reply.error(ENOSYS);
    }

    fn lseek(
        &self,
        _: &FuseRequest,
        _: INodeNo,
        _: FileHandle,
        _: i64,
        _: i32,
        reply: fuser::ReplyLseek,
    ) {
        self.requests.count(Request::Other);
        reply.error(ENOSYS);
    }
}
