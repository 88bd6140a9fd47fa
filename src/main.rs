//! `pmxcfs`: arguments, then [`pmxcfs::daemon`].
#![forbid(unsafe_code)]

fn main() {
    let code = pmxcfs::daemon::run(std::env::args_os().skip(1));
    pmxcfs::daemon::process::exit_now(code);
}
