package Caught;

# What code says and how it ends.

use strict;
use warnings;

use base 'Exporter';
our @EXPORT_OK = qw(died warned printed);

# The exception of the code; the empty string when there was none.
sub died {
    my ($code) = @_;
    local $@;
    return '' if eval { $code->(); 1 };
    return $@;
}

# The warnings of the code, one string.
sub warned {
    my ($code) = @_;
    my $text = '';
    local $SIG{__WARN__} = sub { $text .= $_[0] };
    $code->();
    return $text;
}

# What the code printed on a handle, by default STDOUT.
sub printed {
    my ($code, $handle) = @_;
    $handle //= \*STDOUT;
    my $text = '';
    open(my $saved, '>&', $handle) or die "dup: $!";
    close($handle);
    open($handle, '>', \$text) or die "open: $!";
    my $done = eval { $code->(); 1 };
    my $error = $@;
    close($handle);
    open($handle, '>&', $saved) or die "dup: $!";
    die $error if !$done;
    return $text;
}

1;
