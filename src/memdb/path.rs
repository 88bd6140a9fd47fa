//! Paths below the mount root, normalised once at the border (design rule 6), and their classes.
#![forbid(unsafe_code)]

use std::fmt;

use super::alias::true_name;

/// A normalised path: components joined by `/`, no empty component; empty for the root.
///
/// `.` and `..` are kept as they are: whoever creates entries has to refuse them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TreePath(Box<[u8]>);

/// Guest kind by directory (database.md 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuestType {
    Qemu,
    OpenVz,
    Lxc,
}

impl GuestType {
    /// Directory below `nodes/<node>/`.
    pub fn dir(self) -> &'static str {
        match self {
            GuestType::Qemu => "qemu-server",
            GuestType::OpenVz => "openvz",
            GuestType::Lxc => "lxc",
        }
    }

    /// Name in the guest list.
    pub fn name(self) -> &'static str {
        match self {
            GuestType::Qemu => "qemu",
            GuestType::OpenVz => "openvz",
            GuestType::Lxc => "lxc",
        }
    }

    /// From the directory name.
    pub fn from_dir(dir: &[u8]) -> Option<Self> {
        match dir {
            b"qemu-server" => Some(GuestType::Qemu),
            b"openvz" => Some(GuestType::OpenVz),
            b"lxc" => Some(GuestType::Lxc),
            _ => None,
        }
    }
}

/// A path that names a guest config: `nodes/<node>/<dir>/<vmid>.conf` (database.md 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPath<'a> {
    pub node: &'a str,
    pub kind: GuestType,
    pub vmid: u32,
}

impl TreePath {
    /// Normalise: empty components (leading, double, trailing slashes) vanish.
    pub fn new(raw: &[u8]) -> Self {
        let mut out = Vec::with_capacity(raw.len());
        for part in raw.split(|&b| b == b'/').filter(|p| !p.is_empty()) {
            if !out.is_empty() {
                out.push(b'/');
            }
            out.extend_from_slice(part);
        }
        TreePath(out.into_boxed_slice())
    }

    /// The root directory.
    pub fn root() -> Self {
        TreePath::default()
    }

    /// Bytes without a leading slash; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// True for the root directory.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Components in order.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|p| !p.is_empty())
    }

    /// This path with one more component. `name` must not be empty or hold a slash.
    pub fn join(&self, name: &[u8]) -> Self {
        debug_assert!(!name.is_empty());
        let mut out = Vec::with_capacity(self.0.len() + 1 + name.len());
        if !self.0.is_empty() {
            out.extend_from_slice(&self.0);
            out.push(b'/');
        }
        out.extend_from_slice(name);
        TreePath(out.into_boxed_slice())
    }

    /// Directory and last component; `None` for the root.
    pub fn split_last(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(i) => Some((&self.0[..i], &self.0[i + 1..])),
            None => Some((b"", &self.0)),
        }
    }

    /// True for `priv` and `nodes/<any>/priv` and everything below them (filesystem.md 3), also
    /// when such a directory is served under an alias.
    pub fn is_private(&self) -> bool {
        let mut parts = self.components().map(true_name);
        match parts.next() {
            Some(b"priv") => true,
            Some(b"nodes") => {
                parts.next();
                parts.next() == Some(b"priv")
            }
            _ => false,
        }
    }

    /// True for an entry directly in `priv/lock`: a lock, if it is a directory (database.md 11).
    pub fn is_lock(&self) -> bool {
        matches!(self.split_last(), Some((b"priv/lock", _)))
    }

    /// True for anything below `priv/lock/`, at any depth.
    pub fn is_below_lock_dir(&self) -> bool {
        self.0.starts_with(b"priv/lock/")
    }

    /// The guest this path is the config of, if it is one.
    pub fn guest(&self) -> Option<GuestPath<'_>> {
        let mut parts = self.components();
        if parts.next()? != b"nodes" {
            return None;
        }
        let node = valid_node_name(parts.next()?)?;
        let kind = GuestType::from_dir(parts.next()?)?;
        let vmid = vmid_of_file_name(parts.next()?)?;
        if parts.next().is_some() {
            return None;
        }
        Some(GuestPath { node, kind, vmid })
    }

    /// True for `nodes/<valid node>/{qemu-server,openvz,lxc}`: must never be a regular file.
    pub fn is_guest_dir(&self) -> bool {
        let mut parts = self.components();
        parts.next() == Some(b"nodes")
            && parts.next().and_then(valid_node_name).is_some()
            && parts.next().and_then(GuestType::from_dir).is_some()
            && parts.next().is_none()
    }
}

/// A node name as database.md 10 has it: `A-Za-z0-9-`, no hyphen at either end.
pub fn valid_node_name(name: &[u8]) -> Option<&str> {
    let ok = !name.is_empty()
        && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && name[0] != b'-'
        && name[name.len() - 1] != b'-';
    if ok {
        std::str::from_utf8(name).ok()
    } else {
        None
    }
}

/// VMID of a file name `[1-9][0-9]*\.conf` with a value of at most 4294967295.
pub fn vmid_of_file_name(name: &[u8]) -> Option<u32> {
    let digits = name.strip_suffix(b".conf")?;
    if digits.first().is_none_or(|b| *b == b'0') || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}
