//! The host's copy of `corosync.conf` (cluster-sync.md 1.6, daemon.md 5).
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use crate::obstacle;

use super::corosync_check::{Check, lacks_node};
use crate::durable;

/// Nothing of this size is a configuration; the tree holds no larger file either.
const MAX_HOST_FILE: u64 = 1 << 20;

/// Where the copy is, and what decides whether it is replaced.
pub(super) struct Export {
    pub host_file: PathBuf,
    /// Name of this node.
    pub node: String,
    /// Would corosync take it?
    pub check: fn(&[u8]) -> Check,
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
    /// Replaces the host's file by `content` if that is newer. `before_corosync`: corosync does not
    /// run with the host's file; then another file of the same version is replaced, too, which may be
    /// left over from another cluster. May wait for the disk.
    pub fn run(&self, content: &[u8], before_corosync: bool) -> Outcome {
        if content.is_empty() {
            return Outcome::Kept;
        }
        let version = config_version(content);
        let name = self.host_file.display();
        if version == 0 {
            tracing::error!(
                target: "dcdb",
                "unable to parse cluster config_version - totem.config_version of \
                 '/etc/pve/corosync.conf' must be a number above 0: '{name}' stays as it is"
            );
            return Outcome::Kept;
        }
        let old = match read(&self.host_file) {
            Ok(old) => old,
            Err(err) if err.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(err) => {
                tracing::error!(
                    target: "dcdb",
                    "unable to read cluster config file '{name}' - {err}; it is replaced"
                );
                Vec::new()
            }
        };
        if old == content {
            return Outcome::Kept;
        }
        let old_version = config_version(&old);
        if version < old_version {
            tracing::error!(
                target: "dcdb",
                "local corosync.conf is newer - '{name}' has config_version {old_version} and stays \
                 as it is, '/etc/pve/corosync.conf' has {version}: give that a higher one"
            );
            return Outcome::Kept;
        }
        if let Some(why) = self.obstacle(
            content,
            (version == old_version && !before_corosync).then_some(&old),
        ) {
            tracing::error!(
                target: "dcdb",
                "'/etc/pve/corosync.conf' (config_version {version}) not accepted: {why}. '{name}' \
                 stays as it is (config_version {old_version}), and corosync is not told"
            );
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
                    "unable to write corosync config file '{name}': {err}{} - corosync goes on with \
                     the old one",
                    obstacle::tail(&self.host_file)
                );
                Outcome::Kept
            }
        }
    }
}

impl Export {
    /// Why the host's file is better kept; `same` is that file if it has the same version.
    fn obstacle(&self, content: &[u8], same: Option<&Vec<u8>>) -> Option<String> {
        match self.usable(content) {
            Check::Refused(why) => return Some(why),
            Check::Unclear(why) => tracing::warn!(
                target: "dcdb",
                "corosync does not take '/etc/pve/corosync.conf' on this host as it is now: {why}"
            ),
            Check::Taken => {}
        }
        // What corosync runs with, unless it was cut off or edited in the wrong place.
        let accepted = |old| !matches!(self.usable(old), Check::Refused(_));
        same.is_some_and(|old| accepted(old)).then(|| {
            "it differs from the host's file without a higher totem.config_version, by which \
             corosync tells them apart"
                .into()
        })
    }

    fn usable(&self, content: &[u8]) -> Check {
        if lacks_node(content, &self.node) {
            let node = &self.node;
            return Check::Refused(format!("its nodelist has no node with name: {node}"));
        }
        match (self.check)(content) {
            Check::Refused(why) => {
                Check::Refused(format!("corosync would not start with it ({why})"))
            }
            other => other,
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

    /// Takes what does not say otherwise.
    fn corosync(text: &[u8]) -> Check {
        let says = |word: &str| text.windows(word.len()).any(|part| part == word.as_bytes());
        match (says("bad"), says("later")) {
            (true, _) => Check::Refused("line 1: bad".into()),
            (_, true) => Check::Unclear("no address yet".into()),
            _ => Check::Taken,
        }
    }

    fn export(dir: &Path) -> Export {
        Export {
            host_file: dir.join("corosync.conf"),
            node: "node1".into(),
            check: corosync,
        }
    }

    fn run(host: Option<&[u8]>, content: &[u8]) -> (Outcome, Option<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let export = export(dir.path());
        if let Some(host) = host {
            std::fs::write(&export.host_file, host).unwrap();
        }
        let outcome = export.run(content, false);
        let after = std::fs::read(&export.host_file).ok();
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, usize::from(after.is_some()));
        (outcome, after)
    }

    #[test]
    fn newer_versions_are_written() {
        let (one, two) = (
            b"config_version: 1\n".as_slice(),
            b"config_version: 2\n".as_slice(),
        );
        let other_two = b"config_version: 2\n#".as_slice();
        let written = |reload| Outcome::Written { reload };
        assert_eq!(run(Some(one), two), (written(true), Some(two.into())));
        assert_eq!(run(Some(two), other_two), (Outcome::Kept, Some(two.into())));
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
    fn the_last_accepted_file_is_kept() {
        let one = b"config_version: 1\n".as_slice();
        let kept = |new: &[u8]| {
            assert_eq!(run(Some(one), new), (Outcome::Kept, Some(one.into())));
            assert_eq!(run(None, new), (Outcome::Kept, None));
        };
        kept(b"config_version: 2\nbad\n");
        kept(b"config_version: 2\nnodelist {\nnode {\nname: node2\n}\n}\n");
        let written = |host: &[u8], new: &[u8]| {
            let outcome = Outcome::Written { reload: true };
            assert_eq!(run(Some(host), new), (outcome, Some(new.into())));
        };
        written(one, b"config_version: 2\nlater\n");
        written(
            one,
            b"config_version: 2\nnodelist {\nnode {\nname: node1\n}\n}\n",
        );
        // what corosync does not take is nothing to keep
        written(b"config_version: 2\nbad\n", b"config_version: 2\n");
    }

    #[test]
    fn what_corosync_does_not_run_with_is_replaced_at_the_same_version() {
        let dir = tempfile::tempdir().unwrap();
        let export = export(dir.path());
        std::fs::write(
            &export.host_file,
            "config_version: 1\n# of another cluster\n",
        )
        .unwrap();
        let outcome = export.run(b"config_version: 1\n", true);
        assert_eq!(outcome, Outcome::Written { reload: true });
    }

    #[test]
    fn everybody_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let export = export(dir.path());
        export.run(b"config_version: 1", false);
        let mode = std::fs::metadata(&export.host_file)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o644);
    }
}
