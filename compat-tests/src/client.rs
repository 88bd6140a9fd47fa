//! The libqb client: `tools/qbclient.c`, compiled once with the system's compiler.
use crate::Node;
use nix::fcntl::{Flock, FlockArg};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Who a client is: (uid, gid).
pub type Identity = (u32, u32);
pub const ROOT: Identity = (0, 0);

/// The identity a golden vector names. The ids of www-data are those of this machine.
pub fn identity(name: &str) -> Identity {
    let user = nix::unistd::User::from_name("www-data")
        .ok()
        .flatten()
        .expect("user www-data");
    let group = nix::unistd::Group::from_name("www-data")
        .ok()
        .flatten()
        .expect("group www-data");
    match name {
        "root" => ROOT,
        "www-data" => (user.uid.as_raw(), group.gid.as_raw()),
        "root:www-data" => (0, group.gid.as_raw()),
        "nobody" => (65534, 65534),
        other => panic!("unknown client {other}"),
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The response: header (24 bytes) and payload.
    Answer { header: Vec<u8>, payload: Vec<u8> },
    /// The client's words about a broken connection or a refused one.
    Transport(String),
}

impl Reply {
    /// The error field of the response header; `None` without a response.
    pub fn error(&self) -> Option<i32> {
        match self {
            Self::Answer { header, .. } => Some(i32::from_le_bytes(
                header[16..20].try_into().expect("four bytes"),
            )),
            Self::Transport(_) => None,
        }
    }

    /// The payload; panics with the reply when there is none.
    pub fn payload(&self) -> &[u8] {
        match self {
            Self::Answer { payload, .. } => payload,
            Self::Transport(text) => panic!("no answer: {text}"),
        }
    }
}

/// A client that opens a connection for each request.
#[derive(Clone, Debug)]
pub struct Client {
    node: Node,
    identity: Identity,
}

impl Client {
    pub fn new(node: &Node, identity: Identity) -> Self {
        Self {
            node: node.clone(),
            identity,
        }
    }

    /// The compiled program.
    pub fn program() -> PathBuf {
        static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
        PROGRAM.get_or_init(|| compile("qbclient")).clone()
    }

    /// A command that runs the client program in the node.
    pub fn command(&self) -> Command {
        if self.identity == ROOT {
            self.node.command(Self::program())
        } else {
            self.node
                .command_as(self.identity.0, self.identity.1, Self::program())
        }
    }

    /// Sends one request. `size` is put into the header instead of the true size.
    pub fn request(&self, op: i32, payload: &[u8], size: Option<i32>) -> Reply {
        let mut command = self.command();
        command.args(["-X", "-t", "20000"]);
        if let Some(size) = size {
            command.args(["-S", &size.to_string()]);
        }
        command.args(["--", &op.to_string(), "-"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("nsenter runs");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(payload)
            .expect("the client reads");
        let out = child.wait_with_output().expect("wait");
        let stdout = String::from_utf8_lossy(&out.stdout);
        let Some(hex) = stdout.lines().nth(1) else {
            let text = String::from_utf8_lossy(&out.stderr);
            return Reply::Transport(text.trim().trim_start_matches("qbclient: ").to_string());
        };
        let mut header = unhex(hex);
        let payload = header.split_off(24);
        for padding in [4..8, 12..16, 20..24] {
            header[padding].fill(0);
        }
        Reply::Answer { header, payload }
    }

    /// One request whose answer must be there; its payload as text.
    pub fn text(&self, op: i32, payload: &[u8]) -> String {
        let reply = self.request(op, payload, None);
        assert_eq!(reply.error(), Some(0), "op {op}: {reply:?}");
        String::from_utf8_lossy(reply.payload()).into_owned()
    }

    /// GET_CONFIG.
    pub fn config(&self, path: &str) -> Reply {
        self.request(6, format!("{path}\0").as_bytes(), None)
    }

    /// SET_STATUS: error field of the answer.
    pub fn set_status(&self, key: &str, value: &[u8]) -> i32 {
        let mut payload = name256(key);
        payload.extend_from_slice(value);
        self.request(4, &payload, None).error().expect("an answer")
    }

    /// GET_STATUS.
    pub fn get_status(&self, key: &str, node: &str) -> Reply {
        let mut payload = name256(key);
        payload.extend(name256(node));
        self.request(5, &payload, None)
    }
}

/// A name in a field of 256 bytes.
pub fn name256(name: &str) -> Vec<u8> {
    let mut field = name.as_bytes().to_vec();
    field.resize(256, 0);
    field
}

/// Bytes of a hex string; panics on anything else.
pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex digits"))
        .collect()
}

/// The program made of `tools/<name>.c`, compiled again when that is newer.
pub fn compile(name: &str) -> PathBuf {
    compile_to(name, name, &[])
}

/// The library for `LD_PRELOAD` made of `tools/<name>.c`.
pub fn compile_preload(name: &str) -> PathBuf {
    compile_to(name, &format!("{name}.so"), &["-shared", "-fPIC"])
}

fn compile_to(name: &str, output: &str, flags: &[&str]) -> PathBuf {
    crate::require_tools();
    let dir = crate::target_dir().join("compat-tools");
    std::fs::create_dir_all(&dir).expect("the target directory is writable");
    let source = crate::here().join(format!("tools/{name}.c"));
    let program = dir.join(output);
    let lock = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("lock"))
        .expect("lock");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("flock");
    let modified = |p: &PathBuf| std::fs::metadata(p).and_then(|m| m.modified()).ok();
    if modified(&program).is_some_and(|p| modified(&source).is_some_and(|s| p > s)) {
        return program;
    }
    let out = Command::new("cc")
        .args(["-O2", "-Wall"])
        .args(flags)
        .arg("-o")
        .args([&program, &source])
        .args(["-lqb", "-lcpg", "-lpthread"])
        // Only for who uses it: the clients whose start is timed do not.
        .args(["-Wl,--as-needed", "-lsqlite3"])
        .output()
        .expect("cc is missing: apt install gcc");
    assert!(
        out.status.success(),
        "{name}.c does not compile (apt install libqb-dev libcpg-dev libsqlite3-dev libc6-dev):\n{}",
        String::from_utf8_lossy(&out.stderr)
    );
    program
}
