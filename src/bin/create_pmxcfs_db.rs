//! `create_pmxcfs_db <dir> <file.db>`.
#![forbid(unsafe_code)]

fn main() {}
