//! The transport against the real libqb client and against hostile ones, with a server that only
//! echoes. Servers run in processes of their own (this executable, see `echo_server_process`), so
//! that their files can be counted and their death is noticed. Needs root, cc and libqb.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use compat_tests::shm::{Peer, Secret, Target, cycles, hostile, www_data};
use pmxcfs::ipc::server::Server;
use pmxcfs::ipc::{Answer, Client, Service};

const NAME: &str = "PMXCFS_TEST_ECHO_NAME";

/// 6: a "file" with a private class. 20: echo. 21: as many bytes as asked for. 22: panics.
/// 23: `Later` until the last time. Everything else: 1 KiB.
struct Echo;

impl Service for Echo {
    fn handle(&mut self, _: &Client, message: &[u8], last: bool, out: &mut Vec<u8>) -> Answer {
        let payload = &message[16..];
        match i32::from_le_bytes([message[0], message[1], message[2], message[3]]) {
            6 if payload.starts_with(b"priv") => return Answer::Reply(-1),
            6 => {
                // Long enough for a hostile client to change a message that is not a copy.
                let end = Instant::now() + Duration::from_micros(100);
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
                out.extend_from_slice(payload);
            }
            20 => out.extend_from_slice(payload),
            21 => {
                let len = [payload[0], payload[1], payload[2], payload[3]];
                out.resize(u32::from_le_bytes(len) as usize, b'x');
            }
            22 => panic!("a request that breaks the service"),
            23 if !last => return Answer::Later,
            _ => out.resize(1024, 0),
        }
        Answer::Reply(0)
    }
}

/// Not a test: the server of the tests, when started by [`EchoServer::start`].
#[test]
fn echo_server_process() {
    let Ok(name) = std::env::var(NAME) else {
        return;
    };
    let handle = Server::bind(&name, www_data().1)
        .unwrap()
        .spawn(Box::new(Echo))
        .unwrap();
    // Not for the harness, which captures the print macros.
    use std::io::Write;
    writeln!(std::io::stderr(), "ready").unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    handle.stop();
}

struct EchoServer {
    child: Child,
    target: Target,
}

impl EchoServer {
    fn start(name: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests need root"
        );
        let name = format!("t{}-{name}", std::process::id());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "echo_server_process", "--nocapture"])
            .env(NAME, &name)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line == "ready");
        assert!(ready, "the echo server does not start");
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let target = Target {
            service: name,
            pid: child.id(),
            probe: (6, b"k1\0".to_vec()),
            secret: Some(Secret {
                id: 6,
                public: [&b"publ/"[..], &[b'a'; 600], b"\0"].concat(),
                private: [&b"priv/"[..], &[b'b'; 600], b"\0"].concat(),
                leak: b"priv/".to_vec(),
            }),
        };
        Self { child, target }
    }

    /// Ends it as a daemon would, and checks that it has removed everything.
    fn stop(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
        assert_eq!(self.target.directories(), Vec::<String>::new());
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The real client, compiled once.
fn qbclient() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qbclient");
        let fresh = program.with_extension(std::process::id().to_string());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/tools/qbclient.c");
        let compiler = Command::new("cc")
            .args(["-O2", "-o"])
            .arg(&fresh)
            .arg(source)
            .args(["-lqb", "-lpthread"])
            .output()
            .expect("no C compiler: apt install gcc libc6-dev");
        assert!(
            compiler.status.success(),
            "cannot build the libqb client (apt install gcc libc6-dev libqb-dev):\n{}",
            String::from_utf8_lossy(&compiler.stderr)
        );
        std::fs::rename(&fresh, &program).unwrap();
        program
    })
}

