package PVE::Tools;

# Stand-in for the tests: what PVE::Cluster uses of libpve-common-perl, which is not in Debian.

use strict;
use warnings;

use Errno qw(EEXIST);
use Fcntl qw(O_CREAT O_EXCL O_WRONLY);
use Socket qw(AF_INET AF_INET6 SOCK_STREAM getaddrinfo);

use base 'Exporter';
our @EXPORT_OK = qw(file_set_contents get_host_address_family);

# Replaces a file: temporary file '<name>.tmp.<pid>', opened exclusively, then a rename.
sub file_set_contents {
    my ($name, $data, $mode, $force_utf8) = @_;

    my $temporary = "$name.tmp.$$";
    my $open = sub {
        my $opened = sysopen(my $file, $temporary, O_WRONLY | O_CREAT | O_EXCL, $mode // oct('644'));
        return $opened ? $file : undef;
    };
    my $fh = $open->();
    if (!$fh && $! == EEXIST) {
        unlink $temporary;
        $fh = $open->();
    }
    die "unable to open file '$temporary' - $!\n" if !$fh;

    my $bytes = $data;
    utf8::encode($bytes) if $force_utf8 || !utf8::downgrade($bytes, 1);
    my $done = 0;
    while ($done < length($bytes)) {
        my $written = syswrite($fh, $bytes, length($bytes) - $done, $done);
        if (!$written) {
            my $error = $!;
            unlink $temporary;
            die "unable to write '$temporary' - $error\n";
        }
        $done += $written;
    }
    close($fh) or die "closing file '$temporary' failed - $!\n";
    if (!rename($temporary, $name)) {
        my $error = $!;
        unlink $temporary;
        die "rename to '$name' failed: $error\n";
    }
    return;
}

# AF_INET or AF_INET6 of a host name or address.
sub get_host_address_family {
    my ($host) = @_;
    my ($error, @found) = getaddrinfo($host, '', { socktype => SOCK_STREAM });
    die "getaddrinfo: $error\n" if $error;
    return $found[0]->{family};
}

1;
