//! config.db, read and written without any code of the daemon.
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeMap;
use std::path::Path;

/// One row of the table `tree`, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub inode: i64,
    pub parent: i64,
    pub version: i64,
    pub writer: i64,
    pub mtime: i64,
    pub kind: i64,
    pub name: Vec<u8>,
    pub data: Option<Vec<u8>>,
}

/// The statement of database.md section 3.
pub const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS tree (  inode INTEGER PRIMARY KEY NOT NULL,  parent INTEGER NOT NULL CHECK(typeof(parent)=='integer'),  version INTEGER NOT NULL CHECK(typeof(version)=='integer'),  writer INTEGER NOT NULL CHECK(typeof(writer)=='integer'),  mtime INTEGER NOT NULL CHECK(typeof(mtime)=='integer'),  type INTEGER NOT NULL CHECK(typeof(type)=='integer'),  name TEXT NOT NULL,  data BLOB);";

fn bytes(value: ValueRef<'_>) -> Option<Vec<u8>> {
    match value {
        ValueRef::Null => None,
        ValueRef::Text(b) | ValueRef::Blob(b) => Some(b.to_vec()),
        ValueRef::Integer(i) => Some(i.to_string().into_bytes()),
        ValueRef::Real(r) => Some(r.to_string().into_bytes()),
    }
}

fn integer(value: ValueRef<'_>) -> i64 {
    match value {
        ValueRef::Integer(i) => i,
        _ => 0,
    }
}

/// All rows, ordered by inode. Opens the file for writing when it has a write-ahead log, because
/// SQLite has to recover that.
pub fn rows(path: &Path) -> Result<Vec<Row>, rusqlite::Error> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut statement = db.prepare(
        "SELECT inode, parent, version, writer, mtime, type, name, data FROM tree ORDER BY inode",
    )?;
    let found = statement.query_map([], |r| {
        Ok(Row {
            inode: integer(r.get_ref(0)?),
            parent: integer(r.get_ref(1)?),
            version: integer(r.get_ref(2)?),
            writer: integer(r.get_ref(3)?),
            mtime: integer(r.get_ref(4)?),
            kind: integer(r.get_ref(5)?),
            name: bytes(r.get_ref(6)?).unwrap_or_default(),
            data: bytes(r.get_ref(7)?),
        })
    })?;
    found.collect()
}

/// The rows of a copy of the database and its log, so that the files themselves stay untouched.
pub fn rows_of_copy(path: &Path, scratch: &Path) -> Result<Vec<Row>, rusqlite::Error> {
    copy_with_log(path, scratch);
    let found = rows(scratch);
    remove_with_log(scratch);
    found
}

/// Copies a database together with its write-ahead log.
pub fn copy_with_log(from: &Path, to: &Path) {
    remove_with_log(to);
    std::fs::copy(from, to).expect("copy the database");
    let (from, to) = (with_suffix(from, "-wal"), with_suffix(to, "-wal"));
    if from.exists() {
        std::fs::copy(from, to).expect("copy the log");
    }
}

/// Removes a database with its log and shared memory file.
pub fn remove_with_log(path: &Path) {
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_file(with_suffix(path, "-wal"));
    let _ = std::fs::remove_file(with_suffix(path, "-shm"));
}

