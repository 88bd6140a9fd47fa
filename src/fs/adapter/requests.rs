//! Each request of the kernel. Everything the kernel shall decide on its own is answered ENOSYS.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request as FuseRequest, TimeOrNow, WriteFlags,
};

use super::convert::{
    attr_reply, data_reply, empty_reply, entry_reply, errno, file_type, set_time, write_reply,
};
use crate::failure::contain;
use crate::fs::counters::{Request, RequestCounts};
use crate::fs::ops::{DirEntry, Operations, SetAttr};
use crate::fs::view::View;
use crate::memdb::MAX_FILE_SIZE;

const ENOSYS: fuser::Errno = fuser::Errno::ENOSYS;
/// Read-aheads the kernel may have under way at once.
const MAX_BACKGROUND: u16 = 64;

pub(super) struct Adapter {
    pub view: View,
    pub requests: Arc<RequestCounts>,
}

impl Adapter {
    /// A bug in one answer must not cost the mount a worker: the request gets EIO (its reply is
    /// dropped unused), the worker goes on.
    fn guard(&self, answer: impl FnOnce()) {
        contain("answering a file system request", answer);
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &FuseRequest, config: &mut KernelConfig) -> io::Result<()> {
        // One write() of the largest file is one request: one change, one message. An older
        // kernel splits it.
        let _ = config.set_max_write(MAX_FILE_SIZE as u32);
        let _ = config.set_max_background(MAX_BACKGROUND);
        // Look-ups in one directory must not wait for each other; links never change. Whoever asks
        // for attributes and is given a new mtime drops the cached content then (fs/notify.rs).
        for wish in [
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            let _ = config.add_capabilities(wish);
        }
        Ok(())
    }

    fn lookup(&self, _: &FuseRequest, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.requests.count(Request::Lookup);
        self.guard(|| {
            self.view
                .lookup(parent.0, name.as_bytes(), entry_reply(reply))
        });
    }

    fn forget(&self, _: &FuseRequest, ino: INodeNo, nlookup: u64) {
        self.requests.count(Request::Forget);
        self.guard(|| self.view.forget(ino.0, nlookup));
    }

    fn getattr(&self, _: &FuseRequest, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.requests.count(Request::Getattr);
        self.guard(|| self.view.getattr(ino.0, attr_reply(reply)));
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
        self.guard(|| self.view.setattr(ino.0, set, attr_reply(reply)));
    }

    fn readlink(&self, _: &FuseRequest, ino: INodeNo, reply: ReplyData) {
        self.requests.count(Request::Readlink);
        self.guard(|| match self.view.readlink(ino.0) {
            Ok(target) => reply.data(target.bytes()),
            Err(err) => reply.error(errno(err)),
        });
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
        self.guard(|| {
            self.view
                .create(parent.0, name.as_bytes(), entry_reply(reply))
        });
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
        self.guard(|| {
            self.view
                .mkdir(parent.0, name.as_bytes(), entry_reply(reply))
        });
    }

    fn unlink(&self, _: &FuseRequest, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.requests.count(Request::Unlink);
        self.guard(|| {
            self.view
                .unlink(parent.0, name.as_bytes(), empty_reply(reply))
        });
    }

    fn rmdir(&self, _: &FuseRequest, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.requests.count(Request::Rmdir);
        self.guard(|| {
            self.view
                .rmdir(parent.0, name.as_bytes(), empty_reply(reply))
        });
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
        self.guard(|| {
            self.view.rename(
                parent.0,
                name.as_bytes(),
                newparent.0,
                newname.as_bytes(),
                reply,
            )
        });
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
        let reply = data_reply(reply);
        self.guard(|| self.view.read(ino.0, offset, size, reply));
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
        let reply = write_reply(reply);
        self.guard(|| self.view.write(ino.0, offset, data, reply));
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
        self.guard(|| {
            let mut add = |item: DirEntry<'_>| {
                let name = OsStr::from_bytes(item.name);
                reply.add(INodeNo(item.ino), item.next, file_type(item.kind), name)
            };
            match self.view.readdir(ino.0, offset, &mut add) {
                Ok(()) => reply.ok(),
                Err(err) => reply.error(errno(err)),
            }
        });
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
        self.guard(|| {
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
        });
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

    /// The kernel takes ENOSYS as: create with MKNOD, and then open without a request.
    fn create(
        &self,
        _: &FuseRequest,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        self.requests.count(Request::Create);
        reply.error(ENOSYS);
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

    fn lseek(&self, _: &FuseRequest, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        self.requests.count(Request::Other);
        reply.error(ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &FuseRequest,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.requests.count(Request::Other);
        reply.error(ENOSYS);
    }

    fn poll(
        &self,
        _: &FuseRequest,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        self.requests.count(Request::Other);
        reply.error(ENOSYS);
    }
}
