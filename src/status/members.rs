//! What is known about the cluster: nodes, who is online, their addresses (status.md 4).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

use super::json::{push_escaped, push_u64};
use super::kvstore::KvTable;

/// One node of the cluster as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub id: u32,
    pub name: String,
}

/// The cluster as configured in corosync (cmap).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterInfo {
    pub name: String,
    /// `totem.config_version`; printed as a signed number.
    pub config_version: u32,
    /// A later node with the same id replaces the earlier one.
    pub nodes: Vec<Node>,
}

#[derive(Debug)]
struct Member {
    name: String,
    online: bool,
    /// Absent until the node sends its first value.
    kv: Option<KvTable>,
}

#[derive(Debug)]
struct Cluster {
    name: String,
    config_version: u32,
    nodes: BTreeMap<u32, Member>,
}

/// Cluster information and what belongs to it.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) version: u32,
    cluster: Option<Cluster>,
    /// Node ids of the kvstore group as it was last, known nodes or not.
    group: Vec<u32>,
    /// Node name to address. Entries are replaced, never removed.
    ips: HashMap<String, Box<[u8]>>,
}

impl Members {
    pub(super) fn count_change(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    /// New configuration. Nodes that stay keep their values; one that is new may be in the group
    /// already.
    pub(super) fn set_cluster(&mut self, info: ClusterInfo) {
        let mut old = self
            .cluster
            .take()
            .map(|cluster| cluster.nodes)
            .unwrap_or_default();
        let mut nodes = BTreeMap::new();
        for node in info.nodes {
            let kv = old.remove(&node.id).and_then(|member| member.kv);
            let member = Member {
                name: node.name,
                online: self.group.contains(&node.id),
                kv,
            };
            nodes.insert(node.id, member);
        }
        let (name, config_version) = (info.name, info.config_version);
        self.cluster = Some(Cluster {
            name,
            config_version,
            nodes,
        });
        self.count_change();
    }

    /// The kvstore group has these members now; counted even if nothing changed.
    pub(super) fn set_online(&mut self, members: &[u32]) {
        self.group = members.to_vec();
        if let Some(cluster) = &mut self.cluster {
            for (id, node) in &mut cluster.nodes {
                node.online = members.contains(id);
            }
            self.count_change();
        }
    }

    /// Sets the address of a node. True if it differs from the one before.
    pub(super) fn set_ip(&mut self, node: &str, ip: &[u8]) -> bool {
        if self.ips.get(node).is_some_and(|old| **old == *ip) {
            return false;
        }
        self.ips.insert(node.to_owned(), Box::from(ip));
        self.count_change();
        true
    }

    pub(super) fn ip(&self, node: &str) -> Option<&[u8]> {
        self.ips.get(node).map(|ip| &**ip)
    }

    pub(super) fn node_name(&self, id: u32) -> Option<&str> {
        Some(&self.cluster.as_ref()?.nodes.get(&id)?.name)
    }

    /// The table of a cluster node by id, created if need be.
    pub(super) fn kv_mut(&mut self, id: u32) -> Option<&mut KvTable> {
        let node = self.cluster.as_mut()?.nodes.get_mut(&id)?;
        Some(node.kv.get_or_insert_with(KvTable::default))
    }

    /// Name and table of every node that sent a value, by node id.
    pub(super) fn kv_tables(&self) -> impl Iterator<Item = (&str, &KvTable)> {
        self.cluster
            .iter()
            .flat_map(|cluster| cluster.nodes.values())
            .filter_map(|node| Some((node.name.as_str(), node.kv.as_ref()?)))
    }

    /// Text of `.members`.
    pub(super) fn text(&self, nodename: &str, quorate: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(b"{\n\"nodename\": \"");
        push_escaped(&mut out, nodename.as_bytes());
        out.extend_from_slice(b"\",\n\"version\": ");
        push_u64(&mut out, self.version.into());
        match &self.cluster {
            Some(cluster) if !cluster.nodes.is_empty() => {
                out.extend_from_slice(b",\n");
                self.push_cluster(cluster, quorate, &mut out);
            }
            _ => out.push(b'\n'),
        }
        out.extend_from_slice(b"}\n");
        out
    }

    fn push_cluster(&self, cluster: &Cluster, quorate: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\"cluster\": { \"name\": \"");
        push_escaped(out, cluster.name.as_bytes());
        // The C daemon prints the 32 bits as a signed number.
        let version = cluster.config_version as i32;
        let (count, quorate) = (cluster.nodes.len(), u8::from(quorate));
        out.extend_from_slice(
            format!("\", \"version\": {version}, \"nodes\": {count}, \"quorate\": {quorate} }},\n")
                .as_bytes(),
        );
        out.extend_from_slice(b"\"nodelist\": {\n");
        let mut first = true;
        for (id, node) in &cluster.nodes {
            if !first {
                out.extend_from_slice(b",\n");
            }
            first = false;
            out.extend_from_slice(b"  \"");
            push_escaped(out, node.name.as_bytes());
            let online = u8::from(node.online);
            out.extend_from_slice(format!("\": {{ \"id\": {id}, \"online\": {online}").as_bytes());
            if let Some(ip) = self.ips.get(&node.name) {
                out.extend_from_slice(b", \"ip\": \"");
                push_escaped(out, ip);
                out.push(b'"');
            }
            out.push(b'}');
        }
        out.extend_from_slice(b"\n  }\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(ids: &[u32], version: u32) -> ClusterInfo {
        let nodes = ids
            .iter()
            .map(|id| Node {
                id: *id,
                name: format!("node{id}"),
            })
            .collect();
        ClusterInfo {
            name: "lab".into(),
            config_version: version,
            nodes,
        }
    }

    #[test]
    fn without_a_cluster() {
        let mut members = Members::default();
        assert_eq!(
            members.text("node1", true),
            b"{\n\"nodename\": \"node1\",\n\"version\": 0\n}\n"
        );
        assert!(members.set_ip("node1", b"10.0.0.1"));
        assert!(!members.set_ip("node1", b"10.0.0.1"));
        members.set_online(&[1]);
        assert_eq!(
            members.text("node1", true),
            b"{\n\"nodename\": \"node1\",\n\"version\": 1\n}\n"
        );
    }

    #[test]
    fn who_is_configured_later_than_he_joined_is_online_and_counted_once() {
        let mut members = Members::default();
        members.set_online(&[1, 2]);
        assert_eq!(members.version, 0);
        members.set_cluster(lab(&[1], 1));
        members.set_cluster(lab(&[1, 2, 3], 2));
        assert_eq!(members.version, 2);
        let text = String::from_utf8(members.text("node1", true)).unwrap();
        assert_eq!(text.matches("\"online\": 1").count(), 2, "{text}");
    }

    #[test]
    fn a_full_cluster() {
        let mut members = Members::default();
        members.set_cluster(lab(&[2, 1], 1));
        members.set_online(&[1]);
        members.set_ip("node1", b"10.99.14.1");
        members.kv_mut(2).unwrap().set(b"k", b"v", 999);
        assert!(members.kv_mut(3).is_none());
        assert_eq!(
            String::from_utf8(members.text("node1", true)).unwrap(),
            "{\n\"nodename\": \"node1\",\n\"version\": 3,\n\"cluster\": { \"name\": \"lab\", \
             \"version\": 1, \"nodes\": 2, \"quorate\": 1 },\n\"nodelist\": {\n  \"node1\": { \
             \"id\": 1, \"online\": 1, \"ip\": \"10.99.14.1\"},\n  \"node2\": { \"id\": 2, \
             \"online\": 0}\n  }\n}\n"
        );
        // A reload keeps what is known about nodes that stay.
        members.set_cluster(lab(&[1, 2], 2));
        assert_eq!(
            members
                .kv_tables()
                .map(|(name, _)| name)
                .collect::<Vec<_>>(),
            ["node2"]
        );
        members.set_cluster(lab(&[1], 3));
        assert_eq!(members.kv_tables().count(), 0);
        assert_eq!(members.version, 5);
        assert_eq!(members.node_name(1), Some("node1"));
    }
}
