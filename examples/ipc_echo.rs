//! Bare echo server on our transport: `ipc_echo NAME [PAYLOAD_BYTES]`. Counterpart of
//! `qbclient -s NAME serve BYTES`, to compare the transports alone. Ends with its standard input
//! or at SIGTERM.
#![forbid(unsafe_code)]

use std::io::Read;

use pmxcfs::ipc::server::Server;
use pmxcfs::ipc::{Answer, Client, Service};

struct Echo {
    payload: Vec<u8>,
}

impl Service for Echo {
    fn handle(&mut self, _: &Client, _: &[u8], _last: bool, out: &mut Vec<u8>) -> Answer {
        out.extend_from_slice(&self.payload);
        Answer::Reply(0)
    }
}

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "pve2".to_owned());
    let bytes = args.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let www = nix::unistd::Group::from_name("www-data")?.map_or(33, |group| group.gid.as_raw());
    let handle = Server::bind(&name, www)?.spawn(Box::new(Echo {
        payload: vec![0; bytes],
    }))?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    handle.stop();
    Ok(())
}
