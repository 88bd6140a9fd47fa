//! Cases about files and directories.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::time::{Duration, Instant};

use super::{SOON, attack, attack_ends, connect, send_probe};
use crate::shm::peer::{DATA_PATH, HEADER_PATH, message};
use crate::shm::target::{ROOT, Target, www_data};

/// 2: the reference dies of SIGBUS. All files the server touches, to nothing and to a part.
pub fn truncated_files(target: &Target) {
    for len in [0, 4096] {
        attack_ends(target, move |target, peer| {
            // Beyond the first page, so that a part of the file is not enough.
            while peer.request.at < 2048 {
                target.probe(peer);
            }
            peer.request
                .write_chunk(&message(target.probe.0, &target.probe.1))
                .expect("chunk");
            peer.request.data.set_len(len).expect("truncate");
            peer.post(1, 1).expect("post");
        });
        attack_ends(target, move |_, peer| {
            peer.request.header.set_len(len).expect("truncate");
            peer.notify(1).expect("notify");
        });
        attack_ends(target, move |target, peer| {
            peer.response.header.set_len(len).expect("truncate");
            send_probe(target, peer);
        });
    }
    attack_ends(target, |target, peer| {
        peer.response.data.set_len(0).expect("truncate");
        send_probe(target, peer);
    });
    // While the server is at work.
    attack(target, |target| {
        for turn in 0..200 {
            let mut peer = connect(target);
            let len = peer.request.data.metadata().expect("data file").len();
            for _ in 0..5 {
                send_probe(target, &mut peer);
                for ring in [&peer.request, &peer.response] {
                    let file = if turn % 2 == 0 {
                        &ring.data
                    } else {
                        &ring.header
                    };
                    file.set_len(0).expect("truncate");
                    file.set_len(if turn % 2 == 0 { len } else { 8252 })
                        .expect("extend");
                }
            }
        }
    });
    // Noticed only when the connection ends.
    attack(target, |target| {
        let mut peer = connect(target);
        target.probe(&mut peer);
        for ring in [&peer.request, &peer.response, &peer.event] {
            ring.header.set_len(0).expect("truncate");
            ring.data.set_len(0).expect("truncate");
        }
    });
}

/// 5: the reference unlinks, as root, what the client names.
pub fn paths_name_victims(target: &Target) {
    let victims = std::env::temp_dir().join(format!("qb-victims-{}", std::process::id()));
    fs::create_dir_all(&victims).expect("directory of the victims");
    let (header, data) = (victims.join("header"), victims.join("data"));
    for victim in [&header, &data] {
        fs::write(victim, b"keep").expect("victim");
    }
    let paths = [&header, &data].map(|p| format!("{}\0", p.display()));
    attack(target, move |target| {
        let mut peer = connect(target);
        target.probe(&mut peer);
        for ring in [&peer.request, &peer.response, &peer.event] {
            for (at, path) in [(HEADER_PATH, &paths[0]), (DATA_PATH, &paths[1])] {
                ring.header
                    .write_all_at(path.as_bytes(), at)
                    .expect("overwrite");
            }
        }
    });
    for victim in [&header, &data] {
        assert_eq!(fs::read(victim).expect("the victim still exists"), b"keep");
    }
    fs::remove_dir_all(&victims).expect("cleaning up");
}

/// 17: the client owns its directory and may put a link in its place.
pub fn directory_replaced(target: &Target) {
    let victims = std::env::temp_dir().join(format!("qb-linked-{}", std::process::id()));
    fs::create_dir_all(&victims).expect("directory of the victims");
    let service = target.service.clone();
    let names = ["request", "response", "event"]
        .iter()
        .flat_map(|ring| ["header", "data"].map(|part| format!("qb-{ring}-{service}-{part}")))
        .collect::<Vec<_>>();
    for name in &names {
        fs::write(victims.join(name), b"keep").expect("victim");
    }
    let inner = (target.clone(), victims.clone());
    target.undisturbed(|| {
        inner.0.clone().run_as(www_data(), move || {
            let (target, victims) = inner;
            let mut peer = connect(&target);
            let directory = peer.directory();
            let aside = directory.with_extension("aside");
            fs::rename(&directory, &aside).expect("rename");
            symlink(&victims, &directory).expect("link");
            target.probe(&mut peer);
            drop(peer);
            let end = Instant::now() + SOON;
            while fs::read_dir(&aside).is_ok_and(|mut d| d.next().is_some()) {
                assert!(Instant::now() < end, "files in the renamed directory stay");
                std::thread::sleep(Duration::from_millis(1));
            }
            // Its own litter.
            fs::remove_dir(&aside).expect("remove");
            fs::remove_file(&directory).expect("remove");
        });
    });
    for name in &names {
        assert_eq!(
            fs::read(victims.join(name)).expect("the victim still exists"),
            b"keep"
        );
    }
    fs::remove_dir_all(&victims).expect("cleaning up");
}

/// Files and directory as the protocol wants them: owners, modes, sizes (no attack).
pub fn ownership(target: &Target) {
    for identity in [ROOT, www_data()] {
        let inner = target.clone();
        target.run_as(identity, move || {
            let peer = connect(&inner);
            let stat = |path: std::path::PathBuf| {
                let meta = fs::metadata(path).expect("file");
                (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.len())
            };
            let directory = stat(peer.directory());
            let (uid, gid) = identity;
            assert_eq!((directory.0, directory.1, directory.2), (0o770, uid, gid));
            for ring in [&peer.request, &peer.response, &peer.event] {
                let header = stat(format!("{}-header", ring.prefix).into());
                assert!([8248, 8252].contains(&header.3));
                assert_eq!((header.0, header.1, header.2), (0o600, uid, gid));
                let data = stat(format!("{}-data", ring.prefix).into());
                assert_eq!(data, (0o600, uid, gid, 1_052_672));
            }
        });
    }
}
