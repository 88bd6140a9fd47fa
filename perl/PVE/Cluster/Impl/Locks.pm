package PVE::Cluster::Impl::Locks;

# Locks of the whole cluster: directories below priv/lock.

use strict;
use warnings;

use List::Util qw(max min);
use Scalar::Util qw(blessed);
use Time::HiRes qw(alarm clock_gettime sleep CLOCK_MONOTONIC);

use PVE::Cluster::Impl::Files;

# Seconds: to wait for a lock, to hold it (the daemon gives it away after 120).
my $WAIT = 10;
my $HOLD = 60;

# The lock's name, fit for a path. A name with a slash would be a directory elsewhere.
sub checked_name {
    my ($name) = @_;
    my ($checked) = $name =~ m!^([^/\0]+)\z!s or die "invalid lock name\n";
    return $checked;
}

# Waits until the lock's directory could be made, and tells so in $$held; otherwise dies. It can do
# both: a daemon that hung may make the directory when the alarm has already rung.
sub acquire {
    my ($name, $path, $timeout, $held) = @_;

    # The daemon could be the one that does not answer.
    local $SIG{ALRM} = sub { die "got lock request timeout\n" };
    my $start = clock_gettime(CLOCK_MONOTONIC);
    my $waited = 0; # seconds
    my $left = max($timeout, 1);
    alarm($left);
    my $dir = PVE::Cluster::auth_dir() . '/lock';
    mkdir($dir);
    die "pve cluster filesystem not online.\n" if !-d $dir;
    while (1) {
        # A statement of its own: signals are handled after it, not in the middle.
        $$held = mkdir($path);
        return if $$held;

        my $pause = min($left, 10) / 10;
        die "got lock request timeout\n" if $waited + $pause >= $timeout;
        # Asks the daemon to remove the lock if its holder is gone.
        utime(0, 0, $path);
        sleep($pause);
        my $second = int($waited);
        $waited = clock_gettime(CLOCK_MONOTONIC) - $start;
        print STDERR "trying to acquire cfs lock '$name' ...\n" if int($waited) > $second;
        $left = max($timeout - int($waited), 1);
        alarm($left);
    }
    return;
}

# Runs the code while the lock is held. Returns its result; $@ tells of errors.
sub run_locked {
    my ($name, $timeout, $code, @args) = @_;

    my $callers_alarm = alarm(0);
    my ($result, $error, $held, $in_code);
    {
        # An alarm that comes in between those below must not reach the caller's handler.
        local $SIG{ALRM} = 'IGNORE';
        my $path;
        my $done = eval {
            $path = PVE::Cluster::auth_dir() . '/lock/' . checked_name($name);
            acquire($name, $path, $timeout || $WAIT, \$held);

            local $SIG{ALRM} = sub { die "'$name'-locked command timed out - aborting\n" };
            alarm($HOLD);
            PVE::Cluster::cfs_update();
            $in_code = 1;
            $result = $code->(@args);
            1;
        };
        $error = $@ if !$done;
        alarm(0);

        # Of all reasons for not getting a lock this one needs another reaction.
        $error = "no quorum!\n" if !$done && !$held && !PVE::Cluster::check_cfs_quorum(1);
        warn "unable to release cfs lock '$name' - $!\n" if $held && !rmdir($path) && !$!{ENOENT};
    }
    alarm($callers_alarm);

    if (defined($error)) {
        my $as_it_is = $in_code || (blessed($error) && $error->isa('PVE::Exception'));
        $@ = $as_it_is ? $error : "cfs-lock '$name' error: $error";
        return undef;
    }
    $@ = undef;
    return $result;
}

sub cfs_lock_file {
    my ($file, $timeout, $code, @args) = @_;

    my $name = PVE::Cluster::Impl::Files::observed_name($file);
    die 'unknown file \'' . ($file // '') . '\'' if !defined($name);
    $name =~ tr!./!__!;
    return run_locked("file-$name", $timeout, $code, @args);
}

sub cfs_lock_storage {
    my ($storeid, $timeout, $code, @args) = @_;
    return run_locked("storage-$storeid", $timeout, $code, @args);
}

sub cfs_lock_domain {
    my ($domain, $timeout, $code, @args) = @_;
    return run_locked("domain-$domain", $timeout, $code, @args);
}

sub cfs_lock_acme {
    my ($account, $timeout, $code, @args) = @_;
    return run_locked("acme-$account", $timeout, $code, @args);
}

sub cfs_lock_firewall {
    my ($scope, $timeout, $code, @args) = @_;
    return run_locked("firewall-$scope", $timeout, $code, @args);
}

sub cfs_lock_authkey {
    my ($timeout, $code, @args) = @_;
    return run_locked('authkey', $timeout, $code, @args);
}

1;
