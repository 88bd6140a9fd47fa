use strict;
use warnings;

use FindBin ();
use Socket qw(AF_INET);
use Test::More;

use Caught qw(died printed warned);
use LabNode qw(content put);
use PVE::Cluster;

is(PVE::Cluster::base_dir(), '/etc/pve', 'base_dir');
is(PVE::Cluster::auth_dir(), '/etc/pve/priv', 'auth_dir');
is_deeply([PVE::Cluster::get_vmlist(), PVE::Cluster::get_clinfo()], [{}, {}], 'before the first update');
is_deeply(PVE::Cluster::complete_next_vmid(), [100], 'next id before the first update');

is(warned(sub { PVE::Cluster::cfs_update(1) }), '', 'cfs_update');
is(PVE::Cluster::get_clinfo()->{nodename}, 'node1', 'cluster information');
is_deeply(PVE::Cluster::get_vmlist(), { version => PVE::Cluster::get_vmlist()->{version} }, 'no guests');
is(PVE::Cluster::get_members(), undef, 'no cluster');
is_deeply(PVE::Cluster::get_nodelist(), ['node1'], 'node list');
is(died(sub { PVE::Cluster::check_node_exists('node1') }), "no such cluster node 'node1'\n", 'not a member');

put('nodes/node1/qemu-server/100.conf', "name: a\n");
put('nodes/node1/lxc/101.conf', "hostname: b\n");
put('nodes/node2/qemu-server/102.conf', "name: c\n");
is_deeply(PVE::Cluster::complete_vmid(), [], 'nothing new before the next update');
PVE::Cluster::cfs_update();
my $guests = PVE::Cluster::get_vmlist()->{ids};
is_deeply(
    { map { $_ => "$guests->{$_}->{type} on $guests->{$_}->{node}" } keys %$guests },
    { 100 => 'qemu on node1', 101 => 'lxc on node1', 102 => 'qemu on node2' },
    'guests',
);
is(PVE::Cluster::check_vmid_unused(103), 1, 'free id');
is_deeply([PVE::Cluster::check_vmid_unused(100, 1)], [undef], 'used id');
is(died(sub { PVE::Cluster::check_vmid_unused(102) }), "VM 102 already exists on node 'node2'\n", 'VM');
is(died(sub { PVE::Cluster::check_vmid_unused(101) }), "CT 101 already exists on node 'node1'\n", 'CT');
is_deeply(PVE::Cluster::complete_next_vmid(), [103], 'next id');
is_deeply(PVE::Cluster::complete_vmid(), [100, 101, 102], 'all ids');
is_deeply(PVE::Cluster::complete_local_vmid(), [100, 101], 'ids here');
is_deeply(PVE::Cluster::complete_migration_target(), [], 'no other node');
unlink("/etc/pve/$_") or die "$_: $!"
    for qw(nodes/node1/qemu-server/100.conf nodes/node1/lxc/101.conf nodes/node2/qemu-server/102.conf);
PVE::Cluster::cfs_update();
is_deeply(PVE::Cluster::complete_vmid(), [], 'guests are gone');

my ($address) = (content('/etc/hosts') // '') =~ m/^(\S+)\s+node1$/m;
is_deeply([PVE::Cluster::remote_node_ip('node1')], [$address, AF_INET], 'address by name');
is(scalar(PVE::Cluster::remote_node_ip('node1')), $address, 'address alone');
like(died(sub { PVE::Cluster::remote_node_ip('no.such.node.invalid') }), qr/lookup/, 'no address');
is(died(sub { PVE::Cluster::remote_node_ip('no.such.node.invalid', 1) }), '', 'no address, no error');

is(PVE::Cluster::check_cfs_quorum(), 1, 'quorum');
is(PVE::Cluster::check_cfs_is_mounted(), 1, 'mounted');

my @dirs = qw(firewall ha mapping priv/acme sdn virtual-guest);
rmdir("/etc/pve/$_") for @dirs;
mkdir('/etc/pve/ha') or die $!;
my $lines = join('', map { "creating directory '/etc/pve/$_' for observed files\n" } grep { $_ ne 'ha' } @dirs);
is(printed(sub { PVE::Cluster::prepare_observed_file_basedirs() }), $lines, 'directories are announced');
is(join(' ', grep { -d "/etc/pve/$_" } @dirs), "@dirs", 'and are there');
is(printed(sub { PVE::Cluster::prepare_observed_file_basedirs() }), '', 'nothing to do');

my %fingerprint;
for my $node (1, 2) {
    my $certificate = content("$FindBin::Bin/../data/node$node.pem");
    put("nodes/node2/$_->[1]", $certificate) for grep { $_->[0] == $node } [1, 'pve-ssl.pem'], [2, 'new.pem'];
    $fingerprint{$node} = (content("$FindBin::Bin/../data/fingerprints") =~ m/^node$node (\S+)$/m)[0];
}
is(PVE::Cluster::get_node_fingerprint('node2'), $fingerprint{1}, 'pve-ssl.pem');
rename('/etc/pve/nodes/node2/new.pem', '/etc/pve/nodes/node2/pveproxy-ssl.pem') or die $!;
is(PVE::Cluster::get_node_fingerprint('node2'), $fingerprint{2}, 'pveproxy-ssl.pem comes first');
like(died(sub { PVE::Cluster::get_node_fingerprint('node1') }), qr!'/etc/pve/nodes/node1/pve-ssl\.pem'!, 'none');
for my $bad ('../node2', 'a/b', '', "node2\n", '.', undef) {
    like(died(sub { PVE::Cluster::get_node_fingerprint($bad) }), qr/^invalid node name '/, 'no node name');
}
unlink("/etc/pve/nodes/node2/$_") for qw(pve-ssl.pem pveproxy-ssl.pem);

done_testing();
