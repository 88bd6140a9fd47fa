use strict;
use warnings;

use Test::More;
use Time::HiRes ();

use Caught qw(died printed warned);
use LabNode qw(put until_true wait_for_children);
use PVE::Cluster;

my $dir = '/etc/pve/priv/lock';
mkdir('/etc/pve/priv');
rmdir($_) for map { m!^(.*)\z!s } glob("$dir/*");
rmdir($dir);

sub held { return join(' ', map { s!.*/!!r } glob("$dir/*")) }

# Result, error, time and what was printed on stderr of a call.
sub call {
    my ($code) = @_;
    my ($result, $error);
    my $start = Time::HiRes::time();
    my $said = printed(sub { $result = $code->(); $error = $@ }, \*STDERR);
    return { result => $result, error => $error, said => $said, time => Time::HiRes::time() - $start };
}

# There is a line for every second of waiting; on a busy machine two may become one, and the last
# turn may come late enough for one more.
sub lines {
    my ($call, $count) = @_;
    my $line = "trying to acquire cfs lock 'domain-held' ...\n";
    like($call->{said}, qr/^(?:\Q$line\E){0,@{[$count + 1]}}\z/, 'what is printed');
    cmp_ok($call->{said} =~ tr/\n//, '>=', int($count / 2 + 0.5), 'a line for every second');
    return;
}

subtest 'names, arguments and results' => sub {
    my %locks = (
        'file-user_cfg' => sub { PVE::Cluster::cfs_lock_file('user.cfg', @_) },
        'file-priv_acme_plugins_cfg' => sub { PVE::Cluster::cfs_lock_file('priv/acme/plugins.cfg', @_) },
        'file-ha_crm_commands' => sub { PVE::Cluster::cfs_lock_file('ha/crm_commands', @_) },
        'file-_qemu-server_' => sub { PVE::Cluster::cfs_lock_file('/qemu-server/', @_) },
        'storage-local.zfs' => sub { PVE::Cluster::cfs_lock_storage('local.zfs', @_) },
        'domain-ha' => sub { PVE::Cluster::cfs_lock_domain('ha', @_) },
        'acme-default' => sub { PVE::Cluster::cfs_lock_acme('default', @_) },
        'firewall-cluster' => sub { PVE::Cluster::cfs_lock_firewall('cluster', @_) },
        'authkey' => sub { PVE::Cluster::cfs_lock_authkey(@_) },
    );
    for my $name (sort keys %locks) {
        $@ = 'old';
        my $result = $locks{$name}->(5, sub { return "@_ " . held() . (wantarray ? ' list' : '') }, 'a', 'b');
        is_deeply([$result, $@], ["a b $name", undef], $name);
        is(held(), '', 'released');
    }
    $@ = 'old';
    is_deeply([scalar(PVE::Cluster::cfs_lock_domain('x', undef, sub { return })), $@], [undef, undef], 'undef');
    my $run = 0;
    for my $file ('nope', 'nodes/node1/qemu-server/100.conf', '../user.cfg', '', undef) {
        my $name = quotemeta($file // '');
        like(
            died(sub { PVE::Cluster::cfs_lock_file($file, 1, sub { $run++ }) }),
            qr/^unknown file '$name' at /,
            'file that is not known',
        );
    }
    for my $bad ("x/y", "x\0y") {
        my $call = call(sub { PVE::Cluster::cfs_lock_domain($bad, 5, sub { $run++ }) });
        is($call->{error}, "cfs-lock 'domain-$bad' error: invalid lock name\n", 'invalid name');
    }
    is($run, 0, 'and nothing was run');
};

subtest 'errors of the code' => sub {
    is_deeply(
        [scalar(PVE::Cluster::cfs_lock_domain('x', 2, sub { die "oops\n" })), $@, held()],
        [undef, "oops\n", ''],
        'text as it is',
    );
    my $object = bless({ code => 400 }, 'PVE::Exception');
    PVE::Cluster::cfs_lock_domain('x', 2, sub { die $object });
    is($@, $object, 'object');
    my $inner;
    PVE::Cluster::cfs_lock_domain('a', 2, sub {
        PVE::Cluster::cfs_lock_domain('b', 2, sub { die "inner\n" });
        $inner = $@;
        PVE::Cluster::cfs_lock_domain('b', 2, sub { held() });
    });
    is_deeply([$inner, $@], ["inner\n", undef], 'a lock in a lock');
    PVE::Cluster::cfs_lock_domain('x', 2, sub { rmdir("$dir/domain-x") or die $! });
    is($@, undef, 'a lock that is gone when it is released');
    my $said = warned(sub { PVE::Cluster::cfs_lock_domain('x', 2, sub { put('priv/lock/domain-x/f', '') }) });
    like($said, qr/^unable to release cfs lock 'domain-x' - Directory not empty$/m, 'one that cannot be released');
    is($@, undef, 'is no error');
    unlink("$dir/domain-x/f");
    rmdir("$dir/domain-x");
};

subtest 'waiting' => sub {
    mkdir("$dir/domain-held") or die $!;
    my $try = sub { my ($timeout) = @_; return call(sub { PVE::Cluster::cfs_lock_domain('held', $timeout, sub { 1 }) }) };
    my $error = "cfs-lock 'domain-held' error: got lock request timeout\n";
    for my $case ([1, 0], [2, 1], [3, 2]) {
        my ($timeout, $lines) = @$case;
        my $call = $try->($timeout);
        is_deeply([@$call{qw(result error)}], [undef, $error], "$timeout s");
        lines($call, $lines);
        cmp_ok($call->{time}, '>', $timeout - 0.5, 'not less');
        cmp_ok($call->{time}, '<', $timeout + 3, 'not more');
    }
    my $call = $try->(-1);
    is($call->{error}, $error, 'a negative time is none');
    cmp_ok($call->{time}, '<', 0.9, 'at once');
    $call = $try->(0);
    is($call->{error}, $error, 'ten seconds without a time');
    lines($call, 9);
    cmp_ok(abs($call->{time} - 10), '<', 3, 'ten seconds');
    rmdir("$dir/domain-held");
};

subtest 'given back while somebody waits' => sub {
    my $pid = fork() // die $!;
    if (!$pid) {
        PVE::Cluster::cfs_lock_domain('held', 2, sub { Time::HiRes::sleep(1.5) });
        exit(defined($@) ? 1 : 0);
    }
    ok(until_true(2, sub { held() }), 'held by a child');
    my $call = call(sub { PVE::Cluster::cfs_lock_domain('held', 10, sub { 'mine' }) });
    is_deeply([@$call{qw(result error)}], ['mine', undef], 'got');
    cmp_ok($call->{time}, '<', 6, 'soon after it was given back');
    is_deeply([wait_for_children($pid)], [0], 'child');
};

subtest 'alarm of the caller' => sub {
    my $rang = 0;
    local $SIG{ALRM} = sub { $rang++ };
    my $inside;
    Time::HiRes::alarm(1.5);
    PVE::Cluster::cfs_lock_domain('x', 5, sub { Time::HiRes::sleep(2.5); $inside = Time::HiRes::alarm(0) });
    my $left = Time::HiRes::alarm(0);
    is_deeply([$rang, $@], [0, undef], 'does not ring inside');
    cmp_ok(abs($left - 1.5), '<', 1, 'has what it had before');
    cmp_ok(abs($inside - 56), '<', 2, 'inside there are 60 seconds');
    Time::HiRes::alarm(1.5);
    mkdir("$dir/domain-held") or die $!;
    call(sub { PVE::Cluster::cfs_lock_domain('held', 2, sub { 1 }) });
    rmdir("$dir/domain-held");
    $left = Time::HiRes::alarm(0);
    cmp_ok(abs($left - 1.5), '<', 1, 'also after waiting in vain');
    PVE::Cluster::cfs_lock_domain('x', 5, sub { 1 });
    is(Time::HiRes::alarm(0), 0, 'and none if there was none');
    alarm(1);
    PVE::Cluster::cfs_lock_domain('x', 5, sub { 1 });
    until_true(3, sub { $rang });
    is($rang, 1, 'rings afterwards');
};

subtest 'no lock directory' => sub {
    rmdir($dir) or die $!;
    rmdir('/etc/pve/priv/acme');
    unlink('/etc/pve/priv/token.cfg');
    rename('/etc/pve/priv', '/etc/pve/hidden') or die $!;
    PVE::Cluster::cfs_lock_domain('x', 2, sub { 1 });
    is($@, "cfs-lock 'domain-x' error: pve cluster filesystem not online.\n", 'not online');
    put('priv', '');
    PVE::Cluster::cfs_lock_domain('x', 2, sub { 1 });
    is($@, "cfs-lock 'domain-x' error: pve cluster filesystem not online.\n", 'nor with a file there');
    unlink('/etc/pve/priv');
    rename('/etc/pve/hidden', '/etc/pve/priv') or die $!;
    is(PVE::Cluster::cfs_lock_domain('x', 2, sub { 5 }), 5, 'made when it is missing');
};

done_testing();
