package LabNode;

# A node made for these tests, with an /etc/pve of its own.

use strict;
use warnings;

use Time::HiRes qw(sleep time);

use base 'Exporter';
our @EXPORT_OK = qw(content put until_true wait_for_children);

# Set by the program that makes the node and runs the tests in it.
die "these tests change /etc/pve and belong into a namespace: make check runs them\n"
    if !$ENV{PVE_CLUSTER_LAB_NODE};

# Writes a file below /etc/pve, with the directories it needs.
sub put {
    my ($name, $text) = @_;
    utf8::encode($text) if utf8::is_utf8($text);
    my $dir = '/etc/pve';
    my @parts = split(m!/!, $name);
    pop @parts;
    for my $part (@parts) {
        $dir .= "/$part";
        mkdir($dir);
    }
    open(my $fh, '>', "/etc/pve/$name") or die "$name: $!";
    print $fh $text;
    close($fh) or die "$name: $!";
    return;
}

# The content of a file; undef if it cannot be opened.
sub content {
    my ($path) = @_;
    open(my $fh, '<', $path) or return undef;
    local $/;
    return scalar readline($fh);
}

# Polls until the code returns something true, at most so many seconds. What it returned.
sub until_true {
    my ($seconds, $code) = @_;
    my $end = time() + $seconds;
    while (1) {
        my $value = $code->();
        return $value if $value || time() > $end;
        sleep(0.02);
    }
    return;
}

# Exit codes of the children.
sub wait_for_children {
    my (@pids) = @_;
    return map { waitpid($_, 0) == $_ ? $? : 'lost' } @pids;
}

1;
