//! `pmxcfs`: arguments, then [`pmxcfs::daemon`].
#![forbid(unsafe_code)]

fn main() {}
