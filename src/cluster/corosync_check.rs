//! Would corosync take this `corosync.conf`? Asked of corosync itself (`corosync -t`), so that the
//! answer is that of the version that is installed; whether this node is in it is read here.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};

use super::chores::{Ended, run_for};

/// `corosync -t` needs some hundredths of a second, and longer only to resolve names.
const LIMIT: Duration = Duration::from_secs(10);
/// Appended to what is tried, so that a test is no event in the log of corosync. Line numbers stay.
const QUIET: &[u8] = b"\nlogging {\nto_syslog: no\nto_logfile: no\nto_stderr: yes\n}\n";
/// How the program calls what it reads.
const INPUT: &str = "/dev/stdin";
/// How messages about the text begin. All others are about this host as it is now: a key, an address or
/// a right that may be there later.
const ABOUT_THE_TEXT: [&str; 2] = ["line ", "parse error in config: "];
/// Except this one.
const ABOUT_THE_HOST: &str = "parse error in config: No valid name found for local host";

/// What corosync says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Check {
    Taken,
    /// It would not start with it; the first message.
    Refused(String),
    /// It would not start with it now, or did not say.
    Unclear(String),
}

/// Tries `text`. May take [`LIMIT`].
pub(super) fn check(text: &[u8]) -> Check {
    match run(text) {
        Ok((Ended::Code(0), _)) => Check::Taken,
        Ok((Ended::Code(_), output)) => judge(&output),
        Ok((Ended::Killed, _)) => Check::Unclear(format!("no answer within {LIMIT:?}")),
        // Nobody here to refuse it.
        Err(err) if err.kind() == io::ErrorKind::NotFound => Check::Taken,
        Err(err) => Check::Unclear(format!("corosync -t: {err}")),
    }
}

/// Files in memory, not pipes: neither side can hold up the other.
fn run(text: &[u8]) -> io::Result<(Ended, String)> {
    let memory = || {
        Ok::<_, io::Error>(File::from(memfd_create(
            "corosync.conf",
            MemfdFlags::CLOEXEC,
        )?))
    };
    let mut input = memory()?;
    input.write_all(text)?;
    input.write_all(QUIET)?;
    input.rewind()?;
    let mut output = memory()?;
    let program = Command::new("corosync")
        .args(["-t", "-c", INPUT])
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::from(input))
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()?;
    let ended = run_for(program, LIMIT);
    let mut said = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut said)?;
    Ok((ended, String::from_utf8_lossy(&said).into_owned()))
}

/// The first message of a refusal.
fn judge(output: &str) -> Check {
    let Some(message) = output.lines().find_map(message) else {
        return Check::Unclear(format!("corosync -t failed: {}", output.trim()));
    };
    let is_about_the_text = ABOUT_THE_TEXT
        .iter()
        .any(|start| message.starts_with(start));
    if is_about_the_text && !message.starts_with(ABOUT_THE_HOST) {
        Check::Refused(message)
    } else {
        Check::Unclear(message)
    }
}

/// `parser error: FILE:31: text`, or `… error   [MAIN  ] text`.
fn message(line: &str) -> Option<String> {
    if let Some(error) = line.strip_prefix("parser error: ") {
        let error = error
            .strip_prefix(INPUT)
            .and_then(|rest| rest.strip_prefix(':'));
        return Some(format!("line {}", error?));
    }
    if line.starts_with("Can't read file") {
        return Some(line.to_owned());
    }
    let (head, text) = line.split_once("] ")?;
    let (head, _subsystem) = head.split_once('[')?;
    head.trim_end()
        .ends_with("error")
        .then(|| text.trim().to_owned())
}

/// Does the nodelist name nodes, and not this one? Nodes without names are corosync's business.
pub(super) fn lacks_node(text: &[u8], node: &str) -> bool {
    let text = String::from_utf8_lossy(text);
    let mut sections: Vec<&str> = Vec::new();
    let mut names = Vec::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
    {
        if let Some(section) = line.strip_suffix('{') {
            sections.push(section.trim());
        } else if line.starts_with('}') {
            sections.pop();
        } else if sections == ["nodelist", "node"] {
            if let Some((key, value)) = line.split_once(':') {
                if key.trim() == "name" {
                    names.push(value.trim());
                }
            }
        }
    }
    // Like corosync, without the domains.
    let host = |name: &str| name.split('.').next() == Some(node);
    !names.is_empty() && !names.into_iter().any(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_tells_the_place() {
        let refused = |output| match judge(output) {
            Check::Refused(text) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            refused("parser error: /dev/stdin:31: Missing closing brace\n"),
            "line 31: Missing closing brace"
        );
        let output = "Nov 27 09:22:00.061 error   [MAIN  ] parse error in config: The Knet link mode \
                      \"sideways\" specified is invalid.  It must be active, passive or rr.\n\
                      Nov 27 09:22:00.061 error   [MAIN  ] Corosync Cluster Engine exiting with status 8 \
                      at main.c:1445.\n";
        assert!(refused(output).starts_with("parse error in config: The Knet link mode"));
    }

    #[test]
    fn what_is_missing_on_the_host_may_come() {
        for output in [
            "error   [MAIN  ] Could not open /etc/corosync/authkey: No such file or directory\n",
            "Nov 27 09:22 error   [MAIN  ] failed to parse node address 'nosuchhost.invalid'\n",
            "Nov 27 09:21 error   [MAIN  ] parse error in config: No valid name found for local host\n",
            "usage:\n        -c     : Corosync config file path.\n",
            "Nov 27 09:21 error   [MAIN  ] Could not set SCHED_RR at priority 99: Operation not permitted\n",
        ] {
            assert!(matches!(judge(output), Check::Unclear(_)), "{output}");
        }
    }

    #[test]
    fn the_own_node_is_looked_for_where_nodes_are() {
        let conf =
            b"totem {\n  name: c\n}\nnodelist {\n  node {\n    # name: b\n    name : a\n  }\n}\n";
        assert!(!lacks_node(conf, "a"));
        assert!(lacks_node(conf, "b") && lacks_node(conf, "c"));
        assert!(!lacks_node(
            b"nodelist {\n  node {\n    ring0_addr: x\n  }\n}\n",
            "a"
        ));
        assert!(!lacks_node(b"", "a"));
        assert!(!lacks_node(
            b"nodelist {\nnode {\nname: a.example.com\n}\n}\n",
            "a"
        ));
    }
}