fn client(target: &Target, args: &[&str]) -> Output {
    Command::new(qbclient())
        .args(["-s", &target.service])
        .args(args)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn libqb_client_gets_its_answers() {
    let server = EchoServer::start("real");
    let target = &server.target;
    let one = client(target, &["-X", "20", "0102030405"]);
    let header = "14000000000000001d000000000000000000000000000000";
    assert_eq!(
        text(&one),
        format!("error=0 size=29 len=5\n{header}0102030405\n")
    );

    // Many on one connection, of a size that wraps at all kinds of places.
    let many = client(target, &["-r", "5000", "21", "d1070000"]);
    assert_eq!(
        text(&many).matches("error=0 size=2025 len=2001\n").count(),
        5000
    );

    // The largest answer, and the first that does not fit: an error and no disconnect.
    let largest = client(target, &["-r", "3", "21", "e8ff0f00"]);
    assert_eq!(
        text(&largest)
            .matches("error=0 size=1048576 len=1048552\n")
            .count(),
        3
    );
    let too_large = client(target, &["-r", "3", "21", "e9ff0f00"]);
    assert_eq!(text(&too_large), "error=-105 size=24 len=0\n".repeat(3));

    // A large request.
    let big = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(big.path(), vec![7u8; 1_048_500]).unwrap();
    let echo = client(
        target,
        &["-r", "3", "20", &format!("@{}", big.path().display())],
    );
    assert_eq!(
        text(&echo)
            .matches("error=0 size=1048524 len=1048500\n")
            .count(),
        3
    );
    assert_eq!(
        echo.stdout.iter().filter(|b| **b == 7).count(),
        3 * 1_048_500
    );

    // A client with small buffers.
    let small = client(target, &["-m", "100", "-r", "100", "20", "aabbcc"]);
    assert!(
        small.status.success(),
        "{}",
        String::from_utf8_lossy(&small.stderr)
    );
    server.stop();
}

#[test]
fn several_libqb_clients_at_a_time() {
    let server = EchoServer::start("several");
    for mode in ["bench", "cbench"] {
        let count = if mode == "bench" { "5000" } else { "100" };
        let output = client(&server.target, &["-j", "4", mode, count, "6", "6b3100"]);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
    server.stop();
}

#[test]
fn access_by_user_and_group() {
    let server = EchoServer::start("access");
    let (www, www_gid) = www_data();
    // Where every user can run it.
    let dir = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let program = dir.path().join("qbclient");
    // By another process: what other tests start meanwhile would inherit our open file, and a program
    // that is open for writing cannot be run.
    let copied = Command::new("cp").args([qbclient(), &program]).status();
    assert!(copied.unwrap().success());
    for (uid, gid, accepted) in [
        (0, 0, true),
        (0, www_gid, true),
        (www, www_gid, true),
        (65534, www_gid, true),
        (www, 0, false),
        (0, 1, false),
        (65534, 65534, false),
    ] {
        use std::os::unix::process::CommandExt;
        let output = Command::new(&program)
            .args(["-s", &server.target.service, "20", "00"])
            .uid(uid)
            .gid(gid)
            .output()
            .unwrap();
        assert_eq!(output.status.success(), accepted, "{uid}:{gid} {output:?}");
        if !accepted {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(error, "qbclient: connect: Permission denied (13)\n");
        }
    }
    hostile::ownership(&server.target);
    server.stop();
}

#[test]
fn a_broken_request_costs_only_itself() {
    let server = EchoServer::start("panic");
    let mut peer = Peer::connect(&server.target.service).unwrap();
    let answer = peer.ask(22, &[], Duration::from_secs(3)).unwrap();
    assert_eq!((answer.id, answer.error, answer.payload.len()), (22, -5, 0));
    server.target.probe(&mut peer);
    server.stop();
}

#[test]
fn what_a_killed_server_leaves_goes_at_the_next_start() {
    let mut server = EchoServer::start("killed");
    let peers: Vec<Peer> = (0..5)
        .map(|_| Peer::connect(&server.target.service).unwrap())
        .collect();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert_eq!(server.target.directories().len(), 5);
    assert!(peers[0].is_closed_within(Duration::from_secs(1)));
    drop(Server::bind(&server.target.service, www_data().1).unwrap());
    assert_eq!(server.target.directories(), Vec::<String>::new());
}

macro_rules! hostile {
    ($($name:ident)*) => {
        mod hostile_client {
            $(#[test]
            fn $name() {
                let server = super::EchoServer::start(stringify!($name));
                compat_tests::shm::hostile::$name(&server.target);
                server.stop();
            })*
        }
    };
}

hostile! {
    word_size_zero truncated_files response_write_position size_field_lies paths_name_victims
    two_chunks_one_byte huge_message_size responses_not_read many_connections bytes_without_chunks
    read_positions message_changes no_memory_in_answers unfinished_handshakes bad_chunks
    descriptors_in_handshake directory_replaced semaphores
}

#[test]
fn connects_and_disconnects_leave_nothing() {
    let server = EchoServer::start("cycles");
    cycles::connect_and_disconnect(&server.target, 20_000);
    cycles::connect_and_close(&server.target, 2_000);
    server.stop();
}

#[test]
fn killed_clients_leave_nothing() {
    let server = EchoServer::start("victims");
    cycles::killed_clients(&server.target, qbclient(), 1_000);
    server.stop();
}

const FATAL: &str = "PMXCFS_TEST_FATAL_SIGBUS";

/// Not a test: dies of SIGBUS outside of all rings, when started by the next one.
#[test]
fn sigbus_process() {
    let Ok(kind) = std::env::var(FATAL) else {
        return;
    };
    let name = format!("t{}-fatal", std::process::id());
    let _handle = Server::bind(&name, www_data().1)
        .unwrap()
        .spawn(Box::new(Echo))
        .unwrap();
    // With a region in the table.
    let mut peer = Peer::connect(&name).unwrap();
    peer.ask(20, &[], Duration::from_secs(3)).unwrap();
    if kind == "sent" {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::BUS).unwrap();
        std::thread::sleep(Duration::from_secs(5));
        return;
    }
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    // SAFETY: a new mapping at an address of the kernel's choice. The access behind the end of the
    // file is the point of the process: it ends here.
    unsafe {
        let (prot, flags) = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::SHARED);
        let at = rustix::mm::mmap(std::ptr::null_mut(), 4096, prot, flags, &file, 0).unwrap();
        file.set_len(0).unwrap();
        at.cast::<u8>().read_volatile();
    }
}

#[test]
fn sigbus_elsewhere_stays_fatal() {
    use std::os::unix::process::ExitStatusExt;
    for kind in ["fault", "sent"] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sigbus_process", "--nocapture"])
            .env(FATAL, kind)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGBUS), "{kind}");
        // Takes away what the dead process left.
        drop(Server::bind(&format!("t{}-fatal", child.id()), www_data().1).unwrap());
    }
}
