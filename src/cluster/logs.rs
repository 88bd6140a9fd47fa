//! Log lines of the services.
#![forbid(unsafe_code)]

use crate::dfsm::Level;

/// The services of cluster-protocol.md 1, as log domains. A domain has to be a literal where the
/// line is written.
pub(super) fn log(domain: &str, level: Level, text: &str) {
    macro_rules! write_to {
        ($domain:literal) => {
            match level {
                Level::Critical => tracing::error!(target: $domain, "{text}"),
                Level::Warning => tracing::warn!(target: $domain, "{text}"),
                Level::Notice => tracing::info!(target: $domain, "{text}"),
                Level::Debug => tracing::debug!(target: $domain, "{text}"),
            }
        };
    }
    match domain {
        "quorum" => write_to!("quorum"),
        "confdb" => write_to!("confdb"),
        "dcdb" => write_to!("dcdb"),
        "status" => write_to!("status"),
        _ => write_to!("main"),
    }
}
