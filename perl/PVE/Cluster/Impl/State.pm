package PVE::Cluster::Impl::State;

# What this process knows of the cluster: versions, guest list, cluster information; nodes,
# quorum and mount. Public functions are called as PVE::Cluster::<name>, also from here: whoever
# replaces one there (tests of other packages do) replaces it everywhere.

use strict;
use warnings;

use PVE::Certificate;
use PVE::Cluster::Impl::IPC;
use PVE::Cluster::IPCConst;
use PVE::INotify;
use PVE::Network;
use PVE::Tools;

my $BASE = '/etc/pve';

# Decoded answers: GET_FS_VERSION, GET_GUEST_LIST, GET_CLUSTER_INFO.
my $versions = {};
my $vmlist = {};
my $clinfo = {};

# Counts how often everything was dropped. What others remember is of one generation.
my $generation = 0;

sub base_dir { return $BASE; }
sub auth_dir { return "$BASE/priv"; }

sub get_vmlist { return $vmlist; }
sub get_clinfo { return $clinfo; }

# The answer of the last GET_FS_VERSION; an empty hash when it failed.
sub versions { return $versions; }

sub generation { return $generation; }

sub forget {
    ($versions, $vmlist, $clinfo) = ({}, {}, {});
    $generation++;
    return;
}

sub refresh_versions {
    my $new = eval {
        my $answer = PVE::Cluster::Impl::IPC::request_json(CFS_IPC_GET_FS_VERSION);
        die "no starttime\n" if !$answer->{starttime};
        $answer;
    };
    if (!$new) {
        my $error = $@;
        forget();
        die $error;
    }
    # Another start of the daemon: its counters say nothing about what is remembered.
    forget() if ($versions->{starttime} // 0) != $new->{starttime};
    $versions = $new;
    return;
}

# Is what is remembered (its own version inside) not of that version? Version 0 is unknown.
sub outdated {
    my ($known, $version) = @_;
    return 1 if !$known->{version} || !defined($version);
    return $known->{version} != $version;
}

sub refresh_clinfo {
    return if !outdated($clinfo, $versions->{clinfo});
    $clinfo = PVE::Cluster::Impl::IPC::request_json(CFS_IPC_GET_CLUSTER_INFO);
    return;
}

sub refresh_vmlist {
    return if !outdated($vmlist, $versions->{vmlist});
    $vmlist = PVE::Cluster::Impl::IPC::request_json(CFS_IPC_GET_GUEST_LIST);
    return;
}

sub cfs_update {
    my ($fail) = @_;

    for my $refresh (\&refresh_versions, \&refresh_clinfo, \&refresh_vmlist) {
        next if eval { $refresh->(); 1 };
        die $@ if $fail;
        warn $@;
    }
    return;
}

sub get_members {
    return $clinfo->{nodelist};
}

sub get_nodelist {
    my $local = PVE::INotify::nodename();
    my $nodes = $clinfo->{nodelist};
    return [$local] if !$nodes || !$nodes->{$local};
    return [sort keys %$nodes];
}

sub check_node_exists {
    my ($node, $noerr) = @_;

    my $nodes = $clinfo->{nodelist};
    return 1 if $nodes && $nodes->{$node};
    return undef if $noerr;
    die "no such cluster node '$node'\n";
}

sub check_vmid_unused {
    my ($vmid, $noerr) = @_;

    my $guest = PVE::Cluster::get_vmlist()->{ids}->{$vmid};
    return 1 if !$guest;
    return undef if $noerr;
    my $kind = $guest->{type} eq 'qemu' ? 'VM' : 'CT';
    die "$kind $vmid already exists on node '$guest->{node}'\n";
}

sub remote_node_ip {
    my ($node, $noerr) = @_;

    my $known = $clinfo->{nodelist} ? $clinfo->{nodelist}->{$node} : undef;
    if (my $ip = $known ? $known->{ip} : undef) {
        return $ip if !wantarray;
        return ($ip, PVE::Tools::get_host_address_family($ip));
    }
    # In the caller's context: a list has the family, too.
    return PVE::Network::get_ip_from_hostname($node, $noerr);
}

sub check_cfs_quorum {
    my ($noerr) = @_;

    # The daemon shows quorum in the mode of this link.
    my @local = lstat("$BASE/local");
    return 1 if @local && ($local[2] & oct('200'));
    return undef if $noerr;
    die "cluster not ready - no quorum?\n";
}

sub check_cfs_is_mounted {
    my ($noerr) = @_;

    return 1 if -l "$BASE/local";
    return undef if $noerr;
    die "pve configuration filesystem (pmxcfs) not mounted\n";
}

sub get_node_fingerprint {
    my ($node) = @_;

    my ($name) = ($node // '') =~ m/^([a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?)\z/
        or die 'invalid node name \'' . ($node // '') . "'\n";
    my $path = "$BASE/nodes/$name/pve-ssl.pem";
    my $custom = "$BASE/nodes/$name/pveproxy-ssl.pem";
    return PVE::Certificate::get_certificate_fingerprint(-f $custom ? $custom : $path);
}

# Guests of the list for which $wanted->($guest) holds, in the order of their ids.
sub guests {
    my ($wanted) = @_;
    my $ids = PVE::Cluster::get_vmlist()->{ids} // {};
    return [sort { $a <=> $b } grep { $wanted->($ids->{$_}) } keys %$ids];
}

sub complete_next_vmid {
    my $ids = PVE::Cluster::get_vmlist()->{ids} // {};
    for my $vmid (100 .. 9999) {
        return [$vmid] if !$ids->{$vmid};
    }
    return [];
}

sub complete_vmid {
    return guests(sub { 1 });
}

sub complete_local_vmid {
    my $local = PVE::INotify::nodename();
    return guests(sub { $_[0]->{node} eq $local });
}

sub complete_migration_target {
    my $local = PVE::INotify::nodename();
    return [grep { $_ ne $local } @{ PVE::Cluster::get_nodelist() }];
}

1;
