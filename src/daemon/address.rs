//! The node's own name and address (daemon.md 3 and 3.1).
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};

use super::StartError;

/// The host name in its two forms.
#[derive(Debug, PartialEq, Eq)]
pub struct HostName {
    /// Up to the first dot: the name of the node.
    pub short: String,
    /// As the kernel has it.
    pub full: String,
}

impl HostName {
    /// The kernel's.
    pub fn read() -> Result<Self, StartError> {
        Self::of(&rustix::system::uname().nodename().to_string_lossy())
    }

    fn of(full: &str) -> Result<Self, StartError> {
        match full.split('.').next() {
            Some(short) if !short.is_empty() => Ok(HostName {
                short: short.to_owned(),
                full: full.to_owned(),
            }),
            _ => Err(StartError::NodeName(full.to_owned())),
        }
    }

    /// Address of the short name or, if that has none, of the full one.
    pub fn resolve(&self) -> Result<IpAddr, StartError> {
        resolve(&self.short).or_else(|error| {
            if self.full == self.short {
                return Err(error);
            }
            resolve(&self.full).map_err(|_| error)
        })
    }
}

/// First address of `name`, in the order libc gives them, that others can reach this node by.
pub fn resolve(name: &str) -> Result<IpAddr, StartError> {
    let failed = |found: String| StartError::Resolve {
        name: name.to_owned(),
        found,
    };
    let addresses = match (name, 0).to_socket_addrs() {
        Ok(addresses) => addresses.map(|address| address.ip()),
        Err(err) => return Err(failed(err.to_string())),
    };
    let mut unusable = Vec::new();
    for ip in addresses {
        if !ip.is_loopback() && is_address(ip) {
            return Ok(ip);
        }
        if !unusable.contains(&ip.to_string()) {
            unusable.push(ip.to_string());
        }
    }
    Err(failed(format!("only {} found", unusable.join(", "))))
}

/// Can this be the address of one host at all? Link-local addresses can.
pub fn is_address(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_no_host_is_no_address() {
        let address = |s: &str| is_address(s.parse().unwrap());
        for not in [
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "224.0.0.1",
            "239.192.1.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            assert!(!address(not), "{not}");
        }
        for ip in [
            "10.99.14.1",
            "fe80::1",
            "127.0.0.1",
            "192.168.1.255",
            "240.0.0.1",
        ] {
            assert!(address(ip), "{ip}");
        }
    }

    #[test]
    fn localhost_has_no_usable_address() {
        let error = resolve("localhost").unwrap_err();
        assert!(matches!(error, StartError::Resolve { .. }));
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
    }

    #[test]
    fn addresses_may_stand_for_names() {
        assert_eq!(resolve("10.1.2.3").unwrap().to_string(), "10.1.2.3");
        assert!(resolve("0.0.0.0").is_err());
    }

    #[test]
    fn the_node_is_named_up_to_the_first_dot() {
        let name = HostName::of("node1.example.com").unwrap();
        assert_eq!(
            (name.short.as_str(), name.full.as_str()),
            ("node1", "node1.example.com")
        );
        assert!(HostName::of("").is_err() && HostName::of(".example.com").is_err());
        let both = HostName {
            short: "localhost".into(),
            full: "10.1.2.3".into(),
        };
        assert_eq!(both.resolve().unwrap().to_string(), "10.1.2.3");
    }
}
