//! What programs in C and Perl use: libpmxcfs and its modules for Perl, put together of what
//! `cargo build --release` made, and programs of `tools/` built against them.
use crate::{Node, Subject};
use nix::fcntl::{Flock, FlockArg};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    C,
    Cpp,
    /// C, with the static library.
    Static,
}

/// The workspace.
fn root() -> PathBuf {
    crate::here().join("..")
}

fn dir() -> PathBuf {
    crate::target_dir().join("compat-tools/capi")
}

/// Runs a command that has to succeed.
fn run(command: &mut Command) -> String {
    let out = command.output().expect("the program runs");
    assert!(
        out.status.success(),
        "{command:?}:\n{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// One at a time: test programs of several processes share the directory.
fn locked<T>(work: impl FnOnce() -> T) -> T {
    std::fs::create_dir_all(dir()).expect("the target directory is writable");
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).open(dir().join("lock"));
    let _lock = Flock::lock(file.expect("lock"), FlockArg::LockExclusive).expect("flock");
    work()
}

/// Where header and library are installed: `usr/include`, `usr/lib`.
pub fn installed() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        crate::require_tools();
        let binary = crate::Subject::ours().binary;
        let built = binary.parent().expect("a binary in a directory");
        assert!(
            built.join("libpmxcfs_client.so").is_file(),
            "no libpmxcfs_client.so beside {}: cargo build --release --workspace makes it",
            binary.display()
        );
        let dest = dir().join("client");
        locked(|| {
            run(Command::new("sh")
                .arg(root().join("libpmxcfs/install"))
                .args([built, &dest]))
        });
        dest
    })
}

/// The directory for `PERL5LIB`: `PVE::IPCC` and whatever else `perl/` has, and the stand-in for
/// the module that uses libqb (`QbIPCC`).
pub fn perl() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let lib = installed().join("usr/lib");
        let (dest, tools) = (dir().join("perl"), crate::here().join("tools"));
        locked(|| {
            let ours = [
                format!(
                    "PMXCFS_CFLAGS=-I{}",
                    installed().join("usr/include").display()
                ),
                format!("PMXCFS_LIBS=-L{0} -lpmxcfs -Wl,-rpath,{0}", lib.display()),
            ];
            let make = |build: &str| {
                let mut command = Command::new("make");
                command.arg("-C").arg(root().join("perl")).args([
                    format!("BUILD={}", dir().join(build).display()),
                    format!("PERLDIR={}", dest.display()),
                    format!("ARCHDIR={}", dest.display()),
                    "DESTDIR=".to_string(),
                ]);
                command
            };
            run(make("ipcc").arg("install").args(ours));
            run(make("qbipcc").arg("install").args([
                "NAME=QbIPCC".to_string(),
                "PACKAGE=QbIPCC".to_string(),
                format!("SOURCE={}", tools.join("QbIPCC.xs").display()),
                "PMXCFS_CFLAGS=".to_string(),
                "PMXCFS_LIBS=-lqb".to_string(),
            ]));
            std::fs::copy(tools.join("QbIPCC.pm"), dest.join("QbIPCC.pm")).expect("copy");
        });
        dest
    })
}

/// A command that runs a script of `tools/` in the node, in taint mode.
pub fn perl_command(node: &Node, script: &str) -> Command {
    let mut command = node.command("perl");
    command.arg("-T").arg("-I").arg(perl());
    command.arg(crate::here().join("tools").join(script));
    command
}

/// `tools/abi.c`, built with every warning an error.
pub fn abi(build: Build) -> PathBuf {
    let (include, lib) = (installed().join("usr/include"), installed().join("usr/lib"));
    let name = format!("abi-{build:?}").to_lowercase();
    let (program, new) = (dir().join(&name), dir().join(format!("{name}.new")));
    let config = |arguments: &[&str]| -> Vec<String> {
        let out = run(Command::new("pkg-config")
            .env("PKG_CONFIG_PATH", lib.join("pkgconfig"))
            .arg(format!(
                "--define-variable=prefix={}",
                include.with_file_name("").display()
            ))
            .arg(format!("--define-variable=libdir={}", lib.display()))
            .args(arguments)
            .arg("pmxcfs"));
        out.split_whitespace().map(String::from).collect()
    };
    let mut command = match build {
        Build::Cpp => {
            let mut command = Command::new("g++");
            command.args(["-x", "c++", "-std=c++11"]);
            command
        }
        _ => {
            let mut command = Command::new("gcc");
            command.args(["-std=c11", "-D_POSIX_C_SOURCE=200809L"]);
            command
        }
    };
    command.args([
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pedantic",
        "-O1",
        "-g",
        "-pthread",
    ]);
    command.args(config(&["--cflags"]));
    command.arg("-o").arg(&new);
    command.arg(crate::here().join("tools/abi.c"));
    if build == Build::Static {
        let libraries = config(&["--static", "--libs"]);
        let named = |library: String| match library.as_str() {
            "-lpmxcfs" => lib.join("libpmxcfs.a").display().to_string(),
            _ => library,
        };
        command.args(libraries.into_iter().map(named));
    } else {
        command.args(config(&["--libs"]));
        command.arg(format!("-Wl,-rpath,{}", lib.display()));
    }
    locked(|| {
        run(&mut command);
        std::fs::rename(&new, &program).expect("rename");
    });
    program
}

/// Clients that call on and print `calls N failed F longest MS` at their end.
pub struct Pollers(Vec<Child>);

/// What all of them saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Polled {
    pub calls: u64,
    pub failed: u64,
    /// Milliseconds.
    pub longest: f64,
}

impl Pollers {
    /// Starts `count` of `command`.
    pub fn start(count: usize, command: impl Fn() -> Command) -> Self {
        let start = |_| {
            let mut command = command();
            command.stdout(Stdio::piped()).spawn().expect("it runs")
        };
        Self((0..count).map(start).collect())
    }

    /// Waits for their ends.
    pub fn finish(self) -> Polled {
        let mut all = Polled::default();
        for client in self.0 {
            let out = client.wait_with_output().expect("wait");
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let words: Vec<&str> = text.split_whitespace().collect();
            let ["calls", calls, "failed", failed, "longest", longest] = words[..] else {
                panic!("a client said {text:?}");
            };
            all.calls += calls.parse::<u64>().expect("a number");
            all.failed += failed.parse::<u64>().expect("a number");
            all.longest = all.longest.max(longest.parse().expect("a number"));
        }
        all
    }
}

/// Longest wait of a client while a daemon of ours is restarted, in milliseconds.
const LONGEST_WAIT: f64 = 1000.0;

/// Restarts daemons under polling clients; each attempt returns the longest wait of a call, in
/// milliseconds. The best of four counts, because the machine may be busy with something else.
///
/// # Panics
/// In all attempts a call waited long.
pub fn nobody_waits_long(subject: &Subject, mut attempt: impl FnMut() -> f64) {
    let mut longest = f64::INFINITY;
    for _ in 0..4 {
        longest = longest.min(attempt());
        if longest < LONGEST_WAIT || !subject.is_ours() {
            return;
        }
    }
    panic!("longest wait {longest} ms");
}
