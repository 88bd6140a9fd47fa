//! `pmxcfs`: arguments, then [`pmxcfs::daemon`].
#![forbid(unsafe_code)]

fn main() {
    let code = pmxcfs::daemon::run(std::env::args_os().skip(1));
    // Threads that hang in the kernel must not keep the process.
    std::process::exit(code);
}
