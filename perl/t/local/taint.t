#!/usr/bin/perl -T

# Arguments that Perl does not trust: names become fit for a path by what they are compared with,
# everything else only goes through the connection or into a file.
use strict;
use warnings;

use Scalar::Util qw(tainted);
use Test::More;

use Caught qw(died);
use LabNode qw(content);
use PVE::Cluster qw(cfs_lock_file cfs_read_file cfs_register_file cfs_write_file);

my $nothing = substr($ENV{PATH} // $0, 0, 0);
sub foul { my ($text) = @_; return $text . $nothing }
ok(tainted(foul('x')), 'taint mode is on');
like(died(sub { mkdir(foul('/etc/pve/perl-foul')) }), qr/^Insecure dependency in mkdir/, 'and refuses');

mkdir("/etc/pve/$_") for qw(priv nodes nodes/node1 nodes/node1/qemu-server);
my %done = (
    cfs_register_file => sub { cfs_register_file(foul('domains.cfg'), sub { $_[1] }, sub { $_[1] }) },
    '/qemu-server/' => sub { cfs_register_file(foul('/qemu-server/'), sub { $_[1] }, sub { $_[1] }) },
);
is(died($done{$_}), '', $_) for sort keys %done;
my $guest = 'nodes/node1/qemu-server/100.conf';
my @calls = (
    cfs_update => sub { PVE::Cluster::cfs_update(foul(1)) },
    cfs_write_file => sub { cfs_write_file(foul('domains.cfg'), foul("text\n")) },
    cfs_read_file => sub { cfs_read_file(foul('domains.cfg')) eq "text\n" or die 'content' },
    'cfs_write_file, guest' => sub { cfs_write_file(foul($guest), foul("name: a\n")) },
    'cfs_read_file, guest' => sub { cfs_read_file(foul($guest)) eq "name: a\n" or die 'content' },
    cfs_file_version => sub { PVE::Cluster::cfs_file_version(foul('domains.cfg')) },
    get_config => sub { PVE::Cluster::get_config(foul('domains.cfg')) eq "text\n" or die 'content' },
    broadcast_node_kv => sub { PVE::Cluster::broadcast_node_kv(foul('k'), foul('v')) },
    get_node_kv => sub { PVE::Cluster::get_node_kv(foul('k'), foul('node1'))->{node1} eq 'v' or die 'value' },
    'broadcast_node_kv, remove' => sub { PVE::Cluster::broadcast_node_kv(foul('k')) },
    broadcast_tasklist => sub { PVE::Cluster::broadcast_tasklist([{ id => foul('1') }]) },
    broadcast_rrd => sub { PVE::Cluster::broadcast_rrd(foul('id'), foul('1:2')) },
    log_msg => sub { PVE::Cluster::log_msg(foul('info'), foul('user'), foul('message')) },
    get_cluster_log => sub { PVE::Cluster::get_cluster_log(foul('user'), foul(1)) =~ m/message/ or die 'log' },
    verify_token => sub { PVE::Cluster::verify_token(foul('a@b!c'), foul('d')) == 0 or die 'token' },
    get_guest_config_property => sub { PVE::Cluster::get_guest_config_property(foul('name'), foul(100))->{100} or die 'none' },
    get_guest_config_properties => sub { PVE::Cluster::get_guest_config_properties([foul('name')])->{100} or die 'none' },
    check_vmid_unused => sub { PVE::Cluster::check_vmid_unused(foul(101)) },
    check_node_exists => sub { PVE::Cluster::check_node_exists(foul('node1'), foul(1)) },
    remote_node_ip => sub { PVE::Cluster::remote_node_ip(foul('node1')) },
);
while (my ($name, $code) = splice(@calls, 0, 2)) {
    is(died($code), '', $name);
}
like(died(sub { PVE::Cluster::get_node_fingerprint(foul('node1')) }), qr!^unable to read '/etc/pve/nodes/node1!, 'get_node_fingerprint');

my %locks = (
    cfs_lock_file => sub { cfs_lock_file(foul('domains.cfg'), foul(2), sub { $_[0] }, foul('x')) },
    map {
        my $lock = PVE::Cluster->can("cfs_lock_$_");
        ("cfs_lock_$_" => sub { $lock->(foul('name'), foul(2), sub { $_[0] }, foul('x')) });
    } qw(storage domain acme firewall),
);
is_deeply([scalar($locks{$_}->()), $@], ['x', undef], $_) for sort keys %locks;
is_deeply([glob('/etc/pve/priv/lock/*')], [], 'locks are free');
unlink("/etc/pve/$_") for 'domains.cfg', $guest;

done_testing();
