//! The changes of the crash test: change `n` of a writer follows from its seed and `n` alone, so
//! the test knows what must be there after any number of them.
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// One change of one file, directory or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Create or overwrite in place, in one write of the same length as before or another.
    Write { name: String, content: Vec<u8> },
    /// Write a temporary file, then rename it onto the name: acknowledged after the rename.
    Replace { name: String, content: Vec<u8> },
    /// Remove; it may not exist.
    Remove { name: String },
}

/// Change `n` of the writer `seed`.
pub fn change(seed: u64, n: u64) -> Change {
    let mut state =
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mut next = || {
        state ^= state >> 29;
        state = state.wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 32;
        state
    };
    let name = format!("f{}", next() % 12);
    let length = usize::try_from(next() % 3000).unwrap_or(0) + 1;
    let mut content = format!("{seed}/{n} ").into_bytes();
    content.resize(
        content.len() + length,
        b'a' + u8::try_from(n % 26).unwrap_or(0),
    );
    match next() % 10 {
        0 | 1 => Change::Remove { name },
        2..=4 => Change::Write { name, content },
        _ => Change::Replace { name, content },
    }
}

impl Change {
    /// Does it, in `dir`.
    pub fn perform(&self, dir: &Path) -> io::Result<()> {
        match self {
            Self::Write { name, content } => write_once(&dir.join(name), content),
            Self::Replace { name, content } => {
                let temporary = dir.join(format!("{name}.tmp"));
                write_once(&temporary, content)?;
                fs::rename(&temporary, dir.join(name))
            }
            Self::Remove { name } => match fs::remove_file(dir.join(name)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            },
        }
    }

    /// Does it in a map of names to contents.
    pub fn apply(&self, files: &mut BTreeMap<String, Vec<u8>>) {
        match self {
            Self::Write { name, content } | Self::Replace { name, content } => {
                files.insert(name.clone(), content.clone());
            }
            Self::Remove { name } => {
                files.remove(name);
            }
        }
    }

    /// The name that may be in between when the change was not acknowledged.
    pub fn touches(&self) -> &str {
        match self {
            Self::Write { name, .. } | Self::Replace { name, .. } | Self::Remove { name } => name,
        }
    }
}

/// Truncates and writes everything in one call.
fn write_once(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let mut file = fs::File::create(path)?;
    let written = file.write(content)?;
    if written == content.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}
