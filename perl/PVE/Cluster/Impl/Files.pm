package PVE::Cluster::Impl::Files;

# Configuration files that are parsed once and read again when their version has changed.

use strict;
use warnings;

use File::Path ();
use Storable ();

use PVE::Cluster::Impl::State;
use PVE::Tools;

# The files whose versions the daemon counts, the same list as there. The last three stand for
# the configurations of all guests of a kind.
my @OBSERVED = qw(
    corosync.conf corosync.conf.new
    storage.cfg user.cfg domains.cfg
    notifications.cfg priv/notifications.cfg
    priv/shadow.cfg priv/acme/plugins.cfg priv/tfa.cfg priv/token.cfg priv/wg-keys.cfg
    datacenter.cfg vzdump.cron vzdump.conf jobs.cfg
    ha/crm_commands ha/manager_status ha/resources.cfg ha/rules.cfg ha/groups.cfg ha/fence.cfg
    status.cfg replication.cfg ceph.conf
    sdn/vnets.cfg sdn/zones.cfg sdn/controllers.cfg sdn/subnets.cfg sdn/ipams.cfg
    sdn/mac-cache.json sdn/pve-ipam-state.json sdn/dns.cfg sdn/fabrics.cfg sdn/route-maps.cfg
    sdn/prefix-lists.cfg sdn/.running-config
    virtual-guest/cpu-models.conf virtual-guest/profiles.cfg
    firewall/cluster.fw
    mapping/directory.cfg mapping/pci.cfg mapping/usb.cfg
    /qemu-server/ /openvz/ /lxc/
);

# The values are the names as they are above: fit for a path, whatever the source of a key was.
my %observed = map { $_ => $_ } @OBSERVED;

# name -> { parser, writer }
my %registered;

# name -> { version, data }: what the parsers returned.
my $cache = {};
my $generation = 0;

# The cache, without what another start of the daemon has left in it.
sub cache {
    my $current = PVE::Cluster::Impl::State::generation();
    ($cache, $generation) = ({}, $current) if $generation != $current;
    return $cache;
}

# The name as the list above has it; undef when it is not there.
sub observed_name {
    my ($name) = @_;
    return defined($name) ? $observed{$name} : undef;
}

sub prepare_observed_file_basedirs {
    if (!PVE::Cluster::check_cfs_is_mounted(1)) {
        warn "pve configuration filesystem (pmxcfs) not mounted, no directories created\n";
        return;
    }
    my $base = PVE::Cluster::base_dir();
    my %dirs = map { m!^([^/].*)/! ? ($1 => 1) : () } @OBSERVED;
    for my $dir (grep { !-d "$base/$_" } sort keys %dirs) {
        print "creating directory '$base/$dir' for observed files\n";
        File::Path::make_path("$base/$dir");
    }
    return;
}

sub cfs_register_file {
    my ($name, $parser, $writer) = @_;

    my $known = observed_name($name);
    die 'unknown file \'' . ($name // '') . '\'' if !defined($known);
    die "file '$known' already registered" if $registered{$known};
    return $registered{$known} = { parser => $parser, writer => $writer };
}

# What there is to know of a file: its name (fit for a path), version and parser. The version of
# a guest's configuration is that of the guest, wherever it is.
sub look_up {
    my ($name) = @_;

    my ($path, $version, $info);
    if (($name // '') =~ m!^(nodes/[^/\0]+/(openvz|lxc|qemu-server)/([0-9]+)\.conf)\z!) {
        ($path, $info) = ($1, $registered{"/$2/"});
        my $guest = (PVE::Cluster::get_vmlist()->{ids} // {})->{$3};
        $version = $guest->{version} if $guest;
    } elsif (defined($path = observed_name($name))) {
        $info = $registered{$path};
        $version = PVE::Cluster::Impl::State::versions()->{$path};
    }
    die 'unknown file type \'' . ($name // '') . "'\n" if !$info;
    return ($path, $version, $info);
}

sub cfs_file_version {
    my ($name) = @_;

    my (undef, $version, $info) = look_up($name);
    return wantarray ? ($version, $info) : $version;
}

sub cfs_read_file {
    my ($name) = @_;

    my ($path, $version, $info) = look_up($name);
    my $known = cache()->{$path};
    # Version 0, or none, is not known to change when the file does.
    if (!$known || !$version || $known->{version} != $version) {
        die "no parser defined for '$path'\n" if !$info->{parser};
        delete $cache->{$path};
        my $start = $generation;
        my $raw = PVE::Cluster::get_config($path);
        my $data = $info->{parser}->(PVE::Cluster::base_dir() . "/$path", $raw);
        $known = { version => $version, data => $data };
        # The parser may have met another start of the daemon: then the version says nothing.
        cache()->{$path} = $known if $version && $start == PVE::Cluster::Impl::State::generation();
    }
    my $data = $known->{data};
    return ref($data) ? Storable::dclone($data) : $data;
}

sub cfs_write_file {
    my ($name, $data, $force_utf8) = @_;

    my ($path, undef, $info) = look_up($name);
    die 'no writer defined' if !$info->{writer};
    my $full = PVE::Cluster::base_dir() . "/$path";
    my $raw = $info->{writer}->($full, $data);

    delete $cache->{$path};
    # What is written without the mount is lost behind it, and keeps it from being mounted.
    PVE::Cluster::check_cfs_is_mounted();
    PVE::Tools::file_set_contents($full, $raw, undef, $force_utf8);
    return;
}

1;
