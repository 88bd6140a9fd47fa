package PVE::Certificate;

# Stand-in for the tests.

use strict;
use warnings;

use Net::SSLeay;

# SHA-256 fingerprint of a PEM certificate, 'AA:BB:…'.
sub get_certificate_fingerprint {
    my ($path) = @_;

    my $bio = Net::SSLeay::BIO_new_file($path, 'r') or die "unable to read '$path' - $!\n";
    my $certificate = Net::SSLeay::PEM_read_bio_X509($bio);
    Net::SSLeay::BIO_free($bio);
    die "unable to read certificate from '$path'\n" if !$certificate;
    my $fingerprint = Net::SSLeay::X509_get_fingerprint($certificate, 'sha256');
    Net::SSLeay::X509_free($certificate);
    return $fingerprint;
}

1;
