package PVE::Cluster;

use strict;
use warnings;

use PVE::Cluster::Impl::Database;
use PVE::Cluster::Impl::Files;
use PVE::Cluster::Impl::Locks;
use PVE::Cluster::Impl::State;
use PVE::Cluster::Impl::Status;
use PVE::JSONSchema;

use base 'Exporter';
our @EXPORT_OK = qw(cfs_read_file cfs_write_file cfs_register_file cfs_lock_file);

# Every function below is public and documented here; the parts hold the code.
my %PARTS = (
    State => [qw(
        base_dir auth_dir cfs_update get_vmlist get_clinfo get_members get_nodelist
        check_node_exists check_vmid_unused remote_node_ip check_cfs_quorum check_cfs_is_mounted
        get_node_fingerprint
        complete_next_vmid complete_vmid complete_local_vmid complete_migration_target
    )],
    Status => [qw(
        broadcast_node_kv get_node_kv broadcast_tasklist get_tasklist broadcast_rrd rrd_dump
        get_config get_cluster_log log_msg verify_token
        get_guest_config_property get_guest_config_properties
    )],
    Files => [qw(
        cfs_register_file cfs_file_version cfs_read_file cfs_write_file
        prepare_observed_file_basedirs
    )],
    Locks => [qw(
        cfs_lock_file cfs_lock_storage cfs_lock_domain cfs_lock_acme cfs_lock_firewall
        cfs_lock_authkey
    )],
    Database => [qw(cfs_backup_database cfs_unlink_db_unsafe cfs_rename_db_unsafe)],
);

for my $part (sort keys %PARTS) {
    for my $name (@{ $PARTS{$part} }) {
        no strict 'refs'; ## no critic (ProhibitNoStrict) - that is how a function gets a second name
        *{"PVE::Cluster::$name"} = \&{"PVE::Cluster::Impl::${part}::$name"};
    }
}

1;

__END__

=encoding UTF-8

=head1 NAME

PVE::Cluster - the cluster file system seen from Perl

=head1 SYNOPSIS

    use PVE::Cluster qw(cfs_register_file cfs_read_file cfs_write_file cfs_lock_file);

    cfs_register_file('user.cfg', \&parse, \&write);

    PVE::Cluster::cfs_update();
    my $config = cfs_read_file('user.cfg');

    cfs_lock_file('user.cfg', undef, sub {
        my $config = cfs_read_file('user.cfg');
        $config->{users}->{'a@pve'} = { enable => 1 };
        cfs_write_file('user.cfg', $config);
    });
    die $@ if $@;

=head1 DESCRIPTION

Access to F</etc/pve>, the file system of pmxcfs, and to what the daemon knows of the cluster:
nodes, guests, versions of files, values of nodes, the cluster log. Requests go through
L<PVE::IPCC>; one connection is kept for each process.

Only C<cfs_read_file>, C<cfs_write_file>, C<cfs_register_file> and C<cfs_lock_file> are exported,
on request. All others are called by their full name.

What is remembered (guest list, cluster information, parsed files) is that of the last
C<cfs_update>. A daemon calls it once in every round of its loop or for every request it serves;
the lock functions call it when they have the lock.

The module may be used in taint mode (B<perl -T>).

=head2 Errors of requests

Unless a function says otherwise, a request that fails ends in an exception with the text
C<ipcc_send_rec[I<operation>] failed: I<reason>\n>, where I<reason> is the text of the
system's error number: C<Connection refused> when the daemon does not run, C<Permission denied>
and C<Operation not permitted> when the caller may not do that. While the daemon restarts, a
request waits for up to 10 seconds instead of failing.

I<noerr> arguments: when true, the function returns C<undef> where it would die.

=head1 STATE OF THE CLUSTER

=over

=item cfs_update([I<fail>])

Asks for the current versions, and for the guest list and the cluster information if theirs have
changed. When the daemon was started anew since the last call, everything that was remembered is
dropped.

If I<fail> is true the first error is fatal. Otherwise errors are warnings; when the versions
could not be had, everything that was remembered is dropped, and the other two are still tried. An
answer without a start time is the error C<no starttime\n>.

=item base_dir(), auth_dir()

The directories F</etc/pve> and F</etc/pve/priv>.

=item get_vmlist()

