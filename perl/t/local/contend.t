use strict;
use warnings;

use Test::More;

use LabNode qw(content put wait_for_children);
use PVE::Cluster qw(cfs_lock_file cfs_read_file cfs_register_file cfs_write_file);

# Processes that count in one file: with a lock that holds, not one step is lost.
my $PROCESSES = 4;
my $STEPS = 25;

cfs_register_file('jobs.cfg', sub { $_[1] // 0 }, sub { $_[1] });
mkdir('/etc/pve/priv');
put('jobs.cfg', '0');

my @pids;
for my $process (1 .. $PROCESSES) {
    my $pid = fork() // die $!;
    if (!$pid) {
        open(STDERR, '>', '/dev/null');
        for my $step (1 .. $STEPS) {
            my $done = cfs_lock_file('jobs.cfg', 120, sub {
                my $entered = mkdir('/etc/pve/inside') or exit(2);
                cfs_write_file('jobs.cfg', cfs_read_file('jobs.cfg') + 1);
                rmdir('/etc/pve/inside') or exit(3);
                return $entered;
            });
            exit(4) if !$done || defined($@);
        }
        exit(0);
    }
    push @pids, $pid;
}
is_deeply([wait_for_children(@pids)], [(0) x $PROCESSES], 'every process got the lock each time, and alone');
is(content('/etc/pve/jobs.cfg'), $PROCESSES * $STEPS, 'no step is lost');
is_deeply([glob('/etc/pve/priv/lock/*')], [], 'the lock is free');
unlink('/etc/pve/jobs.cfg');

done_testing();
