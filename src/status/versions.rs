//! Change counters of the files that Perl clients cache (status.md 3).
#![forbid(unsafe_code)]

use super::json::push_u64;
use crate::memdb::TreePath;

/// The paths that have a counter, in the order of `.version`. Equals the `$observed` table of
/// PVE::Cluster of the release this daemon replaces.
pub const TRACKED: [&str; 43] = [
    "corosync.conf",
    "corosync.conf.new",
    "storage.cfg",
    "user.cfg",
    "domains.cfg",
    "notifications.cfg",
    "priv/notifications.cfg",
    "priv/shadow.cfg",
    "priv/acme/plugins.cfg",
    "priv/tfa.cfg",
    "priv/token.cfg",
    "priv/wg-keys.cfg",
    "datacenter.cfg",
    "vzdump.cron",
    "vzdump.conf",
    "jobs.cfg",
    "ha/crm_commands",
    "ha/manager_status",
    "ha/resources.cfg",
    "ha/rules.cfg",
    "ha/groups.cfg",
    "ha/fence.cfg",
    "status.cfg",
    "replication.cfg",
    "ceph.conf",
    "sdn/vnets.cfg",
    "sdn/zones.cfg",
    "sdn/controllers.cfg",
    "sdn/subnets.cfg",
    "sdn/ipams.cfg",
    "sdn/mac-cache.json",
    "sdn/pve-ipam-state.json",
    "sdn/dns.cfg",
    "sdn/fabrics.cfg",
    "sdn/route-maps.cfg",
    "sdn/prefix-lists.cfg",
    "sdn/.running-config",
    "virtual-guest/cpu-models.conf",
    "virtual-guest/profiles.cfg",
    "firewall/cluster.fw",
    "mapping/directory.cfg",
    "mapping/pci.cfg",
    "mapping/usb.cfg",
];

/// Place of `path` in [`TRACKED`].
pub fn tracked(path: &TreePath) -> Option<usize> {
    TRACKED
        .iter()
        .position(|known| known.as_bytes() == path.as_bytes())
}

/// One wrapping counter per tracked path; all 0 before the database is loaded.
#[derive(Debug, Clone)]
pub(super) struct FileVersions([u32; TRACKED.len()]);

impl FileVersions {
    pub(super) fn new() -> Self {
        FileVersions([0; TRACKED.len()])
    }

    /// Counts one change. False if the path has no counter.
    pub(super) fn touch(&mut self, path: &TreePath) -> bool {
        match tracked(path) {
            Some(i) => {
                self.0[i] = self.0[i].wrapping_add(1);
                true
            }
            None => false,
        }
    }

    /// The database was loaded or replaced: everything may have changed.
    pub(super) fn touch_all(&mut self) {
        for version in &mut self.0 {
            *version = version.wrapping_add(1);
        }
    }

    /// Appends the lines of `.version`, each with a comma.
    pub(super) fn push_lines(&self, out: &mut Vec<u8>) {
        for (path, version) in TRACKED.iter().zip(self.0) {
            out.push(b'"');
            out.extend_from_slice(path.as_bytes());
            out.extend_from_slice(b"\": ");
            push_u64(out, version.into());
            out.extend_from_slice(b",\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_paths_count() {
        let mut versions = FileVersions::new();
        assert!(versions.touch(&TreePath::new(b"/storage.cfg")));
        assert!(!versions.touch(&TreePath::new(b"storage.cfg.tmp.1")));
        assert!(!versions.touch(&TreePath::new(b"priv")));
        versions.touch_all();
        let mut out = Vec::new();
        versions.push_lines(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\"storage.cfg\": 2,\n"));
        assert!(text.starts_with("\"corosync.conf\": 1,\n"));
        assert!(text.ends_with("\"mapping/usb.cfg\": 1,\n"));
        assert_eq!(text.lines().count(), 43);
    }

    #[test]
    fn counters_wrap() {
        let mut versions = FileVersions::new();
        versions.0[2] = u32::MAX;
        versions.touch(&TreePath::new(b"storage.cfg"));
        assert_eq!(versions.0[2], 0);
    }
}
