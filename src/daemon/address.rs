//! The node's own name and address (daemon.md 3 and 3.1).
#![forbid(unsafe_code)]

use std::net::{IpAddr, ToSocketAddrs};

use super::StartError;

/// Host name up to the first dot.
pub fn node_name() -> Result<String, StartError> {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    match name.split('.').next() {
        Some(first) if !first.is_empty() => Ok(first.to_owned()),
        _ => Err(StartError::NodeName),
    }
}

/// First address of `name`, in the order libc gives them, that is not a loopback address.
pub fn resolve(name: &str) -> Result<IpAddr, StartError> {
    (name, 0)
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.find_map(|a| usable(a.ip())))
        .ok_or_else(|| StartError::Resolve(name.to_owned()))
}

/// IPv4 outside 127.0.0.0/8 or IPv6 other than ::1; link-local addresses count.
fn usable(ip: IpAddr) -> Option<IpAddr> {
    (!ip.is_loopback()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_are_skipped_link_local_ones_are_not() {
        let usable = |s: &str| usable(s.parse().unwrap()).is_some();
        assert!(!usable("127.0.1.1"));
        assert!(!usable("::1"));
        assert!(usable("10.99.14.1"));
        assert!(usable("fe80::1"));
    }

    #[test]
    fn localhost_has_no_usable_address() {
        assert!(matches!(resolve("localhost"), Err(StartError::Resolve(_))));
    }
}
