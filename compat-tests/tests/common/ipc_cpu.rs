//! Server CPU per IPC request, relative to a bare libqb echo server in the same run.
//!
//! Time is what the kernel booked for all threads of the server (`schedstat`, nanoseconds). Rounds
//! of the servers alternate, so that a change of the machine's mood meets all of them; each round
//! gives one ratio, and the median of these counts.
use compat_tests::client::ROOT;
use compat_tests::daemon::{cpu_ns, wait_for};
use compat_tests::report::median;
use compat_tests::{Client, Daemon, Lab, Node, Subject};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub const CONNECTIONS: u32 = 4;
const GET_FS_VERSION: i32 = 1;
const GET_CONFIG: i32 = 6;
const FILE: &str = "cpu.cfg";

/// A request and what a bare server has to answer to it.
#[derive(Clone, Debug)]
pub struct Kind {
    pub name: &'static str,
    operation: i32,
    payload: Vec<u8>,
}

/// What was measured with one kind of request.
#[derive(Clone, Debug)]
pub struct Figures {
    pub kind: &'static str,
    /// Microseconds of the bare server.
    pub bare: f64,
    /// Of each daemon: microseconds and the median of the ratios to the bare server.
    pub daemons: Vec<(f64, f64)>,
}

/// The servers, running.
pub struct Servers {
    node: Node,
    echoes: Vec<Echo>,
    daemons: Vec<(Node, Daemon)>,
    kinds: Vec<Kind>,
    _lab: Lab,
}

struct Echo(Child, String);

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Echo {
    fn start(node: &Node, name: &str, answer: usize) -> Self {
        let mut command = node.command(Client::program());
        command.args(["-s", name, "serve", &answer.to_string()]);
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let echo = Self(child, name.to_string());
        assert!(
            wait_for(Duration::from_secs(10), || node.ipc_listens(name)),
            "the bare server does not start"
        );
        echo
    }
}

impl Servers {
    /// Starts a daemon of each subject and a bare server for each kind of request.
    pub fn start(subjects: &[Subject]) -> Self {
        let lab = Lab::new(subjects.len());
        let start = |(index, subject): (usize, &Subject)| {
            let node = lab.node(index + 1);
            let daemon = Daemon::local(&node, subject);
            node.inside(|| std::fs::write(format!("/etc/pve/{FILE}"), [b'c'; 1024]))
                .unwrap();
            (node, daemon)
        };
        let daemons: Vec<_> = subjects.iter().enumerate().map(start).collect();
        let node = lab.node(1);
        let kinds = vec![
            Kind {
                name: "GET_CONFIG of 1 KiB",
                operation: GET_CONFIG,
                payload: format!("{FILE}\0").into_bytes(),
            },
            Kind {
                name: "GET_FS_VERSION",
                operation: GET_FS_VERSION,
                payload: Vec::new(),
            },
        ];
        let client = Client::new(&node, ROOT);
        let echo = |kind: &Kind| {
            let reply = client.request(kind.operation, &kind.payload, None);
            assert_eq!(reply.error(), Some(0), "{reply:?}");
            let name = format!("bare{}", kind.operation);
            Echo::start(&node, &name, reply.payload().len())
        };
        let echoes = kinds.iter().map(echo).collect();
        Self {
            node,
            echoes,
            daemons,
            kinds,
            _lab: lab,
        }
    }

    /// `rounds` rounds of `requests` requests on each of the connections, with every kind.
    pub fn measure(&self, rounds: usize, requests: u32) -> Vec<Figures> {
        let kinds = self.kinds.iter().zip(&self.echoes);
        kinds
            .map(|(kind, echo)| self.measure_kind(kind, echo, rounds, requests))
            .collect()
    }

    fn measure_kind(&self, kind: &Kind, echo: &Echo, rounds: usize, requests: u32) -> Figures {
        let hex: String = kind.payload.iter().map(|b| format!("{b:02x}")).collect();
        let load = |node: &Node, service: &str, pid: i32| {
            let before = cpu_ns(pid);
            let mut command = node.command(Client::program());
            let (n, jobs) = (requests.to_string(), CONNECTIONS.to_string());
            command.args(["-s", service, "-j", &jobs, "bench", &n]);
            run(command.args([&kind.operation.to_string(), &hex]));
            (cpu_ns(pid) - before) as f64 / 1e3 / f64::from(requests * CONNECTIONS)
        };
        let mut bare = Vec::new();
        let mut times = vec![Vec::new(); self.daemons.len()];
        for _ in 0..rounds {
            bare.push(load(
                &self.node,
                &echo.1,
                i32::try_from(echo.0.id()).unwrap(),
            ));
            for (times, (node, daemon)) in times.iter_mut().zip(&self.daemons) {
                times.push(load(node, "pve2", daemon.pid()));
            }
        }
        let ratio = |times: &Vec<f64>| {
            let ratios: Vec<f64> = times.iter().zip(&bare).map(|(t, b)| t / b).collect();
            (median(times), median(&ratios))
        };
        Figures {
            kind: kind.name,
            bare: median(&bare),
            daemons: times.iter().map(ratio).collect(),
        }
    }

    /// Orderly end of the daemons.
    pub fn stop(self) {
        for (_, daemon) in self.daemons {
            assert_eq!(daemon.stop().code, 0);
        }
    }
}

fn run(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(
        out.status.success() && out.stderr.is_empty(),
        "the load generator: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}
