use strict;
use warnings;

use Test::More;

use LabNode qw(put wait_for_children);
use PVE::Cluster qw(cfs_read_file cfs_register_file);

# Children of a process that has a connection: each makes its own, and the parent keeps its.
my $CHILDREN = 100;
my $ROUNDS = 20;

cfs_register_file('vzdump.conf', sub { $_[1] });
put('vzdump.conf', 'of the parent');
PVE::Cluster::cfs_update(1);
is(cfs_read_file('vzdump.conf'), 'of the parent', 'parent');

my @pids;
for my $child (1 .. $CHILDREN) {
    my $pid = fork() // die $!;
    if (!$pid) {
        my $ok = eval {
            for my $round (1 .. $ROUNDS) {
                PVE::Cluster::broadcast_node_kv("child$child", "value $round");
                PVE::Cluster::cfs_update(1);
                my $value = PVE::Cluster::get_node_kv("child$child", 'node1')->{node1};
                die "value '$value'\n" if $value ne "value $round";
                die "file\n" if PVE::Cluster::get_config('vzdump.conf') ne 'of the parent';
                die "cached file\n" if cfs_read_file('vzdump.conf') ne 'of the parent';
            }
            PVE::Cluster::broadcast_node_kv("child$child");
            1;
        };
        print STDERR "child $child: $@" if !$ok;
        # As PVE's workers end: what the parent has set up is not torn down here.
        require POSIX;
        POSIX::_exit($ok ? 0 : 1);
    }
    push @pids, $pid;
    # The parent goes on between its children.
    PVE::Cluster::cfs_update(1) if $child % 10 == 0;
}
is_deeply([wait_for_children(@pids)], [(0) x $CHILDREN], 'children');
PVE::Cluster::cfs_update(1);
is(PVE::Cluster::get_config('vzdump.conf'), 'of the parent', 'the connection of the parent is intact');

my $pid = fork() // die $!;
if (!$pid) {
    # A child of a child, and an ordinary end with all destructors.
    my $grandchild = fork() // die $!;
    exit((wait_for_children($grandchild))[0] ? 1 : 0) if $grandchild;
    exit(PVE::Cluster::get_config('vzdump.conf') eq 'of the parent' ? 0 : 1);
}
is_deeply([wait_for_children($pid)], [0], 'grandchild');
is(PVE::Cluster::get_config('vzdump.conf'), 'of the parent', 'the connection is still intact');
unlink('/etc/pve/vzdump.conf');

done_testing();
