//! The hostile clients of ipc-transport.md 10, one function per case. Each of them panics when
//! the server does not behave: the hostile client is disconnected (or refused, or simply answered
//! where it does no harm), well-behaved clients are served all the time, and afterwards open files
//! and `/dev/shm` are as before.

use std::time::Duration;

use super::peer::{Peer, message};
use super::target::{Target, www_data};

mod files;
mod limits;
mod memory;

pub use files::*;
pub use limits::*;
pub use memory::*;

/// A case.
pub type Case = fn(&Target);

/// All cases, by the name they have in reports.
pub const ALL: [(&str, Case); 18] = [
    ("1 word_size is 0", word_size_zero),
    ("2 files are truncated", truncated_files),
    (
        "3 write position of the response ring",
        response_write_position,
    ),
    ("4 size field lies", size_field_lies),
    ("5 paths in the header name victims", paths_name_victims),
    ("6 two chunks, one notification", two_chunks_one_byte),
    ("7 huge message size", huge_message_size),
    ("8 responses are not read", responses_not_read),
    ("9 many connections", many_connections),
    ("10 notifications without chunks", bytes_without_chunks),
    ("11 read positions out of range", read_positions),
    ("12 message changes while processed", message_changes),
    (
        "13 nothing of the server's memory in answers",
        no_memory_in_answers,
    ),
    ("14 unfinished handshakes", unfinished_handshakes),
    ("15 bad chunks", bad_chunks),
    ("16 descriptors in the handshake", descriptors_in_handshake),
    ("17 directory replaced by a link", directory_replaced),
    ("18 semaphores", semaphores),
];

/// Time in which a hostile client has to be gone.
const SOON: Duration = Duration::from_secs(5);

fn connect(target: &Target) -> Peer {
    Peer::connect(&target.service).expect("the hostile client is accepted")
}

/// Runs one hostile client as www-data.
fn attack(target: &Target, work: impl FnOnce(&Target) + Send + 'static) {
    let inner = target.clone();
    target.undisturbed(|| target.run_as(www_data(), move || work(&inner)));
}

/// Runs a client that is expected to be disconnected for what it does after connecting.
fn attack_ends(target: &Target, mut crime: impl FnMut(&Target, &mut Peer) + Send + 'static) {
    attack(target, move |target| {
        let mut peer = connect(target);
        crime(target, &mut peer);
        assert!(
            peer.is_closed_within(SOON),
            "the hostile client is still connected"
        );
    });
}

/// Sends the probe without expecting anything.
fn send_probe(target: &Target, peer: &mut Peer) {
    let _ = peer.send(&message(target.probe.0, &target.probe.1));
}
