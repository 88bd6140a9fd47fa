package Contend;

# Counting in one file under a lock, by several processes at once.

use strict;
use warnings;

use Time::HiRes qw(sleep time);

use LabNode qw(until_true);
use PVE::Cluster qw(cfs_lock_file cfs_read_file cfs_register_file cfs_write_file);

use base 'Exporter';
our @EXPORT_OK = qw(count_up);

cfs_register_file('jobs.cfg', sub { $_[1] || 0 }, sub { $_[1] });

# Waits until that many processes are here, then adds 1 to the file so often. Returns
# { done, alone, busy, error }: steps done, those without anybody else inside, attempts that found the
# lock taken for a second, and the first other error.
sub count_up {
    my ($name, $processes, $steps) = @_;

    mkdir('/etc/pve/priv');
    mkdir('/etc/pve/contend');
    mkdir("/etc/pve/contend/$name");
    until_true(30, sub { my @here = glob('/etc/pve/contend/*'); @here >= $processes });

    my %seen = (done => 0, alone => 0, busy => 0, error => '');
    my $end = time() + 120;
    while ($seen{done} < $steps && time() < $end) {
        my $done = cfs_lock_file('jobs.cfg', 1, sub {
            $seen{alone}++ if mkdir('/etc/pve/inside');
            cfs_write_file('jobs.cfg', cfs_read_file('jobs.cfg') + 1);
            sleep(0.01);
            rmdir('/etc/pve/inside');
            return 1;
        });
        if ($done) {
            $seen{done}++;
            sleep(0.01); # time for others
        } elsif ($@ =~ m/got lock request timeout/) {
            $seen{busy}++;
        } else {
            $seen{error} = $seen{error} || $@;
        }
    }
    return \%seen;
}

1;
