use strict;
use warnings;
use utf8;

use JSON ();
use Test::More;

use Caught qw(died warned);
use LabNode qw(put);
use PVE::Cluster;
use PVE::SafeSyslog;

PVE::Cluster::cfs_update(1);

subtest 'values' => sub {
    my $value = sub { PVE::Cluster::get_node_kv(@_) };
    PVE::Cluster::broadcast_node_kv('key', 'value');
    is_deeply($value->('key'), { node1 => 'value' }, 'of all nodes');
    is_deeply($value->('key', 'node1'), { node1 => 'value' }, 'of one');
    is_deeply($value->('key', 'node9'), {}, 'of an unknown one');
    PVE::Cluster::broadcast_node_kv('key', '€');
    is_deeply($value->('key'), { node1 => "\xe2\x82\xac" }, 'UTF-8');
    my $large = 'x' x 32767;
    PVE::Cluster::broadcast_node_kv('key', $large);
    is_deeply($value->('key'), { node1 => $large }, 'the largest');
    PVE::Cluster::broadcast_node_kv('k' x 300, 'long');
    is_deeply($value->('k' x 300), { node1 => 'long' }, 'a long name');
    PVE::Cluster::broadcast_node_kv($_) for 'key', 'k' x 300;
    is_deeply($value->('key'), {}, 'removed');
};

subtest 'task lists' => sub {
    my @tasks = ({ upid => 'UPID:1', user => 'ä' }, { upid => 'UPID:2', endtime => 5 });
    for my $round (1 .. 3) {
        push @tasks, { upid => "UPID:more$round" };
        PVE::Cluster::broadcast_tasklist(\@tasks);
        PVE::Cluster::cfs_update();
        is_deeply(PVE::Cluster::get_tasklist(), \@tasks, "round $round");
        is_deeply(PVE::Cluster::get_tasklist('node1'), \@tasks, "round $round, one node");
    }
    PVE::Cluster::broadcast_tasklist([]);
    is_deeply(PVE::Cluster::get_tasklist(), \@tasks, 'nothing new before the next update');
    PVE::Cluster::cfs_update();
    is_deeply(PVE::Cluster::get_tasklist(), [], 'empty');
    is_deeply(PVE::Cluster::get_tasklist('node9'), [], 'unknown node');
};

subtest 'round-robin data' => sub {
    select(undef, undef, undef, 2.1); # a dump of the daemon lives so long
    PVE::Cluster::broadcast_rrd('pve-node-9.0/node1', 'U:1:x');
    PVE::Cluster::broadcast_rrd('single', '1');
    my $data = PVE::Cluster::rrd_dump();
    is_deeply($data->{'pve-node-9.0/node1'}, [undef, 1, 'x'], 'columns');
    is($data->{single}, undef, 'too few columns');
};

subtest 'files' => sub {
    put('perl-empty', '');
    put('perl-text', "a\0b\n");
    is(PVE::Cluster::get_config('perl-text'), "a\0b\n", 'content');
    is(PVE::Cluster::get_config('/perl-text'), "a\0b\n", 'with a slash');
    is(PVE::Cluster::get_config('perl-empty'), '', 'empty');
    is(PVE::Cluster::get_config('perl-none'), undef, 'none');
    is(PVE::Cluster::get_config('nodes'), undef, 'a directory');
    my $large = 'x' x 1048552;
    put('perl-large', $large);
    ok(PVE::Cluster::get_config('perl-large') eq $large, 'the largest');
    put('perl-large', "${large}x");
    isnt(died(sub { PVE::Cluster::get_config('perl-large') }), '', 'one byte more');
    is(PVE::Cluster::get_config('perl-empty'), '', 'the connection lives on');
    unlink("/etc/pve/perl-$_") for qw(empty text large);
};

