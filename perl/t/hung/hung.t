use strict;
use warnings;

use Test::More;
use Time::HiRes qw(alarm sleep time);

use Caught qw(died);
use LabNode qw(put wait_for_children);
use PVE::Cluster;

# A daemon that does not answer for a while: whoever waits for it can give up, and what comes late
# is not taken for the answer to something else.
my ($daemon) = ($ENV{PVE_CLUSTER_DAEMON_PID} // '') =~ m/^([0-9]+)\z/ or die 'no daemon named';

# Stops the daemon: returns when each of its threads stands still.
sub stop_daemon {
    kill('STOP', $daemon) or die $!;
    for my $stat (glob("/proc/$daemon/task/*/stat")) {
        for (my $state = ''; $state ne 'T'; sleep(0.001)) {
            open(my $file, '<', $stat) or last; # a thread that has ended
            ($state) = (readline($file) // ') T') =~ m/\) (\S)[^)]*\z/;
        }
    }
}

put('user.cfg', "content\n");
PVE::Cluster::cfs_update(1);
is(PVE::Cluster::get_config('user.cfg'), "content\n", 'before');

local $SIG{ALRM} = sub { die "alarm\n" };
for my $round (1 .. 5) {
    stop_daemon();
    my $start = time();
    my $error = died(sub {
        alarm(0.5);
        $round % 2 ? PVE::Cluster::cfs_update(1) : PVE::Cluster::broadcast_node_kv('late', $round);
    });
    alarm(0);
    my $took = time() - $start;
    kill('CONT', $daemon);
    # broadcast_node_kv makes a warning of every error.
    is($error, $round % 2 ? "alarm\n" : '', "round $round: given up");
    cmp_ok($took, '>', 0.4, "round $round: when the alarm rang");
    is(PVE::Cluster::get_config('user.cfg'), "content\n", "round $round: the answer to the next request");
    is(PVE::Cluster::get_config('no.cfg'), undef, "round $round: and to the one after it");
    is(died(sub { PVE::Cluster::cfs_update(1) }), '', "round $round: all is well");
}

# Stops the daemon for so many seconds. The process that lets it go on.
sub pause {
    my ($seconds) = @_;
    stop_daemon();
    my $pid = fork() // die $!;
    return $pid if $pid;
    sleep($seconds);
    kill('CONT', $daemon);
    exit(0);
}

# A request that is not given up is answered when the daemon goes on.
my $pid = pause(1);
my $start = time();
is(PVE::Cluster::get_config('user.cfg'), "content\n", 'answered late');
cmp_ok(time() - $start, '>', 0.9, 'when the daemon went on');
is_deeply([wait_for_children($pid)], [0], 'child');

# The kernel lets nobody give up waiting for a look at a directory or for making one: the alarm
# rings meanwhile. A lock that is got too late must not stay.
mkdir('/etc/pve/priv');
is(PVE::Cluster::cfs_lock_domain('late', 1, sub { 1 }), 1, 'a lock');
for my $known (0, 1) {
    # Then the kernel need not ask for the directory that the lock is in.
    ok(-d '/etc/pve/priv/lock', 'lock directory') if $known;
    my $ran = 0;
    $pid = pause(2);
    PVE::Cluster::cfs_lock_domain('late', 1, sub { $ran++ });
    is_deeply([$ran, $@], [0, "cfs-lock 'domain-late' error: got lock request timeout\n"], 'too late');
    is(-e '/etc/pve/priv/lock/domain-late', undef, 'and not there');
    is_deeply([wait_for_children($pid)], [0], 'child');
}
unlink('/etc/pve/user.cfg');

done_testing();