The guest list of the last C<cfs_update>, a reference to
C<< { version, ids => { I<vmid> => { node, type, version } } } >>, where I<type> is C<qemu>, C<lxc> or C<openvz>. C<ids> is
missing without guests, and everything before the first C<cfs_update>. Must not be changed.

=item get_clinfo()

The cluster information of the last C<cfs_update>, a reference to
C<< { nodename, version, cluster => { name, version, nodes, quorate }, nodelist => { I<node> => { id,
online, ip } } } >>. A node that is not in a cluster has neither C<cluster> nor C<nodelist>. Must not be changed.
C<quorate> is that of the last membership change; C<check_cfs_quorum> knows the current one.

=item get_members()

C<nodelist> of C<get_clinfo>, or C<undef>.

=item get_nodelist()

A reference to the names of all nodes, sorted; the local one alone if there is no cluster or the
local node is not in its list.

=item check_node_exists(I<node>, [I<noerr>])

1 if I<node> is in the node list. Otherwise dies with C<no such cluster node 'I<node>'\n>, also
for the only node of no cluster.

=item check_vmid_unused(I<vmid>, [I<noerr>])

1 if no guest has this id. Otherwise dies with C<VM I<vmid> already exists on node 'I<node>'\n>,
or C<CT> instead of C<VM> for containers.

=item remote_node_ip(I<node>, [I<noerr>])

The address of a node: the one that it told the cluster, else what its name resolves to
(L<PVE::Network>, which dies if it does not). In list context the address and its family
(C<AF_INET>, C<AF_INET6>).

=item check_cfs_quorum([I<noerr>])

1 if F</etc/pve> can be written to: the daemon shows that in the owner's write bit of the link
F</etc/pve/local>. Otherwise dies with C<cluster not ready - no quorum?\n>.

=item check_cfs_is_mounted([I<noerr>])

1 if the file system is mounted (F</etc/pve/local> is a link). Otherwise dies with C<pve
configuration filesystem (pmxcfs) not mounted\n>.

=item prepare_observed_file_basedirs()

Creates the directories below F</etc/pve> that known configuration files are in and that are
missing, and prints a line for each. Only warns if the file system is not mounted; dies if a
directory cannot be made.

=item get_node_fingerprint(I<node>)

The SHA-256 fingerprint, C<AA:BB:...>, of the certificate that the node's API answers with: its
F<pveproxy-ssl.pem>, and if there is none its F<pve-ssl.pem>. Dies if that cannot be read, or if
I<node> cannot be the name of a node.

=back

=head2 Shell completion

Each returns a reference to a list, empty before the first C<cfs_update>.

=over

=item complete_next_vmid()

The smallest free id from 100 to 9999.

=item complete_vmid(), complete_local_vmid()

Ids of all guests, of the guests of this node; in ascending order.

=item complete_migration_target()

Names of the other nodes.

=back

=head1 VALUES, TASKS AND STATISTICS

What is told to the cluster here lives in the memory of all daemons. A node's own values are gone
when its daemon is restarted; other nodes still have the old ones until new ones come. Quorum is
not needed. The functions that tell something only warn if the daemon cannot be reached.

=over

=item broadcast_node_kv(I<key>, [I<data>])

Sets a value of this node, or removes it if I<data> is undefined. The value is a string of less
than 32768 bytes and ends at its first NUL for those who read it; text outside of ASCII is sent as
UTF-8. The key has at most 252 bytes, the rest is cut off. Dies with C<cannot send a reference\n>
or C<data for 'I<key>' too big\n>.

=item get_node_kv(I<key>, [I<node>])

A reference to a hash from node to value: of I<node>, else of all nodes in C<get_nodelist>. Nodes
without the value are left out, and so are all when the daemon cannot be reached.

=item broadcast_tasklist(\I<tasks>)

Sets the task list of this node, any data that JSON can hold. Newest first: what does not fit into
32767 bytes is left out at the end. The caller's list is not changed.

=item get_tasklist([I<node>])

A reference to the tasks of I<node>, else of all nodes one after the other. Lists are asked for
again when their version in the last C<cfs_update> differs; a first one (version 0) always is.
Callers may change what they get.

=item broadcast_rrd(I<id>, I<data>)

Sends a line of round-robin data, columns separated by C<:>, less than 4096 bytes.

=item rrd_dump()

