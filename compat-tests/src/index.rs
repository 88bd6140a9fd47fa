//! The memdb index and the overall checksum of a database, computed from its rows. Written from
//! the specification (database.md sections 6 and 7) and not from the daemon's code, so that the
//! two check each other.
use crate::dbfile::Row;
use sha2::{Digest, Sha256};

/// The digests of a database as the daemon holds it after loading these rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// SHA-256 of the complete encoded index, hex.
    pub index: String,
    /// The checksum of the verify protocol, hex.
    pub checksum: String,
    /// Entries, the root included.
    pub entries: usize,
    /// Root version.
    pub version: u64,
    /// Root mtime.
    pub mtime: u32,
}

struct Entry {
    inode: u64,
    fields: Vec<u8>,
}

fn low32(value: i64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn fields(
    version: u64,
    writer: u32,
    mtime: u32,
    kind: u8,
    parent: u64,
    name: &[u8],
    data: &[u8],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + data.len());
    out.extend(version.to_le_bytes());
    out.extend(writer.to_le_bytes());
    out.extend(mtime.to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out.push(kind);
    out.extend(parent.to_le_bytes());
    out.extend(name);
    out.extend(data);
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Computes both digests. A missing or zero version row counts as version 1.
pub fn digests(rows: &[Row]) -> Digests {
    let root = rows.iter().find(|r| r.inode == 0);
    let version = root.map_or(0, |r| r.version as u64).max(1);
    let writer = root.map_or(0, |r| low32(r.writer));
    let mtime = root.map_or(0, |r| low32(r.mtime));
    let mut entries = vec![Entry {
        inode: 0,
        fields: fields(version, writer, mtime, 4, 0, b"", b""),
    }];
    for row in rows.iter().filter(|r| r.inode != 0) {
        let kind = (row.kind & 0xff) as u8;
        let name = row.name.split(|b| *b == 0).next().unwrap_or_default();
        let data = if kind == 8 {
            row.data.as_deref().unwrap_or_default()
        } else {
            &[]
        };
        entries.push(Entry {
            inode: row.inode as u64,
            fields: fields(
                row.version as u64,
                low32(row.writer),
                low32(row.mtime),
                kind,
                row.parent as u64,
                name,
                data,
            ),
        });
    }
    entries.sort_by_key(|e| e.inode);
    let mut index = Vec::new();
    index.extend(version.to_le_bytes());
    index.extend(entries.last().map_or(0, |e| e.inode).to_le_bytes());
    index.extend(writer.to_le_bytes());
    index.extend(mtime.to_le_bytes());
    index.extend((entries.len() as u32).to_le_bytes());
    index.extend((32 + 40 * entries.len() as u32).to_le_bytes());
    let mut overall = Sha256::new();
    for entry in &entries {
        index.extend(entry.inode.to_le_bytes());
        index.extend(Sha256::digest(&entry.fields));
        overall.update(entry.inode.to_le_bytes());
        overall.update(&entry.fields);
    }
    Digests {
        index: hex(&Sha256::digest(&index)),
        checksum: hex(&overall.finalize()),
        entries: entries.len(),
        version,
        mtime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of database.md section 7.
    #[test]
    fn check_value_of_the_specification() {
        let row = |inode: i64, name: String, version: i64, data: Option<Vec<u8>>| Row {
            inode,
            parent: 0,
            version,
            writer: 0,
            mtime: 1234,
            kind: 8,
            name: name.into_bytes(),
            data,
        };
        let mut rows = vec![row(0, "__version__".into(), 201, None)];
        for i in 0..100 {
            let data = Some(vec![0; 32768]);
            rows.push(row(2 + 2 * i, format!("testfile{i}"), 3 + 2 * i, data));
        }
        let digests = digests(&rows);
        assert_eq!(digests.entries, 101);
        assert_eq!(
            digests.index,
            "913fd95015af9d93f10dd51ba2a7bb11351bcfe040be21e95fcba834adc3ec10"
        );
    }
}
