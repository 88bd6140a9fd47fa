//! Whole machines: a fresh Debian with systemd in namespaces, made by `tools/machine.sh`, to
//! install packages in.
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A running machine. Everything in it ends with the value.
#[derive(Debug)]
pub struct Machine {
    dir: PathBuf,
    init: i32,
}

fn script(args: &[&std::ffi::OsStr]) {
    let out = Command::new("bash")
        .arg(crate::here().join("tools/machine.sh"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    assert!(
        out.status.success(),
        "machine.sh {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

impl Machine {
    /// Boots a copy of the root `base` that `tools/machine.sh base` made. The files of `packages`
    /// are its package repository.
    pub fn boot(base: &Path, packages: &[PathBuf]) -> Self {
        crate::require_tools();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = PathBuf::from(format!(
            "/var/tmp/pmxcfs-package-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        let repository = dir.join("upper/packages");
        std::fs::create_dir_all(&repository).expect("/var/tmp is writable");
        for package in packages {
            let name = package.file_name().expect("a package is a file");
            std::fs::copy(package, repository.join(name)).expect("copy a package");
        }
        let index = Command::new("sh")
            .args(["-c", "dpkg-scanpackages -m . >Packages 2>/dev/null"])
            .current_dir(&repository)
            .status()
            .expect("sh runs");
        assert!(index.success(), "dpkg-scanpackages");
        script(&["boot".as_ref(), dir.as_ref(), base.as_ref()]);
        let init = std::fs::read_to_string(dir.join("init.pid")).expect("the machine is up");
        let init = init.trim().parse().expect("init.pid is a number");
        let machine = Self { dir, init };
        machine.ok("apt-get update");
        machine
    }

    /// A path of the machine as seen from the test.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// A command that runs `program` in the machine, as root.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.to_string()]);
        command.args(["-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w", "--"]);
        command.args([
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL=C",
        ]);
        command.args(["DEBIAN_FRONTEND=noninteractive", program]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a shell line; its exit code and everything it printed.
    pub fn sh(&self, line: &str) -> (i32, String) {
        let out = self
            .command("sh")
            .args(["-c", &format!("exec 2>&1; {line}")])
            .output()
            .expect("nsenter runs");
        (
            out.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&out.stdout).trim_end().to_string(),
        )
    }

    /// As [`Machine::sh`] for a line that must succeed; with the journal if it does not.
    pub fn ok(&self, line: &str) -> String {
        let (code, text) = self.sh(line);
        if code != 0 {
            let (_, journal) = self.sh("journalctl --no-pager -n 40");
            panic!("'{line}' ended with {code}:\n{text}\n\njournal:\n{journal}");
        }
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        script(&["down".as_ref(), self.dir.as_ref()]);
    }
}
