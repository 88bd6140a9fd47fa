//! Keys of round-robin data: which file a value belongs to and what of it is written there
//! (status.md 9.2). Pure.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a value is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Node,
    Guest,
    Storage,
}

impl Kind {
    /// Directory of the files, below the base directory. The name carries the release whose data
    /// sources the files have; values of all releases go there.
    pub fn directory(self) -> &'static str {
        match self {
            Kind::Node => "pve-node-9.0",
            Kind::Guest => "pve-vm-9.0",
            Kind::Storage => "pve-storage-9.0",
        }
    }

    /// Columns before the time, of no use for a graph.
    fn leading_columns(self) -> usize {
        match self {
            Kind::Node => 2,
            Kind::Guest => 4,
            Kind::Storage => 0,
        }
    }

    /// Data sources of the files: columns behind the time.
    fn data_columns(self) -> usize {
        super::schema::data_sources(self).len()
    }
}

/// How the columns of the sender become those of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Columns {
    /// Same release.
    AsSent,
    /// Older release: it has so many columns less.
    Pad(usize),
    /// Unknown, probably newer release: what it added comes last.
    Cut,
}

/// How the keys of one release begin, or, without a slash, those of all other releases.
struct Rule {
    prefix: &'static [u8],
    kind: Kind,
    columns: Columns,
}

const fn rule(prefix: &'static [u8], kind: Kind, columns: Columns) -> Rule {
    Rule {
        prefix,
        kind,
        columns,
    }
}

/// The first one that fits wins.
const RULES: [Rule; 9] = [
    rule(b"pve2-node/", Kind::Node, Columns::Pad(7)),
    rule(b"pve-node-9.0/", Kind::Node, Columns::AsSent),
    rule(b"pve-node-", Kind::Node, Columns::Cut),
    rule(b"pve2.3-vm/", Kind::Guest, Columns::Pad(7)),
    rule(b"pve-vm-9.0/", Kind::Guest, Columns::AsSent),
    rule(b"pve-vm-", Kind::Guest, Columns::Cut),
    rule(b"pve2-storage/", Kind::Storage, Columns::AsSent),
    rule(b"pve-storage-9.0/", Kind::Storage, Columns::AsSent),
    rule(b"pve-storage-", Kind::Storage, Columns::Cut),
];

/// A key that names a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    kind: Kind,
    columns: Columns,
    /// `<node>`, `<vmid>` or `<node>/<storage>`.
    id: &'a [u8],
}

impl<'a> Target<'a> {
    /// Reads a key without its `rrd/`. `None`: the key is of no known type or its id cannot be the
    /// name of a file (empty or dot components, control characters).
    pub fn parse(key: &'a [u8]) -> Option<Self> {
        let rule = RULES.iter().find(|rule| key.starts_with(rule.prefix))?;
        let slash = key.iter().position(|byte| *byte == b'/')?;
        let id = &key[slash + 1..];
        let expected = match rule.kind {
            Kind::Node | Kind::Guest => 1,
            Kind::Storage => 2,
        };
        let components = id.split(|byte| *byte == b'/');
        if components.clone().count() != expected || !components.into_iter().all(is_name) {
            return None;
        }
        Some(Target {
            kind: rule.kind,
            columns: rule.columns,
            id,
        })
    }

    /// What the value is about.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Name of the file, below the base directory.
    pub fn file(&self) -> PathBuf {
        Path::new(self.kind.directory()).join(OsStr::from_bytes(self.id))
    }

    /// What is written to the file: `<time>:<value>…`. `value` is as sent; it ends at its first NUL
    /// (senders of release 9.1 cut with a NUL, in place). Wrong numbers of columns stay wrong:
    /// only librrd knows what the file has.
    ///
    /// # Errors
    /// [`BadLine`]: neither librrd nor rrdcached would take this for an update.
    pub fn line(&self, value: &[u8]) -> Result<Vec<u8>, BadLine> {
        let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
        let line = skip(value, self.kind.leading_columns());
        let (line, padding) = match self.columns {
            Columns::AsSent => (line, 0),
            Columns::Pad(count) => (line, count),
            Columns::Cut => (keep(line, self.kind.data_columns()), 0),
        };
        check(line)?;
        let mut out = Vec::with_capacity(line.len() + 2 * padding);
        out.extend_from_slice(line);
        for _ in 0..padding {
            out.extend_from_slice(b":U");
        }
        Ok(out)
    }
}

/// Why a value cannot be an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// Nobody sends `N` or a date in words; librrd's parser of dates is not thread-safe.
    #[error("value does not start with a time in seconds")]
    Time,
    /// A line break would be a second command to rrdcached.
    #[error("value contains blanks or characters that are not ASCII")]
    Character,
}

/// Can this be the name of a file that someone looks for?
fn is_name(component: &[u8]) -> bool {
    !matches!(component, b"" | b"." | b"..") && !component.iter().any(u8::is_ascii_control)
}

/// Drops `count` columns; everything if there are not so many.
fn skip(line: &[u8], count: usize) -> &[u8] {
    let mut rest = line;
    for _ in 0..count {
        match rest.iter().position(|byte| *byte == b':') {
            Some(colon) => rest = &rest[colon + 1..],
            None => return &[],
        }
    }
    rest
}

/// The time and at most `count` columns behind it, nothing less.
fn keep(line: &[u8], count: usize) -> &[u8] {
    let mut colons = line
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b':')
        .map(|(at, _)| at);
    match colons.nth(count) {
        Some(end) => &line[..end],
        None => line,
    }
}

fn check(line: &[u8]) -> Result<(), BadLine> {
    let time = line.split(|byte| *byte == b':').next().unwrap_or_default();
    if !time.first().is_some_and(u8::is_ascii_digit)
        || !time.iter().all(|b| b.is_ascii_digit() || *b == b'.')
    {
        return Err(BadLine::Time);
    }
    if !line.iter().all(u8::is_ascii_graphic) {
        return Err(BadLine::Character);
    }
    Ok(())
}
