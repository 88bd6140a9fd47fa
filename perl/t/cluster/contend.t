use strict;
use warnings;

use Test::More;

use LabNode qw(content until_true);
use PVE::Cluster qw(cfs_lock_file cfs_read_file cfs_register_file cfs_write_file);

# Runs on three nodes at once: all count in one file. With a lock that holds, and a version that
# tells of every change by another node, not one step is lost.
my $STEPS = 20;
my $NODES = 3;

open(STDERR, '>', '/dev/null');
cfs_register_file('jobs.cfg', sub { $_[1] || 0 }, sub { $_[1] });
mkdir('/etc/pve/priv');
my ($done, $alone) = (0, 0);
for my $step (1 .. $STEPS) {
    my $ok = cfs_lock_file('jobs.cfg', 200, sub {
        $alone++ if mkdir('/etc/pve/inside');
        cfs_write_file('jobs.cfg', cfs_read_file('jobs.cfg') + 1);
        rmdir('/etc/pve/inside');
        return 1;
    });
    $done++ if $ok && !defined($@);
}
is($done, $STEPS, 'got the lock each time');
is($alone, $STEPS, 'and alone');
my $total = until_true(200, sub { (content('/etc/pve/jobs.cfg') // 0) >= $NODES * $STEPS && content('/etc/pve/jobs.cfg') });
is($total, $NODES * $STEPS, 'no step of any node is lost');

done_testing();
