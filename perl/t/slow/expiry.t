use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use Caught qw(printed);
use LabNode qw(until_true wait_for_children);
use PVE::Cluster;

# A holder that dies keeps the lock for 120 seconds, then whoever waits gets it.
mkdir('/etc/pve/priv');
my $pid = fork() // die $!;
if (!$pid) {
    PVE::Cluster::cfs_lock_domain('dead', 5, sub { sleep(50) });
    exit(0);
}
ok(until_true(5, sub { -d '/etc/pve/priv/lock/domain-dead' }), 'held by a child');
my $start = time();
kill('KILL', $pid);
is_deeply([wait_for_children($pid)], [9], 'that dies');
my ($early, $error, $late);
my $said = printed(sub { $early = PVE::Cluster::cfs_lock_domain('dead', 3, sub { 1 }); $error = $@ }, \*STDERR);
is_deeply(
    [$early, $error],
    [undef, "cfs-lock 'domain-dead' error: got lock request timeout\n"],
    'not at once',
);
$said = printed(sub { $late = PVE::Cluster::cfs_lock_domain('dead', 150, sub { 'mine' }) }, \*STDERR);
is($late, 'mine', 'but later');
cmp_ok(abs(($said =~ tr/\n//) - 117), '<', 20, 'a line for each second');
my $took = time() - $start;
cmp_ok($took, '>', 118, 'not before 120 seconds');
cmp_ok($took, '<', 135, 'and soon then');
is(-e '/etc/pve/priv/lock/domain-dead', undef, 'the lock is free');

done_testing();
