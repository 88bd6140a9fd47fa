# Asks the daemon all the time until SIGTERM, then prints
# "calls=<n> failed=<n> longest=<seconds>" and the first error.
use strict;
use warnings;

use Time::HiRes qw(sleep time);

use LabNode ();
use PVE::Cluster qw(cfs_read_file cfs_register_file);

my $ended = 0;
local $SIG{TERM} = sub { $ended = 1 };
cfs_register_file('user.cfg', sub { $_[1] });

my @calls = (
    sub { PVE::Cluster::cfs_update(1); 1 },
    sub { cfs_read_file('user.cfg') eq "polled\n" },
    sub { PVE::Cluster::get_config('user.cfg') eq "polled\n" },
    sub { PVE::Cluster::verify_token('nobody@pve!x', 'y') == 0 },
    sub { PVE::Cluster::get_guest_config_property('name', 100)->{100}->{name} eq 'polled' },
    sub { my $failed; local $SIG{__WARN__} = sub { $failed = 1 }; PVE::Cluster::broadcast_node_kv($$, 'x'); !$failed },
);
my ($count, $failed, $longest, $error) = (0, 0, 0, '');
while (!$ended) {
    my $number = $count++ % @calls;
    my $start = time();
    my $done = eval { $calls[$number]->() };
    my $reason = $done ? '' : "call $number: " . ($@ || "wrong answer\n");
    my $took = time() - $start;
    $longest = $took if $took > $longest;
    $failed++ if $reason;
    $error = $error || $reason;
    sleep(0.002);
}
printf("calls=%d failed=%d longest=%.3f\n%s", $count, $failed, $longest, $error);