The round-robin data last sent by all nodes, a reference to a hash from id to a reference to the
columns; C<undef> for a column that is C<U>. Lines with less than two columns are left out. The
answer is used again for 2 seconds and must not be changed. Warns and returns an empty hash on
errors; an answer of more than 1 MiB is one.

=back

=head1 LOG, TOKENS AND PROPERTIES

=over

=item log_msg(I<priority>, I<ident>, I<message>)

Writes a line to syslog and to the cluster log. I<priority> is a number from 0 to 7 or one of
C<alert> (1), C<crit> or C<critical> (2), C<err> or C<error> (3), C<warn> or C<warning> (4),
C<notice> (5), C<info> (6), C<debug> (7); anything else dies with C<need numeric log priority>.
B<This includes C<emerg>>, as it always did; 0 is what may be used. The daemon does not log
numbers above 7.

I<ident> is the user; without one syslog has the message alone. A message that is missing or empty
becomes C<empty message>. Characters outside of ASCII become C<\uXXXX>, as in JSON. In the cluster log
I<ident> and the tag of L<PVE::SafeSyslog> are cut after 254 bytes and the message where an entry
of 4096 bytes is full. Does not die if the daemon cannot be reached; syslog tells
C<writing cluster log failed: ...>.

=item get_cluster_log([I<user>], [I<max>])

The newest entries as JSON text, C<{ "data": [ { uid, time, pri, tag, pid, node, user, msg }, ...
] }>, newest first: those of I<user> if that is not empty, I<max> of them, or 50.

=item verify_token(I<userid>, I<token>)

1 if F<priv/token.cfg> has the line C<I<userid> I<token>>, 0 if not. Dies with the text of the
error and a newline, for example if one of them contains a newline.

=item get_guest_config_property(I<name>, [I<vmid>])

A reference to a hash from guest id to C<< { I<name> => I<value> } >>, of all guests whose
current configuration has the property, or of the one asked for. Snapshots and pending changes are
not looked at. Dies if there is no guest I<vmid>.

=item get_guest_config_properties(\I<names>, [I<vmid>])

The same for 1 to 255 properties, whose names begin with a small letter. Dies with C<only up to 255
properties supported>.

=back

=head1 FILES

=over

=item get_config(I<path>)

The bytes of a file below F</etc/pve>, named without that prefix, from the daemon's memory: does
not wait for quorum or for the mount. At most 1048552 bytes. C<undef> if there is no such file or
it is a directory, the empty string for an empty file. Dies with the text of the error and a
newline.

=item cfs_register_file(I<name>, I<parser>, [I<writer>])

Makes a configuration file known to the functions below. I<name> is one of the files whose versions
the daemon counts, relative to F</etc/pve>, or C</qemu-server/>, C</lxc/>, C</openvz/> for the
configurations of all guests of a kind; others die with C<unknown file 'I<name>'>, a second time
with C<file 'I<name>' already registered>.

I<parser>(I<path>, I<raw>) gets the full path and the bytes (C<undef> if the file does not exist)
and returns a scalar or a reference to data that can be copied. I<writer>(I<path>, I<data>) returns
the content.

=item cfs_file_version(I<name>)

The file's version of the last C<cfs_update>; for the configuration of a guest
(F<nodes/E<lt>nodeE<gt>/qemu-server/E<lt>vmidE<gt>.conf>) that of the guest with this id, wherever
it is. A number that differs from the one before if the file was changed, and only says that.
C<undef> if there is none. In list context also what was registered, C<{ parser, writer }>. Dies
with C<unknown file type 'I<name>'\n>.

=item cfs_read_file(I<name>)

What the parser makes of the file. It is called again only if C<cfs_file_version> differs from the
last time. A copy: callers may change it. Dies as C<cfs_file_version>, as C<get_config> and as the
parser.

=item cfs_write_file(I<name>, I<data>, [I<force_utf8>])

Replaces the file by what the writer makes of I<data>: written beside it as
F<E<lt>nameE<gt>.tmp.E<lt>pidE<gt>> and renamed, so that everybody reads the old file or the new
one, on all nodes. With I<force_utf8> the text is encoded. Dies with C<no writer defined>, if the
file system is not mounted, and if it cannot be written (C<Permission denied>: no quorum). A file
may have 1 MiB.

The lock of the file should be held.

=back

