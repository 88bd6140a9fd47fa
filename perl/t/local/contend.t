use strict;
use warnings;

use Test::More;

use Contend qw(count_up);
use LabNode qw(content put wait_for_children);

# Processes that count in one file: with a lock that holds, not one step is lost.
my $PROCESSES = 4;
my $STEPS = 25;

put('jobs.cfg', '0');
my @pids;
for my $process (1 .. $PROCESSES) {
    my $pid = fork() // die $!;
    if (!$pid) {
        my $seen = count_up($process, $PROCESSES, $STEPS);
        my $good = $seen->{done} == $STEPS && $seen->{alone} == $STEPS && $seen->{error} eq '';
        print STDERR join(' ', %$seen), "\n" if !$good;
        exit($good ? 0 : 1);
    }
    push @pids, $pid;
}
is_deeply([wait_for_children(@pids)], [(0) x $PROCESSES], 'each got the lock so often, and alone');
is(content('/etc/pve/jobs.cfg'), $PROCESSES * $STEPS, 'no step is lost');
is_deeply([glob('/etc/pve/priv/lock/*')], [], 'the lock is free');
rmdir("/etc/pve/contend/$_") for 1 .. $PROCESSES;
rmdir('/etc/pve/contend');
unlink('/etc/pve/jobs.cfg');

done_testing();
