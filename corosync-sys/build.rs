//! Links corosync's client libraries.

fn main() {
    for library in ["libcpg", "libcmap", "libquorum", "libcorosync_common"] {
        if let Err(err) = pkg_config::Config::new()
            .atleast_version("3")
            .probe(library)
        {
            eprintln!("{err}");
            eprintln!(
                "Debian packages: pkg-config libcpg-dev libcmap-dev libquorum-dev \
                 libcorosync-common-dev"
            );
            std::process::exit(1);
        }
    }
}
