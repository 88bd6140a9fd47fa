//! Server CPU per IPC request, against a bare libqb echo server.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use common::{headline, subjects};
use compat_tests::report;
#[path = "../tests/common/ipc_cpu.rs"]
mod ipc_cpu;
use ipc_cpu::{CONNECTIONS, Servers};

mod common;

const ROUNDS: usize = 31;
const REQUESTS: u32 = 1500;

fn main() {
    let subjects = subjects();
    headline(&format!(
        "server CPU per IPC request, {CONNECTIONS} connections, medians of {ROUNDS} rounds of {} requests",
        REQUESTS * CONNECTIONS
    ));
    let servers = Servers::start(&subjects);
    for figures in servers.measure(ROUNDS, REQUESTS) {
        let shown = |(time, ratio): &(f64, f64)| format!("{time:.2} us ({ratio:.2} x bare libqb)");
        let reference = figures.daemons.get(1);
        report(&format!(
            "{}: bare libqb {:.2} us; ours {}; reference {}",
            figures.kind,
            figures.bare,
            shown(&figures.daemons[0]),
            reference.map_or("no reference".to_string(), shown)
        ));
    }
    servers.stop(&subjects);
}
