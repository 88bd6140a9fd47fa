//! The host's copy of `corosync.conf` (cluster-sync.md 1.6, daemon.md 5).
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use crate::durable;

/// Nothing of this size is a configuration; the tree holds no larger file either.
const MAX_HOST_FILE: u64 = 1 << 20;

/// Where the copy is.
pub(super) struct Export {
    pub host_file: PathBuf,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing to do, or refused, or failed (which was logged).
    Kept,
    /// Replaced. `reload`: there was an older one, so corosync may be running with it.
    Written { reload: bool },
}

/// First match of `config_version\s*:\s*(\d+)`, 0 if there is none (or it is no 64-bit number).
pub(super) fn config_version(text: &[u8]) -> u64 {
    const KEY: &[u8] = b"config_version";
    let space = |b: &u8| b.is_ascii_whitespace() || *b == 0x0b;
    let after_spaces = |text: &[u8]| text.iter().take_while(|b| space(b)).count();
    for (start, _) in text
        .windows(KEY.len())
        .enumerate()
        .filter(|(_, word)| *word == KEY)
    {
        let rest = &text[start + KEY.len()..];
        let Some((b':', rest)) = rest[after_spaces(rest)..].split_first() else {
            continue;
        };
        let rest = &rest[after_spaces(rest)..];
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits > 0 {
            let number = std::str::from_utf8(&rest[..digits])
                .ok()
                .and_then(|n| n.parse().ok());
            return number.unwrap_or(0);
        }
    }
    0
}

impl Export {
    /// Replaces the host's file by `content` if that is newer. May wait for the disk.
    pub fn run(&self, content: &[u8]) -> Outcome {
        if content.is_empty() {
            return Outcome::Kept;
        }
        let version = config_version(content);
        if version == 0 {
            tracing::error!(target: "dcdb", "unable to parse cluster config_version");
            return Outcome::Kept;
        }
        let name = self.host_file.display();
        let old = match read(&self.host_file) {
            Ok(old) => old,
            Err(err) if err.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(err) => {
                tracing::error!(
                    target: "dcdb",
                    "unable to read cluster config file '{name}' - {err}"
                );
                Vec::new()
            }
        };
        if old == content {
            return Outcome::Kept;
        }
        let old_version = config_version(&old);
        if version < old_version {
            tracing::error!(target: "dcdb", "local corosync.conf is newer");
            return Outcome::Kept;
        }
        match replace(&self.host_file, content) {
            Ok(()) => {
                tracing::info!(
                    target: "dcdb",
                    "wrote new corosync config '{name}' (version = {version})"
                );
                Outcome::Written {
                    reload: old_version != 0,
                }
            }
            Err(err) => {
                tracing::error!(
                    target: "dcdb",
                    "unable to write corosync config file '{name}': {err}"
                );
                Outcome::Kept
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_HOST_FILE + 1)
        .read_to_end(&mut content)?;
    Ok(content)
}

/// As a whole, also after a power cut; mode 0644 whatever the umask is.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let owner = rustix::process::geteuid().is_root().then_some((0, 0));
    durable::replace(path, content, 0o644, owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_first_version_anywhere_counts() {
        assert_eq!(config_version(b"totem {\n  config_version: 7\n}\n"), 7);
        assert_eq!(config_version(b"config_version\t: \n 12x"), 12);
        assert_eq!(config_version(b"# config_version: 3\nconfig_version: 4"), 3);
        assert_eq!(config_version(b"config_version 1 config_version:2"), 2);
        assert_eq!(config_version(b"config_version: x"), 0);
        assert_eq!(
            config_version(b"config_version: 99999999999999999999999"),
            0
        );
        assert_eq!(config_version(b"config_version"), 0);
        assert_eq!(config_version(b""), 0);
    }

    fn run(host: Option<&[u8]>, content: &[u8]) -> (Outcome, Option<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let export = Export {
            host_file: dir.path().join("corosync.conf"),
        };
        if let Some(host) = host {
            std::fs::write(&export.host_file, host).unwrap();
        }
        let outcome = export.run(content);
        let after = std::fs::read(&export.host_file).ok();
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, usize::from(after.is_some()));
        (outcome, after)
    }

    #[test]
    fn newer_and_equal_versions_are_written_older_ones_not() {
        let (one, two) = (
            b"config_version: 1\n".as_slice(),
            b"config_version: 2\n".as_slice(),
        );
        let other_two = b"config_version: 2\n#".as_slice();
        let written = |reload| Outcome::Written { reload };
        assert_eq!(run(Some(one), two), (written(true), Some(two.into())));
        assert_eq!(
            run(Some(two), other_two),
            (written(true), Some(other_two.into()))
        );
        assert_eq!(run(Some(two), one), (Outcome::Kept, Some(two.into())));
        assert_eq!(run(Some(two), two), (Outcome::Kept, Some(two.into())));
        assert_eq!(run(None, two), (written(false), Some(two.into())));
        assert_eq!(run(Some(b"?"), two), (written(false), Some(two.into())));
        assert_eq!(run(Some(one), b""), (Outcome::Kept, Some(one.into())));
        assert_eq!(
            run(Some(one), b"no version"),
            (Outcome::Kept, Some(one.into()))
        );
    }

    #[test]
    fn everybody_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let export = Export {
            host_file: dir.path().join("corosync.conf"),
        };
        export.run(b"config_version: 1");
        let mode = std::fs::metadata(&export.host_file)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o644);
    }
}
