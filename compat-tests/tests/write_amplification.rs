//! Bytes that reach the database files for what clients write.
//!
//! Counted by `wchar` of `/proc/<pid>/io`: every byte the daemon hands to write(2), pwrite(2) and
//! writev(2). That takes in the FUSE replies (16 to 120 bytes each, well below one percent here),
//! so it is an upper bound. `write_bytes` of the same file is printed beside it; it counts dirtied
//! page-cache pages, and so neither a page written twice before the kernel flushes it nor anything
//! on tmpfs. The last reading is taken after the process has ended and before it is reaped, so the
//! checkpoint of an orderly stop is part of the sum.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::daemon::{proc_value, wait_for};
use compat_tests::{Daemon, Lab, Subject, on_both, report};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

on_both!(one_write_call);

fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|s| s.lines().any(|l| l.starts_with("State:\tZ")))
}

/// Writes `count` files of `size` bytes in pieces of `piece`; the ratios running and after the end.
fn ratio(subject: &Subject, count: usize, size: usize, piece: usize) -> (f64, f64, f64) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let pid = daemon.pid();
    let io = |field: &str| proc_value(pid, "io", field).unwrap();
    let (wchar, write_bytes) = (io("wchar"), io("write_bytes"));
    node.inside(|| {
        let data = vec![b'x'; piece];
        for i in 0..count {
            let mut file = File::create(format!("/etc/pve/big{i}")).unwrap();
            for _ in 0..size / piece {
                assert_eq!(
                    file.write(&data).unwrap(),
                    piece,
                    "the call is not cut short"
                );
            }
        }
    });
    let total = (count * size) as f64;
    let running = (io("wchar") - wchar) as f64 / total;
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert!(
        wait_for(Duration::from_secs(20), || is_zombie(pid)),
        "the daemon does not end"
    );
    let all = (io("wchar") - wchar) as f64 / total;
    let pages = (io("write_bytes") - write_bytes) as f64 / total;
    assert_eq!(daemon.stop().code, 0);
    (running, all, pages)
}

fn one_write_call(subject: &Subject) {
    let name = subject.name();
    let (running, all, pages) = ratio(subject, 12, 512 * 1024, 512 * 1024);
    report(&format!(
        "write amplification [{name}]: 512 KiB in one call: {running:.2} x while running, {all:.2} x with the final \
         checkpoint (dirtied pages {pages:.2} x)"
    ));
    let (_, pieces, _) = ratio(subject, 2, 512 * 1024, 4096);
    report(&format!(
        "write amplification [{name}]: 512 KiB in 4 KiB pieces: {pieces:.1} x"
    ));
    if subject.is_ours() {
        assert!(all <= 2.5, "{all:.2} x is more than 2.5 x");
    }
}
