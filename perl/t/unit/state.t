use strict;
use warnings;

use JSON ();
use Test::More;

use Caught qw(died warned);
use FakeIPCC;
use PVE::Cluster qw(cfs_read_file cfs_register_file);
use PVE::INotify;

my $local = PVE::INotify::nodename();

my $node = { id => 1, online => 1, ip => '192.0.2.1' };
my %version = (starttime => 1000, clinfo => 3, vmlist => 5, 'user.cfg' => 2);
my %clinfo = (nodename => $local, version => 3, nodelist => { $local => $node, nodeb => { id => 2 } });
my %vmlist = (version => 5, ids => { 100 => { node => $local, type => 'qemu', version => 7 } });

sub answers {
    FakeIPCC::answer(1, JSON::encode_json(\%version));
    FakeIPCC::answer(2, JSON::encode_json(\%clinfo));
    FakeIPCC::answer(3, JSON::encode_json(\%vmlist));
    FakeIPCC::taken();
    return;
}

# The operations of one cfs_update.
sub update {
    answers();
    PVE::Cluster::cfs_update(1);
    return FakeIPCC::operations();
}

subtest 'what is asked for' => sub {
    is(update(), '1 2 3', 'everything at first');
    is(update(), '1', 'versions only when nothing changed');
    $version{clinfo} = $clinfo{version} = 4;
    is(update(), '1 2', 'cluster information');
    $version{vmlist} = $vmlist{version} = 4;
    is(update(), '1 3', 'guest list, also when its version is lower');
    $version{vmlist} = $vmlist{version} = 0;
    is(update() . '/' . update(), '1 3/1 3', 'version 0 is not remembered');
    $version{vmlist} = $vmlist{version} = 5;
    update();
    $version{starttime}++;
    is(update(), '1 2 3', 'everything after a restart');
};

subtest 'errors' => sub {
    answers();
    FakeIPCC::answer(1, undef, 111);
    my $refused = "ipcc_send_rec[1] failed: Connection refused\n";
    is(died(sub { PVE::Cluster::cfs_update(1) }), $refused, 'fatal when asked for');
    is_deeply([PVE::Cluster::get_vmlist(), PVE::Cluster::get_clinfo()], [{}, {}], 'nothing is kept');
    FakeIPCC::taken();
    is(warned(sub { PVE::Cluster::cfs_update() }), $refused, 'a warning otherwise');
    is(FakeIPCC::operations(), '1 2 3', 'and the others are tried');
    is_deeply(PVE::Cluster::get_clinfo(), \%clinfo, 'with success');
    FakeIPCC::answer(1, '{}');
    is(died(sub { PVE::Cluster::cfs_update(1) }), "no starttime\n", 'no start time');
    FakeIPCC::answer(1, '{');
    isnt(died(sub { PVE::Cluster::cfs_update(1) }), '', 'no JSON');
    answers();
    FakeIPCC::answer(2, undef, 1);
    is(
        died(sub { PVE::Cluster::cfs_update(1) }),
        "ipcc_send_rec[2] failed: Operation not permitted\n",
        'cluster information',
    );
    is(update(), '1 2 3', 'recovers');
};

subtest 'nodes and guests' => sub {
    is_deeply(PVE::Cluster::get_members(), $clinfo{nodelist}, 'members');
    is_deeply(PVE::Cluster::get_nodelist(), [sort $local, 'nodeb'], 'nodes');
    is(PVE::Cluster::check_node_exists('nodeb'), 1, 'a node');
    is_deeply([PVE::Cluster::check_node_exists('nodec', 1)], [undef], 'no node');
    is(died(sub { PVE::Cluster::check_node_exists('nodec') }), "no such cluster node 'nodec'\n", 'dies');
    is_deeply([PVE::Cluster::remote_node_ip($local)], ['192.0.2.1', 2], 'address and family');
    is(scalar(PVE::Cluster::remote_node_ip($local)), '192.0.2.1', 'address');
    is_deeply(PVE::Cluster::complete_migration_target(), ['nodeb'], 'migration target');
    $node->{ip} = '2001:db8::1';
    $version{clinfo} = $clinfo{version} = 20;
    update();
    is_deeply([PVE::Cluster::remote_node_ip($local)], ['2001:db8::1', 10], 'IPv6');

    delete $clinfo{nodelist}->{$local};
    $version{clinfo} = $clinfo{version} = 21;
    update();
    is_deeply(PVE::Cluster::get_nodelist(), [$local], 'a list without this node counts for nothing');
    delete $clinfo{nodelist};
    $version{clinfo} = $clinfo{version} = 22;
    update();
    is(PVE::Cluster::get_members(), undef, 'no cluster');
    is_deeply(PVE::Cluster::get_nodelist(), [$local], 'then it is this node alone');
    is_deeply(PVE::Cluster::complete_migration_target(), [], 'and no migration target');

    $vmlist{ids} = {
        map { $_ => { node => $_ == 105 ? 'nodeb' : $local, type => 'lxc', version => 1 } } 99 .. 105, 1000
    };
    $version{vmlist} = $vmlist{version} = 30;
    update();
    is_deeply(PVE::Cluster::complete_next_vmid(), [106], 'next id');
    is_deeply(PVE::Cluster::complete_vmid(), [99 .. 105, 1000], 'all guests, by number');
    is_deeply(PVE::Cluster::complete_local_vmid(), [99 .. 104, 1000], 'guests here');
    $vmlist{ids} = { map { $_ => { node => 'x', type => 'qemu', version => 1 } } 100 .. 9999 };
    $version{vmlist} = $vmlist{version} = 31;
    update();
    is_deeply(PVE::Cluster::complete_next_vmid(), [], 'none left');
};