subtest 'cluster log' => sub {
    my $entries = sub { JSON::decode_json(PVE::Cluster::get_cluster_log(@_))->{data} };
    PVE::SafeSyslog::initlog('perltest');
    PVE::Cluster::log_msg('warning', 'perl@pam', "ä € \x{1f600} \"quoted\" back\\slash");
    my $newest = $entries->()->[0];
    is($newest->{msg}, "ä € \x{1f600} \"quoted\" back\\slash", 'message');
    is_deeply([@$newest{qw(user tag pri node pid)}], ['perl@pam', 'perltest', 4, 'node1', $$], 'entry');
    PVE::Cluster::log_msg(6, 'other', "number $_") for 1 .. 60;
    is_deeply([map { $_->{msg} } @{ $entries->() }], [map { "number $_" } reverse 11 .. 60], 'the newest 50');
    is_deeply([map { $_->{msg} } @{ $entries->('', 2) }], ['number 60', 'number 59'], 'two');
    is($entries->('perl@pam', 10)->[0]->{pri}, 4, 'of one user');
    is_deeply($entries->('nobody'), [], 'of an unknown one');
    PVE::Cluster::log_msg(6, 'u' x 300, 'long ident');
    is($entries->()->[0]->{user}, 'u' x 254, 'long ident');
    PVE::Cluster::log_msg(8, 'u', 'priority 8');
    is($entries->()->[0]->{msg}, 'long ident', 'a priority above 7 is not logged');
    PVE::Cluster::log_msg(6, '', '');
    is_deeply([@{ $entries->()->[0] }{qw(user msg)}], ['', 'empty message'], 'empty');
    is(scalar(grep { $_->[0] eq 'err' } PVE::SafeSyslog::taken()), 0, 'no complaints');
};

subtest 'tokens' => sub {
    put('priv/token.cfg', "a\@pve!t 1234\n");
    is(PVE::Cluster::verify_token('a@pve!t', '1234'), 1, 'valid');
    is(PVE::Cluster::verify_token('a@pve!t', '123'), 0, 'a part of it');
    is(PVE::Cluster::verify_token('b@pve!t', '1234'), 0, 'unknown');
    is(died(sub { PVE::Cluster::verify_token("a\n", 'x') }), "Invalid argument\n", 'newline');
    is(died(sub { PVE::Cluster::verify_token('a@pve!t', "1234\0") }), "Invalid argument\n", 'NUL');
    unlink('/etc/pve/priv/token.cfg');
    is(PVE::Cluster::verify_token('a@pve!t', '1234'), 0, 'no file');
};

subtest 'properties' => sub {
    my $one = \&PVE::Cluster::get_guest_config_property;
    my $many = \&PVE::Cluster::get_guest_config_properties;
    is_deeply($one->('name'), {}, 'no guests');
    put('nodes/node1/qemu-server/100.conf', "name: ä\nlock: backup\n\n[snap]\nname: old\nnote: x\n");
    put('nodes/node1/lxc/101.conf', "hostname: ct\ntags: a;b\n");
    is_deeply($one->('name'), { 100 => { name => 'ä' } }, 'all guests');
    is_deeply($one->('name', 101), {}, 'a guest without it');
    is_deeply($one->('note'), {}, 'only in a snapshot');
    is_deeply(
        $many->(['name', 'lock', 'tags']),
        { 100 => { name => 'ä', lock => 'backup' }, 101 => { tags => 'a;b' } },
        'several',
    );
    is_deeply($many->(['hostname'], 101), { 101 => { hostname => 'ct' } }, 'of one guest');
    my $text = 'ipcc_send_rec[%d] failed: %s' . "\n";
    is(died(sub { $one->('name', 999) }), sprintf($text, 11, 'No such file or directory'), 'no guest');
    is(died(sub { $many->(['a'], 999) }), sprintf($text, 13, 'No such file or directory'), 'no guest');
    is(died(sub { $one->('name', 99) }), sprintf($text, 11, 'Invalid argument'), 'no guest id');
    is(died(sub { $many->([]) }), sprintf($text, 13, 'Invalid argument'), 'no property');
    is(died(sub { $many->(['Name']) }), sprintf($text, 13, 'Invalid argument'), 'no property name');
    is_deeply($many->([map { "p$_" } 1 .. 255]), {}, 'most properties');
    unlink("/etc/pve/nodes/node1/$_") for 'qemu-server/100.conf', 'lxc/101.conf';
};

done_testing();
