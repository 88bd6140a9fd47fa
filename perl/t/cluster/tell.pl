# Tells the cluster what the tests on another node look for.
use strict;
use warnings;

use LabNode ();
use PVE::Cluster;
use PVE::INotify;
use PVE::SafeSyslog;

my $node = PVE::INotify::nodename();
PVE::SafeSyslog::initlog('telltest');
PVE::Cluster::cfs_update(1);
PVE::Cluster::broadcast_node_kv('where', "on $node");
PVE::Cluster::broadcast_tasklist([{ upid => "UPID:$node:1" }, { upid => "UPID:$node:2" }]);
PVE::Cluster::broadcast_rrd("pve-node-9.0/$node", 'U:1:2');
PVE::Cluster::log_msg('notice', 'teller@pam', "told by $node");
