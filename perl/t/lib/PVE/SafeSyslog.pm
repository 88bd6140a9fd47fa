package PVE::SafeSyslog;

# Stand-in for the tests: keeps what would go to syslog.

use strict;
use warnings;

use base 'Exporter';
our @EXPORT = qw(syslog initlog);

my $tag = 'unknown';
my @lines;

# Remembers a line with its priority.
sub syslog {
    my ($priority, $format, @arguments) = @_;
    push @lines, [$priority, sprintf($format, @arguments)];
    return;
}

sub initlog {
    my ($name) = @_;
    $tag = $name;
    return;
}

sub tag {
    return $tag;
}

# The lines since the last call, each [priority, text].
sub taken {
    my @taken = @lines;
    @lines = ();
    return @taken;
}

1;
