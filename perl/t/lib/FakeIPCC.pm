package FakeIPCC;

# In place of PVE::IPCC: keeps the requests and gives prepared answers.

use strict;
use warnings;

BEGIN { $INC{'PVE/IPCC.pm'} = __FILE__; }

my @requests;
my %answers;

# Prepares the answer to an operation: bytes, or undef and an error number (0: done, no data).
sub answer {
    my ($operation, $data, $errno) = @_;
    $answers{$operation} = [$data, $errno // 0];
    return;
}

# The requests since the last call, each [operation, payload].
sub taken {
    my @taken = @requests;
    @requests = ();
    return @taken;
}

# The operations since the last call, as text.
sub operations {
    return join(' ', map { $_->[0] } taken());
}

sub PVE::IPCC::ipcc_send_rec {
    my ($operation, $payload) = @_;
    push @requests, [$operation, $payload];
    my ($data, $errno) = @{ $answers{$operation} // [undef, 111] };
    $! = $errno;
    return $data;
}

1;
