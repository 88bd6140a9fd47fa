use strict;
use warnings;

use File::Find ();
use Pod::Checker ();
use Test::More;

use FakeIPCC;
use PVE::Cluster;

my $root = $INC{'PVE/Cluster.pm'} =~ s!/PVE/Cluster\.pm\z!!r;

# What other packages call: docs/protocol/perl.md 4.
my @public = qw(
    cfs_update base_dir auth_dir get_vmlist get_clinfo get_members get_nodelist check_node_exists
    check_vmid_unused remote_node_ip check_cfs_quorum check_cfs_is_mounted
    prepare_observed_file_basedirs get_node_fingerprint complete_next_vmid complete_vmid
    complete_local_vmid complete_migration_target
    broadcast_node_kv get_node_kv broadcast_tasklist get_tasklist broadcast_rrd rrd_dump get_config
    get_cluster_log log_msg verify_token get_guest_config_property get_guest_config_properties
    cfs_register_file cfs_file_version cfs_read_file cfs_write_file
    cfs_lock_file cfs_lock_storage cfs_lock_domain cfs_lock_acme cfs_lock_firewall cfs_lock_authkey
    cfs_backup_database cfs_unlink_db_unsafe cfs_rename_db_unsafe
);
my @there = grep { defined(&{"PVE::Cluster::$_"}) } map { s/\*main:://r } keys %PVE::Cluster::;
is_deeply([sort @there], [sort @public], 'the public functions, and nothing else');
is_deeply(
    [sort @PVE::Cluster::EXPORT_OK],
    [qw(cfs_lock_file cfs_read_file cfs_register_file cfs_write_file)],
    'exported on request',
);
is(scalar(@PVE::Cluster::EXPORT), 0, 'exported without');

open(my $fh, '<', "$root/PVE/Cluster.pm") or die $!;
my $text = do { local $/; readline($fh) };
my %documented = map { $_ => 1 } map { m/(\w+)\(/g } $text =~ m/^=item (.*)$/mg;
is(join(' ', grep { !$documented{$_} } @public), '', 'every public function is documented');
my $checker = Pod::Checker->new(-warnings => 2);
open(my $void, '>', \my $complaints) or die $!;
$checker->parse_from_file("$root/PVE/Cluster.pm", $void);
is($checker->num_errors() + $checker->num_warnings(), 0, 'POD') or diag($complaints);

# Each file by itself, as perl -c sees it.
my @modules;
my $module = sub { push @modules, $1 if m!^(.*/PVE/Cluster(?:/Impl/\w+)?\.pm)\z! };
File::Find::find({ wanted => $module, no_chdir => 1, untaint => 1 }, "$root/PVE");
cmp_ok(scalar(@modules), '>=', 7, 'modules found');
local $ENV{PATH} = '/usr/bin:/bin';
delete local @ENV{qw(IFS CDPATH ENV BASH_ENV PERL5LIB)};
for my $file (@modules) {
    my @include = map { m/^(.*)\z/s ? "-I$1" : () } grep { !ref } @INC;
    my ($perl) = $^X =~ m/^(.*)\z/s;
    pipe(my $read, my $write) or die $!;
    my $pid = fork() // die $!;
    if (!$pid) {
        open(STDOUT, '>&', $write);
        open(STDERR, '>&', $write);
        exec($perl, '-T', @include, '-MFakeIPCC', '-wc', $file) or exit(1);
    }
    close($write);
    my $output = do { local $/; readline($read) };
    waitpid($pid, 0);
    is($output, "$file syntax OK\n", "perl -T -wc $file");
}

done_testing();
