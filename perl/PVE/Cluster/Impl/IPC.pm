package PVE::Cluster::Impl::IPC;

# Requests to the daemon, and what they need: the packing of strings and the way errors are told.

use strict;
use warnings;

use JSON ();

use PVE::IPCC;

# The text as bytes. A string that Perl knows to be text goes out as UTF-8.
sub bytes {
    my ($text) = @_;
    $text = '' if !defined($text);
    utf8::encode($text) if utf8::is_utf8($text);
    return $text;
}

# A C string: the bytes up to the first NUL, and a NUL.
sub c_string {
    my ($text) = @_;
    my $bytes = bytes($text);
    $bytes =~ s/\0.*//s;
    return "$bytes\0";
}

# A field of 256 bytes: at most 255 bytes of the name, filled up with NULs.
sub name256 {
    my ($name) = @_;
    return pack('Z256', bytes($name));
}

# The answer of a request: its bytes, or undef with $! set (0: it was done, there is no data).
sub ask {
    my ($operation, $payload) = @_;
    return PVE::IPCC::ipcc_send_rec($operation) if !defined($payload);
    return PVE::IPCC::ipcc_send_rec($operation, $payload);
}

# As ask(), but an error is a death: "ipcc_send_rec[<operation>] failed: <reason>\n".
sub request {
    my ($operation, $payload) = @_;
    my $answer = ask($operation, $payload);
    die "ipcc_send_rec[$operation] failed: $!\n" if !defined($answer) && $! != 0;
    return $answer;
}

# The decoded answer of a request that is answered in JSON.
sub request_json {
    my ($operation, $payload) = @_;
    my $answer = request($operation, $payload);
    die "ipcc_send_rec[$operation] failed: no data\n" if !defined($answer);
    return JSON::decode_json($answer);
}

1;