/// `config.db` + `-wal`.
pub fn with_suffix(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

/// The answer of `PRAGMA integrity_check` on a copy.
pub fn integrity(path: &Path, scratch: &Path) -> String {
    copy_with_log(path, scratch);
    let answer = Connection::open(scratch)
        .and_then(|db| db.query_row("PRAGMA integrity_check", [], |r| r.get::<_, String>(0)))
        .unwrap_or_else(|e| e.to_string());
    remove_with_log(scratch);
    answer
}

/// Makes a database by the rules of the specification, without the daemon.
#[derive(Debug, Default)]
pub struct Builder {
    rows: Vec<Row>,
    dirs: BTreeMap<String, i64>,
}

impl Builder {
    fn add(&mut self, path: &str, kind: i64, data: Option<Vec<u8>>) -> i64 {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if parent.is_empty() {
            0
        } else {
            self.dir(parent)
        };
        let inode = 2 + 2 * i64::try_from(self.rows.len()).expect("a small database");
        self.rows.push(Row {
            inode,
            parent,
            version: inode + 1,
            writer: 0,
            mtime: 1_700_000_000,
            kind,
            name: name.as_bytes().to_vec(),
            data,
        });
        inode
    }

    /// A directory and the directories above it; its inode.
    pub fn dir(&mut self, path: &str) -> i64 {
        if let Some(inode) = self.dirs.get(path) {
            return *inode;
        }
        let inode = self.add(path, 4, None);
        self.dirs.insert(path.to_string(), inode);
        inode
    }

    /// So many directories `d` in the root, each in the one before.
    pub fn chain(&mut self, depth: usize) {
        let mut parent = 0;
        for _ in 0..depth {
            let inode = self.add("d", 4, None);
            if let Some(row) = self.rows.last_mut() {
                row.parent = parent;
            }
            parent = inode;
        }
    }

    /// A file and the directories above it.
    pub fn file(&mut self, path: &str, data: &[u8]) {
        let data = (!data.is_empty()).then(|| data.to_vec());
        self.add(path, 8, data);
    }

    /// Writes the database; replaces what is there.
    pub fn write(&self, path: &Path) -> Result<(), rusqlite::Error> {
        remove_with_log(path);
        let mut db = Connection::open(path)?;
        db.execute_batch(SCHEMA)?;
        let last = self.rows.iter().map(|r| r.version).max().unwrap_or(1);
        let transaction = db.transaction()?;
        {
            let mut insert = transaction.prepare(
                "INSERT INTO tree (inode, parent, version, writer, mtime, type, name, data) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?;
            let none: Option<Vec<u8>> = None;
            let time = 1_700_000_000_i64;
            insert.execute((0_i64, 0_i64, last, 0_i64, time, 8_i64, "__version__", none))?;
            for r in &self.rows {
                let name = String::from_utf8_lossy(&r.name);
                insert.execute((
                    r.inode, r.parent, r.version, r.writer, r.mtime, r.kind, name, &r.data,
                ))?;
            }
        }
        transaction.commit()?;
        drop(db);
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .expect("chmod of an own file");
        Ok(())
    }

    /// A cluster of four nodes with `guests` guests, one fifth of them containers, each with a
    /// configuration of ordinary length.
    pub fn guests(guests: usize) -> Self {
        let mut db = Self::default();
        db.file(
            "storage.cfg",
            b"dir: local\n\tpath /var/lib/vz\n\tcontent iso,vztmpl,backup\n",
        );
        db.file("user.cfg", b"user:root@pam:1:0::::::\n");
        db.dir("priv/lock");
        for i in 0..guests {
            let (node, id) = (i % 4 + 1, 100 + i);
            if i % 5 == 0 {
                let text = format!(
                    "arch: amd64\ncores: 2\nhostname: ct{id}\nmemory: 512\nnet0: name=eth0,bridge=vmbr0,\
                     hwaddr=BC:24:11:00:{:02X}:{:02X},ip=dhcp,type=veth\nostype: debian\n\
                     rootfs: local-lvm:vm-{id}-disk-0,size=8G\nswap: 512\nunprivileged: 1\n",
                    i / 256 % 256,
                    i % 256
                );
                db.file(&format!("nodes/node{node}/lxc/{id}.conf"), text.as_bytes());
            } else {
                let text = format!(
                    "boot: order=scsi0;ide2;net0\ncores: 4\ncpu: x86-64-v2-AES\nide2: none,media=cdrom\n\
                     memory: 4096\nmeta: creation-qemu=9.0.2,ctime=1700000000\nname: vm{id}\nnet0: \
                     virtio=BC:24:11:00:{:02X}:{:02X},bridge=vmbr0,firewall=1\nnuma: 0\nostype: l26\n\
                     scsi0: local-lvm:vm-{id}-disk-0,iothread=1,size=32G\nscsihw: virtio-scsi-single\n\
                     sockets: 1\n",
                    i / 256 % 256,
                    i % 256
                );
                db.file(
                    &format!("nodes/node{node}/qemu-server/{id}.conf"),
                    text.as_bytes(),
                );
            }
        }
        db
    }
}
