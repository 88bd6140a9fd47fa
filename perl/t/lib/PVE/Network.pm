package PVE::Network;

# Stand-in for the tests.

use strict;
use warnings;

use Socket qw(NI_NUMERICHOST NIx_NOSERV SOCK_STREAM getaddrinfo getnameinfo);

# First address of a host name that is not loopback; in list context also its family.
sub get_ip_from_hostname {
    my ($host, $noerr) = @_;

    my ($error, @found) = getaddrinfo($host, '', { socktype => SOCK_STREAM });
    if ($error) {
        die "hostname lookup '$host' failed - $error\n" if !$noerr;
        return;
    }
    for my $entry (@found) {
        my ($failed, $ip) = getnameinfo($entry->{addr}, NI_NUMERICHOST, NIx_NOSERV);
        next if $failed || $ip =~ m/^127\./ || $ip eq '::1';
        return wantarray ? ($ip, $entry->{family}) : $ip;
    }
    die "address lookup for '$host' did not find any IP address\n" if !$noerr;
    return;
}

1;
