//! Texts, counters and what belongs to a removed guest.

use super::*;
use crate::memdb::{GuestType, Op, Stamp, TreePath};

fn touched(path: &str) -> Effects {
    Effects {
        touched: vec![TreePath::new(path.as_bytes())],
        guests: Vec::new(),
    }
}

fn guests(events: &[GuestEvent]) -> Effects {
    Effects {
        touched: Vec::new(),
        guests: events.to_vec(),
    }
}

#[test]
fn texts_are_built_once_per_change() {
    let status = Status::new("node1", 5, 1);
    let (version, members) = (status.version_text(), status.members_text());
    let vmlist = status.vmlist_text();
    status.announce(&touched("nodes/node1/host.fw"));
    assert!(Arc::ptr_eq(&version, &status.version_text()));
    status.announce(&touched("user.cfg"));
    assert!(!Arc::ptr_eq(&version, &status.version_text()));
    assert!(Arc::ptr_eq(&vmlist, &status.vmlist_text()));
    assert!(Arc::ptr_eq(&members, &status.members_text()));
    assert!(!status.set_quorate(false));
    assert!(status.set_quorate(true));
    assert!(!Arc::ptr_eq(&members, &status.members_text()));
}

#[test]
fn what_is_relevant() {
    assert!(Status::is_relevant(&touched("user.cfg")));
    assert!(!Status::is_relevant(&touched("user.cfg.tmp.1")));
    assert!(!Status::is_relevant(&Effects::default()));
    assert!(Status::is_relevant(&guests(&[GuestEvent::Remove {
        vmid: 1
    }])));
}

#[test]
fn data_of_a_guest_goes_with_it() {
    let status = Status::new("node1", 5, 1);
    let set = |node| GuestEvent::Set {
        vmid: 100,
        node: Arc::from(node),
        kind: GuestType::Lxc,
    };
    let remove = GuestEvent::Remove { vmid: 100 };
    status.announce(&guests(&[set("node1")]));
    status.set_kv(b"rrd/pve-vm-9.0/100", b"1:2\0", 5).unwrap();
    status.announce(&guests(&[remove.clone(), set("node2")]));
    assert_eq!(&*status.rrd_text(5), b"pve-vm-9.0/100:1:2\n");
    status.announce(&guests(&[remove]));
    assert_eq!(&*status.rrd_text(5), b"");
    // The same if the removal was missed and came with a whole new tree.
    status.announce(&guests(&[set("node1")]));
    status.set_kv(b"rrd/pve-vm-9.0/100", b"1:2\0", 5).unwrap();
    let mut tree = Tree::new();
    status.reloaded(&tree);
    assert_eq!(&*status.rrd_text(8), b"pve-vm-9.0/100:1:2\n");
    let (path, stamp) = (
        TreePath::new(b"nodes"),
        Stamp {
            writer: 1,
            mtime: 1,
        },
    );
    tree.apply(&Op::Mkdir { path }, stamp, 1).unwrap();
    status.reloaded(&tree);
    assert_eq!(&*status.rrd_text(8), b"");
}

#[test]
fn many_threads() {
    let status = Status::new("node1", 5, 1);
    std::thread::scope(|scope| {
        for i in 0..4 {
            let status = &status;
            scope.spawn(move || {
                for n in 0..250u32 {
                    status.announce(&touched("user.cfg"));
                    status.set_kv(format!("k{i}").as_bytes(), b"v", n).unwrap();
                    status.log(b"root", b"t", 1, 6, b"m", n).unwrap();
                    status.set_kv(b"rrd/k", b"1\0", n).unwrap();
                    let text = String::from_utf8(status.version_text().to_vec()).unwrap();
                    assert!(text.contains(&format!("\"k{i}\": {n}")), "{text}");
                    status.clusterlog_text(b"", 0);
                    status.rrd_text(n);
                }
            });
        }
    });
    let text = String::from_utf8(status.version_text().to_vec()).unwrap();
    assert!(text.contains("\"user.cfg\": 1000,\n"));
}
