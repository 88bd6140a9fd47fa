use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use LabNode ();
use PVE::Cluster;

# Code that takes more than 60 seconds is ended.
mkdir('/etc/pve/priv');
my $rang = 0;
local $SIG{ALRM} = sub { $rang++ };
alarm(100);
my $start = time();
my $result = PVE::Cluster::cfs_lock_domain('long', 5, sub {
    sleep(1) for 1 .. 80;
    return 1;
});
my $error = $@;
cmp_ok(abs(time() - $start - 60), '<', 4, 'after 60 seconds');
is_deeply([$result, $error], [undef, "'domain-long'-locked command timed out - aborting\n"], 'error');
cmp_ok(abs(alarm(0) - 100), '<=', 1, 'the alarm of the caller is as before');
is($rang, 0, 'and did not ring');
is(-e '/etc/pve/priv/lock/domain-long', undef, 'the lock is free');

done_testing();