subtest 'versions of files' => sub {
    my $parsed = 0;
    cfs_register_file('user.cfg', sub { $parsed++; return { path => $_[0], raw => $_[1] } });
    FakeIPCC::answer(6, 'text');
    my $read = sub { $parsed = 0; return cfs_read_file('user.cfg') };
    is_deeply($read->(), { path => '/etc/pve/user.cfg', raw => 'text' }, 'parser');
    $read->()->{raw} = 'changed by the caller';
    is($parsed . $read->()->{raw}, '0text', 'remembered, and not what the caller does with it');
    $version{'user.cfg'} = 3;
    update();
    $read->();
    is($parsed, 1, 'read again when the version changed');
    $version{starttime}++;
    update();
    $read->();
    is($parsed, 1, 'and after a restart with the same version');
    $version{'user.cfg'} = 0;
    update();
    $read->();
    $read->();
    is($parsed, 1, 'version 0 is not remembered');
    $version{'user.cfg'} = 5;
    update();
    FakeIPCC::answer(1, undef, 111);
    warned(sub { PVE::Cluster::cfs_update() });
    is(PVE::Cluster::cfs_file_version('user.cfg'), undef, 'no versions, no version');
    $read->();
    is($parsed, 1, 'read again without versions');

    my $restarts = 1;
    $version{'jobs.cfg'} = 1;
    update();
    cfs_register_file('jobs.cfg', sub {
        $version{starttime}++ if $restarts-- > 0;
        update();
        return ++$parsed;
    });
    $parsed = 0;
    is_deeply([map { cfs_read_file('jobs.cfg') } 1 .. 3], [1, 2, 2], 'a restart while the file is parsed');
};

subtest 'task lists' => sub {
    update();
    my @list = ({ id => 1 });
    my $get = sub {
        FakeIPCC::answer(5, JSON::encode_json(\@list) . "\0");
        FakeIPCC::taken();
        my $tasks = PVE::Cluster::get_tasklist('nodeb');
        return join(',', map { $_->{id} } @$tasks) . ' ' . FakeIPCC::operations();
    };
    is($get->() . '|' . $get->(), '1 5|1 5', 'without a version');
    $version{kvstore} = { nodeb => { tasklist => 0 } };
    update();
    is($get->() . '|' . $get->(), '1 5|1 5', 'version 0');
    $version{kvstore} = { nodeb => { tasklist => 1 } };
    update();
    is($get->() . '|' . $get->(), '1 5|1 ', 'remembered');
    my $tasks = PVE::Cluster::get_tasklist('nodeb');
    $tasks->[0]->{id} = 'changed by the caller';
    is($get->(), '1 ', 'and not changed by callers');
    push @list, { id => 2 };
    $version{kvstore}->{nodeb}->{tasklist} = 2;
    update();
    is($get->() . '|' . $get->(), '1,2 5|1,2 ', 'a new version');
    FakeIPCC::answer(5, "no JSON\0");
    $version{kvstore}->{nodeb}->{tasklist} = 3;
    update();
    like(
        warned(sub { is_deeply(PVE::Cluster::get_tasklist('nodeb'), [], 'broken list') }),
        qr/^task list of node 'nodeb': /,
        'warns',
    );
    FakeIPCC::answer(5, undef, 2);
    is_deeply(PVE::Cluster::get_tasklist('nodec'), [], 'none');
};

subtest 'replaced functions' => sub {
    no warnings 'redefine';
    local *PVE::Cluster::get_vmlist = sub { return { ids => { 100 => { node => 'm', type => 'qemu' } } } };
    is(died(sub { PVE::Cluster::check_vmid_unused(100) }), "VM 100 already exists on node 'm'\n", 'used');
    local *PVE::Cluster::get_nodelist = sub { return [$local, 'mocked'] };
    is_deeply(PVE::Cluster::complete_migration_target(), ['mocked'], 'used');
};

done_testing();
