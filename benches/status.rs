//! What the status services cost with 10,000 guests: one line per operation, with the ratio to
//! copying the answer, which nobody can do without.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;
use pmxcfs::ipc::service::{ConfigService, NeverPending, NoPeers};
use pmxcfs::ipc::{Client, Service};
use pmxcfs::memdb::{Effects, Op, Stamp, Tree, TreePath};
use pmxcfs::replica::SharedTree;
use pmxcfs::status::Status;

const GUESTS: u32 = 10_000;
const NODES: u32 = 32;
const CONFIG: &str = "agent: 1\nballoon: 1024\nboot: order=scsi0;ide2;net0\ncores: 4\n\
    cpu: x86-64-v2-AES\nide2: local:iso/debian.iso,media=cdrom,size=629M\nmemory: 4096\n\
    meta: creation-qemu=9.0.2,ctime=1727340000\nname: vm-test\n\
    net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\nnuma: 0\nonboot: 1\nostype: l26\n\
    scsi0: local-lvm:vm-100-disk-0,discard=on,iothread=1,size=32G,ssd=1\nsockets: 1\n\
    scsihw: virtio-scsi-single\nsmbios1: uuid=aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee\n\
    tags: a;b\nvmgenid: 11111111-2222-3333-4444-555555555555\n";

fn apply(tree: &SharedTree, op: Op) -> Effects {
    let change = tree.write().apply(
        &op,
        Stamp {
            writer: 0,
            mtime: 5,
        },
        5,
    );
    change
        .expect("the tree is empty at first, every path is new")
        .effects
}

fn config(guest: u32) -> TreePath {
    let path = format!("nodes/n{}/qemu-server/{}.conf", guest % NODES, 100 + guest);
    TreePath::new(path.as_bytes())
}

fn write(tree: &SharedTree, guest: u32) -> Effects {
    let data = CONFIG.as_bytes().to_vec();
    apply(
        tree,
        Op::Write {
            path: config(guest),
            offset: 0,
            data,
            truncate: false,
        },
    )
}

fn filled_tree() -> SharedTree {
    let tree: SharedTree = Arc::new(RwLock::new(Tree::new()));
    apply(
        &tree,
        Op::Mkdir {
            path: TreePath::new(b"nodes"),
        },
    );
    for node in 0..NODES {
        for dir in ["", "/qemu-server"] {
            let path = TreePath::new(format!("nodes/n{node}{dir}").as_bytes());
            apply(&tree, Op::Mkdir { path });
        }
    }
    for guest in 0..GUESTS {
        apply(
            &tree,
            Op::Create {
                path: config(guest),
            },
        );
        write(&tree, guest);
    }
    tree
}

fn message(id: i32, payload: &[u8]) -> Vec<u8> {
    // Requests are far smaller than 4 GiB.
    let size = 16 + payload.len() as u32;
    [
        &id.to_le_bytes()[..],
        &[0; 4],
        &size.to_le_bytes(),
        &[0; 4],
        payload,
    ]
    .concat()
}

/// Best of `runs`, in microseconds; `before` is not counted.
fn best(runs: u32, mut before: impl FnMut(), mut what: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..runs {
        before();
        let start = Instant::now();
        what();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best * 1e6
}

fn main() {
    let tree = filled_tree();
    let status = Arc::new(Status::new("n0", 5, 1));
    status.reloaded(&tree.read());
    let (replica, pending) = (Arc::new(NoPeers), Arc::new(NeverPending));
    let clock = Arc::new(|| 5);
    let mut service = ConfigService::new(
        Arc::clone(&tree),
        Arc::clone(&status),
        replica,
        pending,
        clock,
    );
    let client = Client {
        pid: 1,
        uid: 0,
        gid: 0,
        read_only: false,
    };
    let mut out = Vec::with_capacity(1 << 20);
    let mut bench = |name: &str, runs: u32, message: &[u8], before: &dyn Fn()| {
        let time = best(runs, before, || {
            out.clear();
            service.handle(&client, message, true, &mut out);
        });
        let mut copy = Vec::with_capacity(out.len());
        let copying = best(
            200,
            || {},
            || {
                copy.clear();
                copy.extend_from_slice(black_box(&out));
            },
        );
        println!(
            "{name:<40} {time:>9.2} us {:>8} bytes {:>8.1} x copying",
            out.len(),
            time / copying.max(0.001)
        );
    };
    let properties = message(13, b"\0\0\0\0\x02tags\0lock\0");
    let other = || {
        drop(apply(
            &tree,
            Op::SetMtime {
                path: TreePath::new(b"nodes"),
                mtime: 6,
            },
        ))
    };
    let one = || status.announce(&write(&tree, 77));
    let user = Effects {
        touched: vec![TreePath::new(b"user.cfg")],
        guests: Vec::new(),
    };
    bench("properties of all, first time", 1, &properties, &|| {});
    bench(
        "properties of all, nothing changed",
        100,
        &properties,
        &|| {},
    );
    bench(
        "properties of all, another file changed",
        100,
        &properties,
        &other,
    );
    bench(
        "properties of all, one guest changed",
        100,
        &properties,
        &one,
    );
    bench("guest list", 100, &message(3, b""), &|| {});
    bench("guest list, one guest changed", 100, &message(3, b""), &one);
    bench("versions", 1000, &message(1, b""), &|| {});
    bench(
        "versions, one file changed",
        1000,
        &message(1, b""),
        &|| status.announce(&user),
    );
    let log = message(7, b"\x06\x09\x0aroot@pam\0pvedaemon\0hello world\0");
    bench("log", 1000, &log, &|| {});
}
