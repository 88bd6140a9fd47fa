use strict;
use warnings;

use JSON ();
use Socket qw(AF_INET);
use Test::More;

use Caught qw(died);
use LabNode qw(content put until_true);
use PVE::Cluster qw(cfs_read_file cfs_register_file);

# Node 1 of three; tell.pl has run on the other two.
PVE::Cluster::cfs_update(1);
my $members = PVE::Cluster::get_members();
is(join(' ', map { "$_:$members->{$_}->{id}:$members->{$_}->{online}" } sort keys %$members), 'node1:1:1 node2:2:1 node3:3:1', 'members');
is_deeply(PVE::Cluster::get_clinfo()->{cluster}->{nodes}, 3, 'cluster information');
is_deeply(PVE::Cluster::get_nodelist(), [qw(node1 node2 node3)], 'nodes');
is(PVE::Cluster::check_node_exists('node3'), 1, 'a node');
is(died(sub { PVE::Cluster::check_node_exists('node4') }), "no such cluster node 'node4'\n", 'no node');
is_deeply(PVE::Cluster::complete_migration_target(), [qw(node2 node3)], 'migration targets');
is(PVE::Cluster::check_cfs_quorum(), 1, 'quorum');

my ($address) = content('/etc/hosts') =~ m/^(\S+)\s+node2$/m;
my $ip = until_true(10, sub { PVE::Cluster::cfs_update(1); PVE::Cluster::get_members()->{node2}->{ip} });
is($ip, $address, 'the address that the node told');
is_deeply([PVE::Cluster::remote_node_ip('node2')], [$address, AF_INET], 'address and family');

my $values = until_true(10, sub {
    my $found = PVE::Cluster::get_node_kv('where');
    return $found->{node2} && $found->{node3} && $found;
});
is_deeply($values, { node2 => 'on node2', node3 => 'on node3' }, 'values of other nodes');
is_deeply(PVE::Cluster::get_node_kv('where', 'node3'), { node3 => 'on node3' }, 'of one');
my @upids = map { ("UPID:$_:1", "UPID:$_:2") } qw(node2 node3);
my $tasks = sub {
    PVE::Cluster::cfs_update(1);
    return [map { $_->{upid} } @{ PVE::Cluster::get_tasklist() }];
};
until_true(10, sub { @{ $tasks->() } == @upids });
is_deeply($tasks->(), \@upids, 'tasks of all nodes');
is_deeply(PVE::Cluster::get_tasklist('node1'), [], 'of a node without');
my $statistics = until_true(10, sub {
    my $data = PVE::Cluster::rrd_dump();
    return $data->{'pve-node-9.0/node2'} && $data->{'pve-node-9.0/node3'};
});
is_deeply($statistics, [undef, 1, 2], 'round-robin data of other nodes');
my $told = sub {
    my $log = JSON::decode_json(PVE::Cluster::get_cluster_log('teller@pam'));
    return [sort map { $_->{msg} } @{ $log->{data} }];
};
until_true(10, sub { @{ $told->() } == 2 });
is_deeply($told->(), ['told by node2', 'told by node3'], 'messages of other nodes');

done_testing();