=head1 LOCKS

    cfs_lock_file(file, timeout, code, @arguments)
    cfs_lock_storage(storeid, timeout, code, @arguments)
    cfs_lock_domain(name, timeout, code, @arguments)
    cfs_lock_acme(account, timeout, code, @arguments)
    cfs_lock_firewall(scope, timeout, code, @arguments)
    cfs_lock_authkey(timeout, code, @arguments)

Each runs I<code>(@arguments) while no other process of the cluster is in such a call for the same
object. They return what I<code> returns in scalar context, with C<$@> undefined; on errors they
return C<undef> with the error in C<$@>. They do not die, but for C<cfs_lock_file> if the file is
not one that can be registered: C<unknown file 'I<file>'>.

=over

=item Waiting

I<timeout> is the longest time to wait for the lock in seconds, 10 if it is 0 or undefined. A line
C<trying to acquire cfs lock 'I<lock>' ...> is printed to stderr after each second.

=item Holding

I<code> may take 60 seconds; it is then ended by an exception, C<'I<lock>'-locked command timed out
- aborting\n>. A lock whose holder died is given away 120 seconds after it was taken.

=item Errors

What I<code> dies with is passed on as it is. Other errors are C<cfs-lock 'I<lock>' error:
I<reason>>, where I<reason> is one of:

=over

=item C<got lock request timeout\n>

It is held by somebody else, or the file system does not answer.

=item C<no quorum!\n>

It was not got, and this node is not part of a quorum.

=item C<pve cluster filesystem not online.\n>

F</etc/pve/priv/lock> does not exist and cannot be made.

=item C<invalid lock name\n>

The object's name contains a slash or a NUL.

=back

=item Alarm

C<SIGALRM> is used. An C<alarm> of the caller is stopped for the whole call and then goes on with
the time that it had left before. I<code> must not leave an alarm of its own behind.

=item Names

A lock is the directory F</etc/pve/priv/lock/E<lt>lockE<gt>>, with these names: C<file-I<file>>
(C<.> and C</> as C<_>), C<storage-I<storeid>>, C<domain-I<name>>, C<acme-I<account>>,
C<firewall-I<scope>>, C<authkey>.

=back

=over

=item cfs_lock_file(I<file>, I<timeout>, I<code>, @arguments)

For changes of a configuration file.

=item cfs_lock_storage(I<storeid>, I<timeout>, I<code>, @arguments)

For changes of what is on a shared storage.

=item cfs_lock_domain(I<name>, I<timeout>, I<code>, @arguments)

For anything else that has a name, for example C<ha>.

=item cfs_lock_acme(I<account>, I<timeout>, I<code>, @arguments)

For changes of an ACME account.

=item cfs_lock_firewall(I<scope>, I<timeout>, I<code>, @arguments)

For changes of firewall rules: C<cluster>, a guest, a node.

=item cfs_lock_authkey(I<timeout>, I<code>, @arguments)

For changes of the key that signs tickets.

=back

=head1 DATABASE

For joining a cluster. B<The daemon must be stopped>: one that runs would go on with a database
that nobody can see any more. All need root.

=over

=item cfs_backup_database()

Writes the database as compressed SQL text to
F</var/lib/pve-cluster/backup/config-E<lt>unix timeE<gt>.sql.gz> (mode 0600, in a directory of mode
0700) and removes all but the 10 newest of these files. Prints C<backup old database to 'I<file>'\n>
and C<delete old backup 'I<file>'\n>. The file appears under its name only when it is complete and
on the disk. Dies, and leaves nothing behind, if there is no database, if it cannot be read to its
end, or if the backup cannot be written. C<zcat I<file> | sqlite3 config.db> brings it back.

=item cfs_unlink_db_unsafe()

Removes F</var/lib/pve-cluster/config.db>, also its write-ahead log if a daemon that was killed
left one. It is no error if there is no database; others die with C<failed to unlink old config
database - I<reason>\n>.

=item cfs_rename_db_unsafe()

Renames it to F<config.db.E<lt>unix timeE<gt>.bak> (its write-ahead log, if there is one, beside it
with F<-wal>, so that sqlite3 finds it). Warns C<failed to rename old config database - I<reason>\n>
if there is no database, and dies with that text on other errors.

=back

=head1 SEE ALSO

L<PVE::IPCC>, L<PVE::Cluster::IPCConst>, pmxcfs(8)

=cut
