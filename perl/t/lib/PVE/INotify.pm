package PVE::INotify;

# Stand-in for the tests.

use strict;
use warnings;

use POSIX ();

use base 'Exporter';
our @EXPORT_OK = qw(nodename);

# Host name without its domain.
sub nodename {
    my ($name) = (POSIX::uname())[1] =~ m/^([^.]+)/;
    return $name;
}

1;
