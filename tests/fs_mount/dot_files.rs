//! Dot files, and the switch that is one.

use std::io::Write;

use super::*;

#[test]
fn dot_files_keep_what_was_opened() {
    let f = fixture();
    let name = f.file(".version");
    // While a change of the root is under way, a name that is known keeps its number.
    let mut before = 0;
    wait_until("the changes of the root are settled", || {
        f.dots.extra.fetch_add(1, Ordering::SeqCst);
        let now = fs::metadata(&name).unwrap().ino();
        ![0, now].contains(&std::mem::replace(&mut before, now))
    });
    let text = fs::read_to_string(&name).unwrap();
    let ino = fs::metadata(&name).unwrap().ino();
    assert_eq!(fs::metadata(&name).unwrap().ino(), ino);
    assert_eq!(fs::metadata(&name).unwrap().len(), text.len() as u64);
    let mut open = File::open(&name).unwrap();
    f.dots.extra.store(1_234_567, Ordering::SeqCst);
    let new = fs::read_to_string(&name).unwrap();
    assert!(new.contains("1234567") && new.len() > text.len(), "{new}");
    assert_ne!(fs::metadata(&name).unwrap().ino(), ino);
    let mut old = String::new();
    open.read_to_string(&mut old).unwrap();
    assert_eq!(old, text);
    assert_eq!(open.metadata().unwrap().len(), text.len() as u64);
}

#[test]
fn awaited_dot_file_blocks_nobody_else() {
    let f = fixture();
    f.dots.hold();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read_to_string(f.file(".version")).unwrap());
        wait_until("reader is waiting", || f.dots.waiting() > 0);
        // The lock of the directory is free.
        fs::write(f.file("in-root"), "x").unwrap();
        f.dots.extra.store(42, Ordering::SeqCst);
        f.dots.release();
        assert!(reader.join().unwrap().contains("\"clinfo\": 42"));
    });
}

#[test]
fn dot_files_are_fresh_while_a_change_of_the_root_is_blocked() {
    let f = fixture();
    let read = || fs::read_to_string(f.file(".version")).unwrap();
    let before = read();
    let mut open = File::open(f.file(".version")).unwrap();
    f.replica.hold();
    std::thread::scope(|scope| {
        scope.spawn(|| fs::create_dir(f.file("blocked")).unwrap());
        wait_until("writer is waiting", || f.replica.waiting() == 1);
        assert_eq!(read(), before);
        for n in [1, 2, 30_000, 4] {
            f.dots.extra.store(n, Ordering::SeqCst);
            assert!(read().contains(&format!("\"clinfo\": {n},")));
            assert_eq!(
                fs::metadata(f.file(".version")).unwrap().len(),
                read().len() as u64
            );
        }
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, read());
        f.replica.release();
    });
    f.dots.extra.store(5, Ordering::SeqCst);
    assert!(read().contains("\"clinfo\": 5,"));
}

#[test]
fn debug_switch() {
    let f = fixture();
    let name = f.file(".debug");
    let write = |data: &[u8]| {
        OpenOptions::new()
            .write(true)
            .open(&name)
            .unwrap()
            .write(data)
    };
    for on in ["1\n", "0\n", "1\n", "1\n", "0\n"] {
        assert_eq!(write(on.as_bytes()).unwrap(), 2);
        assert_eq!(fs::read_to_string(&name).unwrap(), on);
    }
    assert_eq!(write(b"1\nxyz").unwrap(), 2);
    assert_eq!(errno(write(b"0")), libc::EIO);
    assert_eq!(errno(write(b"2\n")), libc::EIO);
    assert_eq!(fs::read_to_string(&name).unwrap(), "1\n");
    fs::write(&name, "0\n").unwrap();
    assert_eq!(fs::read_to_string(&name).unwrap(), "0\n");
    assert_eq!(
        errno(
            OpenOptions::new()
                .append(true)
                .open(&name)
                .unwrap()
                .write(b"1\n")
        ),
        libc::EIO
    );
    assert_eq!(
        errno(
            OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(f.file(".members"))
        ),
        libc::EIO
    );
}
