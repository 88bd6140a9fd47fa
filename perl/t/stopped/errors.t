use strict;
use warnings;

use Test::More;

use Caught qw(died warned);
use LabNode ();
use PVE::Cluster qw(cfs_read_file cfs_register_file cfs_write_file);
use PVE::SafeSyslog;

# No daemon runs, and none is about to come back.
cfs_register_file('user.cfg', sub { 'parsed' }, sub { $_[1] });

# An orderly stop has left the flag that makes clients wait for the next start.
unlink('/run/pve-cluster/cfs-restart-flag');
my $start = time();

is(
    died(sub { PVE::Cluster::check_cfs_is_mounted() }),
    "pve configuration filesystem (pmxcfs) not mounted\n",
    'check_cfs_is_mounted',
);
is_deeply([PVE::Cluster::check_cfs_is_mounted(1)], [undef], 'check_cfs_is_mounted, no error');
is(died(sub { PVE::Cluster::check_cfs_quorum() }), "cluster not ready - no quorum?\n", 'check_cfs_quorum');
is_deeply([PVE::Cluster::check_cfs_quorum(1)], [undef], 'check_cfs_quorum, no error');

sub refused { return join('', map { "ipcc_send_rec[$_] failed: Connection refused\n" } @_) }

is(warned(sub { PVE::Cluster::cfs_update() }), refused(1, 2, 3), 'cfs_update');
is(died(sub { PVE::Cluster::cfs_update(1) }), refused(1), 'cfs_update, fatal');
is(warned(sub { PVE::Cluster::broadcast_node_kv('k', 'v') }), refused(4), 'broadcast_node_kv');
is(warned(sub { PVE::Cluster::broadcast_node_kv('k') }), refused(4), 'broadcast_node_kv, remove');
is(warned(sub { PVE::Cluster::broadcast_tasklist([{}]) }), refused(4), 'broadcast_tasklist');
is(warned(sub { PVE::Cluster::broadcast_rrd('a', '1:2') }), refused(4), 'broadcast_rrd');
is(warned(sub { is_deeply(PVE::Cluster::rrd_dump(), {}, 'rrd_dump') }), refused(10), 'rrd_dump');
is(warned(sub { is_deeply(PVE::Cluster::get_node_kv('k'), {}, 'get_node_kv') }), '', 'get_node_kv');
is(warned(sub { is_deeply(PVE::Cluster::get_tasklist(), [], 'get_tasklist') }), '', 'get_tasklist');
is(died(sub { PVE::Cluster::get_config('user.cfg') }), "Connection refused\n", 'get_config');
is(died(sub { cfs_read_file('user.cfg') }), "Connection refused\n", 'cfs_read_file');
is(died(sub { PVE::Cluster::get_cluster_log() }), refused(8), 'get_cluster_log');
is(died(sub { PVE::Cluster::verify_token('a', 'b') }), "Connection refused\n", 'verify_token');
is(died(sub { PVE::Cluster::get_guest_config_property('a') }), refused(11), 'get_guest_config_property');
is(died(sub { PVE::Cluster::get_guest_config_properties(['a']) }), refused(13), '…_properties');
is(warned(sub { PVE::Cluster::log_msg('info', 'r', 'm') }), '', 'log_msg');
is_deeply(
    [PVE::SafeSyslog::taken()],
    [[6, '<r> m'], ['err', 'writing cluster log failed: ' . refused(7)]],
    'log_msg: syslog',
);
like(
    warned(sub { PVE::Cluster::prepare_observed_file_basedirs() }),
    qr/\(pmxcfs\) not mounted, no directories created$/,
    'prepare_observed_file_basedirs',
);
is_deeply(PVE::Cluster::get_nodelist(), ['node1'], 'get_nodelist');
is(PVE::Cluster::get_members(), undef, 'get_members');

is(
    died(sub { cfs_write_file('user.cfg', 'x') }),
    "pve configuration filesystem (pmxcfs) not mounted\n",
    'cfs_write_file does not write behind the mount',
);
is(PVE::Cluster::cfs_lock_domain('x', 2, sub { 1 }), undef, 'a lock');
is($@, "cfs-lock 'domain-x' error: no quorum!\n", 'has no quorum');
is_deeply([glob('/etc/pve/*')], [], 'nothing was left behind the mount');

cmp_ok(time() - $start, '<', 5, 'no waiting without it');

done_testing();
