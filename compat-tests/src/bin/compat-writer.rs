//! Changes files without a pause and acknowledges each finished change on stdout. Used by the crash
//! test: what was acknowledged must be there after the daemon was killed.
//!
//! `compat-writer DIR SEED FIRST`: works in `DIR` (which it makes), numbers its changes from
//! `FIRST`. A line `N` is printed after change `N` has been accepted by the kernel; the changes are
//! [`compat_tests::model`]'s. Ends at the first error.
#![forbid(unsafe_code)]
use compat_tests::model;
use std::io::Write;
use std::path::PathBuf;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize| args[i].parse::<u64>().expect("a number");
    let (dir, seed, first) = (PathBuf::from(&args[1]), number(2), number(3));
    if std::fs::create_dir_all(&dir).is_err() {
        return;
    }
    let mut out = std::io::stdout();
    for n in first.. {
        if model::change(seed, n).perform(&dir).is_err() {
            return;
        }
        if out
            .write_all(format!("{n}\n").as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            return;
        }
    }
}
