use strict;
use warnings;

use Test::More;
use Time::HiRes ();

use Caught qw(died printed);
use LabNode qw(content);
use PVE::Cluster qw(cfs_read_file cfs_register_file cfs_write_file);

# The database has a corosync.conf, corosync does not run: everything can be read, nothing written.
cfs_register_file('user.cfg', sub { $_[1] }, sub { $_[1] });

is(PVE::Cluster::check_cfs_is_mounted(), 1, 'mounted');
is(died(sub { PVE::Cluster::check_cfs_quorum() }), "cluster not ready - no quorum?\n", 'no quorum');
is_deeply([PVE::Cluster::check_cfs_quorum(1)], [undef], 'no quorum, no error');

PVE::Cluster::cfs_update(1);
is(cfs_read_file('user.cfg'), "old\n", 'files can be read');
like(died(sub { cfs_write_file('user.cfg', "new\n") }), qr/Permission denied$/, 'but not written');
is(content('/etc/pve/user.cfg'), "old\n", 'nothing changed');
PVE::Cluster::broadcast_node_kv('k', 'v');
is_deeply(PVE::Cluster::get_node_kv('k'), { node1 => 'v' }, 'values can be told');
PVE::Cluster::log_msg('info', 'r', 'without quorum');
like(PVE::Cluster::get_cluster_log(), qr/without quorum/, 'and messages');

my ($result, $error);
my $start = Time::HiRes::time();
my $said = printed(sub { $result = PVE::Cluster::cfs_lock_file('user.cfg', 2, sub { 1 }); $error = $@ }, \*STDERR);
is_deeply([$result, $error], [undef, "cfs-lock 'file-user_cfg' error: no quorum!\n"], 'no lock');
like($said, qr/^(?:trying to acquire cfs lock 'file-user_cfg' \.\.\.\n){1,2}\z/, 'tells that it waits');
cmp_ok(abs(Time::HiRes::time() - $start - 2.5), '<', 1.5, 'for as long as it may');

done_testing();
