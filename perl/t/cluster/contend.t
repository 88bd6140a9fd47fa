use strict;
use warnings;

use Test::More;

use Contend qw(count_up);
use LabNode qw(content until_true);
use PVE::INotify;

# Runs on three nodes at once: all count in one file. With a lock that holds, and a version that
# tells of every change by another node, not one step is lost.
my $NODES = 3;
my $STEPS = 25;

my $seen = count_up(PVE::INotify::nodename(), $NODES, $STEPS);
is($seen->{error}, '', 'no errors');
is($seen->{done}, $STEPS, 'got the lock so often');
is($seen->{alone}, $STEPS, 'and alone');
my $all = $NODES * $STEPS;
my $total = until_true(120, sub { my $now = content('/etc/pve/jobs.cfg') // 0; $now >= $all && $now });
is($total, $all, 'no step of any node is lost');

done_testing();
