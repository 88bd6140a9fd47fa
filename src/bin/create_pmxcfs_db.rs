//! `create_pmxcfs_db <dir> <file.db>`: makes a database from the regular files of a folder.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

/// What the C tool's `exit(-1)` gives.
const FAILURE: u8 = 255;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [dir, db] = args.as_slice() else {
        eprintln!("Usage: create_pmxcfs_db /a/dir /a/filename.db");
        return ExitCode::from(FAILURE);
    };
    // Low 32 bits, as the database has it.
    let now = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_secs() as u32);
    match pmxcfs::store::import_dir(Path::new(dir), Path::new(db), now) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", pmxcfs::errno_text::plain_errno(&error.to_string()));
            ExitCode::from(FAILURE)
        }
    }
}
